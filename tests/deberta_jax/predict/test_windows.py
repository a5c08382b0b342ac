"""Long texts in windows."""

import pytest

from deberta_jax.errors import UserError
from deberta_jax.predict.pipeline import TextPair
from deberta_jax.predict.windows import Windows, window_starts

from ...support.predictor import random_classifier

LONG = "It was a fine house of them. " * 20


@pytest.mark.parametrize(
    ("tokens", "room", "stride", "starts"),
    [
        (5, 10, None, [0]),
        (10, 10, None, [0]),
        (11, 10, None, [0, 1]),
        (25, 10, None, [0, 5, 10, 15]),
        (25, 10, 10, [0, 10, 15]),
        (25, 10, 99, [0, 10, 15]),
        (4, 1, None, [0, 1, 2, 3]),
        (0, 10, 3, [0]),
    ],
)
def test_windows_have_every_token(tokens: int, room: int, stride: int | None, starts: list[int]) -> None:
    assert window_starts(tokens, room, stride) == starts
    covered = {i for start in starts for i in range(start, min(tokens, start + room))}
    assert covered == set(range(tokens))


def test_a_text_that_fits_is_one_row() -> None:
    model = random_classifier()
    (row,) = Windows(max_length=9).rows(model, "It was")
    assert list(row.input_ids) == model.tokenizer("It was").input_ids


def test_a_long_text_is_read_whole() -> None:
    model = random_classifier()
    ids = model.tokenizer.encode(LONG)
    rows = Windows(max_length=22, stride=20).rows(model, LONG)
    assert all(len(row.input_ids) == 22 for row in rows)
    assert [i for row in rows[:-1] for i in row.input_ids[1:-1]] == ids[: 20 * (len(rows) - 1)]
    assert list(rows[-1].input_ids[1:-1]) == ids[-20:]


def test_windows_of_a_pair_keep_the_first_text() -> None:
    model = random_classifier()
    first = model.tokenizer.encode("It was")
    rows = Windows(max_length=24).rows(model, TextPair("It was", LONG))
    assert len(rows) > 5
    for row in rows:
        assert list(row.input_ids[1 : 1 + len(first)]) == first
        assert list(row.token_type_ids) == [0] * (len(first) + 2) + [1] * (22 - len(first))


def test_a_text_is_cut_only_on_request() -> None:
    model = random_classifier()
    (row,) = Windows(max_length=12, combine="truncate").rows(model, TextPair("It was", LONG))
    assert list(row.input_ids) == model.tokenizer("It was", LONG, max_length=12).input_ids
    count = len(model.tokenizer(LONG).input_ids)
    message = f"the text has {count} tokens, more than max_length 12; shorten it, or set windows to mean, max or"
    with pytest.raises(UserError, match=message):
        Windows(max_length=12, combine="error").rows(model, LONG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "sum"}, "windows is 'sum'; it must be one of mean, max, truncate, error"),
        ({"max_length": 0}, "max_length is 0; it must be at least 1"),
        ({"stride": -3}, "stride is -3; it must be at least 1"),
    ],
)
def test_values_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Windows(**options)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (LONG, "max_length is 2; it must be at least 3, for 2 special tokens, and one more"),
        (TextPair("It was", LONG), "max_length is 2; it must be at least .* tokens of the other text, which every"),
    ],
)
def test_no_room_for_the_text(item: str | TextPair, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Windows(max_length=2).rows(random_classifier(), item)


def test_no_more_tokens_than_positions() -> None:
    model = random_classifier(position_biased_input=True, max_position_embeddings=64)
    assert Windows().length(model) == 64
    with pytest.raises(UserError, match="max_length is 65, but random weights has positions for 64 tokens; give 64 or"):
        Windows(max_length=65).rows(model, "text")
