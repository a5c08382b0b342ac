"""Checks the direction of imports, and habits that no file may have, by parsing every file of the library."""

import ast
from pathlib import Path

import pytest

from ..support.paths import REPOSITORY

# Modules of deberta_jax from the bottom up: each may import only modules of earlier rows.
FLOORS = (
    {"terminal", "standard_streams"},
    {
        "console",
        "errors",
        "released",
        "safe_pickle",
        "atomic_files",
        "strict_json",
        "random",
        "option_list",
        "process_start",
        "allocator",
        "cache_folder",
        "versions",
    },
    {"store_errors", "embedded", "deberta_v3_tiny", "file_digests"},
    {"stores"},
    {"mirrors", "store_lock"},
    {"run_mirror"},
    {"store_paths"},
    {"help_text", "config_file", "completion"},
    {"options"},
    {"unknown_fields", "xlnet_json", "path_names", "atomic_folder", "orbax_messages"},
    {"orbax_path"},
    {"config_json"},
    {"config"},
    {"positions", "sharding"},
    {"orbax_folder"},
    {"attention_inputs", "position_scores"},
    {"kernels", "gpu_kernels", "xla_attention", "layers", "checksums"},
    {"attention"},
    {"encoder"},
    {"heads", "inputs", "outputs", "xlnet"},
    {"models"},
    {"losses", "lora", "parameter_check", "warm_start"},
    {"checkpoint", "vocabulary_head"},
    {"adapter", "int8"},
    {"rtd", "sift"},
    {"tokenizers"},
    {"predict", "new_rows", "serving"},
)
# Rooms of train/ from the bottom up. The landing is split: settings below the rooms, commands above them.
TRAIN_FLOORS = (
    {"settings", "model_folders", "tfidf"},
    {"task_configs", "host_configs", "published_settings", "corpus_options"},
    {"configs", "new_tokens"},
    {"hosts", "data"},
    {"demo_texts"},
    {"checkpoints", "reporting"},
    {"engine"},
    {"tasks"},
    {"prepare"},
    {"pretrain_setup", "pretrain_state", "samples", "finetune_setup", "sweep", "run_settings", "tuning"},
    {"finetune_evaluation"},
    {"pretrain", "finetune"},
    {"demo_questions"},
    {"demo_screen"},
    {"recipes", "demo", "compile_ahead", "report"},
)
CALLS_CONVERT = "train/model_folders.py"  # for the commands, which stand above both
OPENS_PYTORCH_FILES = "deberta_jax/predict/open_model.py"  # for the predictor, inside a function
READS_ROWS = "convert/commands/prediction"  # files of examples, as training does
TORCH = {"torch", "transformers", "safetensors"}
DATA = {"grain", "tensorflow_datasets", "array_record", "datasets", "apache_beam"}
READS_DATA = {
    "train/data/batches.py",
    "train/data/preparation/beam_driver.py",
    "train/data/row_files.py",
    "train/tasks/batches.py",
    "train/tasks/sources/hub_sets.py",
    "train/tasks/sources/source.py",
    "train/tasks/sources/tfds_builder.py",
}
FILES = [path for top in ("deberta_jax", "train", "convert") for path in sorted((REPOSITORY / top).rglob("*.py"))]


def package(path: Path) -> list[str]:
    """The dotted package of a file as a list, with train and convert inside deberta_jax, as they are installed."""
    parts = list(path.relative_to(REPOSITORY).parent.parts)
    return parts if parts[0] == "deberta_jax" else ["deberta_jax", *parts]


def imported_modules(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package(path)[: len(package(path)) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            modules |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return modules


def floor_of(name: str, floors: tuple[set[str], ...]) -> int | None:
    return next((number for number, floor in enumerate(floors) if name in floor), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_run_one_way(path: Path) -> None:
    modules = imported_modules(path)
    tops = {module.split(".")[0] for module in modules}
    part, inside = path.relative_to(REPOSITORY).parts[0], path.relative_to(REPOSITORY).with_suffix("").parts[1]
    rooms = {module.split(".")[2] for module in modules if module.startswith(f"deberta_jax.{part}.")}
    if part == "deberta_jax":
        rooms = {module.split(".")[1] for module in modules if module.startswith("deberta_jax.")}
        assert not rooms & {"train", "convert"} or str(path.relative_to(REPOSITORY)) == OPENS_PYTORCH_FILES
        assert not tops & (TORCH | DATA | {"optax"})
    else:
        other = "train" if part == "convert" else "convert"
        if (
            str(path.relative_to(REPOSITORY)) != CALLS_CONVERT
            and str(path.parent.relative_to(REPOSITORY)) != READS_ROWS
        ):
            assert not any(module.startswith(f"deberta_jax.{other}") for module in modules)
        assert not tops & {"train", "convert"}, "train and convert are imported as parts of deberta_jax"
    if part == "train":
        assert not tops & TORCH
    if str(path.relative_to(REPOSITORY)) not in READS_DATA:
        assert not tops & DATA
    floors = {"deberta_jax": FLOORS, "train": TRAIN_FLOORS}.get(part)
    if floors and inside not in ("__init__", "__main__"):
        own = floor_of(inside, floors)
        assert own is not None, f"{inside} has no floor: add it to FLOORS or TRAIN_FLOORS"
        above = sorted(room for room in rooms - {inside} if (floor_of(room, floors) or 0) >= own)
        assert not above, f"{inside} imports {', '.join(above)}, which stand no lower"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_deprecated_or_slow_idioms(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for phrase in ("experimental.pjit", "with mesh:", "pmap(", "getattr(config", "getattr(self.config"):
        assert phrase not in text
    assert len(text.splitlines()) <= 400, "a file stays short enough to read in one go"
