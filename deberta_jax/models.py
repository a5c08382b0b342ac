"""The models. Every one takes the call arguments of `Deberta`, and multiple choice with one axis more."""

from typing import Any, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .config import DebertaConfig
from .encoder import Embeddings, Encoder, TokenLayout
from .errors import UserError
from .heads import ContextPooler, LogitFactors, MaskedLMHead, ReplacedTokenHead, enhanced_mask_decoder
from .inputs import EncoderOptions, TokenIds, TokenMask, check_ids, clip_padding, locate_tokens, segment_starts
from .layers import ACTIVATION_FUNCTIONS, Dense, Dropout, refuse_unread
from .outputs import DecoderOutput, EncoderOutput, HeadOutput, SpanOutput
from .xlnet import XLNetEmbeddings, XLNetEncoder, last_tokens, refuse_xlnet


class _Model(nn.Module):
    """Attributes of every model.

    Parameters are float32 with every `dtype`, and so are softmax, LayerNorm statistics, scores and logits.

    Attributes:
      dtype: of the computation.
      attention_implementation: "auto", "xla" or "pallas" (the fused kernels); "auto" chooses by device and length.
      remat: recomputes each layer in the backward pass instead of keeping its activations.
      kept_layers: the first layers, so many, keep their attention probabilities for the backward pass where the kernels
        can: see `keep_probabilities` of `attention.disentangled_attention`. Ignored by XLNet.
    """

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32
    attention_implementation: str = "auto"
    remat: bool = False
    kept_layers: int = 0

    def _encoder(self) -> "Deberta":
        return Deberta(self.config, self.dtype, self.attention_implementation, self.remat, self.kept_layers)

    def _classified(
        self, out: EncoderOutput, attention_mask: TokenMask | None, segment_ids: TokenIds | None
    ) -> Float[Array, "B tokens D"]:
        """Returns the hidden states whose first token a classifier of texts reads; in XLNet, the last token alone."""
        if not self.config.classifies_last_token:
            return out.last_hidden_state
        return last_tokens(out.last_hidden_state, attention_mask if segment_ids is None else segment_ids)


