"""Counts the floating-point operations that a model's mathematics requires, for model FLOP/s utilization (MFU).

Only matrix products are counted: a multiplication and an addition are two operations, and padding counts like real
tokens. Each relative term is counted over the rows of the relative table that are in reach, once per query or key. Its
projection, which all rows of a batch share, the lookups, and recomputation under rematerialization are left out. A
training step takes three times the operations of the forward pass.
"""

from deberta_jax.config import DebertaConfig
from deberta_jax.heads import DECODER_STEPS
from deberta_jax.rtd import RTDConfig


def attention_flops(config: DebertaConfig, length: int, queries: int | None = None) -> int:
    """Counts scores, relative terms and the weighted sum of values in one layer.

    Args:
      config: the model.
      length: number of keys.
      queries: number of queries (default: `length`).
    """
    queries = length if queries is None else queries
    width = config.num_attention_heads * config.attention_head_size
    flops = 2 * 2 * queries * length * width
    if config.relative_attention:
        table_rows = min(2 * config.att_span, 2 * length - 1)
        vectors = {"c2p": queries, "p2c": length}  # c2p multiplies each query with the table, p2c each key
        flops += sum(2 * vectors[term] * table_rows * width for term in config.pos_att_type)
    if config.model_type == "xlnet":  # each query with every distance, and with the keys of two types
        flops += 2 * queries * (2 * length + 2) * width
    return flops


def layer_flops(config: DebertaConfig, length: int, queries: int | None = None) -> int:
    """Counts one layer on one sequence, without the projections of keys and values. Arguments: `attention_flops`."""
    width = config.num_attention_heads * config.attention_head_size
    dense = 2 * config.hidden_size * (2 * width + 2 * config.intermediate_size)  # query, output; feed-forward
    return (length if queries is None else queries) * dense + attention_flops(config, length, queries)


def without_relative_terms(config: DebertaConfig) -> DebertaConfig:
    """Returns a model without relative positions, to count what they add. It is not a model to train."""
    return config.replace(relative_attention=False, pos_att_type=(), position_buckets=-1)


def encoder_flops(config: DebertaConfig, length: int, layers: int | None = None) -> int:
    """Counts the forward pass of one sequence through the first `layers` layers (default: all)."""
    layers = config.num_hidden_layers if layers is None else layers
    flops = layers * (layer_flops(config, length) + _key_and_value_flops(config, length))
    if config.conv_kernel_size and layers:
        flops += 2 * length * config.conv_kernel_size * config.hidden_size**2 // config.conv_groups
    if config.embedding_size != config.hidden_size:
        flops += 2 * length * config.embedding_size * config.hidden_size
    return flops


def masked_lm_flops(config: DebertaConfig, length: int, masked: int) -> int:
    """Counts the forward pass of one sequence up to the logits of its `masked` positions."""
    if config.uses_enhanced_mask_decoder:
        # The last layer runs on the queries of masked positions only, with the keys and values of all positions.
        flops = encoder_flops(config, length, config.num_hidden_layers - 1) + _key_and_value_flops(config, length)
        flops += DECODER_STEPS * layer_flops(config, length, masked)
    else:
        flops = encoder_flops(config, length)
    return flops + 2 * masked * config.embedding_size * (config.hidden_size + config.vocab_size)


def replaced_token_flops(config: DebertaConfig, length: int) -> int:
    """Counts the discriminator's forward pass of one sequence."""
    return encoder_flops(config, length) + 2 * length * config.hidden_size * (config.hidden_size + 1)


def classification_flops(config: DebertaConfig, length: int) -> int:
    """Counts the forward pass of one sequence through encoder, pooler and classifier."""
    return encoder_flops(config, length) + 2 * config.hidden_size * (config.hidden_size + config.num_labels)


def rtd_flops(config: RTDConfig, length: int, masked: int) -> int:
    """Counts the forward pass of one sequence through generator and discriminator."""
    return masked_lm_flops(config.generator, length, masked) + replaced_token_flops(config.discriminator, length)


def _key_and_value_flops(config: DebertaConfig, length: int) -> int:
    return 2 * length * config.hidden_size * 2 * config.num_attention_heads * config.attention_head_size
