"""Weights & Biases and MLflow as further logs of a run. The services' own variables of the environment configure them.

Threads write to them (see `background`): a service that hangs or fails never delays a step, and is given up with one
line after an error. A resumed run continues the run of the service, whose id is in `services.json` of the run's folder.
"""

# wandb and mlflow are optional, and `make lint` does not install them.
# pyright: reportMissingImports=false
import contextlib
import dataclasses
import importlib.util
import json
import netrc
import os
import time
import urllib.parse
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from deberta_jax.atomic_files import write_file
from deberta_jax.errors import MissingPackageError, UserError, one_line
from deberta_jax.strict_json import to_json

from .tensorboard import Scalars

FILE = "services.json"
PROJECT = "deberta-jax"  # project or experiment, where the environment names none
_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_LONGEST_VALUE = 500  # characters of a setting
_MOST_PARAMETERS = 100  # in one request to MLflow


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """A run as services show it.

    Attributes:
      folder: the folder of the run.
      name: the name to show.
      settings: every setting by the name of its option.
      services: the names of the services.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]
    services: Sequence[str] = ()


class Service(Protocol):
    """Receives the metrics of a run. Its methods may raise any exception, and may never return."""

    def write(self, scalars: Scalars) -> None: ...
    def close(self) -> None: ...


def check_services(names: Sequence[str]) -> None:
    """Checks before a run that the services can be used.

    Raises:
      MissingPackageError: its package is not installed.
      UserError: Weights & Biases is used online and there is no key, or MLflow has no place to write to.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(f"--log {name} needs a package: pip install 'deberta-jax[{name}]'")
    is_online = os.environ.get("WANDB_MODE", "online") == "online"
    if "wandb" in names and is_online and not (any(map(os.environ.get, _KEYS)) or _has_saved_key()):
        raise UserError("--log wandb finds no key; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline")
    if "mlflow" in names:
        _check_mlflow()


def _check_mlflow() -> None:
    """Raises UserError if this MLflow cannot write to its tracking URI at all; a server is not asked."""
    from mlflow import MlflowClient

    try:
        MlflowClient()
    except Exception as error:  # MLflow raises whatever its store does
        raise UserError(
            "--log mlflow has no place to write to; set MLFLOW_TRACKING_URI to that of a server, or to file:FOLDER "
            "together with MLFLOW_ALLOW_FILE_STORE=true, or pip install mlflow, which writes to mlflow.db "
            f"({one_line(error):.100})"
        ) from error


def open_service(name: str, run: LoggedRun) -> Service:
    """Returns a service, which connects with its first `write`."""
    return {"wandb": WandbRun, "mlflow": MlflowRun}[name](run)


class WandbRun:
    """A run of Weights & Biases. With WANDB_MODE=offline it is in `wandb/` of the run's folder."""

    def __init__(self, run: LoggedRun) -> None:
        self._logged = run
        self._run: Any = None

    def write(self, scalars: Scalars) -> None:
        """Sends the values of a step. The steps of a resumed run may come again, so `step` is a value like others."""
        if self._run is None:
            self._run = self._start()
        self._run.log({"step": scalars.step, **scalars.values})

    def close(self) -> None:
        """Ends the run after everything was sent."""
        if self._run is not None:
            self._run.finish()

    def _start(self) -> Any:
        import wandb

        logged = self._logged
        given = _run_ids(logged.folder).get("wandb")
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=given or uuid.uuid4().hex[:12],
            name=logged.name,
            dir=str(logged.folder),
            resume="allow" if given else None,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        run.config.update(dict(logged.settings), allow_val_change=True)
        run.define_metric("*", step_metric="step")
        _keep_run_id(logged.folder, "wandb", run.id)
        return run


class MlflowRun:
    """A run of MLflow, at MLFLOW_TRACKING_URI and in the experiment MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: LoggedRun) -> None:
        self._logged = run
        self._client: Any = None
        self._id = ""

    def write(self, scalars: Scalars) -> None:
        """Sends the values of a step."""
        from mlflow.entities import Metric

        if self._client is None:
            self._client = self._start()
        moment = int(scalars.logged * 1000)
        metrics = [Metric(name, value, moment, scalars.step) for name, value in scalars.values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """Marks the run as finished."""
        if self._client is not None:
            self._client.set_terminated(self._id)

    def _start(self) -> Any:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logged, client = self._logged, MlflowClient()
        self._id = _run_ids(logged.folder).get("mlflow", "")
        settings = {name: str(value)[:_LONGEST_VALUE] for name, value in logged.settings.items()}
        if self._id:
            client.update_run(self._id, status="RUNNING")
            known = client.get_run(self._id).data.params  # which MLflow never changes
            settings = {name: value for name, value in settings.items() if name not in known}
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else client.create_experiment(name)
            self._id = client.create_run(number, run_name=logged.name, start_time=int(time.time() * 1000)).info.run_id
            _keep_run_id(logged.folder, "mlflow", self._id)
        parameters = [Param(name, value) for name, value in settings.items()]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            client.log_batch(self._id, params=parameters[first : first + _MOST_PARAMETERS])
        return client


def _has_saved_key() -> bool:
    """Returns whether `wandb login` has saved a key. wandb itself would ask for one, in a thread."""
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


def _run_ids(folder: Path) -> dict[str, str]:
    try:
        ids = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return {name: value for name, value in ids.items() if isinstance(value, str)} if isinstance(ids, dict) else {}


def _keep_run_id(folder: Path, name: str, value: str) -> None:
    write_file(folder / FILE, to_json({**_run_ids(folder), name: value}, indent=2) + "\n")
