"""The command `deberta-jax report RUN [RUN2]`."""

import dataclasses
import itertools
from pathlib import Path
from typing import ClassVar

import tyro

from deberta_jax.atomic_files import write_file
from deberta_jax.checkpoint import holds_model
from deberta_jax.errors import UserError, one_line
from deberta_jax.predict.loaded_model import LoadedModel
from deberta_jax.terminal import say

from ..data.batches import held_out_rows
from ..data.corpus import open_corpus
from ..data.text import embedded_corpus, read_documents
from ..samples import sample_texts
from ..settings import Seed, Settings
from .page import Samples, build_page
from .run_folder import RunFolder, open_run

_TEXTS = 4  # that are shown
_LONGEST_ROW = 64  # tokens of them


@dataclasses.dataclass(frozen=True)
class ReportConfig(Settings):
    """Make one HTML page of a run, or of two runs side by side: curves, time, samples, evaluation, settings."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "runs/first",
        "runs/sst2 runs/sst2-lora --output comparison.html",
    )

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folder of a run of `deberta-jax pretrain` or `finetune`, finished or not, or two of them, which are shown side by
    side; of several seeds, the best one is shown"""
    output: Path = Path("report.html")
    """File of the page, which refers to no other file and to no network"""
    seed: Seed = 0
    """Seed of the masked tokens and of what the generator puts in their places"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.runs) <= 2:
            raise UserError(f"{len(self.runs)} runs are given; give the folder of one run, or of two")


def main(config: ReportConfig) -> None:
    """Runs `deberta-jax report`: writes the page and prints where it is.

    Raises:
      UserError, OSError: There is no such run, it holds nothing, or the page cannot be written.
    """
    if config.output.is_dir():
        raise UserError(f"--output {config.output} is a folder; give the name of a file, such as report.html")
    runs = [open_run(path) for path in config.runs]
    page = build_page(runs, [samples_of(run, seed=config.seed) for run in runs])
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_file(config.output, page)
    say(f"saved {config.output}: open it in a browser")


def samples_of(run: RunFolder, *, seed: int) -> Samples | str:
    """Returns masked texts of a run of pre-training, or a sentence that says why there are none.

    The texts are held-out rows of the corpus. Where the corpus is not found, they are from the embedded novels.
    """
    if run.command != "pretrain":
        return "Fine-tuning masks nothing."
    single = holds_model(run.path / "model")
    if not single and not holds_model(run.path / "generator"):
        return "The run has no finished model yet, so there are no samples."
    try:
        generator = LoadedModel.from_folder(run.path / ("model" if single else "generator"))
        discriminator = None if single else LoadedModel.from_folder(run.path / "discriminator")
        source, rows = _texts(run, generator)
        return Samples((source, sample_texts(rows, generator, discriminator, seed=seed)))
    except (UserError, OSError) as error:  # the rest of the report does not need them
        return f"There are no samples: {one_line(error)}"


def _texts(run: RunFolder, model: LoadedModel) -> tuple[str, list[list[int]]]:
    tokenizer, named = model.tokenizer, run.settings.get("corpus")
    for folder in [run.path / "corpus"] if named is None else [Path(str(named)), run.path.parent / str(named)]:
        if (folder / "manifest.json").is_file():
            corpus = open_corpus(folder)
            corpus.check(tokenizer=tokenizer, sequence_length=corpus.sequence_length)
            rows = [_first_text(row, tokenizer.sep_id) for row in held_out_rows(corpus, _TEXTS)]
            if rows:
                return "Held-out text of the run's corpus.", rows
    novels = read_documents((embedded_corpus(),), boundary="chapter")
    chapters = itertools.islice(novels, 1, _TEXTS + 1)  # after the title of the first novel
    paragraphs = [max(chapter.splitlines(), key=len) for chapter in chapters]
    ids = tokenizer.encode_batch(paragraphs)
    rows = [tokenizer.with_special_tokens(tokens[: _LONGEST_ROW - 2]).input_ids for tokens in ids]
    return "The run's corpus is not here; the text is from the embedded novels.", rows


def _first_text(row: list[int], sep_id: int) -> list[int]:
    """Returns the first text of a packed row, from [CLS] to [SEP], with at most _LONGEST_ROW tokens."""
    text = row[: row.index(sep_id)] if sep_id in row else row
    return [*text[: _LONGEST_ROW - 1], sep_id]
