"""Dropout masks are at their rate, unbiased and uncorrelated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.random import SlotSeeds, dropout, dropout_salt, gumbel_noise, keep_mask


def assert_every_slice_is_at_the_rate(kept: np.ndarray, rate: float) -> None:
    """Looks for stripes: the share in every slice along every axis."""
    for axis in range(kept.ndim):
        shares = 1 - np.moveaxis(kept, axis, 0).reshape(kept.shape[axis], -1).mean(axis=1)
        assert np.abs(shares - rate).max() < 6 * (rate * (1 - rate) * kept.shape[axis] / kept.size) ** 0.5


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_is_at_its_rate_unbiased_and_uncorrelated(rate: float) -> None:
    x = jnp.ones((64, 128, 256))
    dropped = np.asarray(dropout(x, rate=rate, key=jax.random.key(1)))
    with_other_key = np.asarray(dropout(x, rate=rate, key=jax.random.key(2)))
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 1 / (1 - rate), rtol=1e-6)
    deviation = (rate * (1 - rate) / dropped.size) ** 0.5
    assert abs(1 - kept.mean() - rate) < 5 * deviation
    assert_every_slice_is_at_the_rate(kept, rate)
    centered = kept - kept.mean()
    bound = 6 * rate * (1 - rate) / dropped.size**0.5
    for lag in (1, 2, 255, 256, 257, 128 * 256):
        flat = centered.ravel()
        assert abs((flat[:-lag] * flat[lag:]).mean()) < bound
    assert abs((centered * ((with_other_key != 0) - (with_other_key != 0).mean())).mean()) < bound


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_kernel_dropout_is_at_its_rate_and_uncorrelated(rate: float) -> None:
    length, drop_below = 1024, round(rate * 2**16)
    draw = jax.jit(functools.partial(keep_mask, queries=length, length=length, drop_below=drop_below))
    draws = [(seed, sequence, head) for seed in (1, 2) for sequence in (0, 1) for head in (0, 1)]
    salts = [dropout_salt(*map(jnp.int32, draw)) for draw in draws]
    masks = np.stack([np.concatenate([draw(salt, key, 0) for key in range(0, length, 128)]).T for salt in salts])
    share, count = drop_below / 2**16, masks.size
    assert abs(1 - masks.mean() - share) < 5 * (share * (1 - share) / count) ** 0.5
    assert_every_slice_is_at_the_rate(masks, share)
    centered = masks - masks.mean()
    bound = 6 * share * (1 - share)
    for query, key in ((0, 1), (1, 0), (1, 1), (0, 64), (0, 128), (64, 0), (512, 0), (0, 512)):
        pairs = centered[:, query:, key:] * centered[:, : length - query, : length - key]
        assert abs(pairs.mean()) < bound / pairs.size**0.5
    for index, mask in enumerate(centered):
        for other in centered[:index]:
            assert abs((mask * other).mean()) < bound / length


def test_kernel_mask_does_not_depend_on_the_tile() -> None:
    salt = dropout_salt(jnp.int32(1), jnp.int32(0), jnp.int32(0))
    whole = keep_mask(salt, 128, 0, queries=256, length=256, drop_below=2**15)
    part = keep_mask(salt, 128, 128, queries=128, length=256, drop_below=2**15)
    np.testing.assert_array_equal(whole[:, 128:], part)


def test_gumbel_noise_has_its_distribution_and_no_correlation() -> None:
    slots, words = 500, 4000
    seeds = SlotSeeds.draw((slots,), jax.random.key(1))
    noise = np.asarray(jax.jit(gumbel_noise)(jnp.arange(words), SlotSeeds(*(seed[:, None] for seed in seeds))))
    size = noise.size
    assert abs(noise.mean() - np.euler_gamma) < 5 * (np.pi**2 / 6 / size) ** 0.5
    np.testing.assert_allclose(noise.var(), np.pi**2 / 6, rtol=0.01)
    for threshold in (-2.0, 0.0, 3.0, 6.0, 9.0, 11.0):  # 9 and 11: only numbers below 2^-10 are as high
        share = 1 - np.exp(-np.exp(-threshold))
        assert abs((noise > threshold).mean() - share) < 5 * (share * (1 - share) / size) ** 0.5, threshold
    centered = noise - noise.mean()
    for lag in (1, 2, 64, 127, 512, words - 1, words, words + 1):
        flat = centered.ravel()
        assert abs((flat[:-lag] * flat[lag:]).mean()) < 6 * np.pi**2 / 6 / size**0.5, lag


def test_gumbel_noise_of_a_word_does_not_depend_on_the_others() -> None:
    seeds = SlotSeeds.draw((3, 1), jax.random.key(1))
    whole = gumbel_noise(jnp.arange(100), seeds)
    np.testing.assert_array_equal(gumbel_noise(jnp.arange(40, 60), seeds), whole[:, 40:60])
    assert len(np.unique(whole)) == whole.size
