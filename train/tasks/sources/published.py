"""The published sets by their names in tensorflow_datasets: kind, columns, classes in official order, metrics, splits.

`tfds:NAME` reads a set from tensorflow_datasets, and `NAME:FILE` reads a file in the form that its authors published:

    --train tfds:super_glue/copa
    --train glue/cola:CoLA/train.tsv --validation glue/cola:CoLA/dev.tsv
    --train super_glue/copa:COPA/train.jsonl --validation super_glue/copa:COPA/val.jsonl
    --train race/high:RACE/train/high       # the folder, or its files in one
    --train squad/v2.0:train-v2.0.json --validation squad/v2.0:dev-v2.0.json
    --train conll2003:train.txt --validation conll2003:valid.txt --test conll2003:test.txt

XNLI has no training split. The name of one of its languages is `xnli` followed by a slash and the language:

    --train tfds:glue/mnli --validation tfds:xnli/de --test tfds:xnli/de

SWAG is not in tensorflow_datasets. Its train.csv and val.csv are read as tables:

    --kind choice --train train.csv --validation val.csv --text-column sent1 --pair-column sent2 \\
    --choices-columns ending0 ending1 ending2 ending3
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...task_configs import Kind
from . import published_formats as formats

# The name of the column for each of text, pair, choices, label, group and answer.
Columns = Mapping[str, str | tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedTask:
    """A published set of examples.

    Attributes:
      kind: the kind of the task.
      columns: the columns of the rows that `records` and `file_records` yield.
      label_names: the classes in the order of the official DeBERTa tasks (`apps/tasks/glue_tasks.py`), which is that of
        the published `-mnli` checkpoints. tensorflow_datasets numbers MNLI, AX, RTE and QNLI differently.
      metrics: names of `metrics.compute_metrics` or `grouped_metrics`; the first one is the main metric.
      files: the files to download by hand for a machine without internet access.
      validation: the validation splits; the first one is the main split.
      test: the test split, whose labels may be hidden.
      unchecked_url: the URL of the first file, if tensorflow_datasets has no checksum of it and therefore would not
        look for a file that was downloaded by hand.
      builders: names in tensorflow_datasets, whose records are joined (default: the name in the table).
      records: converts a record of tensorflow_datasets to rows.
      file_records: converts a row of a published file to rows (default: the files are not read by the set's name).
      file_columns: the columns of published files without a header, one tuple for each form.
      file_header: names of which the header of a published file has at least one, where some have no header.
      undecided: the label of examples on which the annotators did not agree, which are left out.
      renamed: the class name here for each class name in the source that differs.
    """

    kind: Kind = "classification"
    columns: Columns
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    files: tuple[str, ...]
    validation: tuple[str, ...] = ("validation",)
    test: str = "test"
    unchecked_url: str | None = None
    builders: tuple[str, ...] = ()
    records: formats.Convert = formats.unchanged
    file_records: formats.Convert | None = None
    file_columns: tuple[tuple[str, ...], ...] = ()
    file_header: frozenset[str] = frozenset()
    undecided: str | None = None
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _texts(text: str, pair: str | None = None) -> Columns:
    return {"text": text, "label": "label"} | ({"pair": pair} if pair else {})


_NLI = ("contradiction", "neutral", "entailment")
_TWO_WAY_NLI = ("not_entailment", "entailment")
# Copies of GLUE from Hugging Face have the indices of the classes there, which differ from those of the official tasks.
_NLI_INDICES = {"0": "entailment", "1": "neutral", "2": "contradiction"}
_TWO_WAY_INDICES = {"0": "entailment", "1": "not_entailment"}
_MRPC_FILES = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "data_mrpc_dev_ids.tsv")
_TRUTH: dict[str, Any] = {"label_names": ("false", "true"), "renamed": {"False": "false", "True": "true"}}
_QUESTIONS = {"text": "question", "pair": "context", "label": "answers"}
_SENTENCES, _PREMISE = _texts("sentence1", "sentence2"), _texts("premise", "hypothesis")
_STSB_COLUMNS = ("genre", "filename", "year", "old_index", "score", "sentence1", "sentence2", "...")
_pair_of_nli = formats.convert_pairs(
    premise=("premise", "sentence1", "Premise"), hypothesis=("hypothesis", "sentence2", "Hypothesis")
)
_pair_of_sentences = formats.convert_pairs(sentence1=("sentence1", "#1 String"), sentence2=("sentence2", "#2 String"))
_one_sentence = formats.convert_pairs(sentence=("sentence", "text"))
# What the files of MNLI, SNLI and AX have in common; annotators did not agree on some pairs of the first two.
_NLI_FILES: dict[str, Any] = {
    "columns": _PREMISE,
    "label_names": _NLI,
    "file_records": _pair_of_nli,
    "renamed": _NLI_INDICES,
}
_UNDECIDED_NLI: dict[str, Any] = {**_NLI_FILES, "undecided": "-"}


def _named(*names: str) -> dict[str, str]:
    """Returns the class name of each index, as text."""
    return {str(index): name for index, name in enumerate(names)}


# Short names of files. tensorflow_datasets has the sets only with their versions.
SHORT_NAMES = {"squad": "squad/v1.1", "squad_v2": "squad/v2.0"}

PUBLISHED: Mapping[str, PublishedTask] = {
    "glue/cola": PublishedTask(
        columns=_texts("sentence"),
        label_names=("unacceptable", "acceptable"),
        metrics=("matthews_correlation",),
        files=("CoLA.zip",),
        file_records=_one_sentence,
        file_columns=(("source", "label", "star", "sentence"),),
        file_header=frozenset({"sentence", "text"}),
        renamed=_named("unacceptable", "acceptable"),
    ),
    "glue/sst2": PublishedTask(
        columns=_texts("sentence"),
        label_names=("negative", "positive"),
        files=("SST-2.zip",),
        file_records=_one_sentence,
        renamed=_named("negative", "positive"),
    ),
    "glue/mrpc": PublishedTask(
        columns=_SENTENCES,
        label_names=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        files=_MRPC_FILES,
        file_records=_pair_of_sentences,
        renamed=_named("not_equivalent", "equivalent"),
    ),
    "glue/qqp": PublishedTask(
        columns=_texts("question1", "question2"),
        label_names=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        files=("QQP.zip",),
        file_records=formats.convert_pairs(question1=("question1",), question2=("question2",)),
        renamed=_named("not_duplicate", "duplicate"),
    ),
    "glue/stsb": PublishedTask(
        kind="regression",
        columns=_SENTENCES,
        metrics=("pearson", "spearman"),
        files=("STS-B.zip",),
        file_records=_pair_of_sentences,
        file_columns=(_STSB_COLUMNS,),
        file_header=frozenset({"sentence1"}),
    ),
    "glue/mnli": PublishedTask(
        files=("MNLI.zip",),
        validation=("validation_matched", "validation_mismatched"),
        test="test_matched",
        **_UNDECIDED_NLI,
    ),
    **{f"glue/mnli_{part}": PublishedTask(files=("MNLI.zip",), **_UNDECIDED_NLI) for part in ("matched", "mismatched")},
    "glue/qnli": PublishedTask(
        columns=_texts("question", "sentence"),
        label_names=_TWO_WAY_NLI,
        files=("QNLIv2.zip",),
        file_records=formats.convert_pairs(question=("question",), sentence=("sentence",)),
        renamed=_TWO_WAY_INDICES,
    ),
    "glue/rte": PublishedTask(
        columns=_SENTENCES,
        label_names=_TWO_WAY_NLI,
        files=("RTE.zip",),
        file_records=_pair_of_sentences,
        renamed=_TWO_WAY_INDICES,
    ),
    "glue/wnli": PublishedTask(
        columns=_SENTENCES,
        label_names=_TWO_WAY_NLI,
        files=("WNLI.zip",),
        file_records=_pair_of_sentences,
        renamed=_named(*_TWO_WAY_NLI),
    ),
    "glue/ax": PublishedTask(metrics=("matthews_correlation",), files=("tsvsWithoutLabels_AX.tsv",), **_NLI_FILES),
    "snli": PublishedTask(files=("snli_1.0.zip",), **_UNDECIDED_NLI),
    "super_glue/boolq": PublishedTask(
        columns=_texts("passage", "question"), files=("BoolQ.zip",), file_records=formats.unchanged, **_TRUTH
    ),
    "super_glue/cb": PublishedTask(
        columns=_PREMISE,
        label_names=_NLI,
        metrics=("accuracy", "macro_f1"),
        files=("CB.zip",),
        file_records=formats.unchanged,
    ),
    "super_glue/copa": PublishedTask(
        kind="choice",
        columns={"text": "premise", "pair": "joint", "choices": ("choices",), "label": "label"},
        files=("COPA.zip",),
        records=formats.convert_copa,
        file_records=formats.convert_copa,
    ),
    "super_glue/multirc": PublishedTask(
        columns={**_texts("passage", "answer"), "group": "group"},
        metrics=("f1", "exact_match"),  # F1a counts answers, exact match counts whole questions
        files=("MultiRC.zip",),
        records=formats.convert_multirc,
        file_records=formats.convert_multirc_file,
        **_TRUTH,
    ),
    "super_glue/record": PublishedTask(
        columns={**_texts("passage", "query"), "group": "group", "answer": "answer"},
        label_names=("false", "true"),
        metrics=("answer_f1", "answer_exact_match"),
        files=("ReCoRD.zip",),
        records=formats.convert_record,
        file_records=formats.convert_record_file,
    ),
    "super_glue/rte": PublishedTask(
        columns=_PREMISE, label_names=_TWO_WAY_NLI, files=("RTE.zip",), file_records=formats.unchanged
    ),
    "super_glue/wic": PublishedTask(
        columns=_SENTENCES, files=("WiC.zip",), records=formats.convert_wic, file_records=formats.convert_wic, **_TRUTH
    ),
    **{
        f"anli/{number}": PublishedTask(
            columns=_texts("context", "hypothesis"),
            label_names=_NLI,
            files=("anli_v0.1.zip",),
            file_records=formats.unchanged,
            renamed={"e": "entailment", "n": "neutral", "c": "contradiction"},
        )
        for number in ("r1", "r2", "r3")
    },
    **{
        f"xnli/{language}": PublishedTask(
            columns=_PREMISE,
            label_names=_NLI,
            files=("XNLI-1.0.zip",),
            builders=("xnli",),
            records=formats.convert_xnli(language),
            file_records=formats.convert_xnli_file(language),
            renamed={"contradictory": "contradiction"},  # in the files of translated training pairs
        )
        for language in "ar bg de el en es fr hi ru sw th tr ur vi zh".split()
    },
    **{
        name: PublishedTask(
            kind="choice",
            columns={"text": "article", "pair": "questions", "choices": ("options",), "label": "answers"},
            files=("RACE.tar.gz",),
            validation=("dev",),
            builders=builders,
            file_records=formats.unchanged,
        )
        for name, builders in {
            "race": ("race/high", "race/middle"),
            "race/high": ("race/high",),
            "race/middle": ("race/middle",),
        }.items()
    },
    "conll2003": PublishedTask(
        kind="tokens",
        columns={"text": "tokens", "label": "ner"},
        label_names=("O", *(f"{place}-{kind}" for kind in ("MISC", "PER", "ORG", "LOC") for place in "BI")),
        metrics=("f1", "precision", "recall", "accuracy"),
        files=("conll2003.zip",),
        unchecked_url="https://data.deepai.org/conll2003.zip",
        validation=("dev",),
        file_records=formats.unchanged,
    ),
    **{
        f"squad/{version}": PublishedTask(
            kind="span",
            columns=_QUESTIONS,
            metrics=("f1", "exact_match"),
            files=(f"train-{version}.json", f"dev-{version}.json"),
            file_records=formats.unchanged,
        )
        for version in ("v1.1", "v2.0")
    },
}