class Deberta(_Model):
    """The encoder.

    The call arguments are the same for every model; the models with a head return `output_hidden_states` and
    `output_attentions` in their output as well.

    Args:
      input_ids: token ids [B, S].
      attention_mask: [B, S], nonzero for real tokens (default: all are real). Padding gets zero context.
      segment_ids: [B, S], in place of attention_mask for packed rows: a run of equal numbers is a segment and 0 is
        padding. Attention, absolute positions and the convolution stay inside a segment. A head with one result per
        row (sequence classification, multiple choice) reads the first token of the row, thus its first segment; that
        of XLNet reads the last token that is not padding, thus the last segment.
      token_type_ids: [B, S], read only by configurations whose type_vocab_size is above 1, and by XLNet, which has no
        table: it only asks whether two tokens have the same type. RoBERTa's table has one row, which every token reads,
        so the types of a pair do no harm.
      position_ids: [B, S], rows of the position table (default: from config.position_offset on, anew in every
        segment). Relative positions never depend on them.
      output_hidden_states: return `hidden_states`, the embeddings and the output of every layer [B, S, D].
      output_attentions: return `attentions`, the probabilities of every layer [B, N, S, S].
      train: enables dropout; needs a "dropout" rng.

    A real token whose id, type or absolute position is outside its table raises an error, or gives NaN where JAX traces
    the arrays, as under `jax.jit`. Positions count only where the model reads absolute positions.

    Raises:
      ValueError: shapes that do not match, or both attention_mask and segment_ids.
      UserError: an id outside its table, or parameters that the model does not read.
    """

    def setup(self) -> None:
        if self.config.model_type == "xlnet":
            self.embeddings: Any = XLNetEmbeddings(self.config, self.dtype)
            self.encoder: Any = XLNetEncoder(self.config, self.dtype, self.attention_implementation, self.remat)
            self.output_dropout = Dropout(self.config.hidden_dropout_prob)
        else:
            self.embeddings = Embeddings(self.config, self.dtype)
            self.encoder = Encoder(self.config, self.dtype, self.attention_implementation, self.remat, self.kept_layers)
        refuse_unread(self)

    def __call__(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        *,
        segment_ids: TokenIds | None = None,
        token_type_ids: TokenIds | None = None,
        position_ids: TokenIds | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        train: bool = False,
    ) -> EncoderOutput:
        tokens = self._locate(input_ids, attention_mask, segment_ids, position_ids)
        if self.config.model_type == "xlnet":
            ids = clip_padding(jnp.asarray(input_ids), self.config.vocab_size, tokens.segments)
            hidden_states, attentions = self.encoder(
                self.embeddings(ids, train), tokens.segments, token_type_ids, train=train
            )
            last = self.output_dropout(hidden_states[-1], train)
        else:
            embeddings = self._embed(input_ids, tokens, token_type_ids, train)
            hidden_states, attentions = self.encoder(embeddings, tokens.segments, train=train)
            last = hidden_states[-1]
        return EncoderOutput(
            last_hidden_state=last,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def decode_masked(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None,
        masked_positions: Int[Array | np.ndarray, "B M"] | None,
        *,
        segment_ids: TokenIds | None = None,
        token_type_ids: TokenIds | None = None,
        position_ids: TokenIds | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        train: bool = False,
    ) -> DecoderOutput:
        """Returns the input of the masked LM head at the masked positions (default: at all positions).

        With the enhanced mask decoder the last layer runs only as the decoder, because its plain output is not needed,
        unless hidden states or attentions are requested.
        """
        decodes = self.config.uses_enhanced_mask_decoder
        tokens = self._locate(input_ids, attention_mask, segment_ids, position_ids, masked_lm=True)
        embeddings = self._embed(input_ids, tokens, token_type_ids, train)
        queries = None if masked_positions is None else jnp.asarray(masked_positions)
        before_last = self.config.num_hidden_layers - 1
        layers = before_last if decodes and not (output_hidden_states or output_attentions) else None
        hidden_states, attentions = self.encoder(embeddings, tokens.segments, train=train, layers=layers)
        if decodes:
            positions = self.embeddings.absolute_positions(tokens.positions)
            decoded = enhanced_mask_decoder(self.encoder, hidden_states[before_last], positions, tokens, queries, train)
        else:
            decoded = hidden_states[-1]
            if queries is not None:
                decoded = jnp.take_along_axis(decoded, queries[..., None], axis=1)
        return DecoderOutput(
            decoded,
            tuple(hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )

    def _locate(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None,
        segment_ids: TokenIds | None,
        position_ids: TokenIds | None,
        *,
        masked_lm: bool = False,
    ) -> TokenLayout:
        offset, rows = self.config.position_offset, self.config.max_position_embeddings
        tokens = locate_tokens(input_ids, attention_mask, segment_ids, position_ids, position_offset=offset)
        real = attention_mask if segment_ids is None else segment_ids
        check_ids("input_ids", input_ids, self.config.vocab_size, real)
        if self.config.reads_positions(masked_lm=masked_lm):
            check_ids("position_ids", tokens.positions if position_ids is None else position_ids, rows, real)
        return tokens._replace(positions=clip_padding(tokens.positions, rows, tokens.segments))

    def _embed(
        self, input_ids: TokenIds, tokens: TokenLayout, token_type_ids: TokenIds | None, train: bool
    ) -> Float[Array, "B S D"]:
        types, rows = None, self.config.type_vocab_size
        if token_type_ids is not None and rows > 1:
            check_ids("token_type_ids", token_type_ids, rows, tokens.segments)
            types = clip_padding(jnp.asarray(token_type_ids), rows, tokens.segments)
        ids = clip_padding(jnp.asarray(input_ids), self.config.vocab_size, tokens.segments)
        return self.embeddings(ids, tokens, types, train)


class DebertaForMaskedLM(_Model):
    """Masked LM, after the enhanced mask decoder or on the last hidden state (`config.mlm_head`).

    Returns logits [B, M, V] at `masked_positions` [B, M], or [B, S, V] without them.

    Raises:
      UserError: the enhanced mask decoder needs two layers, and embeddings as large as the hidden size.
    """

    def setup(self) -> None:
        refuse_xlnet(self.config, "masked tokens")
        if self.config.uses_enhanced_mask_decoder and self.config.num_hidden_layers < 2:
            raise UserError(
                f"num_hidden_layers is {self.config.num_hidden_layers}; the enhanced mask decoder needs at least 2. "
                "Add layers, or set mlm_head to 'bert'"
            )
        if self.config.uses_enhanced_mask_decoder and self.config.embedding_size != self.config.hidden_size:
            raise UserError(
                f"embedding_size is {self.config.embedding_size}; the enhanced mask decoder needs hidden_size, "
                f"{self.config.hidden_size}. Make them equal, or set mlm_head to 'bert'"
            )
        self.deberta = self._encoder()
        self.mlm_head = MaskedLMHead(self.config, self.dtype)
        refuse_unread(self)

    def __call__(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        *,
        masked_positions: Int[Array | np.ndarray, "B M"] | None = None,
        train: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> HeadOutput:
        out = self.deberta.decode_masked(input_ids, attention_mask, masked_positions, train=train, **options)
        logits = self.mlm_head(out.decoded, self.deberta.embeddings.word_embeddings).logits()
        return HeadOutput(logits, out.hidden_states, out.attentions)

    def logit_factors(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        *,
        masked_positions: Int[Array | np.ndarray, "B M"] | None = None,
        train: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> LogitFactors:
        """Same as a call, but stops before the product with the vocabulary."""
        out = self.deberta.decode_masked(input_ids, attention_mask, masked_positions, train=train, **options)
        return self.mlm_head(out.decoded, self.deberta.embeddings.word_embeddings)


class DebertaForReplacedTokenDetection(_Model):
    """The discriminator. Returns logits [B, S], positive where it predicts that a token was replaced."""

    def setup(self) -> None:
        refuse_xlnet(self.config, "replaced tokens")
        self.deberta = self._encoder()
        self.rtd_head = ReplacedTokenHead(self.config, self.dtype)
        refuse_unread(self)

    def __call__(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        *,
        train: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> HeadOutput:
        out = self.deberta(input_ids, attention_mask, train=train, **options)
        hidden, segment_ids = out.last_hidden_state, options.get("segment_ids")
        first = hidden[:, :1]
        if segment_ids is not None:
            first = jnp.take_along_axis(hidden, segment_starts(segment_ids)[..., None], axis=1)
        return HeadOutput(self.rtd_head(hidden, first), out.hidden_states, out.attentions)


class DebertaForSequenceClassification(_Model):
    """Pooler and classifier on the first token of the row, in XLNet the last. Returns logits [B, C].

    They are [B, 1] for regression.
    """

    def setup(self) -> None:
        self.deberta = self._encoder()
        self.pooler = ContextPooler(self.config, self.dtype)
        self.dropout = Dropout(self.config.classifier_dropout)
        self.classifier = Dense(self.config, self.config.num_labels, jnp.float32)
        refuse_unread(self)

    def __call__(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        *,
        train: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> HeadOutput:
        out = self.deberta(input_ids, attention_mask, train=train, **options)
        hidden = self._classified(out, attention_mask, options.get("segment_ids"))
        pooled = self.dropout(self.pooler(hidden, train), train)
        return HeadOutput(self.classifier(pooled), out.hidden_states, out.attentions)


class DebertaForMultipleChoice(_Model):
    """Scores each of several texts by the first token of its row, in XLNet the last. Returns logits [B, C].

    Every argument has an axis for the choices, [B, C, S], and so have hidden_states [B, C, S, D] and attentions
    [B, C, N, S, S].
    """

    def setup(self) -> None:
        self.deberta = self._encoder()
        self.pooler = ContextPooler(self.config, self.dtype)
        self.dropout = Dropout(self.config.classifier_dropout)
        self.classifier = Dense(self.config, 1, jnp.float32)
        refuse_unread(self)

    def __call__(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        *,
        train: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> HeadOutput:
        def flatten(argument: Any) -> Any:
            """Merges the choices into the batch; leaves None and flags alone."""
            return argument.reshape(-1, argument.shape[-1]) if hasattr(argument, "shape") else argument

        choices = input_ids.shape[:2]
        flat: Any = {name: flatten(argument) for name, argument in options.items()}
        out = self.deberta(flatten(input_ids), flatten(attention_mask), train=train, **flat)
        hidden = self._classified(out, flatten(attention_mask), flat.get("segment_ids"))
        pooled = self.dropout(self.pooler(hidden, train), train)
        logits = self.classifier(pooled).reshape(choices)
        hidden_states, attentions = jax.tree.map(
            lambda array: array.reshape(*choices, *array.shape[1:]), (out.hidden_states, out.attentions)
        )
        return HeadOutput(logits, hidden_states, attentions)


class DebertaForTokenClassification(_Model):
    """One label per token. Returns logits [B, S, C].

    With `config.token_projection` the head is Microsoft's for NER, a dense layer and an activation before the
    classifier; without, it is transformers' single layer.
    """

    def setup(self) -> None:
        self.deberta = self._encoder()
        if self.config.token_projection:
            self.token_proj = Dense(self.config, self.config.hidden_size, self.dtype)
        self.dropout = Dropout(self.config.token_dropout)
        self.classifier = Dense(self.config, self.config.num_labels, jnp.float32)
        refuse_unread(self)

    def __call__(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        *,
        train: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> HeadOutput:
        out = self.deberta(input_ids, attention_mask, train=train, **options)
        hidden = out.last_hidden_state
        if self.config.token_projection:
            hidden = ACTIVATION_FUNCTIONS[self.config.hidden_act](self.token_proj(hidden))
        logits = self.classifier(self.dropout(hidden, train))
        return HeadOutput(logits, out.hidden_states, out.attentions)


class DebertaForQuestionAnswering(_Model):
    """The span of the answer. Returns start_logits and end_logits [B, S]."""

    def setup(self) -> None:
        self.deberta = self._encoder()
        self.span_classifier = Dense(self.config, 2, jnp.float32)
        refuse_unread(self)

    def __call__(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        *,
        train: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> SpanOutput:
        out = self.deberta(input_ids, attention_mask, train=train, **options)
        logits = self.span_classifier(out.last_hidden_state)
        return SpanOutput(logits[..., 0], logits[..., 1], out.hidden_states, out.attentions)
