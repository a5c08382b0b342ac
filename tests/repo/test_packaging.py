"""The wheel: all three packages inside deberta_jax, nothing called "train" or "convert" beside it."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.pytorch_files import MLM, V3, random_state, write_safetensors

from ..support.documents import README, blocks
from ..support.paths import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, in a folder whose name has a blank."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "a copy"
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "docs", "shared")
    shutil.copytree(REPOSITORY, source, ignore=left_out)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(source)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert not re.search(r"warn|deprecat|would be ignored|absent from", printed, re.IGNORECASE), printed
    return next(folder.glob("*.whl"))


def test_every_folder_of_the_library_is_a_package_of_the_wheel() -> None:
    """The list in pyproject.toml is written by hand: a folder that is missing in it is missing in the wheel."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    tops = {"deberta_jax": "deberta_jax", "train": "deberta_jax.train", "convert": "deberta_jax.convert"}
    packages, data = set(), set()
    for top, name in tops.items():
        for path in (REPOSITORY / top).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                package = ".".join([name, *path.relative_to(REPOSITORY / top).parent.parts])
                packages.add(package)
                if path.suffix != ".py":
                    data.add((package, path.name))
    assert packages == set(settings["packages"])
    for package, name in data:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in settings["package-data"][package]), name


@pytest.mark.slow
def test_what_the_wheel_holds(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"deberta_jax", next(top for top in tops if top.endswith(".dist-info"))}
    for inside in ("train/pretrain.py", "train/data/corpora/austen_novels.txt.xz", "convert/mapping.py", "models.py"):
        assert f"deberta_jax/{inside}" in names
    model = REPOSITORY / "deberta_jax" / "deberta_v3_tiny"
    files = {str(path.relative_to(REPOSITORY)) for path in model.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert files <= set(names), "the model of the package"


@pytest.mark.slow
def test_an_index_would_accept_both_distributions(wheel: Path) -> None:
    (source,) = wheel.parent.glob("*.tar.gz")
    settings = ["--config", str(REPOSITORY / "pyproject.toml")]
    for command in (["twine", "check", "--strict", wheel, source], ["check_wheel_contents", *settings, wheel]):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_command_of_each_package_runs_from_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Dependencies come from this environment by a path file; deberta_jax itself only from the wheel."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    here = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    (site / "dependencies.pth").write_text(f"{here}\n")
    program = tmp_path / "env" / "bin" / "deberta-jax"

    def run(*arguments: str) -> str:
        done = subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import deberta_jax.train, deberta_jax.convert; print(deberta_jax.train.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(site) in where
    run("tokenizer", "--output", "tokenizer", "--vocab-size", "1000")
    assert (tmp_path / "tokenizer" / "spm.model").is_file()
    assert "usage" in run("convert", "--help")


CONVERTED = """
import deberta_jax, numpy
from deberta_jax import DebertaForMaskedLM, load_pretrained
assert "site-packages" in deberta_jax.__file__, deberta_jax.__file__
config, params = load_pretrained("converted")
logits = DebertaForMaskedLM(config).apply({"params": params}, numpy.ones((1, 5), int)).logits
assert logits.shape == (1, 5, config.vocab_size) and numpy.isfinite(logits).all()
"""
INPUTS = """
import jax.numpy as jnp
input_ids = jnp.arange(1, 11).reshape(2, 5)
attention_mask = jnp.ones_like(input_ids)
"""


@pytest.mark.slow
def test_conversion_and_the_readme_work_with_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """In an environment with nothing but the wheel and what it asks for, in a folder with nothing but a model."""
    venv.create(tmp_path / "env", with_pip=True)
    bin_folder, here = tmp_path / "env" / "bin", tmp_path / "empty"
    subprocess.run([bin_folder / "python", "-m", "pip", "install", "--quiet", f"{wheel}[convert]"], check=True)
    (here / "microsoft").mkdir(parents=True)
    write_safetensors(here / "microsoft" / "deberta-v3-small", V3, random_state(V3, MLM))

    def run(*command: object) -> str:
        environment = {"PATH": str(bin_folder), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [str(part) for part in command], cwd=here, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "wrote converted" in run(bin_folder / "deberta-jax", "convert", "microsoft/deberta-v3-small", "converted")
    run(bin_folder / "python", "-c", CONVERTED)
    run(bin_folder / "python", "-c", INPUTS + blocks(README, "python")[0])
    assert (here / "for-transformers" / "model.safetensors").is_file()
    assert (here / "my-model" / "config.json").is_file()
