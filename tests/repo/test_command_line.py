"""The entry point: help, typos, one line for a mistake."""

import importlib
import sys

import pytest

from deberta_jax.__main__ import COMMANDS, main


def test_usage_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)
    assert main([]) == 2


def test_a_typo_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrian"]) == 2
    assert "no command 'pretrian'. Did you mean 'pretrain'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [name for name, (_, settings, _) in COMMANDS.items() if settings])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"deberta-jax {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_without_the_extras_a_command_names_its_own(monkeypatch, capsys, command: str) -> None:
    """As after `pip install deberta-jax`, which lacks the package that reads the options."""
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main([command, "--help"]) == 1
    extra = "convert" if "convert" in COMMANDS[command][0] else "train"
    expected = f"needs the package 'tyro', which is not installed: pip install 'deberta-jax[{extra}]'"
    assert capsys.readouterr().err == f"deberta-jax {command}: {expected}\n"


def test_without_one_package_of_an_extra_a_command_names_both(monkeypatch, capsys) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError("No module named 'grain'", name="grain")

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert main(["finetune", "--help"]) == 1
    expected = "needs the package 'grain', which is not installed: pip install 'deberta-jax[train]'"
    assert capsys.readouterr().err == f"deberta-jax finetune: {expected}\n"


def test_a_mistyped_option_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "--outptu", "x", "--tokenizer", "y"])
    assert stopped.value.code == 2
    assert "--output" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_status_1(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--output", str(tmp_path / "run"), "--tokenizer", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("deberta-jax pretrain: ")
    assert error.count("\n") == 1
    assert "spm.model" in error


def test_error_that_a_restart_may_fix_has_exit_status_42(monkeypatch: pytest.MonkeyPatch) -> None:
    from deberta_jax.train import demo
    from deberta_jax.train.checkpoints.storage_faults import StorageDownError

    def fail(_: object) -> None:
        raise StorageDownError("storage stayed unavailable")

    monkeypatch.setattr(demo, "main", fail)
    assert main(["demo"]) == 42


def test_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from deberta_jax.train import demo

    def fail(_: object) -> None:
        raise ValueError("shapes do not match")

    monkeypatch.setattr(demo, "main", fail)
    assert main(["demo"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "ValueError: shapes do not match" in printed
    assert "this is a bug in deberta-jax" in printed
