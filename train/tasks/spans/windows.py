"""Tokenizes questions and contexts into windows: `[CLS] question [SEP] part of the context [SEP]`.

RoBERTa has two separators in the middle. XLNet has `part of the context [SEP] question [SEP] [CLS]`: transformers, too,
puts the context first where padding is on the left. A context that is too long for one row is read in overlapping
windows, each a row. In a window that does not contain the whole answer the answer is [CLS], as if there were none.
Source: BERT's run_squad.py (`doc_spans`). Deliberate difference: windows overlap by at least as many tokens as an
answer may have, so that every answer is whole in one of them.
"""

import dataclasses
import functools
from array import array
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, Int32

from deberta_jax.predict.span_search import SpanWindows
from deberta_jax.predict.tokenized_text import TokenizedText, tokenize
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ..base import ExampleBatch
from ..packed import text_digest
from ..ragged import Ragged, RaggedBuilder, as_numpy
from .questions import Answer, SpanQuestion

_KEPT = 8  # contexts whose characters are in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """The E windows of the Q questions of a split. Implements `base.Encoded`, whose examples are windows.

    Attributes:
      tokenizer: joins the ids of a question and a part of a context, and finds the characters of tokens.
      asked: the questions.
      questions: token ids of each question.
      contexts: token ids of the different contexts.
      context: index in `contexts` of the context of each question.
      owner: index of the question of each window, ascending.
      first: index in its context of the first token in each window.
      lengths: number of tokens of each window.
      ends: positions in the row of the first and the last token of the answer, those of [CLS] if the window does not
        contain it; `None` if the answers are not published.
      notes: messages to the user.
    """

    tokenizer: Tokenizer
    asked: Sequence[SpanQuestion]
    questions: Ragged
    contexts: Ragged
    context: Int32[np.ndarray, "Q"]
    owner: Int32[np.ndarray, "E"]
    first: Int32[np.ndarray, "E"]
    lengths: Int32[np.ndarray, "E"]
    ends: Int32[np.ndarray, "E 2"] | None
    notes: tuple[str, ...]

    @property
    def labeled(self) -> bool:
        return self.ends is not None

    def context_start(self, index: int) -> int:
        """Returns the position in the row of a window at which the context begins."""
        if self.tokenizer.cls_last:
            return 0
        return len(self.questions[self.owner[index]]) + 1 + self.tokenizer.pair_separators

    def cls_position(self, index: int) -> int:
        """Returns the position of [CLS] in the row of a window."""
        return int(self.lengths[index]) - 1 if self.tokenizer.cls_last else 0

    def characters(self, index: int, first: int, last: int) -> tuple[int, int]:
        """Returns the start and the end in the context of the characters that tokens of a window cover.

        The context is tokenized again, because the characters of all tokens would need more memory than the tokens.
        This happens once for the successive windows of a context.

        Args:
          index: index of the window.
          first: position in the row of the first token, within the context.
          last: position in the row of the last token, within the context.
        """
        shift = self.first[index] - self.context_start(index)
        offsets = self._tokenized(int(self.owner[index])).offsets
        return int(offsets[first + shift, 0]), int(offsets[last + shift, 1])

    @functools.cached_property
    def _tokenized(self) -> Callable[[int], TokenizedText]:
        tokenized = _tokenizing(self.tokenizer)
        return functools.lru_cache(maxsize=1)(lambda question: tokenized(self.asked[question].context))

    def batch(self, indices: Int[np.ndarray, "B"], *, length: int) -> ExampleBatch:
        """Returns int32 arrays for the windows at `indices`.

        These are `input_ids`, `attention_mask`, `token_type_ids` and `choosable` [B, length], `cls_position` [B], and
        `ends` [B, 2] if the answers are known. `choosable` is 1 for [CLS] and for the tokens of the context.
        """
        shape = (len(indices), length)
        input_ids, types, choosable = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        cls_position = np.array([self.cls_position(index) for index in indices.tolist()], np.int32)
        special = 2 + self.tokenizer.pair_separators
        for row, index in enumerate(indices.tolist()):
            owner = int(self.owner[index])
            question, context = self.questions[owner], self.contexts[self.context[owner]]
            begin, used = self.context_start(index), int(self.lengths[index])
            size = used - special - len(question)
            window = context[self.first[index] : self.first[index] + size]
            texts = (window, question) if self.tokenizer.cls_last else (question, window)
            input_ids[row, :used], types[row, :used] = self.tokenizer.with_special_tokens(*texts)
            choosable[row, cls_position[row]] = choosable[row, begin : begin + size] = 1
        is_token = np.arange(length) < self.lengths[indices, None]
        batch = {
            "input_ids": input_ids,
            "attention_mask": is_token.astype(np.int32),
            "token_type_ids": types,
            "choosable": choosable,
            "cls_position": cls_position,
        }
        return batch if self.ends is None else batch | {"ends": self.ends[indices]}


@dataclasses.dataclass
class _Counts:
    """What the notes of an encoding count."""

    cut_questions: int = 0
    several_answers: int = 0
    lost_answers: int = 0
    long_answers: int = 0

    def notes(self, max_question_length: int, max_answer_length: int, *, training: bool) -> tuple[str, ...]:
        several = self.several_answers if training else 0
        counts = {
            f"{self.cut_questions} questions cut to {max_question_length} tokens": self.cut_questions,
            f"{several} questions have several answers, of which the first is trained on": several,
            f"{self.lost_answers} answers are in no window as a whole": self.lost_answers,
            f"{self.long_answers} answers have more than {max_answer_length} tokens and cannot be predicted": (
                self.long_answers
            ),
        }
        return tuple(note for note, count in counts.items() if count)


def encode_span_questions(
    questions: Sequence[SpanQuestion],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    max_question_length: int,
    doc_stride: int,
    max_answer_length: int,
    training: bool = False,
    notes: Sequence[str] = (),
) -> Windows:
    """Returns the windows of questions, of at most `max_length` tokens each.

    If a question has several answers, the first one is the label. The label of an answer that begins or ends inside a
    token includes the whole token.

    Args:
      questions: the questions of a split.
      tokenizer: the tokenizer of the model.
      max_length: largest number of tokens per window.
      max_question_length: largest number of tokens of a question; longer ones are cut.
      doc_stride: tokens between the starts of two windows; less if they would not overlap by `max_answer_length`.
      max_answer_length: largest number of tokens of a predicted answer.
      training: whether the notes count the questions with several answers.
      notes: notes about reading the questions, which come first.

    Raises:
      UserError: if `max_length` leaves too little room for a context.
    """
    sizes = SpanWindows(max_length, max_question_length, doc_stride, max_answer_length)
    separators = tokenizer.pair_separators
    sizes.check(separators)
    counts = _Counts()
    contexts = _Contexts(tokenizer)
    question_ids, context_of = RaggedBuilder(), array("i")
    rows = array("i")  # owner, first, length and both ends of each window
    labeled = True
    for owner, question in enumerate(questions):
        ids = tokenizer.encode(question.question)
        counts.cut_questions += len(ids) > max_question_length
        question_ids.append(ids[:max_question_length])
        index, context = contexts.add(question.context)
        context_of.append(index)
        labeled = labeled and question.answers is not None
        answer = _answer_tokens(context, question.answers or (), max_answer_length, counts)
        other = sizes.beside(len(ids), separators)
        context_start = 0 if tokenizer.cls_last else other - 1
        in_a_window = False
        for first, size in sizes.cut(len(context.ids), other):
            ends = _ends_in_window(answer, first, size, context_start)
            in_a_window = in_a_window or ends is not None
            cls_position = size + other - 1 if tokenizer.cls_last else 0
            rows.extend((owner, first, size + other, *(ends or (cls_position, cls_position))))
        counts.lost_answers += bool(question.answers) and not in_a_window
    table = as_numpy(rows).reshape(-1, 5)
    window_note = (f"windows over {len(questions)} questions",) if len(table) > len(questions) else ()
    count_notes = counts.notes(max_question_length, max_answer_length, training=training)
    return Windows(
        tokenizer=tokenizer,
        asked=questions,
        questions=question_ids.build(),
        contexts=contexts.ids.build(),
        context=as_numpy(context_of),
        owner=table[:, 0],
        first=table[:, 1],
        lengths=table[:, 2],
        ends=table[:, 3:] if labeled else None,
        notes=(*notes, *window_note, *count_notes),
    )


class _Contexts:
    """The different contexts so far, most of which have several successive questions.

    Attributes:
      ids: the token ids of each.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ids = RaggedBuilder()
        self._places: dict[bytes, int] = {}  # by digest, so that the texts need not be kept
        self._tokenize = _tokenizing(tokenizer)

    def add(self, text: str) -> tuple[int, TokenizedText]:
        """Returns the index of a context, and the context."""
        context = self._tokenize(text)
        place = self._places.setdefault(text_digest(text), len(self.ids))
        if place == len(self.ids):
            self.ids.append(context.ids)
        return place, context


