"""Pipelines over any number of items on eight devices."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import Deberta, DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.predict.classification import ClassifyTexts
from deberta_jax.predict.fill_mask import FillMask
from deberta_jax.predict.loaded_model import LoadedModel
from deberta_jax.predict.pipeline import Arrays, Pipeline, Row, RowOutputs, Rows

from ...support.predictor import random_classifier, random_predictor

WORDS = ["It", "was", "a", "fine", "house", "of", "them", "running"]


def mixed_texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 12))) for _ in range(count)]


@dataclasses.dataclass(frozen=True)
class Widths(Pipeline[int, dict[str, Any]]):
    """Returns arrays with and without an axis of tokens, of which one has as many classes as padded rows tokens."""

    heads: ClassVar[tuple[str, ...]] = ()
    value: float = 1.0

    def model(self, config: DebertaConfig, **attributes: Any) -> Deberta:
        return Deberta(config, **attributes)

    def outputs(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        hidden = out.last_hidden_state
        return {
            "classes": hidden[:, 0, :16] * self.value,
            "tokens": hidden[:, :, 0],
            "spans": hidden[:, :, :1].swapaxes(1, 2).repeat(16, axis=1),
            "ids": batch["input_ids"],
        }

    def encode(self, model: LoadedModel, item: int) -> Rows[None]:
        if item < 0:
            raise UserError(f"{item} is negative")
        return Rows([Row([5] * item, [0] * item)] if item else [], None)

    def decode(self, model: LoadedModel, item: int, rows: Rows[None], outputs: Sequence[RowOutputs]) -> dict[str, Any]:
        return {name: array.shape for output in outputs for name, array in output.items()}


def test_results_do_not_depend_on_the_batch_and_keep_their_order() -> None:
    model, texts = random_classifier(), mixed_texts(120)
    results = list(model.run(ClassifyTexts(), texts))
    assert len(results) == 120
    for i in (0, 1, 50, 119):
        (alone,) = model.classify([texts[i]])
        assert alone.label == results[i].label
        assert alone.probabilities == pytest.approx(results[i].probabilities, abs=1e-6)


def test_outputs_of_tokens_are_cut_and_others_are_not() -> None:
    (shapes,) = random_predictor().run(Widths(), [11])  # padded to 16
    assert shapes == {"classes": (16,), "tokens": (11,), "spans": (16, 11), "ids": (11,)}


def test_items_without_rows_have_results() -> None:
    assert [bool(result) for result in random_predictor().run(Widths(), [0, 3, 0])] == [False, True, False]


def test_bad_items_are_skipped_in_order() -> None:
    events: list[Any] = []
    stream = random_predictor().run(Widths(), [3, -1, 2, -5], skip=lambda i, error: events.append((i, str(error))))
    events += [None for _ in stream]
    assert [event for event in events if event] == [(1, "-1 is negative"), (3, "-5 is negative")]
    assert events.count(None) == 2


def test_results_before_a_bad_item_are_delivered() -> None:
    stream = random_predictor().run(Widths(), [3, -1, 2])
    assert next(stream)
    with pytest.raises(UserError, match="-1 is negative"):
        next(stream)


def test_a_model_without_the_head_is_refused_before_an_item_is_read() -> None:
    with pytest.raises(UserError, match=r"has no pooler and classifier; it has deberta .* Train what is missing with"):
        random_predictor().run(ClassifyTexts(), iter(lambda: pytest.fail("an item was read"), None))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(UserError, match="the logits of random weights are NaN or infinite, because its parameters"):
        list(random_predictor().run(Widths(value), [3]))


def test_a_text_longer_than_the_position_table_is_refused() -> None:
    model = random_predictor()
    short = dataclasses.replace(
        model, config=model.config.replace(max_position_embeddings=8, max_relative_positions=64)
    )
    text = "It was a [MASK] of the house and of the family"
    count = len(model.tokenizer(text, parse_mask=True).input_ids)
    with pytest.raises(UserError, match=f"has {count} tokens, but random weights has positions for 8; shorten it"):
        list(short.run(FillMask(short.tokenizer.vocab_size), [text]))


def test_settings_that_only_the_host_reads_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, traces = dataclasses.replace(random_classifier()), []
    outputs = ClassifyTexts.outputs
    monkeypatch.setattr(ClassifyTexts, "outputs", lambda *arguments: traces.append(1) or outputs(*arguments))
    for top_k in (1, 2, 3):
        model.classify(["It was"], top_k=top_k)
    assert traces == [1]


def test_uses_of_the_same_logits_share_a_program() -> None:
    model = dataclasses.replace(random_classifier(1))
    model.classify(["It was"])
    model.score(["It was"])
    assert len(model._programs) == 1


def test_bfloat16_is_close() -> None:
    exact = random_classifier().classify(["It was a fine house"])[0]
    rounded = dataclasses.replace(random_classifier(), dtype="bfloat16").classify(["It was a fine house"])[0]
    assert rounded != exact
    assert rounded.probabilities == pytest.approx(exact.probabilities, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype is 'float16'; it must be one of float32, bfloat16"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(random_predictor(), **options)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="runs in one process, but JAX runs in 2; start one process"):
        dataclasses.replace(random_predictor())


def test_parameters_are_on_all_devices() -> None:
    model = dataclasses.replace(random_classifier())
    model.classify(["text"])
    placed = model._placed["classifier"]["bias"]
    assert len(placed.sharding.device_set) == jax.device_count() == 8
    assert isinstance(placed, jnp.ndarray)
