"""Adds pieces to a SentencePiece unigram model, behind all others, so that no id moves.

The score of a new piece is a little above that of the best segmentation of its string by the other pieces. Therefore
the new piece stands for the pieces that the model has read for the string until now, and it is chosen wherever these
would be: a text is segmented as before, except that runs of old pieces become one new piece. (Where two segmentations
had nearly the same score, the other one may be chosen.) A score from the counts of another text would change the
segmentation of words that the new piece only touches.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import MissingPackageError, UserError
from .spm import SentencePiece
from .tokenizer import Tokenizer
from .vocabulary import MASK

# What a new piece scores above the best segmentation of its string, in nats. SentencePiece adds up the scores of a line
# in float32, which is exact to 0.001 after a thousand pieces.
MARGIN = 0.1
_UNKNOWN_PENALTY = 10.0  # an unknown character scores this much less than the rarest piece, as in SentencePiece
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # types of pieces in SentencePiece's protocol buffer
_UNIGRAM = 1


class Segmentation(NamedTuple):
    """The best segmentation of a string: its pieces, or single characters that no piece has, and its score in nats."""

    parts: tuple[str, ...]
    score: float


def segment(text: str, scores: Mapping[str, float], unknown: float) -> Segmentation:
    """Returns the segmentation of a string with the highest sum of scores (Viterbi, as SentencePiece does it).

    Args:
      text: the normalized string, with U+2581 for each space.
      scores: the scores of all pieces that may be used.
      unknown: the score of a character that is no piece.
    """
    best, start_of = [0.0], [0]
    for end in range(1, len(text) + 1):
        candidates = [
            (best[start] + (scores.get(text[start:end], unknown if end - start == 1 else -math.inf)), -start)
            for start in range(end)
        ]
        score, start = max(candidates)
        best.append(score)
        start_of.append(-start)
    parts, end = [], len(text)
    while end:
        parts.append(text[start_of[end] : end])
        end = start_of[end]
    return Segmentation(tuple(reversed(parts)), best[-1])


def score_pieces(pieces: Iterable[str], scores: Mapping[str, float], unknown: float) -> dict[str, float]:
    """Returns a score for each new piece, MARGIN above its best segmentation by all old pieces and shorter new ones.

    Args:
      pieces: the new pieces.
      scores: the scores of the old pieces.
      unknown: the score of a character that is no piece.
    """
    known, added = dict(scores), {}
    for piece in sorted(pieces, key=lambda piece: (len(piece), piece)):
        added[piece] = known[piece] = segment(piece, known, unknown).score + MARGIN
    return added


@dataclasses.dataclass(frozen=True)
class UnigramModel:
    """The content of the spm.model of a tokenizer.

    Attributes:
      tokenizer: the tokenizer.
      proto: SentencePiece's ModelProto.
    """

    tokenizer: Tokenizer
    proto: Any

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, source: str) -> "UnigramModel":
        """Reads the model of a tokenizer.

        Args:
          tokenizer: the tokenizer.
          source: its name, for errors.

        Raises:
          MissingPackageError: the package protobuf is not installed.
          UserError: the tokenizer is not a SentencePiece unigram model, or tokens were added to it.
        """
        if not isinstance(tokenizer.vocabulary, SentencePiece):
            raise UserError(
                f"{source} has no plain spm.model: pieces can be added to the tokenizers of DeBERTa v2 and v3 without "
                "added tokens; for others, `deberta-jax pretrain --add-tokens` adds single tokens"
            )
        try:
            from sentencepiece import sentencepiece_model_pb2
        except ImportError:
            raise MissingPackageError(
                "adding pieces to a vocabulary needs the package protobuf: pip install protobuf, or install "
                "deberta-jax[train]"
            ) from None
        proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        proto.ParseFromString(tokenizer.vocabulary.files()["spm.model"])
        if proto.trainer_spec.model_type != _UNIGRAM:
            raise UserError(f"{source} is not a unigram model of SentencePiece, whose scores new pieces need")
        return cls(tokenizer, proto)

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the pieces that text is segmented into."""
        return {piece.piece: piece.score for piece in self.proto.pieces if piece.type == _NORMAL}

    @property
    def unknown(self) -> float:
        """The score of a character that is no piece."""
        return min(self.scores.values()) - _UNKNOWN_PENALTY

    @property
    def names(self) -> frozenset[str]:
        """All pieces of any type."""
        return frozenset(piece.piece for piece in self.proto.pieces)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Pieces that are found in a text before it is segmented."""
        return tuple(piece.piece for piece in self.proto.pieces if piece.type == _USER_DEFINED)

    def ids_of(self, pieces: Sequence[str]) -> list[tuple[int, ...]]:
        """Returns the ids of the best segmentation of each string. A character that is no piece has those of its bytes,
        or none.
        """
        ids = {entry.piece: i for i, entry in enumerate(self.proto.pieces)}
        scores, unknown = self.scores, self.unknown
        rows = []
        for piece in pieces:
            row: list[int] = []
            for part in segment(piece, scores, unknown).parts:
                names = [part] if part in scores else [f"<0x{byte:02X}>" for byte in part.encode()]
                row += [ids[name] for name in names if name in ids]
            rows.append(tuple(row))
        return rows

    def extended(self, pieces: Sequence[str]) -> Tokenizer:
        """Returns a tokenizer with further pieces, whose ids follow all others in the given order.

        [MASK], whose id follows the last piece, becomes a piece itself and keeps its id.

        Args:
          pieces: the new pieces, with U+2581 for a space.

        Raises:
          UserError: a piece is there already, or given twice.
        """
        known = set(self.names)
        for piece in pieces:
            if piece in known:
                raise UserError(f"the new piece {piece!r} is there already; leave it out")
            known.add(piece)
        proto = type(self.proto)()
        proto.CopyFrom(self.proto)
        if MASK not in self.names:
            proto.pieces.add(piece=MASK, score=0.0, type=_CONTROL)
        added = score_pieces(pieces, self.scores, self.unknown)
        for piece in pieces:
            proto.pieces.add(piece=piece, score=added[piece], type=_NORMAL)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        settings = self.tokenizer.vocabulary.settings
        flags = {name: bool(settings[name]) for name in ("do_lower_case", "split_by_punct")}
        return Tokenizer(SentencePiece(proto.SerializeToString(), **flags, source="the extended model"))
