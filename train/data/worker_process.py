"""What worker processes do when they start: they leave signals to the main process, and end when it ends."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def start_worker(*, ignored: tuple[signal.Signals, ...] = (signal.SIGINT,)) -> None:
    """Prepares a worker process. It ends when the main process does, even if that is killed.

    Args:
      ignored: signals that the process ignores. Ctrl-C goes to all processes; the main one ends the others.
    """
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def start_reader(index: int, count: int) -> None:
    """Prepares a worker process of grain, which passes its index and the number of workers.

    It ignores SIGTERM as well, which may go to all processes of a job: the main process needs batches until it has
    saved a checkpoint, and then ends the workers.
    """
    del index, count
    start_worker(ignored=(signal.SIGINT, signal.SIGTERM))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
