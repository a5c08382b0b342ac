"""Scale-invariant fine-tuning (SiFT): small changes of the normalized embeddings should not change the prediction.

DeBERTa, "Scale invariant fine-tuning"; official `sift.py`. With t the logits of a plain forward pass:

    d     clip(N(0, init_perturbation), ±2 init_perturbation). It is added to the embeddings after a LayerNorm without
          parameters, in front of the model's own LayerNorm. No gradient reaches the embeddings through this sum.
    d'    d + learning_rate · g / (1e-6 + max |g|), with g the gradient of divergence(logits(d), t) and the maximum over
          the numbers of a token.
    loss  divergence(logits(d'), t). The task's loss plus `weight` times this loss is minimized.

The default corrects faults of the original; with `official` it reproduces the original exactly:

    official                                                  default
    t is trained as well, toward logits(d')                  t is held constant
    symmetric_kl and kl are cross entropies with constant    they are divergences, 0 for equal predictions; the
      probabilities, whose minimum is an entropy               gradient of symmetric_kl is the full one
    the loss is symmetric_kl whatever is chosen for d'       one choice for both
    regression: a softmax over the scores of the batch       regression: the squared difference
    mse: the mean over the batch and the classes             mse: the squared distance of the logits of an example

For similar predictions symmetric_kl draws the two together at the same rate in both columns. In both columns the
adversarial loss has no gradient for the embedding tables through the perturbed forward pass, and dropout differs
between the forward passes. The original also normalizes twice in the plain forward pass, which changes nothing but an
epsilon.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .errors import UserError
from .losses import LossSum

SiftLoss = Literal["symmetric_kl", "kl", "mse"]
# Compares logits with a target, both [..., C].
Divergence = Callable[[Float[Array, "*examples C"], Float[Array, "*examples C"]], Float[Array, "*examples"]]
# Applies a model: parameters, delta [B, S, D] and a dropout key to logits [..., C].
PerturbedLogits = Callable[[Any, Float[Array, "B S D"], Array], Float[Array, "*examples C"]]
_EXCLUDED = -1e9  # logit of probability 0; finite, because 0 times infinity is not 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiftConfig:
    """Scale-invariant fine-tuning, disabled by default. The other defaults are the published values."""

    weight: float = 0.0
    """weight of the adversarial loss, the original's vat_lambda (0 disables it; published: 5, for v3-xsmall 3)"""
    loss: SiftLoss = "symmetric_kl"
    """divergence between predictions with and without perturbation, the original's vat_loss_fn (regression always uses
    the squared difference)"""
    learning_rate: float = 1e-4
    """size of the single step of the perturbation, the original's vat_learning_rate"""
    init_perturbation: float = 1e-2
    """standard deviation of the initial perturbation, the original's vat_init_perturbation (the embeddings' is 1)"""
    official: bool = False
    """reproduce the original exactly, with the faults that `deberta_jax/sift.py` lists"""

    def __post_init__(self) -> None:
        if self.loss not in get_args(SiftLoss):
            raise UserError(f"the loss of SiFT is {self.loss!r}; it must be one of {', '.join(get_args(SiftLoss))}")
        for name in ("weight", "learning_rate", "init_perturbation"):
            value = getattr(self, name)
            if not 0 <= value <= float(np.finfo(np.float32).max):
                raise UserError(f"{name} of SiFT is {value}; it must be finite in 32 bits and not negative")


# -------------------------------------------------------------------------------------------- divergences


def symmetric_kl(logits: Float[Array, "*examples C"], target: Float[Array, "*examples C"]) -> Float[Array, "*examples"]:
    """Computes KL(logits || target) + KL(target || logits) of the softmax."""
    difference = jax.nn.log_softmax(logits) - jax.nn.log_softmax(target)
    return ((jax.nn.softmax(logits) - jax.nn.softmax(target)) * difference).sum(axis=-1)


def kl(logits: Float[Array, "*examples C"], target: Float[Array, "*examples C"]) -> Float[Array, "*examples"]:
    """Computes KL(target || logits) of the softmax."""
    difference = jax.nn.log_softmax(target) - jax.nn.log_softmax(logits)
    return (jax.nn.softmax(target) * difference).sum(axis=-1)


def squared_distance(
    logits: Float[Array, "*examples C"], target: Float[Array, "*examples C"]
) -> Float[Array, "*examples"]:
    """Computes the squared Euclidean distance."""
    return jnp.square(logits - target).sum(axis=-1)


def cross_entropy(
    logits: Float[Array, "*examples C"], target: Float[Array, "*examples C"]
) -> Float[Array, "*examples"]:
    """Computes the cross entropy with the target's probabilities, which are held constant."""
    return -(jax.lax.stop_gradient(jax.nn.softmax(target)) * jax.nn.log_softmax(logits)).sum(axis=-1)


