"""The configurations of the released models, by name; `DebertaConfig.named` builds them."""

from typing import Any

_RELATIVE = {"relative_attention": True, "pos_att_type": ("c2p", "p2c"), "position_biased_input": False}
_V1 = {**_RELATIVE, "vocab_size": 50265}
_V3 = {**_RELATIVE, "vocab_size": 128100, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
_V2 = {**_V3, "hidden_size": 1536, "num_attention_heads": 24, "intermediate_size": 6144}
_V2_CONV = {**_V2, "conv_kernel_size": 3, "conv_act": "gelu"}
_BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
_XSMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}

# Every size that Microsoft released, as in the config.json of microsoft/<name> on the Hugging Face hub. Fields that are
# missing here have the defaults of DebertaConfig, which are those of the original code.
RELEASED: dict[str, dict[str, Any]] = {
    "deberta-base": {**_V1, **_BASE, "num_hidden_layers": 12},
    "deberta-large": {**_V1, **_LARGE, "num_hidden_layers": 24},
    "deberta-xlarge": {**_V1, **_LARGE, "num_hidden_layers": 48},
    "deberta-v2-xlarge": {**_V2_CONV, "num_hidden_layers": 24},
    "deberta-v2-xxlarge": {**_V2_CONV, "num_hidden_layers": 48},
    "deberta-v3-xsmall": {**_V3, **_XSMALL, "num_hidden_layers": 12},
    "deberta-v3-small": {**_V3, **_BASE, "num_hidden_layers": 6},
    "deberta-v3-base": {**_V3, **_BASE, "num_hidden_layers": 12},
    "deberta-v3-large": {**_V3, **_LARGE, "num_hidden_layers": 24},
    "mdeberta-v3-base": {**_V3, **_BASE, "num_hidden_layers": 12, "vocab_size": 251000},
}
