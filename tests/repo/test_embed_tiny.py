"""`tests.support.embed_tiny`: the files of a model of the package, made from the folder of a run."""

import json
from pathlib import Path

import pytest

from deberta_jax import save_pretrained
from deberta_jax.config_file import write_settings

from ..support.configs import pretrain_config
from ..support.embed_tiny import main
from ..support.predictor import head_params, random_predictor

METRICS = {
    "eval/generator_loss": 3.21,
    "eval/masked_accuracy": 0.4,
    "eval/discriminator_loss": 0.3,
    "eval/rtd_accuracy": 0.9,
    "eval/replaced_precision": None,
    "eval/replaced_recall": 0.0,
}
MANIFEST = {
    "sources": [{"name": "books.txt.xz", "bytes": 1_500_000}],
    "train": {"documents": 10, "tokens": 123_456, "rows": 800},
    "held_out": {"documents": 1, "tokens": 789, "rows": 8},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with what a finished run leaves, with a random model."""
    run, model = tmp_path / "run", random_predictor()
    for name, head in (("discriminator", "rtd_head"), ("generator", "mlm_head")):
        save_pretrained(run / name, model.config, head_params(model, head), tokenizer=model.tokenizer.files())
    config = pretrain_config(output=run, steps=100, batch_size=8, corpus=("rows",), sequence_length=32)
    write_settings(run / "config.yaml", config, command="pretrain", version="0.1.0")
    records = [{"step": step, "generator_loss": 5.0, "learning_rate": 1e-3} for step in (50, 100)]
    lines = [*records, {"step": 100, **METRICS}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    account = {"began": 0.0, "written": 7200.0, "from_step": 0, "step": 100, "seconds": {"step": 7200.0}}
    (run / "goodput.jsonl").write_text(json.dumps(account) + "\n", encoding="utf-8")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    return run


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        assert main([str(run), "--hardware", "one pocket calculator", "--output", str(folder)]) == 0
    first, second = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    )
    assert first == second
    assert f"wrote {folders[0]}: {sum(map(len, first.values())):,} bytes" in capsys.readouterr().out
    names = {f"{model}/{name}" for model in ("generator", "discriminator") for name in ("params.npz", "spm.model")}
    assert first.keys() >= names | {"README.md", "curves.png", "generator/config.json", "generator/model.sha256"}


def test_the_card_has_what_the_run_recorded(run: Path, tmp_path: Path) -> None:
    note = "The generator started from an earlier run."
    facts = ["--hardware", "one pocket calculator", "--note", note]
    assert main([str(run), *facts, "--output", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "--steps 100" in card
    assert "--corpus rows" in card
    assert str(tmp_path) not in card
    assert f"\n\n{note}\n\n" in card
    assert "123,456 tokens" in card
    assert "books.txt.xz (1.5 MB)" in card
    assert "1.00 epochs, 2.0 hours on one pocket calculator" in card
    assert "| generator: loss per masked token, nats | 3.210 |" in card
    assert "| discriminator: precision of replaced tokens | none predicted |" in card
    assert "{" not in card


def test_scores_of_fine_tuning_are_in_the_card(run: Path, tmp_path: Path) -> None:
    scores = tmp_path / "results.md"
    scores.write_text("| from | SST-2 |\n| --- | --- |\n| tiny | 81.0 ± 0.5 |\n", encoding="utf-8")
    arguments = [str(run), "--hardware", "x", "--output", str(tmp_path / "out"), "--scores", str(scores)]
    assert main(arguments) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| tiny | 81.0 ± 0.5 |" in card
    assert "`python -m tests.benchmarks.glue`" in card


def test_an_unfinished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--hardware", "x", "--output", str(tmp_path / "out")]) == 1
    assert "has no discriminator/; give the folder of a finished run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
