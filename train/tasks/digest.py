"""Digests of examples and of their token ids, which detect a file that has changed under the same name."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .base import Encoded

_SAMPLE = 1000  # examples whose token ids are read
_ROWS = 100  # of these that are in memory at once


def examples_digest(examples: Iterable[Any]) -> str:
    """Returns the SHA-256 of examples in their order, in hexadecimal.

    It covers every field: texts, labels, and what scores need, such as the groups of a classification and all accepted
    answers of a span. It is the same on all hosts. `tokens_digest` covers how texts become token ids.

    Args:
      examples: dataclasses of JSON values, as `base.Task.examples` has them.
    """
    digest = hashlib.sha256()
    for example in examples:
        # ASCII, because a text may have half of a surrogate pair, which UTF-8 cannot encode.
        digest.update(_encode(example).encode("ascii") + b"\n")
    return digest.hexdigest()


def tokens_digest(encoded: Encoded) -> str:
    """Returns the SHA-256 of the lengths of all examples and of the token ids of 1000 of them, in hexadecimal.

    A change of the tokenizer changes most examples, so that all need not be laid out in rows, which takes seconds.
    """
    lengths = encoded.lengths
    chosen = np.unique(np.linspace(0, len(lengths) - 1, _SAMPLE).round().astype(np.int64))
    length = int(lengths[chosen].max())
    digest = hashlib.sha256(np.ascontiguousarray(lengths, "<i4").tobytes())
    for name in ("input_ids", "token_type_ids"):
        for some in np.split(chosen, range(_ROWS, len(chosen), _ROWS)):
            digest.update(np.ascontiguousarray(encoded.batch(some, length=length)[name], "<i4").tobytes())
    return digest.hexdigest()


def _fields(example: Any) -> tuple[Any, ...]:
    return _reader(type(example))(example)


@functools.cache
def _reader(kind: type) -> Callable[[Any], tuple[Any, ...]]:
    names = [field.name for field in dataclasses.fields(kind)]
    return lambda example: tuple(getattr(example, name) for name in names)


_encode = json.JSONEncoder(default=_fields, separators=(",", ":"), check_circular=False, allow_nan=False).encode
