"""Chooses the pieces that a vocabulary lacks for a text: `deberta-jax tokenizer --extend`."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from deberta_jax.errors import UserError
from deberta_jax.tokenizers.new_pieces import UnigramModel
from deberta_jax.tokenizers.spm import load_model
from deberta_jax.tokenizers.tokenizer import Tokenizer

from .train_tokenizer import TrainingSample, run_trainer, training_sample

# A model of the text has this many pieces for each new one. Most are in the vocabulary already, or save too little.
_CANDIDATES_PER_PIECE = 16
_FEWEST_CANDIDATES = 8000
_BATCH = 10_000  # lines that are encoded together
_SPACE = "▁"
_LONGEST_LINE = 1 << 20  # bytes: normalization may make one character many
# Settings of the old model that say which strings can be a piece.
_KEPT = (
    "split_by_unicode_script",
    "split_by_number",
    "split_digits",
    "split_by_whitespace",
    "treat_whitespace_as_suffix",
    "allow_whitespace_only_pieces",
    "max_sentencepiece_length",
)


@dataclasses.dataclass(frozen=True)
class Extension:
    """A tokenizer with new pieces.

    Attributes:
      tokenizer: the tokenizer.
      pieces: the new pieces; the id of the first is `first`.
      first: the size of the vocabulary before.
      old_ids: for each new piece the ids that stood for its string before.
      tokens_before, tokens_after: number of tokens of the sample of text, in the old and in the new vocabulary.
    """

    tokenizer: Tokenizer
    pieces: tuple[str, ...]
    first: int
    old_ids: tuple[tuple[int, ...], ...]
    tokens_before: int
    tokens_after: int


def extend_vocabulary(
    tokenizer: Tokenizer,
    documents: Iterable[str],
    *,
    new_pieces: int,
    sample: TrainingSample,
    character_coverage: float = 0.9995,
    source: str = "the tokenizer",
) -> Extension:
    """Returns a tokenizer with the pieces that save the most tokens of a text. The ids of all others stay.

    A unigram model is trained on a sample of the text. Its pieces that the vocabulary lacks are candidates. All of them
    are added to the vocabulary, the sample is encoded, and those whose use saves most tokens are kept. With one release
    of sentencepiece, the same text gives the same pieces.

    Args:
      tokenizer: a SentencePiece unigram tokenizer, such as that of DeBERTa-v3.
      documents: the text, in any pieces.
      new_pieces: number of pieces to add.
      sample: how much of the text is used.
      character_coverage: share of the characters of the text that may get a piece of their own.
      source: name of the tokenizer, for errors.

    Raises:
      UserError: the text has fewer useful pieces (the message contains their number), there is no text, or as
        `UnigramModel.of`.
    """
    model = UnigramModel.of(tokenizer, source=source)
    lines = training_sample(documents, sample)
    candidates = _candidates(model, lines, count=new_pieces, character_coverage=character_coverage)
    uses = _count_uses(model.extended(candidates), lines, first=tokenizer.vocab_size)
    saved = {
        piece: uses[piece] * (len(ids) - 1)
        for piece, ids in zip(candidates, model.ids_of(candidates), strict=True)
        if uses[piece] and len(ids) > 1
    }
    if len(saved) < new_pieces:
        raise UserError(
            f"new_pieces {new_pieces} is more than this text can fill; give at most {len(saved)}, or more text"
            if saved
            else f"{source} encodes this text with whole words already; no piece would save a token"
        )
    chosen = tuple(sorted(saved, key=lambda piece: (-saved[piece], piece))[:new_pieces])
    extended = model.extended(chosen)
    return Extension(
        tokenizer=extended,
        pieces=chosen,
        first=tokenizer.vocab_size,
        old_ids=tuple(model.ids_of(chosen)),
        tokens_before=_count_tokens(tokenizer, lines),
        tokens_after=_count_tokens(extended, lines),
    )


def _candidates(model: UnigramModel, lines: Sequence[str], *, count: int, character_coverage: float) -> list[str]:
    """Trains a unigram model on normalized lines and returns its pieces that the vocabulary lacks."""
    processor = load_model(model.tokenizer.vocabulary.files()["spm.model"], "the model")
    normalized = [processor.normalize(line).replace(_SPACE, " ").strip() for line in lines]
    spec = model.proto.trainer_spec
    settings: dict[str, Any] = {
        "vocab_size": max(_FEWEST_CANDIDATES, _CANDIDATES_PER_PIECE * count),
        "hard_vocab_limit": False,  # a small text has fewer
        "character_coverage": character_coverage,
        "normalization_rule_name": "identity",
        "max_sentence_length": _LONGEST_LINE,
        **{name: getattr(spec, name) for name in _KEPT},
    }
    trained = run_trainer(settings, [line for line in normalized if line])
    pieces = load_model(trained, "the model of the text")
    found = [
        pieces.id_to_piece(i)
        for i in range(pieces.get_piece_size())
        if not (pieces.is_control(i) or pieces.is_unknown(i))
    ]
    known, symbols = model.names, model.symbols
    return [
        piece
        for piece in found
        if piece not in known and piece != _SPACE and not any(symbol in piece for symbol in symbols)
    ]


def _count_uses(tokenizer: Tokenizer, lines: Sequence[str], *, first: int) -> dict[str, int]:
    """Returns how often each piece from the id `first` on is used."""
    counts: collections.Counter[int] = collections.Counter()
    for start in range(0, len(lines), _BATCH):
        for ids in tokenizer.encode_batch(lines[start : start + _BATCH]):
            counts.update(i for i in ids if i >= first)
    new = range(first, tokenizer.vocab_size)
    return {piece: counts[i] for piece, i in zip(tokenizer.pieces(new), new, strict=True)}


def _count_tokens(tokenizer: Tokenizer, lines: Sequence[str]) -> int:
    batches = range(0, len(lines), _BATCH)
    return sum(len(ids) for start in batches for ids in tokenizer.encode_batch(lines[start : start + _BATCH]))
