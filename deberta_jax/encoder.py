"""Embeddings, attention and feed-forward blocks, the convolution layer and the encoder."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .attention import IMPLEMENTATIONS, disentangled_attention
from .config import DebertaConfig
from .errors import UserError
from .layers import ACTIVATION_FUNCTIONS, Dense, Dropout, Embedding, layer_norm
from .positions import live_rows
from .sharding import constrain_batch


class Tokens(NamedTuple):
    """Where the tokens of a batch stand: the part of the input that every layer needs."""

    segments: jax.Array  # int [B, S], equal numbers see each other, 0 is padding
    positions: jax.Array  # int [B, S], row of the position table


class KeysValues(NamedTuple):
    """Projections of the hidden states that queries of another stream attend to (the enhanced mask decoder's)."""

    key: jax.Array  # [B, S, N, H]
    value: jax.Array  # [B, S, N, H]


class Selection(NamedTuple):
    """Queries that are not simply every position in order (the enhanced mask decoder's masked positions)."""

    positions: jax.Array  # int [B, M], index into the sequence
    segments: jax.Array  # int [B, M]


def perturb(embeddings: jax.Array, delta: jax.Array) -> jax.Array:
    """The embeddings [B, S, D], normalized and held constant, plus delta (official `PerturbationLayer`).

    float32, as bfloat16 has no room for a step of 1e-4 beside numbers around 1.
    """
    if delta.shape != embeddings.shape:
        raise UserError(f"the perturbation has shape {delta.shape}; it must be the embeddings', {embeddings.shape}")
    embeddings = jax.lax.stop_gradient(embeddings).astype(jnp.float32)
    variance = embeddings.var(axis=-1, keepdims=True)  # in two passes; the function's own is the fast one
    return jax.nn.standardize(embeddings, variance=variance, epsilon=1e-7) + delta


class Embeddings(nn.Module):
    """Token (+ absolute position, + token type) embeddings, LayerNorm, zero at padding, dropout.

    A projection to the hidden size stands in front of the LayerNorm, in ELECTRA behind the dropout.

    With a variable `delta` of the collection "perturbation" the LayerNorm reads `perturb` of the embeddings: that is
    how scale-invariant fine-tuning disturbs them (`sift.perturbation`).
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

    def __call__(
        self, input_ids: jax.Array, tokens: Tokens, token_type_ids: jax.Array | None, train: bool
    ) -> jax.Array:
        hidden = self.word_embeddings(input_ids)
        if self.config.position_biased_input:
            hidden = hidden + self.absolute_positions(tokens.positions)
        if self.config.type_vocab_size > 0:
            if token_type_ids is None:
                token_type_ids = jnp.zeros_like(input_ids)
            hidden = hidden + self.token_type_embeddings(token_type_ids)
        projected, after = (
            self.config.embedding_size != self.config.hidden_size,
            self.config.projects_normalized_embeddings,
        )
        if projected and not after:
            hidden = self.embed_proj(hidden)
        if self.has_variable("perturbation", "delta"):
            hidden = perturb(hidden, self.get_variable("perturbation", "delta"))
        real = (tokens.segments != 0)[..., None].astype(self.dtype)
        hidden = self.dropout(self.layer_norm(hidden) * real, train)
        if projected and after:
            hidden = self.embed_proj(hidden) * real
        return constrain_batch(hidden)

    def absolute_positions(self, positions: jax.Array) -> jax.Array:
        """Rows of the position table. Positions past its end read the last row; the official code fails there."""
        return self.position_embeddings(positions)


class Attention(nn.Module):
    """Projections, disentangled attention, output projection, residual and LayerNorm of one layer."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"

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

    def __call__(
        self,
        hidden: jax.Array,
        keys_values: KeysValues | None,
        relative: jax.Array | None,
        segments: jax.Array,
        selection: Selection | None,
        train: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Queries and residual from hidden [B, T, D], and without keys_values keys and values as well.

        Returns:
          [B, T, D], and the probabilities [B, N, T, S].
        """
        key, value = self.keys_values(hidden) if keys_values is None else keys_values
        pos_key, pos_query = self._relative_projections(relative, train)
        # Found here and not handed in, as a rematerialized layer makes every argument an unknown.
        rows = np.zeros(0, int) if relative is None else live_rows(key.shape[1], self.config)[1]
        drops = train and self.config.attention_probs_dropout_prob > 0
        context, probabilities = disentangled_attention(
            self._heads(self.query_proj(hidden)),
            key,
            value,
            pos_key=pos_key,
            pos_query=pos_query,
            rows=rows,
            query_segments=segments if selection is None else selection.segments,
            key_segments=segments,
            query_positions=None if selection is None else selection.positions,
            dropout_rate=self.config.attention_probs_dropout_prob,
            dropout_key=self.make_rng("dropout") if drops else None,
            implementation=self.attention_implementation,
        )
        context = self.output(context.reshape(*context.shape[:2], -1))
        return self.layer_norm(self.output_dropout(context, train) + hidden), probabilities

    def keys_values(self, hidden: jax.Array) -> KeysValues:
        """hidden [B, S, D]."""
        return KeysValues(self._heads(self.key_proj(hidden)), self._heads(self.value_proj(hidden)))

    def _relative_projections(
        self, relative: jax.Array | None, train: bool
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """Keys and queries [P, N, H] of the relative table; one dropout mask a layer for the whole batch."""
        if relative is None:
            return None, None
        config = self.config
        table = self.relative_dropout(relative, train)
        pos_key = pos_query = None
        if "c2p" in config.pos_att_type:
            pos_key = self._heads((self.key_proj if config.share_att_key else self.pos_key_proj)(table))
        if "p2c" in config.pos_att_type:
            pos_query = self._heads((self.query_proj if config.share_att_key else self.pos_query_proj)(table))
        return pos_key, pos_query

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.config.num_attention_heads, self.config.attention_head_size)


class FeedForward(nn.Module):
    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.intermediate = Dense(self.config, self.config.intermediate_size, self.dtype)
        self.output = Dense(self.config, self.config.hidden_size, self.dtype)
        self.layer_norm = layer_norm(self.config, self.dtype)
        self.dropout = Dropout(self.config.hidden_dropout_prob)

    def __call__(self, hidden: jax.Array, train: bool) -> jax.Array:
        inner = ACTIVATION_FUNCTIONS[self.config.hidden_act](self.intermediate(hidden))
        return self.layer_norm(self.dropout(self.output(inner), train) + hidden)


class EncoderLayer(nn.Module):
    """One post-LayerNorm transformer layer."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"

    def setup(self) -> None:
        self.attention = Attention(self.config, self.dtype, self.attention_implementation)
        self.feed_forward = FeedForward(self.config, self.dtype)

    def __call__(
        self,
        hidden: jax.Array,
        keys_values: KeysValues | None,
        relative: jax.Array | None,
        segments: jax.Array,
        selection: Selection | None,
        train: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """As Attention."""
        attended, probabilities = self.attention(hidden, keys_values, relative, segments, selection, train)
        return self.feed_forward(attended, train), probabilities

    def keys_values(self, hidden: jax.Array) -> KeysValues:
        return self.attention.keys_values(hidden)


class ConvolutionLayer(nn.Module):
    """v2's convolution over the embeddings, added to the first layer's output (official `ConvLayer`)."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.conv = SegmentConvolution(self.config, self.dtype)
        self.layer_norm = layer_norm(self.config, self.dtype)
        self.dropout = Dropout(self.config.hidden_dropout_prob)

    def __call__(self, embeddings: jax.Array, first_output: jax.Array, segments: jax.Array, train: bool) -> jax.Array:
        real = (segments != 0)[..., None].astype(self.dtype)
        mixed = self.dropout(self.conv(embeddings, segments) * real, train)  # dropout before the activation, as there
        mixed = ACTIVATION_FUNCTIONS[self.config.conv_act](mixed)
        return self.layer_norm(first_output + mixed) * real


class SegmentConvolution(nn.Module):
    """A convolution over the sequence that reads a neighbor of another segment as zero.

    One tap of the kernel at a time: a product with the embeddings moved by the tap's offset. Without packing this
    is the plain convolution, for the embeddings of padding are zero anyway.
    """

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        width, groups, taps = self.config.hidden_size, self.config.conv_groups, self.config.conv_kernel_size
        init = nn.initializers.normal(self.config.initializer_range)
        kernel = self.param("kernel", init, (taps, width // groups, width), jnp.float32).astype(self.dtype)
        total = self.param("bias", nn.initializers.zeros, (width,), jnp.float32).astype(self.dtype)
        kernel = kernel.reshape(taps, width // groups, groups, width // groups)
        for tap in range(taps):
            offset = tap - taps // 2
            same = (_shift(segments, offset) == segments)[..., None].astype(self.dtype)
            neighbor = (_shift(x, offset) * same).reshape(*x.shape[:-1], groups, width // groups)
            total = total + jnp.einsum("bsgi,igo->bsgo", neighbor, kernel[tap]).reshape(x.shape)
        return total


def _shift(x: jax.Array, offset: int) -> jax.Array:
    """out[:, i] = x[:, i + offset], zero past the ends."""
    length = x.shape[1]
    moved = jnp.roll(x, -offset, axis=1)
    at = jnp.arange(length) + offset
    inside = (at >= 0) & (at < length)
    return jnp.where(inside.reshape(1, -1, *(1,) * (x.ndim - 2)), moved, 0)


class Encoder(nn.Module):
    """The stack of layers, the relative table they share, and v2's convolution after the first."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        layer_class = nn.remat(EncoderLayer, static_argnums=(6,)) if self.remat else EncoderLayer
        self.layer = [
            layer_class(config, self.dtype, self.attention_implementation) for _ in range(config.num_hidden_layers)
        ]
        if config.relative_attention:
            self.rel_embeddings = Embedding(
                2 * config.att_span, config.hidden_size, config.initializer_range, self.dtype
            )
            if config.norm_rel_ebd == "layer_norm":
                self.layer_norm = layer_norm(config, self.dtype)
        if config.conv_kernel_size > 0:
            self.conv = ConvolutionLayer(config, self.dtype)

    def __call__(
        self, embeddings: jax.Array, segments: jax.Array, *, train: bool, layers: int | None = None
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Runs the first `layers` layers (None: all).

        Args:
          embeddings: [B, S, D]; segments: int [B, S].

        Returns:
          Hidden states [B, S, D], the embeddings first, and the attention probabilities [B, N, S, S] of each layer.
        """
        relative = self.relative(embeddings.shape[1])
        hidden_states, attentions = [embeddings], []
        for index, layer in enumerate(self.layer[:layers]):
            hidden, probabilities = layer(hidden_states[-1], None, relative, segments, None, train)
            if index == 0 and self.config.conv_kernel_size > 0:
                hidden = self.conv(embeddings, hidden, segments, train)
            hidden_states.append(constrain_batch(hidden))
            attentions.append(probabilities)
        return hidden_states, attentions

    def decode(
        self,
        hidden: jax.Array,
        queries: jax.Array,
        segments: jax.Array,
        selection: Selection | None,
        *,
        steps: int,
        train: bool,
    ) -> jax.Array:
        """The last layer `steps` times, each on the queries [B, T, D] that the one before gave -> [B, T, D].

        Keys and values are those of hidden [B, S, D] throughout. In training the relative table's dropout mask differs
        between the steps.
        """
        layer, keys_values = self.layer[-1], self.layer[-1].keys_values(hidden)
        relative = self.relative(hidden.shape[1])
        for _ in range(steps):
            queries, _ = layer(constrain_batch(queries), keys_values, relative, segments, selection, train)
        return constrain_batch(queries)

    def relative(self, length: int) -> jax.Array | None:
        """The relative table's live rows [P, D] for `length` tokens, normalized; None without relative attention."""
        if not self.config.relative_attention:
            return None
        live, _ = live_rows(length, self.config)
        table = self.rel_embeddings(jnp.arange(live.start, live.stop))
        return self.layer_norm(table) if self.config.norm_rel_ebd == "layer_norm" else table
