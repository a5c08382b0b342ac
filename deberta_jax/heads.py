"""Heads on the encoder: enhanced mask decoder, masked LM head, replaced-token head, pooler."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .config import DebertaConfig
from .encoder import Encoder, SelectedQueries, TokenLayout
from .layers import ACTIVATION_FUNCTIONS, Dense, Dropout, Embedding, layer_norm, refuse_unread

DECODER_STEPS = 2


def enhanced_mask_decoder(
    encoder: Encoder,
    hidden: Float[Array, "B S D"],
    positions: Float[Array, "B S D"],
    tokens: TokenLayout,
    masked_positions: Int[Array, "B M"] | None,
    train: bool,
) -> Float[Array, "B queries D"]:
    """Runs the encoder's last layer twice as a decoder (DeBERTa, section 4.2; official `emd_context_layer`).

    Keys and values stay the output of the last layer but one; the queries start from that output plus the absolute
    positions. Queries do not attend to each other, so only the masked ones are computed. In training the dropout mask
    of the relative table differs between the two steps, as in the official code.

    Args:
      hidden: the output of the last layer but one.
      positions: absolute position embeddings, without LayerNorm or dropout.
      masked_positions: positions of the queries (default: all S).

    Returns:
      The input of the masked LM head for every query.
    """
    queries, selection = hidden + positions, None
    if masked_positions is not None:
        queries = jnp.take_along_axis(queries, masked_positions[..., None], axis=1)
        selection = SelectedQueries(masked_positions, jnp.take_along_axis(tokens.segments, masked_positions, axis=1))
    return encoder.decode(hidden, queries, tokens.segments, selection, steps=DECODER_STEPS, train=train)


@flax.struct.dataclass
class LogitFactors:
    """The masked LM's logits before the product with the vocabulary: logits = hidden · tableᵀ + bias.

    A loss that goes through the vocabulary in chunks (`losses.masked_lm_and_samples`) needs no logits [B, M, V].
    """

    hidden: Float[Array, "B M embedding"]
    table: Float[Array, "V embedding"]  # float32
    bias: Float[Array, "V"]  # float32

    def logits(self) -> Float[Array, "B M V"]:
        """Returns the logits, float32, from products in hidden's dtype."""
        table = self.table.astype(self.hidden.dtype)
        return jnp.einsum("bmd,vd->bmv", self.hidden, table, preferred_element_type=jnp.float32) + self.bias


class MaskedLMHead(nn.Module):
    """Dense layer, activation and LayerNorm; then the word embeddings as the output layer, with a bias per word."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.dense = Dense(self.config, self.config.embedding_size, self.dtype)
        self.layer_norm = layer_norm(self.config, self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.config.vocab_size,), jnp.float32)
        refuse_unread(self, "bias")

    def __call__(self, hidden: Float[Array, "B M D"], word_embeddings: Embedding) -> LogitFactors:
        """Returns the factors of the logits."""
        hidden = self.layer_norm(ACTIVATION_FUNCTIONS[self.config.hidden_act](self.dense(hidden)))
        return LogitFactors(hidden, word_embeddings.table(), self.bias)


class ReplacedTokenHead(nn.Module):
    """One logit per token: was it replaced? (official `MaskedLayer` of `replaced_token_detection_model.py`)

    ELECTRA's head has no first token and no LayerNorm (its `get_discriminator_output`).
    """

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        if self.config.rtd_reads_first_token:
            self.layer_norm = layer_norm(self.config, self.dtype)
        self.dense = Dense(self.config, self.config.hidden_size, self.dtype)
        self.classifier = Dense(self.config, 1, jnp.float32)
        refuse_unread(self)

    def __call__(self, hidden: Float[Array, "B S D"], first_tokens: Float[Array, "B first D"]) -> Float[Array, "B S"]:
        """Returns the logits, float32.

        Args:
          first_tokens: the first token of each token's segment [B, S, D], or of the row [B, 1, D].
        """
        if self.config.rtd_reads_first_token:
            hidden = self.layer_norm(hidden + first_tokens)
        hidden = ACTIVATION_FUNCTIONS[self.config.hidden_act](self.dense(hidden))
        return self.classifier(hidden)[..., 0]


class ContextPooler(nn.Module):
    """Dropout, dense layer and activation on the first token: the pooler of DeBERTa and BERT.

    RoBERTa's and ELECTRA's classification heads start with the same layers.
    """

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.dropout = Dropout(self.config.pooler_dropout)
        self.dense = Dense(self.config, self.config.hidden_size, self.dtype)
        refuse_unread(self)

    def __call__(self, hidden: Float[Array, "B S D"], train: bool) -> Float[Array, "B D"]:
        """Returns the pooled first token of every row."""
        first = self.dropout(hidden[:, 0], train)
        return ACTIVATION_FUNCTIONS[self.config.pooler_hidden_act](self.dense(first))
