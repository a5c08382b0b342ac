"""Near-duplicates: documents whose sets of word 5-grams are similar, by MinHash and locality-sensitive hashing.

Broder (1997), On the resemblance and containment of documents; bands and rows as in Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, section 3.4.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Bool, Int, UInt32, UInt64

NUM_PERMUTATIONS = 128
_WORDS_PER_SHINGLE = 5
# A word, or one character of a script that is written without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer).
_WORD = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
    r"|[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+"
)
_SHINGLES_AT_ONCE = 4096
_COMPARED_AT_ONCE = 4096
_GRID = 200  # points of the integrals below
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Signatures = UInt32[np.ndarray, "documents permutations"]


@functools.cache
def _permutations() -> tuple[UInt64[np.ndarray, "permutations"], UInt64[np.ndarray, "permutations"]]:
    """Returns odd multipliers and summands, the same in every process."""
    factors, summands = np.random.default_rng(20).integers(1 << 64, size=(2, NUM_PERMUTATIONS), dtype=np.uint64)
    return factors | np.uint64(1), summands


def signature(document: str) -> UInt32[np.ndarray, "permutations"]:
    """Returns the MinHash signature of a document: two agree in a share of places that is close to the Jaccard
    similarity of their sets of word 5-grams. Case and punctuation do not count.

    A document of fewer than five words has one shingle, all of them. One without words, for example of emoji, is a
    word itself.
    """
    words = _WORD.findall(document.lower()) or [document]
    hashes = np.array([_hash_word(word) for word in words], np.uint64)
    shingles = np.zeros(max(1, len(hashes) - _WORDS_PER_SHINGLE + 1), np.uint64)
    for place in range(min(len(hashes), _WORDS_PER_SHINGLE)):
        shingles = _mixed(shingles ^ hashes[place : place + len(shingles)])
    factors, summands = _permutations()
    least = np.full(NUM_PERMUTATIONS, (1 << 32) - 1, np.uint32)
    for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
        block = shingles[start : start + _SHINGLES_AT_ONCE, None] * factors + summands
        np.minimum(least, (block >> np.uint64(32)).min(axis=0).astype(np.uint32), out=least)
    return least


@functools.lru_cache(maxsize=1 << 16)
def _hash_word(word: str) -> int:
    """Returns a 64-bit hash of a word, the same in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _mixed(values: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    values = values * _MULTIPLIER
    return values ^ (values >> np.uint64(29))


@functools.cache
def bands_and_rows(threshold: float) -> tuple[int, int]:
    """Returns the numbers of bands and of rows per band whose curve of detection errs least at a threshold.

    Two documents of similarity s share a band with probability 1 - (1 - s^rows)^bands. The error is the integral of
    this below the threshold and of its complement above. Missed pairs count more, because candidates are verified.
    """
    similarity = (np.arange(_GRID) + 0.5) / _GRID
    best, choice = np.inf, (NUM_PERMUTATIONS, 1)
    for rows in range(1, NUM_PERMUTATIONS + 1):
        bands = NUM_PERMUTATIONS // rows
        found = 1 - (1 - similarity**rows) ** bands
        error = np.where(similarity < threshold, 0.1 * found, 1 - found).mean()
        if error < best:
            best, choice = error, (bands, rows)
    return choice


def near_duplicates(
    blocks: Callable[[], Iterable[Signatures]], signatures_of: Callable[[Int[np.ndarray, "n"]], Signatures],
    documents: int, threshold: float,
) -> Bool[np.ndarray, "documents"]:  # fmt: skip
    """Returns which documents are near-duplicates of an earlier one.

    Documents that are linked by a chain of similar pairs count as one, of which the first stays. Memory is about 30
    bytes per document.

    Args:
      blocks: yields the signatures of all documents in order, once for each band.
      signatures_of: returns the signatures of the documents with these numbers.
      documents: number of documents.
      threshold: least share of equal places of a similar pair.
    """
    if documents < 2:
        return np.zeros(documents, bool)
    bands, rows = bands_and_rows(threshold)
    first = np.arange(documents)  # of each document, an earlier one of its chain, or itself
    for band in range(bands):
        keys = np.concatenate([_band_keys(block[:, band * rows : (band + 1) * rows]) for block in blocks()])
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]) != 0)
        ends = np.append(starts[1:], len(keys))
        for run in np.flatnonzero(ends - starts > 1):
            _link_similar(order[starts[run] : ends[run]], first, signatures_of, threshold)
    return np.array([_root(first, document) != document for document in range(documents)], bool)


def _band_keys(values: UInt32[np.ndarray, "documents rows"]) -> UInt64[np.ndarray, "documents"]:
    keys = np.zeros(len(values), np.uint64)
    for column in values.T:
        keys = _mixed(keys ^ column)
    return keys


def _link_similar(
    members: Int[np.ndarray, "n"], first: Int[np.ndarray, "documents"],
    signatures_of: Callable[[Int[np.ndarray, "n"]], Signatures], threshold: float,
) -> None:  # fmt: skip
    """Links the documents of a band that are similar. Those that are linked already are not compared again."""
    roots = np.array([_root(first, member) for member in members])
    members = members[np.sort(np.unique(roots, return_index=True)[1])]
    while len(members) > 1:
        blocks = [members[start : start + _COMPARED_AT_ONCE] for start in range(0, len(members), _COMPARED_AT_ONCE)]
        one = signatures_of(members[:1])
        similar = np.concatenate([(signatures_of(block) == one).mean(axis=1) >= threshold for block in blocks])
        for member in members[similar][1:]:
            earlier, later = sorted((_root(first, members[0]), _root(first, member)))
            first[later] = earlier
        members = members[~similar]


def _root(first: Int[np.ndarray, "documents"], document: int) -> int:
    while first[document] != document:
        first[document] = first[first[document]]
        document = int(first[document])
    return int(document)
