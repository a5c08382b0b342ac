"""Scale-invariant fine-tuning (SiFT): a model should answer alike when its normalized embeddings are a little off.

DeBERTa, "Scale invariant fine-tuning"; official `sift.py`. With t the logits of a plain forward:

    d     clip(N(0, init_perturbation), +-2 init_perturbation), added to the embeddings after a LayerNorm without
          parameters and in front of the model's own; what it is added to is held constant
    d'    d + learning_rate * g / (1e-6 + max |g|), g the gradient of divergence(logits(d), t), the maximum a token's
    loss  divergence(logits(d'), t), its weight times which is added to the task's loss

Where the original has faults, the default here differs; `official` is the original to the letter:

    official                                                  default
    t is trained as well, toward logits(d')                  t is held constant
    symmetric_kl, kl: cross entropies of probabilities held   divergences, 0 where both answers agree; the gradient
      constant, whose lowest value is an entropy                of symmetric_kl is that of all of it
    the loss is symmetric_kl whatever was chosen for d'       one choice for both
    regression: a softmax over the scores of the batch        regression: the squared difference
    mse: a mean over the batch and the classes                mse: the squared distance of an answer's logits

For answers close to each other symmetric_kl draws the two together at the same rate in both columns. In both, nothing
of the adversarial loss reaches the embedding tables through the perturbed forward, and dropout differs between the
forwards. The original normalizes twice in the plain forward, too: the same, but for epsilon.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from .errors import UserError

SiftLoss = Literal["symmetric_kl", "kl", "mse"]
Divergence = Callable[[jax.Array, jax.Array], jax.Array]  # logits and target [..., C] -> [...]
# parameters, delta [B, S, D], dropout key -> logits float32 [..., C]
PerturbedLogits = Callable[[Any, jax.Array, jax.Array], jax.Array]
_MASKED = -1e9  # a logit whose probability is 0, finite so that 0 times it is 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiftConfig:
    """Scale-invariant fine-tuning; off by default. The other defaults are the published values."""

    weight: float = 0.0
    """weight of the adversarial loss (the original's vat_lambda), 0: none; published: 5, deberta-v3-xsmall 3"""
    loss: SiftLoss = "symmetric_kl"
    """divergence between the answers with and without perturbation (vat_loss_fn); of scores the squared difference"""
    learning_rate: float = 1e-4
    """size of the perturbation's one step (vat_learning_rate)"""
    init_perturbation: float = 1e-2
    """standard deviation of the perturbation before that step (vat_init_perturbation); the embeddings have 1"""
    official: bool = False
    """as the original, faults included: the unperturbed answer is trained, too; `deberta_jax/sift.py` lists them"""

    def __post_init__(self) -> None:
        if self.loss not in get_args(SiftLoss):
            raise UserError(f"the loss of SiFT is {self.loss!r}; it must be one of {', '.join(get_args(SiftLoss))}")
        for name in ("weight", "learning_rate", "init_perturbation"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f"{name} of SiFT is {value}; it must be a finite number, not negative")


# -------------------------------------------------------------------------------------------- divergences


def symmetric_kl(logits: jax.Array, target: jax.Array) -> jax.Array:
    """KL(logits || target) + KL(target || logits) of the softmax of [..., C] -> [...]."""
    difference = jax.nn.log_softmax(logits) - jax.nn.log_softmax(target)
    return ((jax.nn.softmax(logits) - jax.nn.softmax(target)) * difference).sum(axis=-1)


def kl(logits: jax.Array, target: jax.Array) -> jax.Array:
    """KL(target || logits) of the softmax of [..., C] -> [...]."""
    difference = jax.nn.log_softmax(target) - jax.nn.log_softmax(logits)
    return (jax.nn.softmax(target) * difference).sum(axis=-1)


def squared_distance(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., C] -> [...]."""
    return jnp.square(logits - target).sum(axis=-1)


def official_symmetric_kl(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Two cross entropies of [..., C] -> [...]; gradients reach both arguments, but no probability."""
    return official_kl(logits, target) + official_kl(target, logits)


def official_kl(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Cross entropy of the target's probabilities, held constant, with [..., C] -> [...]."""
    return -(jax.lax.stop_gradient(jax.nn.softmax(target)) * jax.nn.log_softmax(logits)).sum(axis=-1)


def official_mse(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., C] -> [...], whose sum is the mean of all squared differences."""
    return jnp.square(logits - target).sum(axis=-1) / logits.size


DIVERGENCES: dict[SiftLoss, Divergence] = {"symmetric_kl": symmetric_kl, "kl": kl, "mse": squared_distance}
OFFICIAL_DIVERGENCES: dict[SiftLoss, Divergence] = {
    "symmetric_kl": official_symmetric_kl,
    "kl": official_kl,
    "mse": official_mse,
}


def _over_the_batch(divergence: Divergence) -> Divergence:
    """Of scores [B, 1] as one answer with B classes, for each row the whole of it: what the original makes of them."""
    return lambda logits, target: jnp.broadcast_to(divergence(logits[:, 0], target[:, 0]), logits.shape[:1])


def _divergences(config: SiftConfig, classes: int) -> tuple[Divergence, Divergence]:
    """What the perturbation ascends, and the loss. One class is a score: a softmax over it says nothing."""
    if not config.official:
        chosen = DIVERGENCES[config.loss] if classes > 1 else squared_distance
        return chosen, chosen
    ascended, loss = OFFICIAL_DIVERGENCES[config.loss], official_symmetric_kl
    return (ascended, loss) if classes > 1 else (_over_the_batch(ascended), _over_the_batch(loss))


# -------------------------------------------------------------------------------------------- the perturbation


def initial_perturbation(key: jax.Array, shape: tuple[int, ...], config: SiftConfig) -> jax.Array:
    """float32 [shape], normal with init_perturbation as standard deviation, cut off at twice that."""
    deviation = config.init_perturbation
    return jnp.clip(deviation * jax.random.normal(key, shape), -2 * deviation, 2 * deviation)


def ascend(delta: jax.Array, gradient: jax.Array, learning_rate: float) -> jax.Array:
    """delta [B, S, D] after a step that moves no number of a token by more than learning_rate, and one by just that.

    Where the gradient's norm is not finite, delta as it is.
    """
    moved = delta + learning_rate * gradient / (1e-6 + jnp.abs(gradient).max(axis=-1, keepdims=True))
    return jnp.where(jnp.isfinite(jnp.square(gradient).sum()), moved, delta)


def perturbation(delta: jax.Array) -> dict[str, Any]:
    """Variables that perturb a model with a head: `model.apply({"params": params, **perturbation(delta)}, ...)`.

    delta is float32 [B, S, D], for multiple choice [B * C, S, D]. `encoder.Embeddings` reads it.
    """
    return {"perturbation": {"deberta": {"embeddings": {"delta": delta}}}}


# -------------------------------------------------------------------------------------------- the loss


def adversarial_loss(
    logits_of: PerturbedLogits,
    params: Any,
    clean: jax.Array,
    delta: jax.Array,
    config: SiftConfig,
    *,
    key: jax.Array,
    weight: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Divergence between the answers with the worst perturbation found and those without; add config.weight times it.

    The tasks differ only in what an answer is, one softmax over C classes or a score (C = 1):
      sequence classification and multiple choice: their logits [B, C]; regression: [B, 1].
      token classification: logits [B, S, C], with the real tokens as weight [B, S].
      question answering: `span_logits`.

    Args:
      logits_of: applies the model with `perturbation(delta)`; logits as `clean`.
      params: handed to logits_of. The search for the perturbation holds them constant, so that no gradient of its
        gradient is ever formed.
      clean: float32 [..., C], the logits without perturbation.
      delta: the perturbation to start from, `initial_perturbation`.
      weight: [...], 0 leaves an answer out; None: all count.

    Returns:
      Sum over what counts, and the number (or weight) of it.
    """
    ascended, loss = _divergences(config, clean.shape[-1])
    first, second = jax.random.split(key)
    target, constant = jax.lax.stop_gradient((clean, params))
    counts = jnp.ones(clean.shape[:-1]) if weight is None else weight

    def objective(delta: jax.Array) -> jax.Array:
        return (ascended(logits_of(constant, delta, first), target) * counts).sum()

    delta = ascend(delta, jax.grad(objective)(delta), config.learning_rate)
    losses = loss(logits_of(params, delta, second), clean if config.official else target)
    return (losses * counts).sum(), counts.sum()


def span_logits(start_logits: jax.Array, end_logits: jax.Array, real: jax.Array) -> jax.Array:
    """A span's two answers as logits [B, 2, S] over the tokens; real [B, S]: nonzero for those that may be chosen."""
    return jnp.where(real[:, None] != 0, jnp.stack([start_logits, end_logits], axis=1), _MASKED)
