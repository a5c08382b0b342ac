"""Everything that the library prints goes through deberta_jax.terminal and deberta_jax.console."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.paths import REPOSITORY

FILES = [path for top in ("deberta_jax", "train", "convert") for path in sorted((REPOSITORY / top).rglob("*.py"))]
PRINTS = {
    "deberta_jax/serving/load.py",  # copied beside a serialized model, it runs without this library
    "deberta_jax/terminal.py",
    "train/data/sentencepiece_process.py",  # for `train_tokenizer`, which reads its standard error
}
PRINTS_JSON = {"train/compile_ahead/command.py"}
OPENS_CONSOLES = {"deberta_jax/console.py"}
PARSES = {"deberta_jax/options.py"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_module_prints_by_itself(path: Path) -> None:
    name = str(path.relative_to(REPOSITORY))
    for function, call in calls(path):
        if function == "print" and name not in PRINTS:
            # ASCII with escapes, which a program may read
            assert name in PRINTS_JSON, f"{name}:{call.lineno} prints; use say of deberta_jax.terminal"
            assert ast.unparse(call.args[0]).startswith("to_json("), call.lineno
            assert "ascii=True" in ast.unparse(call.args[0]), call.lineno
        assert function not in ("Console", "rich.print", "rich.get_console") or name in OPENS_CONSOLES, call.lineno
        assert function not in ("Text.from_markup", "Text.from_ansi", "from_markup"), call.lineno
        assert not function.startswith(("traceback.print", "sys.stdout.write", "sys.stderr.write")), call.lineno
        assert function != "tyro.cli" or name in PARSES, f"{name}:{call.lineno}: use parse_options"
