"""The batches, the loss, the scores and the records of a reward model."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.train.tasks.rewards import task as rewards

from ....support.configs import finetune_config
from ....support.letters import Letters
from ....support.published_archives import json_lines

ROWS = [{"prompt": "p", "chosen": "ab", "rejected": "c"}, {"prompt": "q", "chosen": "d", "rejected": "ef"}]


def test_scores_and_records_are_of_pairs(write):
    config = finetune_config(train=write("train.jsonl", json_lines(*ROWS)), kind="reward", max_length=8)
    task = rewards.load(config, Letters())
    batch = task.splits["train"].batch(np.array([1, 0]), length=4)
    letters = [[["q", "d"], ["q", "e", "f"]], [["p", "a", "b"], ["p", "c"]]]
    ids = [[[*map(ord, row), *[0] * (4 - len(row))] for row in pair] for pair in letters]
    assert batch["input_ids"].tolist() == ids
    assert batch["attention_mask"].sum(axis=-1).tolist() == [[2, 3], [3, 2]]
    assert task.splits["train"].lengths.tolist() == [3, 3]

    logits = jnp.array([[2.0, 1.0], [-1.0, 0.5]])
    out = SimpleNamespace(logits=logits)
    loss, count = task.objective.loss(out, batch)
    expected = np.log1p(np.exp(-1.0)) + np.log1p(np.exp(1.5))
    assert float(loss) == pytest.approx(expected)
    assert float(count) == float(task.objective.count(batch)) == 2
    predictions = [{"scores": row} for row in np.asarray(task.objective.predict(out, batch)["scores"])]
    figures = task.score("train", predictions)
    assert figures == pytest.approx({"accuracy": 0.5, "margin": -0.25, "log_loss": expected / 2})
    assert next(task.records("train", predictions)) == {**ROWS[0], "chosen_score": 2.0, "rejected_score": 1.0}
