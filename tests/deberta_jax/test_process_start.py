"""When the process of a command started."""

import time
from pathlib import Path

from deberta_jax.process_start import note_process_start, take_process_start

IMPORTED = time.monotonic()


def test_the_start_is_before_now_and_taken_once() -> None:
    note_process_start()
    began = take_process_start()
    assert began is not None
    assert began <= time.monotonic()
    if Path("/proc/self/stat").exists():
        assert began < IMPORTED
    assert take_process_start() is None


def test_a_system_that_does_not_tell_counts_from_now(monkeypatch) -> None:
    before = time.monotonic()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "nonsense")
    note_process_start()
    began = take_process_start()
    assert began is not None
    assert before <= began <= time.monotonic()