DIVERGENCES: dict[SiftLoss, Divergence] = {"symmetric_kl": symmetric_kl, "kl": kl, "mse": squared_distance}
# The original's. Summed over the examples, its mse is the mean over examples and classes.
OFFICIAL_DIVERGENCES: dict[SiftLoss, Divergence] = {
    "symmetric_kl": lambda logits, target: cross_entropy(logits, target) + cross_entropy(target, logits),
    "kl": cross_entropy,
    "mse": lambda logits, target: squared_distance(logits, target) / logits.size,
}


def _divergences(config: SiftConfig, classes: int) -> tuple[Divergence, Divergence]:
    """Returns the objective of the perturbation, and the loss. A single class is a score, without a softmax."""
    if not config.official:
        divergence = DIVERGENCES[config.loss] if classes > 1 else squared_distance
        return divergence, divergence
    objective, loss = OFFICIAL_DIVERGENCES[config.loss], OFFICIAL_DIVERGENCES["symmetric_kl"]
    return (objective, loss) if classes > 1 else (_over_the_batch(objective), _over_the_batch(loss))


def _over_the_batch(divergence: Divergence) -> Divergence:
    """Treats scores [B, 1] as one example with B classes, as the original does; every row gets the same result."""
    return lambda logits, target: jnp.broadcast_to(divergence(logits[:, 0], target[:, 0]), logits.shape[:1])


# -------------------------------------------------------------------------------------------- the perturbation


def initial_perturbation(key: Array, shape: tuple[int, ...], config: SiftConfig) -> Float[Array, "B S D"]:
    """Draws from a normal distribution with the standard deviation init_perturbation, clipped at twice that."""
    deviation = config.init_perturbation
    return jnp.clip(deviation * jax.random.normal(key, shape), -2 * deviation, 2 * deviation)


def ascend(
    delta: Float[Array | np.ndarray, "B S D"], gradient: Float[Array, "B S D"], learning_rate: float
) -> Float[Array, "B S D"]:
    """Returns delta after a step of size `learning_rate` in the max-norm, per token.

    Delta is unchanged if the norm of the gradient is not finite.
    """
    moved = delta + learning_rate * gradient / (1e-6 + jnp.abs(gradient).max(axis=-1, keepdims=True))
    return jnp.where(jnp.isfinite(jnp.square(gradient).sum()), moved, delta)


def perturbation(delta: Float[Array | np.ndarray, "B S D"]) -> dict[str, Any]:
    """Returns the variables that perturb a model with a head; `encoder.Embeddings` reads them.

        model.apply({"params": params, **perturbation(delta)}, ...)

    Args:
      delta: float32; for multiple choice [B · C, S, D].
    """
    return {"perturbation": {"deberta": {"embeddings": {"delta": delta}}}}


# -------------------------------------------------------------------------------------------- the loss


def adversarial_loss(
    logits_of: PerturbedLogits,
    params: Any,
    clean: Float[Array, "*examples C"],
    delta: Float[Array | np.ndarray, "B S D"],
    config: SiftConfig,
    *,
    key: Array,
    weight: Shaped[Array | np.ndarray, "*examples"] | None = None,
) -> LossSum:
    """Computes the divergence between the predictions with the adversarial perturbation and those without.

    The task's loss plus config.weight times this one is minimized. Tasks differ only in what an example is, one softmax
    over C classes or one score (C = 1):
      sequence classification and multiple choice: their logits [B, C]; regression: [B, 1].
      token classification: logits [B, S, C], with the real tokens as weight [B, S].
      question answering: `span_logits`.

    Args:
      logits_of: applies the model with `perturbation(delta)`, and returns logits of the shape of `clean`.
      params: passed to logits_of. They are held constant while the perturbation is searched, so no second derivative
        is computed.
      clean: the logits without perturbation, float32.
      delta: the perturbation to start from, `initial_perturbation`.
      weight: weight of each example, 0 to ignore it (default: all 1).

    Returns:
      The sum over the examples that count, and their number or total weight.
    """
    objective, loss = _divergences(config, clean.shape[-1])
    search_key, loss_key = jax.random.split(key)
    target, constant = jax.lax.stop_gradient((clean, params))
    counts = jnp.ones(clean.shape[:-1]) if weight is None else weight

    def ascended(delta: jax.Array) -> jax.Array:
        return (objective(logits_of(constant, delta, search_key), target) * counts).sum()

    delta = ascend(delta, jax.grad(ascended)(delta), config.learning_rate)
    losses = loss(logits_of(params, delta, loss_key), clean if config.official else target)
    return LossSum((losses * counts).sum(), counts.sum())


def span_logits(
    start_logits: Float[Array, "B S"], end_logits: Float[Array, "B S"], real: Shaped[Array | np.ndarray, "B S"]
) -> Float[Array, "B 2 S"]:
    """Returns the two predictions of a span as logits over the tokens.

    Args:
      real: nonzero for the tokens that can be chosen; the others get a very low logit.
    """
    return jnp.where(real[:, None] != 0, jnp.stack([start_logits, end_logits], axis=1), _EXCLUDED)
