"""Embeddings, attention and feed-forward blocks, the convolution layer and the encoder."""

from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .attention import IMPLEMENTATIONS, AttentionInputs, disentangled_attention
from .config import DebertaConfig
from .errors import UserError
from .layers import ACTIVATION_FUNCTIONS, Dense, Dropout, Embedding, SegmentConvolution, layer_norm, refuse_unread
from .positions import LiveRows, SymbolicRows, live_rows
from .sharding import constrain_batch


class TokenLayout(NamedTuple):
    """Segment and absolute position of every token of a batch.

    Attributes:
      segments: tokens of equal segments see each other; 0 is padding.
      positions: row of the table of absolute positions.
    """

    segments: Int[Array | np.ndarray, "B S"]
    positions: Int[Array | np.ndarray, "B S"]


class KeysValues(NamedTuple):
    """Projections of hidden states, for queries that come from elsewhere (those of the enhanced mask decoder)."""

    key: Float[Array, "B S N H"]
    value: Float[Array, "B S N H"]


class SelectedQueries(NamedTuple):
    """Positions in the sequence and segments of queries that are only some of the tokens (the masked ones)."""

    positions: Int[Array | np.ndarray, "B M"]
    segments: Int[Array | np.ndarray, "B M"]


@flax.struct.dataclass
class LayerInputs:
    """What a layer reads besides its hidden states. A pytree, so that a rematerialized layer can take it.

    Attributes:
      segments: of the keys; tokens of equal segments see each other; 0 is padding.
      relative: live rows of the relative table, or None without relative attention.
      keys_values: what the queries attend to (default: projections of the hidden states).
      selection: position and segment of each query (default: query i is token i).
      live_rows: which row of `relative` each distance reads. Static: it must stay a NumPy array while JAX traces.
      train: enables dropout. Static.
    """

    segments: Int[Array | np.ndarray, "B S"]
    relative: Float[Array, "P D"] | None
    keys_values: KeysValues | None = None
    selection: SelectedQueries | None = None
    live_rows: LiveRows | SymbolicRows | None = flax.struct.field(pytree_node=False, default=None)
    train: bool = flax.struct.field(pytree_node=False, default=False)


class LayerOutput(NamedTuple):
    """Result of a layer, or of the attention in it."""

    hidden: Float[Array, "B T D"]
    probabilities: Float[Array, "B N T S"]


class EncoderStates(NamedTuple):
    """Hidden states, the embeddings first, and the attention probabilities of every layer."""

    hidden_states: list[Float[Array, "B S D"]]
    attentions: list[Float[Array, "B N S S"]]


def perturb(embeddings: Float[Array, "B S D"], delta: Float[Array, "..."]) -> Float[Array, "B S D"]:
    """Returns the embeddings, normalized and held constant, plus delta (official `PerturbationLayer`).

    Computes in float32: beside numbers around 1, bfloat16 cannot represent a step of 1e-4.

    Raises:
      UserError: delta has another shape than the embeddings.
    """
    if delta.shape != embeddings.shape:
        raise UserError(f"the perturbation has shape {delta.shape}; it must be the embeddings', {embeddings.shape}")
    embeddings = jax.lax.stop_gradient(embeddings).astype(jnp.float32)
    variance = embeddings.var(axis=-1, keepdims=True)  # two passes; `standardize` would compute it in one
    return jax.nn.standardize(embeddings, variance=variance, epsilon=1e-7) + delta


class Embeddings(nn.Module):
    """Token (+ absolute position, + token type) embeddings, LayerNorm, zero at padding, dropout.

    A projection to the hidden size comes before the LayerNorm, in ELECTRA after the dropout.

    With a variable `delta` in the collection "perturbation", the LayerNorm reads `perturb(embeddings, delta)`:
    scale-invariant fine-tuning perturbs the embeddings this way (`sift.perturbation`).
    """

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config

        def table(rows: int) -> Embedding:
            return Embedding(rows, config.embedding_size, config.initializer_range, self.dtype)

        self.word_embeddings = table(config.vocab_size)
        self.position_embeddings = table(config.max_position_embeddings)
        if config.type_vocab_size > 0:
            self.token_type_embeddings = table(config.type_vocab_size)
        if config.embedding_size != config.hidden_size:
            self.embed_proj = Dense(
                config, config.hidden_size, self.dtype, use_bias=config.projects_normalized_embeddings
            )
        self.layer_norm = layer_norm(config, self.dtype)
        self.dropout = Dropout(config.hidden_dropout_prob)
        refuse_unread(self)

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "B S"],
        tokens: TokenLayout,
        token_type_ids: Int[Array | np.ndarray, "B S"] | None,
        train: bool,
    ) -> Float[Array, "B S D"]:
        """Embeds a batch. Without token_type_ids, every type is 0."""
        hidden = self.word_embeddings(input_ids)
        if self.config.position_biased_input:
            hidden = hidden + self.absolute_positions(tokens.positions)
        if self.config.type_vocab_size > 0:
            if token_type_ids is None:
                token_type_ids = jnp.zeros_like(input_ids)
            hidden = hidden + self.token_type_embeddings(token_type_ids)
        projects = self.config.embedding_size != self.config.hidden_size
        projects_last = projects and self.config.projects_normalized_embeddings
        if projects and not projects_last:
            hidden = self.embed_proj(hidden)
        if self.has_variable("perturbation", "delta"):
            hidden = perturb(hidden, self.get_variable("perturbation", "delta"))
        real = (tokens.segments != 0)[..., None].astype(self.dtype)
        hidden = self.dropout(self.layer_norm(hidden) * real, train)
        if projects_last:
            hidden = self.embed_proj(hidden) * real
        return constrain_batch(hidden)

    def absolute_positions(self, positions: Int[Array | np.ndarray, "B S"]) -> Float[Array, "B S D"]:
        """Returns rows of the position table."""
        return self.position_embeddings(positions)


