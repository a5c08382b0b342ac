"""Entities in texts or sentences of words, with the characters that they cover."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, get_args

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from ..config import DebertaConfig
from ..errors import UserError
from ..models import DebertaForTokenClassification
from ..tokenizers.batch import check_text
from ..tokenizers.tokenizer import Tokenizer
from .checks import check_one_of
from .entity_groups import Aggregation, LabeledSpan, drop_overlaps, label_spans
from .loaded_model import LoadedModel
from .pipeline import Arrays, Pipeline, Row, RowOutputs, Rows
from .tokenized_text import TokenizedText, cut_windows, spaced_words, strip_span, tokenize
from .windows import Windows, window_step

Words = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Entity:
    """A part of a text with a label.

    Attributes:
      label: The kind of entity, such as "PER"; without aggregation the whole tag, such as "B-PER".
      score: The probability of the label; of several tokens or words, the mean of theirs.
      text: The characters, without white space around them.
      start: Position of the first of them in the text, or in the words joined by spaces.
      end: Position after the last of them.
      word_start: For words, the index of the first word; for a text None.
      word_end: For words, the index after the last word; for a text None.
    """

    label: str
    score: float
    text: str
    start: int
    end: int
    word_start: int | None = None
    word_end: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Tokens:
    """The tokens of an item.

    Attributes:
      text: The text, or the words joined by spaces.
      tokens: Ids and offsets in the text.
      begins: Where each token begins if the spaces before it belong to it.
      continues: Whether a token is a further one of the same word as the token before.
      words: Index of the word of each token, if the item consists of words.
      windows: The first token and the size of each window.
    """

    text: str
    tokens: TokenizedText
    begins: Int32[np.ndarray, "tokens"]
    continues: Bool[np.ndarray, "tokens"]
    words: Int[np.ndarray, "tokens"] | None
    windows: Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class FindEntities(Pipeline[str | Words, list[Entity]]):
    """Finds the entities in a text, or in a sentence that is given as words.

    Labels, scores and characters are those of transformers' pipeline "token-classification" with the same
    `aggregation_strategy`. Deliberate differences: any white space separates words, not only a space; start and end
    leave out the space before a SentencePiece; an entity without any other character is left out; the tags of IOBES and
    BILOU are known; and if the item consists of words, the tokens of a word always belong together.

    A text of any length is read in windows. Of entities of two windows that overlap, the longer one is kept, or else
    the more probable, as with the `stride` of transformers. Without aggregation, each token is predicted in the window
    in which it has the most context.

    Attributes:
      aggregation: "none" returns tokens; "simple" joins tokens with the same label; the others label whole words first,
        by their "first" token, by the "average" of their tokens' probabilities, or by the token with the highest
        probability ("max"). A model that `finetune` trained predicts first tokens.
      max_length: Largest number of tokens of a window, with [CLS] and [SEP] (default: 512, or the number of absolute
        positions of a model that reads them).
      stride: Number of tokens between the starts of two windows (default: half of a window).
      ignore: Labels that are left out.

    Raises:
      UserError: A value is out of range.
    """

    heads: ClassVar[tuple[str, ...]] = ("classifier",)
    aggregation: Aggregation = "first"
    max_length: int | None = None
    stride: int | None = None
    ignore: tuple[str, ...] = ("O",)

    def __post_init__(self) -> None:
        check_one_of("aggregation", self.aggregation, get_args(Aggregation))
        Windows(self.max_length, stride=self.stride)  # checks the two
        if self.max_length is not None and self.max_length < 3:
            raise UserError(f"max_length is {self.max_length}; it must be at least 3, for a token and [CLS] and [SEP]")

    def traced_settings(self) -> Hashable:
        return FindEntities

    def model(self, config: DebertaConfig, **attributes: Any) -> DebertaForTokenClassification:
        return DebertaForTokenClassification(config, **attributes)

    def outputs(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        return {"probabilities": jax.nn.softmax(out.logits)}

    def encode(self, model: LoadedModel, item: str | Words) -> Rows[_Tokens]:
        room = Windows(self.max_length).length(model) - 2
        words = None
        if isinstance(item, str):
            text, tokens = check_text(item, "the text"), tokenize(model.tokenizer, item)
            continues = _continues(model.tokenizer, text, tokens)
        else:
            text, tokens, words = _tokenize_words(model.tokenizer, item)
            continues = np.diff(words, prepend=-1) == 0
        count = len(tokens.ids)
        windows = list(cut_windows(count, room=room, stride=window_step(room, self.stride))) if count else []
        rows = [Row(*model.tokenizer.with_special_tokens(tokens.ids[first : first + size])) for first, size in windows]
        begins = _begins(text, tokens) if model.tokenizer.vocab_type == "spm" else tokens.offsets[:, 0]
        return Rows(rows, _Tokens(text, tokens, begins, continues, words, windows))

    def decode(
        self, model: LoadedModel, item: str | Words, rows: Rows[_Tokens], outputs: Sequence[RowOutputs]
    ) -> list[Entity]:
        context = rows.context
        spans: list[LabeledSpan] = []
        begin = 0 if model.tokenizer.cls_last else 1  # position of a window's first token in its row
        nearest = _nearest_windows(context.windows) if self.aggregation == "none" and context.windows else ()
        for number, ((first, size), output) in enumerate(zip(context.windows, outputs, strict=True)):
            probabilities: Float[np.ndarray, "tokens C"] = output["probabilities"][begin : begin + size]
            continues = context.continues[first : first + size]
            found = label_spans(probabilities, continues, model.label_names, self.aggregation)
            if self.aggregation == "none":
                found = [span for span in found if nearest[first + span.first] == number]
            spans += [span.shifted(first) for span in found if span.label not in self.ignore]
        if len(context.windows) > 1 and self.aggregation != "none":
            spans = drop_overlaps(spans, context.begins, context.tokens.offsets[:, 1])
        return [entity for span in spans if (entity := _entity(context, span)).text]


def _entity(context: _Tokens, span: LabeledSpan) -> Entity:
    offsets = context.tokens.offsets
    text, start = strip_span(context.text, int(offsets[span.first, 0]), int(offsets[span.last, 1]))
    words = () if context.words is None else (int(context.words[span.first]), int(context.words[span.last]) + 1)
    return Entity(span.label, span.score, text, start, start + len(text), *words)


def _nearest_windows(windows: Sequence[tuple[int, int]]) -> Int[np.ndarray, "tokens"]:
    """Returns for each token the number of the window in which it is furthest from the ends of the window."""
    count = sum(windows[-1])
    numbers, distances = np.zeros(count, np.int64), np.full(count, -1)
    for number, (first, size) in enumerate(windows):
        inside = slice(first, first + size)
        distance = np.minimum(np.arange(size), np.arange(size)[::-1])
        is_nearer = distance > distances[inside]
        numbers[inside][is_nearer], distances[inside][is_nearer] = number, distance[is_nearer]
    return numbers


def _tokenize_words(tokenizer: Tokenizer, words: Any) -> tuple[str, TokenizedText, Int[np.ndarray, "tokens"]]:
    """Returns words joined by spaces, their tokens, and the index of the word of each token.

    Raises:
      UserError: The words are not a tuple or list of strings, or one is empty.
    """
    if not isinstance(words, tuple | list):
        raise UserError(f"the item is a {type(words).__name__}, {words!r:.60}; give a text, or a tuple of words")
    for index, word in enumerate(words):
        if not check_text(word, f"word {index}").strip():
            raise UserError(f"word {index} is {word!r}, which is empty; remove it")
    ids, offsets, owners, position = [], [], [], 0
    for index, spaced in enumerate(spaced_words(words)):
        tokens = tokenize(tokenizer, spaced)
        ids.append(tokens.ids)
        offsets.append(tokens.offsets + np.int32(position))
        owners += [index] * len(tokens.ids)
        position += len(spaced)
    joined = TokenizedText(
        np.concatenate([np.zeros(0, np.int32), *ids]), np.concatenate([np.zeros((0, 2), np.int32), *offsets])
    )
    return " ".join(words), joined, np.array(owners, np.int64)


def _begins(text: str, tokens: TokenizedText) -> Int32[np.ndarray, "tokens"]:
    """Returns where tokens begin if each has the white-space character before it, as SentencePieces in transformers."""
    begins = tokens.offsets[:, 0].copy()
    previous_end = 0
    for token, (start, end) in enumerate(tokens.offsets.tolist()):
        if previous_end < start and text[start - 1].isspace():
            begins[token] = start - 1
        previous_end = end
    return begins


def _continues(tokenizer: Tokenizer, text: str, tokens: TokenizedText) -> Bool[np.ndarray, "tokens"]:
    """Returns which tokens of a text continue a word. Source: `gather_pre_entities` of transformers.

    An unknown token never does. In a WordPiece the others have "##". Otherwise they are those without white space
    before them, so that the punctuation after a word belongs to it, and the other bytes of a character that the
    vocabulary spells in bytes.
    """
    known = tokens.ids != tokenizer.unk_id
    if tokenizer.vocab_type == "wordpiece":
        return known & np.array([piece.startswith("##") for piece in tokenizer.pieces(tokens.ids)], bool)
    starts = tokens.offsets[:, 0]
    are_spaced = [start == 0 or _has_space(text[start - 1 : start + 1]) for start in starts.tolist()]
    of_same_character = np.append(False, starts[1:] < tokens.offsets[:-1, 1])[: len(starts)]
    return known & (of_same_character | ~np.array(are_spaced, bool))


def _has_space(text: str) -> bool:
    return any(character.isspace() for character in text)
