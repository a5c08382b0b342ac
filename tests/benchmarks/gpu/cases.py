"""What is measured, and the results, which workers write and the report reads."""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

from deberta_jax import DebertaConfig

from ...support.small_models import SMALL

# golden: a case of tests/golden. reference: writes transformers' float32 output, which `error` compares with.
# gradients: compares the gradients of attention in two layers with those in float32.
# start and warm: the first training step of a process, without and with a compile cache.
KINDS = ("golden", "reference", "error", "gradients", "forward", "step", "start", "warm")

DROPOUT = 0.1
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-5, 0.01, 1.0


@dataclasses.dataclass(frozen=True, order=True)
class Case:
    """One measurement.

    Attributes:
      kind: one of `KINDS`.
      size: rows x tokens, such as 32x512, or the name of a golden case.
    """

    kind: str
    size: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.size}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `step:32x512`.

        Raises:
          ValueError: if the text is not the name of a case.
        """
        kind, _, size = text.partition(":")
        case = cls(kind, size)
        if kind not in KINDS:
            raise ValueError(f"{text}: a case is KIND:SIZE, such as step:32x512; kinds are {', '.join(KINDS)}")
        if kind != "golden":
            rows, _, tokens = size.partition("x")
            if not (rows.isdecimal() and tokens.isdecimal() and int(rows) and int(tokens)):
                raise ValueError(f"{text}: the size is ROWSxTOKENS, such as step:32x512")
        return case

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens."""
        rows, tokens = self.size.split("x")
        return int(rows), int(tokens)


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one case of one program.

    Attributes:
      program: key of `programs.PROGRAMS`.
      case: name of the case.
      milliseconds: mean of each round.
      memory: largest memory in use on the device, bytes; None on a CPU.
      seconds: from the start of the process to the end of its first training step.
      parts: seconds of the parts of `seconds`.
      difference: relative error of an output, |a - b| / |b|.
      failure: why there is no result; empty if there is one.
    """

    program: str
    case: str
    milliseconds: tuple[float, ...] = ()
    memory: int | None = None
    seconds: float | None = None
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    difference: float | None = None
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, "", (), {})}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        return cls(**fields | {"milliseconds": tuple(fields.get("milliseconds", ()))})


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker process has to do.

    Attributes:
      program: key of `programs.PROGRAMS`.
      cases: names of cases, in order.
      lines: file that results are appended to, a line of JSON each.
      model: folder of the model that all programs load.
      reference: file of transformers' float32 output.
      started: `time.time()` just before the process was started.
      implementation: `attention_implementation` of this library.
      dry_run: whether everything runs on the CPU, with a few rounds.
    """

    program: str
    cases: tuple[str, ...]
    lines: Path
    model: Path
    reference: Path
    started: float
    implementation: str = "auto"
    dry_run: bool = False

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        paths = {name: Path(fields[name]) for name in ("lines", "model", "reference")}
        return cls(**fields | paths | {"cases": tuple(fields["cases"])})

    def since_start(self) -> float:
        """Returns the seconds since the process was started."""
        return time.time() - self.started


def model_config(dry_run: bool) -> DebertaConfig:
    """Returns the configuration of the measured model: v3-base, or a tiny model of the same form."""
    tiny = SMALL.replace(hidden_size=64, num_attention_heads=2, num_hidden_layers=2, initializer_range=0.05)
    config = tiny if dry_run else DebertaConfig.named("deberta-v3-base")
    return config.replace(hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT)


def batch_of(case: Case, vocab_size: int) -> dict[str, np.ndarray]:
    """Returns random tokens in full rows; where outputs are compared, row n lacks n eighths of its tokens."""
    rows, tokens = case.shape
    rng = np.random.default_rng(0)
    mask = np.ones((rows, tokens), np.int32)
    if case.kind in ("reference", "error", "gradients"):
        for row in range(rows):
            mask[row, tokens - tokens * (row % 8) // 8 :] = 0
    return {
        "input_ids": rng.integers(5, vocab_size, (rows, tokens)).astype(np.int32) * mask,
        "attention_mask": mask,
        "labels": (np.arange(rows) % 2).astype(np.int32),
    }


def read_reference(work: Work) -> np.ndarray:
    """Returns transformers' float32 output.

    Raises:
      RuntimeError: if transformers has not written it.
    """
    if not work.reference.exists():
        raise RuntimeError("needs the output of transformers, which has not run")
    return np.load(work.reference)


def relative_error(actual: np.ndarray, expected: np.ndarray, mask: np.ndarray) -> float:
    """Returns |actual - expected| / |expected| over real tokens."""
    real = mask.astype(bool)
    return float(np.linalg.norm((actual - expected)[real]) / np.linalg.norm(expected[real]))


def time_rounds(run: Callable[[], Any], wait: Callable[[], Any], *, dry_run: bool) -> tuple[float, ...]:
    """Times a function that returns before the device is done.

    A round is several calls, so that the host's work overlaps with the device's as in a training loop.

    Args:
      run: starts the work.
      wait: blocks until all of it is done.
      dry_run: two rounds of one call.

    Returns:
      Milliseconds for each call, the mean of each round.
    """

    def timed(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait()
        return 1e3 * (time.perf_counter() - start) / calls

    timed(1)
    timed(1)  # the first calls compile, and allocate
    milliseconds = timed(1)
    calls, rounds = (1, 2) if dry_run else (max(1, round(100 / milliseconds)), 10)
    if milliseconds * calls * rounds > 5000:
        rounds = max(3, int(5000 / (milliseconds * calls)))
    return tuple(timed(calls) for _ in range(rounds))
