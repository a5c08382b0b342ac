"""Tests masking: budget, whole words, spans, shares, an even rate, and independence of the batch."""

from types import SimpleNamespace

import numpy as np
import pytest

from deberta_jax.train.data.masking import MaskingConfig, MaskingTables, hash_uint64, mask_rows

CLS, SEP, UNK, VOCABULARY = 1, 2, 3, 1000
MASK = VOCABULARY  # ids 0 to 3 and the last are special; the other even ids start a word


def tables() -> MaskingTables:
    special = np.zeros(VOCABULARY + 1, bool)
    special[[0, CLS, SEP, UNK, MASK]] = True
    starts = np.arange(VOCABULARY + 1) % 2 == 0
    return MaskingTables.of(SimpleNamespace(cls_id=CLS, mask_id=MASK, starts_word=starts, is_special=special))


def packed_rows(count: int, length: int, *, segments: tuple[int, ...], word_start: float = 0.6) -> np.ndarray:
    """Returns rows of segments of the given lengths and padding, with a few [UNK]."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, VOCABULARY // 2, (count, length)) * 2 + (rng.random((count, length)) > word_start)
    ids[rng.random(ids.shape) < 0.01] = UNK
    end = 0
    for size in segments:
        ids[:, end], ids[:, end + size - 1] = CLS, SEP
        end += size
    ids[:, end:] = 0
    return ids


def keys(count: int, *, start: int = 0) -> np.ndarray:
    return hash_uint64(np.uint64(7), np.arange(start, start + count))


def word_numbers(row: np.ndarray) -> np.ndarray:
    """Returns the word number of each token of a row, computed by a plain loop."""
    numbers, number = [], -1
    for position, token in enumerate(row):
        special_before = position == 0 or row[position - 1] in (0, CLS, SEP, UNK, MASK)
        if special_before or token % 2 == 0 or token in (0, CLS, SEP, UNK, MASK):
            number += 1
        numbers.append(number)
    return np.array(numbers)


@pytest.mark.parametrize("max_ngram", [1, 3])
@pytest.mark.parametrize("replace", ["rtd", "mlm"])
def test_ids_positions_and_labels_are_consistent(max_ngram, replace):
    ids = packed_rows(16, 128, segments=(50, 40, 12))
    config = MaskingConfig(max_ngram=max_ngram, replace=replace)
    out = mask_rows(ids.astype(np.uint16), keys(16), tables(), config)
    assert {name: (array.dtype, array.shape) for name, array in out._asdict().items()} == {
        "input_ids": (np.int32, (16, 128)),
        "masked_positions": (np.int32, (16, 19)),
        "masked_labels": (np.int32, (16, 19)),
    }
    for row, masked, positions, labels in zip(ids, *out, strict=True):
        used = np.count_nonzero(labels)
        assert np.all(labels[:used] > 0)
        assert not labels[used:].any()
        assert not positions[used:].any()
        assert np.all(np.diff(positions[:used]) > 0)
        assert np.array_equal(labels[:used], row[positions[:used]])
        assert not set(labels) & {CLS, SEP, UNK, MASK}
        elsewhere = np.ones(128, bool)
        elsewhere[positions[:used]] = False
        assert np.array_equal(masked[elsewhere], row[elsewhere])
        assert 0 < used <= round(0.15 * 102)
        assert max_ngram > 1 or used == round(0.15 * 102)


@pytest.mark.parametrize(
    ("real", "budget"), [(3, 1), (9, 1), (40, 6), (512, 77)]
)  # round(0.15 * real tokens) including [CLS] and [SEP], as in the official code: 77 for a full row of 512
def test_budget_equals_official_code(real, budget):
    ids = np.zeros((1, 512), int)
    ids[0, :real] = 10
    ids[0, 0], ids[0, real - 1] = CLS, SEP
    out = mask_rows(ids, keys(1), tables(), MaskingConfig())
    assert out.masked_positions.shape == (1, 77)
    assert np.count_nonzero(out.masked_labels) == budget


def test_padding_is_never_masked():
    out = mask_rows(np.zeros((2, 64), int), keys(2), tables(), MaskingConfig(max_ngram=3))
    assert not out.input_ids.any()
    assert not out.masked_labels.any()


def test_masks_depend_only_on_the_key():
    ids = packed_rows(12, 96, segments=(60, 30))
    config = MaskingConfig(max_ngram=3, replace="mlm")
    whole = mask_rows(ids, keys(12), tables(), config)
    for part in (slice(0, 1), slice(3, 9), slice(11, None, -2)):
        alone = mask_rows(ids[part], keys(12)[part], tables(), config)
        for name, array in whole._asdict().items():
            assert np.array_equal(getattr(alone, name), array[part]), name
    other = mask_rows(ids, keys(12, start=12), tables(), config)
    assert not np.array_equal(whole.input_ids, other.input_ids)


@pytest.mark.parametrize("max_ngram", [2, 3, 5])
def test_ngrams_mask_whole_words(max_ngram):
    ids = packed_rows(40, 128, segments=(70, 50), word_start=0.4)
    masked = mask_rows(ids, keys(40), tables(), MaskingConfig(max_ngram=max_ngram)).input_ids == MASK
    assert masked.any(axis=1).all()
    for row, chosen in zip(ids, masked, strict=True):
        number = word_numbers(row)
        for word in np.unique(number[chosen]):
            assert chosen[number == word].all()


def test_word_longer_than_budget_does_not_block_others():
    ids = np.full((200, 20), 11)  # one word of 8 tokens, then words of one
    ids[:, 9:] = 10
    ids[:, 0], ids[:, -1] = CLS, SEP
    out = mask_rows(ids, keys(200), tables(), MaskingConfig(max_ngram=3))
    assert np.all(np.count_nonzero(out.masked_labels, axis=1) == 3)
    assert out.masked_positions.min() >= 9


@pytest.mark.parametrize("max_ngram", [1, 3, 4])
def test_every_position_is_masked_equally_often(max_ngram):
    """The official code never masks the end of a full row. The first words of a segment must not be rarer either."""
    batches, count, length = 30, 200, 64
    ids = packed_rows(count, length, segments=(30, 6, 28), word_start=1.0)
    chosen = np.zeros(length)
    possible = np.zeros(length)
    for batch in range(batches):
        out = mask_rows(ids, keys(count, start=batch * count), tables(), MaskingConfig(max_ngram=max_ngram))
        chosen += (out.input_ids == MASK).sum(axis=0)
        possible += (ids > UNK).sum(axis=0)
    text = possible > 0
    rate = chosen[text] / possible[text]
    assert text.sum() == length - 6
    deviation = np.sqrt(rate.mean() * (1 - rate.mean()) / possible[text])
    assert np.abs((rate - rate.mean()) / deviation).max() < 4.5
    assert rate.mean() == pytest.approx(10 / (length - 6), rel=0.02)


def test_span_length_probability_is_one_over_n():
    """With a budget of three words spans hardly ever touch, so that their lengths can be counted."""
    length, count = 512, 4000
    ids = np.full((count, length), 10)
    ids[:, 0], ids[:, -1] = CLS, SEP
    out = mask_rows(ids, keys(count), tables(), MaskingConfig(rate=3 / 512, max_ngram=3))
    positions = out.masked_positions
    first_gap = np.diff(positions[:, :2], axis=1)[:, 0]
    last_gap = np.diff(positions[:, 1:], axis=1)[:, 0]
    adjacent = (first_gap == 1) & (last_gap == 1)
    # All three words in one span: the first span has n = 3, or n = 2 and the next word is masked by chance.
    assert adjacent.mean() == pytest.approx((1 / 3) / (1 + 1 / 2 + 1 / 3), abs=0.03)
    alone = (first_gap > 1) & (last_gap > 1)
    # Two spans of one word, then a span cut to one word: p(1)^2.
    assert alone.mean() == pytest.approx((6 / 11) ** 2, abs=0.03)


def test_spans_stay_inside_a_segment():
    """Masks of neighboring words are correlated, except across a segment boundary."""
    count = 20000
    ids = np.full((count, 42), 10)
    ids[:, [0, 21]], ids[:, [20, 41]] = CLS, SEP
    out = mask_rows(ids, keys(count), tables(), MaskingConfig(rate=0.05, max_ngram=5)).input_ids == MASK

    def correlation(first: int, second: int) -> float:
        return float(np.corrcoef(out[:, first], out[:, second])[0, 1])

    assert correlation(18, 19) > 0.2
    assert correlation(22, 23) > 0.2
    assert correlation(19, 22) < 0.02
    assert correlation(18, 22) < 0.02


def test_shares_of_mask_random_and_unchanged_tokens():
    ids = packed_rows(400, 128, segments=(128,))
    out = mask_rows(ids, keys(400), tables(), MaskingConfig(replace="mlm"))
    used = out.masked_labels > 0
    replaced = np.take_along_axis(out.input_ids, out.masked_positions, axis=1)[used]
    labels = out.masked_labels[used]
    assert np.mean(replaced == MASK) == pytest.approx(0.8, abs=0.02)
    assert np.mean(replaced == labels) == pytest.approx(0.1, abs=0.02)
    random = replaced[(replaced != MASK) & (replaced != labels)]
    assert random.min() > UNK
    assert random.mean() == pytest.approx(VOCABULARY / 2, rel=0.1)
    always_masked = mask_rows(ids, keys(400), tables(), MaskingConfig())
    assert np.array_equal(always_masked.masked_positions, out.masked_positions)
    assert np.all(np.take_along_axis(always_masked.input_ids, out.masked_positions, axis=1)[used] == MASK)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0.0}, "rate is 0.0; it must be above 0 and below 1"),
        ({"rate": 15}, "rate is 15; it must be above 0 and below 1"),
        ({"max_ngram": 0}, "max_ngram is 0; it must be 1"),
        ({"replace": "electra"}, "replace is 'electra'; it must be one of rtd, mlm"),
    ],
)
def test_settings_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskingConfig(**fields)


def test_hash_is_splitmix64():
    """The published first outputs of SplitMix64 for seed 1234567."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert hash_uint64(np.uint64(1234567), np.arange(5)).tolist() == expected
