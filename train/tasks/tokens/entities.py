"""Entities in tagged sentences and their scores, as `conlleval` counts them and seqeval does by default."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deberta_jax.errors import UserError

# BILOU's last and unit mean what IOBES calls end and single.
_PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}


class Entity(NamedTuple):
    """Words `start` to `stop` - 1 of a sentence."""

    kind: str
    start: int
    stop: int


def marks_entities(tags: Sequence[str]) -> bool:
    """Whether tags are those of entities ("B-PER", "I-PER", "O"; also IOBES and BILOU), rather than parts of speech."""
    marked = [tag for tag in tags if tag != "O"]
    return bool(marked) and all(tag[:1] in _PREFIXES and tag[1:2] == "-" and tag[2:] for tag in marked)


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """The entities of one sentence, for which `marks_entities` is true.

    An I that follows no entity of its kind begins one, as in IOB1; so does an E. Source: conlleval's startOfChunk and
    endOfChunk.
    """
    start, before, kind_before = 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, kind = _PREFIXES.get(tag[:1], "O"), tag[2:]
        other_kind = kind != kind_before
        if before != "O" and (before in "ES" or prefix in "BSO" or other_kind):
            yield Entity(kind_before, start, place)
        if prefix != "O" and (prefix in "BS" or before in "ESO" or other_kind):
            start = place
        before, kind_before = prefix, kind


def entity_scores(predicted: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """f1, precision and recall of whole entities over all sentences (micro average), 0 where nothing can be divided.

    Raises:
      ValueError: sentences that differ in number or length.
    """
    right = found = wanted = 0
    for one, other in zip(predicted, labels, strict=True):
        if len(one) != len(other):
            raise UserError(f"{len(one)} predicted tags for a sentence of {len(other)} words")
        guess, truth = set(entities(one)), set(entities(other))
        right, found, wanted = right + len(guess & truth), found + len(guess), wanted + len(truth)
    return {
        "f1": 2 * right / (found + wanted) if found + wanted else 0.0,
        "precision": right / found if found else 0.0,
        "recall": right / wanted if wanted else 0.0,
    }