def split_heads(x: Float[Array, "*tokens W"], config: DebertaConfig) -> Float[Array, "*tokens N H"]:
    """Returns a projection by heads."""
    return x.reshape(*x.shape[:-1], config.num_attention_heads, config.attention_head_size)


class Attention(nn.Module):
    """Projections, disentangled attention, output projection, residual and LayerNorm of one layer."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"
    keep_probabilities: bool = False

    def setup(self) -> None:
        config = self.config
        if self.attention_implementation not in IMPLEMENTATIONS:
            raise UserError(
                f"attention_implementation is {self.attention_implementation!r}; "
                f"it must be one of {', '.join(IMPLEMENTATIONS)}"
            )
        width = config.num_attention_heads * config.attention_head_size
        self.query_proj = Dense(config, width, self.dtype)
        self.key_proj = Dense(config, width, self.dtype)
        self.value_proj = Dense(config, width, self.dtype)
        if config.relative_attention and not config.share_att_key:
            if "c2p" in config.pos_att_type:
                self.pos_key_proj = Dense(config, width, self.dtype)
            if "p2c" in config.pos_att_type:
                self.pos_query_proj = Dense(config, width, self.dtype)
        self.output = Dense(config, config.hidden_size, self.dtype)
        self.layer_norm = layer_norm(config, self.dtype)
        self.relative_dropout = Dropout(config.hidden_dropout_prob)
        self.output_dropout = Dropout(config.hidden_dropout_prob)
        refuse_unread(self)

    def __call__(self, hidden: Float[Array, "B T D"], inputs: LayerInputs) -> LayerOutput:
        """Computes queries and residual from the hidden states, and unless `inputs` has them, keys and values."""
        config, selection = self.config, inputs.selection
        key, value = self.keys_values(hidden) if inputs.keys_values is None else inputs.keys_values
        pos_key, pos_query = self._relative_projections(inputs)
        drops = inputs.train and config.attention_probs_dropout_prob > 0
        context, probabilities = disentangled_attention(
            split_heads(self.query_proj(hidden), config),
            key,
            value,
            AttentionInputs(
                query_segments=inputs.segments if selection is None else selection.segments,
                key_segments=inputs.segments,
                pos_key=pos_key,
                pos_query=pos_query,
                live_rows=inputs.live_rows,
                query_positions=None if selection is None else selection.positions,
                dropout_rate=config.attention_probs_dropout_prob,
                dropout_key=self.make_rng("dropout") if drops else None,
            ),
            implementation=self.attention_implementation,
            keep_probabilities=self.keep_probabilities,
        )
        context = self.output(context.reshape(*context.shape[:2], -1))
        return LayerOutput(self.layer_norm(self.output_dropout(context, inputs.train) + hidden), probabilities)

    def keys_values(self, hidden: Float[Array, "B S D"]) -> KeysValues:
        return KeysValues(
            split_heads(self.key_proj(hidden), self.config), split_heads(self.value_proj(hidden), self.config)
        )

    def _relative_projections(
        self, inputs: LayerInputs
    ) -> tuple[Float[Array, "P N H"] | None, Float[Array, "P N H"] | None]:
        """Keys and queries of the relative table; one dropout mask per layer for the whole batch."""
        if inputs.relative is None:
            return None, None
        config = self.config
        table = self.relative_dropout(inputs.relative, inputs.train)
        pos_key = pos_query = None
        if "c2p" in config.pos_att_type:
            pos_key = split_heads((self.key_proj if config.share_att_key else self.pos_key_proj)(table), config)
        if "p2c" in config.pos_att_type:
            pos_query = split_heads((self.query_proj if config.share_att_key else self.pos_query_proj)(table), config)
        return pos_key, pos_query


class FeedForward(nn.Module):
    """Two dense layers with an activation between them, residual and LayerNorm.

    Attributes:
      inner_dropout: also applies dropout after the activation, as XLNet does.
    """

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32
    inner_dropout: bool = False

    def setup(self) -> None:
        self.intermediate = Dense(self.config, self.config.intermediate_size, self.dtype)
        self.output = Dense(self.config, self.config.hidden_size, self.dtype)
        self.layer_norm = layer_norm(self.config, self.dtype)
        self.dropout = Dropout(self.config.hidden_dropout_prob)
        refuse_unread(self)

    def __call__(self, hidden: Float[Array, "B T D"], train: bool) -> Float[Array, "B T D"]:
        inner = ACTIVATION_FUNCTIONS[self.config.hidden_act](self.intermediate(hidden))
        if self.inner_dropout:
            inner = self.dropout(inner, train)
        return self.layer_norm(self.dropout(self.output(inner), train) + hidden)


class EncoderLayer(nn.Module):
    """One post-LayerNorm transformer layer."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"
    keep_probabilities: bool = False

    def setup(self) -> None:
        self.attention = Attention(self.config, self.dtype, self.attention_implementation, self.keep_probabilities)
        self.feed_forward = FeedForward(self.config, self.dtype)
        refuse_unread(self)

    def __call__(self, hidden: Float[Array, "B T D"], inputs: LayerInputs) -> LayerOutput:
        attended, probabilities = self.attention(hidden, inputs)
        return LayerOutput(self.feed_forward(attended, inputs.train), probabilities)

    def keys_values(self, hidden: Float[Array, "B S D"]) -> KeysValues:
        return self.attention.keys_values(hidden)


