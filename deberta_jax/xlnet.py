"""XLNet's encoder: attention with learned biases, relative positions and segments (XLNet, section 2; Transformer-XL).

    score[i, j] = ((q_i + u) . k_j  +  (q_i + v) . r[i - j]  +  (q_i + w) . s[type_i != type_j]) / sqrt(H)

r are projections of sinusoids of the distance, which have no table and no longest distance; s are two learned keys,
for a token of the same type and of another. Every product with r is computed once per distance and then moved to its
place by `relative_shift`. Source: the official `modeling.py` and `XLNetModel` of transformers, without their memory of
earlier texts and without the second stream, which only the permutation language model needs.
"""

from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .attention import AttentionOutput
from .config import DebertaConfig
from .encoder import EncoderStates, FeedForward, LayerOutput, split_heads
from .errors import UserError
from .layers import Dense, Dropout, Embedding, layer_norm, refuse_unread
from .position_scores import relative_shift
from .random import dropout, normal_initializer
from .sharding import constrain_batch

_MASKED = -1e30  # below every real score: its exponential is exactly 0
_IMPLEMENTATIONS = ("auto", "xla")
NO_SIFT = (
    "SiFT perturbs normalized embeddings, which XLNet does not have; fine-tune it without SiFT, or choose another model"
)


