"""Folders that run with jax alone: in a fresh process, equal to the model, and one line for what cannot be written."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deberta_jax import Tokenizer, save_pretrained
from deberta_jax.__main__ import main
from deberta_jax.config import DebertaConfig
from deberta_jax.convert.mapping import to_params
from deberta_jax.file_digests import changed_file, read_digests
from deberta_jax.serving.program import TASKS, TaskName, example_inputs, serving_program

from ...support.golden_cases import assert_close
from ...support.predictor import random_predictor
from ...support.pytorch_files import V3, random_state

LENGTHS = ((1, 3), (2, 17), (3, 32))
# What jax installs, and flatbuffers, which jax.export needs to read a file.
PACKAGES = ("jax", "jaxlib", "numpy", "ml_dtypes", "scipy", "opt_einsum", "flatbuffers")
# Runs every folder that is named on the command line, with the packages in the first one and no others.
FRESH = """
import importlib.util, pathlib, sys
packages, *folders = sys.argv[1:]
sys.path.append(packages)
import numpy as np
for folder in map(pathlib.Path, folders):
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Model()
    for path in sorted(folder.parent.glob(f"{folder.name}-*.npz")):
        np.savez(path.with_suffix(".out.npz"), **model(**np.load(path)))
    assert module.main() == 0
assert not {"deberta_jax", "flax"} & set(sys.modules)
"""


def save_model(folder: Path, config: DebertaConfig, task: TaskName) -> dict[str, Any]:
    classes = 1 if task == "choice" else 3
    params = to_params(random_state(config, *TASKS[task].head, classes=classes), config)
    save_pretrained(folder, config, params)
    return params


def run_fresh(home: Path, *folders: Path) -> None:
    """Runs the folders in a process of their own, which finds the packages of PACKAGES and no others."""
    packages = home / "packages"
    packages.mkdir()
    for name in PACKAGES:
        folder = Path(importlib.import_module(name).__file__ or "").parent
        for found in (folder, folder.with_name(f"{name}.libs")):  # shared libraries of some wheels
            if found.is_dir():
                (packages / found.name).symlink_to(found)
    command = [sys.executable, "-I", "-S", "-c", FRESH, str(packages), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def check_tasks(home: Path, tasks: list[TaskName]) -> None:
    """Serializes a model for each task and compares it, in a fresh process, at three batch sizes and lengths."""
    expected = {}
    for task in tasks:
        config = V3.replace(num_labels=1 if task == "choice" else 3)
        params = save_model(home / "model" / task, config, task)
        assert main(["serialize", str(home / "model" / task), str(home / task), "--task", task]) == 0
        program = serving_program(config, params, task=task, platforms=["cpu"])
        shapes = LENGTHS if program.longest else (*LENGTHS[:2], (2, 600))
        for batch, length in shapes:
            rows = np.random.default_rng(length).integers(5, 50, (2 * batch, length)).tolist()
            inputs = example_inputs(program, [rows[0][: length - 1], *rows[1:]], pad_id=0)
            name = f"{task}-{batch}x{length}"
            np.savez(home / f"{name}.npz", **inputs)  # pyright: ignore[reportArgumentType]
            expected[name] = program.run_model(inputs)
    run_fresh(home, *(home / task for task in tasks))
    for name, outputs in expected.items():
        with np.load(home / f"{name}.out.npz") as actual:
            assert set(actual.files) == set(outputs)
            for output in actual.files:
                assert_close(actual[output], outputs[output], 1e-5, f"{name} {output}")


def test_a_fresh_process_needs_jax_alone(tmp_path: Path) -> None:
    check_tasks(tmp_path, ["classification"])


@pytest.mark.slow
def test_every_head_runs_in_a_fresh_process(tmp_path: Path) -> None:
    check_tasks(tmp_path, list(TASKS))


@pytest.fixture(scope="module")
def served(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked LM with its tokenizer, serialized for a fixed number of rows."""
    folder = tmp_path_factory.mktemp("served")
    command = ["serialize", str(model_folders["pretrained"]), str(folder), "--task", "masked-lm"]
    assert main([*command, "--batch-size", "2", "--platforms", "cpu"]) == 0
    return folder


def test_the_folder_describes_itself(served: Path) -> None:
    description = json.loads((served / "serving.json").read_text())
    assert description["inputs"]["masked_positions"] == {"dtype": "int32", "shape": [2, "masks"]}
    assert description["outputs"] == {"logits": {"dtype": "float32", "shape": [2, "masks", 640]}}
    assert (description["activation"], description["max_length"]) == ("softmax", 64)
    tokenizer = Tokenizer.from_folder(served)
    assert tokenizer.fingerprint == random_predictor().tokenizer.fingerprint
    assert description["tokenizer"]["mask_id"] == tokenizer.mask_id
    digests = read_digests(served / "model.sha256")
    assert set(digests) == {entry.name for entry in served.iterdir()} - {"model.sha256"}
    assert changed_file(served, digests) is None


def test_the_loader_refuses_other_inputs(served: Path) -> None:
    from deberta_jax.serving.load import Model

    model = Model(served)
    ids = np.ones((2, 65), np.int32)
    with pytest.raises(ValueError, match=r"^the inputs are input_ids; they must be attention_mask, input_ids, masked_"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match=r"has the shape \(2, 65\); at most 64 tokens fit$"):
        model(input_ids=ids, attention_mask=ids, masked_positions=ids[:, :1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "has the heads of masked-lm, replaced-tokens; choose one with --task"),
        (["--task", "tokens"], "has no classifier, which tokens needs"),
        (["--task", "masked-lm", "--length", "65"], "length is 65, but the model has positions for 64 tokens"),
        (["--task", "masked-lm", "--platforms"], "platforms is empty; give at least one"),
    ],
    ids=["several", "missing", "long", "platforms"],
)
def test_what_cannot_be_written_is_one_line(
    model_folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert main(["serialize", str(model_folders["pretrained"]), str(tmp_path / "out"), *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_is_not_overwritten(model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serialize", str(model_folders["pretrained"]), str(model_folders["generator"])]) == 1
    assert "holds model.safetensors, a model in another format" in capsys.readouterr().err
