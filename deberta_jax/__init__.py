"""DeBERTa for JAX: models as Flax modules, pre-training by replaced token detection, exact PyTorch conversion.

The names below are imported on first use, so that `deberta-jax --help` does not wait for JAX.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from .versions import version_of

if TYPE_CHECKING:
    from .adapter import load_adapter, merge_adapter
    from .checkpoint import load_pretrained, save_pretrained
    from .config import DebertaConfig
    from .errors import UserError
    from .models import (
        Deberta,
        DebertaForMaskedLM,
        DebertaForMultipleChoice,
        DebertaForQuestionAnswering,
        DebertaForReplacedTokenDetection,
        DebertaForSequenceClassification,
        DebertaForTokenClassification,
    )
    from .outputs import EncoderOutput, HeadOutput, SpanOutput
    from .predict import Predictor
    from .rtd import RTDConfig
    from .sharding import make_mesh
    from .tokenizers.tokenizer import Tokenizer

__version__ = version_of()

__all__ = [
    "Deberta",
    "DebertaConfig",
    "DebertaForMaskedLM",
    "DebertaForMultipleChoice",
    "DebertaForQuestionAnswering",
    "DebertaForReplacedTokenDetection",
    "DebertaForSequenceClassification",
    "DebertaForTokenClassification",
    "EncoderOutput",
    "HeadOutput",
    "Predictor",
    "RTDConfig",
    "SpanOutput",
    "Tokenizer",
    "UserError",
    "__version__",
    "load_adapter",
    "load_pretrained",
    "make_mesh",
    "merge_adapter",
    "save_pretrained",
]
_MODULE_OF = {
    "DebertaConfig": "config",
    "EncoderOutput": "outputs",
    "HeadOutput": "outputs",
    "Predictor": "predict",
    "RTDConfig": "rtd",
    "SpanOutput": "outputs",
    "Tokenizer": "tokenizers.tokenizer",
    "UserError": "errors",
    "load_adapter": "adapter",
    "load_pretrained": "checkpoint",
    "make_mesh": "sharding",
    "merge_adapter": "adapter",
    "save_pretrained": "checkpoint",
    **{name: "models" for name in __all__ if name.startswith("Deberta") and name != "DebertaConfig"},
}


def __getattr__(name: str) -> Any:
    """Imports a public name, or a public module such as `deberta_jax.models`, on first use (PEP 562)."""
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
