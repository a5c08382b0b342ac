"""The folder of a training run in a store: a local copy, which is written to the store during the run.

Checkpoints are folders, which a store cannot rename. So a step counts as complete by a file _COMPLETE, which is written
after all its files and lists their digests, and is removed before them. A run that starts fetches the newest complete
step of each `checkpoints` folder, whose digests it verifies.
"""

import contextlib
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from . import stores
from .errors import UserError, one_line
from .file_digests import file_digests
from .mirrors import Mirror
from .store_lock import FILE as LOCK_FILE
from .store_lock import StoreLock

COMPLETE = "_COMPLETE"
_STEP = re.compile(r"((?:.*/)?checkpoints/)(\d+)/(.*)")
_CHECKPOINT = re.compile(r"(?:.*/)?checkpoints/.*")
_NOT_COPIED = re.compile(r"(?:.*/)?compiled/.*")
_FILES_SECONDS = 30.0  # between two copies of logs
_STEPS_SECONDS = 1.0  # between two looks for new checkpoints
_LOG = logging.getLogger("deberta_jax")


def is_needed_from_run(name: str) -> bool:
    """Returns whether a command that uses the models of a run needs a file of it: no arrays of checkpoints."""
    return not re.fullmatch(r"(?:.*/)?(?:checkpoints/\d+/state/.*|compiled/.*|profile/.*)", name)


def _is_plain(name: str) -> bool:
    return not _CHECKPOINT.fullmatch(name) and not _NOT_COPIED.fullmatch(name) and name != LOCK_FILE


@contextlib.contextmanager
def followed(address: str) -> Iterator[Path]:
    """Yields the local copy of the folder of a run, which `RunMirror.following` writes to the store."""
    mirror = RunMirror.to_write(address)
    with mirror.following():
        yield mirror.path


class RunMirror(Mirror):
    """The local copy of the folder of a run."""

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Fetches the run, and writes to the store what the run writes here, until the context ends.

        At the end, also after an error, everything is written.

        Raises:
          UserError: every checkpoint in the store is damaged, or another process is writing this run.
          StoreError: the store does not answer. What it lacks is kept here, and the same command continues from it.
        """
        lock = StoreLock(self.address)
        lock.acquire()
        try:
            self.pull(_is_plain, keep_changes=True)
            self._pull_steps()
            with self._copied_by_thread(lock):
                yield
        finally:
            with contextlib.suppress(UserError):  # then the file shows that nobody is writing
                lock.release()

    @contextlib.contextmanager
    def _copied_by_thread(self, lock: StoreLock) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(
            target=self._follow, args=(ended, lock), daemon=True, name=f"copies to {self.address}"
        )
        thread.start()
        try:
            yield
        except BaseException:
            ended.set()
            thread.join()
            try:
                lock.keep()
                self._push_all()
            except Exception as error:  # the first error counts
                _LOG.warning("%s lacks the newest files: %s", self.address, one_line(error))
            raise
        ended.set()
        thread.join()
        lock.keep()
        self._push_all()

    def _follow(self, ended: threading.Event, lock: StoreLock) -> None:
        copied, reported = time.monotonic(), ""
        while not ended.wait(_STEPS_SECONDS):
            try:
                lock.keep()
                if self._new_steps():
                    self._push_all()
                elif time.monotonic() - copied > _FILES_SECONDS:
                    copied = time.monotonic()
                    self.push(_is_plain)
            except Exception as error:  # of any class; training goes on, and the next time is tried again
                if (text := one_line(error)) != reported:
                    reported = text
                    _LOG.warning("%s: %s. Training goes on", self.address, text)

    def _push_all(self) -> None:
        steps = self._new_steps()  # before the logs are copied, which then have at least these steps
        self.push(_is_plain)
        for step in steps:
            self._push_step(step)
        self._remove_old_steps()

    def _local_steps(self) -> list[str]:
        """Returns the names of the complete steps here, such as checkpoints/100/, newest last."""
        found = self.path.glob("**/checkpoints/*/_CHECKPOINT_METADATA")
        names = [f"{path.parent.relative_to(self.path).as_posix()}/" for path in found if path.parent.name.isdecimal()]
        return sorted(names, key=_number)

    def _new_steps(self) -> list[str]:
        return [step for step in self._local_steps() if step + COMPLETE not in self._copied]

    def _push_step(self, step: str) -> None:
        """Writes a step, its list of digests last."""
        folder = self.path / step
        try:
            files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            digests = file_digests(folder, files)
            self._each(self._put, [step + name for name in files])
        except FileNotFoundError:
            if folder.exists():
                raise
            return  # an old step, which was removed meanwhile
        stores.write(stores.join(self.address, step + COMPLETE), json.dumps(digests).encode())
        if folder.is_dir():
            self._note(step + COMPLETE)
            self._write_list()

    def _remove_old_steps(self) -> None:
        """Removes from the store what is no longer kept here, if a newer step is complete there."""
        here = set(self._local_steps())
        marked = [name.removesuffix(COMPLETE) for name in self._copied if name.endswith(f"/{COMPLETE}")]
        for step in marked:
            newer = any(_series(other) == _series(step) and _number(other) > _number(step) for other in marked)
            if step not in here and newer:
                stores.remove(stores.join(self.address, step + COMPLETE))
                stores.remove_folder(stores.join(self.address, step.rstrip("/")))
                self._forget(step)

    def _pull_steps(self) -> None:
        """Fetches the newest step that is complete and not damaged, of each folder of checkpoints.

        Raises:
          UserError: all of a folder are damaged.
        """
        there = stores.entries(self.address)
        for name in [name for name in self._copied if _STEP.fullmatch(name) and name not in there]:
            self._forget(name)
        for step in self._local_steps():
            if step + COMPLETE in there or step + COMPLETE not in self._copied:
                continue
            shutil.rmtree(self.path / step)  # it was removed from the store
        complete = [
            name.removesuffix(COMPLETE) for name in there if name.endswith(f"/{COMPLETE}") and _STEP.match(name)
        ]
        for series in {_series(step) for step in complete}:
            steps = sorted((step for step in complete if _series(step) == series), key=_number, reverse=True)
            faults: list[str] = []
            for step in steps:
                if fault := self._pull_step(step):
                    faults.append(fault)
                    _LOG.warning("%s is damaged (%s); the step before it is used", f"{self.address}/{step}", fault)
                    continue
                break
            else:
                raise UserError(
                    f"every checkpoint in {self.address}/{series} is damaged ({'; '.join(faults)}); restore the folder "
                    "from a copy, or use another --output to start again"
                )

    def _pull_step(self, step: str) -> str:
        """Fetches a step, unless it is here, and returns what is wrong with it, or ""."""
        self.pull(lambda name: name.startswith(step) and not name.endswith(f"/{COMPLETE}"))
        content = stores.read(stores.join(self.address, step + COMPLETE))
        folder = self.path / step
        try:
            expected = dict(json.loads(content))
            if missing := [name for name in expected if not (folder / name).is_file()]:
                raise ValueError(f"{missing[0]} is missing")
            for name, digest in file_digests(folder, expected).items():
                if digest != expected[name]:
                    raise ValueError(f"{name} has another digest")
        except (ValueError, TypeError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            self._forget(step)
            return one_line(error)
        self._note(step + COMPLETE)
        self._write_list()
        return ""

    def _forget(self, prefix: str) -> None:
        self._copied = {name: copied for name, copied in self._copied.items() if not name.startswith(prefix)}


def _number(step: str) -> int:
    return int(step.rstrip("/").rpartition("/")[2])


def _series(step: str) -> str:
    return step.rstrip("/").rpartition("/")[0]
