"""Digests of what a pre-training run starts from."""

import numpy as np

from deberta_jax.train.pretrain_setup import PretrainedModel, input_digests

from ..support.small_models import TINY


def test_the_weights_of_each_initial_model_count() -> None:
    weights = {"deberta": {"kernel": np.ones((2, 3), np.float32)}}
    models = {name: PretrainedModel(TINY, weights) for name in ("generator", "discriminator")}
    before = input_digests(models)
    assert list(before) == ["weights of the initial discriminator", "weights of the initial generator"]
    changed = PretrainedModel(TINY, {"deberta": {"kernel": np.full((2, 3), 2, np.float32)}})
    after = input_digests(models | {"generator": changed})
    assert [name for name in before if before[name] != after[name]] == ["weights of the initial generator"]
    assert input_digests({}) == {}
