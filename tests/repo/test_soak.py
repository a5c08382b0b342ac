"""The soak: what it calls a leak, and a short one."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..soak import FIGURES, Sample, Samples

FLAT = Sample(resident=900.0, allocated=500.0, threads=20, files=10, children=0, arrays=100, programs=10)


def samples(*figures: Sample) -> Samples:
    """Returns two samples of each third of a run: the given one, and one during a save."""
    taken = []
    for third, sample in enumerate(figures):
        during_save = {name: getattr(sample, name) + 100 for name in FIGURES}
        taken += [(third * 100 + 30, sample), (third * 100 + 60, Sample(**during_save))]
    return Samples("steps", 300, taken)


def test_the_first_third_may_grow() -> None:
    start = Sample(resident=100.0, allocated=100.0, threads=2, files=3, children=0, arrays=0, programs=0)
    assert samples(start, FLAT, dataclasses.replace(FLAT, resident=931.0, allocated=503.0)).complaints() == []


@pytest.mark.parametrize("name", FIGURES)
def test_what_grows_is_named(name: str) -> None:
    more = {name: getattr(FLAT, name) + 33}
    complaints = samples(FLAT, FLAT, dataclasses.replace(FLAT, **more)).complaints()
    assert len(complaints) == 1
    assert complaints[0].startswith(f"steps: {name} grew from")


def test_a_peak_or_a_dip_is_not_a_leak() -> None:
    dip = (140, dataclasses.replace(FLAT, threads=4, arrays=10))
    peak = (240, dataclasses.replace(FLAT, threads=500, allocated=2000.0))
    flat = samples(FLAT, FLAT, FLAT).taken
    assert Samples("steps", 300, [*flat, dip]).complaints() == []
    assert Samples("steps", 300, [*flat, peak]).complaints() == []


def test_a_run_without_samples_is_not_called_flat() -> None:
    assert samples(FLAT, FLAT).complaints() == ["steps: too few samples; give more of them"]


@pytest.mark.long  # two minutes; `make soak` is the whole of it
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_short_soak_is_flat(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.soak", "--steps", "600", "--seeds", "3", "--folder", str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "nothing has grown" in done.stdout
