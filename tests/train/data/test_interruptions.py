"""`prepare` and `tokenizer` as commands that are interrupted, killed, started twice, or meet a full disk."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deberta_jax.__main__ import main as command_line
from deberta_jax.errors import UserError
from deberta_jax.train.data import storage
from deberta_jax.train.data.corpus import open_corpus
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.work_folder import open_work_folder

from ...support.killed_prepare import MOMENTS, SETTINGS, killed_command, killed_prepare, use_small_tasks
from ...support.small_corpus import Words, contents, story, write
from ...support.small_disk import fill, small_disk

ROOT = Path(__file__).parents[3]
Run = Callable[..., tuple[int, str]]

_MOMENTS = 16


@pytest.fixture(autouse=True)
def signals_are_not_ignored() -> Iterator[None]:
    """Processes inherit ignored signals, as where a shell runs the tests in the background or under nohup."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(capsys) -> Run:
    """Runs a command in this process. Returns its exit code and the last line of standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        code = command_line([str(argument) for argument in arguments])
        errors = capsys.readouterr().err
        assert "Traceback" not in errors, errors
        return code, (errors.strip().splitlines() or [""])[-1]

    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------- signals


def start(*arguments: object) -> subprocess.Popen[str]:
    """Starts a command in a new session, as a terminal does."""
    command = [sys.executable, "-m", "deberta_jax", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )


def stop(process: subprocess.Popen[str], number: int, *, when: Callable[[], bool]) -> tuple[int, str]:
    """Sends a signal as soon as a condition holds. Returns the exit code and standard error."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not when():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 20  # seconds on an idle machine
    return process.returncode, errors


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def prepare_options(novel: Path, output: Path) -> list[object]:
    return ["prepare", "--output", output, "--tokenizer", novel / "tokenizer", "--sequence-length", 32]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_prepare_and_the_same_command_continues(novel, tmp_path, number):
    options = prepare_options(novel, tmp_path / "c")
    for _ in range(5):  # on a busy machine the command may finish before the signal arrives
        code, errors = stop(start(*options), number, when=lambda: any(tmp_path.glob(".c.*.tmp/corpus")))
        if code != 0:
            break
        shutil.rmtree(tmp_path / "c")
    assert code == 128 + number
    (work,) = names(tmp_path)
    kept = f"{tmp_path / work} has what is complete; the same command continues from there\n"
    assert errors == kept + ("\ndeberta-jax prepare: interrupted\n" if number == signal.SIGINT else "")
    with start(*options) as again:
        assert again.wait(timeout=240) == 0
    assert names(tmp_path) == ["c"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_tokenizer_in_the_middle_of_training(tmp_path, number):
    """Training is C++ code, which reacts to no signal."""
    process = start("tokenizer", "--output", tmp_path / "t", "--vocab-size", 8000)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("needs Linux, to see the process that trains")
    trainer: list[str] = []

    def training() -> bool:
        trainer[:] = children.read_text().split()
        return bool(trainer) and int(Path(f"/proc/{trainer[0]}/stat").read_text().split()[13]) > 50  # CPU time: 0.5 s

    code, errors = stop(process, number, when=training)
    assert "Traceback" not in errors
    if number == signal.SIGKILL:
        assert code == -9
        assert names(tmp_path / "t") == []
    else:
        assert code == 128 + number
        assert names(tmp_path) == []
    deadline = time.monotonic() + 20
    while is_running(trainer[0]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_prepare(novel, tmp_path, number, run):
    output = tmp_path / "c"
    began = time.monotonic()
    assert run(*prepare_options(novel, output))[0] == 0
    whole = time.monotonic() - began
    expected = open_corpus(output)
    output.rename(tmp_path / "expected")
    for moment in range(_MOMENTS):
        process = start(*prepare_options(novel, output))
        time.sleep(whole * moment / _MOMENTS)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        # A traceback: before `main` began.
        words = ("Traceback", "interrupted", "the same command continues from there")
        assert not errors or any(word in errors for word in words), errors
        assert process.returncode in (0, 128 + number, -number)
        assert run(*prepare_options(novel, output))[0] == 0
        assert open_corpus(output).train == expected.train
        output.rename(tmp_path / f"complete{moment}")
        assert not any(name.startswith(".") for name in names(tmp_path))


# ---------------------------------------------------------------------------------------------- SIGKILL


@pytest.fixture
def small_tasks(monkeypatch) -> None:
    use_small_tasks(monkeypatch)


def done_tasks(work: Path) -> set[str]:
    return {str(path.relative_to(work)) for path in work.glob("*/[0-9]*.json")}


@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if "in the middle" not in moment])
def test_a_killed_preparation_is_continued_with_the_same_bytes(tmp_path, monkeypatch, small_tasks, moment):
    text = write(tmp_path / "a.txt", story(50))
    expected = contents(prepare([text], Words(), tmp_path / "unbroken", **SETTINGS).folder)
    assert len(expected) > 5
    killed_prepare(moment, text, tmp_path / "c")
    (work,) = tmp_path.glob(".c.*.tmp")
    done = done_tasks(work)
    assert any(name.startswith("write/") for name in done) == moment.startswith(("write", "check", "man", "move"))
    written, write_json = [], storage.write_json
    monkeypatch.setattr(storage, "write_json", lambda path, content: written.append(path) or write_json(path, content))
    corpus = prepare([text], Words(), tmp_path / "c", **SETTINGS)
    assert not done & {str(path.relative_to(work)) for path in written}
    assert contents(corpus.folder) == expected
    assert names(tmp_path) == ["a.txt", "c", "unbroken"]


