"""Which corpus each row of a mixture comes from, as pure functions of the row's number.

Rows are interleaved evenly: among the first n rows, the number of rows of a corpus differs from its share of n by less
than the number of corpora. Nothing is drawn at random, because the rows of each corpus are shuffled already.
"""

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from deberta_jax.errors import UserError
from deberta_jax.path_names import distinct_endings
from deberta_jax.terminal import quote_names

Shares = tuple[int, ...]  # of the corpora of a mixture, in proportion to their weights


def integer_shares(names: Sequence[str], weights: Sequence[Fraction | None], rows: Sequence[int]) -> Shares:
    """Returns whole numbers in proportion to the weights, which need not sum to 1; without weights, to the rows.

    Args:
      names: the names of the corpora, for errors.
      weights: the weight of each corpus; all of them or none.
      rows: the number of rows of each corpus.

    Raises:
      UserError: some corpora have a weight and others have none.
    """
    missing = [name for name, weight in zip(names, weights, strict=True) if weight is None]
    if missing and len(missing) < len(weights):
        raise UserError(
            f"{quote_names(missing)} has no weight, but other corpora have one; give every corpus a weight, or none, "
            "which draws rows in proportion to their number"
        )
    fractions = [Fraction(number) if weight is None else weight for weight, number in zip(weights, rows, strict=True)]
    denominator = math.lcm(*(fraction.denominator for fraction in fractions))
    shares = [int(fraction * denominator) for fraction in fractions]
    divisor = math.gcd(*shares)
    return tuple(share // divisor for share in shares)


def count_rows(total: int, shares: Shares) -> tuple[int, ...]:
    """Returns how many of the first `total` rows of a mixture come from each corpus.

    The first corpus is interleaved with all others, then the second one with those after it, and so on. Therefore each
    number grows by 1 or 0 from one total to the next.
    """
    counts: list[int] = []
    rest, remaining = total, sum(shares)
    for share in shares:
        after = rest * (remaining - share) // remaining
        counts.append(rest - after)
        rest, remaining = after, remaining - share
    return tuple(counts)


def locate_row(number: int, shares: Shares) -> tuple[int, int]:
    """Returns which corpus a row of a mixture comes from, and the number of the row in the stream of that corpus."""
    before, after = count_rows(number, shares), count_rows(number + 1, shares)
    corpus = next(place for place, count in enumerate(before) if after[place] > count)
    return corpus, before[corpus]


def short_names(folders: Sequence[str]) -> list[str]:
    """Returns a distinct name for each of several folders: the last parts of its path, as many as all of them need."""
    parts = [[part for part in re.split(r"[/\\]", folder) if part not in ("", ".")] or [folder] for folder in folders]
    names = distinct_endings(parts, "-")
    return names or [f"{'-'.join(path)}-{number}" for number, path in enumerate(parts, 1)]
