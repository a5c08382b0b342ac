"""Masks for masked LM and replaced token detection, on whole batches of packed rows; NumPy, no loop over rows or words.

The official rule (`mlm_task.NGramMaskGenerator`): mask `rate` of a row's tokens, single sub-words when `max_ngram` is
1, otherwise spans of n whole words with p(n) proportional to 1/n, n <= max_ngram. Deliberate difference: the official
code scans a row from left to right in windows and stops when the budget is spent, so that in a full row of 512 the
last 48 or so tokens are never masked. Here every word of the row may start a span, spans draw priorities, and the
budget goes to the spans of the smallest ones, so every position is masked equally often.
"""

import dataclasses
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from deberta_jax.errors import UserError

Replacement = Literal["rtd", "mlm"]
# Of the chosen tokens, the share that becomes [MASK] and the share that becomes a random token; the rest is kept.
_SHARES: dict[Replacement, tuple[float, float]] = {"rtd": (1.0, 0.0), "mlm": (0.8, 0.1)}

# Every use of the hash has its own stream. A span that starts p words in front of its segment has stream _BEFORE + p.
_REPLACE, _SPAN, _BEFORE = 0, 1, 2
_ROW_BITS = 20  # of a 64-bit sort key that name the row; the other 44 are its words' priorities
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class SupportsMasking(Protocol):
    """What masking needs of a tokenizer; `starts_word` and `is_special` are bool [V]."""

    @property
    def cls_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def starts_word(self) -> NDArray[np.bool_]: ...
    @property
    def is_special(self) -> NDArray[np.bool_]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Which tokens are masked, and by what.

    Attributes:
      rate: share of a row's real tokens, [CLS] and [SEP] counted, that is masked.
      max_ngram: 1 masks single sub-words (official RTD); above, spans of up to so many whole words (official MLM of
        v1 and v2: 3).
      replace: "rtd", always [MASK]; "mlm", 80 % [MASK], 10 % a random token that is not special, 10 % unchanged.
    """

    rate: float = 0.15
    max_ngram: int = 1
    replace: Replacement = "rtd"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UserError(f"masking rate is {self.rate}; it must be above 0 and below 1, usually 0.15")
        if not 1 <= self.max_ngram <= 16:
            raise UserError(f"max_ngram is {self.max_ngram}; it must be 1 (sub-words) to 16 (words), usually 1 or 3")
        if self.replace not in _SHARES:
            raise UserError(f"replace is {self.replace!r}; it must be one of {', '.join(_SHARES)}")

    def slots(self, sequence_length: int) -> int:
        """M, the fixed number of masked positions that a row of this length has room for."""
        return max(1, round(self.rate * sequence_length))


@dataclasses.dataclass(frozen=True)
class MaskingTables:
    """A tokenizer's ids as masking sees them. `random_ids` [R]: the ids that may stand in for another."""

    cls_id: int
    mask_id: int
    starts_word: NDArray[np.bool_]
    is_special: NDArray[np.bool_]
    random_ids: NDArray[np.int32]

    @classmethod
    def of(cls, tokenizer: SupportsMasking) -> Self:
        special = np.asarray(tokenizer.is_special, bool)
        return cls(
            cls_id=tokenizer.cls_id,
            mask_id=tokenizer.mask_id,
            starts_word=np.asarray(tokenizer.starts_word, bool) | special,
            is_special=special,
            random_ids=np.flatnonzero(~special).astype(np.int32),
        )


def hash_uint64(key: NDArray[np.uint64] | np.uint64, counter: NDArray[np.integer] | int) -> NDArray[np.uint64]:
    """64 random bits for every (key, counter): the SplitMix64 generator started at `key`, after `counter` steps.

    Broadcasts. A pure function of its arguments, hence the same on any host and for any batch size.
    """
    with np.errstate(over="ignore"):  # wrapping around is the arithmetic that is meant
        z = key + (np.asarray(counter).astype(np.uint64) + np.uint64(1)) * _GAMMA
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def mask_rows(
    ids: NDArray[np.integer], keys: NDArray[np.uint64], tables: MaskingTables, config: MaskingConfig
) -> dict[str, NDArray[np.int32]]:
    """Masks packed rows. Special tokens ([PAD], [CLS], [SEP], [UNK], [MASK]) are never masked.

    A row's budget is max(1, round(rate * its real tokens)), as in the official code, and at most M. With
    `max_ngram` > 1 only whole words are masked and spans stay inside a segment; a word that does not fit the rest of
    the budget ends the choice, so a few tokens of the budget may stay unused.

    Args:
      ids: [B, S], rows of segments `[CLS] ... [SEP]`, 0 behind them.
      keys: [B], one random key a row; all randomness of a row comes from its key.

    Returns:
      input_ids [B, S], masked; masked_positions [B, M], ascending, then 0; masked_labels [B, M], the original ids, 0
      in an unused slot; all int32, with M = `config.slots(S)`.
    """
    ids = ids.astype(np.int32)
    chosen = _choose(ids, keys, tables, config)
    rows, columns = np.nonzero(chosen)
    first = np.searchsorted(rows, np.arange(len(ids)))
    slots = np.arange(len(rows)) - first[rows]
    positions = np.zeros((len(ids), config.slots(ids.shape[1])), np.int32)
    labels = np.zeros_like(positions)
    positions[rows, slots] = columns
    labels[rows, slots] = ids[rows, columns]
    masked = ids.copy()
    masked[rows, columns] = _replacements(ids[rows, columns], keys[rows], columns, tables, config)
    return {"input_ids": masked, "masked_positions": positions, "masked_labels": labels}


