"""The same bytes from any driver, and what happens if one fails or loses tasks."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deberta_jax.errors import MissingPackageError, UserError
from deberta_jax.train.data import prepare as prepare_module
from deberta_jax.train.data import storage
from deberta_jax.train.data.preparation.beam_driver import BeamDriver
from deberta_jax.train.data.preparation.drivers import ProcessDriver
from deberta_jax.train.data.preparation.rules import TextRules
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.text_files import TextError
from deberta_jax.train.data.work_folder import UnfinishedWorkError
from deberta_jax.train.prepare import PrepareConfig

from ....support.paths import REPOSITORY
from ....support.small_corpus import Words, contents, story, write

SETTINGS = {"sequence_length": 64, "boundary": "blank_line", "held_out_fraction": 0.1, "seed": 3}
RUNNERS = {
    "in memory": ["--runner=DirectRunner", "--direct_running_mode=in_memory"],
    "processes": ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"],
    "portable": ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
}


@pytest.fixture
def texts(tmp_path, monkeypatch) -> list[Path]:
    """Files that make several groups, chunks and shards."""
    monkeypatch.setattr(prepare_module, "CHUNK_BYTES", 4000)
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 3000)
    monkeypatch.setattr(prepare_module, "GROUP_BYTES", 1000)
    documents = story(90).split("\n\n")
    parts = [documents[:20], documents[20:25], documents[25:], documents[:5]]
    return [write(tmp_path / f"{number}.txt", "\n\n".join(part)) for number, part in enumerate(parts)]


class KillsWorkers(Words):
    """Ends the process, unless that is the main one."""

    def encode_batch(self, texts):
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_batch(texts)


class Sleeps(Words):
    """Encodes one batch, and then takes for ever."""

    def encode_batch(self, texts):
        os.write(1, f"{os.getpid()}\n".encode())  # at once: print writes the end of the line by itself if unbuffered
        time.sleep(600)


def test_two_processes_write_the_bytes_of_one(tmp_path, texts):
    rules = TextRules(near_duplicates=0.8)
    one = prepare(texts, Words(), tmp_path / "one", rules=rules, **SETTINGS)
    two = prepare(texts, Words(), tmp_path / "two", rules=rules, driver=ProcessDriver(2), **SETTINGS)
    assert len(one.train.files) > 3
    assert contents(one.folder) == contents(two.folder)


def test_a_fault_in_a_worker_is_that_of_the_first_file(tmp_path, texts):
    texts[1].write_bytes(b"\xff")
    texts[3].write_bytes(b"\0")
    with pytest.raises(TextError, match=r"1\.txt: line 1, byte 0: 0xff is not UTF-8"):
        prepare(texts, Words(), tmp_path / "c", driver=ProcessDriver(2), **SETTINGS)
    assert not list(tmp_path.glob(".c.*"))


def test_a_killed_worker_is_reported_and_the_work_continued(tmp_path, texts):
    with pytest.raises(UnfinishedWorkError, match="a worker process ended unexpectedly, most likely for lack of mem"):
        prepare(texts, KillsWorkers(), tmp_path / "c", driver=ProcessDriver(2), **SETTINGS)
    (work,) = tmp_path.glob(".c.*.tmp")
    assert len(list(work.glob("read/*.json"))) == 4
    corpus = prepare(texts, Words(), tmp_path / "c", **SETTINGS)
    assert contents(corpus.folder) == contents(prepare(texts, Words(), tmp_path / "d", **SETTINGS).folder)


KILLED = """
import sys
from deberta_jax.train.data import prepare as module
from deberta_jax.train.data.preparation.drivers import ProcessDriver
from tests.train.data.preparation.test_drivers import SETTINGS, Sleeps

