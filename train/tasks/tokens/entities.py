"""Finds the entities in tagged sentences and scores them, as `conlleval` and the default mode of seqeval do."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deberta_jax.predict.entity_tags import ENTITY_PREFIXES


class Entity(NamedTuple):
    """The words `start` to `stop` - 1 of a sentence."""

    kind: str
    start: int
    stop: int


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """Yields the entities of a sentence whose tags satisfy `entity_tags.marks_entities`.

    As in IOB1, an I or an E that follows no entity of its kind begins an entity. Source: startOfChunk and endOfChunk of
    conlleval.
    """
    start, previous_prefix, previous_kind = 0, "O", ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, kind = ENTITY_PREFIXES.get(tag[:1].upper(), "O"), tag[2:]
        kind_changes = kind != previous_kind
        if previous_prefix != "O" and (previous_prefix in "ES" or prefix in "BSO" or kind_changes):
            yield Entity(previous_kind, start, index)
        if prefix != "O" and (prefix in "BS" or previous_prefix in "ESO" or kind_changes):
            start = index
        previous_prefix, previous_kind = prefix, kind


def entity_scores(predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns f1, precision and recall of whole entities over all sentences (micro average).

    A score is 0 where its denominator is 0.

    Raises:
      ValueError: if the sentences differ in number or length.
    """
    correct = predictions = expected = 0
    for predicted_tags, label_tags in zip(predicted, labels, strict=True):
        if len(predicted_tags) != len(label_tags):
            raise ValueError(f"{len(predicted_tags)} predicted tags for a sentence of {len(label_tags)} words")
        predicted_entities, label_entities = set(entities(predicted_tags)), set(entities(label_tags))
        correct += len(predicted_entities & label_entities)
        predictions += len(predicted_entities)
        expected += len(label_entities)
    return {
        "f1": 2 * correct / (predictions + expected) if predictions + expected else 0.0,
        "precision": correct / predictions if predictions else 0.0,
        "recall": correct / expected if expected else 0.0,
    }
