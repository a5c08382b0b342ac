"""XLNet's published configuration, under its names and this library's, and the settings that are refused."""

from typing import Any

import pytest

from deberta_jax import DebertaConfig
from deberta_jax.errors import UserError

from ..support.xlnet import LARGE, PUBLISHED


def test_published_fields_are_read() -> None:
    config = DebertaConfig.from_json(PUBLISHED)
    sizes = config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size
    assert sizes == (768, 12, 12, 3072)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.cls_dropout) == (0.1, 0.1, 0.1)
    assert (config.pad_token_id, config.reads_positions(), config.classifies_last_token) == (5, False, True)
    large = DebertaConfig.from_json({"model_type": "xlnet"})  # transformers' defaults
    assert large == DebertaConfig.from_json(LARGE)


@pytest.mark.parametrize("changes", [{}, {"cls_dropout": None}, {"num_labels": 3, "label_names": ("a", "b", "c")}])
def test_fields_are_written_under_xlnets_names(changes: dict[str, Any]) -> None:
    config = DebertaConfig.from_json({**PUBLISHED, "dropout": 0.2}).replace(**changes)
    fields = config.to_json()
    assert DebertaConfig.from_json(fields) == config
    assert (fields["d_model"], fields["dropout"], fields["attn_type"]) == (768, 0.2, "bi")
    assert "max_position_embeddings" not in fields  # which transformers refuses


def test_this_librarys_names_are_read_too() -> None:
    fields = {"model_type": "xlnet", "n_token": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = DebertaConfig.from_json(fields)
    assert (config.vocab_size, config.hidden_size, config.attention_head_size) == (50, 32, 16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attn_type": "uni"}, "attn_type is 'uni'; for XLNet only 'bi' is supported"),
        ({"bi_data": True}, "bi_data is True; for XLNet only False is supported"),
        ({"clamp_len": 8}, "clamp_len is 8; for XLNet only -1 is supported"),
        ({"same_length": True}, "same_length is True; for XLNet only False"),
        ({"untie_r": False}, "untie_r is False; for XLNet only True"),
        ({"summary_type": "first"}, "summary_type is 'first'; for XLNet only 'last'"),
        ({"summary_use_proj": False}, "summary_use_proj is False; for XLNet only True"),
        ({"summary_activation": "relu"}, "summary_activation is 'relu'; for XLNet only 'tanh'"),
        ({"pad_token_id": 0}, "pad_token_id is 0; it must be 5, as in every XLNet model"),
        ({"hidden_size": 64}, "d_model is 768, but hidden_size, another name of it, is 64; remove one of them"),
        ({"d_model": 30, "n_head": 2, "d_head": 15, "dropout": 1}, "hidden_dropout_prob is 1; it must be at least 0"),
        ({"d_model": 33, "n_head": 3, "d_head": 11}, "hidden_size is 33; XLNet needs an even number"),
        ({"d_inner": "3072"}, "intermediate_size is '3072'; it must be of type int"),
        ({"relative_attention": True}, "relative_attention is True; with model_type 'xlnet' it must be False"),
        ({"type_vocab_size": 2}, "type_vocab_size is 2; with model_type 'xlnet' it must be 0"),
    ],
)
def test_other_settings_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        DebertaConfig.from_json({**PUBLISHED, **fields})
    assert message in str(error.value)
    if "attn_type" in fields:
        with pytest.raises(
            UserError, match=r"attention_probs_dropout_prob is 0\.3; with model_type 'xlnet' it must be"
        ):
            DebertaConfig.from_json(PUBLISHED).replace(attention_probs_dropout_prob=0.3)
