"""Tokenizes multiple-choice questions: `[CLS] context [SEP] question choice [SEP]` for each choice.

RoBERTa has two separators in the middle. A context that is too long is cut at its end.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int, Int32

from deberta_jax.errors import UserError

from ..base import ExampleBatch
from .questions import ChoiceQuestion, join_question_and_choice


class JoiningTokenizer(Protocol):
    """The part of a tokenizer that is used here."""

    pair_separators: int

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def with_special_tokens(self, a: Iterable[int], b: Iterable[int]) -> tuple[list[int], list[int]]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedQuestions:
    """The token ids of E questions with at most C choices. Implements `base.Encoded`.

    Attributes:
      contexts: int32 ids of each context without special tokens, as many as the shortest choice leaves room for.
      pairs: int32 ids of the question with each choice, without special tokens, as many as fit into a row.
      lengths: number of tokens of the longest row of each question.
      labels: index of the correct choice; `None` for unlabeled questions.
      notes: messages to the user.
      max_length: largest number of tokens per row.
      tokenizer: joins the ids of a context and a pair.
    """

    contexts: Sequence[Int32[np.ndarray, "tokens"]]
    pairs: Sequence[Sequence[Int32[np.ndarray, "tokens"]]]
    lengths: Int32[np.ndarray, "E"]
    labels: Int32[np.ndarray, "E"] | None
    notes: tuple[str, ...]
    max_length: int
    tokenizer: JoiningTokenizer

    @property
    def labeled(self) -> bool:
        return self.labels is not None

    @functools.cached_property
    def most_choices(self) -> int:
        return max(map(len, self.pairs))

    def batch(self, indices: Int[np.ndarray, "B"], *, length: int) -> ExampleBatch:
        """Returns int32 arrays for the questions at `indices`.

        These are `input_ids`, `attention_mask` and `token_type_ids` [B, C, length], `real` [B, C], which is 0 for a
        choice that a question does not have, and `labels` [B] if there are any. A missing choice is a copy of the
        first choice, so that no row consists of padding alone.
        """
        shape = (len(indices), self.most_choices, length)
        input_ids, mask, types = (np.zeros(shape, np.int32) for _ in range(3))
        real = np.zeros(shape[:2], np.int32)
        for row, index in enumerate(indices):
            pairs = self.pairs[index]
            real[row, : len(pairs)] = 1
            for choice in range(shape[1]):
                pair = pairs[choice] if choice < len(pairs) else pairs[0]
                context = self.contexts[index][: self.max_length - 2 - self.tokenizer.pair_separators - len(pair)]
                joined, joined_types = self.tokenizer.with_special_tokens(context, pair)
                input_ids[row, choice, : len(joined)] = joined
                mask[row, choice, : len(joined)] = 1
                types[row, choice, : len(joined)] = joined_types
        batch = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types, "real": real}
        return batch if self.labels is None else batch | {"labels": self.labels[indices]}


def encode_choice_questions(
    questions: Sequence[ChoiceQuestion], tokenizer: JoiningTokenizer, *, max_length: int, notes: Sequence[str] = ()
) -> EncodedQuestions:
    """Returns the token ids of questions for rows of at most `max_length` tokens. `notes` about reading come first.

    Deliberate difference: the official RACE task cuts the front or the back of either text, at random, and would put
    the shorter text first.

    Raises:
      UserError: if `max_length` leaves no room for a choice.
    """
    special = 2 + tokenizer.pair_separators
    budget = max_length - special
    if budget < 1:
        raise UserError(
            f"max_length is {max_length}; it must be at least {special + 1}, for a piece among {special} special tokens"
        )
    texts = list(dict.fromkeys(question.context for question in questions))  # RACE has about four questions per context
    context_ids = dict(zip(texts, _encode(tokenizer, texts), strict=True))
    pair_ids = iter(
        _encode(
            tokenizer,
            [
                join_question_and_choice(question.question, choice)
                for question in questions
                for choice in question.choices
            ],
        )
    )
    contexts, pairs, lengths = [], [], np.zeros(len(questions), np.int32)
    cut_contexts = cut_choices = 0
    for index, question in enumerate(questions):
        context, whole_pairs = context_ids[question.context], [next(pair_ids) for _ in question.choices]
        longest = max(map(len, whole_pairs))
        cut_contexts += len(context) > budget - min(longest, budget)
        cut_choices += longest > budget
        contexts.append(context)
        pairs.append([pair[:budget] for pair in whole_pairs])
        lengths[index] = min(len(context) + longest + special, max_length)
    most = max(map(len, pairs))
    fewer = sum(len(choices) < most for choices in pairs)
    labels = [question.label for question in questions if question.label is not None]
    blank = sum(not question.context.strip() or question.question == "" for question in questions)
    counts = {
        f"{blank} with a blank context or question": blank,
        f"{cut_contexts} contexts cut to {max_length} tokens with the question and the choice": cut_contexts,
        f"{cut_choices} with choices cut to {max_length} tokens": cut_choices,
        f"{fewer} with fewer than {most} choices": fewer,
        "the same choice is correct everywhere": len(labels) > 1 and len(set(labels)) == 1,
    }
    return EncodedQuestions(
        contexts,
        pairs,
        lengths,
        np.array(labels, np.int32) if labels else None,
        (*notes, *(note for note, count in counts.items() if count)),
        max_length,
        tokenizer,
    )


def _encode(tokenizer: JoiningTokenizer, texts: Sequence[str]) -> list[Int32[np.ndarray, "tokens"]]:
    return [np.array(ids, np.int32) for ids in tokenizer.encode_batch(texts)]
