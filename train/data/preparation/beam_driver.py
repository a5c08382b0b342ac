"""Runs the tasks of a phase on Apache Beam: on this machine, Dataflow, Flink or Spark, by its ordinary flags.

A task gets its number and returns nothing, so that no row passes through Beam. Its local runner with
`multi_threading` has lost elements without an error, which is why it is refused.
"""

import contextlib
from collections.abc import Iterator, Sequence

from deberta_jax.errors import MissingPackageError, UserError, one_line

from .. import storage
from ..work_folder import UnfinishedWorkError
from .drivers import Progress, RunTasks
from .plan import Job, Task

_FAULTS = "faults"  # folder in the work folder


class BeamDriver:
    """Runs each phase as a pipeline. All workers must see the inputs and the work folder under the same paths."""

    def __init__(self, flags: Sequence[str]) -> None:
        """Checks the flags.

        Raises:
          MissingPackageError: the package apache-beam is not installed.
          UserError: a flag is unknown to Beam, or selects threads.
        """
        try:
            from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
                DirectOptions,
                PipelineOptions,
            )
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "apache_beam":
                raise
            raise MissingPackageError("--beam needs a package: pip install 'deberta-jax[beam]'") from None
        self._options = PipelineOptions(list(flags))
        if unknown := [flag for flag in flags if not flag.startswith("-") and "=" in flag]:
            raise UserError(f"--beam {unknown[0]!r}: flags of Beam begin with --")
        if self._options.view_as(DirectOptions).direct_running_mode == "multi_threading":
            raise UserError(
                "--beam --direct_running_mode=multi_threading loses elements; use multi_processing or in_memory"
            )

    @contextlib.contextmanager
    def __call__(self, job: Job) -> Iterator[RunTasks]:
        """Yields a function that runs the tasks of a phase as one pipeline.

        That function raises:
          UserError: that of the first task, in the order of their numbers, that found a fault in its input.
          UnfinishedWorkError: the pipeline failed.
        """
        import apache_beam as beam  # pyright: ignore[reportMissingImports]

        faults = job.plan.work / _FAULTS

        def run(task: Task, numbers: Sequence[int], progress: Progress) -> None:
            storage.make_folder(faults)
            for name in storage.names(faults):
                storage.remove(faults / name)
            try:
                with beam.Pipeline(options=self._options) as pipeline:
                    tasks = pipeline | beam.Create(list(numbers)) | beam.Reshuffle()
                    _ = tasks | beam.Map(_run, task, job)
            except Exception as error:  # of any class, depending on the runner
                raise UnfinishedWorkError(f"the pipeline of Apache Beam failed: {one_line(error):.1000}") from error
            for name in storage.names(faults):
                raise UserError(storage.read_json(faults / name))
            progress(len(numbers), len(numbers))

        yield run


def _run(number: int, task: Task, job: Job) -> None:
    """Runs a task. A fault of its input is written down, because a runner would try again and hide the message."""
    try:
        task(job, number)
    except UserError as error:
        storage.write_json(job.plan.work / _FAULTS / f"{number:05d}.json", str(error))
