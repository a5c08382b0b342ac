"""Chooses how masked LM loss and samples are computed from the factors of the logits, and places it on a mesh.

On a TPU the kernels of `kernels.vocabulary` keep the logits in VMEM. Elsewhere, and for a call that they do not
support, `losses.masked_lm_and_samples` goes through the vocabulary in chunks. Both draw the same samples, up to ties
that rounding decides. The kernels have run in interpret mode and through the compiler only.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from . import losses
from .heads import LogitFactors
from .kernels.vocabulary import SlotResults, visit_vocabulary, vocabulary_gradients
from .kernels.vocabulary_plan import unsupported
from .losses import MaskedLMPass, Sampler
from .random import SlotSeeds, gumbel_noise
from .sharding import (
    batch_axes,
    batch_devices,
    current_device_kind,
    is_gpu,
    mesh_in_use,
    partition_spec,
    sum_over_batch,
    with_spec,
)

_TABLE, _BIAS = "word_embeddings/embedding", "mlm_head/bias"  # ends of the parameter paths


def sample_replacements(
    logits: Float[Array, "B M words"], words: Int[Array, "words"], key: Array
) -> Float[Array, "B M words"]:
    """Returns scores whose highest is a draw from softmax(logits) at temperature 1 (the Gumbel-max trick).

    Args:
      logits: float32, of a part of the vocabulary.
      words: the ids of that part.
      key: the same for all parts.
    """
    seeds = SlotSeeds.draw(logits.shape[:-1], key)
    return logits + gumbel_noise(words, SlotSeeds(*(seed[..., None] for seed in seeds)))


def masked_lm_pass(
    factors: LogitFactors,
    labels: Int[Array | np.ndarray, "B M"],
    *,
    key: Array,
    sampler: Sampler,
    implementation: str = "auto",
) -> MaskedLMPass:
    """Computes the masked LM loss and draws a word for every slot. Only `loss_sum` has a gradient.

    Args:
      factors: of the logits.
      labels: the original ids; 0 marks an unused slot.
      key: of the samples.
      sampler: see `losses.Sampler`. The kernels have `sample_replacements` alone.
      implementation: as for attention: `xla` never uses the kernels; `pallas` uses them in interpret mode, too.
    """
    placement = _placement(factors, labels, implementation) if sampler is sample_replacements else None
    if placement is None:
        return losses.masked_lm_and_samples(
            factors.hidden, factors.table, factors.bias, labels, key=key, sampler=sampler
        )
    labels = jnp.asarray(labels, jnp.int32)
    seeds = SlotSeeds.draw(labels.shape, key)
    visited: Any = _visit(placement, factors.hidden, factors.table, factors.bias, labels, seeds)
    return losses.sum_used_slots(labels, *visited)


class _Placement(NamedTuple):
    """How a call is split over a mesh; on one device nothing is.

    Attributes:
      batch: of arrays by row.
      words: of the bias and of the first axis of the table.
      tensor: the mesh axis that splits words, if it has several devices.
      table: of the table; None on one device.
      gradient: of the table's gradient.
      features_are_split: the mesh splits the table's features, which each device needs whole.
    """

    batch: PartitionSpec = PartitionSpec()
    words: PartitionSpec = PartitionSpec()
    tensor: str | None = None
    table: PartitionSpec | None = None
    gradient: PartitionSpec = PartitionSpec()
    features_are_split: bool = False


def _placement(factors: LogitFactors, labels: Int[Array | np.ndarray, "B M"], implementation: str) -> _Placement | None:
    """Returns how the kernels run a call, or None if they do not."""
    device_kind = current_device_kind()
    runs = "TPU" in device_kind or (implementation == "pallas" and not is_gpu(device_kind))
    width, dtype = factors.hidden.shape[-1], factors.hidden.dtype
    if implementation == "xla" or not runs or unsupported(width, dtype, device_kind) is not None:
        return None
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:
        return _Placement()
    mesh = mesh_in_use()
    if mesh is None or labels.shape[0] % batch_devices(mesh):
        return None
    shape = factors.table.shape
    return _Placement(
        batch=PartitionSpec(batch_axes(mesh)),
        words=partition_spec(_BIAS, shape[:1], mesh, moment=False),
        tensor="tensor" if mesh.shape.get("tensor", 1) > 1 else None,
        table=partition_spec(_TABLE, shape, mesh, moment=False),
        gradient=partition_spec(_TABLE, shape, mesh, moment=True),
        features_are_split=mesh.shape.get("fsdp", 1) > 1,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _visit(
    placement: _Placement,
    hidden: Float[Array, "B M embedding"],
    table: Float[Array, "V embedding"],
    bias: Float[Array, "V"],
    labels: Int[Array, "B M"],
    seeds: SlotSeeds,
) -> tuple[Float[Array, "B M"], Bool[Array, "B M"], Int[Array, "B M"]]:
    """Returns the cross entropy, whether the label's logit is the highest, and the sample of each slot."""
    return _visit_forward(placement, hidden, table, bias, labels, seeds)[0]


