"""A tokenizer whose ids are the codes of letters, and tasks read from files that a test writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deberta_jax import Tokenizer
from deberta_jax.tokenizers.tokenizer import Encoding

from .configs import finetune_config


class Letters:
    """A tokenizer with one piece per letter, whose id is the letter's code. The `silent` letters have no piece."""

    cls_id, sep_id, pair_separators, cls_last = 1, 2, 1, False
    with_special_tokens = Tokenizer.with_special_tokens

    def __init__(self, silent: str = " ") -> None:
        self._silent = silent

    def __call__(self, text, pair=None, *, max_length):
        [ids] = self.encode_batch([f"{text}{pair or ''}"])
        return Encoding(ids[:max_length], [0] * len(ids[:max_length]))

    def encode_batch(self, texts):
        return [[ord(letter) for letter in text if letter not in self._silent] for text in texts]


def task_reader(
    folder: Path, load: Callable[..., Any], tokenizer: Letters, *, kind: str, name: str, max_length: int
) -> Callable[..., Any]:
    """Returns a function that writes the files of a task, given as text or as JSON rows, and reads them by `load`."""

    def read(train, name=name, *, validation=None, test=None, max_length=max_length, **columns):
        def write(name, content):
            content = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
            (folder / name).write_text(content, encoding="utf-8")
            return str(folder / name)

        suffix = name.partition(".")[2]
        config = finetune_config(
            output=folder / "run",
            model=folder,
            train=write(name, train),
            validation=validation and write(f"validation.{suffix}", validation),
            test=test and write(f"test.{suffix}", test),
            kind=kind,
            max_length=max_length,
            **columns,
        )
        return load(config, tokenizer)

    return read
