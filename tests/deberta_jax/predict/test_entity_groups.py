"""Spans from hand-made probabilities of tokens."""

import numpy as np
import pytest

from deberta_jax.predict.entity_groups import LabeledSpan, drop_overlaps, label_spans

from ...support.span_predictor import TAGS


def spans(tags, *, names=TAGS, continues=(), aggregation="simple", scores=()):
    """Returns (label, first, last) of the spans of tokens with these most probable tags."""
    probabilities = np.full((len(tags), len(names)), 0.1, np.float32)
    for token, tag in enumerate(tags):
        probabilities[token, names.index(tag)] = scores[token] if scores else 0.6
    further = np.isin(np.arange(len(tags)), list(continues))
    found = label_spans(probabilities, further, names, aggregation)
    return [(span.label, span.first, span.last) for span in found]


def test_tokens_of_one_kind_are_joined_and_b_begins_anew():
    tags = ["O", "B-PER", "I-PER", "B-PER", "I-LOC", "O", "O"]
    expected = [("O", 0, 0), ("PER", 1, 2), ("PER", 3, 3), ("LOC", 4, 4), ("O", 5, 6)]
    assert spans(tags) == expected
    assert spans(tags, aggregation="none") == [(tag, token, token) for token, tag in enumerate(tags)]


def test_names_without_prefixes_are_kinds():
    names = ("O", "PERSON", "E-MAIL")
    tags = ["PERSON", "PERSON", "E-MAIL", "E-MAIL", "O"]
    assert spans(tags, names=names) == [("PERSON", 0, 1), ("E-MAIL", 2, 3), ("O", 4, 4)]


def test_ends_and_singles_of_iobes_and_bilou_end_an_entity():
    names = ("O", "B-A", "I-A", "E-A", "S-A")
    tags = ["B-A", "I-A", "E-A", "I-A", "S-A", "S-A", "E-A"]
    expected = [("A", 0, 2), ("A", 3, 3), ("A", 4, 4), ("A", 5, 5), ("A", 6, 6)]
    assert spans(tags, names=names) == expected
    bilou = [name.replace("E-", "L-").replace("S-", "u-") for name in names]
    renamed = dict(zip(names, bilou, strict=True))
    assert spans([renamed[tag] for tag in tags], names=bilou) == expected


@pytest.mark.parametrize(
    ("aggregation", "label", "score"), [("first", "PER", 0.6), ("max", "LOC", 0.9), ("average", "ORG", 0.4)]
)
def test_a_word_has_one_label(aggregation, label, score):
    names = ["PER", "LOC", "ORG"]
    probabilities = np.array([[0.6, 0.0, 0.4], [0.1, 0.9, 0.0], [0.2, 0.0, 0.8]], np.float32)
    (span,) = label_spans(probabilities, np.array([True, True, True]), names, aggregation)
    assert (span.label, span.first, span.last) == (label, 0, 2)
    assert span.score == pytest.approx(score)
    assert len(label_spans(probabilities, np.array([True, False, True]), names, aggregation)) == 2


def test_of_overlapping_spans_the_longer_or_more_probable_stays():
    begins, ends = np.arange(10) * 2, np.arange(10) * 2 + 2
    first, longer = LabeledSpan("A", 0.9, 0, 1), LabeledSpan("B", 0.2, 1, 3)
    same, apart = LabeledSpan("C", 0.3, 2, 4), LabeledSpan("D", 0.1, 5, 5)
    assert drop_overlaps([apart, first, longer, same], begins, ends) == [same, apart]
    assert drop_overlaps([first, longer], begins, ends) == [longer]
    assert drop_overlaps([], begins, ends) == []
