"""Starting the training of one model from the parameters of another."""

import jax
import numpy as np
import pytest

from deberta_jax import DebertaForMaskedLM, DebertaForSequenceClassification, UserError
from deberta_jax.warm_start import initial_params, left_out, merge_pretrained

from ..support.compilations import compiled_programs
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


KEY = jax.random.key(3, impl="threefry2x32")


def test_initial_parameters_are_those_of_init_bit_for_bit() -> None:
    model = DebertaForMaskedLM(SMALL)
    jax.tree.map(
        np.testing.assert_array_equal, initial_params(model, KEY, IDS), jax.jit(model.init)(KEY, IDS)["params"]
    )


def test_the_initializers_compile_no_forward_pass_and_nothing_for_further_layers() -> None:
    """Their programs are single operations, so the time to compile them does not grow with the model."""
    size = SMALL.replace(hidden_size=24, intermediate_size=40, vocab_size=72)  # shapes that no other test has compiled
    with compiled_programs() as programs:
        initial_params(DebertaForMaskedLM(size), KEY, IDS)
    assert "_normal" in programs
    assert set(programs) <= {"_normal", "broadcast_in_dim", "_threefry_fold_in"}
    assert len(programs) <= 20
    with compiled_programs() as programs:
        initial_params(DebertaForMaskedLM(size.replace(num_hidden_layers=4)), KEY, IDS)
    assert programs == []


def test_only_what_is_not_pretrained_is_drawn() -> None:
    pretrained = random_params(DebertaForMaskedLM(SMALL), IDS)
    model = DebertaForSequenceClassification(SMALL.replace(num_labels=5))
    with compiled_programs() as programs:
        params = initial_params(model, KEY, IDS, pretrained)
    assert programs.count("_normal") <= 2  # of the pooler and of the classifier
    assert params["deberta"]["encoder"] == pretrained["deberta"]["encoder"]  # the same arrays
    fresh = jax.jit(model.init)(KEY, IDS)["params"]
    for name in ("pooler", "classifier"):
        jax.tree.map(np.testing.assert_array_equal, params[name], fresh[name])
