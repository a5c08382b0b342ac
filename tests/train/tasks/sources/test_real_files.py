"""Tests of real published files: their sizes, and the published scores of constant predictions.

The files are not part of the repository. They are data for trying the library, in a folder beside it.
"""

import numpy as np
import pytest

from deberta_jax.train.tasks.loading import load_task

from ....support.configs import finetune_config
from ....support.letters import Letters
from ....support.paths import SHARED

REAL = SHARED / "real"
GLUE = REAL / "glue"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="needs the published files in ../shared/real")


@pytest.fixture
def load():
    """Returns a function that reads a task, with one token per text, as only texts and labels matter here."""

    def load(train, **options):
        return load_task(finetune_config(train=str(train), max_length=8, **options), Letters())

    return load


def constant(task, split, label):
    """Returns the scores of the prediction of one class for every example."""
    examples = len(task.splits[split].lengths)
    return task.score(split, [{"probabilities": np.eye(len(task.label_names))[label]}] * examples)


def sizes(task):
    return {name: len(split.lengths) for name, split in task.splits.items()}


def test_sst2(load):
    dev = GLUE / "sst2" / "dev.tsv"
    task = load(f"glue/sst2:{dev}")
    assert sizes(task) == {"train": 872}
    assert constant(task, "train", 1) == {"accuracy": pytest.approx(0.509, abs=5e-4)}
    assert constant(load(dev), "train", 1)["accuracy"] == pytest.approx(0.509, abs=5e-4)


def test_cola(load):
    raw = GLUE / "cola" / "raw"
    task = load(f"glue/cola:{raw / 'in_domain_train.tsv'}", validation=f"glue/cola:{raw / 'mixed_dev.tsv'}")
    assert sizes(task) == {"train": 8551, "validation": 1043}
    assert constant(task, "validation", 1) == {"matthews_correlation": 0.0}
    columns = load(raw / "mixed_dev.tsv", header=False, text_column="3", label_column="1")
    assert constant(columns, "train", 1)["accuracy"] == pytest.approx(721 / 1043)


def test_rte(load):
    train, dev, test = (f"glue/rte:{GLUE / 'rte' / name}.tsv" for name in ("train", "dev", "test"))
    task = load(train, validation=dev, test=test)
    assert sizes(task) == {"train": 2490, "validation": 277, "test": 3000}
    assert constant(task, "validation", task.label_names.index("entailment")) == {
        "accuracy": pytest.approx(0.527, abs=5e-4)
    }
    columns = load(GLUE / "rte" / "dev.tsv", text_column="sentence1", pair_column="sentence2")
    assert constant(columns, "train", 0)["accuracy"] == pytest.approx(0.527, abs=5e-4)


def test_mrpc(load):
    folder = GLUE / "mrpc"
    train, test = (f"glue/mrpc:{folder / f'msr_paraphrase_{name}.txt'}" for name in ("train", "test"))
    task = load(train, test=test)
    assert sizes(task) == {"train": 4076, "test": 1725}
    # The published baseline, 68.4 and 81.2, is that of the development set, which GLUE took from the training file.
    assert constant(task, "train", 1) == {"accuracy": pytest.approx(2753 / 4076), "f1": pytest.approx(5506 / 6829)}
    figures = constant(task, "test", 1)
    assert figures == {"accuracy": pytest.approx(0.6649, abs=5e-5), "f1": pytest.approx(0.7987, abs=5e-5)}
    columns = {"text_column": "#1 String", "pair_column": "#2 String", "label_column": "Quality"}
    assert constant(load(folder / "msr_paraphrase_test.txt", **columns), "train", 1)["accuracy"] == figures["accuracy"]


def test_quoted_mrpc(load):
    source = f"glue/mrpc:{GLUE / 'mrpc' / 'quoted_msr_paraphrase_train.txt'}"
    task = load(source)
    assert sizes(task) == {"train": 4045}
    assert "352 in '#1 String'" in task.splits["train"].notes[0]
    assert task.data.splits["train"][0].text.startswith('"Amrozi')
    unquoted = load(source, quoting="csv")
    assert sizes(unquoted) == {"train": 4045}
    assert unquoted.data.splits["train"][0].text.startswith('Amrozi accused his brother , whom he called " the')


def test_stsb(load):
    train, dev, original = (GLUE / "stsb" / name for name in ("train.tsv", "dev.tsv", "original/sts-dev.tsv"))
    task = load(f"glue/stsb:{train}", validation=f"glue/stsb:{dev}")
    assert sizes(task) == {"train": 5749, "validation": 1500}
    gold = [{"score": example.label} for example in task.data.splits["validation"]]
    assert task.score("validation", gold) == {"pearson": pytest.approx(1), "spearman": pytest.approx(1)}
    labels = [example.label for example in load(f"glue/stsb:{original}").data.splits["train"]]
    assert labels == [example.label for example in task.data.splits["validation"]]
    columns = {"text_column": "sentence1", "pair_column": "sentence2", "label_column": "score"}
    assert sizes(load(dev, kind="regression", **columns)) == {"train": 1500}


@pytest.mark.parametrize("prefix", ["squad:", "squad/v1.1:", ""])
def test_xquad(prefix):
    from deberta_jax.train.tasks.spans.questions import load_questions

    questions = load_questions(f"{prefix}{REAL / 'xquad' / 'xquad.en.json'}").splits["train"]
    assert len(questions) == 1190
    assert len({question.context for question in questions}) == 240
    for question in questions:
        for answer in question.answers:
            assert question.context.startswith(answer.text, answer.start)
