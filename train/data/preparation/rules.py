"""Which documents become rows: normalization, filters by length and quality, and duplicates.

The quality rules are those of Gopher (Rae et al. 2021, appendix A) and C4 (Raffel et al. 2020, section 2.2) that do not
depend on the language. All are off by default.
"""

import dataclasses
import re
from typing import Annotated, Literal

from deberta_jax.errors import UserError

from ...settings import Positive, PositiveNumber, Range, Settings, Share

Normalization = Literal["none", "nfc", "nfkc"]
_NOT_LETTERS = re.compile(r"[\W\d_]+")
_SYMBOLS = re.compile(r"#|…|\.\.\.")
_BULLETS = ("•", "‣", "▪", "●", "◦", "-", "*", "–")  # noqa: RUF001
_ELLIPSES = ("…", "...")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRules(Settings):
    """Which documents become rows. What each rule removed is counted in the manifest"""

    text_field: str = "text"
    """field of JSON Lines, or column of Parquet and of tfds: and hf: sets, that contains the text"""
    normalization: Normalization = "none"
    """Unicode normalization of the text; tokenizers of DeBERTa v2 and v3 have their own"""
    skip_bad: bool = False
    """remove documents that are no text: bytes that are not UTF-8, NUL, a broken record, or more than 32 MiB (default:
    the first one ends the command)"""
    drop_duplicates: bool = True
    """remove documents whose text is that of an earlier one"""
    near_duplicates: Annotated[float, Range(at_least=0.5, at_most=1)] | None = None
    """remove documents whose sets of word 5-grams have at least this Jaccard similarity to those of an earlier one, as
    estimated by MinHash; usually 0.8 (default: off)"""
    min_characters: Positive | None = None
    """remove shorter documents (default: off)"""
    max_characters: Positive | None = None
    """remove longer documents (default: off)"""
    min_letter_share: Share | None = None
    """remove documents with a smaller share of letters among the characters that are not white space (default: off)"""
    max_symbol_share: Share | None = None
    """remove documents with more # and ellipses per word; Gopher has 0.1 (default: off)"""
    min_mean_word_length: PositiveNumber | None = None
    """remove documents with shorter words on average, in characters; Gopher has 3 (default: off)"""
    max_mean_word_length: PositiveNumber | None = None
    """remove documents with longer words on average; Gopher has 10; not for scripts without spaces (default: off)"""
    max_bullet_share: Share | None = None
    """remove documents with a larger share of lines that begin with a bullet; Gopher has 0.9 (default: off)"""
    max_ellipsis_share: Share | None = None
    """remove documents with a larger share of lines that end with an ellipsis; Gopher has 0.3 (default: off)"""
    max_repeated_line_share: Share | None = None
    """remove documents with a larger share of lines that repeat an earlier one; Gopher has 0.3 (default: off)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.text_field:
            raise UserError("text_field is empty; give the name of the field or column with the text")
        for low, high in (("min_characters", "max_characters"), ("min_mean_word_length", "max_mean_word_length")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise UserError(f"{low} is {least} and {high} is {most}, so that every document would be removed")


def removing_rule(document: str, rules: TextRules) -> str | None:
    """Returns the name of the first filter that removes a document, which is not empty, or None."""
    if rules.min_characters is not None and len(document) < rules.min_characters:
        return "min_characters"
    if rules.max_characters is not None and len(document) > rules.max_characters:
        return "max_characters"
    return _rule_of_words(document, rules) or _rule_of_lines(document, rules)


def _rule_of_words(document: str, rules: TextRules) -> str | None:
    if rules.min_letter_share is not None:
        characters = sum(map(len, document.split()))
        if len(_NOT_LETTERS.sub("", document)) < rules.min_letter_share * characters:
            return "min_letter_share"
    lengths = (rules.min_mean_word_length, rules.max_mean_word_length)
    if rules.max_symbol_share is None and lengths == (None, None):
        return None
    words = document.split()
    if rules.max_symbol_share is not None and len(_SYMBOLS.findall(document)) > rules.max_symbol_share * len(words):
        return "max_symbol_share"
    mean = sum(map(len, words)) / len(words)
    if lengths[0] is not None and mean < lengths[0]:
        return "min_mean_word_length"
    if lengths[1] is not None and mean > lengths[1]:
        return "max_mean_word_length"
    return None


def _rule_of_lines(document: str, rules: TextRules) -> str | None:
    if rules.max_bullet_share is rules.max_ellipsis_share is rules.max_repeated_line_share is None:
        return None
    lines = [line for line in map(str.strip, document.split("\n")) if line]
    if _exceeds(sum(line.startswith(_BULLETS) for line in lines), lines, rules.max_bullet_share):
        return "max_bullet_share"
    if _exceeds(sum(line.endswith(_ELLIPSES) for line in lines), lines, rules.max_ellipsis_share):
        return "max_ellipsis_share"
    if _exceeds(len(lines) - len(set(lines)), lines, rules.max_repeated_line_share):
        return "max_repeated_line_share"
    return None


def _exceeds(count: int, lines: list[str], most: float | None) -> bool:
    return most is not None and count > most * len(lines)
