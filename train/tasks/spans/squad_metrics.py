"""SQuAD's scores of answers as texts, in per cent; numerically those of its published scripts.

`squad_v1` is evaluate-v1.1.py, `squad_v2` evaluate-v2.0.py with --na-prob-file and --na-prob-thresh. They differ where
nothing is left of an answer once it is normalized ("The"): in 1.1 such a prediction has an F1 of 0 even if it is exact;
2.0 passes over such answers, and compares them as it does "no answer".
"""

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from deberta_jax.errors import UserError

Golds = Sequence[Sequence[str]]  # the accepted texts of every question; none: the context has no answer
Score = Callable[[str, str], float]  # an accepted text, the predicted one -> 0 to 1

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, then without articles, every white space one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact(gold: str, prediction: str) -> float:
    return float(normalize(gold) == normalize(prediction))


def overlap(gold: str, prediction: str) -> float:
    """F1 of the two bags of words; 0 where they share none."""
    expected, found = normalize(gold).split(), normalize(prediction).split()
    shared = sum((collections.Counter(expected) & collections.Counter(found)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(found), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def overlap_or_none(gold: str, prediction: str) -> float:
    """`overlap`, but 1 where both have no words."""
    if not normalize(gold) or not normalize(prediction):
        return exact(gold, prediction)
    return overlap(gold, prediction)


def squad_v1(golds: Golds, predictions: Sequence[str]) -> dict[str, float]:
    """`exact_match` and `f1` of Q predictions, each against the accepted text that it is closest to.

    Raises:
      ValueError: a question has no accepted text; that is for `squad_v2`.
    """
    if not all(golds):
        raise UserError("a question has no answer, which SQuAD 1.1 does not know; use squad_v2")
    pairs = list(zip(golds, predictions, strict=True))
    scores: dict[str, Score] = {"exact_match": exact, "f1": overlap}
    return {
        name: 100.0 * sum(_best(score, gold, text) for gold, text in pairs) / len(pairs)
        for name, score in scores.items()
    }


def squad_v2(
    golds: Golds, predictions: Sequence[str], no_answer: Sequence[float] | None = None, *, threshold: float = 0.0
) -> dict[str, float]:
    """Scores of Q questions, some of them without an answer.

    Args:
      predictions: the best answer to each; "" says that there is none.
      no_answer: for each question, how much more likely it is that there is none; None: predictions are final.
      threshold: a prediction counts as "" where no_answer is above it.

    Returns:
      `exact_match` and `f1`; the same of the questions with an answer (`HasAns_exact`, `HasAns_f1`) and of those
      without (`NoAns_exact`, `NoAns_f1`), where there are any; with no_answer the best scores that any one threshold
      gives (`best_exact`, `best_f1`), and that threshold (`best_exact_thresh`, `best_f1_thresh`).
    """
    answered = np.array([bool(gold) for gold in golds])
    silent = np.zeros(len(golds), bool) if no_answer is None else np.asarray(no_answer) > threshold
    scores: dict[str, Score] = {"exact": exact, "f1": overlap_or_none}
    raw = {
        name: np.array([_best(score, _worded(gold), text) for gold, text in zip(golds, predictions, strict=True)])
        for name, score in scores.items()
    }
    final = {name: np.where(silent, ~answered, values) for name, values in raw.items()}
    figures = {"exact_match": _mean(final["exact"]), "f1": _mean(final["f1"])}
    for part, chosen in (("HasAns", answered), ("NoAns", ~answered)):
        if chosen.any():
            figures |= {f"{part}_{name}": _mean(values[chosen]) for name, values in final.items()}
    if no_answer is not None:
        for name, values in raw.items():
            gains = np.where(answered, values, -np.array([bool(text) for text in predictions], float))
            best, where = _best_threshold(gains, np.asarray(no_answer), start=int((~answered).sum()))
            figures |= {f"best_{name}": best, f"best_{name}_thresh": where}
    return figures


def _best(score: Score, golds: Sequence[str], prediction: str) -> float:
    return max(score(gold, prediction) for gold in golds)


def _worded(golds: Sequence[str]) -> Sequence[str]:
    """The accepted texts that have words; only "" where none has."""
    return [gold for gold in golds if normalize(gold)] or [""]


def _mean(scores: np.ndarray) -> float:
    return 100.0 * float(scores.sum()) / len(scores)


def _best_threshold(gains: np.ndarray, no_answer: np.ndarray, *, start: int) -> tuple[float, float]:
    """The best sum of scores in per cent, and the highest no_answer up to which predictions stand for it.

    With every prediction silent the sum is `start`; each one that speaks, the least doubtful first, adds its gain. As
    in the script, questions with equal no_answer speak one after the other, and the threshold is 0 where silence is
    best.
    """
    order = np.argsort(no_answer, kind="stable")
    sums = start + np.cumsum(gains[order])
    best = int(np.argmax(sums))
    if sums[best] <= start:
        return 100.0 * start / len(gains), 0.0
    return 100.0 * float(sums[best]) / len(gains), float(no_answer[order[best]])
