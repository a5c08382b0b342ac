"""The figures of pre-training: losses, accuracies, precision and recall from summed counts."""

import math
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from deberta_jax.losses import MaskedLMPass
from deberta_jax.rtd import DiscriminatorPass

_GENERATOR_COUNTS = frozenset({"masked_loss_sum", "masked_count", "masked_correct"})
_DISCRIMINATOR_COUNTS = frozenset(
    {
        "rtd_loss_sum",
        "rtd_count",
        "rtd_correct",
        "replaced_true_positive",
        "replaced_predicted",
        "replaced_actual",
    }
)


def generator_sums(out: MaskedLMPass) -> dict[str, Float[Array, ""]]:
    """Returns the counts of one forward pass of the generator, for `pretraining_figures`."""
    return {"masked_loss_sum": out.loss_sum, "masked_count": out.weight, "masked_correct": out.correct}


def discriminator_sums(out: DiscriminatorPass) -> dict[str, Float[Array, ""]]:
    """Returns the counts of one forward pass of the discriminator, for `pretraining_figures`."""
    return {
        "rtd_loss_sum": out.loss_sum,
        "rtd_count": out.weight,
        "rtd_correct": out.correct,
        "replaced_true_positive": out.true_positive,
        "replaced_predicted": out.predicted,
        "replaced_actual": out.actual,
    }


def add_sums(sums: dict[str, float], more: Mapping[str, Any]) -> None:
    """Adds the metrics of a batch or a corpus to sums."""
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + float(value)


def pretraining_figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Computes the figures of pre-training from counts summed over steps, batches and hosts.

    Sums rather than means are added up, so that every token has the same weight, whatever its batch.

    Args:
      sums: `masked_loss_sum` (nats), `masked_count` and `masked_correct`; for replaced token detection also
        `rtd_loss_sum`, `rtd_count` (real tokens), `rtd_correct`, `replaced_true_positive`, `replaced_predicted` and
        `replaced_actual`. Any other value is a number per step, such as a learning rate or a gradient norm, and is
        averaged over `steps`.

    Returns:
      `generator_loss`, `masked_accuracy` and `perplexity`; with the discriminator's counts also `discriminator_loss`,
      `rtd_accuracy`, `replaced_precision`, `replaced_recall` and `replaced_f1`; then the averages. A division by zero
      gives NaN.

    Raises:
      ValueError: if counts are missing.
    """
    needed = _GENERATOR_COUNTS | (_DISCRIMINATOR_COUNTS if _DISCRIMINATOR_COUNTS & set(sums) else set())
    others = [name for name in sums if name not in needed and name != "steps"]
    missing = sorted(needed - set(sums)) + (["steps"] if others and "steps" not in sums else [])
    if missing:
        raise ValueError(f"sums lack {', '.join(missing)}; they hold {', '.join(sums)}")
    loss = _ratio(sums["masked_loss_sum"], sums["masked_count"])
    figures = {
        "generator_loss": loss,
        "masked_accuracy": _ratio(sums["masked_correct"], sums["masked_count"]),
        "perplexity": math.inf if loss > 700 else math.exp(loss),  # math.exp overflows from 709.8 on
    }
    if "rtd_count" in sums:
        hits, predicted, actual = (sums[f"replaced_{name}"] for name in ("true_positive", "predicted", "actual"))
        figures |= {
            "discriminator_loss": _ratio(sums["rtd_loss_sum"], sums["rtd_count"]),
            "rtd_accuracy": _ratio(sums["rtd_correct"], sums["rtd_count"]),
            "replaced_precision": _ratio(hits, predicted),
            "replaced_recall": _ratio(hits, actual),
            "replaced_f1": _ratio(2 * hits, predicted + actual),
        }
    return figures | {name: _ratio(sums[name], sums["steps"]) for name in others}


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
