"""The models that users name, and what they return."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from .config import DebertaConfig
from .encoder import Embeddings, Encoder, TokenLayout
from .errors import UserError
from .heads import BeforeLogits, ContextPooler, MaskedLMHead, ReplacedTokenHead, enhanced_mask_decoder
from .layers import ACTIVATION_FUNCTIONS, Dense, Dropout


@flax.struct.dataclass
class EncoderOutput:
    """last_hidden_state [B, S, D]; on request hidden_states (embeddings first) and attentions [B, N, S, S] by layer."""

    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class HeadOutput:
    """logits, float32; their shape is the model's."""

    logits: jax.Array


@flax.struct.dataclass
class SpanOutput:
    """start_logits and end_logits, float32 [B, S]."""

    start_logits: jax.Array
    end_logits: jax.Array


class _Model(nn.Module):
    """What every model takes: the configuration, the computation dtype, how attention is computed, rematerialization.

    Parameters are float32 whatever `dtype` says, and so are softmax, LayerNorm statistics, scores and logits.
    """

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"
    remat: bool = False

    def _encoder(self) -> "Deberta":
        return Deberta(self.config, self.dtype, self.attention_implementation, self.remat)


class Deberta(_Model):
    """The encoder.

    Call arguments, the same for every model here:
      input_ids: int [B, S].
      attention_mask: [B, S], nonzero for real tokens; None: all are real. Padding positions get zero context.
      segment_ids: int [B, S] instead of attention_mask for packed rows: attention, absolute positions and the
        convolution stay inside a segment, a run of equal numbers; 0 is padding.
      token_type_ids: int [B, S], only read by configurations with type_vocab_size. A type past the table's end reads
        its last row: RoBERTa has one, so that a pair's types do no harm.
      position_ids: int [B, S], rows of the position table; None: from config.position_offset, anew in every segment.
        Past the table's end its last row is read. Relative positions never depend on them.
      train: dropout on; needs a "dropout" rng.

    Raises:
      ValueError: shapes that do not fit, or both masks given.
    """

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config, self.dtype)
        self.encoder = Encoder(self.config, self.dtype, self.attention_implementation, self.remat)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        segment_ids: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        train: bool = False,
    ) -> EncoderOutput:
        offset = self.config.position_offset
        tokens = locate_tokens(input_ids, attention_mask, segment_ids, position_ids, position_offset=offset)
        embeddings = self.embeddings(input_ids, tokens, token_type_ids, train)
        hidden_states, attentions = self.encoder(embeddings, tokens.segments, train=train)
        return EncoderOutput(
            last_hidden_state=hidden_states[-1],
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def decode_masked(
        self,
        input_ids: jax.Array,
        tokens: TokenLayout,
        token_type_ids: jax.Array | None,
        masked_positions: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        """Input of the masked LM head, [B, M, D] ([B, S, D] without masked_positions).

        With the enhanced mask decoder the last layer runs only as decoder: its plain output would be thrown away.
        """
        embeddings = self.embeddings(input_ids, tokens, token_type_ids, train)
        if self.config.uses_enhanced_mask_decoder:
            layers = self.config.num_hidden_layers - 1
            hidden = self.encoder(embeddings, tokens.segments, train=train, layers=layers)[0][-1]
            positions = self.embeddings.absolute_positions(tokens.positions)
            return enhanced_mask_decoder(self.encoder, hidden, positions, tokens, masked_positions, train)
        hidden = self.encoder(embeddings, tokens.segments, train=train)[0][-1]
        if masked_positions is None:
            return hidden
        return jnp.take_along_axis(hidden, masked_positions[..., None], axis=1)


class DebertaForMaskedLM(_Model):
    """Masked LM: with the enhanced mask decoder, or on the last hidden state, as `config.mlm_head` says.

    Call: as Deberta, and masked_positions int [B, M]. Returns logits [B, M, V], or [B, S, V] without them.
    """

    def setup(self) -> None:
        if self.config.uses_enhanced_mask_decoder and self.config.num_hidden_layers < 2:
            raise UserError(
                "the enhanced mask decoder needs num_hidden_layers of at least 2; mlm_head 'bert' does without it"
            )
        if self.config.uses_enhanced_mask_decoder and self.config.embedding_size != self.config.hidden_size:
            raise UserError(
                "the enhanced mask decoder needs embedding_size equal to hidden_size; mlm_head 'bert' does without it"
            )
        self.deberta = self._encoder()
        self.mlm_head = MaskedLMHead(self.config, self.dtype)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        masked_positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        train: bool = False,
    ) -> HeadOutput:
        parts = self.before_logits(
            input_ids,
            attention_mask,
            masked_positions=masked_positions,
            segment_ids=segment_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            train=train,
        )
        return HeadOutput(parts.logits())

    def before_logits(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        masked_positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        train: bool = False,
    ) -> BeforeLogits:
        """As a call, but for the last product: `losses.masked_lm_and_samples` does without logits [B, M, V]."""
        offset = self.config.position_offset
        tokens = locate_tokens(input_ids, attention_mask, segment_ids, position_ids, position_offset=offset)
        hidden = self.deberta.decode_masked(input_ids, tokens, token_type_ids, masked_positions, train)
        return self.mlm_head(hidden, self.deberta.embeddings.word_embeddings)


class DebertaForReplacedTokenDetection(_Model):
    """The discriminator. Call: as Deberta. Returns logits [B, S], positive for tokens thought to be replaced."""

    def setup(self) -> None:
        self.deberta = self._encoder()
        self.rtd_head = ReplacedTokenHead(self.config, self.dtype)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        segment_ids: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        train: bool = False,
    ) -> HeadOutput:
        hidden = self.deberta(
            input_ids,
            attention_mask,
            segment_ids=segment_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            train=train,
        ).last_hidden_state
        first = hidden[:, :1]
        if segment_ids is not None:
            first = jnp.take_along_axis(hidden, segment_starts(segment_ids)[..., None], axis=1)
        return HeadOutput(self.rtd_head(hidden, first))


