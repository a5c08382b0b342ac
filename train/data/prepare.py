"""Turns text into a prepared corpus: packed rows of token ids on disk, in random order.

Rows have a fixed length and are written without masks into ArrayRecord files, which allow random access. A row contains
one or more segments `[CLS] ... [SEP]`, each a document or a piece of one, followed by padding (0). `preparation.plan`
describes how the work is divided.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from deberta_jax.errors import UserError
from deberta_jax.path_names import check_utf8
from deberta_jax.stores import address_of, check_protocol
from deberta_jax.terminal import list_names, shown_number

from ..settings import LONGEST_ROW, SHORTEST_ROW, check_seed
from . import storage
from .corpus import (
    FORMAT,
    MANIFEST,
    Corpus,
    Removal,
    Split,
    TextSource,
    check_corpus,
    check_identity,
    row_data_type,
    write_manifest,
)
from .corpus_folder import check_free, clear_leftovers, move_into_place, work_folder, work_parent, writing
from .preparation.drivers import Driver, ProcessDriver, Progress, RunTasks, run_here
from .preparation.plan import Job, OpenSet, Plan, Task, TextInput
from .preparation.reading import ReadGroup, read_group
from .preparation.rules import TextRules
from .preparation.selection import Selection, select
from .preparation.shards import collect_splits, write_shard
from .preparation.tokenizing import tokenize_chunk
from .text import Boundary, SupportsEncoding, content_sha256
from .text_files import TextError, file_version, text_files
from .work_folder import UnfinishedWorkError, work_folder_name

GROUP_BYTES = 16 << 20  # of inputs that one task reads
CHUNK_BYTES = 16 << 20  # of text that one task tokenizes
SHARD_BYTES = 128 << 20  # of token ids in a file of the corpus; a task that writes it holds them in memory
_SETS = ("tfds:", "hf:")
_SHORT = 2  # rows of at least this many average documents call for a hint

Report = Callable[[str, int, int], None]


def prepare(
    paths: Sequence[str | Path],
    tokenizer: SupportsEncoding,
    folder: str | os.PathLike[str],
    *,
    sequence_length: int,
    boundary: Boundary,
    held_out_fraction: float = 0.02,
    seed: int = 0,
    rules: TextRules | None = None,
    driver: Driver | None = None,
    open_set: OpenSet | None = None,
    report: Report | None = None,
) -> Corpus:
    """Tokenizes and packs text into `folder`, or opens `folder` if it has the same text and settings.

    The rows depend on the text and the settings only, not on the driver, nor on how the text is divided into files or
    compressed. Whether a document is held out is a hash of `seed` and the document's number. The folder gets its name
    only when it is complete. A process that is interrupted or killed leaves a hidden folder `.NAME.*.tmp` beside it, or
    inside `folder` if that existed; the same call continues there, and another call removes it.

    Args:
      paths: files, folders and patterns of text, JSON Lines and Parquet (see `text_files`), and sets such as tfds:lm1b.
      boundary: what separates documents in text (see `text.read_documents`).
      sequence_length: tokens per row including [CLS] and [SEP], at least 8.
      held_out_fraction: share of the documents that is kept for evaluation; 0 disables it.
      rules: which documents become rows (default: all but exact duplicates).
      driver: what runs the tasks (default: this process).
      open_set: see `preparation.plan.Job`.
      report: receives the name of a phase, the number of its tasks that are done, and of all of them.

    Raises:
      TextError: if the text cannot be used (see `text.read_documents`).
      UserError: if a setting is invalid, if a split would be empty, if the folder has other content, or if another
        process is making it.
      OSError: if writing fails, for instance because the disk is full.
    """
    check_protocol(folder)
    folder = Path(folder)
    if (address := address_of(folder)) and "/" not in address.partition("://")[2]:
        raise UserError(f"{address} is a whole bucket; give a folder in it, such as {address}/rows")
    empty = Split(0, 0, 0, ())
    corpus = Corpus(
        folder=folder,
        format=FORMAT,
        sequence_length=sequence_length,
        boundary=boundary,
        held_out_fraction=held_out_fraction,
        seed=seed,
        tokenizer=tokenizer.fingerprint,
        dtype=row_data_type(tokenizer),
        sources=(),
        train=empty,
        held_out=empty,
        rules=rules or TextRules(),
    )
    _validate(corpus, tokenizer)
    if not address:
        check_utf8(folder)
    plan = _plan(corpus, _find_inputs(paths))
    clear_leftovers(folder, keep=plan.work)
    if storage.exists(folder / MANIFEST):
        return _open_existing(corpus, plan.inputs)
    check_free(folder)
    job = Job(plan, tokenizer, open_set)
    with work_folder(folder, plan.digest), (driver or ProcessDriver(1))(job) as run:
        corpus = _make(corpus, job, run, report or (lambda *_: None))
        move_into_place(plan.corpus, folder)
    return corpus


def is_set(name: str | Path) -> bool:
    """Returns whether text is given as a set, such as tfds:lm1b, not as a file."""
    return str(name).startswith(_SETS)


def _validate(corpus: Corpus, tokenizer: SupportsEncoding) -> None:
    if not SHORTEST_ROW <= corpus.sequence_length <= LONGEST_ROW:
        raise UserError(
            f"sequence_length is {shown_number(corpus.sequence_length)}; it must be at least {SHORTEST_ROW}, usually "
            f"128 or 512, and at most {LONGEST_ROW}"
        )
    if not 0 <= corpus.held_out_fraction < 1:
        raise UserError(f"held_out_fraction is {corpus.held_out_fraction}; it must be at least 0 and below 1")
    check_seed(corpus.seed)
    if tokenizer.pad_id != 0:
        raise UserError(f"the tokenizer's padding id is {tokenizer.pad_id}; it must be 0, as in every DeBERTa")


def _find_inputs(paths: Sequence[str | Path]) -> tuple[TextInput, ...]:
    if not paths:
        text_files(paths)  # raises
    inputs: list[TextInput] = []
    for path in paths:
        if is_set(path):
            inputs.append(TextInput(str(path), is_set=True))
            continue
        for file in text_files([path]):
            inputs.append(TextInput(str(storage.absolute(file)), *file_version(file)))
    return tuple(inputs)


def _plan(corpus: Corpus, inputs: tuple[TextInput, ...]) -> Plan:
    assert corpus.rules is not None
    plan = Plan(
        work=Path(),
        inputs=inputs,
        boundary=corpus.boundary,
        rules=corpus.rules,
        sequence_length=corpus.sequence_length,
        dtype=corpus.dtype,
        held_out_fraction=corpus.held_out_fraction,
        seed=corpus.seed,
        tokenizer=corpus.tokenizer,
        group_bytes=GROUP_BYTES,
        chunk_bytes=CHUNK_BYTES,
        shard_bytes=SHARD_BYTES,
    )
    folder = corpus.folder if address_of(corpus.folder) else corpus.folder.resolve()
    name = work_folder_name(folder.name, plan.digest)
    return dataclasses.replace(plan, work=storage.absolute(work_parent(corpus.folder)) / name)


def _open_existing(expected: Corpus, inputs: Sequence[TextInput]) -> Corpus:
    """Opens the corpus in the folder. Raises UserError with the first difference if it is not the expected one.

    A corpus of an earlier version serves where no rule is set.
    """
    corpus = check_corpus(expected.folder)
    advice = "delete the folder or choose another one"
    if corpus.format != FORMAT and expected.rules == TextRules():
        expected = dataclasses.replace(expected, format=corpus.format, rules=None)
    check_identity(corpus, expected.identity, advice)
    if len(inputs) != len(corpus.sources):
        raise UserError(f"{corpus.folder} was made from {len(corpus.sources)} text files, not {len(inputs)}; {advice}")
    for given, source in zip(inputs, corpus.sources, strict=True):
        if (given.shown_name, given.bytes, given.mtime_ns) == (source.name, source.bytes, source.mtime_ns):
            continue
        sha256 = "" if given.is_set else content_sha256(Path(given.name))
        if sha256 != source.sha256:
            digest = "" if given.is_set else f" has sha256 {sha256}"
            raise UserError(
                f"{corpus.folder} was made from other text: {given.name}{digest}, {source.name} had {source.sha256}; "
                f"{advice}"
            )
    return corpus


def _make(corpus: Corpus, job: Job, run: RunTasks, report: Report) -> Corpus:
    """Runs all phases and returns the corpus with its totals. Its files and the manifest are in `job.plan.corpus`."""
    plan = job.plan
    with writing(corpus.folder):
        for file in (
            plan.read_file(0, "json"),
            plan.chunk_file(0, "json"),
            plan.bucket_file(0),
            plan.corpus / MANIFEST,
        ):
            storage.make_folder(file.parent)
            storage.remove_partial_files(file.parent)
        storage.remove_partial_files(plan.work)
        groups = [plan.read_file(group, "json") for group in range(len(plan.groups))]
        _run_phase(run, read_group, groups, functools.partial(report, "read"))
        selection = select(plan)
        inputs = [given for group in groups for given in ReadGroup.load(group).inputs]
        sources = [TextSource(given.name, given.bytes, given.mtime_ns, given.sha256) for given in inputs]
        removed = [Removal(rule, number) for rule, number in sorted(selection.removed.items())]
        corpus = dataclasses.replace(corpus, sources=tuple(sources), removed=tuple(removed))
        _check_text(corpus, selection)
        chunks = [plan.chunk_file(chunk, "json") for chunk in range(len(selection.chunks))]
        _run_phase(run, tokenize_chunk, chunks, functools.partial(report, "tokenize"))
        for group in range(len(groups)):  # their space may be needed
            storage.remove(plan.read_file(group, "documents"))
            storage.remove(plan.read_file(group, "signatures"))
        if len(chunks) == 1:  # not worth starting processes
            run = functools.partial(run_here, job)
        buckets = [plan.bucket_file(bucket) for bucket in range(sum(selection.buckets))]
        _run_phase(run, write_shard, buckets, functools.partial(report, "write"))
        corpus = dataclasses.replace(corpus, **collect_splits(plan, selection))
        _check_splits(corpus)
        write_manifest(corpus, plan.corpus)
    return corpus


def _run_phase(run: RunTasks, task: Task, files: Sequence[Path], report: Progress) -> None:
    """Runs the tasks of a phase, each of which writes one of the files last.

    Raises:
      UnfinishedWorkError: a task was not run, because its driver lost it.
    """
    run(task, range(len(files)), report)
    done = set(storage.names(files[0].parent))
    if missing := [file.stem for file in files if file.name not in done]:
        raise UnfinishedWorkError(
            f"{len(missing)} of {len(files)} tasks of the phase {files[0].parent.name} were lost: "
            f"{list_names(missing)}; repeat the command, which runs only these"
        )


def _check_text(corpus: Corpus, selection: Selection) -> None:
    if not selection.documents:
        names = list_names([source.name for source in corpus.sources])
        if any(selection.removed.values()):
            rules = list_names([f"{removal.rule} {removal.documents:,}" for removal in corpus.removed])
            raise TextError(f"the rules removed every document of {names}: {rules}; loosen them")
        raise TextError(f"no text in {names}; give files with at least one line that is not blank")


def _check_splits(corpus: Corpus) -> None:
    documents = corpus.train.documents + corpus.held_out.documents
    if not corpus.train.tokens + corpus.held_out.tokens:
        names = list_names([source.name for source in corpus.sources])
        raise TextError(f"no text in {names}; give files with at least one line that is not blank")
    if corpus.held_out_fraction and not corpus.held_out.rows:
        raise UserError(
            f"held_out_fraction {corpus.held_out_fraction} of {documents} documents selects none; give a larger "
            "fraction, a boundary that makes more documents, another seed, or 0 to disable evaluation"
        )
    if not corpus.train.rows:
        raise UserError(
            f"held_out_fraction {corpus.held_out_fraction} of {documents} documents leaves none to train on; give a "
            "smaller fraction, a boundary that makes more documents, or another seed"
        )


def boundary_hint(corpus: Corpus) -> str:
    """Returns what to do about documents that are much shorter than a row, or an empty string."""
    documents = corpus.train.documents + corpus.held_out.documents
    mean = (corpus.train.tokens + corpus.held_out.tokens) / documents
    if corpus.boundary != "blank_line" or mean * _SHORT > corpus.sequence_length:
        return ""
    return (
        f"hint: a blank line ends a document, and documents have {mean:.0f} tokens on average; if blank lines only "
        "separate paragraphs, prepare the text again with --boundary file, which makes each file a document"
    )