def _choose(
    ids: NDArray[np.int32], keys: NDArray[np.uint64], tables: MaskingTables, config: MaskingConfig
) -> NDArray[np.bool_]:
    """Which tokens are masked, [B, S]. Works on the flat list of all words of the batch, in order of place."""
    B, S = ids.shape
    begins = np.ones_like(ids, bool) if config.max_ngram == 1 else tables.starts_word[ids]
    # The piece behind a special token begins a word, whatever the piece; so does a row.
    begins[:, 1:] |= tables.is_special[ids[:, :-1]]
    begins[:, 0] = True
    place = np.flatnonzero(begins)  # of each word's first token in the flattened batch
    length = np.diff(place, append=B * S)
    row, column = np.divmod(place, S)

    budget = np.rint(config.rate * np.count_nonzero(ids, axis=1)).astype(np.int64)
    budget = np.clip(budget, 1, config.slots(S))[row]
    candidate = ~tables.is_special[ids.ravel()[place]] & (length <= budget)

    rank = _span_ranks(keys, row, column, ids.ravel()[place] == tables.cls_id, config.max_ngram)
    # One key sorts by row, then by rank, words that cannot be masked last: three times faster than `lexsort`. Words of
    # one span are equal and stay in order: the sort is stable, so that ties do not depend on the rest of the batch.
    rank = np.where(candidate, rank, np.iinfo(np.uint64).max) >> np.uint64(_ROW_BITS)
    order = np.argsort(row.astype(np.uint64) << np.uint64(64 - _ROW_BITS) | rank, kind="stable")
    spent = np.cumsum(length[order])
    row_start = np.searchsorted(row, np.arange(B))
    before = np.concatenate([[0], spent])[row_start]
    take = candidate[order] & (spent - before[row] <= budget)

    masked_word = np.empty_like(candidate)
    masked_word[order] = take
    return np.repeat(masked_word, length).reshape(B, S)


def _span_ranks(
    keys: NDArray[np.uint64],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    is_cls: NDArray[np.bool_],
    max_ngram: int,
) -> NDArray[np.uint64]:
    """The smallest priority among the spans that cover each word; words of small rank are masked first.

    Every word starts one span. So that the first words of a segment are covered as often as any other, spans also
    start at the max_ngram - 1 places in front of it. A span ends with its segment at the latest.
    """
    own = hash_uint64(hash_uint64(keys, _SPAN)[row], column)
    if max_ngram == 1:
        return own
    word = np.arange(len(row))
    opens = is_cls | (np.diff(row, prepend=-1) > 0)
    segment_start = np.maximum.accumulate(np.where(opens, word, 0))
    ordinal = word - segment_start

    weights = 1 / np.arange(1, max_ngram + 1)
    cumulative = np.cumsum(weights / weights.sum())[:-1]
    rank = own
    for distance in range(1, max_ngram):  # from the start of a covering span to the word
        start = np.roll(own, distance)
        outside = np.flatnonzero(ordinal < distance)
        stream = _BEFORE + distance - ordinal[outside]
        start[outside] = hash_uint64(hash_uint64(keys[row[outside]], stream), column[segment_start[outside]])
        # The low bits draw the span's length, the high bits order the spans.
        covers = (start & np.uint64(0xFFFF)) >= np.uint64(cumulative[distance - 1] * 0x10000)
        rank = np.where(covers, np.minimum(rank, start), rank)
    return rank


def _replacements(
    ids: NDArray[np.int32],
    keys: NDArray[np.uint64],
    columns: NDArray[np.int64],
    tables: MaskingTables,
    config: MaskingConfig,
) -> NDArray[np.int32]:
    """What stands in the place of the chosen tokens `ids` [K]."""
    mask_share, random_share = _SHARES[config.replace]
    bits = hash_uint64(hash_uint64(keys, _REPLACE), columns)
    share = (bits >> np.uint64(40)) / (1 << 24)
    # 32 fresh bits, scaled to the number of ids (at most 2^32): uniform to one part in 10^4.
    pick = ((bits & np.uint64(0xFFFFFFFF)) * np.uint64(len(tables.random_ids))) >> np.uint64(32)
    random = tables.random_ids[pick.astype(np.int64)]
    return np.where(
        share < mask_share, tables.mask_id, np.where(share < mask_share + random_share, random, ids)
    ).astype(np.int32)
