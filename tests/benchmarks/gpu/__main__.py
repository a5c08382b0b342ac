"""Measures this library on one NVIDIA GPU, beside transformers, FlashDeBERTa and DisentangledFlash where installed.

    python -m tests.benchmarks.gpu                     # all of it, about 6 minutes on an H100 (an estimate)
    python -m tests.benchmarks.gpu --write             # and puts the tables into docs/gpu.md
    python -m tests.benchmarks.gpu --only ours --cases step:32x512
    python -m tests.benchmarks.gpu --report --results runs/gpu --write    # tables of results from another machine
    python -m tests.benchmarks.gpu --dry-run           # everything at small sizes on the CPU; writes nothing

First the golden cases run on the GPU in float32, then each program in a process of its own, one after the other. All
load the same v3-base weights. A training step is forward, backward, clipping and AdamW of a classifier in bfloat16 with
float32 weights and moments and dropout 0.1. Results are saved after each program; another run with the same --results
adds to them, so parts can be repeated.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # the workers have the GPU

import jax.numpy as jnp

from deberta_jax import DebertaForSequenceClassification
from deberta_jax.attention import IMPLEMENTATIONS
from deberta_jax.convert import save_pytorch

from ...support.paths import REPOSITORY
from ...support.small_models import random_params
from ..table import write_between
from . import programs
from .cases import Case, Result, Work, model_config
from .golden import FEW, golden_checks
from .machine import find_gpu, versions
from .report import report
from .supervisor import Launch, check_same_machine, merge, read_results, recover, run_program

PAGE = REPOSITORY / "docs" / "gpu.md"
BEGIN, END = "<!-- tests.benchmarks.gpu -->", "<!-- end -->"
LARGE = ("32x512", "4x4096")
SIZES = (*LARGE, "32x128")  # the first one is that of the first step
DRY_SIZES = ("2x32", "1x64", "2x16")
ERROR_SIZES = ("4x512", "2x32")


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends the worker, too
    if options.report:
        write_report(options.results or Path("runs/gpu"), options)
        return
    gpu = {} if options.dry_run else find_gpu()
    machine = gpu | versions() | {"date": time.strftime("%Y-%m-%d")}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) if options.dry_run and options.results is None else options.results or Path("runs/gpu")
        results.mkdir(parents=True, exist_ok=True)
        file = results / "results.json"
        if not (options.only or options.cases):
            for old in (file, *results.glob("*.jsonl")):
                old.unlink(missing_ok=True)
        check_same_machine(file, machine)
        recover(results, machine)
        for program, cases in planned(options).items():
            if reason := programs.missing(program, dry_run=options.dry_run):
                print(f"{programs.label(program)} is left out: {reason}", flush=True)
                continue
            began = time.monotonic()
            merge(file, machine, run(program, cases, options, results))
            for lines in results.glob("*.jsonl"):  # they are merged
                lines.unlink()
            print(f"{program}: {len(cases)} cases, {time.monotonic() - began:.0f} s", flush=True)
        write_report(results, options)


def write_report(results: Path, options: argparse.Namespace) -> None:
    """Prints the tables of a folder of results, and puts them into the page if that is wanted."""
    file = results / "results.json"
    if not file.exists():
        raise SystemExit(f"there is no {file}: nothing was run")
    text = report(*read_results(file), dry_run=options.dry_run)
    print("\n" + text)
    if options.write:
        write_between(PAGE, BEGIN, END, [text])


def parse() -> argparse.Namespace:
    """Reads the command line; wrong values end the process with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=[programs.GOLDEN, programs.OURS, *programs.PEERS])
    parser.add_argument("--cases", nargs="+", type=case, help="such as forward:32x128, step:32x512 or golden:sift")
    parser.add_argument("--implementations", nargs="+", choices=IMPLEMENTATIONS, default=["auto", "xla"])
    parser.add_argument("--results", type=Path, help="folder of weights and results (default: runs/gpu)")
    parser.add_argument("--limit", type=float, default=Launch().seconds, help="seconds for one program")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(REPOSITORY)}")
    parser.add_argument("--dry-run", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--report", action="store_true", help="only the tables of --results; runs nothing")
    options = parser.parse_args()
    if options.dry_run and options.write:
        parser.error("--write is for measurements; --dry-run has none")
    return options


def case(text: str) -> Case:
    try:
        return Case.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}") from None


