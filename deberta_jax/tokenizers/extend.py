"""Adds tokens to a vocabulary, as `add_tokens` of transformers does."""

from collections.abc import Sequence

from ..errors import UserError
from .added_tokens import AddedToken, ExtendedVocabulary
from .tokenizer import Tokenizer


def extend_tokenizer(tokenizer: Tokenizer, contents: Sequence[str]) -> Tokenizer:
    """Returns a tokenizer with further tokens, whose ids follow the last one.

    In a released DeBERTa-v3 the first is 128001, after [MASK]; its tables have rows up to 128099. Each string is a
    token wherever it occurs in a text, as it is written. Decoded text has it, and a mask may replace it.

    Args:
      tokenizer: The tokenizer.
      contents: The strings.

    Raises:
      MissingPackageError: The package tokenizers is not installed.
      UserError: A string is empty, begins or ends with a space, occurs twice, or is a token or piece already.
    """
    vocabulary = tokenizer.vocabulary
    special = {vocabulary.piece(i): i for i in vocabulary.special_ids.values()}
    for number, content in enumerate(contents):
        known = special.get(content, vocabulary.id_of(content))
        if not content or content != content.strip(" "):
            raise UserError(
                f"the token to add {content!r} is empty, or begins or ends with a space; give a string without spaces "
                "around it"
            )
        if "\0" in content or any("\ud800" <= letter <= "\udfff" for letter in content):
            raise UserError(f"the token to add {content!r} has a NUL character or half a surrogate pair")
        if content in contents[:number]:
            raise UserError(f"the token to add {content!r} is given twice; give it once")
        if known is not None:
            raise UserError(
                f"the token to add {content!r} is in the vocabulary already, with the id {known}; leave it out"
            )
    tokens = {tokenizer.vocab_size + place: AddedToken(content) for place, content in enumerate(contents)}
    if isinstance(vocabulary, ExtendedVocabulary):
        return Tokenizer(vocabulary.extended(tokens))
    return Tokenizer(ExtendedVocabulary(vocabulary, tokens, source="the list of tokens to add"))


def declare_pieces(tokenizer: Tokenizer, symbols: Sequence[str]) -> Tokenizer:
    """Returns a tokenizer that finds some of its pieces as added tokens are found, with the ids that they have.

    transformers treats user-defined symbols of SentencePiece so: the text after one begins like a new word.

    Args:
      tokenizer: The tokenizer.
      symbols: The pieces.
    """
    ids = {symbol: tokenizer.vocabulary.id_of(symbol) for symbol in symbols}
    tokens = {i: AddedToken(symbol) for symbol, i in ids.items() if i is not None}
    if not tokens:
        return tokenizer
    return Tokenizer(ExtendedVocabulary(tokenizer.vocabulary, tokens, source="the list of symbols"))