def test_leftovers_of_another_preparation_are_removed(tmp_path, caplog, small_tasks):
    text = write(tmp_path / "a.txt", story(50))
    killed_prepare("write", text, tmp_path / "c")
    (leftover,) = tmp_path.glob(".c.*.tmp")
    corpus = prepare([text], Words(), tmp_path / "c", **SETTINGS | {"seed": 1})
    assert open_corpus(tmp_path / "c") == corpus
    assert names(tmp_path) == ["a.txt", "c"]
    assert f"removed {leftover}, which a killed run had left" in caplog.text


@pytest.mark.parametrize("seed", [0, 1])
def test_files_that_were_being_moved_are_moved_again_or_removed(tmp_path, small_tasks, seed):
    """An existing folder receives one file after the other."""
    text = write(tmp_path / "a.txt", story(50))
    folder = tmp_path / "c"
    folder.mkdir()
    killed_prepare("move, in the middle", text, folder)
    assert any(name.startswith("train-") for name in names(folder))
    with pytest.raises(UserError, match=r"c contains no manifest\.json"):
        open_corpus(folder)
    corpus = prepare([text], Words(), folder, **SETTINGS | {"seed": seed})
    assert open_corpus(folder) == corpus
    assert contents(folder) == contents(prepare([text], Words(), tmp_path / "d", **SETTINGS | {"seed": seed}).folder)


def test_files_are_moved_back_after_an_interruption(tmp_path, monkeypatch):
    text = write(tmp_path / "a.txt", story(50))
    (tmp_path / "c").mkdir()
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> None:
        rename(path, target)
        if path.suffix == ".array_record":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare([text], Words(), tmp_path / "c", **SETTINGS)
    (work,) = names(tmp_path / "c")
    assert work.startswith(".c.")
    prepare([text], Words(), tmp_path / "c", **SETTINGS)
    assert len(names(tmp_path / "c")) == 3


def test_leftovers_that_may_be_in_use_are_named_and_stay(tmp_path, caplog, monkeypatch):
    text = write(tmp_path / "a.txt", story(50))
    (tmp_path / ".c.old.tmp").mkdir()  # of an earlier version
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        manager = open_work_folder(tmp_path, "c", "0" * 64)
        other = manager.__enter__()
    prepare([text], Words(), tmp_path / "c", **SETTINGS)
    for path in (tmp_path / ".c.old.tmp", other):
        assert f"{path} is left of another run; delete it, unless that run is still making this corpus" in caplog.text
        assert path.exists()
    manager.__exit__(None, None, None)


