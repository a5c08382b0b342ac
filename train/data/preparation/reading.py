"""The phase `read`: writes the documents of a group of inputs into one file, with an index."""

import contextlib
import dataclasses
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .. import storage
from ..records import clean_document
from ..text import MAX_DOCUMENT_BYTES, documents_and_faults
from ..text_files import TextError, file_version
from .near_duplicates import signature
from .plan import Job, TextInput
from .rules import TextRules, removing_rule

# An entry of the index: the number of the document in the group before the filters, its size in bytes, and its hash.
INDEX = np.dtype([("number", "<u4"), ("bytes", "<u4"), ("hash", "<u8", 2)])
_HASH_BYTES = 16
_ENTRIES_AT_ONCE = 1 << 14


@dataclasses.dataclass(frozen=True)
class ReadInput:
    """An input that was read.

    Attributes:
      first: number of its first document in the group.
      bytes, mtime_ns: of the file when it was read.
      sha256: digest of the uncompressed text, or of the documents of a set.
    """

    name: str
    first: int
    bytes: int
    mtime_ns: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class ReadGroup:
    """Totals of a group: documents before and after the filters, and how many each rule removed."""

    inputs: tuple[ReadInput, ...]
    documents: int
    kept: int
    removed: dict[str, int]

    @classmethod
    def load(cls, path: Path) -> "ReadGroup":
        fields = storage.read_json(path)
        return cls(**fields | {"inputs": tuple(ReadInput(**given) for given in fields["inputs"])})


def read_group(job: Job, group: int) -> None:
    """Reads the inputs of a group.

    Raises:
      TextError: an input is damaged (see `text.documents_and_faults`), or a document is, unless `skip_bad` is set.
    """
    plan = job.plan
    if storage.exists(plan.read_file(group, "json")):
        return
    number, removed, inputs = 0, Counter[str](), []
    with _GroupWriter(job, group) as writer:
        for given in (plan.inputs[place] for place in plan.groups[group]):
            digest, first = hashlib.sha256(), number
            size, mtime_ns = (0, 0) if given.is_set else file_version(Path(given.name))
            for document in _documents(job, given, digest):
                if isinstance(document, TextError):
                    if not plan.rules.skip_bad:
                        raise TextError(f"{document}; `deberta-jax prepare --skip-bad` removes such documents")
                    removed["skip_bad"] += 1
                    number += 1
                    continue
                text = _normalized(document, plan.rules)
                if rule := removing_rule(text, plan.rules):
                    removed[rule] += 1
                else:
                    writer.add(number, text)
                number += 1
            inputs.append(ReadInput(given.shown_name, first, size, mtime_ns, digest.hexdigest()))
    totals = ReadGroup(tuple(inputs), number, writer.kept, dict(removed))
    storage.write_json(plan.read_file(group, "json"), dataclasses.asdict(totals))


def _documents(job: Job, given: TextInput, digest: "hashlib._Hash") -> Iterator[str | TextError]:
    plan = job.plan
    if not given.is_set:
        yield from documents_and_faults(Path(given.name), plan.boundary, digest=digest, field=plan.rules.text_field)
        return
    if job.open_set is None:
        raise ValueError(f"{given.name}: no function to open sets was given")
    for place, text in job.open_set(given.name, plan.rules.text_field):
        document = text if isinstance(text, TextError) else clean_document(text, place, MAX_DOCUMENT_BYTES)
        if isinstance(document, str):
            digest.update(document.encode() + b"\0")
        if document:
            yield document


def _normalized(document: str, rules: TextRules) -> str:
    if rules.normalization == "none":
        return document
    return unicodedata.normalize("NFC" if rules.normalization == "nfc" else "NFKC", document)


class _GroupWriter:
    """Writes documents, index and signatures of a group. The files get their names when it is closed."""

    def __init__(self, job: Job, group: int) -> None:
        self._plan, self._group = job.plan, group
        self._sign = job.plan.rules.near_duplicates is not None
        self._stack = contextlib.ExitStack()
        self._entries: list[tuple[int, int, bytes]] = []
        self._signatures: list[np.ndarray] = []
        self.kept = 0

    def __enter__(self) -> "_GroupWriter":
        with contextlib.ExitStack() as stack:
            files: dict[str, BinaryIO] = {}
            for kind in ("documents", "index", *(["signatures"] if self._sign else [])):
                path = self._plan.read_file(self._group, kind)  # type: ignore[arg-type]
                files[kind] = stack.enter_context(storage.replacing(path))
            self._files, self._stack = files, stack.pop_all()
        return self

    def add(self, number: int, document: str) -> None:
        """Adds a document with its number in the group."""
        content = document.encode()
        self._files["documents"].write(content)
        self._entries.append((number, len(content), hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()))
        if self._sign:
            self._signatures.append(signature(document))
        self.kept += 1
        if len(self._entries) == _ENTRIES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        entries = np.zeros(len(self._entries), INDEX)
        if self._entries:
            entries["number"], entries["bytes"], _ = zip(*self._entries, strict=True)
            hashes = b"".join(entry[2] for entry in self._entries)
            entries["hash"] = np.frombuffer(hashes, "<u8").reshape(-1, 2)
        self._files["index"].write(entries.tobytes())
        if self._signatures:
            self._files["signatures"].write(np.stack(self._signatures).tobytes())
        self._entries, self._signatures = [], []

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        self._stack.__exit__(*error)
