"""The rows of a multiple-choice question, for fine-tuning and for prediction."""

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int

from ..errors import UserError
from ..tokenizers.tokenizer import JoinedIds

Ids = Sequence[int] | Int[np.ndarray, "_"]

_BLANK = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")  # does not match the underscore inside a name_like_this


class JoiningTokenizer(Protocol):
    """The part of a tokenizer that joins two texts."""

    pair_separators: int

    def with_special_tokens(self, a: Iterable[int], b: Iterable[int]) -> JoinedIds: ...


def join_question_and_choice(question: str | None, choice: str) -> str:
    """Returns the second text of the model's input: the question followed by the choice.

    If the question has a blank ("The man _ ."), the choice fills it instead. Source: the official RACE task.
    """
    if not question:
        return choice
    filled, blanks = _BLANK.subn(lambda _: f" {choice} ", question)
    return " ".join(filled.split()) if blanks else f"{question} {choice}"


def choice_room(tokenizer: JoiningTokenizer, max_length: int) -> int:
    """Returns the number of tokens that a context and a choice may have together.

    Raises:
      UserError: if `max_length` leaves no room for a choice.
    """
    special = 2 + tokenizer.pair_separators
    if max_length <= special:
        raise UserError(
            f"max_length is {max_length}; it must be at least {special + 1}, for a piece among {special} special tokens"
        )
    return max_length - special


def choice_row(tokenizer: JoiningTokenizer, context: Ids, choice: Ids, room: int) -> JoinedIds:
    """Returns the row `[CLS] context [SEP] choice [SEP]`.

    If there are too many tokens, the context is cut at its end, and a choice that is too long by itself as well.

    Args:
      tokenizer: joins the ids.
      context: ids of the context.
      choice: ids of the question with the choice (see `join_question_and_choice`).
      room: see `choice_room`.
    """
    choice = choice[:room]
    return tokenizer.with_special_tokens(context[: room - len(choice)], choice)