def planned(options: argparse.Namespace) -> dict[str, list[Case]]:
    """Returns the cases of each program, in the order in which they run."""
    sizes, error = (DRY_SIZES, ERROR_SIZES[1]) if options.dry_run else (SIZES, ERROR_SIZES[0])
    timed = [Case(kind, size) for size in sizes for kind in ("step", "forward")]
    golden = golden_cases(only=FEW if options.dry_run and not options.cases else None)
    plan: dict[str, list[Case]] = {programs.GOLDEN: golden, "transformers": [Case("start", sizes[0])]}
    plan["transformers"] += [Case("reference", error), Case("error", error), *timed]
    ours = [programs.OURS + ("" if name == "auto" else f"-{name}") for name in options.implementations]
    compared = [Case("error", error), Case("gradients", error)]
    for program in ours:
        # Of a second implementation only the large sizes, to stay within the time.
        first = program == ours[0]
        start, measured = ([Case("start", sizes[0])], timed) if first else ([], timed[: 2 * len(LARGE)])
        plan[program] = [*start, *compared, *measured]
    for program in list(programs.PEERS)[1:]:
        plan[program] = [Case("start", sizes[0]), Case("error", error), *timed]
    plan[f"{programs.WARM} {ours[0]}"] = [Case("warm", sizes[0])]
    if options.only:
        plan = {name: cases for name, cases in plan.items() if family(name) in options.only}
    if options.cases:
        plan = {name: chosen_cases(name, cases, options.cases) for name, cases in plan.items()}
    return {name: cases for name, cases in plan.items() if cases}


def family(program: str) -> str:
    """Returns what --only calls a program: `ours` is every implementation and the warm start."""
    name = program.removeprefix(f"{programs.WARM} ")
    return programs.OURS if name.startswith(programs.OURS) else name


def chosen_cases(program: str, cases: list[Case], wanted: list[Case]) -> list[Case]:
    """Returns the wanted cases of a program. Sizes that are not among the usual ones are measured, too."""
    timed = {"step", "forward", "start"} if any(case.kind == "step" for case in cases) else set()
    others = [case for case in wanted if case not in cases and case.kind in timed]
    return [case for case in cases if case in wanted] + others


def golden_cases(only: Collection[str] | None) -> list[Case]:
    """Returns all golden cases, or some."""
    return [Case("golden", name) for name in golden_checks() if only is None or name in only]


def run(program: str, cases: list[Case], options: argparse.Namespace, folder: Path) -> list[Result]:
    """Runs one program and returns its results."""
    name = program.removeprefix(f"{programs.WARM} ")
    implementation = name.partition("-")[2] if name.startswith(programs.OURS) else ""
    model = folder / ("model-small" if options.dry_run else "model")
    if program != programs.GOLDEN:
        prepare_model(model, dry_run=options.dry_run)
    work = Work(
        program=name,
        cases=tuple(map(str, cases)),
        lines=(folder / f"{name}.jsonl").absolute(),
        model=model.absolute(),
        reference=(folder / "reference.npy").absolute(),
        started=0,
        implementation=implementation or "auto",
        dry_run=options.dry_run,
    )
    cache = (folder / f"compiled-{name}").absolute()
    if any(case.kind == "start" for case in cases):
        shutil.rmtree(cache, ignore_errors=True)
    launch = Launch(
        seconds=options.limit,
        environment=worker_environment(name, cache, dry_run=options.dry_run),
        errors=folder / f"{name}.log",
    )
    return run_program(work, launch, log=lambda line: print(line, flush=True))


def worker_environment(program: str, cache: Path, *, dry_run: bool) -> dict[str, str]:
    """Returns the variables of a worker: its device, and its compile caches."""
    if program == programs.GOLDEN or program.startswith(programs.OURS):
        platform = "cpu" if dry_run else "cuda,cpu"
        common = {"JAX_PLATFORMS": platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        common["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # one GPU
        if program == programs.GOLDEN:
            # Compiling takes most of the time: the programs are tiny, and are not timed.
            quick = "--xla_backend_optimization_level=0" if dry_run else "--xla_gpu_autotune_level=0"
            return common | {"XLA_FLAGS": quick}
        return common | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    # jax is imported for shared code only; it must leave the GPU's memory alone.
    return {"JAX_PLATFORMS": "cpu", "TRITON_CACHE_DIR": str(cache), "TRANSFORMERS_OFFLINE": "1"}


def prepare_model(folder: Path, *, dry_run: bool) -> None:
    """Writes the model that all programs load, with random weights, unless it is there."""
    if (folder / "model.safetensors").exists():
        return
    config = model_config(dry_run)
    params = random_params(DebertaForSequenceClassification(config), jnp.ones((1, 8), jnp.int32))
    save_pytorch(folder, config, params)


if __name__ == "__main__":
    main()