class ConvolutionLayer(nn.Module):
    """v2's convolution over the embeddings, added to the first layer's output (official `ConvLayer`)."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.conv = SegmentConvolution(self.config, self.dtype)
        self.layer_norm = layer_norm(self.config, self.dtype)
        self.dropout = Dropout(self.config.hidden_dropout_prob)
        refuse_unread(self)

    def __call__(
        self,
        embeddings: Float[Array, "B S D"],
        first_output: Float[Array, "B S D"],
        segments: Int[Array | np.ndarray, "B S"],
        train: bool,
    ) -> Float[Array, "B S D"]:
        real = (segments != 0)[..., None].astype(self.dtype)
        mixed = self.dropout(self.conv(embeddings, segments) * real, train)  # before the activation, as officially
        mixed = ACTIVATION_FUNCTIONS[self.config.conv_act](mixed)
        return self.layer_norm(first_output + mixed) * real


class Encoder(nn.Module):
    """The stack of layers, the relative table they share, and v2's convolution after the first."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"
    remat: bool = False
    kept_layers: int = 0

    def setup(self) -> None:
        config = self.config
        layer_class = nn.remat(EncoderLayer) if self.remat else EncoderLayer
        self.layer = [
            layer_class(config, self.dtype, self.attention_implementation, number < self.kept_layers)
            for number in range(config.num_hidden_layers)
        ]
        if config.relative_attention:
            self.rel_embeddings = Embedding(
                2 * config.att_span, config.hidden_size, config.initializer_range, self.dtype
            )
        if config.norm_rel_ebd == "layer_norm":  # the official BERT baseline has this layer, but never calls it
            self.layer_norm = layer_norm(config, self.dtype)
        if config.conv_kernel_size > 0:
            self.conv = ConvolutionLayer(config, self.dtype)
        refuse_unread(self)

    def __call__(
        self,
        embeddings: Float[Array, "B S D"],
        segments: Int[Array | np.ndarray, "B S"],
        *,
        train: bool,
        layers: int | None = None,
    ) -> EncoderStates:
        """Runs the first `layers` layers (default: all)."""
        inputs = self._layer_inputs(segments, train)
        hidden_states, attentions = [embeddings], []
        for index, layer in enumerate(self.layer[:layers]):
            hidden, probabilities = layer(hidden_states[-1], inputs)
            if index == 0 and self.config.conv_kernel_size > 0:
                hidden = self.conv(embeddings, hidden, segments, train)
            hidden_states.append(constrain_batch(hidden))
            attentions.append(probabilities)
        return EncoderStates(hidden_states, attentions)

    def decode(
        self,
        hidden: Float[Array, "B S D"],
        queries: Float[Array, "B T D"],
        segments: Int[Array | np.ndarray, "B S"],
        selection: SelectedQueries | None,
        *,
        steps: int,
        train: bool,
    ) -> Float[Array, "B T D"]:
        """Runs the last layer `steps` times, each time on the queries that the time before returned.

        Keys and values are always those of `hidden`. In training the dropout mask of the relative table differs between
        the steps.
        """
        layer = self.layer[-1]
        inputs = self._layer_inputs(segments, train)
        inputs = inputs.replace(  # type: ignore[attr-defined]
            keys_values=layer.keys_values(hidden), selection=selection
        )
        for _ in range(steps):
            queries, _ = layer(constrain_batch(queries), inputs)
        return constrain_batch(queries)

    def _layer_inputs(self, segments: Int[Array | np.ndarray, "B S"], train: bool) -> LayerInputs:
        """Looks up the live rows of the relative table and normalizes them, once for all layers."""
        if not self.config.relative_attention:
            return LayerInputs(segments, None, train=train)
        live = live_rows(segments.shape[1], self.config)
        table = self.rel_embeddings(live.table_rows)
        if self.config.norm_rel_ebd == "layer_norm":
            table = self.layer_norm(table)
        return LayerInputs(segments, table, live_rows=live, train=train)
