"""Tests that entities and their scores equal those of seqeval."""

import numpy as np
import pytest
from seqeval import metrics as seqeval_metrics
from seqeval.metrics.sequence_labeling import get_entities

from deberta_jax.predict.entity_tags import marks_entities
from deberta_jax.train.tasks.tokens.entities import Entity, entities, entity_scores

TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC", "X-Y"))]


def random_tags(rng, tags=TAGS):
    return [rng.choice(tags, rng.integers(1, 9)).tolist() for _ in range(40)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(20))
def test_entities_and_scores_equal_those_of_seqeval(seed):
    rng = np.random.default_rng(seed)
    truth = random_tags(rng)
    predicted = [[tag if rng.random() < 0.7 else str(rng.choice(TAGS)) for tag in sentence] for sentence in truth]
    for sentence in truth:
        assert list(entities(sentence)) == [
            Entity(kind, start, stop + 1) for kind, start, stop in get_entities(sentence)
        ]
    assert entity_scores(predicted, truth) == pytest.approx(
        {
            "f1": seqeval_metrics.f1_score(truth, predicted),
            "precision": seqeval_metrics.precision_score(truth, predicted),
            "recall": seqeval_metrics.recall_score(truth, predicted),
        }
    )


def test_scores_with_a_zero_denominator_are_zero():
    assert entity_scores([["O"]], [["O"]]) == {"f1": 0, "precision": 0, "recall": 0}
    assert entity_scores([["B-X"]], [["O"]])["precision"] == 0
    with pytest.raises(ValueError, match="2 predicted tags for a sentence of 1 words"):
        entity_scores([["O", "O"]], [["O"]])


def test_bilou_tags_equal_iobes_tags():
    assert list(entities(["B-X", "I-X", "L-X", "U-Y", "O"])) == [Entity("X", 0, 3), Entity("Y", 3, 4)]


@pytest.mark.parametrize(
    ("tags", "marks"),
    [
        (["O", "B-X"], True),
        (["I-X"], True),
        (["O"], False),
        (["NN", "O"], False),
        (["B-X", "NN"], False),
        (["B-"], False),
    ],
)
def test_tags_with_prefixes_mark_entities(tags, marks):
    assert marks_entities(tags) is marks
