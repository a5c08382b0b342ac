"""The scores of SQuAD for answers as texts, as fractions: those of the published scripts, divided by 100.

`squad_v1` is evaluate-v1.1.py, and `squad_v2` is evaluate-v2.0.py with --na-prob-file and --na-prob-thresh. They differ
for answers such as "The", which are empty after normalization. In 1.1 the F1 of such a prediction is 0 even if it is
exact. 2.0 ignores such accepted answers and treats such predictions like "no answer".
"""

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Shaped

Golds = Sequence[Sequence[str]]  # the accepted texts of each question; none if the context has no answer
PairScore = Callable[[str, str], float]  # the score, from 0 to 1, of an accepted text and a predicted text

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Returns a text in lower case without ASCII punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact(gold: str, prediction: str) -> float:
    """Returns 1 if the texts are equal after normalization, else 0."""
    return float(normalize(gold) == normalize(prediction))


def overlap(gold: str, prediction: str) -> float:
    """Returns the F1 of the two bags of words; 0 if they have no word in common."""
    expected, predicted = normalize(gold).split(), normalize(prediction).split()
    shared = sum((collections.Counter(expected) & collections.Counter(predicted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def overlap_or_both_empty(gold: str, prediction: str) -> float:
    """Returns `overlap`, or 1 if neither text has words."""
    if not normalize(gold) or not normalize(prediction):
        return exact(gold, prediction)
    return overlap(gold, prediction)


def squad_v1(golds: Golds, predictions: Sequence[str]) -> dict[str, float]:
    """Returns `exact_match` and `f1`, each for the accepted text that is closest to the prediction.

    Raises:
      ValueError: if a question has no accepted text, for which `squad_v2` is defined.
    """
    if not all(golds):
        raise ValueError("a question has no answer, which SQuAD 1.1 does not allow; use squad_v2")
    pairs = list(zip(golds, predictions, strict=True))
    scores: dict[str, PairScore] = {"exact_match": exact, "f1": overlap}
    return {
        name: sum(_best(score, accepted, text) for accepted, text in pairs) / len(pairs)
        for name, score in scores.items()
    }


def squad_v2(
    golds: Golds, predictions: Sequence[str], no_answer: Sequence[float] | None = None, *, threshold: float = 0.0
) -> dict[str, float]:
    """Returns the scores of questions of which some have no answer.

    Args:
      golds: the accepted texts of each question.
      predictions: the best answer to each question; "" is no answer.
      no_answer: for each question, a number that is higher the more likely it is that there is no answer (default:
        predictions are final).
      threshold: a prediction becomes "" if its `no_answer` is higher.

    Returns:
      `exact_match` and `f1`; the same for the questions with an answer (`HasAns_exact`, `HasAns_f1`) and for those
      without (`NoAns_exact`, `NoAns_f1`), if there are any. With `no_answer`, also the best scores that any threshold
      gives (`best_exact`, `best_f1`) and these thresholds (`best_exact_thresh`, `best_f1_thresh`).
    """
    has_answer = np.array([bool(accepted) for accepted in golds])
    predicts_none = np.zeros(len(golds), bool) if no_answer is None else np.asarray(no_answer) > threshold
    scores: dict[str, PairScore] = {"exact": exact, "f1": overlap_or_both_empty}
    raw = {
        name: np.array(
            [_best(score, _with_words(accepted), text) for accepted, text in zip(golds, predictions, strict=True)]
        )
        for name, score in scores.items()
    }
    final = {name: np.where(predicts_none, ~has_answer, values) for name, values in raw.items()}
    figures = {"exact_match": _mean(final["exact"]), "f1": _mean(final["f1"])}
    for prefix, chosen in (("HasAns", has_answer), ("NoAns", ~has_answer)):
        if chosen.any():
            figures |= {f"{prefix}_{name}": _mean(values[chosen]) for name, values in final.items()}
    if no_answer is not None:
        for name, values in raw.items():
            # What a prediction adds compared with "no answer", which is correct for the questions without an answer.
            gains = np.where(has_answer, values, -np.array([bool(text) for text in predictions], float))
            best, best_threshold = _best_threshold(gains, np.asarray(no_answer, float), int((~has_answer).sum()))
            figures |= {f"best_{name}": best, f"best_{name}_thresh": best_threshold}
    return figures


def _best(score: PairScore, golds: Sequence[str], prediction: str) -> float:
    return max(score(gold, prediction) for gold in golds)


def _with_words(golds: Sequence[str]) -> Sequence[str]:
    """Returns the accepted texts that have words after normalization, or only "" if there are none."""
    return [gold for gold in golds if normalize(gold)] or [""]


def _mean(scores: Shaped[np.ndarray, "questions"]) -> float:
    return float(scores.sum()) / len(scores)


def _best_threshold(
    gains: Float[np.ndarray, "questions"], no_answer: Float[np.ndarray, "questions"], unanswerable: int
) -> tuple[float, float]:
    """Returns the best score and its threshold, the highest `no_answer` of a prediction that is kept.

    If every prediction is "no answer", the score is the number of questions without an answer. Predictions are then
    added one by one, in ascending order of `no_answer`, and each adds its gain. As in the script, questions with equal
    `no_answer` are added separately, and the threshold is 0 if "no answer" is best for all questions.
    """
    order = np.argsort(no_answer, kind="stable")
    sums = unanswerable + np.cumsum(gains[order])
    best = int(np.argmax(sums))
    if sums[best] <= unanswerable:
        return unanswerable / len(gains), 0.0
    return float(sums[best]) / len(gains), float(no_answer[order[best]])
