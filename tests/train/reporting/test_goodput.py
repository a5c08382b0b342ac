"""Where the time of a run went, over all of its starts."""

import json
from pathlib import Path

from deberta_jax.train.hosts import phases
from deberta_jax.train.hosts.phases import PhaseTimer
from deberta_jax.train.reporting.goodput import Goodput, GoodputLog, describe_start, read_goodput

from ...support.fake_time import fake_time


def line(began: float, written: float, steps: tuple[int, int], **seconds: float) -> str:
    first, last = steps
    return json.dumps({"began": began, "written": written, "from_step": first, "step": last, "seconds": seconds})


def test_goodput_counts_steps_once_and_the_time_between_starts(tmp_path: Path) -> None:
    """The first start reached step 40 and was killed; the second resumed from step 20, 15 s later."""
    lines = [
        line(100, 130, (0, 10), step=10, compile=20),
        line(100, 150, (0, 40), step=40, compile=20),
        line(165, 195, (20, 40), step=20, compile=10),
        '{"began": 165, "wri',
    ]
    (tmp_path / "goodput.jsonl").write_text("\n".join(lines))
    goodput = read_goodput(tmp_path)
    assert goodput == Goodput(2, useful=40.0, lost=20.0, between=15.0, phases={"compile": 30.0})
    assert goodput.total == 105
    assert str(goodput) == (
        "goodput 38.1% of 105 s in 2 starts; compile 28.6%, steps taken again 19.0%, between starts 14.3%"
    )


def test_the_log_can_be_read_back(tmp_path: Path, monkeypatch) -> None:
    clock = fake_time(monkeypatch, phases)
    timer = PhaseTimer()
    log = GoodputLog(timer)
    log.resume_at(3)
    timer.enter("step", 4)
    clock.now += 0.5
    (tmp_path / "goodput.jsonl").write_text(log.account(4) + "\n")
    goodput = read_goodput(tmp_path)
    assert (goodput.starts, goodput.useful) == (1, 0.5)


def test_a_line_says_how_long_the_first_step_took(monkeypatch) -> None:
    clock = fake_time(monkeypatch, phases)
    timer = PhaseTimer(began=clock.now - 3.1)
    clock.now += 0.04
    timer.enter("weights")
    clock.now += 4
    assert "to_first_step" not in json.loads(GoodputLog(timer).account(0))
    timer.enter("compile", 1)
    clock.now += 20
    assert describe_start(timer.end_first_step()) == "first step after 27.1 s: imports 3.1, weights 4.0, compile 20.0"
    timer.enter("step", 2)
    clock.now += 60
    spent = json.loads(GoodputLog(timer).account(2))["to_first_step"]
    assert {phase: value for phase, value in spent.items() if value} == {
        "import": 3.1,
        "start": 0.04,
        "weights": 4.0,
        "compile": 20.0,
    }
