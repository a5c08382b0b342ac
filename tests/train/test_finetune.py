"""Whole fine-tuning runs: what is chosen, frozen, predicted, resumed and averaged."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaConfig, DebertaForSequenceClassification, Tokenizer, load_pretrained, save_pretrained
from deberta_jax.errors import UserError
from deberta_jax.options import parse_options
from deberta_jax.train import finetune
from deberta_jax.train.configs import FinetuneConfig, GridConfig, OptimizerConfig
from deberta_jax.train.engine.best import BestEvaluation
from deberta_jax.train.finetune_evaluation import Predictor, Validation
from deberta_jax.train.finetune_setup import heads_message, identity, task_config
from deberta_jax.train.hosts.exit_codes import StoppedError
from deberta_jax.train.hosts.join import Hosts
from deberta_jax.train.reporting.reporter import SilentReporter
from deberta_jax.train.sweep import RunOutcome
from deberta_jax.train.tasks.classification.task import Classification, ClassificationTask
from deberta_jax.train.tuning import Tuning

from ..support import small_models
from ..support.configs import changed, finetune_config
from ..support.small_models import random_params

TINY = small_models.TINY.replace(initializer_range=0.05)
COLORS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def home(novel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of random weights and its tokenizer, and sentences that name a color."""
    folder = tmp_path_factory.mktemp("home")
    things = ["house", "dog", "old car", "garden gate that nobody had painted for years", "hat"]
    rows = [
        (f"the {thing} of number {number} is {color}", color)
        for number in range(8)
        for thing in things
        for color in COLORS
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    for name, part in (("train", order[:80]), ("validation", order[80:107])):
        lines = [json.dumps({"text": rows[number][0], "label": rows[number][1]}) for number in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    unlabeled = [json.dumps({"text": f"my {color} book"}) for color in COLORS]
    (folder / "test.jsonl").write_text("\n".join(unlabeled) + "\n")
    save_pretrained(
        folder / "model", TINY, random_params(DebertaForSequenceClassification(TINY), jnp.ones((1, 8), jnp.int32))
    )
    Tokenizer.from_folder(novel / "tokenizer").save(folder / "model")
    return folder


def settings(home: Path, output: Path, **changes: Any) -> FinetuneConfig:
    base = finetune_config(
        output=output,
        model=home / "model",
        train=str(home / "train.jsonl"),
        validation=str(home / "validation.jsonl"),
        max_length=48,
        batch_size=16,
        steps=40,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        evaluate_every=20,
        log_every=1,
    )
    return changed(base, **changes)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_writes_model_predictions_and_scores(home: Path, tmp_path: Path, capsys) -> None:
    results = finetune.main(settings(home, tmp_path, test=str(home / "test.jsonl")))
    assert set(results) == {"validation"}
    assert results["validation"]["accuracy"] > 0.9
    assert json.loads((tmp_path / "results.json").read_text()) == results
    head = "classifier random: the model's is 32 x 2, the task needs 32 x 3; pooler from the model"
    assert head in capsys.readouterr().out
    predictions = lines_of(tmp_path / "predictions" / "validation.jsonl")
    examples = lines_of(home / "validation.jsonl")
    assert [prediction["text"] for prediction in predictions] == [example["text"] for example in examples]
    for prediction in predictions:
        probabilities = prediction["probabilities"]
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert prediction["prediction"] == max(probabilities, key=probabilities.__getitem__)
    accuracy = np.mean([prediction["prediction"] == prediction["label"] for prediction in predictions])
    assert accuracy == pytest.approx(results["validation"]["accuracy"])
    unlabeled = lines_of(tmp_path / "predictions" / "test.jsonl")
    assert [prediction["text"] for prediction in unlabeled] == ["my red book", "my green book", "my blue book"]
    assert all("label" not in prediction for prediction in unlabeled)
    assert (tmp_path / "predictions" / "validation.png").exists()
    assert not (tmp_path / "predictions" / "test.png").exists()
    from_file = ["--config", str(tmp_path / "config.yaml")]
    written = parse_options(FinetuneConfig, from_file, prog="deberta-jax finetune")
    assert written == settings(home, tmp_path, test=str(home / "test.jsonl"))

    # The saved model, called by hand, gives the written probabilities.
    config, params = load_pretrained(tmp_path / "model")
    encoded = Tokenizer.from_folder(tmp_path / "model")(predictions[0]["text"])
    ids = np.array([encoded.input_ids])
    out = DebertaForSequenceClassification(config).apply({"params": params}, ids)
    by_hand = dict(zip(config.label_names, jax.nn.softmax(out.logits)[0].tolist(), strict=True))
    assert by_hand == pytest.approx(predictions[0]["probabilities"], abs=1e-5)


def test_no_steps_evaluate_and_predict_with_the_model_as_it_is(home: Path, tmp_path: Path, capsys) -> None:
    """All validation scores are equal, so that a correlation with them is undefined."""
    for name, scores in (("train", (0, 1, 2)), ("dev", (2.5, 2.5)), ("test", (1, 3))):
        rows = [{"text": f"number {score} and {index}", "label": score} for index, score in enumerate(scores)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}
    paths = {name: str(tmp_path / file) for name, file in files.items()}
    config = settings(home, tmp_path / "run", kind="regression", steps=0, batch_size=8, select="best", **paths)
    results = finetune.main(config)
    strict = json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=pytest.fail)
    assert strict["validation"] == {"pearson": None, "spearman": None}
    assert strict["test"] == results["test"]
    assert lines_of(tmp_path / "run" / "metrics.jsonl") == [{"step": 0, "eval/pearson": None, "eval/spearman": None}]
    out = capsys.readouterr().out
    assert "validation: pearson, spearman undefined, null in results.json, because all labels are 2.5" in out
    assert "no evaluation gave a number for pearson: the last model is the result" in out
    assert len(lines_of(tmp_path / "run" / "predictions" / "test.jsonl")) == 2
    before, after = load_pretrained(home / "model")[1], load_pretrained(tmp_path / "run" / "model")[1]
    jax.tree.map(np.testing.assert_array_equal, before["deberta"], after["deberta"])
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_picture_is_last_and_never_fails_a_run(home: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def draw(self: ClassificationTask, path: Path, *_: Any) -> None:
        assert (tmp_path / "results.json").exists()
        assert load_pretrained(tmp_path / "model")[0].label_names == ("blue", "green", "red")
        assert Tokenizer.from_folder(tmp_path / "model").vocab_size == 601
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr(ClassificationTask, "plot", draw)
    results = finetune.main(settings(home, tmp_path, epochs=0.0, steps=None))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert f"could not draw {tmp_path / 'predictions' / 'validation.png'}: RuntimeError: no fonts\n" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("interrupted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_another_content_of_the_same_files_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    """Neither an interrupted nor a finished run goes on with other labels or from another model."""
    train, model = tmp_path / "train.jsonl", tmp_path / "model"
    text = (home / "train.jsonl").read_text()
    flipped = text.replace('"label": "red"', '"label": "?"').replace('"label": "blue"', '"label": "red"')
    train.write_text(text)
    shutil.copytree(home / "model", model)
    config = settings(home, tmp_path / "run", train=str(train), validation=None, model=model, steps=1 + interrupted)
    with monkeypatch.context() as patch, pytest.raises(StoppedError) if interrupted else contextlib.nullcontext():
        patch.setattr(Hosts, "stop_requested", lambda hosts: interrupted and hosts.phases.step == 1)
        finetune.main(config)

    train.write_text(flipped.replace('"label": "?"', '"label": "blue"'))
    refusal = "began with other {}; use another --output, restore the files and settings it began with, or delete "
    with pytest.raises(UserError, match=refusal.format("training examples")):
        finetune.main(config)
    train.write_text(text)
    _, params = load_pretrained(model)
    params["deberta"]["embeddings"]["word_embeddings"]["embedding"] *= 1.001
    save_pretrained(model, TINY, params)
    with pytest.raises(UserError, match=refusal.format("weights of the model")):
        finetune.main(config)


def test_frozen_layers_stay_and_the_best_model_is_the_result(home: Path, tmp_path: Path, capsys) -> None:
    config = settings(
        home, tmp_path, steps=6, evaluate_every=2, freeze_layers=1, layer_decay=0.8, label_smoothing=0.1, select="best"
    )
    results = finetune.main(config)
    evaluations = [record for record in lines_of(tmp_path / "metrics.jsonl") if "eval/accuracy" in record]
    best = max(evaluations, key=lambda record: record["eval/accuracy"])
    assert f"the best evaluation was that of step {best['step']}" in capsys.readouterr().out
    assert results["validation"]["accuracy"] == best["eval/accuracy"]
    before, after = load_pretrained(home / "model")[1], load_pretrained(tmp_path / "model")[1]
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / "best")[1], after)
    before, after = before["deberta"], after["deberta"]
    jax.tree.map(np.testing.assert_array_equal, before["embeddings"], after["embeddings"])
    jax.tree.map(np.testing.assert_array_equal, before["encoder"]["layer_0"], after["encoder"]["layer_0"])
    moved = jax.tree.map(
        lambda x, y: bool(np.any(x != y)),
        before["encoder"]["layer_1"]["attention"],
        after["encoder"]["layer_1"]["attention"],
    )
    assert all(jax.tree.leaves(moved))


def test_without_a_finite_evaluation_the_last_model_is_the_result(home: Path) -> None:
    predictor = Predictor(
        settings(home, home / "run", select="best"), mock.Mock(main_metric="f1"), None, mock.Mock(), mock.Mock()
    )
    validation = Validation(predictor, TINY, Tuning(None))
    state = mock.Mock(params={"model": {"kernel": 1}})
    assert validation.best == BestEvaluation("f1")
    assert validation.chosen_params(state, SilentReporter()) == {"kernel": 1}
    assert validation.known_predictions(state) == {}


@pytest.mark.slow
def test_training_ends_without_improvement_and_the_best_model_is_the_result(home: Path, tmp_path: Path, capsys) -> None:
    """With a learning rate of 0 every evaluation equals the first one, which is the best."""
    still = OptimizerConfig(learning_rate=0.0)
    config = settings(home, tmp_path, select="best", patience=2, steps=200, evaluate_every=3, optimizer=still)
    results = finetune.main(config)
    records = lines_of(tmp_path / "metrics.jsonl")
    assert max(record["step"] for record in records) == 9  # the best at 3, two more without improvement
    assert "the best evaluation was that of step 3" in capsys.readouterr().out
    assert results["validation"]["accuracy"] == records[-1]["eval/accuracy"]
    assert finetune.main(config) == results  # repeated: nothing more is trained
    assert max(record["step"] for record in lines_of(tmp_path / "metrics.jsonl")) == 9


@pytest.mark.slow
def test_a_run_that_was_stopped_at_an_evaluation_makes_up_for_it(home: Path, tmp_path: Path, monkeypatch) -> None:
    changes = {"steps": 12, "evaluate_every": 4, "select": "best", "patience": 5, "group_by_length": True}
    expected = finetune.main(settings(home, tmp_path / "uninterrupted", **changes))

    with monkeypatch.context() as patch:
        patch.setattr(Hosts, "stop_requested", lambda hosts: hosts.phases.step == 8)
        with pytest.raises(StoppedError):
            finetune.main(settings(home, tmp_path / "stopped", **changes))
    assert "eval/accuracy" not in lines_of(tmp_path / "stopped" / "metrics.jsonl")[-1]
    assert finetune.main(settings(home, tmp_path / "stopped", **changes)) == expected
    folders = [tmp_path / name for name in ("uninterrupted", "stopped")]
    uninterrupted, stopped = (lines_of(folder / "metrics.jsonl") for folder in folders)
    assert stopped == uninterrupted
    jax.tree.map(np.testing.assert_array_equal, *(load_pretrained(folder / "best")[1] for folder in folders))


def test_seeds_run_one_after_the_other(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: FinetuneConfig, hosts: Hosts) -> RunOutcome:
        return RunOutcome({"validation": {"accuracy": 0.5 + config.seed / 10}}, "accuracy")

    monkeypatch.setattr(finetune, "run", run)
    results = finetune.main(settings(home, tmp_path, seeds=(0, 3)))
    assert results == {"validation": {"accuracy": 0.8}}
    assert json.loads((tmp_path / "summary.json").read_text())["best"] == str(tmp_path / "seed-3" / "model")
    repeated = parse_options(FinetuneConfig, ["--config", str(tmp_path / "config.yaml")], prog="deberta-jax finetune")
    assert repeated == settings(home, tmp_path, seeds=(0, 3))


@pytest.mark.slow
def test_seeds_and_a_grid_are_summarized(home: Path, tmp_path: Path, capsys) -> None:
    config = settings(home, tmp_path, steps=3, seeds=(0, 1), grid=GridConfig(learning_rate=(2e-3,)))
    results = finetune.main(config)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["setting"] for row in summary["settings"]] == ["learning_rate=0.002"]
    for row in summary["settings"]:
        folders = [tmp_path / row["setting"] / f"seed-{seed}" for seed in (0, 1)]
        values = [json.loads((folder / "results.json").read_text())["validation"]["accuracy"] for folder in folders]
        assert row["values"] == values
        assert row["mean"] == pytest.approx(np.mean(values))
    assert (Path(summary["best"]) / "config.json").exists()
    assert json.loads((Path(summary["best"]).parent / "results.json").read_text()) == results
    assert "± " in capsys.readouterr().out


def test_the_message_says_where_each_head_comes_from() -> None:
    """The model was trained on three classes."""
    three = TINY.replace(num_labels=3, label_names=("no", "maybe", "yes"))
    weights = {
        "deberta": {},
        "pooler": {"kernel": np.ones((32, 32))},
        "classifier": {"kernel": np.ones((32, 3)), "bias": np.ones(3)},
    }

    def message(classes: Sequence[str], old: DebertaConfig = three, **parts: Any) -> str:
        task = mock.Mock(label_names=tuple(classes))
        needed = weights | {"classifier": {"kernel": np.ones((32, len(classes))), "bias": np.ones(len(classes))}}
        return heads_message(weights, needed | parts, old, task)

    assert message(three.label_names) == "head: classifier from the model; pooler from the model"
    assert "random: 'a', 'b' not among the model's classes 'no', 'maybe', 'yes'" in message(("a", "no", "b"))
    assert "'0', '1' not among the model's classes 'no', 'maybe', 'yes', whose numbers they are if" in message("01")
    assert "classifier from the model, its rows in the order 'yes', 'NO' instead of" in message(("yes", "NO"))
    assert "classifier random: 'NO' not among" in message(("no", "NO"))
    unnamed = three.replace(label_names=())
    assert "classifier from the model, whose classes have no names, now 'a', 'b', 'c'" in message("abc", old=unnamed)
    assert "classifier random: the model's is 32 x 3, the task needs 32 x 4" in message("abcd", old=unnamed)
    assert "span_classifier random" in message(three.label_names, span_classifier={"bias": np.ones(2)})
    assert heads_message(None, weights, three, mock.Mock()) == "all weights random"


def test_the_configuration_says_what_the_logits_mean(home: Path, tmp_path: Path) -> None:
    """A regression is written as one. A new task does not keep what the logits of the old model meant."""
    config = settings(home, tmp_path)
    old = TINY.replace(problem_type="multi_label_classification", label_names=("a", "b"), token_projection=True)
    regression = mock.Mock(label_names=(), objective=Classification(regression=True))
    classes = mock.Mock(label_names=COLORS, objective=Classification(regression=False))
    spans = mock.Mock(label_names=(), objective=mock.Mock(regression=True))
    found = [task_config(config, old, task) for task in (regression, classes, spans)]
    assert [(model.num_labels, model.problem_type) for model in found] == [(1, "regression"), (3, None), (1, None)]
    assert all(model.token_projection for model in found)
    # Interrupted runs of earlier versions have no problem_type in their checkpoints.
    task = mock.Mock(splits={"train": mock.Mock(lengths=[1])})
    saved = identity(config, found[0], mock.Mock(fingerprint="f"), task, digests={})["configuration"]
    assert saved == found[0].replace(problem_type=None).to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_layers": 3}, "freeze_layers is 3, but the model has 2 layers"),
        ({"validation": None, "patience": 2}, "need the validation split; give --validation"),
        ({"validation": None, "seeds": (0, 1)}, "need the validation split; give --validation"),
        ({"batch_size": 12}, "batch_size 12 does not divide"),
    ],
)
def test_settings_that_do_not_fit_are_named(home: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune.main(settings(home, tmp_path, **changes))


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused(home: Path, tmp_path: Path) -> None:
    small = TINY.replace(vocab_size=500)
    save_pretrained(
        tmp_path / "model", small, random_params(DebertaForSequenceClassification(small), jnp.ones((1, 8), jnp.int32))
    )
    config = settings(home, tmp_path / "run", model=tmp_path / "model", tokenizer=home / "model")
    with pytest.raises(ValueError, match="has 601 pieces, more than the model's vocab_size 500"):
        finetune.main(config)
