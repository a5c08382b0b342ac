"""What identifies a fine-tuning run: digests of what it reads."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deberta_jax import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.sift import SiftConfig
from deberta_jax.tokenizers.tokenizer import Encoding
from deberta_jax.train import finetune_setup
from deberta_jax.train.finetune_setup import check_settings, input_digests
from deberta_jax.train.tasks.classification.encoding import encode_examples
from deberta_jax.train.tasks.classification.examples import Example

from ..support.configs import finetune_config
from ..support.small_models import SMALL
from ..support.xlnet import SMALL as XLNET
from ..support.xlnet import xlnet_tokenizer


class CharacterTokenizer:
    def __call__(self, text: str, pair: str | None = None, *, max_length: int) -> Encoding:
        del pair
        ids = [ord(character) for character in text][:max_length]
        return Encoding(ids, [0] * len(ids))


WEIGHTS = {"deberta": {"kernel": np.ones((2, 3), np.float32)}}


def digests(labels: tuple[int, ...] = (0, 1, 1), *, weights: Any = WEIGHTS, dev: int = 0, **options: Any) -> dict:
    train = [Example(f"text {number}", None, label) for number, label in enumerate(labels)]
    task: Any = SimpleNamespace(
        examples={"train": train, "validation": [Example("a text", None, dev)], "test": object},
        splits={"train": encode_examples(train, CharacterTokenizer(), max_length=8)},
    )
    return input_digests(finetune_config(**options), task, weights)


def test_labels_order_and_weights_count() -> None:
    before = digests()
    assert digests() == before
    flipped = digests((1, 0, 0))
    assert [name for name in before if before[name] != flipped[name]] == ["training examples"]
    other = digests(weights={"deberta": {"kernel": np.full((2, 3), 1.5, np.float32)}})
    assert [name for name in before if before[name] != other[name]] == ["weights of the model"]
    assert digests(dev=1) == before  # it is only reported on
    assert digests(random_weights=True).keys() == {"training examples", "tokenization"}


@pytest.mark.parametrize("options", [{"select": "best"}, {"patience": 2}])
def test_validation_examples_count_if_they_choose_the_model(options: dict[str, Any]) -> None:
    before, other = digests(**options), digests(dev=1, **options)
    assert [name for name in before if before[name] != other[name]] == ["validation examples"]


def test_hosts_with_different_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_setup, "gather_json", lambda mine: [mine, {**mine, "training examples": "ab"}])
    with pytest.raises(ValueError, match="hosts have read different training examples; give all hosts the same files"):
        digests()


def test_a_tokenizer_of_another_layout_and_sift_are_refused_for_xlnet() -> None:
    model = DebertaConfig.from_json({**XLNET, "vocab_size": 600})
    task: Any = SimpleNamespace(splits={"train": None})
    check_settings(finetune_config(), model, task, xlnet_tokenizer())
    sift = dataclasses.replace(finetune_config(), sift=SiftConfig(weight=1.0))
    with pytest.raises(UserError, match="SiFT perturbs normalized embeddings, which XLNet does not have"):
        check_settings(sift, model, task, xlnet_tokenizer())
    with pytest.raises(UserError, match=r"puts \[CLS\] at the end, as in XLNet, but the model, a deberta, reads it at"):
        check_settings(finetune_config(), SMALL.replace(vocab_size=600), task, xlnet_tokenizer())
