"""The published settings, and the command that runs them."""

from unittest import mock

import pytest

from deberta_jax.__main__ import main
from deberta_jax.config import RELEASED
from deberta_jax.train import recipes
from deberta_jax.train.recipes import RECIPES, SCORES, TASKS
from deberta_jax.train.tasks.sources.published import PUBLISHED


def test_every_recipe_is_of_a_released_model_and_a_known_set():
    for name, recipe in RECIPES.items():
        task, _, model = name.partition("/")
        assert model in RELEASED
        assert recipe.config.data.train.removeprefix("tfds:") in PUBLISHED
        assert "not measured here" in recipe.text.lower()
        assert f"deberta-jax recipe {name} " in recipe.text
        assert SCORES.get(model, {}).get(task, "no published figure") in recipe.text
        assert 0 < recipe.config.optimizer.learning_rate < 1e-4
    assert {task for scores in SCORES.values() for task in scores} <= set(TASKS)


def test_the_small_sets_start_from_mnli_for_the_first_versions_alone():
    assert "microsoft/deberta-large-mnli " in RECIPES["rte/deberta-large"].text
    assert "mnli" not in RECIPES["rte/deberta-v3-large"].text.replace("MNLI with", "")


def test_a_recipe_is_finetuning_with_other_defaults():
    with mock.patch.object(recipes.finetune, "main") as run:
        options = ["--model", "here", "--output", "there", "--batch-size", "8"]
        assert main(["recipe", "mnli/deberta-v3-large", *options]) == 0
    config = run.call_args.args[0]
    assert (config.data.train, config.batch_size, config.data.max_length, config.epochs) == (
        "tfds:glue/mnli",
        8,
        256,
        2,
    )
    assert (config.optimizer.learning_rate, config.optimizer.warmup) == (7e-6, 500)
    assert (config.regularization.classifier_dropout, config.optimizer.schedule) == (0.3, "warmup_linear")


def test_recipes_of_sift_have_its_weight():
    weights = {name: recipe.config.sift.weight for name, recipe in RECIPES.items()}
    assert weights["mnli-sift/deberta-v3-base"] == 5
    assert weights["mnli-sift/deberta-v3-xsmall"] == 3
    assert all(weight == 0 for name, weight in weights.items() if not name.startswith("mnli-sift/"))


def test_the_list_and_what_is_not_on_it(capsys):
    assert main(["recipe"]) == 0
    listed = capsys.readouterr().out
    assert main(["recipe", "--help"]) == 0
    assert "usage: deberta-jax recipe TASK/MODEL" in capsys.readouterr().out
    assert "mnli/deberta-v3-large" in listed
    assert "91.8 / 91.9" in listed
    assert main(["recipe", "mnli/deberta-v4"]) == 1
    assert "no recipe 'mnli/deberta-v4'; did you mean mnli/deberta-" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["model", "output"])
def test_folders_are_the_users(missing, capsys):
    options = {"model": "here", "output": "there"}
    del options[missing]
    with pytest.raises(SystemExit) as caught:
        main(["recipe", "mnli/deberta-v3-base", *[word for k, v in options.items() for word in (f"--{k}", v)]])
    assert caught.value.code == 2
    assert f"--{missing}" in capsys.readouterr().err