def test_a_second_process_is_refused(tmp_path, small_tasks):
    text = write(tmp_path / "a.txt", story(50))
    command = killed_command("manifest", text, tmp_path / "c", "wait")
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(UserError, match=rf"c is being made by process {process.pid} of this machine; wait for it"):
            prepare([text], Words(), tmp_path / "c", **SETTINGS)
        process.stdin.close()
    prepare([text], Words(), tmp_path / "c", **SETTINGS)
    assert names(tmp_path) == ["a.txt", "c"]


# ---------------------------------------------------------------------------------------------- full disks


def need_disk(mounted: bool) -> None:
    if not mounted:
        pytest.skip("mounting a small file system is not allowed here")


@pytest.mark.parametrize("place", ["the mount point", "a new folder"])
def test_prepare_on_a_full_disk(tmp_path, place):
    text = write(tmp_path / "a.txt", story(8000))
    disk = tmp_path / "disk"
    with small_disk(disk, megabytes=3) as mounted:
        need_disk(mounted)
        folder = disk if place == "the mount point" else disk / "c"
        filler = disk / ".filler.tmp"
        fill(filler)
        os.truncate(filler, filler.stat().st_size - (1 << 18))
        with pytest.raises(OSError, match=rf"cannot write the corpus {folder}: .*No space left.*; free some") as caught:
            prepare([text], Words(), folder, **SETTINGS)
        assert caught.value.errno == 28
        assert "\n" not in str(caught.value)
        assert len(names(disk)) == 2
        filler.unlink()
        corpus = prepare([text], Words(), folder, **SETTINGS)
        assert open_corpus(folder) == corpus
        assert not any(name.startswith(".") for name in names(disk))


def test_tokenizer_on_a_full_disk(tmp_path, novel, run):
    disk = tmp_path / "disk"
    text = novel / "text.txt"
    with small_disk(disk, megabytes=1) as mounted:
        need_disk(mounted)
        options = ["tokenizer", "--output", disk / "t", "--text", text, "--vocab-size"]
        fill(disk / "filler")
        code, message = run(*options, 500)  # before the training
        assert code == 1
        assert message.endswith(f"cannot write the tokenizer {disk / 't'}: No space left on device; free some space "
                                "or choose another folder")  # fmt: skip
        assert names(disk) == ["filler"]
        (disk / "filler").unlink()
        assert run(*options, 500)[0] == 0
        before = {path.name: path.read_bytes() for path in (disk / "t").iterdir()}
        fill(disk / "filler")
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - (1 << 16))
        code, message = run(*options, 600, "--overwrite")
        assert code == 1
        assert "cannot write the tokenizer" in message
        assert {path.name: path.read_bytes() for path in (disk / "t").iterdir()} == before
        (disk / "filler").unlink()
        assert run(*options, 600, "--overwrite")[0] == 0


# ---------------------------------------------------------------------------------------------- output over input


def test_output_over_the_text_is_refused_before_the_work(novel, tmp_path, run):
    folder = tmp_path / "texts"
    folder.mkdir()
    text = write(folder / "a.txt", story(10))
    tokenizer = ["--tokenizer", novel / "tokenizer"]
    for output, source, message in (
        (text, text, "is the text that is read"),
        (folder, folder, "is the text that is read"),
        (folder / "c", folder, "is inside of"),
    ):
        for command in (["prepare", *tokenizer], ["tokenizer"]):
            code, line = run(*command, "--output", output, "--text", source)
            assert code == 1
            assert message in line
    code, line = run("prepare", *tokenizer, "--output", novel / "tokenizer", "--text", text)
    assert code == 1
    assert "exists and is not a prepared corpus, but has '" in line
    assert names(folder) == ["a.txt"]


# ---------------------------------------------------------------------------------------------- imports


def test_an_interrupt_that_a_package_swallows_while_it_is_imported_ends_the_command(tmp_path):
    """The garbage collection hook of JAX, for example, ignores every exception."""
    (tmp_path / "swallows.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
        "def main(_): print('went on')\n"
    )
    code = (
        "from deberta_jax.__main__ import COMMANDS, main; COMMANDS['prepare'] = ('swallows', None, ''); "
        "raise SystemExit(main(['prepare']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ndeberta-jax prepare: interrupted\n")


def test_prepare_does_not_import_jax():
    """It would swallow Ctrl-C, and takes seconds."""
    code = "import sys, deberta_jax.train.prepare; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
