"""Folders of the repository that tests read."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden"
SHARED = REPOSITORY.parent / "shared"  # published files, where a machine has them; a test that needs them skips
TPU_SCRIPTS = REPOSITORY / "tpu_scripts"
