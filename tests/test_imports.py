"""The direction of imports, by walking them: config -> positions -> ... -> models -> rtd; train and convert apart."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = (  # each imports only what stands before it
    "released config positions layers attention encoder heads models rtd".split()
)
LEAVES = {
    "losses": {"sharding"},
    "sift": set(),
    "sharding": set(),
    "vocabulary": set(),
    "spm": {"vocabulary"},
    "bpe": {"vocabulary"},
    "wordpiece": {"vocabulary"},
    "tokenizer": {"bpe", "spm", "vocabulary", "wordpiece"},
    "checkpoint": {"config", "sharding"},
}
TORCH = {"torch", "transformers", "safetensors"}
DATA = {"grain", "tensorflow_datasets", "array_record"}
READS_DATA = {"data.py", "prepare.py", "batches.py", "sources.py", "prepared.py"}
FOLDERS = ("deberta_jax", "deberta_jax/kernels", "train", "train/tasks", "convert")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Siblings (relative imports) and absolute modules that a file imports, anywhere in it."""
    siblings, modules = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            siblings |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return siblings, modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_run_one_way(path: Path) -> None:
    siblings, modules = imports(path)
    tops = {module.split(".")[0] for module in modules}
    folder, name = path.parent.name, path.stem
    if folder == "kernels":
        assert siblings <= {file.stem for file in path.parent.glob("*.py")}, "the kernels stand by themselves"
    elif folder == "deberta_jax":
        assert not any(module.startswith(("deberta_jax.train", "deberta_jax.convert")) for module in modules)
        assert not tops & (TORCH | DATA | {"optax"})
        if name in ORDER:
            assert siblings <= set(ORDER[: ORDER.index(name)]) | {"losses", "checkpoint", "kernels", "sharding"}
        if name in LEAVES:
            assert siblings <= LEAVES[name]
    else:
        other = "train" if folder == "convert" else "convert"
        assert not any(module.startswith(f"deberta_jax.{other}") for module in modules)
        assert not tops & {"train", "convert"}, "inside train/ and convert/ imports are relative"
    if folder in ("train", "tasks"):
        assert not tops & TORCH
    if path.name not in READS_DATA:
        assert not tops & DATA


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_deprecated_or_slow_idioms(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for phrase in ("experimental.pjit", "with mesh:", "pmap(", "getattr(config", "getattr(self.config"):
        assert phrase not in text
    assert len(text.splitlines()) <= 400, "a file stays short enough to read in one go"