def sinusoids(length: int, width: int) -> Float[Array, "distances D"]:
    """Returns an encoding of each distance from length - 1 down to -length: sines, then cosines.

    The last distance occurs in no sequence. With it there are 2 * length rows, a number that `jax.export` can compare
    where the length is a variable.
    """
    frequency = 1 / np.float32(10000) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    distance = (length - 1 - jnp.arange(2 * length)).astype(jnp.float32)
    angle = distance[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Queries(NamedTuple):
    """The queries of each product of a score, with the bias of that product added."""

    content: Float[Array, "B S N H"]
    position: Float[Array, "B S N H"]
    segment: Float[Array, "B S N H"]


@flax.struct.dataclass
class LayerInputs:
    """What a layer reads besides its hidden states. A pytree, so that a rematerialized layer can take it.

    Attributes:
      segments: tokens of equal segments see each other; 0 is padding.
      types: token types; two tokens have the same or different ones (default: all have the same).
      sinusoids: those of each distance.
      train: enables dropout. Static.
    """

    segments: Int[Array | np.ndarray, "B S"]
    types: Int[Array | np.ndarray, "B S"] | None
    sinusoids: Float[Array, "distances D"]
    train: bool = flax.struct.field(pytree_node=False, default=False)


def xlnet_attention(
    queries: Queries,
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    position_keys: Float[Array, "distances N H"],
    type_keys: Float[Array, "2 N H"],
    inputs: LayerInputs,
    *,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
) -> AttentionOutput:
    """Attention with content, position and segment scores.

    Args:
      queries: projected queries with their biases.
      key: projected keys.
      value: projected values.
      position_keys: a key for each distance from S - 1 down to -S; the last one is not read.
      type_keys: the key of a token of the same type, and of a token of another.
      inputs: segments and types.
      dropout_rate: share of the probabilities that dropout zeroes.
      dropout_key: key of the dropout mask (default: no dropout).

    Returns:
      Context, exactly zero for padding, and the probabilities.
    """
    scores = _product("btnh,bsnh->nbts", queries.content, key)
    scores += relative_shift(_product("btnh,pnh->nbtp", queries.position, position_keys))
    if inputs.types is not None:
        of_type = _product("btnh,cnh->nbtc", queries.segment, type_keys)
        types = jnp.asarray(inputs.types)
        scores += jnp.where(types[:, :, None] == types[:, None, :], of_type[..., :1], of_type[..., 1:])
    segments = jnp.asarray(inputs.segments)
    visible = (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, None, :]
    scores = scores * key.shape[-1] ** -0.5 + jnp.where(visible, 0.0, _MASKED)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # The division by the sum follows the product with the values, which is smaller. Padding queries see nothing.
    normalizer = (segments != 0)[:, :, None] / weights.sum(axis=-1, keepdims=True)
    dropped = weights
    if dropout_key is not None and dropout_rate > 0:
        dropped = dropout(weights, rate=dropout_rate, key=dropout_key)
    context = _product("nbts,bsnh->nbth", dropped.astype(value.dtype), value) * normalizer
    return AttentionOutput(context.astype(value.dtype).transpose(1, 2, 0, 3), (weights * normalizer).swapaxes(0, 1))


def _product(spec: str, left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


class HeadBias(nn.Module):
    """Adds a learned vector per head."""

    config: DebertaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B S N H"]) -> Float[Array, "B S N H"]:
        init = normal_initializer(self.config.initializer_range)
        bias = self.param("bias", init, x.shape[-2:], jnp.float32)
        refuse_unread(self, "bias")
        return (x + bias).astype(x.dtype)


class XLNetAttention(nn.Module):
    """Projections, attention, output projection, residual and LayerNorm of one layer."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        heads, size = config.num_attention_heads, config.attention_head_size
        self.query_proj, self.key_proj, self.value_proj, self.pos_key_proj = (
            Dense(config, heads * size, self.dtype, use_bias=False) for _ in range(4)
        )
        self.content_bias, self.position_bias, self.segment_bias = (HeadBias(config) for _ in range(3))
        init = normal_initializer(config.initializer_range)
        self.segment_keys = self.param("segment_keys", init, (2, heads, size), jnp.float32)
        self.output = Dense(config, config.hidden_size, self.dtype, use_bias=False)
        self.layer_norm = layer_norm(config, self.dtype)
        self.output_dropout = Dropout(config.hidden_dropout_prob)
        refuse_unread(self, "segment_keys")

    def __call__(self, hidden: Float[Array, "B S D"], inputs: LayerInputs) -> LayerOutput:
        config, rate = self.config, self.config.attention_probs_dropout_prob
        query = split_heads(self.query_proj(hidden), config)
        context, probabilities = xlnet_attention(
            Queries(self.content_bias(query), self.position_bias(query), self.segment_bias(query)),
            split_heads(self.key_proj(hidden), config),
            split_heads(self.value_proj(hidden), config),
            split_heads(self.pos_key_proj(inputs.sinusoids), config),
            self.segment_keys.astype(self.dtype),
            inputs,
            dropout_rate=rate,
            dropout_key=self.make_rng("dropout") if inputs.train and rate > 0 else None,
        )
        context = self.output(context.reshape(*context.shape[:2], -1))
        return LayerOutput(self.layer_norm(self.output_dropout(context, inputs.train) + hidden), probabilities)


class XLNetLayer(nn.Module):
    """One post-LayerNorm layer."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.attention = XLNetAttention(self.config, self.dtype)
        self.feed_forward = FeedForward(self.config, self.dtype, inner_dropout=True)
        refuse_unread(self)

    def __call__(self, hidden: Float[Array, "B S D"], inputs: LayerInputs) -> LayerOutput:
        attended, probabilities = self.attention(hidden, inputs)
        return LayerOutput(self.feed_forward(attended, inputs.train), probabilities)


class XLNetEmbeddings(nn.Module):
    """Token embeddings and dropout; positions and types enter in the attention.

    `mask_embedding`, the query of a predicted token in the permutation language model, is kept but not read.

    Raises:
      UserError: a perturbation is given (SiFT): it is made for normalized embeddings, which XLNet has not.
    """

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size, config.initializer_range, self.dtype)
        self.mask_embedding = Embedding(1, config.hidden_size, config.initializer_range, self.dtype)
        self.dropout = Dropout(config.hidden_dropout_prob)
        refuse_unread(self)

    def __call__(self, input_ids: Int[Array | np.ndarray, "B S"], train: bool) -> Float[Array, "B S D"]:
        if self.has_variable("perturbation", "delta"):
            raise UserError(NO_SIFT)
        _ = self.mask_embedding.embedding  # makes the parameter, which nothing reads
        return constrain_batch(self.dropout(self.word_embeddings(input_ids), train))


class XLNetEncoder(nn.Module):
    """The stack of layers.

    Deliberate difference: in training the sinusoids have one dropout mask for the whole batch, as the relative table of
    DeBERTa, where transformers draws one per example. Their projections are then those of one table.

    Raises:
      UserError: `attention_implementation` is "pallas": the fused kernels compute DeBERTa's attention.
    """

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"
    remat: bool = False

    def setup(self) -> None:
        if self.attention_implementation not in _IMPLEMENTATIONS:
            raise UserError(
                f"attention_implementation is {self.attention_implementation!r}; for XLNet it must be one of "
                f"{', '.join(_IMPLEMENTATIONS)}, because the fused kernels compute DeBERTa's attention"
            )
        layer_class = nn.remat(XLNetLayer) if self.remat else XLNetLayer
        self.layer = [layer_class(self.config, self.dtype) for _ in range(self.config.num_hidden_layers)]
        self.dropout = Dropout(self.config.hidden_dropout_prob)
        refuse_unread(self)

    def __call__(
        self,
        embeddings: Float[Array, "B S D"],
        segments: Int[Array | np.ndarray, "B S"],
        types: Int[Array | np.ndarray, "B S"] | None,
        *,
        train: bool,
    ) -> EncoderStates:
        """Runs all layers. Without types, every token has the same.

        Raises:
          ValueError: types have another shape than segments.
        """
        if types is not None and types.shape != segments.shape:
            raise ValueError(f"token_type_ids has shape {types.shape}; it must be that of input_ids, {segments.shape}")
        table = sinusoids(embeddings.shape[1], self.config.hidden_size)
        inputs = LayerInputs(segments, types, self.dropout(table, train), train=train)
        hidden_states, attentions = [embeddings], []
        for layer in self.layer:
            hidden, probabilities = layer(hidden_states[-1], inputs)
            hidden_states.append(constrain_batch(hidden))
            attentions.append(probabilities)
        return EncoderStates(hidden_states, attentions)


def last_tokens(
    hidden: Float[Array, "B S D"], segments: Int[Array | np.ndarray, "B S"] | None
) -> Float[Array, "B 1 D"]:
    """Returns the last token of each row that is not padding, wherever the padding is.

    Args:
      hidden: the last hidden state.
      segments: nonzero for real tokens (default: all are real).
    """
    if segments is None:
        return hidden[:, -1:]
    last = segments.shape[1] - 1 - (jnp.asarray(segments) != 0)[:, ::-1].argmax(axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)


def refuse_xlnet(config: DebertaConfig, task: str) -> None:
    """Raises UserError if the configuration is XLNet's, which has no head for a task of pre-training here."""
    if config.model_type == "xlnet":
        raise UserError(
            f"model_type is 'xlnet', which has no head for {task} in this library: XLNet's language model predicts the "
            "tokens in a random order, by a second stream of attention; fine-tune XLNet, or choose another model"
        )
