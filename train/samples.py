"""Texts with masked tokens: what a generator guesses for them, and which tokens a discriminator takes for replaced."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from deberta_jax.models import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from deberta_jax.predict.classification import sigmoid, softmax
from deberta_jax.predict.loaded_model import LoadedModel
from deberta_jax.tokenizers.tokenizer import Tokenizer

_LENGTH = 32  # rows are padded to a multiple of this, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Guess:
    """A token that the generator considers for a masked one, and its probability, 0 to 1."""

    text: str
    probability: float


@dataclasses.dataclass(frozen=True)
class SampledToken:
    """One token of a text that was masked and filled again.

    Attributes:
      original: Its text in the original.
      shown: Its text after the generator's replacement; the same as `original` if it was not masked.
      has_space: Whether a space stands before the original.
      shown_has_space: The same of the replacement.
      guesses: The generator's most probable tokens, best first; empty if the token was not masked.
      replaced: The discriminator's probability that the token was replaced; None without a discriminator.
    """

    original: str
    shown: str
    has_space: bool
    shown_has_space: bool
    guesses: tuple[Guess, ...]
    replaced: float | None


def sample_texts(
    rows: Sequence[Sequence[int]],
    generator: LoadedModel,
    discriminator: LoadedModel | None = None,
    *,
    seed: int = 0,
    rate: float = 0.15,
    top_k: int = 3,
) -> list[list[SampledToken]]:
    """Masks whole words of texts, fills them with samples of the generator and shows them to the discriminator.

    This is what one step of replaced token detection does, except that only tokens that are a word with a letter are
    masked, because people read the result.

    Args:
      rows: The token ids of each text, from [CLS] to [SEP].
      generator: A model with a masked LM head.
      discriminator: A model with a replaced token head (default: nothing is judged).
      seed: Seed of masks and samples.
      rate: Share of the tokens of a text to mask; at least one is.
      top_k: Number of guesses for each masked token.

    Returns:
      For each text its tokens without the special ones.
    """
    tokenizer, generator_rng = generator.tokenizer, np.random.default_rng(seed)
    width = -(-max(map(len, rows)) // _LENGTH) * _LENGTH
    ids = np.full((len(rows), width), tokenizer.pad_id, np.int32)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    mask = np.arange(width) < np.array([[len(tokens)] for tokens in rows])
    masked = _choose_words(ids, mask, tokenizer, generator_rng, rate)
    probabilities = _generator_probabilities(generator, np.where(masked, tokenizer.mask_id, ids), mask, masked)
    shown = ids.copy()
    shown[masked] = [generator_rng.choice(tokenizer.vocab_size, p=each) for each in probabilities]
    number = np.cumsum(masked).reshape(masked.shape) - 1  # of each masked token among all of them
    judged = None if discriminator is None else _replaced_probabilities(discriminator, shown, mask)
    special = tokenizer.is_special

    def guesses(place: tuple[int, int]) -> tuple[Guess, ...]:
        if not masked[place]:
            return ()
        each = probabilities[number[place]]
        return tuple(Guess(tokenizer.decode([i]), float(each[i])) for i in np.argsort(-each)[:top_k])

    return [
        [
            SampledToken(
                tokenizer.decode([ids[row, column]]),
                tokenizer.decode([shown[row, column]]),
                _has_space(tokenizer, ids[row, column - 1], ids[row, column]),
                _has_space(tokenizer, shown[row, column - 1], shown[row, column]),
                guesses((row, column)),
                None if judged is None else float(judged[row, column]),
            )
            for column in range(len(tokens))
            if not special[ids[row, column]]
        ]
        for row, tokens in enumerate(rows)
    ]


def _has_space(tokenizer: Tokenizer, before: int, token: int) -> bool:
    """Returns whether a decoded text has a space between two tokens."""
    return tokenizer.decode([before, token]) != tokenizer.decode([before]) + tokenizer.decode([token])


def _choose_words(
    ids: Int[np.ndarray, "B S"],
    mask: Bool[np.ndarray, "B S"],
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    rate: float,
) -> Bool[np.ndarray, "B S"]:
    """Returns which tokens to mask: a share of each row, among the tokens that are a whole word."""
    starts, special = tokenizer.starts_word, tokenizer.is_special
    ends = np.ones_like(mask)
    following = ids[:, 1:]
    ends[:, :-1] = starts[following] | special[following]
    ends[:, :-1] |= [[not any(map(str.isalpha, tokenizer.decode([i]))) for i in row] for row in following]
    words = mask & starts[ids] & ~special[ids] & ends
    words &= np.array([[tokenizer.decode([i]).strip().isalpha() for i in row] for row in ids])
    chosen = np.zeros_like(mask)
    for row, (word, real) in enumerate(zip(words, mask, strict=True)):
        places = np.flatnonzero(word)
        count = min(len(places), max(1, round(rate * int(real.sum()))))
        chosen[row, rng.choice(places, count, replace=False)] = True
    return chosen


def _generator_probabilities(
    generator: LoadedModel,
    ids: Int[np.ndarray, "B S"],
    mask: Bool[np.ndarray, "B S"],
    masked: Bool[np.ndarray, "B S"],
) -> Float[np.ndarray, "masks V"]:
    """Returns the generator's distribution over the ids of the tokenizer, at the masked positions, in float64."""
    model = DebertaForMaskedLM(generator.config)
    apply = jax.jit(lambda params: model.apply({"params": params}, ids, mask.astype(np.int32)))
    logits = np.asarray(apply(generator.params).logits)[masked][:, : generator.tokenizer.vocab_size]
    return softmax(logits.astype(np.float64))


def _replaced_probabilities(
    discriminator: LoadedModel, ids: Int[np.ndarray, "B S"], mask: Bool[np.ndarray, "B S"]
) -> Float[np.ndarray, "B S"]:
    model = DebertaForReplacedTokenDetection(discriminator.config)
    apply = jax.jit(lambda params: model.apply({"params": params}, ids, mask.astype(np.int32)))
    return sigmoid(np.asarray(apply(discriminator.params).logits, np.float64))
