"""Processes that differ are named before training begins."""

import threading
import types
from pathlib import Path

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.configs import HostsConfig, PretrainConfig
from deberta_jax.train.hosts import agreement
from deberta_jax.train.hosts.agreement import check_agreement, code_fingerprint, gather_facts

from ...support.fake_coordination import FakeCoordination

FACTS = {"settings": {"seed": 1, "optimizer": {"learning_rate": 1e-3}}, "code of deberta_jax": "ab"}


def agree(facts: list[dict], monkeypatch, *, clocks: tuple[float, ...] = (0, 0, 0)) -> list[list[str] | UserError]:
    """Returns what `check_agreement` returns or raises on three processes, which are threads here."""
    client = FakeCoordination(3)
    results: list = [None] * 3
    monkeypatch.setattr(
        agreement, "time", types.SimpleNamespace(time=lambda: 1000 + clocks[int(threading.current_thread().name)])
    )

    def run(index: int) -> None:
        try:
            results[index] = check_agreement(client, facts[index], index=index, count=3, clock_within=10)
        except UserError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), name=str(index)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_processes_that_agree_get_their_names(monkeypatch) -> None:
    names = agree([FACTS] * 3, monkeypatch, clocks=(0, 4, -4))
    assert names[0] == names[1] == names[2]
    assert names[0][2].startswith("process 2 on ")


@pytest.mark.parametrize(
    ("odd", "clocks", "message"),
    [
        ({**FACTS, "settings": {"seed": 2, "optimizer": {}}}, (0, 0, 0), r"process 1 on \S+: settings.optimizer.* is "),
        ({**FACTS, "code of deberta_jax": "cd"}, (0, 0, 0), 'code of deberta_jax is "cd", elsewhere "ab"'),
        ({**FACTS, "more": 3}, (0, 0, 0), "more is 3, elsewhere absent"),
        (FACTS, (0, 95, 0), r"its clock differs by \+95 s \(at most 10 s allowed\)"),
    ],
)
def test_all_processes_name_the_one_that_differs(odd: dict, clocks: tuple, message: str, monkeypatch) -> None:
    errors = agree([FACTS, odd, FACTS], monkeypatch, clocks=clocks)
    assert len({str(error) for error in errors}) == 1
    with pytest.raises(UserError, match=message):
        raise errors[0]
    assert "process 0" not in str(errors[0])
    assert "process 2" not in str(errors[0])


def test_facts_leave_out_the_index_of_the_process(tmp_path: Path) -> None:
    def facts_of(index: int, seed: int = 0) -> dict:
        hosts = HostsConfig(coordinator="a:1", count=2, index=index)
        return gather_facts(PretrainConfig(output=tmp_path, tokenizer=tmp_path, hosts=hosts, seed=seed))

    assert facts_of(0) == facts_of(1)
    assert facts_of(0) != facts_of(0, seed=1)
    assert facts_of(0)["settings"]["output"] == str(tmp_path)
    assert {"python", "jax", "orbax-checkpoint"} <= facts_of(0)["version"].keys()


def test_fingerprint_changes_with_the_code(monkeypatch) -> None:
    before = code_fingerprint()
    assert len(before) == 12
    code_fingerprint.cache_clear()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.name == "agreement.py" else b""))
    assert code_fingerprint() != before
    code_fingerprint.cache_clear()
