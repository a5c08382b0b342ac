"""The one entry point: `deberta-jax COMMAND ...`, also `python -m deberta_jax COMMAND ...`.

Commands live in deberta_jax.train and deberta_jax.convert; each is imported only when it is asked for. Every one is
a configuration dataclass, which tyro turns into options with help and typo hints, and a `main` that takes it.
"""

import difflib
import importlib
import os
import sys

# Command -> (module, configuration class, what it does). Without a class `main` takes the options as they are.
COMMANDS = {
    "tokenizer": ("deberta_jax.train.data.train_tokenizer", "TokenizerConfig", "train a SentencePiece model on text"),
    "prepare": ("deberta_jax.train.data.prepare", "PrepareConfig", "tokenise and pack text into rows on disk"),
    "pretrain": ("deberta_jax.train.pretrain", "PretrainConfig", "pre-train: replaced token detection or masked LM"),
    "finetune": ("deberta_jax.train.finetune", "FinetuneConfig", "fine-tune on a task"),
    "recipe": ("deberta_jax.train.recipes", None, "fine-tune with the published settings of a task and a model"),
    "convert": ("deberta_jax.convert.from_pytorch", "ConvertConfig", "PyTorch or safetensors files to our format"),
    "export": ("deberta_jax.convert.to_pytorch", "ExportConfig", "our format to files that transformers loads"),
    "verify": ("deberta_jax.convert.verify", "VerifyConfig", "PyTorch files here and in transformers, layer by layer"),
    "fill-mask": (
        "deberta_jax.convert.commands.fill_mask",
        "FillMaskConfig",
        "what a masked LM puts in the place of [MASK]",
    ),
    "detect": ("deberta_jax.convert.commands.detect", "DetectConfig", "which tokens of a text look replaced"),
    "compile-ahead": (
        "deberta_jax.train.compile_ahead.command",
        "CompileAheadConfig",
        "memory, speed and bill of a training step on TPUs that are not there",
    ),
    "demo": ("deberta_jax.train.demo", "DemoConfig", "six novels to a classifier, in a quarter of an hour"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, 1 where the command failed, 2 for wrong usage.

    Training that was stopped and wants to be started again raises SystemExit with 42 (`train/exits.py`).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    command, *options = arguments
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        print(f"deberta-jax: no command {command!r}.{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    module_name, class_name, _ = COMMANDS[command]
    try:
        import tyro

        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        extra = "convert" if ".convert." in module_name else "train"
        print(f"deberta-jax {command}: needs the package {error.name!r}; install deberta-jax[{extra}]", file=sys.stderr)
        return 1
    given = options
    if class_name is not None:
        given = tyro.cli(getattr(module, class_name), prog=f"deberta-jax {command}", args=options)
    try:
        module.main(given)
    except (
        ValueError,
        OSError,
        ImportError,
    ) as error:  # a user's mistake or the machine's trouble: one line, no traceback
        if os.environ.get("DEBERTA_JAX_TRACEBACK"):
            raise
        print(f"deberta-jax {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ndeberta-jax {command}: interrupted", file=sys.stderr)
        return 130
    return 0


def usage() -> str:
    lines = [f"  {name:13} {text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: deberta-jax COMMAND [OPTIONS]     deberta-jax COMMAND --help for the options",
            "",
            *lines,
            "",
            "DEBERTA_JAX_TRACEBACK=1 shows where an error arose.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
