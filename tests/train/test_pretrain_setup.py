"""What a pre-training run starts from, and whether its settings, models and tokenizer fit together."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.rtd import RTDConfig
from deberta_jax.train.pretrain_setup import PretrainedModel, check_tables, input_digests

from ..support.configs import pretrain_config
from ..support.small_models import TINY

EMD = TINY.replace(position_biased_input=False)
BIASED = TINY.replace(position_biased_input=True)


def test_the_weights_of_each_initial_model_count() -> None:
    weights = {"deberta": {"kernel": np.ones((2, 3), np.float32)}}
    models = {name: PretrainedModel(TINY, weights) for name in ("generator", "discriminator")}
    before = input_digests(models)
    assert list(before) == ["weights of the initial discriminator", "weights of the initial generator"]
    changed = PretrainedModel(TINY, {"deberta": {"kernel": np.full((2, 3), 2, np.float32)}})
    after = input_digests(models | {"generator": changed})
    assert [name for name in before if before[name] != after[name]] == ["weights of the initial generator"]
    assert input_digests({}) == {}


@pytest.mark.parametrize(
    ("generator", "discriminator", "refused"),
    [
        (EMD, EMD, "generator"),  # only its mask decoder reads absolute positions
        (EMD.replace(mlm_head="bert"), EMD, None),  # nothing does
        (EMD.replace(mlm_head="bert"), BIASED, "discriminator"),
    ],
)
def test_rows_longer_than_the_position_table_are_refused(tmp_path: Path, generator, discriminator, refused) -> None:
    models = RTDConfig(generator=generator, discriminator=discriminator, embedding_sharing="nes")
    tokenizer = mock.Mock(vocab_size=TINY.vocab_size)
    longest = TINY.max_position_embeddings
    settings = {"output": tmp_path, "tokenizer": tmp_path}
    check_tables(pretrain_config(**settings, sequence_length=longest), tokenizer, models)
    config = pretrain_config(**settings, sequence_length=longest + 1)
    if refused is None:
        check_tables(config, tokenizer, models)
        return
    message = f"sequence_length is {longest + 1}, but the {refused} has absolute positions for {longest} tokens"
    with pytest.raises(UserError, match=message):
        check_tables(config, tokenizer, models)
