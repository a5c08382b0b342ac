"""Tests MinHash against exact Jaccard similarities, and the search for similar pairs against comparing all of them."""

import itertools

import numpy as np
import pytest

from deberta_jax.train.data.corpus import Removal
from deberta_jax.train.data.preparation import near_duplicates as module
from deberta_jax.train.data.preparation.near_duplicates import bands_and_rows, near_duplicates, signature
from deberta_jax.train.data.preparation.rules import TextRules
from deberta_jax.train.data.prepare import prepare

from ....support.small_corpus import Words, write


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[place : place + 5]) for place in range(len(words) - 4)}


def edited(words: list[str], changes: int, rng: np.random.Generator) -> list[str]:
    words = list(words)
    for place in rng.choice(len(words), changes, replace=False):
        words[place] = f"new{place}"
    return words


def random_words(rng: np.random.Generator, count: int) -> list[str]:
    return [f"w{number}" for number in rng.integers(10**6, size=count)]


def test_signatures_estimate_the_jaccard_similarity():
    rng = np.random.default_rng(0)
    errors = []
    for changes in (0, 1, 3, 10, 30):
        words = random_words(rng, 300)
        other = edited(words, changes, rng)
        exact = len(shingles(words) & shingles(other)) / len(shingles(words) | shingles(other))
        found = (signature(" ".join(words)) == signature(" ".join(other))).mean()
        assert abs(found - exact) < 4 * np.sqrt(exact * (1 - exact) / module.NUM_PERMUTATIONS) + 1e-9
        errors.append(found - exact)
    assert errors[0] == 0


def test_case_and_punctuation_do_not_count_and_words_do():
    one = signature("The quick brown fox, jumps over the lazy dog.")
    assert (one == signature("the QUICK brown fox jumps — over the lazy dog")).all()
    assert (one == signature("the quick brown fox jumps over the lazy cat")).mean() < 1
    assert (signature("one two") != signature("two one")).any()
    assert (signature("🙂 …") == signature("🙂 …")).all()
    assert (signature("🙂 …") != signature("♥ …")).any()


def test_scripts_without_spaces_have_shingles_too():
    one, other = "吾輩は猫である。名前はまだ無い。どこで生れたか", "吾輩は猫である。名前はまだ無い。どこで死んだか"
    assert 0.3 < (signature(one) == signature(other)).mean() < 1


def test_blocks_of_shingles_do_not_matter(monkeypatch):
    text = " ".join(random_words(np.random.default_rng(1), 500))
    expected = signature(text)
    monkeypatch.setattr(module, "_SHINGLES_AT_ONCE", 7)
    assert (signature(text) == expected).all()


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 1.0])
def test_bands_find_pairs_above_the_threshold(threshold):
    bands, rows = bands_and_rows(threshold)
    assert bands * rows <= module.NUM_PERMUTATIONS
    assert 1 - (1 - min(1, threshold + 0.05) ** rows) ** bands > 0.9


def test_of_each_chain_of_similar_documents_the_first_stays(monkeypatch):
    """The reference compares all pairs. Bands miss few of those near the threshold, none of these."""
    monkeypatch.setattr(module, "_COMPARED_AT_ONCE", 3)
    rng = np.random.default_rng(2)
    documents = [random_words(rng, 200) for _ in range(30)]
    documents += [edited(documents[rng.integers(len(documents))], int(rng.integers(0, 3)), rng) for _ in range(60)]
    signatures = np.stack([signature(" ".join(words)) for words in documents])
    first = list(range(len(documents)))
    for one, other in itertools.combinations(range(len(documents)), 2):
        if (signatures[one] == signatures[other]).mean() >= 0.8:
            low, high = sorted((first[one], first[other]))
            first = [low if root == high else root for root in first]
    expected = [root != number for number, root in enumerate(first)]
    found = near_duplicates(
        lambda: (signatures[start : start + 8] for start in range(0, 90, 8)), lambda n: signatures[n], 90, 0.8
    )
    assert found.tolist() == expected
    assert sum(expected) > 40


def test_documents_of_several_files_are_compared_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("deberta_jax.train.data.prepare.GROUP_BYTES", 1)  # a group for each file
    monkeypatch.setattr("deberta_jax.train.data.preparation.selection._SIGNATURES_AT_ONCE", 2)
    rng = np.random.default_rng(3)
    originals = [random_words(rng, 100) for _ in range(5)]
    lines = [[" ".join(words) for words in originals], [" ".join(edited(words, 1, rng)) for words in originals[:3]]]
    lines[1] += [" ".join(random_words(rng, 100)), lines[0][4]]
    files = [write(tmp_path / f"{number}.txt", "\n".join(part)) for number, part in enumerate(lines)]
    settings = {"sequence_length": 64, "boundary": "line", "held_out_fraction": 0.0}
    rules = TextRules(near_duplicates=0.7)
    corpus = prepare(files, Words(), tmp_path / "c", rules=rules, **settings)
    assert corpus.removed == (Removal("drop_duplicates", 1), Removal("near_duplicates", 3))
    assert corpus.train.documents == 6
    none = prepare(files, Words(), tmp_path / "d", rules=TextRules(near_duplicates=1.0), **settings)
    assert none.train.documents == 9
