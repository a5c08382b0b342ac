"""The command `deberta-jax prepare`: tokenizes text and packs it into rows of token ids on disk."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names, quote_names, say

from .data.corpus import Corpus
from .data.preparation.drivers import Driver, ProcessDriver, count_cores
from .data.preparation.rules import TextRules
from .data.prepare import boundary_hint, is_set, prepare
from .data.text import Boundary, text_or_novels
from .data.text_files import TextError, describe_ignored, refuse_output
from .data.work_folder import stop_at_signals
from .model_folders import tokenizer_folder
from .new_tokens import with_new_tokens
from .settings import Flat, Positive
from .task_configs import NewTokensConfig

_SECONDS = 30  # between messages


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Tokenize text and pack it into rows of token ids, once for any number of pre-training runs. Repeat the same
    command to continue an interrupted one."""

    COMMON: ClassVar[tuple[str, ...]] = tuple(
        "output tokenizer text boundary sequence-length held-out-fraction seed".split()
        + "near-duplicates skip-bad workers beam".split()
    )
    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "--output rows --tokenizer tok --text corpus/ --sequence-length 512",
        "--output rows --tokenizer tok --text 'c4/*.json.gz' --near-duplicates 0.8 --min-characters 200",
        "--output rows --tokenizer tok --text corpus/ --beam --runner=FlinkRunner --flink_master=HOST:PORT",
    )
    LAST: ClassVar[str] = "beam"
    READS_STORES: ClassVar[tuple[str, ...]] = ("output", "text")

    output: Path
    """folder to create"""
    tokenizer: Path
    """folder of a tokenizer, for instance from `deberta-jax tokenizer`, or a hub name such as
    microsoft/deberta-v3-small"""
    text: tuple[Path, ...] = ()
    """text files; JSON Lines and Parquet, whose records are documents; folders of these; patterns such as 'a/*.zst';
    sets, tfds:NAME[/CONFIG][@SPLIT] or hf:NAME[/CONFIG][@SPLIT] (default: the embedded corpus, six novels)"""
    boundary: Boundary | None = None
    """what separates documents (default: blank_line, or chapter for the embedded corpus)"""
    sequence_length: int = 512
    """tokens per row"""
    held_out_fraction: float = 0.02
    """share of the documents that is kept for evaluation"""
    seed: int = 0
    """seed of the order of the rows, and of the selection of held-out documents"""
    rules: Annotated[TextRules, Flat] = TextRules()
    new_tokens: Annotated[NewTokensConfig, Flat] = NewTokensConfig()
    workers: Positive | None = None
    """number of processes; it does not change the corpus (default: one per core)"""
    beam: tuple[str, ...] | None = None
    """run on Apache Beam; all words that follow are its flags, so this is the last option; it does not change the
    corpus (default: processes of this machine)"""


def set_records(name: str, field: str) -> Iterator[tuple[str, str | TextError]]:
    """Yields where each record of a set such as tfds:lm1b or hf:wikitext@test is, and its text or why it has none.

    Raises:
      UserError: the set cannot be opened or is damaged, or has no column `field`.
    """
    from .tasks.sources.cells import text_cell
    from .tasks.sources.source import Source, open_table

    source = Source.parse(name)
    source = source if source.split else dataclasses.replace(source, split="train")
    table = open_table(source, label_column="")
    for number, cells in table.rows:
        if field not in cells:
            known = quote_names(cells)
            raise table.error(number, f"no column {field!r}; the columns are {known}: give --text-field NAME")
        try:
            with table.locate_errors(number):
                text = text_cell(cells, field, allow_empty=True)
        except UserError as error:
            text = TextError(str(error))
        yield f"{table.name}, {table.unit} {number}", text


def process_driver(workers: int | None = None) -> ProcessDriver:
    """Returns the default driver of commands: processes of this machine, one per core unless `workers` is given."""
    return ProcessDriver(workers or count_cores())


class ProgressReporter:
    """Prints how many tasks of a phase are done, every 30 s."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS:
            self._last = now
            say(f"{phase}: {done:,} of {total:,} tasks done")


def main(config: PrepareConfig) -> None:
    """Prepares the corpus and prints its totals. Raises as `prepare` does."""
    from deberta_jax.tokenizers.tokenizer import Tokenizer

    with stop_at_signals():
        files = [path for path in config.text if not is_set(path)]
        refuse_output(config.output, files)
        if ignored := describe_ignored(files):
            say(ignored)
        text, boundary = text_or_novels(config.text, config.boundary)
        corpus = prepare(
            text,
            with_new_tokens(config.new_tokens, Tokenizer.from_folder(tokenizer_folder(config.tokenizer))),
            config.output,
            sequence_length=config.sequence_length,
            boundary=boundary,
            held_out_fraction=config.held_out_fraction,
            seed=config.seed,
            rules=config.rules,
            driver=_driver(config),
            open_set=set_records,
            report=ProgressReporter(),
        )
    _say_totals(corpus)
    if config.boundary is None and (hint := boundary_hint(corpus)):
        say(hint)


def _driver(config: PrepareConfig) -> Driver:
    if config.beam is None:
        return process_driver(config.workers)
    from .data.preparation.beam_driver import BeamDriver

    return BeamDriver(config.beam)


def _say_totals(corpus: Corpus) -> None:
    say(f"{corpus.folder}: rows of {corpus.sequence_length} tokens from {len(corpus.sources)} text files")
    for name, split in (("train", corpus.train), ("held out", corpus.held_out)):
        filled = split.tokens / max(1, split.rows * corpus.sequence_length)
        say(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.rows:,} rows in "
            f"{len(split.files)} files, {filled:.1%} filled with text"
        )
    if removed := [f"{removal.rule} {removal.documents:,}" for removal in corpus.removed if removal.documents]:
        say(f"documents removed: {list_names(removed, most=len(removed))}")
