"""Floating-point operations that a model's mathematics asks for: what model FLOP/s utilization (MFU) counts.

Matrix products alone, two operations a multiplication and addition, on real and padded positions alike. Each relative
term is counted over the rows of the table in reach, once for every query or key; its projection, which a batch shares,
the lookups and the recomputation of rematerialized layers are left out. Training is three times the forward pass.
"""

from deberta_jax.config import DebertaConfig
from deberta_jax.heads import DECODER_STEPS
from deberta_jax.rtd import RTDConfig


def attention_flops(config: DebertaConfig, length: int, queries: int | None = None) -> int:
    """Scores, relative terms and the weighted values of one layer, of `queries` (default: all) to `length` keys."""
    queries = length if queries is None else queries
    width = config.num_attention_heads * config.attention_head_size
    flops = 2 * 2 * queries * length * width
    if config.relative_attention:
        rows = min(2 * config.att_span, 2 * length - 1)
        asking = {"c2p": queries, "p2c": length}
        flops += sum(2 * asking[term] * rows * width for term in config.pos_att_type)
    return flops


def layer_flops(config: DebertaConfig, length: int, queries: int | None = None) -> int:
    """One layer on one sequence, without the projection of its keys and values."""
    width = config.num_attention_heads * config.attention_head_size
    dense = 2 * config.hidden_size * (2 * width + 2 * config.intermediate_size)  # query, output; feed-forward
    return (length if queries is None else queries) * dense + attention_flops(config, length, queries)


def encoder_flops(config: DebertaConfig, length: int, layers: int | None = None) -> int:
    """The forward pass of one sequence, through all layers or the first few."""
    layers = config.num_hidden_layers if layers is None else layers
    flops = layers * (layer_flops(config, length) + _keys_and_values(config, length))
    if config.conv_kernel_size and layers:
        flops += 2 * length * config.conv_kernel_size * config.hidden_size**2 // config.conv_groups
    if config.embedding_size != config.hidden_size:
        flops += 2 * length * config.embedding_size * config.hidden_size
    return flops


def masked_lm_flops(config: DebertaConfig, length: int, masked: int) -> int:
    """The forward pass of one sequence to the logits of its masked positions."""
    if config.uses_enhanced_mask_decoder:
        flops = encoder_flops(config, length, config.num_hidden_layers - 1) + _keys_and_values(config, length)
        flops += DECODER_STEPS * layer_flops(config, length, masked)
    else:
        flops = encoder_flops(config, length)
    return flops + 2 * masked * config.embedding_size * (config.hidden_size + config.vocab_size)


def replaced_token_flops(config: DebertaConfig, length: int) -> int:
    return encoder_flops(config, length) + 2 * length * config.hidden_size * (config.hidden_size + 1)


def classification_flops(config: DebertaConfig, length: int) -> int:
    return encoder_flops(config, length) + 2 * config.hidden_size * (config.hidden_size + config.num_labels)


def rtd_flops(config: RTDConfig, length: int, masked: int) -> int:
    return masked_lm_flops(config.generator, length, masked) + replaced_token_flops(config.discriminator, length)


def _keys_and_values(config: DebertaConfig, length: int) -> int:
    return 2 * length * config.hidden_size * 2 * config.num_attention_heads * config.attention_head_size