def _visit_forward(placement: _Placement, hidden, table, bias, labels, seeds) -> tuple[tuple, tuple]:
    def local(hidden, table, bias, labels, seeds) -> SlotResults:
        flat_labels, *flat_seeds = (x.reshape(-1) for x in (labels, *seeds))
        results = visit_vocabulary(
            hidden.reshape(-1, hidden.shape[-1]),
            table,
            bias,
            flat_labels,
            SlotSeeds(*flat_seeds),
            first_word=_first_word(placement, len(table)),
            axis=placement.tensor,
        )
        return SlotResults(*(x.reshape(labels.shape) for x in results))

    batch: Any = placement.batch
    words = placement.words
    specs = (batch, words, words, batch, SlotSeeds(batch, batch))
    results = _on_each_device(placement, local, specs, SlotResults(*(batch,) * 4))(
        hidden, _whole_features(placement, table, hidden.dtype), bias, labels, seeds
    )
    loss = results.normalizer - results.label_logit
    return (loss, results.correct, results.sampled), (hidden, table, bias, labels, results.normalizer)


def _visit_backward(placement: _Placement, residuals: tuple, cotangents: tuple) -> tuple:
    hidden, table, bias, labels, normalizer = residuals

    def local(hidden, table, bias, labels, normalizer, weights) -> tuple[jax.Array, jax.Array, jax.Array]:
        gradients = vocabulary_gradients(
            hidden.reshape(-1, hidden.shape[-1]),
            table,
            bias,
            *(x.reshape(-1) for x in (labels, normalizer, weights)),
            first_word=_first_word(placement, len(table)),
        )
        d_hidden, d_table, d_bias = gradients
        if placement.tensor is not None:
            d_hidden = jax.lax.psum(d_hidden, placement.tensor)
        if placement.table is not None:
            # In the dtype of the computation, as all gradients over `fsdp` are: half the bytes in bfloat16.
            d_table = sum_over_batch(d_table.astype(hidden.dtype), placement.gradient).astype(d_table.dtype)
            d_bias = sum_over_batch(d_bias, placement.words)
        return d_hidden.reshape(hidden.shape).astype(hidden.dtype), d_table, d_bias

    batch, words = placement.batch, placement.words
    gradients = _on_each_device(
        placement, local, (batch, words, words, batch, batch, batch), (batch, placement.gradient, words)
    )(hidden, _whole_features(placement, table, hidden.dtype), bias, labels, normalizer, cotangents[0])
    return *gradients, None, None


_visit.defvjp(_visit_forward, _visit_backward)


def _on_each_device(placement: _Placement, local: Any, in_specs: Any, out_specs: Any) -> Any:
    if placement.table is None:
        return local
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _first_word(placement: _Placement, words: int) -> Int[Array, ""] | int:
    """Returns the id of the first of this device's words."""
    return 0 if placement.tensor is None else jax.lax.axis_index(placement.tensor) * words


def _whole_features(
    placement: _Placement, table: Float[Array, "V embedding"], dtype: Any
) -> Float[Array, "V embedding"]:
    """Casts a table whose features the mesh splits before they are gathered, which halves the bytes in bfloat16."""
    if not placement.features_are_split or placement.table is None:
        return table
    return with_spec(table.astype(dtype), placement.table)
