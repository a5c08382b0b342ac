"""The project's documents, and the code in them."""

import re
import shlex
from pathlib import Path

from .paths import REPOSITORY

README = REPOSITORY / "README.md"
DOCUMENTS = [README, REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(document: Path | str, *languages: str) -> list[str]:
    """Returns the content of the fences of some languages, by default of all.

    Args:
      document: a file, or the text of one.
      languages: what stands after the backticks.
    """
    text = document if isinstance(document, str) else document.read_text(encoding="utf-8")
    chosen = "|".join(map(re.escape, languages)) or ".*"
    return [match[1] for match in re.finditer(rf"^```(?:{chosen})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


def commands(document: Path) -> list[list[str]]:
    """Returns the words of each `deberta-jax COMMAND ...` in the shell blocks of a document, from COMMAND on."""
    lines = [line for block in blocks(document, "sh", "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("deberta-jax ")]
