"""What a preparation does: its inputs, its settings, and the hidden folder of its files.

A preparation is four phases of small tasks. A task reads what earlier phases wrote, writes its files atomically, and
last a small JSON file, which says that it is complete; so it can be run again, or twice at once, at any time.

* read: the documents of a group of inputs, normalized and filtered, with a hash each (`reading`);
* select: duplicates, and which documents are tokenized together as a chunk (`selection`; one task);
* tokenize: a chunk becomes rows, each in a random bucket (`tokenizing`);
* write: the rows of a bucket from all chunks, in random order, become a file of the corpus (`shards`).

What a task writes depends on nothing but the plan, so that the corpus has the same bytes whatever runs the tasks.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from ..corpus import DataType
from ..text import Boundary, SupportsEncoding
from ..text_files import TextError
from .rules import TextRules

_WORK_FORMAT = 1  # of the files in the work folder
SplitName = Literal["train", "held_out"]
SPLITS: tuple[SplitName, ...] = ("train", "held_out")
OpenSet = Callable[[str, str], Iterator[tuple[str, str | TextError]]]


@dataclasses.dataclass(frozen=True)
class TextInput:
    """A file, or a set such as tfds:lm1b or hf:wikitext, whose size and modification time are 0."""

    name: str
    bytes: int = 0
    mtime_ns: int = 0
    is_set: bool = False

    @property
    def shown_name(self) -> str:
        """The name in the manifest, which does not depend on the folder."""
        return self.name if self.is_set else Path(self.name).name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines the rows, and where the work is done.

    Attributes:
      work: the work folder.
      inputs: the files and sets in order.
      tokenizer: the fingerprint of the tokenizer.
      group_bytes: size of the inputs that one task reads; a larger one is a group of its own. It does not affect rows.
      chunk_bytes: size of the text that one task tokenizes.
      shard_bytes: size of the token ids of a file of the corpus, roughly.
    """

    work: Path
    inputs: tuple[TextInput, ...]
    boundary: Boundary
    rules: TextRules
    sequence_length: int
    dtype: DataType
    held_out_fraction: float
    seed: int
    tokenizer: str
    group_bytes: int
    chunk_bytes: int
    shard_bytes: int

    @property
    def digest(self) -> str:
        """A digest of everything but the place: only equal plans may use each other's files."""
        fields = dataclasses.asdict(self)
        del fields["work"]
        return hashlib.sha256(json.dumps([_WORK_FORMAT, fields], sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def groups(self) -> list[range]:
        """The inputs of each task of the phase `read`."""
        groups, start, size = [], 0, 0
        for number, given in enumerate(self.inputs, 1):
            size += given.bytes
            if size >= self.group_bytes or given.is_set or number == len(self.inputs):
                groups.append(range(start, number))
                start, size = number, 0
        return groups

    @property
    def selection_file(self) -> Path:
        return self.work / "selection.json"

    @property
    def corpus(self) -> Path:
        """The folder that becomes the corpus."""
        return self.work / "corpus"

    def read_file(self, group: int, kind: Literal["json", "documents", "index", "signatures", "kept"]) -> Path:
        """Returns a file of a group: its totals, texts, index, MinHash signatures, or which documents are kept."""
        return self.work / "read" / f"{group:05d}.{kind}"

    def chunk_file(self, chunk: int, kind: Literal["json", "rows"]) -> Path:
        """Returns a file of a chunk: its totals, or its rows by bucket."""
        return self.work / "tokenize" / f"{chunk:05d}.{kind}"

    def bucket_file(self, bucket: int) -> Path:
        """Returns the file with the totals of a bucket that was written."""
        return self.work / "write" / f"{bucket:05d}.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """What a task receives beside its number.

    Attributes:
      open_set: yields where each record of a set such as tfds:lm1b is, and its text, of the field with the given name,
        or why it has none.
    """

    plan: Plan
    tokenizer: SupportsEncoding
    open_set: OpenSet | None = None


Task = Callable[[Job, int], None]
