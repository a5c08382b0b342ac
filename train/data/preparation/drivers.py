"""Runs the tasks of a phase: in this process, or in several."""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

from ..work_folder import UnfinishedWorkError
from ..worker_process import start_worker
from .plan import Job, Task

Progress = Callable[[int, int], None]
_job: Job | None = None  # of this worker process


class RunTasks(Protocol):
    """Runs all tasks of a phase, in any order and anywhere. The results are the files that they write."""

    def __call__(self, task: Task, numbers: Sequence[int], progress: Progress) -> None: ...


class Driver(Protocol):
    """Starts what runs the tasks of a job, until the context ends."""

    def __call__(self, job: Job, /) -> contextlib.AbstractContextManager[RunTasks]: ...


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(job: Job, task: Task, numbers: Sequence[int], progress: Progress) -> None:
    """Runs tasks one after the other in this process."""
    for done, number in enumerate(numbers, 1):
        task(job, number)
        progress(done, len(numbers))


class ProcessDriver:
    """Runs tasks in processes of this machine; in this process if there is a single worker or a single task."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    @contextlib.contextmanager
    def __call__(self, job: Job) -> Iterator[RunTasks]:
        """Yields a function that runs the tasks of a phase. The processes end with the context, and with this process.

        That function raises:
          UnfinishedWorkError: a process was killed.
          Exception: that of the first task, in the order of their numbers, that fails.
        """
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(self._workers, context, _start_worker, (job,))

        def run(task: Task, numbers: Sequence[int], progress: Progress) -> None:
            if min(self._workers, len(numbers)) <= 1:
                run_here(job, task, numbers, progress)
                return
            try:
                for done, _ in enumerate(pool.map(functools.partial(_run, task), numbers), 1):
                    progress(done, len(numbers))
            except BrokenProcessPool:
                raise UnfinishedWorkError(
                    "a worker process ended unexpectedly, most likely for lack of memory; repeat the command with "
                    "fewer --workers"
                ) from None

        try:
            yield run
        except BaseException:
            for process in list((pool._processes or {}).values()):  # Python 3.14 has terminate_workers
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(job: Job) -> None:
    global _job  # noqa: PLW0603
    _job = job
    start_worker()


def _run(task: Task, number: int) -> None:
    assert _job is not None
    task(_job, number)
