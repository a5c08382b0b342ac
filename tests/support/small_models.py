"""Configurations that are small enough for a test."""

from deberta_jax import DebertaConfig

SMALL = DebertaConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    relative_attention=True,
    position_biased_input=False,
    pos_att_type="c2p|p2c",
    position_buckets=16,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    initializer_range=0.3,
)


TINY = SMALL.replace(vocab_size=640, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.02)
