"""Completion in a real shell."""

import os
import subprocess
import sys

import pytest

from deberta_jax.completion import SHELLS, main, script, words_of
from deberta_jax.errors import UserError

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
eval "$(complete -p deberta-jax | sed 's/.*-F \\([^ ]*\\) .*/\\1/')"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Returns what bash offers after some words."""
    folder = tmp_path_factory.mktemp("completion")
    program = folder / "deberta-jax"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m deberta_jax "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    run = [str(program), "completion", "bash"]
    (folder / "script").write_text(subprocess.run(run, capture_output=True, text=True, check=True).stdout)

    def offered(*words: str) -> list[str]:
        command = ["bash", "-c", COMPLETE, "bash", str(folder / "script"), "deberta-jax", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()

    return offered


def test_bash_completes_commands_options_and_choices(complete) -> None:
    assert sorted(complete("pre")) == ["predict", "prepare", "pretrain"]
    assert complete("prepare", "--s") == ["--sequence-length", "--seed", "--skip-bad"]
    assert complete("pretrain", "--dtype", "b") == ["bfloat16"]
    assert complete("recipe", "rte/deberta-v2") == ["rte/deberta-v2-xlarge", "rte/deberta-v2-xxlarge"]
    assert complete("prepare", "--text", "") == []  # bash itself offers files
    assert complete("no-command", "--") == []


def test_the_script_needs_no_jax() -> None:
    code = "import sys, deberta_jax.__main__ as m; m.main(['completion', 'bash']); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_list_every_command(shell: str) -> None:
    text = script(shell, {"pretrain": "trains a model", "export": "writes it"})
    assert "pretrain" in text
    assert "export" in text


def test_words_are_options_with_their_choices() -> None:
    words = words_of("export")
    assert "--dtype float32 float16 bfloat16" in words
    assert words_of("completion")[:3] == list(SHELLS)


def test_other_shells_are_refused() -> None:
    with pytest.raises(UserError, match="no completion for 'bsh'; did you mean bash"):
        main(["bsh"])
    with pytest.raises(UserError, match="give one shell: bash, zsh, fish"):
        main([])