class DebertaForSequenceClassification(_Model):
    """Pooler and classifier over the first token. Returns logits [B, C]; [B, 1] for regression (num_labels 1)."""

    def setup(self) -> None:
        self.deberta = self._encoder()
        self.pooler = ContextPooler(self.config, self.dtype)
        self.dropout = Dropout(self.config.classifier_dropout)
        self.classifier = Dense(self.config, self.config.num_labels, jnp.float32)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        train: bool = False,
    ) -> HeadOutput:
        hidden = self.deberta(
            input_ids, attention_mask, token_type_ids=token_type_ids, position_ids=position_ids, train=train
        ).last_hidden_state
        pooled = self.dropout(self.pooler(hidden, train), train)
        return HeadOutput(self.classifier(pooled))


class DebertaForMultipleChoice(_Model):
    """Scores each of several texts. Every argument has one axis more, [B, C, S]; returns logits [B, C]."""

    def setup(self) -> None:
        self.deberta = self._encoder()
        self.pooler = ContextPooler(self.config, self.dtype)
        self.dropout = Dropout(self.config.classifier_dropout)
        self.classifier = Dense(self.config, 1, jnp.float32)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        train: bool = False,
    ) -> HeadOutput:
        def flat(x: jax.Array | None) -> jax.Array | None:
            return None if x is None else x.reshape(-1, x.shape[-1])

        hidden = self.deberta(
            input_ids.reshape(-1, input_ids.shape[-1]),
            flat(attention_mask),
            token_type_ids=flat(token_type_ids),
            position_ids=flat(position_ids),
            train=train,
        ).last_hidden_state
        pooled = self.dropout(self.pooler(hidden, train), train)
        return HeadOutput(self.classifier(pooled).reshape(input_ids.shape[:2]))


class DebertaForTokenClassification(_Model):
    """One label a token. Returns logits [B, S, C].

    With `projection` the head is Microsoft's for NER: a dense layer and an activation in front of the classifier;
    without, transformers' single layer.
    """

    projection: bool = False

    def setup(self) -> None:
        self.deberta = self._encoder()
        if self.projection:
            self.token_proj = Dense(self.config, self.config.hidden_size, self.dtype)
        self.dropout = Dropout(self.config.classifier_dropout)
        self.classifier = Dense(self.config, self.config.num_labels, jnp.float32)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        train: bool = False,
    ) -> HeadOutput:
        hidden = self.deberta(
            input_ids, attention_mask, token_type_ids=token_type_ids, position_ids=position_ids, train=train
        ).last_hidden_state
        if self.projection:
            hidden = ACTIVATION_FUNCTIONS[self.config.hidden_act](self.token_proj(hidden))
        return HeadOutput(self.classifier(self.dropout(hidden, train)))


class DebertaForQuestionAnswering(_Model):
    """The span that answers: start_logits and end_logits [B, S]."""

    def setup(self) -> None:
        self.deberta = self._encoder()
        self.span_classifier = Dense(self.config, 2, jnp.float32)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        train: bool = False,
    ) -> SpanOutput:
        hidden = self.deberta(
            input_ids, attention_mask, token_type_ids=token_type_ids, position_ids=position_ids, train=train
        ).last_hidden_state
        logits = self.span_classifier(hidden)
        return SpanOutput(start_logits=logits[..., 0], end_logits=logits[..., 1])


def segment_starts(segment_ids: jax.Array) -> jax.Array:
    """Index of the first token of each token's segment: int [B, S] -> int [B, S]."""
    index = jnp.arange(segment_ids.shape[1])
    starts = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def locate_tokens(
    input_ids: jax.Array,
    attention_mask: jax.Array | None,
    segment_ids: jax.Array | None,
    position_ids: jax.Array | None,
    *,
    position_offset: int = 0,
) -> TokenLayout:
    """Segments and absolute positions of a batch from whichever of the masks was given.

    With a position_offset (RoBERTa) real tokens are counted from it, without one places in the row from 0.
    """
    if input_ids.ndim != 2:
        raise UserError(f"input_ids has shape {input_ids.shape}; it must be [batch, sequence]")
    if attention_mask is not None and segment_ids is not None:
        raise UserError("give attention_mask or segment_ids, not both: segment_ids already mark padding with 0")
    for name, array in (
        ("attention_mask", attention_mask),
        ("segment_ids", segment_ids),
        ("position_ids", position_ids),
    ):
        if array is not None and array.shape != input_ids.shape:
            raise UserError(f"{name} has shape {array.shape}; it must be that of input_ids, {input_ids.shape}")
    index = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
    if segment_ids is not None:
        segments, positions = segment_ids, index - segment_starts(segment_ids)
    else:
        segments = jnp.ones_like(input_ids) if attention_mask is None else (attention_mask != 0).astype(jnp.int32)
        positions = jnp.cumsum(segments, axis=1) - 1 if position_offset else index
    return TokenLayout(segments, positions + position_offset if position_ids is None else position_ids)
