"""Tokenizes multiple-choice questions: `[CLS] context [SEP] question choice [SEP]` for each choice.

RoBERTa has two separators in the middle. A context that is too long is cut at its end.
"""

import dataclasses
import functools
import itertools
from array import array
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int, Int32

from deberta_jax.predict.choice_rows import JoiningTokenizer, choice_room, choice_row, join_question_and_choice

from ..base import ExampleBatch
from ..packed import chunks, text_digest
from ..ragged import Ragged, RaggedBuilder, as_numpy
from .questions import ChoiceQuestion


class ChoiceTokenizer(JoiningTokenizer, Protocol):
    """The part of a tokenizer that is used here."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedQuestions:
    """The token ids of E questions with at most C choices. Implements `base.Encoded`.

    Attributes:
      contexts: ids of the different contexts without special tokens, as many as fit into a row.
      pairs: ids of the questions with each of their choices, without special tokens, as many as fit into a row. Those
        of a question are a row with the ids that all its choices begin with, and a row with the others of each choice.
      context: index of the context of each question.
      first_pair: index in `pairs` of the first row of each question, and the end of the last one.
      lengths: number of tokens of the longest row of each question.
      labels: index of the correct choice; `None` for unlabeled questions.
      notes: messages to the user.
      max_length: largest number of tokens per row.
      tokenizer: joins the ids of a context and a pair.
    """

    contexts: Ragged
    pairs: Ragged
    context: Int32[np.ndarray, "E"]
    first_pair: Int32[np.ndarray, "E+1"]
    lengths: Int32[np.ndarray, "E"]
    labels: Int32[np.ndarray, "E"] | None
    notes: tuple[str, ...]
    max_length: int
    tokenizer: ChoiceTokenizer

    @property
    def labeled(self) -> bool:
        return self.labels is not None

    @functools.cached_property
    def most_choices(self) -> int:
        return int(np.diff(self.first_pair).max()) - 1

    def pair(self, question: int, choice: int) -> Int32[np.ndarray, "tokens"]:
        """Returns the ids of a question with one of its choices."""
        first = int(self.first_pair[question])
        return np.concatenate([self.pairs[first], self.pairs[first + 1 + choice]])

    def batch(self, indices: Int[np.ndarray, "B"], *, length: int) -> ExampleBatch:
        """Returns int32 arrays for the questions at `indices`.

        These are `input_ids`, `attention_mask` and `token_type_ids` [B, C, length], `real` [B, C], which is 0 for a
        choice that a question does not have, and `labels` [B] if there are any. A missing choice is a copy of the
        first choice, so that no row consists of padding alone.
        """
        shape = (len(indices), self.most_choices, length)
        input_ids, mask, types = (np.zeros(shape, np.int32) for _ in range(3))
        real = np.zeros(shape[:2], np.int32)
        room = choice_room(self.tokenizer, self.max_length)
        for row, index in enumerate(indices.tolist()):
            choices = int(self.first_pair[index + 1] - self.first_pair[index]) - 1
            whole_context = self.contexts[int(self.context[index])]
            real[row, :choices] = 1
            for choice in range(shape[1]):
                pair = self.pair(index, choice if choice < choices else 0)
                joined, joined_types = choice_row(self.tokenizer, whole_context, pair, room)
                input_ids[row, choice, : len(joined)] = joined
                mask[row, choice, : len(joined)] = 1
                types[row, choice, : len(joined)] = joined_types
        batch = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types, "real": real}
        return batch if self.labels is None else batch | {"labels": self.labels[indices]}


def encode_choice_questions(
    questions: Sequence[ChoiceQuestion], tokenizer: ChoiceTokenizer, *, max_length: int, notes: Sequence[str] = ()
) -> EncodedQuestions:
    """Returns the token ids of questions for rows of at most `max_length` tokens. `notes` about reading come first.

    Deliberate difference: the official RACE task cuts the front or the back of either text, at random, and would put
    the shorter text first.

    Raises:
      UserError: if `max_length` leaves no room for a choice.
    """
    budget = choice_room(tokenizer, max_length)
    contexts, pairs = _Contexts(budget), RaggedBuilder()
    context_of, first_pair, lengths, labels = array("i"), array("i", [0]), array("i"), array("i")
    blank = cut_contexts = cut_choices = 0
    for chunk in chunks(questions, _characters):
        context_ids = contexts.encode([question.context for question in chunk], tokenizer)
        pair_ids = iter(
            tokenizer.encode_batch(
                [
                    join_question_and_choice(question.question, choice)
                    for question in chunk
                    for choice in question.choices
                ]
            )
        )
        for question, context in zip(chunk, context_ids, strict=True):
            whole_pairs = [next(pair_ids) for _ in question.choices]
            longest = max(map(len, whole_pairs))
            shared = _common_start([pair[:budget] for pair in whole_pairs])
            pairs.append(shared)
            for pair in whole_pairs:
                pairs.append(pair[len(shared) : budget])
            context_length = contexts.lengths[context]
            cut_contexts += context_length > budget - min(longest, budget)
            cut_choices += longest > budget
            context_of.append(context)
            first_pair.append(len(pairs))
            lengths.append(min(context_length + longest, budget) + max_length - budget)
            if question.label is not None:
                labels.append(question.label)
            blank += not question.context.strip() or question.question == ""
    choices = np.diff(as_numpy(first_pair)) - 1
    most = int(choices.max())
    fewer = int((choices < most).sum())
    counts = {
        f"{blank} with a blank context or question": blank,
        f"{cut_contexts} contexts cut to {max_length} tokens with the question and the choice": cut_contexts,
        f"{cut_choices} with choices cut to {max_length} tokens": cut_choices,
        f"{fewer} with fewer than {most} choices": fewer,
        "the same choice is correct everywhere": len(labels) > 1 and labels.count(labels[0]) == len(labels),
    }
    return EncodedQuestions(
        contexts.ids.build(),
        pairs.build(),
        as_numpy(context_of),
        as_numpy(first_pair),
        as_numpy(lengths),
        as_numpy(labels) if labels else None,
        (*notes, *(note for note, count in counts.items() if count)),
        max_length,
        tokenizer,
    )


def _common_start(rows: Sequence[list[int]]) -> list[int]:
    """Returns the ids that all rows begin with."""
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return [column[0] for column in columns]


def _characters(question: ChoiceQuestion) -> int:
    shared = len(question.question or "")
    return len(question.context) + sum(shared + len(choice) for choice in question.choices)


class _Contexts:
    """The different contexts so far; RACE has about four questions per context.

    Attributes:
      ids: the ids of each, cut to the room that a row has.
      lengths: number of tokens of each before it is cut.
    """

    def __init__(self, room: int) -> None:
        self.ids, self.lengths = RaggedBuilder(), array("i")
        self._room = room
        self._places: dict[bytes, int] = {}  # by digest, so that the texts need not be kept

    def encode(self, contexts: Sequence[str], tokenizer: ChoiceTokenizer) -> list[int]:
        """Returns the index of each context. Those that are new are tokenized."""
        digests = [text_digest(context) for context in contexts]
        new = {digest: text for digest, text in zip(digests, contexts, strict=True) if digest not in self._places}
        for digest, ids in zip(new, tokenizer.encode_batch(list(new.values())) if new else (), strict=True):
            self._places[digest] = len(self.ids)
            self.lengths.append(len(ids))
            self.ids.append(ids[: self._room])
        return [self._places[digest] for digest in digests]
