"""Pre-trains the models of "deberta-v3-tiny" anew, with as many steps as fit into a time, such as that of a lent GPU.

    deberta-jax prepare --output rows128 --tokenizer TOKENIZER --text books.txt.xz --sequence-length 128 \
        --held-out-fraction 0.004
    python -m tests.support.pretrain_tiny RUN --corpus rows128 --seconds 240
    python -m tests.support.embed_tiny RUN --hardware "one H200"

RUN gets what `deberta-jax pretrain` writes, as `embed_tiny` needs it. The run begins with a guess of its steps. Once it
has shown its speed, it begins anew if it would not end in time, or would leave more than a third of the time unused:
the learning rate must reach its end. Options after `--` are those of `pretrain`, such as `-- --learning-rate 0.0005`.

The tokenizer and the sizes are those of the embedded model, without dropout: no text is seen often enough to overfit.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deberta_jax import DebertaConfig
from deberta_jax.embedded import EMBEDDED, package_folder
from deberta_jax.train.reporting.jsonl import read_records

OPTIONS = {
    "sequence-length": 128,
    "batch-size": 256,
    "learning-rate": 0.0007,
    "optimizer.warmup": 0.06,
    "optimizer.beta2": 0.98,
    "dtype": "bfloat16",
    "data-workers": 8,
    "log-every": 100,
    "seed": 1,
    "keep": 1,
}
FIRST_GUESS = 8000  # steps
END = 24  # seconds for evaluation and saving
WATCHED = 6  # seconds of steps before the speed is judged


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of `deberta-jax prepare`")
    parser.add_argument("--seconds", type=float, required=True, help="from now to the end of the run")
    parser.add_argument("--steps", type=int, default=FIRST_GUESS, help="first guess (default: %(default)s)")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, of_pretrain = parser.parse_args(arguments[:end]), arguments[end + 1 :]
    deadline = time.monotonic() + options.seconds
    if options.run.exists():
        raise SystemExit(f"{options.run} exists; choose another folder")
    options.run.parent.mkdir(parents=True, exist_ok=True)
    models = options.run.with_name(f"{options.run.name}-models.json")
    models.write_text(model_text(), encoding="utf-8")

    began = time.monotonic()
    process = start(options.run, options.corpus, models, options.steps, of_pretrain)
    rate, ready = watch(process, options.run, began)
    if process.poll() is None and (steps := better_steps(options, deadline - time.monotonic(), rate, ready)):
        print(f"{rate:.1f} steps/s: begins anew with {steps:,} steps", flush=True)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(options.run)
        process = start(options.run, options.corpus, models, steps, of_pretrain)
    return process.wait()


def better_steps(options: argparse.Namespace, seconds: float, rate: float, ready: float) -> int | None:
    """Returns the number of steps with which the run should begin anew, or None if it should go on.

    Args:
      options: of the command.
      seconds: time left.
      rate: steps per second.
      ready: seconds from the start of a run to its first logged step.
    """
    ends_in_time = (options.steps - newest_step(options.run)) / rate + END <= seconds
    fitting = int((seconds - ready - END) * rate * 0.97)
    return None if fitting < 1 or (ends_in_time and fitting < 1.5 * options.steps) else fitting


def model_text() -> str:
    """Returns the configurations of the two models, as --model reads them."""
    configs: dict[str, Any] = {"embedding_sharing": "gdes"}
    for name in ("discriminator", "generator"):
        config = DebertaConfig.from_json(package_folder(EMBEDDED[0]) / name / "config.json")
        configs[name] = config.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).to_json()
    return json.dumps(configs, indent=1)


def start(run: Path, corpus: Path, models: Path, steps: int, options: list[str]) -> subprocess.Popen[bytes]:
    """Starts `deberta-jax pretrain` in a new process group, so that its workers can be killed with it."""
    settings = OPTIONS | {
        "output": run,
        "tokenizer": package_folder(EMBEDDED[0]) / "discriminator",
        "corpus": corpus,
        "model": models,
        "steps": steps,
        "evaluate-every": steps,
        "save-every": steps,
    }
    command = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen([sys.executable, "-m", "deberta_jax", "pretrain", *command, *options], process_group=0)


def watch(process: subprocess.Popen[bytes], run: Path, began: float) -> tuple[float, float]:
    """Waits until some steps have been logged, or the process has ended.

    Returns:
      Steps per second, and the seconds from the start of the process to the first logged step.
    """
    first, first_time = 0, 0.0
    while process.poll() is None:
        step, now = newest_step(run), time.monotonic()
        if step and not first:
            first, first_time = step, now
        elif step > first and now - first_time >= WATCHED:
            return (step - first) / (now - first_time), first_time - began
        time.sleep(0.2)
    return 0.0, 0.0


def newest_step(run: Path) -> int:
    """Returns the last step in the metrics of a run, 0 before there is one."""
    path = run / "metrics.jsonl"
    records = [record for record in read_records(path) if "learning_rate" in record] if path.exists() else []
    return records[-1]["step"] if records else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
