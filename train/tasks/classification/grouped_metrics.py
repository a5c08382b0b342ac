"""Scores of examples that belong together: the answers to a question, the entities that may fill a gap."""

from collections.abc import Sequence

import numpy as np

from ..spans.squad_metrics import squad_v1


def exact_match(predictions: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> float:
    """Share of the groups all of whose entries [E] are equal: MultiRC's EM, whose groups are questions."""
    wrong = {group for group, one, other in zip(groups, predictions, labels, strict=True) if one != other}
    return 1 - len(wrong) / len(set(groups))


def answer_scores(
    shares: Sequence[float], labels: np.ndarray, groups: Sequence[str], answers: Sequence[str]
) -> dict[str, float]:
    """`answer_f1` and `answer_exact_match` of the likeliest answer of every group, in per cent.

    Source: the evaluation script of ReCoRD, `DeBERTa/apps/tasks/record_eval.py` in the official code.

    Args:
      shares: [E], the probability that an answer is right; of equal ones the first is taken.
      labels: [E], nonzero for the right answers.
      answers: [E], texts, which are compared as SQuAD's are.

    Raises:
      ValueError: a group has no right answer.
    """
    golds: dict[str, list[str]] = {group: [] for group in groups}
    best: dict[str, tuple[float, str]] = {}
    for share, label, group, answer in zip(shares, labels, groups, answers, strict=True):
        if label:
            golds[group].append(answer)
        if group not in best or share > best[group][0]:
            best[group] = (share, answer)
    figures = squad_v1(list(golds.values()), [best[group][1] for group in golds])
    return {"answer_f1": figures["f1"], "answer_exact_match": figures["exact_match"]}
