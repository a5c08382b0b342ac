"""Versions of this library and of packages, and the messages about unsupported versions."""

import importlib.metadata
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from deberta_jax import __main__ as command_line
from deberta_jax.sharding import compiler_options, make_mesh
from deberta_jax.train.configs import PretrainConfig
from deberta_jax.train.run_settings import record_settings
from deberta_jax.versions import unsupported_packages, version_of

from ..support.configs import pretrain_config


def no_metadata(name: str) -> None:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.fixture
def old_orbax(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.11.31" if name == "orbax-checkpoint" else version(name)
    )


def test_installed_versions_are_supported() -> None:
    assert unsupported_packages() == []


def test_a_package_that_is_too_old_is_named_with_what_is_needed(old_orbax: None) -> None:
    (line,) = unsupported_packages()
    assert line.startswith("orbax-checkpoint 0.11.31 is installed, but this library needs orbax-checkpoint")
    assert ">=0.12.5" in line
    assert "pip install 'orbax-checkpoint" in line


def test_an_error_that_an_old_package_explains_is_not_called_a_bug(
    old_orbax: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line._report("pretrain", TypeError("unexpected keyword argument")) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed or "TypeError" in printed
    assert "deberta-jax pretrain: orbax-checkpoint 0.11.31 is installed" in printed
    assert "this is a bug" not in printed


def test_a_copy_that_was_never_installed_has_no_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.metadata, "version", no_metadata)
    monkeypatch.setattr(importlib.metadata, "requires", no_metadata)
    assert version_of() == "unknown"
    assert unsupported_packages() == []
    config: PretrainConfig = pretrain_config(output=tmp_path / "run")
    lines: list[str] = []
    record_settings(config, log=lines.append)
    assert lines == []
    assert "unknown" in (tmp_path / "run" / "config.yaml").read_text()


def mesh_of(kind: str, platform: str) -> AbstractMesh:
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    return AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)


def test_only_gpus_have_options_of_the_compiler() -> None:
    with jax.sharding.use_abstract_mesh(mesh_of("NVIDIA H200", "cuda")):
        assert compiler_options() == {"xla_gpu_enable_triton_gemm": False}
    with jax.sharding.use_abstract_mesh(mesh_of("TPU v5 lite", "tpu")):
        assert compiler_options() is None
    assert compiler_options() is None  # the tests run on a CPU
    assert compiler_options(make_mesh()) is None
