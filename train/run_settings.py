"""What a run says of itself: `config.yaml` in its folder, and its name and settings for the services of `--log`."""

from collections.abc import Callable
from typing import Any

from deberta_jax.config_file import FILE, write_settings
from deberta_jax.errors import one_line
from deberta_jax.option_list import options_of
from deberta_jax.versions import version_of

from .configs import FinetuneConfig, PretrainConfig
from .reporting.services import LoggedRun


def describe_run(config: PretrainConfig | FinetuneConfig) -> LoggedRun:
    """Returns the name and the settings of a run for the services that log it."""
    settings = {option.name: _shown(option.default) for option in options_of(type(config), config)}
    folder = config.output.resolve()
    name = config.run_name or folder.name
    if isinstance(config, FinetuneConfig) and config.sweep.several_runs:  # the folder is that of one seed
        name = f"{config.run_name or folder.parent.name}/{folder.name}"
    return LoggedRun(config.output, name, settings, config.log)


def record_settings(config: PretrainConfig | FinetuneConfig, *, log: Callable[[str], None]) -> None:
    """Writes config.yaml into the folder of a run. A failure is a message to `log`: training goes on."""
    command = "pretrain" if isinstance(config, PretrainConfig) else "finetune"
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        write_settings(config.output / FILE, config, command=command, version=version_of())
    except OSError as error:
        log(f"{FILE} cannot be written: {one_line(error)}. Training goes on")


def _shown(value: Any) -> Any:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
