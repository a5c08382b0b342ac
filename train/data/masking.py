"""Masks batches of packed rows for masked LM and replaced token detection, in NumPy without a loop over rows or words.

The official rule (`mlm_task.NGramMaskGenerator`) masks a share `rate` of the tokens of a row: single sub-words if
`max_ngram` is 1, otherwise spans of n whole words with p(n) proportional to 1/n, n <= max_ngram.

This module differs from the official code on purpose (B5 in docs/design.md). The official code scans a row from left to
right and stops when the budget is spent, so that the last 48 or so tokens of a full row of 512 are never masked. Here
each word may start a span, each span has a random priority, and the spans with the smallest priorities are masked until
the budget is spent. All positions are masked equally often.
"""

import dataclasses
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
from jaxtyping import Bool, Int, Int32, Integer, UInt64

from deberta_jax.errors import UserError

Replacement = Literal["rtd", "mlm"]
# Shares of the chosen tokens that become [MASK] and a random token. The others are unchanged.
_SHARES: dict[Replacement, tuple[float, float]] = {"rtd": (1.0, 0.0), "mlm": (0.8, 0.1)}

# Each use of the hash has its own stream. A span that starts p words before its segment uses stream _BEFORE + p.
_REPLACE, _SPAN, _BEFORE = 0, 1, 2
_ROW_BITS = 20  # bits of the 64-bit sort key that hold the row; the other 44 hold the priority of the word
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class SupportsMasking(Protocol):
    """The part of a tokenizer that masking uses."""

    @property
    def cls_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def starts_word(self) -> Bool[np.ndarray, "V"]: ...
    @property
    def is_special(self) -> Bool[np.ndarray, "V"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Selects which tokens are masked and what replaces them.

    Attributes:
      rate: share of the real tokens of a row, including [CLS] and [SEP], that is masked.
      max_ngram: 1 masks single sub-words (official RTD). A larger value masks spans of up to that many whole words
        (3 in the official MLM of v1 and v2).
      replace: "rtd" always writes [MASK]. "mlm" writes [MASK] for 80 % of the tokens and a random token that is not
        special for 10 %, and leaves 10 % unchanged.

    Raises:
      UserError: if a value is out of range.
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
        """Returns M, the fixed number of masked positions of a row of this length."""
        return max(1, round(self.rate * sequence_length))


@dataclasses.dataclass(frozen=True)
class MaskingTables:
    """Properties of a tokenizer's ids. `random_ids` are the ids that may replace another token."""

    cls_id: int
    mask_id: int
    starts_word: Bool[np.ndarray, "V"]
    is_special: Bool[np.ndarray, "V"]
    random_ids: Int32[np.ndarray, "ids"]

    @classmethod
    def of(cls, tokenizer: SupportsMasking) -> Self:
        """Returns the tables of a tokenizer."""
        special = np.asarray(tokenizer.is_special, bool)
        return cls(
            cls_id=tokenizer.cls_id,
            mask_id=tokenizer.mask_id,
            starts_word=np.asarray(tokenizer.starts_word, bool) | special,
            is_special=special,
            random_ids=np.flatnonzero(~special).astype(np.int32),
        )


def hash_uint64(
    key: UInt64[np.ndarray, "..."] | np.uint64, counter: Integer[np.ndarray, "..."] | int
) -> UInt64[np.ndarray, "..."]:
    """Returns 64 random bits for each pair of key and counter: output `counter` of SplitMix64 seeded with `key`.

    Broadcasts its arguments. It is a pure function, so that results do not depend on the host or on the batch size.
    """
    with np.errstate(over="ignore"):  # SplitMix64 wraps around at 2^64
        z = key + (np.asarray(counter).astype(np.uint64) + np.uint64(1)) * _GAMMA
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


class MaskedRows(NamedTuple):
    """A masked batch.

    Attributes:
      input_ids: the ids after masking.
      masked_positions: positions of the masked tokens in ascending order, then 0.
      masked_labels: original ids of the masked tokens, then 0.
    """

    input_ids: Int32[np.ndarray, "B S"]
    masked_positions: Int32[np.ndarray, "B M"]
    masked_labels: Int32[np.ndarray, "B M"]


def mask_rows(
    ids: Integer[np.ndarray, "B S"], keys: UInt64[np.ndarray, "B"], tables: MaskingTables, config: MaskingConfig
) -> MaskedRows:
    """Masks packed rows. Special tokens ([PAD], [CLS], [SEP], [UNK], [MASK]) are never masked.

    The budget of a row is max(1, round(rate * number of real tokens)), as in the official code, and at most
    M = `config.slots(S)`. If `max_ngram` > 1, only whole words are masked and spans stay inside a segment. The first
    word that exceeds the remaining budget ends the selection, so that a few tokens of the budget may remain unused.

    Args:
      ids: rows of segments `[CLS] ... [SEP]`, followed by 0.
      keys: one random key per row. All randomness of a row comes from its key.
    """
    ids = ids.astype(np.int32)
    chosen = _choose(ids, keys, tables, config)
    rows, columns = np.nonzero(chosen)
    first = np.searchsorted(rows, np.arange(len(ids)))  # index of each row's first masked token
    slots = np.arange(len(rows)) - first[rows]
    positions = np.zeros((len(ids), config.slots(ids.shape[1])), np.int32)
    labels = np.zeros_like(positions)
    positions[rows, slots] = columns
    labels[rows, slots] = ids[rows, columns]
    masked = ids.copy()
    masked[rows, columns] = _replacements(ids[rows, columns], keys[rows], columns, tables, config)
    return MaskedRows(masked, positions, labels)


def _choose(
    ids: Int32[np.ndarray, "B S"], keys: UInt64[np.ndarray, "B"], tables: MaskingTables, config: MaskingConfig
) -> Bool[np.ndarray, "B S"]:
    """Returns which tokens are masked. Works on the flat list of all words of the batch, ordered by position."""
    B, S = ids.shape
    begins = np.ones_like(ids, bool) if config.max_ngram == 1 else tables.starts_word[ids]
    # The piece after a special token always starts a word, and so does the first piece of a row.
    begins[:, 1:] |= tables.is_special[ids[:, :-1]]
    begins[:, 0] = True
    word_start = np.flatnonzero(begins)  # index of the first token of each word in the flattened batch
    length = np.diff(word_start, append=B * S)
    row, column = np.divmod(word_start, S)

    budget = np.rint(config.rate * np.count_nonzero(ids, axis=1)).astype(np.int64)
    budget = np.clip(budget, 1, config.slots(S))[row]
    candidate = ~tables.is_special[ids.ravel()[word_start]] & (length <= budget)

    rank = _span_ranks(keys, row, column, ids.ravel()[word_start] == tables.cls_id, config.max_ngram)
    # One key sorts by row and then by rank, with words that cannot be masked last. This is three times faster than
    # `lexsort`. Words of one span have equal ranks; the sort is stable, so that ties do not depend on other rows.
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
    keys: UInt64[np.ndarray, "B"],
    row: Int[np.ndarray, "words"],
    column: Int[np.ndarray, "words"],
    is_cls: Bool[np.ndarray, "words"],
    max_ngram: int,
) -> UInt64[np.ndarray, "words"]:
    """Returns the smallest priority among the spans that cover each word. Words of small rank are masked first.

    Each word starts one span. Spans also start at the max_ngram - 1 positions before a segment, so that its first words
    are covered as often as any other. A span never extends past its segment.
    """
    priority = hash_uint64(hash_uint64(keys, _SPAN)[row], column)
    if max_ngram == 1:
        return priority
    word = np.arange(len(row))
    opens = is_cls | (np.diff(row, prepend=-1) > 0)
    segment_start = np.maximum.accumulate(np.where(opens, word, 0))
    ordinal = word - segment_start

    weights = 1 / np.arange(1, max_ngram + 1)
    cumulative = np.cumsum(weights / weights.sum())[:-1]
    rank = priority
    for distance in range(1, max_ngram):  # words from the start of a span to the word that it covers
        start = np.roll(priority, distance)
        outside = np.flatnonzero(ordinal < distance)
        stream = _BEFORE + distance - ordinal[outside]
        start[outside] = hash_uint64(hash_uint64(keys[row[outside]], stream), column[segment_start[outside]])
        # The low bits of a priority select the length of its span, the high bits its order.
        covers = (start & np.uint64(0xFFFF)) >= np.uint64(cumulative[distance - 1] * 0x10000)
        rank = np.where(covers, np.minimum(rank, start), rank)
    return rank


def _replacements(
    ids: Int32[np.ndarray, "chosen"],
    keys: UInt64[np.ndarray, "chosen"],
    columns: Int[np.ndarray, "chosen"],
    tables: MaskingTables,
    config: MaskingConfig,
) -> Int32[np.ndarray, "chosen"]:
    """Returns the ids that replace the chosen tokens."""
    mask_share, random_share = _SHARES[config.replace]
    bits = hash_uint64(hash_uint64(keys, _REPLACE), columns)
    share = (bits >> np.uint64(40)) / (1 << 24)
    # The other 32 bits, scaled to the number of ids: uniform to one part in 10^4 for vocabularies up to 2^18.
    pick = ((bits & np.uint64(0xFFFFFFFF)) * np.uint64(len(tables.random_ids))) >> np.uint64(32)
    random = tables.random_ids[pick.astype(np.int64)]
    return np.where(
        share < mask_share, tables.mask_id, np.where(share < mask_share + random_share, random, ids)
    ).astype(np.int32)
