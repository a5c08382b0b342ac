"""Starting the training of one model from the parameters of another."""

import numpy as np
import pytest

from deberta_jax import DebertaForMaskedLM, DebertaForSequenceClassification, UserError
from deberta_jax.warm_start import left_out, merge_pretrained

from ..support.small_models import SMALL, random_params

IDS = np.ones((1, 4), np.int32)


def test_encoder_and_heads_of_the_same_shapes_are_taken() -> None:
    pretrained = random_params(DebertaForSequenceClassification(SMALL), IDS, seed=1)
    fresh = random_params(DebertaForSequenceClassification(SMALL.replace(num_labels=3)), IDS, seed=2)
    merged = merge_pretrained(pretrained, fresh)
    assert merged["pooler"] is pretrained["pooler"]
    assert merged["classifier"] is fresh["classifier"]  # it has 3 classes, the pretrained one 2
    kernel = merged["deberta"]["encoder"]["layer_0"]["feed_forward"]["output"]["kernel"]
    assert kernel is pretrained["deberta"]["encoder"]["layer_0"]["feed_forward"]["output"]["kernel"]


def test_parameters_that_the_model_does_not_have_are_left_out() -> None:
    pretrained = random_params(DebertaForMaskedLM(SMALL), IDS)
    assert "position_embeddings" in pretrained["deberta"]["embeddings"]
    fresh = random_params(DebertaForSequenceClassification(SMALL), IDS)
    merged = merge_pretrained(pretrained, fresh)
    assert merged.keys() == fresh.keys()
    assert "position_embeddings" not in merged["deberta"]["embeddings"]
    assert left_out(pretrained, fresh) == ["mlm_head", "deberta/embeddings/position_embeddings"]
    assert left_out(pretrained, pretrained) == []


def test_encoder_of_another_shape_is_named() -> None:
    fresh = random_params(DebertaForSequenceClassification(SMALL), IDS)
    other = random_params(DebertaForSequenceClassification(SMALL.replace(intermediate_size=24)), IDS)
    with pytest.raises(UserError, match=r"have \(24,\) at deberta/encoder/layer_0/feed_forward.* needs \(64,\)"):
        merge_pretrained(other, fresh)
    deeper = random_params(DebertaForSequenceClassification(SMALL.replace(num_hidden_layers=4)), IDS)
    with pytest.raises(UserError, match=r"have 16 parameters that the model does not read, the first is deberta/.*_3"):
        merge_pretrained(deeper, fresh)
    with pytest.raises(UserError, match=r"have nothing at deberta/embeddings"):
        merge_pretrained({"deberta": {}}, fresh)
