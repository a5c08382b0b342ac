"""What stands on the encoder: enhanced mask decoder, masked LM head, replaced-token head, pooler, task heads."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from .config import DebertaConfig
from .encoder import Encoder, SelectedQueries, TokenLayout
from .layers import ACTIVATION_FUNCTIONS, Dense, Dropout, Embedding, layer_norm

DECODER_STEPS = 2


def enhanced_mask_decoder(
    encoder: Encoder,
    hidden: jax.Array,
    positions: jax.Array,
    tokens: TokenLayout,
    masked_positions: jax.Array | None,
    train: bool,
) -> jax.Array:
    """Runs the encoder's last layer twice as a decoder (DeBERTa, section 4.2; official `emd_context_layer`).

    Keys and values stay the output of the last layer but one; the queries start from it plus the absolute positions.
    Queries never see each other, so only the masked ones are computed. In training the relative table's dropout mask
    differs between the two steps, as in the official code.

    Args:
      hidden: [B, S, D], output of the last layer but one.
      positions: [B, S, D], absolute position embeddings, neither normalized nor dropped out.
      masked_positions: int [B, M], or None for all S.

    Returns:
      [B, M, D] (or [B, S, D]), input of the masked LM head.
    """
    queries, selection = hidden + positions, None
    if masked_positions is not None:
        queries = jnp.take_along_axis(queries, masked_positions[..., None], axis=1)
        selection = SelectedQueries(masked_positions, jnp.take_along_axis(tokens.segments, masked_positions, axis=1))
    return encoder.decode(hidden, queries, tokens.segments, selection, steps=DECODER_STEPS, train=train)


@flax.struct.dataclass
class BeforeLogits:
    """What the masked LM's logits are made of: hidden [B, M, E], table float32 [V, E], bias float32 [V]."""

    hidden: jax.Array
    table: jax.Array
    bias: jax.Array

    def logits(self) -> jax.Array:
        """float32 [B, M, V], from products in hidden's dtype."""
        table = self.table.astype(self.hidden.dtype)
        return jnp.einsum("bme,ve->bmv", self.hidden, table, preferred_element_type=jnp.float32) + self.bias


class MaskedLMHead(nn.Module):
    """Dense, activation, LayerNorm, then the word embeddings as output layer, plus a bias a word."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.dense = Dense(self.config, self.config.embedding_size, self.dtype)
        self.layer_norm = layer_norm(self.config, self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.config.vocab_size,), jnp.float32)

    def __call__(self, hidden: jax.Array, word_embeddings: Embedding) -> BeforeLogits:
        """hidden [B, M, D]."""
        hidden = self.layer_norm(ACTIVATION_FUNCTIONS[self.config.hidden_act](self.dense(hidden)))
        return BeforeLogits(hidden, word_embeddings.embedding, self.bias)


class ReplacedTokenHead(nn.Module):
    """One logit a token: was it replaced? (official `MaskedLayer` of `replaced_token_detection_model.py`)

    ELECTRA's does without the first token and the LayerNorm (its `get_discriminator_output`).
    """

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        if self.config.rtd_reads_first_token:
            self.layer_norm = layer_norm(self.config, self.dtype)
        self.dense = Dense(self.config, self.config.hidden_size, self.dtype)
        self.classifier = Dense(self.config, 1, jnp.float32)

    def __call__(self, hidden: jax.Array, first_tokens: jax.Array) -> jax.Array:
        """hidden [B, S, D] and the first token of each token's segment [B, S or 1, D] -> float32 logits [B, S]."""
        if self.config.rtd_reads_first_token:
            hidden = self.layer_norm(hidden + first_tokens)
        hidden = ACTIVATION_FUNCTIONS[self.config.hidden_act](self.dense(hidden))
        return self.classifier(hidden)[..., 0]


class ContextPooler(nn.Module):
    """The first token: dropout, dense, activation. BERT's pooler as well, and in front of RoBERTa's classifier."""

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.dropout = Dropout(self.config.pooler_dropout)
        self.dense = Dense(self.config, self.config.hidden_size, self.dtype)

    def __call__(self, hidden: jax.Array, train: bool) -> jax.Array:
        """hidden [B, S, D] -> [B, D]."""
        first = self.dropout(hidden[:, 0], train)
        return ACTIVATION_FUNCTIONS[self.config.pooler_hidden_act](self.dense(first))
