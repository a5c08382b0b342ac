"""Uses of a trained model, from text to results: `Predictor`, and a pipeline for each use.

The names below are imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .predictor import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name == "Predictor":
        from .predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