if __name__ == "__main__":
    module.CHUNK_BYTES, module.SHARD_BYTES, module.GROUP_BYTES = 4000, 3000, 1000
    module.prepare(sys.argv[2:], Sleeps(), sys.argv[1], driver=ProcessDriver(2), **SETTINGS)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_main_process(tmp_path, texts, number):
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs Linux, to see other processes")
    script = write(tmp_path / "killed.py", KILLED)
    command = [sys.executable, str(script), str(tmp_path / "c"), *map(str, texts)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        workers = {int(process.stdout.readline()) for _ in range(2)}
        assert process.pid not in workers
        process.send_signal(number)
        process.stdout.close()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    corpus = prepare(texts, Words(), tmp_path / "c", **SETTINGS)
    assert contents(corpus.folder) == contents(prepare(texts, Words(), tmp_path / "d", **SETTINGS).folder)


def driver_that_loses(phase: str, lose):
    """Returns a driver that calls `lose` with the job and the file of the second task after a phase."""

    @contextlib.contextmanager
    def driver(job):
        with ProcessDriver(1)(job) as run:

            def run_and_lose(task, numbers, progress):
                run(task, numbers, progress)
                if task.__name__ == phase:
                    folder = {"read_group": "read", "tokenize_chunk": "tokenize", "write_shard": "write"}[phase]
                    lose(job.plan.work / folder / "00001.json")

            yield run_and_lose

    return driver


@pytest.mark.parametrize("phase", ["read_group", "tokenize_chunk", "write_shard"])
def test_lost_tasks_are_found_and_done_by_the_same_command(tmp_path, texts, phase):
    with pytest.raises(UnfinishedWorkError, match=r"1 of \d+ tasks of the phase \w+ were lost: 00001; repeat the com"):
        prepare(texts, Words(), tmp_path / "c", driver=driver_that_loses(phase, storage.remove), **SETTINGS)
    corpus = prepare(texts, Words(), tmp_path / "c", **SETTINGS)
    assert contents(corpus.folder) == contents(prepare(texts, Words(), tmp_path / "d", **SETTINGS).folder)


@pytest.mark.parametrize("field", ["rows", "checksum"])
def test_lost_rows_are_refused(tmp_path, texts, field):
    def lose(file: Path) -> None:
        totals = storage.read_json(file)
        storage.write_json(file, totals | {field: totals[field] - 1})

    with pytest.raises(UserError, match=r"the train files have \d+ rows, and the chunks .*work was lost or damaged"):
        prepare(texts, Words(), tmp_path / "c", driver=driver_that_loses("write_shard", lose), **SETTINGS)
    assert not (tmp_path / "c").exists()
    assert not list(tmp_path.glob(".c.*"))


def test_files_that_a_power_failure_cut_are_made_again(tmp_path, texts):
    def cut(file: Path) -> None:
        os.truncate(file.with_suffix(".documents"), 10)

    with pytest.raises(
        UserError, match=r"00001\.documents has 10 bytes, fewer than .*repeat the command, which begins"
    ):
        prepare(texts, Words(), tmp_path / "c", driver=driver_that_loses("read_group", cut), **SETTINGS)
    prepare(texts, Words(), tmp_path / "c", **SETTINGS)


@pytest.mark.parametrize("phase", ["read_group", "tokenize_chunk", "write_shard"])
def test_totals_that_a_power_failure_emptied_are_made_again(tmp_path, texts, phase):
    driver = driver_that_loses(phase, lambda file: os.truncate(file, 0))
    with pytest.raises(UserError, match=r"00001\.json has 0 bytes that are not what was written: the disk or the ma"):
        prepare(texts, Words(), tmp_path / "c", driver=driver, **SETTINGS)
    prepare(texts, Words(), tmp_path / "c", **SETTINGS)


# ---------------------------------------------------------------------------------------------- Apache Beam


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
def test_beam_writes_the_same_bytes(tmp_path, texts, runner):
    pytest.importorskip("apache_beam", reason="needs the extra 'beam'")
    script = write(
        tmp_path / "beam.py",
        "import sys\n"
        "from deberta_jax.train.data import prepare as module\n"
        "from deberta_jax.train.data.preparation.beam_driver import BeamDriver\n"
        "from tests.support.small_corpus import Words\n"
        "from tests.train.data.preparation.test_drivers import SETTINGS\n"
        "module.CHUNK_BYTES, module.SHARD_BYTES, module.GROUP_BYTES = 4000, 3000, 1000\n"
        "output, *texts = sys.argv[1 : sys.argv.index('--')]\n"
        "driver = BeamDriver(sys.argv[sys.argv.index('--') + 1 :])\n"
        "module.prepare(texts, Words(), output, driver=driver, **SETTINGS)\n",
    )
    command = [sys.executable, str(script), str(tmp_path / "c"), *map(str, texts), "--", *RUNNERS[runner]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "c") == contents(prepare(texts, Words(), tmp_path / "d", **SETTINGS).folder)


@pytest.mark.slow
def test_a_fault_on_beam_is_reported_in_one_line(tmp_path, texts):
    pytest.importorskip("apache_beam", reason="needs the extra 'beam'")
    texts[2].write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"2\.txt: line 1, byte 0: 0xff is not UTF-8"):
        prepare(texts, Words(), tmp_path / "c", driver=BeamDriver(RUNNERS["in memory"]), **SETTINGS)


def test_threads_of_beam_are_refused():
    pytest.importorskip("apache_beam", reason="needs the extra 'beam'")
    with pytest.raises(UserError, match="multi_threading loses elements; use multi_processing or in_memory"):
        BeamDriver(["--direct_running_mode=multi_threading"])


def test_beam_that_is_not_installed_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("apache_beam.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(MissingPackageError, match=r"--beam needs a package: pip install 'deberta-jax\[beam\]'"):
        BeamDriver([])


def test_all_words_after_beam_are_flags_of_beam():
    from deberta_jax.options import parse_options

    words = ["--output", "c", "--tokenizer", "t", "--seed", "3", "--beam", "--runner=DirectRunner", "--seed=4", "x"]
    config = parse_options(PrepareConfig, words)
    assert (config.seed, config.beam) == (3, ("--runner=DirectRunner", "--seed=4", "x"))
    assert parse_options(PrepareConfig, words[:7]).beam == ()
    assert parse_options(PrepareConfig, words[:6]).beam is None
