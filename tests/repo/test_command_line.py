"""The entry point: help, typos, one line for a mistake."""

import contextlib
import importlib
import io
import re
import shlex
import sys

import pytest
import tyro

import deberta_jax
from deberta_jax.__main__ import COMMANDS, GROUPS, main
from deberta_jax.option_list import Option, options_of
from deberta_jax.options import parse_options

WITH_SETTINGS = [name for name, (_, settings, _) in COMMANDS.items() if settings]


def settings_and_options(command: str) -> tuple[type, list[Option]]:
    module, name, _ = COMMANDS[command]
    settings = getattr(importlib.import_module(module), name)
    return settings, options_of(settings)


def tyro_names(settings: type) -> set[str]:
    """The names that tyro's own help lists."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(settings, args=["--help"])
    lines = [line.strip("│| ") for line in printed.getvalue().splitlines()]
    names = [
        name for line in lines if line.startswith("--") for name in re.findall(r"(?:^|, )(--[a-z][a-z0-9.-]+)", line)
    ]
    return set(names) - {"--help"}


def test_usage_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)
    assert main([]) == 2


def test_a_typo_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrian"]) == 2
    assert "no command 'pretrian'. Did you mean 'pretrain'?" in capsys.readouterr().err


LONGEST_HELP = 45  # lines at 100 columns


def printed_help(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints at 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    with contextlib.suppress(SystemExit):
        assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert max(map(len, printed.out.splitlines())) <= 110
    return printed.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_has_an_example(command: str, monkeypatch, capsys) -> None:
    text = printed_help([command, "--help"], monkeypatch, capsys)
    assert f"usage: deberta-jax {command}" in text
    assert len(text.splitlines()) <= LONGEST_HELP
    assert "\nexamples\n  deberta-jax " in text
    assert "None" not in text


def test_help_of_a_recipe_fits_a_screen(monkeypatch, capsys) -> None:
    for name in ("mnli/deberta-v3-large", "mnli-sift/deberta-v2-xxlarge"):
        text = printed_help(["recipe", name, "--help"], monkeypatch, capsys)
        assert len(text.splitlines()) <= LONGEST_HELP


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_all_options_are_listed_and_say_their_default(command: str, monkeypatch, capsys) -> None:
    settings, options = settings_and_options(command)
    text = printed_help([command, "--help-all"], monkeypatch, capsys)
    assert "None" not in text
    words = set(text.replace(",", " ").split())
    for option in options:
        assert option.value in text if option.is_positional else set(option.names) & words, option.name
        assert option.help, f"{option.name} has no help"
        if option.default in (None, ()) and not option.is_positional:
            assert "(default:" in option.help, f"{option.name}: the help says what happens without it"
    names = {option.name for option in options}
    assert set(getattr(settings, "COMMON", ())) <= names


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_the_options_are_those_that_are_parsed(command: str) -> None:
    settings, options = settings_and_options(command)
    known = tyro_names(settings)
    assert known == {name for option in options for name in option.names}


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_examples_are_understood(command: str) -> None:
    settings, _ = settings_and_options(command)
    assert settings.EXAMPLES
    for example in settings.EXAMPLES:
        assert isinstance(parse_options(settings, shlex.split(example), prog=f"deberta-jax {command}"), settings)


def test_commands_are_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{title}\n  " in printed for title in GROUPS)


@pytest.mark.parametrize(
    "arguments", [["--version"], ["-V"], ["pretrain", "--version"], ["finetune", "--seed", "1", "-V"], ["recipe", "-V"]]
)
def test_the_version_in_every_position(arguments: list[str], monkeypatch, capsys) -> None:
    assert printed_help(arguments, monkeypatch, capsys) == f"deberta-jax {deberta_jax.__version__}\n"


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
    assert "no option --outptu; did you mean --output?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrain --lernrate 3", "no option --lernrate; did you mean --optimizer.learning-rate?"),
        ("pretrain --output x --tokenizer y --steps 1.5", "--steps is '1.5'; it must be a whole number"),
        ("pretrain --output x --tokenizer y --steps", "--steps needs a value: a whole number"),
        ("pretrain --output x --tokenizer y --steps -1", "steps is -1; it must be at least 0"),
        ("pretrain --output x --tokenizer y --log disk", "--log is 'disk'; it must be one of wandb, mlflow"),
        ("pretrain --output= --tokenizer y", "--output: the path is empty"),
        ("pretrain --output x", "--tokenizer is required"),
        ("finetune", "--output, --model and --train are required"),
        ("fill-mask", "MODEL and TEXT are required"),
        ("fill-mask model a b", "unexpected b; put a text of several words in quotation marks"),
        ("export --fp16", "no option --fp16"),
        ("pretrain --config", "--config needs the path of a YAML file"),
        ("pretrain --config a --config b", "--config is given twice; give one file"),
    ],
)
def test_wrong_usage_is_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2
    command = words.split(maxsplit=1)[0]
    expected = f"deberta-jax {command}: {message} (see deberta-jax {command} --help)\n"
    assert capsys.readouterr() == ("", expected)


def test_the_learning_rate_has_a_short_name() -> None:
    words = ["--output", "x", "--tokenizer", "y", "--learning-rate", "0.5"]
    assert parse_options(settings_and_options("pretrain")[0], words).optimizer.learning_rate == 0.5


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


def test_package_that_is_missing_where_it_is_first_used_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deberta_jax.train import demo

    def fail(_: object) -> None:
        raise ModuleNotFoundError("No module named 'tensorboardX'", name="tensorboardX")

    monkeypatch.setattr(demo, "main", fail)
    assert main(["demo"]) == 1
    expected = "needs the package 'tensorboardX', which is not installed: pip install 'deberta-jax[train]'"
    assert capsys.readouterr().err == f"deberta-jax demo: {expected}\n"


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
