"""Reads pairs of a better and a worse answer."""

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.rewards import task as rewards
from deberta_jax.train.tasks.rewards.examples import Preference

from ....support.configs import finetune_config
from ....support.letters import Letters
from ....support.published_archives import json_lines


def load(write, row, **options):
    config = finetune_config(
        train=write("train.jsonl", json_lines(row)), kind="reward", **({"max_length": 16} | options)
    )
    return rewards.load(config, Letters())


def test_a_prompt_is_the_first_text_of_both_answers(write):
    row = {"prompt": "p", "chosen": "yes", "rejected": "no"}
    assert list(load(write, row).examples["train"]) == [Preference("p", "yes", "no")]
    row = {"question": "p", "good": "yes", "bad": "no"}
    task = load(write, row, text_column="question", choices_columns=("good", "bad"))
    assert list(task.examples["train"]) == [Preference("p", "yes", "no")]
    assert list(load(write, {"chosen": "a", "rejected": "b"}).examples["train"]) == [Preference(None, "a", "b")]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"chosen": "a", "rejected": "a"}, {}, "line 1: columns 'chosen' and 'rejected' are equal; remove the row"),
        ({"chosen": "a", "rejected": " "}, {}, "line 1: column 'rejected' is empty"),
        ({"chosen": "a"}, {}, "line 1: no column 'rejected'; the columns are 'chosen'"),
        ({"chosen": [{"role": "user", "content": "a"}], "rejected": "b"}, {}, "holds a list, as of the messages of"),
        ({"chosen": "a", "rejected": "b"}, {"text_column": "x"}, "no column 'x'"),
        ({"chosen": "a", "rejected": "b"}, {"choices_columns": ("a",)}, "kind 'reward' needs the column of the better"),
        ({"chosen": "a", "rejected": "b"}, {"metric": "f1"}, "this task does not have; it has accuracy, margin"),
    ],
)
def test_rows_that_cannot_be_used_are_named(write, row, options, message):
    with pytest.raises(UserError, match=message):
        load(write, row, **options)


def test_pairs_that_are_equal_after_the_cut_are_counted(write):
    task = load(write, {"chosen": "abcdx", "rejected": "abcdy"}, max_length=4)
    assert task.splits["train"].notes[-1].startswith("1 with the same tokens for both answers, which teach nothing")
