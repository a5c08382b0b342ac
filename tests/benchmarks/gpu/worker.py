"""A worker process: runs the cases of one program one after the other and appends each result to a file.

    python -m tests.benchmarks.gpu.worker WORK        # WORK is that of cases.Work, as JSON

A line is written when a case begins, too, so that the parent knows which case a process died of.
"""

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from .cases import Case, Result, Work
from .programs import GOLDEN, PEERS

Measure = Callable[[Case], Result]

_lock = threading.Lock()


def main() -> None:
    work = Work.from_json(sys.argv[1])
    measure: Measure
    if work.program == GOLDEN:
        from .golden import measure_golden as measure
    elif work.program in PEERS:
        from .pytorch import Program

        measure = Program(work).measure
    else:
        from .ours import Program

        measure = Program(work).measure
    # Golden cases spend their time in the compiler, which uses one thread for each.
    with ThreadPoolExecutor(max_workers=8 if work.program == GOLDEN and not work.dry_run else 1) as threads:
        list(threads.map(lambda name: run(Case.parse(name), measure, work), work.cases))


def run(case: Case, measure: Measure, work: Work) -> None:
    """Runs one case and writes its result, which is a failure if it raises."""
    append(work, {"begin": str(case)})
    try:
        result = measure(case)
    except Exception as error:
        result = Result(work.program, str(case), failure=reason_of(error))
    append(work, result.to_json())


def reason_of(error: Exception) -> str:
    """Returns one short line for an exception."""
    text = f"{error}".strip() or type(error).__name__
    if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return "out of memory"
    line = " ".join(text.split())[:200]
    return line if type(error) is RuntimeError else f"{type(error).__name__}: {line}"


def append(work: Work, fields: dict) -> None:
    with _lock, work.lines.open("a", encoding="utf-8") as file:
        file.write(json.dumps(fields) + "\n")


if __name__ == "__main__":
    main()
