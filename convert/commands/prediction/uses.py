"""The uses of a model: which one its heads are for, and its settings from the options of the command line."""

import dataclasses
from typing import Any, Literal

import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.predict.answers import AnswerQuestions
from deberta_jax.predict.choices import ChooseAnswers
from deberta_jax.predict.classification import ClassifyTexts, ScoreTexts
from deberta_jax.predict.embeddings import EmbedTexts
from deberta_jax.predict.entities import FindEntities
from deberta_jax.predict.fill_mask import FillMask
from deberta_jax.predict.loaded_model import LoadedModel
from deberta_jax.predict.pipeline import Pipeline
from deberta_jax.predict.ranking import RankDocuments
from deberta_jax.predict.replaced_tokens import DetectReplacedTokens
from deberta_jax.predict.zero_shot import ClassifyZeroShot
from deberta_jax.terminal import list_names

from .columns import Columns, Task


@dataclasses.dataclass(frozen=True)
class UseOptions:
    """What to do with the texts; each option belongs to some tasks"""

    max_length: int | None = None
    """largest number of tokens of a row; longer texts are read in windows (default: 512, for answers 384, or as many
    as the model has positions for)"""
    windows: Literal["mean", "max", "truncate", "error"] | None = None
    """classify, score, zero-shot, embed, rank: combine the windows of a long text by their mean or maximum, cut the
    text, or refuse it (default: mean; for rank max)"""
    stride: int | None = None
    """tokens between the starts of two windows (default: half a window; for answers 128)"""
    top_k: int | None = None
    """how many classes, documents, answers or tokens for a mask are given (default: all; 1 answer; 5 tokens)"""
    threshold: float | None = None
    """smallest probability of a class that applies, in multi-label classification (default: for a run the thresholds in
    its results.json, else 0.5)"""
    raw: bool = False
    """score, rank: give the logit in place of its sigmoid"""
    labels: tuple[str, ...] = ()
    """zero-shot: the labels to choose from (default: none, the model's own classes are predicted)"""
    template: str | None = None
    """zero-shot: the hypothesis, with {} in place of a label (default: "This example is {}.")"""
    multi_label: bool = False
    """zero-shot: judge each label by itself, as several may apply"""
    aggregation: Literal["none", "simple", "first", "average", "max"] | None = None
    """entities: how the tokens of a word agree on its label, as in transformers' pipeline (default: first)"""
    no_answer: bool = False
    """answer: a question may have no answer in its context, as in SQuAD 2.0"""
    null_threshold: float | None = None
    """answer: margin by which the no-answer score must exceed the best span's to give no answer (default: 0)"""
    max_answer_length: int | None = None
    """answer: largest number of tokens of an answer (default: 30)"""
    max_question_length: int | None = None
    """answer: largest number of tokens of a question; a longer one is cut (default: 64)"""
    pooling: Literal["mean", "cls", "max"] | None = None
    """embed: how the vectors of the tokens become one (default: mean)"""
    normalize: bool = True
    """embed: scale each vector to length 1"""


_PIPELINES: dict[Task, Any] = {
    "classify": ClassifyTexts,
    "score": ScoreTexts,
    "zero-shot": ClassifyZeroShot,
    "entities": FindEntities,
    "answer": AnswerQuestions,
    "choose": ChooseAnswers,
    "rank": RankDocuments,
    "embed": EmbedTexts,
    "fill-mask": FillMask,
    "detect": DetectReplacedTokens,
}
_WINDOWS = {"max_length": "max_length", "windows": "combine", "stride": "stride"}  # option -> field of `Windows`
_PRETRAINING: dict[str, Task] = {"mlm_head": "fill-mask", "rtd_head": "detect"}  # head -> task


def choose_task(model: LoadedModel, options: UseOptions, columns: Columns) -> Task:
    """Returns what a model is for, by its heads and by options that only one task has.

    Raises:
      UserError: It has heads for several tasks.
    """
    by_option: tuple[tuple[object, Task], ...] = (
        (options.labels, "zero-shot"),
        (columns.choices_columns, "choose"),
        (columns.query, "rank"),
        (columns.documents_column, "rank"),
        (columns.question, "answer"),
    )
    for given, task in by_option:
        if given not in (None, ()):
            return task
    heads = model.params.keys() - {"deberta"}
    found: list[Task] = []
    if "classifier" in heads:
        found.append(_task_of_classifier(model))
    if "span_classifier" in heads:
        found.append("answer")
    if not found:
        found.extend(task for head, task in _PRETRAINING.items() if head in heads)
    if len(found) > 1:
        raise UserError(f"{model.source} has {list_names(sorted(heads))}: choose --task {' or '.join(found)}")
    return found[0] if found else "embed"


def _task_of_classifier(model: LoadedModel) -> Task:
    if "pooler" not in model.params:
        return "entities"
    one = np.shape(model.params["classifier"]["bias"])[-1] == 1 or model.config.problem_type == "regression"
    return "score" if one else "classify"


def make_pipeline(
    task: Task, options: UseOptions, model: LoadedModel, *, one_query: bool = False
) -> Pipeline[Any, Any]:
    """Returns the pipeline of a task with the options that the user set.

    Args:
      task: The task.
      options: What the user set.
      model: The model.
      one_query: Whether all rows are documents of one query, whose scores `rank` orders at the end.

    Raises:
      UserError: An option has no effect on the task or is missing, a value is out of range, or the model cannot do the
        task.
    """
    if task == "zero-shot" and not options.labels:
        raise UserError("the task zero-shot needs --labels, the classes to choose from, as in --labels sun rain")
    pipeline_class = _PIPELINES[task]
    fields = {field.name for field in dataclasses.fields(pipeline_class)}
    given = _given(options)
    values: dict[str, Any] = {}
    if "windows" in fields:
        own = {field: given.pop(name) for name, field in _WINDOWS.items() if name in given}
        values["windows"] = dataclasses.replace(pipeline_class.windows, **own)
    if "vocab_size" in fields:
        values["vocab_size"] = model.tokenizer.vocab_size
    values |= {name: given.pop(name) for name in fields & given.keys()}
    if given:
        raise UserError(f"{_option(next(iter(given)))} has no effect on the task {task}; {_own_options(fields)}")
    pipeline = pipeline_class(**values)
    if one_query:
        pipeline = pipeline.scores
    model.parts(pipeline.heads)
    pipeline.check(model)
    return pipeline


def _given(options: UseOptions) -> dict[str, Any]:
    default = UseOptions()
    return {name: value for name, value in vars(options).items() if value != getattr(default, name)}


def _own_options(fields: set[str]) -> str:
    names = fields & vars(UseOptions()).keys()
    if "windows" in fields:
        names |= _WINDOWS.keys()
    return f"its options are {', '.join(map(_option, sorted(names)))}" if names else "it has no options"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
