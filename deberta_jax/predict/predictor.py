"""`Predictor`: a model that is put to use, from text to results."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import numpy as np
from jaxtyping import Float

from ..errors import UserError
from ..int8 import int8_parameters
from ..tokenizers.batch import as_list, check_text, texts_and_pairs
from .answers import Answer, AnswerQuestions, QuestionAndContext
from .choices import Choice, ChooseAnswers, PromptAndChoices
from .classification import Classification, ClassifyTexts, ScoreTexts
from .embeddings import EmbedTexts, Pooling
from .entities import Entity, FindEntities
from .entity_groups import Aggregation
from .fill_mask import FillMask, TokenCandidate
from .open_model import open_model
from .pipeline import Pipeline, TextPair
from .ranking import RankDocuments, RankedDocument, ranked
from .replaced_tokens import DetectReplacedTokens, TokenScore
from .runner import Runner, check_types
from .windows import Combination, Windows
from .zero_shot import DEFAULT_TEMPLATE, ClassifyZeroShot

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor(Runner):
    """A model and its uses: each takes a list of texts; `run` takes a pipeline and any number of items.

    Example:
      Predictor.load("runs/sst2").classify(["a gripping film"])
    """

    @classmethod
    def load(
        cls,
        source: str,
        *,
        filename: str | None = None,
        tokenizer: Any = None,
        dtype: str = "float32",
        batch_size: int | None = None,
        weights: str = "float32",
    ) -> Self:
        """Opens a model.

        Args:
          source: A folder of this library or of PyTorch files, or a hub name such as "microsoft/deberta-v3-base";
            NAME@REVISION names a branch, tag or commit. "deberta-v3-tiny" and "deberta-v3-tiny/generator" are part of
            the package.
          filename: Name of the PyTorch weight file, if it is not one of the usual names.
          tokenizer: A `Tokenizer`, or a folder or hub name that has one (default: that of the model).
          dtype: As for `Runner`.
          batch_size: As for `Runner`.
          weights: "int8" keeps the encoder's kernels and the word embeddings as integers of 8 bits, which takes about a
            quarter of the memory and needs the package qwix; "float32" keeps what the model has.

        Raises:
          Exception: As `open_model`, or as the class.
        """
        check_types(dtype, weights)
        model = open_model(source, filename=filename, tokenizer=tokenizer)
        params = int8_parameters(model.config, model.params, dtype=dtype) if weights == "int8" else model.params
        return cls(
            model.source,
            model.config,
            params,
            model.tokenizer,
            dtype,
            batch_size,
            weights,
            thresholds=model.thresholds,
        )

    def _results(self, pipeline: Pipeline[Item, Result], items: Sequence[Item]) -> list[Result]:
        """Returns the results of a list. An error names the item if there are several."""

        def fail(index: int, error: UserError) -> None:
            raise error if len(items) == 1 else type(error)(f"text {index}: {error}")

        return list(self.run(pipeline, items, skip=fail))

    # ----------------------------------------------------------------------------------------------- the uses

    def classify(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        pairs: Sequence[str] | None = None,
        *,
        top_k: int | None = None,
        max_length: int | None = None,
        windows: Combination = "mean",
        stride: int | None = None,
    ) -> list[Classification]:
        """Returns the class and the probabilities of each text or pair; see `ClassifyTexts`.

        Args:
          texts: The texts, or pairs of texts.
          pairs: The second text of each pair.
          top_k: Number of classes in the results (default: all).
          max_length: Largest number of tokens of a row; a longer text is read in windows. See `Windows`.
          windows: "mean" or "max" of the probabilities of the windows, "truncate" or "error".
          stride: Number of tokens between the starts of two windows (default: half of a window).

        Raises:
          UserError: Something is not text, the model has no such head, or a value is out of range.
        """
        pipeline = ClassifyTexts(Windows(max_length, windows, stride), top_k)
        return self._results(pipeline, _pairs(texts, pairs))

    def score(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        pairs: Sequence[str] | None = None,
        *,
        raw: bool | None = None,
        max_length: int | None = None,
        windows: Combination = "mean",
        stride: int | None = None,
    ) -> list[float]:
        """Returns the score that a model of one logit gives to each text or pair; see `ScoreTexts`.

        Args:
          texts: The texts, or pairs of texts.
          pairs: The second text of each pair.
          raw: Return the logits (default: for regression; otherwise their sigmoid).
          max_length: As for `classify`.
          windows: As for `classify`.
          stride: As for `classify`.

        Raises:
          UserError: As `classify`.
        """
        pipeline = ScoreTexts(Windows(max_length, windows, stride), raw)
        return self._results(pipeline, _pairs(texts, pairs))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        raw: bool | None = None,
        max_length: int | None = None,
        windows: Combination = "max",
        stride: int | None = None,
    ) -> list[RankedDocument]:
        """Returns documents in the order of their relevance to a query, scored with a reranker; see `ScoreTexts`.

        Args:
          query: The query, the first text of every pair.
          documents: The documents.
          top_k: Number of documents in the result (default: all).
          raw: As for `score`.
          max_length: As for `classify`.
          windows: As for `classify`; "max", the default, scores a long document by its best window.
          stride: As for `classify`.

        Raises:
          UserError: As `classify`.
        """
        pipeline = RankDocuments(Windows(max_length, windows, stride), raw, top_k)
        texts = _texts(documents, "documents")
        pairs = [TextPair(check_text(query, "the query"), text) for text in texts]
        return ranked(texts, self._results(pipeline.scores, pairs), top_k=top_k)

    def zero_shot(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        template: str = DEFAULT_TEMPLATE,
        multi_label: bool = False,
        max_length: int | None = None,
        windows: Combination = "mean",
        stride: int | None = None,
    ) -> list[Classification]:
        """Returns which of the labels each text has, by a model of natural language inference; see `ClassifyZeroShot`.

        Args:
          texts: The texts.
          labels: The classes.
          template: The hypothesis, with {} in place of a class.
          multi_label: Judge each class by itself, so that several may apply.
          max_length: As for `classify`.
          windows: As for `classify`.
          stride: As for `classify`.

        Raises:
          UserError: As `classify`; or the model has no class entailment, or there are no labels.
        """
        names = tuple(_texts(labels, "labels"))
        pipeline = ClassifyZeroShot(names, template, multi_label, Windows(max_length, windows, stride))
        return self._results(pipeline, _texts(texts))

    def embed(
        self,
        texts: Sequence[str],
        *,
        pooling: Pooling = "mean",
        normalize: bool = True,
        max_length: int | None = None,
        windows: Combination = "mean",
        stride: int | None = None,
    ) -> Float[np.ndarray, "E D"]:
        """Returns the vector of each text, float32; see `EmbedTexts`.

        Args:
          texts: The texts.
          pooling: "mean", "cls" or "max".
          normalize: Divide each vector by its length.
          max_length: As for `classify`.
          windows: As for `classify`.
          stride: As for `classify`.

        Raises:
          UserError: Something is not text, or a value is out of range.
        """
        pipeline = EmbedTexts(pooling, normalize, Windows(max_length, windows, stride))
        vectors = [result.vector for result in self._results(pipeline, _texts(texts))]
        return np.array(vectors, np.float32).reshape(-1, self.config.hidden_size)

    def fill_mask(self, texts: Sequence[str], *, top_k: int = 5) -> list[list[list[TokenCandidate]]]:
        """Returns the `top_k` most probable tokens for each [MASK] of each text; see `FillMask`.

        Raises:
          UserError: Something is not text or has no [MASK], the model has no masked LM head, or `top_k` is too large.
        """
        return self._results(FillMask(self.tokenizer.vocab_size, top_k), _texts(texts))

    def replaced_tokens(self, texts: Sequence[str]) -> list[list[TokenScore]]:
        """Returns for each token of each text how likely it is that it was replaced; see `DetectReplacedTokens`.

        Raises:
          UserError: Something is not text or has no tokens, or the model has no replaced token head.
        """
        return self._results(DetectReplacedTokens(), _texts(texts))

    # ------------------------------------------------------------------------- the uses whose results have a structure

    def entities(
        self,
        texts_or_words: Sequence[str | Sequence[str]],
        *,
        aggregation: Aggregation = "first",
        max_length: int | None = None,
        stride: int | None = None,
        ignore: Sequence[str] = ("O",),
    ) -> list[list[Entity]]:
        """Returns the entities of each text, or of each list of words; see `FindEntities` for the arguments.

        Raises:
          UserError: An item is neither a text nor words, the model does not label tokens, or a value is out of range.
        """
        items = [tuple(item) if isinstance(item, list) else item for item in as_list(texts_or_words, "texts_or_words")]
        return self._results(FindEntities(aggregation, max_length, stride, tuple(ignore)), items)

    def answer(self, questions: Sequence[str], contexts: str | Sequence[str], **settings: Any) -> list[Answer]:
        """Returns the answer to each question; see `AnswerQuestions` for the settings, such as `no_answer=True`.

        Args:
          questions: The questions.
          contexts: A context for each question, or one for all.
          **settings: Fields of `AnswerQuestions`.

        Raises:
          UserError: Something is not text or blank, the model does not find answers, or a value is out of range.
        """
        asked = as_list(questions, "questions")
        texts = [contexts] * len(asked) if isinstance(contexts, str) else as_list(contexts, "contexts")
        items = [QuestionAndContext(*item) for item in _in_pairs(asked, texts, "questions", "contexts")]
        return self._results(AnswerQuestions(**settings), items)

    def choose(
        self,
        prompts: Sequence[str],
        choices: Sequence[Sequence[str]],
        questions: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
    ) -> list[Choice]:
        """Returns the best of several choices for each prompt; see `ChooseAnswers`.

        Args:
          prompts: The prompts, or texts that the questions are about.
          choices: The choices of each prompt.
          questions: A question for each prompt, if the model was trained with questions.
          max_length: As for `classify`; a longer prompt is cut, and `Choice.notes` says so.

        Raises:
          UserError: Something is not text or blank, there are fewer than two choices, or the model has classes.
        """
        pairs = _in_pairs(as_list(prompts, "prompts"), as_list(choices, "choices"), "prompts", "choices")
        asked = [None] * len(pairs) if questions is None else as_list(questions, "questions")
        items = [
            PromptAndChoices(prompt, options, question)
            for (prompt, options), question in _in_pairs(pairs, asked, "prompts", "questions")
        ]
        return self._results(ChooseAnswers(max_length), items)


def _texts(texts: Sequence[str], name: str = "texts") -> list[str]:
    return [check_text(text, f"{name.removesuffix('s')} {i}") for i, text in enumerate(as_list(texts, name))]


def _pairs(texts: Sequence[Any], pairs: Sequence[str] | None) -> list[TextPair]:
    return [TextPair(*pair) for pair in texts_and_pairs(texts, pairs)]


def _in_pairs(first: list[Any], second: list[Any], name: str, second_name: str) -> list[tuple[Any, Any]]:
    if len(first) != len(second):
        raise UserError(f"there are {len(first)} {name} and {len(second)} {second_name}; give one for each")
    return list(zip(first, second, strict=True))
