"""Scores of examples in groups: the answers to one question, or the entities that may fill one gap."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

from deberta_jax.errors import UserError

from ..spans.squad_metrics import squad_v1


def exact_match(
    predictions: Integer[np.ndarray, "E"], labels: Integer[np.ndarray, "E"], groups: Sequence[str]
) -> float:
    """Returns the share of the groups without a wrong prediction: the EM of MultiRC, whose groups are questions."""
    wrong = {group for group, prediction, label in zip(groups, predictions, labels, strict=True) if prediction != label}
    return 1 - len(wrong) / len(set(groups))


def answer_scores(
    probabilities: Sequence[float], labels: Integer[np.ndarray, "E"], groups: Sequence[str], answers: Sequence[str]
) -> dict[str, float]:
    """Returns `answer_f1` and `answer_exact_match` of the most probable answer of each group, as fractions.

    Source: the evaluation script of ReCoRD, `DeBERTa/apps/tasks/record_eval.py` in the official code.

    Args:
      probabilities: the probability that an answer is correct; the first of equal ones is chosen.
      labels: nonzero for the correct answers.
      groups: the group of each answer.
      answers: the texts, which are compared as in SQuAD.

    Raises:
      UserError: if a group has no correct answer.
    """
    golds: dict[str, list[str]] = {group: [] for group in groups}
    best: dict[str, tuple[float, str]] = {}
    for probability, label, group, answer in zip(probabilities, labels, groups, answers, strict=True):
        if label:
            golds[group].append(answer)
        if group not in best or probability > best[group][0]:
            best[group] = (probability, answer)
    if missing := [group for group, accepted in golds.items() if not accepted]:
        raise UserError(f"query {missing[0]} has no correct answer among its entities; every query needs one")
    figures = squad_v1(list(golds.values()), [best[group][1] for group in golds])
    return {"answer_f1": figures["f1"], "answer_exact_match": figures["exact_match"]}
