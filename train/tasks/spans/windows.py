"""Questions and contexts to rows of tokens: [CLS] question [SEP] a window of the context [SEP], in RoBERTa [SEP] [SEP].

A context that is too long for one row is read in windows that overlap, each a row of its own. In a window that does not
hold the whole answer the answer is [CLS], as where there is none. Source: BERT's run_squad.py (`doc_spans`). Deliberate
difference: windows overlap by at least as many tokens as an answer may have, so that every answer is whole in one.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from deberta_jax.errors import UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ..base import Batch
from .questions import Question


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """`ids` int32 [T], and `offsets` int32 [T, 2]: the characters that each comes from (see `Encoding.offsets`)."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]

    def tokens(self, start: int, end: int) -> tuple[int, int] | None:
        """The first and the last of the fewest tokens that cover characters start to end; None: no token has any."""
        inside = np.flatnonzero((self.offsets[:, 0] < end) & (self.offsets[:, 1] > start))
        return (int(inside[0]), int(inside[-1])) if len(inside) else None


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """The E rows of Q questions; a `base.Encoded` whose examples are rows.

    Attributes:
      questions: Q arrays int32, the tokens of each question. contexts: Q contexts, one object where they are the same.
      owner: int32 [E], the question that a row asks. first: int32 [E], the first token of its context in the row.
      lengths: int32 [E], tokens of a row.
      ends: int32 [E, 2], the places in the row of the answer's first and last token, 0 where it is not there; None
        where answers are not published.
    """

    tokenizer: Tokenizer
    questions: Sequence[NDArray[np.int32]]
    contexts: Sequence[Context]
    owner: NDArray[np.int32]
    first: NDArray[np.int32]
    lengths: NDArray[np.int32]
    ends: NDArray[np.int32] | None
    notes: tuple[str, ...]

    @property
    def labeled(self) -> bool:
        return self.ends is not None

    def context_place(self, row: int) -> int:
        """Where in the row the context begins."""
        return len(self.questions[self.owner[row]]) + 1 + self.tokenizer.pair_separators

    def characters(self, row: int, first: int, last: int) -> tuple[int, int]:
        """The characters of the context that the tokens at two places of a row, both within the context, span."""
        shift = self.first[row] - self.context_place(row)
        offsets = self.contexts[self.owner[row]].offsets
        return int(offsets[first + shift, 0]), int(offsets[last + shift, 1])

    def batch(self, rows: np.ndarray, *, length: int) -> Batch:
        """int32 [B, length] `input_ids`, `attention_mask`, `token_type_ids`, and `choosable`, which is 1 for [CLS] and
        the tokens of the context; [B, 2] `ends` where answers are known.
        """
        shape = (len(rows), length)
        input_ids, types, choosable = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for place, row in enumerate(rows.tolist()):
            owner = int(self.owner[row])
            question, context = self.questions[owner], self.contexts[owner]
            begin, end = self.context_place(row), int(self.lengths[row]) - 1
            window = context.ids[self.first[row] : self.first[row] + end - begin]
            input_ids[place, : end + 1], types[place, : end + 1] = self.tokenizer.with_special_tokens(question, window)
            choosable[place, 0] = choosable[place, begin:end] = 1
        real = np.arange(length) < self.lengths[rows, None]
        batch = {
            "input_ids": input_ids,
            "attention_mask": real.astype(np.int32),
            "token_type_ids": types,
            "choosable": choosable,
        }
        return batch if self.ends is None else batch | {"ends": self.ends[rows]}


def windows(tokens: int, *, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """First token and size of each window over a context, the last of which ends with it; stride is at most room.

    A context without tokens has one window, of size 0.
    """
    first = 0
    while first + room < tokens:
        yield first, room
        first += stride
    yield first, tokens - first


def encode_questions(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    max_question_length: int,
    doc_stride: int,
    max_answer_length: int,
    training: bool = False,
    notes: Sequence[str] = (),
) -> Windows:
    """Tokenizes questions and their contexts into rows of at most `max_length` tokens.

    Of several answers, the first is the one that is trained on. An answer that begins or ends inside a token gets the
    whole token. A window begins `doc_stride` tokens after the one before, or sooner where the two would not overlap by
    `max_answer_length`. Counted in the notes, which follow the given ones: questions that were cut, answers of which no
    window has the whole, and those that are too long to be predicted.

    Raises:
      ValueError: max_length leaves too little room for a context.
    """
    special = 2 + tokenizer.pair_separators
    room = max_length - max_question_length - special
    if room <= max_answer_length:
        raise UserError(
            f"max_length {max_length} leaves {max(0, room)} tokens for the context, beside max_question_length "
            f"{max_question_length} and {special} special tokens; max_answer_length {max_answer_length} needs more: "
            "raise max_length (384 is usual for SQuAD) or lower the others"
        )
    texts: dict[str, Context] = {}
    rows: list[tuple[int, int, int, int, int]] = []  # owner, first, length, ends
    ids, contexts = [], []
    cut = lost = long = several = 0
    for owner, question in enumerate(questions):
        tokens = tokenizer.encode(question.question)
        cut += len(tokens) > max_question_length
        ids.append(np.array(tokens[:max_question_length], np.int32))
        if question.context not in texts:
            texts[question.context] = _tokenize(question.context, tokenizer)
        context = texts[question.context]
        contexts.append(context)
        span = None
        if question.answers:
            answer = question.answers[0]
            span = context.tokens(answer.start, answer.start + len(answer.text))
            several += len(question.answers) > 1
            long += span is not None and span[1] - span[0] >= max_answer_length
        before, held = len(ids[-1]) + special - 1, False
        room = max_length - before - 1
        stride = min(doc_stride, room - max_answer_length)
        for first, size in windows(len(context.ids), room=room, stride=stride):
            ends = (0, 0)
            if span is not None and first <= span[0] and span[1] < first + size:
                ends, held = (span[0] - first + before, span[1] - first + before), True
            rows.append((owner, first, before + size + 1, ends[0], ends[1]))
        lost += bool(question.answers) and not held
    table = np.array(rows, np.int32).reshape(-1, 5)
    more = (
        f"windows over {len(questions)} questions" if len(table) > len(questions) else "",
        f"{cut} questions cut to {max_question_length} tokens" if cut else "",
        f"{several} questions have several answers, of which the first is trained on" if several and training else "",
        f"{lost} answers are in no window as a whole" if lost else "",
        f"{long} answers have more than {max_answer_length} tokens and cannot be found" if long else "",
    )
    return Windows(
        tokenizer=tokenizer,
        questions=ids,
        contexts=contexts,
        owner=table[:, 0],
        first=table[:, 1],
        lengths=table[:, 2],
        ends=table[:, 3:] if all(question.answers is not None for question in questions) else None,
        notes=tuple(filter(None, (*notes, *more))),
    )


def _tokenize(context: str, tokenizer: Tokenizer) -> Context:
    encoding = tokenizer(context, return_offsets=True)
    offsets = [offset for offset in encoding.offsets or () if offset is not None]
    return Context(np.array(encoding.input_ids[1:-1], np.int32), np.array(offsets, np.int32).reshape(-1, 2))
