"""The entry point of every command: `deberta-jax COMMAND ...`, also `python -m deberta_jax COMMAND ...`.

A command's module is imported only when it runs. A command consists of a configuration dataclass, which `options` turns
into options with help and typo hints, and a `main` that takes it. `help_text` says how a command has a short help.
"""

import contextlib
import difflib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import NoReturn

from .allocator import keep_freed_memory
from .errors import MissingPackageError, UserError, as_expected, is_expected, one_line
from .options import parse_options, version_line
from .process_start import note_process_start
from .standard_streams import make_standard_streams_safe
from .store_paths import local_settings
from .terminal import guarded_output, say
from .versions import unsupported_packages

# Command -> (module, configuration class, help). Without a class, `main` receives the unparsed options.
COMMANDS = {
    "tokenizer": ("deberta_jax.train.data.train_tokenizer", "TokenizerConfig", "train a SentencePiece model on text"),
    "prepare": ("deberta_jax.train.prepare", "PrepareConfig", "tokenize text and pack it into rows on disk"),
    "pretrain": ("deberta_jax.train.pretrain", "PretrainConfig", "pre-train: replaced token detection or masked LM"),
    "finetune": ("deberta_jax.train.finetune", "FinetuneConfig", "fine-tune on a task"),
    "recipe": ("deberta_jax.train.recipes", None, "fine-tune with the published settings of a task and a model"),
    "convert": (
        "deberta_jax.convert.from_pytorch",
        "ConvertConfig",
        "convert PyTorch files to our format",
    ),
    "export": ("deberta_jax.convert.to_pytorch", "ExportConfig", "write a model as files that transformers loads"),
    "serialize": (
        "deberta_jax.convert.commands.serialize",
        "SerializeConfig",
        "write a model as a program that needs jax alone",
    ),
    "share": ("deberta_jax.convert.commands.share", "ShareConfig", "upload a model with its card to the hub"),
    "verify": (
        "deberta_jax.convert.verify",
        "VerifyConfig",
        "compare a model with transformers, layer by layer",
    ),
    "predict": (
        "deberta_jax.convert.commands.predict",
        "PredictConfig",
        "label, score or search texts and files",
    ),
    "fill-mask": (
        "deberta_jax.convert.commands.fill_mask",
        "FillMaskConfig",
        "predict the tokens behind [MASK]",
    ),
    "detect": ("deberta_jax.convert.commands.detect", "DetectConfig", "show which tokens of a text look replaced"),
    "report": ("deberta_jax.train.report.command", "ReportConfig", "make an HTML page of one run or of two runs"),
    "compile-ahead": (
        "deberta_jax.train.compile_ahead.command",
        "CompileAheadConfig",
        "estimate memory, speed and cost of a training step on TPUs, without a TPU",
    ),
    "demo": (
        "deberta_jax.train.demo",
        "DemoConfig",
        "see deberta-v3-tiny guess, learn and answer, in about 5 minutes",
    ),
    "completion": ("deberta_jax.completion", None, "print a script for the completion of bash, zsh or fish"),
}
# Title -> the commands below it in `deberta-jax --help`.
GROUPS = {
    "Use a model": ("predict", "fill-mask", "detect"),
    "Train a model": ("tokenizer", "prepare", "pretrain", "finetune", "recipe", "report", "demo"),
    "Convert, export and share": ("convert", "export", "serialize", "share", "verify"),
    "Plan, and this program": ("compile-ahead", "completion"),
}


_TRAINING = ("pretrain", "finetune", "recipe")  # commands that say how long the first step took


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
      The exit status: 0, 1 if the command failed, 2 for wrong usage, 130 if it was interrupted.

    Raises:
      SystemExit: with 42 if training stopped early and the same command continues it (`train/hosts/exit_codes.py`).
    """
    make_standard_streams_safe()
    is_process = arguments is None  # and no call by another program
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "--help-all"):
        say(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version") or (arguments[0] in COMMANDS and arguments[1:] in (["-V"], ["--version"])):
        say(version_line())
        return 0
    command, *options = arguments
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        say(f"deberta-jax: no command {command!r}.{hint}\n\n{usage()}", error=True)
        return 2
    if is_process and command in _TRAINING:
        note_process_start()
    if is_process and command in (*_TRAINING, "demo"):
        keep_freed_memory()
    with guarded_output():
        return run(command, options)


def run(command: str, options: list[str]) -> int:
    """Runs one of COMMANDS and prints its errors. Returns the exit status, as `main` does."""
    module_name, class_name, _ = COMMANDS[command]
    try:
        with _interrupts_end_at_once(command):
            importlib.import_module("tyro")
            module = importlib.import_module(module_name)
    except Exception as failure:
        return _report(command, failure)
    try:
        if class_name is None:
            module.main(options)
        else:
            config = parse_options(getattr(module, class_name), options, prog=f"deberta-jax {command}")
            with local_settings(config) as config:
                module.main(config)
    except KeyboardInterrupt:
        say(f"\ndeberta-jax {command}: interrupted", error=True)
        return 130
    except Exception as failure:
        return _report(command, failure)
    return 0


def _report(command: str, failure: Exception) -> int:
    """Prints an error, with its traceback if one line does not describe it, and returns the exit status."""
    error = as_expected(failure)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("deberta_jax"):
        extra = "convert" if ".convert." in COMMANDS[command][0] else "train"
        error = MissingPackageError(
            f"needs the package {error.name!r}, which is not installed: pip install 'deberta-jax[{extra}]'"
        )
    if os.environ.get("DEBERTA_JAX_TRACEBACK") or not is_expected(error):
        say("".join(traceback.format_exception(failure)).rstrip(), error=True)
    if is_expected(error):
        say(f"deberta-jax {command}: {one_line(error)}", error=True)
    elif unsupported := unsupported_packages():
        say("\n".join(f"deberta-jax {command}: {line}" for line in unsupported), error=True)
    else:
        say(
            f"deberta-jax {command}: this is a bug in deberta-jax, not a mistake of yours. Please report it with the "
            "command, the traceback above and the output of `deberta-jax --version`",
            error=True,
        )
    return error.exit_status if isinstance(error, UserError) else 1


@contextlib.contextmanager
def _interrupts_end_at_once(command: str) -> Iterator[None]:
    """Lets Ctrl-C end the process without an exception, which some packages ignore or crash at while they are imported.

    Nothing has been written by then.
    """

    def end(*_: object) -> NoReturn:
        os.write(2, f"\ndeberta-jax {command}: interrupted\n".encode())
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def usage() -> str:
    """Returns the list of commands."""
    lines = ["usage: deberta-jax COMMAND [OPTIONS]", ""]
    for title, names in GROUPS.items():
        lines += [title, *(f"  {name:15} {COMMANDS[name][2]}" for name in names), ""]
    return "\n".join(
        [
            *lines,
            "`deberta-jax COMMAND --help` shows the common options and examples, --help-all every option.",
            "`deberta-jax --version` shows the version. DEBERTA_JAX_TRACEBACK=1 shows the traceback of errors.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