def _answer_tokens(
    context: TokenizedText, answers: Sequence[Answer], max_answer_length: int, counts: _Counts
) -> tuple[int, int] | None:
    """Returns the first and the last token of the first answer, and adds to the counts of answers."""
    if not answers:
        return None
    tokens = context.tokens(answers[0].start, answers[0].start + len(answers[0].text))
    counts.several_answers += len(answers) > 1
    counts.long_answers += tokens is not None and tokens[1] - tokens[0] >= max_answer_length
    return tokens


def _ends_in_window(
    answer: tuple[int, int] | None, first: int, size: int, context_start: int
) -> tuple[int, int] | None:
    """Returns the positions in the row of an answer's tokens, or None if it is not whole in the window.

    Args:
      answer: the first and the last token of the answer in the context.
      first: the first token of the window in the context.
      size: number of tokens of the context in the window.
      context_start: position in the row at which the context begins.
    """
    if answer is None or answer[0] < first or answer[1] >= first + size:
        return None
    return answer[0] - first + context_start, answer[1] - first + context_start


def _tokenizing(tokenizer: Tokenizer) -> Callable[[str], TokenizedText]:
    """Returns a function that tokenizes a context, and keeps the last ones in memory."""
    return functools.lru_cache(maxsize=_KEPT)(functools.partial(tokenize, tokenizer))
