"""The bounds in pyproject.toml, and the pinned sets that CI and pods install."""

import importlib.metadata
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ..support.paths import REPOSITORY, TPU_SCRIPTS
from .test_imports import FILES, imported_modules

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
LIBRARY = [*CORE, *EXTRAS["train"], *EXTRAS["convert"]]
# What people had installed when an earlier bound turned them away.
ADMITTED = (
    *("numpy==2.0.2", "pyarrow==18.0.0", "pyarrow==40.0.0", "matplotlib==3.9.0", "scikit-learn==1.6.0"),
    *("tokenizers==0.22.0", "tokenizers==0.24.0", "huggingface_hub==0.34.0", "huggingface_hub==1.31.0"),
    *("rich==14.0.0", "rich==17.0.0", "safetensors==0.4.3", "safetensors==0.9.0"),
)
MODULE_OF = {"absl": "absl-py", "sklearn": "scikit-learn", "orbax": "orbax-checkpoint", "yaml": "pyyaml"}
# Optional in the code, which says what to install: the TPU compiler, and what `verify` compares with.
OPTIONAL = {"libtpu", "torch", "transformers", "tensorflow", "wandb", "mlflow", "datasets", "apache-beam"}


def pins(path) -> dict[str, Version]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("package", ADMITTED)
def test_bounds_admit_what_people_have(package: str) -> None:
    name, version = package.split("==")
    bounds = [bound for bound in LIBRARY if canonicalize_name(bound.name) == canonicalize_name(name)]
    assert bounds
    assert all(bound.specifier.contains(version) for bound in bounds)


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    """After a change of a bound: `make pins`."""
    pinned = pins(REPOSITORY / "requirements" / "lowest.txt")
    for bound in [*LIBRARY, *EXTRAS["test"]]:
        (lowest,) = (one.version for one in bound.specifier if one.operator == ">=")
        assert pinned[canonicalize_name(bound.name)] == Version(lowest), bound.name


def test_what_pods_install_is_within_the_bounds() -> None:
    pinned = pins(TPU_SCRIPTS / "constraints.txt")
    for bound in [*LIBRARY, *EXTRAS["tpu"]]:
        assert bound.specifier.contains(pinned[canonicalize_name(bound.name)]), bound.name
    assert "libtpu" in pinned


def test_pinned_sets_name_no_registry_and_no_local_path() -> None:
    for path in (REPOSITORY / "requirements" / "lowest.txt", TPU_SCRIPTS / "constraints.txt"):
        assert all(re.fullmatch(r"#.*|[a-z0-9.-]+==[\w.+]+", line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("part", ["deberta_jax", "train", "convert"])
def test_every_imported_package_is_a_dependency(part: str) -> None:
    extra = EXTRAS.get(part, [])
    declared = {canonicalize_name(bound.name) for bound in [*CORE, *extra]}
    for path in FILES:
        if path.relative_to(REPOSITORY).parts[0] == part:
            tops = {module.split(".")[0] for module in imported_modules(path)} - set(sys.stdlib_module_names)
            packages = {canonicalize_name(MODULE_OF.get(top, top)) for top in tops} - {"deberta-jax", *OPTIONAL}
            # Their errors name the extra.
            core = {"tokenizers", "tyro", "pyyaml", "qwix", "packaging"}  # versions.py says less without packaging
            optional = {"deberta_jax": core, "convert": {"pyarrow"}}
            by_commands = {"rich"} if path.name == "console.py" else set()  # the extras of the commands have it
            assert packages <= declared | optional.get(part, set()) | by_commands, path


def test_the_installed_versions_are_within_the_bounds() -> None:
    for bound in LIBRARY:
        if bound.marker is None or bound.marker.evaluate():
            assert bound.specifier.contains(importlib.metadata.version(bound.name)), bound.name
