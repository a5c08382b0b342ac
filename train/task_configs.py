"""The settings of a fine-tuning task: where its examples are, and how they are read."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from deberta_jax.errors import UserError

from .settings import Flat, Positive, Range, Settings, Share

Kind = Literal["classification", "multilabel", "regression", "ranking", "reward", "choice", "tokens", "span"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnsConfig(Settings):
    """Names of the columns of the data; the defaults depend on the kind of the task"""

    text_column: str | None = None
    """the text, the question of a span, the list of words of tokens, the prompt of a reward (default: text, question,
    words, prompt if there is one; in CoNLL files 0, the first)"""
    pair_column: str | None = None
    """the second text of a pair, the question of a choice, the context of a span (default: no second text; for a span
    context)"""
    choices_columns: tuple[str, ...] = ()
    """the choices: one column of lists, or one column per choice (default: choices); of a reward the columns of the
    better and the worse answer (default: chosen rejected)"""
    label_column: str | None = None
    """the label, the answers of a span, the labels of tokens or of multilabel (default: label, answers, labels; in
    CoNLL files -1, the last). Instead of it, multilabel reads one column of 0 and 1 for each class of --labels"""
    start_column: str | None = None
    """the position in the context, in characters, at which an answer starts, where answers are plain texts (default:
    answer_start; without such a column the first occurrence is used)"""
    header: bool = True
    """the first line of .tsv, .csv and .txt files names the columns; with --no-header the names are numbers from 0"""
    quoting: Literal["none", "csv"] | None = None
    """csv: fields in quotation marks lose them, and may contain separators and line ends; none: quotation marks are
    part of the text (default: csv for .csv files, none for .tsv and .txt)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDataConfig(Settings):
    """The examples to train and evaluate on"""

    train: str
    """a .tsv, .csv, .txt, .json, .jsonl or .parquet file or a folder of them, or a set of tensorflow_datasets as
    tfds:glue/sst2 or of datasets as hf:stanfordnlp/imdb. The whole form is hf:NAME[/CONFIG][:REVISION][@SPLIT], or
    hf:FOLDER. For tokens also a .conll, .conllu, .iob or .bio file. NAME:FILE reads a published file or folder of a
    set, such as glue/cola:train.tsv or race/high:RACE/train/high"""
    validation: str | None = None
    """examples to evaluate on, in the same forms (default: with a published set of tfds or hf its own validation
    split)"""
    test: str | None = None
    """examples to test the finished model on, in the same forms; they need no labels (default: no test)"""
    kind: Kind | None = None
    """kind of the task (default: that of a published set, else classification). multilabel: any number of classes for a
    text; ranking: one logit, trained on labels from 0 to 1, as of query and document; reward: one score, trained on
    pairs of a better and a worse answer"""
    labels: tuple[str, ...] = ()
    """names of the classes of classification, multilabel or tokens in the order of the model's outputs; a label outside
    the list is an error (default: the classes of the model if they include those of training, else those of the
    data)"""
    columns: Annotated[ColumnsConfig, Flat] = ColumnsConfig()
    data_dir: Path | None = None
    """folder in which tensorflow_datasets, or datasets, keeps prepared sets (default: that of the package)"""
    manual_dir: Path | None = None
    """folder of archives that were downloaded by hand, for a machine without internet access (default: downloads/manual
    of data_dir)"""
    max_length: Positive = 128
    """largest number of tokens per row; longer texts are cut. Batches are padded to 64, 128, 256, ... tokens"""
    group_by_length: bool = False
    """put texts of similar length into the same batch, for less padding"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train", "validation", "test"):
            if getattr(self, name) == "":  # it would be the current folder
                raise UserError(f"{name} is empty; give a file, a folder or the name of a published set")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanConfig(Settings):
    """Answers to questions: settings of the kind span"""

    max_question_length: Positive = 64
    """largest number of tokens of a question; the context gets the other tokens of max_length (use 384 for SQuAD)"""
    doc_stride: Positive = 128
    """tokens between the starts of two windows of a long context; less where windows would not overlap by
    max_answer_length"""
    max_answer_length: Positive = 30
    """largest number of tokens of a predicted answer"""
    n_best: Positive = 20
    """number of candidate answers per question in the predictions"""
    null_threshold: Annotated[float, Range()] = 0.0
    """margin by which the no-answer score must exceed the best span's to predict no answer; evaluation reports the
    best threshold"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultilabelConfig(Settings):
    """Several labels for a text: settings of the kind multilabel"""

    label_separator: str | None = None
    """what separates the labels in a text (default: | or ; or , if the labels have one of them; lists need none)"""
    threshold: Share | None = None
    """probability from which a label is predicted (default: the one with the best micro F1 on the validation split, or
    0.5 without that split)"""
    per_class_thresholds: bool = False
    """predict each label from a threshold of its own, the one with the best F1 of the class on the validation split"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_separator == "":
            raise UserError("label_separator is empty; give what separates the labels, such as '|'")
        if self.threshold is not None and self.per_class_thresholds:
            raise UserError("threshold and per_class_thresholds are given; leave one of them out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Settings):
    """The loss of classification, multilabel and tokens"""

    class_weights: tuple[str, ...] = ()
    """weight of each class in the loss: 'balanced', which makes all classes count equally; a number for each class, in
    their order; or LABEL=WEIGHT (1 for a class that is not named). Of multilabel: the weight of the examples that have
    the label (default: all 1)"""
    focal_gamma: Annotated[float, Range(at_least=0, at_most=100)] = 0.0
    """exponent of the focal loss, which gives examples less weight the better the model does on them (0 disables it;
    published: 2)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewTokensConfig(Settings):
    """Tokens to add to the vocabulary, such as markers of entities. Their embeddings start from the mean of the pieces
    that the tokenizer cut them into before"""

    add_tokens: tuple[str, ...] = ()
    """strings that become single tokens wherever they occur (default: none)"""
    add_tokens_file: Path | None = None
    """file of such strings, one on each line (default: no file)"""
