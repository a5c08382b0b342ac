"""Labeled spans from the probabilities of tokens: words, groups of the same label, and spans of several windows.

Source: `aggregate` and `aggregate_overlapping_entities` of transformers' `TokenClassificationPipeline`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from .entity_tags import split_tags

Aggregation = Literal["none", "simple", "first", "average", "max"]


@dataclasses.dataclass(frozen=True, slots=True)
class LabeledSpan:
    """The tokens `first` to `last` and their label."""

    label: str
    score: float
    first: int
    last: int

    def shifted(self, tokens: int) -> Self:
        """Returns the span with positions that are higher by a number of tokens."""
        return dataclasses.replace(self, first=self.first + tokens, last=self.last + tokens)


@dataclasses.dataclass(frozen=True, slots=True)
class _Unit:
    """A token or a word, with the index of its label."""

    label: int
    score: float
    first: int
    last: int


def label_spans(
    probabilities: Float[np.ndarray, "tokens C"],
    continues: Bool[np.ndarray, "tokens"],
    names: Sequence[str],
    aggregation: Aggregation,
) -> list[LabeledSpan]:
    """Returns the labeled spans of a window, in order; together they have every token.

    Args:
      probabilities: of each token.
      continues: whether a token is a further one of the same word as the token before. The first is taken for a word.
      names: the names of the classes.
      aggregation: "none" gives a span for each token, with the name of its class. Otherwise successive tokens or words
        whose classes are of one kind are a span, and the label is the kind; a class with the prefix B- begins a new
        one.
    """
    units = list(_units(probabilities, continues, aggregation))
    if aggregation == "none":
        return [LabeledSpan(names[unit.label], unit.score, unit.first, unit.last) for unit in units]
    tags = split_tags(names)
    groups: list[list[_Unit]] = []
    for unit in units:
        prefix, kind = tags[unit.label]
        last_prefix, last_kind = tags[groups[-1][-1].label] if groups else ("", "")
        if groups and kind == last_kind and prefix not in "BS" and last_prefix not in "ES":
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return [
        LabeledSpan(
            tags[group[0].label][1], float(np.mean([unit.score for unit in group])), group[0].first, group[-1].last
        )
        for group in groups
    ]


def _units(
    probabilities: Float[np.ndarray, "tokens C"], continues: Bool[np.ndarray, "tokens"], aggregation: Aggregation
) -> Iterator[_Unit]:
    """Yields the tokens, or the words if they have one label each."""
    count = len(probabilities)
    labels_tokens = aggregation in ("none", "simple")
    starts = [token for token in range(count) if labels_tokens or token == 0 or not continues[token]]
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        of_word = probabilities[start:stop]
        if aggregation == "average":
            shares = of_word.mean(axis=0)
        elif aggregation == "max":
            shares = of_word[of_word.max(axis=1).argmax()]
        else:
            shares = of_word[0]
        label = int(shares.argmax())
        yield _Unit(label, float(shares[label]), start, stop - 1)


def drop_overlaps(
    spans: Sequence[LabeledSpan], begins: Int[np.ndarray, "tokens"], ends: Int[np.ndarray, "tokens"]
) -> list[LabeledSpan]:
    """Returns the spans of several windows in order, and of those that overlap the longest, or else the most probable.

    Args:
      spans: the spans of all windows, without labels that are ignored.
      begins: the first character of each token, including the spaces before it.
      ends: the character after each token.
    """
    kept: list[LabeledSpan] = []
    reach = 0  # the end of the last one
    for span in sorted(spans, key=lambda span: begins[span.first]):
        begin, end = int(begins[span.first]), int(ends[span.last])
        if not kept or begin >= reach:
            kept.append(span)
            reach = end
            continue
        length, last_length = end - begin, reach - int(begins[kept[-1].first])
        if length > last_length or (length == last_length and span.score > kept[-1].score):
            kept[-1], reach = span, end
    return kept
