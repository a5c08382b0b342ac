"""Published sets by their name in tensorflow_datasets: kind, columns, classes in official order, metrics, splits."""

import dataclasses
from collections.abc import Mapping

from .base import Kind

Columns = Mapping[str, str | tuple[str, ...]]  # "text", "pair", "choices", "label" -> what the column is called


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedTask:
    """What is known of a set.

    Classes are in the order of the official DeBERTa tasks (`apps/tasks/glue_tasks.py`), which is that of the published
    `-mnli` checkpoints; tensorflow_datasets numbers MNLI, AX, RTE and QNLI differently.

    `validation` are its splits for validation, the first one being the main one; `test`: one whose labels may be
    hidden. `files` is what to download by hand.
    """

    kind: Kind = "classification"
    columns: Columns
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    files: tuple[str, ...]
    validation: tuple[str, ...] = ("validation",)
    test: str = "test"


def _texts(text: str, pair: str | None = None) -> Columns:
    return {"text": text, "label": "label"} | ({"pair": pair} if pair else {})


_NLI = ("contradiction", "neutral", "entailment")
_TWO_WAY_NLI = ("not_entailment", "entailment")
_MRPC_FILES = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "data_mrpc_dev_ids.tsv")
_QUESTIONS, _SQUAD = {"text": "question", "pair": "context", "label": "answers"}, ("f1", "exact_match")
_SENTENCES, _PREMISE = _texts("sentence1", "sentence2"), _texts("premise", "hypothesis")

PUBLISHED: Mapping[str, PublishedTask] = {
    "glue/cola": PublishedTask(
        columns=_texts("sentence"),
        label_names=("unacceptable", "acceptable"),
        metrics=("matthews_correlation",),
        files=("CoLA.zip",),
    ),
    "glue/sst2": PublishedTask(columns=_texts("sentence"), label_names=("negative", "positive"), files=("SST-2.zip",)),
    "glue/mrpc": PublishedTask(
        columns=_SENTENCES,
        label_names=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        files=_MRPC_FILES,
    ),
    "glue/qqp": PublishedTask(
        columns=_texts("question1", "question2"),
        label_names=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        files=("QQP.zip",),
    ),
    "glue/stsb": PublishedTask(
        kind="regression", columns=_SENTENCES, metrics=("pearson", "spearman"), files=("STS-B.zip",)
    ),
    "glue/mnli": PublishedTask(
        columns=_PREMISE,
        label_names=_NLI,
        files=("MNLI.zip",),
        validation=("validation_matched", "validation_mismatched"),
        test="test_matched",
    ),
    "glue/mnli_matched": PublishedTask(columns=_PREMISE, label_names=_NLI, files=("MNLI.zip",)),
    "glue/mnli_mismatched": PublishedTask(columns=_PREMISE, label_names=_NLI, files=("MNLI.zip",)),
    "glue/qnli": PublishedTask(columns=_texts("question", "sentence"), label_names=_TWO_WAY_NLI, files=("QNLIv2.zip",)),
    "glue/rte": PublishedTask(columns=_SENTENCES, label_names=_TWO_WAY_NLI, files=("RTE.zip",)),
    "glue/wnli": PublishedTask(columns=_SENTENCES, label_names=_TWO_WAY_NLI, files=("WNLI.zip",)),
    "glue/ax": PublishedTask(
        columns=_PREMISE,
        label_names=_NLI,
        metrics=("matthews_correlation",),
        files=("tsvsWithoutLabels_AX.tsv",),
    ),
    "squad/v1.1": PublishedTask(
        kind="span", columns=_QUESTIONS, metrics=_SQUAD, files=("train-v1.1.json", "dev-v1.1.json")
    ),
    "squad/v2.0": PublishedTask(
        kind="span", columns=_QUESTIONS, metrics=_SQUAD, files=("train-v2.0.json", "dev-v2.0.json")
    ),
}
