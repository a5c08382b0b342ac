"""The texts of the demo: the embedded novels, divided into text for pre-training and the examples of two questions."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deberta_jax.atomic_files import write_file
from deberta_jax.strict_json import to_json

from .data.text import embedded_corpus, is_heading, read_documents

# The only one of the six novels that the books have on which deberta-v3-tiny was pre-trained: neither question uses it.
KNOWN_TO_TINY = "Mansfield Park"
PASSAGE_WORDS = 45
SHORTEST_SENTENCE, LONGEST_SENTENCE = 8, 20  # words
EXCHANGED, ORIGINAL = "exchanged", "as written"
# Frequent words show by their neighbors alone that they were moved, which pairs of words, and so TF-IDF, tell.
_FREQUENT = 150
_NEAREST, _FARTHEST = 2, 4  # words from one of the exchanged words to the other
_TRAINING_SENTENCES, _TEST_SENTENCES = 1000, 200  # each is an example as written and one with two words exchanged
_TRAINING_PASSAGES, _TEST_PASSAGES = 1500, 400

Example = dict[str, str]


def write_texts(folder: Path) -> dict[str, int]:
    """Writes pretraining.txt, and {exchange,novel}-{train,test}.jsonl with the fields text and label.

    Splits consist of whole chapters, so that no example has a neighbor in another split: of every ten chapters of a
    novel two are for testing. pretraining.txt has the other chapters.

    Returns:
      The number of examples of each file, by its name without the ending.
    """
    chapters: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}  # title and text
    training_text = []
    for novel in read_documents((embedded_corpus(),), boundary="blank_line"):
        title, texts = novel_chapters(novel)
        for number, text in enumerate(texts):
            split = "test" if number % 10 in (4, 9) else "train"
            if split == "train":
                training_text.append(text)
            if title != KNOWN_TO_TINY:
                chapters[split].append((title, text))
    frequent = frequent_words(training_text)
    sizes = {"train": (_TRAINING_SENTENCES, _TRAINING_PASSAGES), "test": (_TEST_SENTENCES, _TEST_PASSAGES)}
    counts = {}
    for seed, (split, (sentences, passages)) in enumerate(sizes.items()):
        rng = np.random.default_rng(seed)
        examples = {
            "exchange": exchange_examples([text for _, text in chapters[split]], frequent, rng, sentences),
            "novel": novel_examples(chapters[split], rng, passages),
        }
        for name, found in examples.items():
            write_file(folder / f"{name}-{split}.jsonl", "".join(to_json(example) + "\n" for example in found))
            counts[f"{name}-{split}"] = len(found)
    # Written only if it differs, because the prepared corpus is tied to the file.
    target, text = folder / "pretraining.txt", "\n\n".join(training_text) + "\n"
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        write_file(target, text)
    return counts


def novel_chapters(novel: str) -> tuple[str, list[str]]:
    """Returns the title of a novel, which is its first line, and its chapters without headings and front matter."""
    lines = novel.splitlines()
    chapters: list[list[str]] = []
    for line in lines:
        if is_heading(line):
            chapters.append([])
        elif chapters:
            chapters[-1].append(line)
    return lines[0].strip().title(), ["\n".join(chapter) for chapter in chapters if chapter]


def frequent_words(texts: list[str]) -> set[str]:
    """Returns the most frequent words of texts, in small letters."""
    counts = Counter(word for text in texts for word in re.findall("[a-z]+", text.lower()))
    return {word for word, _ in counts.most_common(_FREQUENT)}


# -------------------------------------------------------------------- as written, or with two words exchanged?


def exchange_examples(texts: list[str], frequent: set[str], rng: np.random.Generator, count: int) -> list[Example]:
    """Returns sentences of texts, each as it was written and with two words exchanged, in a random order.

    Both versions have the same words, so that only their order answers the question.

    Args:
      texts: the texts.
      frequent: words that are not exchanged.
      rng: draws sentences, words and order.
      count: the number of sentences; there are twice as many examples.
    """
    sentences = [sentence for text in texts for sentence in cut_sentences(text)]
    examples: list[Example] = []
    for index in rng.permutation(len(sentences)):
        changed = exchange_words(sentences[index], frequent, rng)
        if changed is not None:
            examples += [{"text": sentences[index], "label": ORIGINAL}, {"text": changed, "label": EXCHANGED}]
        if len(examples) == 2 * count:
            break
    return [examples[index] for index in rng.permutation(len(examples))]


def cut_sentences(text: str) -> Iterator[str]:
    """Yields the sentences of a text that begin with a capital letter and have 8 to 20 words."""
    for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", text)):
        if sentence[:1].isupper() and SHORTEST_SENTENCE <= len(sentence.split()) <= LONGEST_SENTENCE:
            yield sentence


def exchange_words(sentence: str, frequent: set[str], rng: np.random.Generator) -> str | None:
    """Returns a sentence with two of its words exchanged that stand two to four words apart.

    They are not frequent, written in small letters and without a sign beside them. None if there are no such words.
    """
    words = sentence.split()
    places = [i for i, word in enumerate(words) if word.isalpha() and word.islower() and word not in frequent]
    pairs = [(i, j) for i in places for j in places if _NEAREST <= j - i <= _FARTHEST and words[i] != words[j]]
    if not pairs:
        return None
    first, second = pairs[rng.integers(len(pairs))]
    words[first], words[second] = words[second], words[first]
    return " ".join(words)


# -------------------------------------------------------------------- which novel is it from?


def novel_examples(chapters: list[tuple[str, str]], rng: np.random.Generator, count: int) -> list[Example]:
    """Returns passages of novels and the titles, in a random order. `chapters` are pairs of title and text."""
    examples = [{"text": passage, "label": title} for title, text in chapters for passage in cut_passages(text)]
    return [examples[index] for index in rng.permutation(len(examples))[:count]]


def cut_passages(text: str) -> Iterator[str]:
    """Yields passages of PASSAGE_WORDS words; fewer than half of that at the end are added to the last passage."""
    words = re.split(r"\s+", text.strip())
    starts = list(range(0, len(words), PASSAGE_WORDS))
    if len(starts) > 1 and len(words) - starts[-1] < PASSAGE_WORDS // 2:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], len(words)], strict=True):
        yield " ".join(words[start:end])
