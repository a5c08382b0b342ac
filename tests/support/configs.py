"""Settings of runs from flat keywords."""

import dataclasses
from pathlib import Path
from typing import Any

from deberta_jax.train.configs import FinetuneConfig

UNUSED = Path("unused")


def finetune_config(**options: Any) -> FinetuneConfig:
    """Returns the settings of `deberta-jax finetune` with these options; those that are required have a default."""
    required = {"output": UNUSED, "model": UNUSED, "train": str(UNUSED)}
    return FinetuneConfig(**required | options)


def changed(config: FinetuneConfig, **options: Any) -> FinetuneConfig:
    """Returns the settings with other values of these options."""
    return dataclasses.replace(config, **options)
