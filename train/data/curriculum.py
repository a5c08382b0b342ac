"""The rows of a run of pre-training: one phase after the other, each with corpora of one sequence length.

BERT's recipe trains on rows of 128 tokens for 90 % of the steps and on rows of 512 for the others. The corpora of each
length are prepared from the text separately.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names

from ..corpus_options import Stage, parse_weighted
from .corpus import Corpus
from .mixture import Shares, count_rows, integer_shares, locate_row, short_names
from .text import SupportsEncoding


@dataclasses.dataclass(frozen=True)
class Phase:
    """Corpora of one sequence length that are read together.

    Attributes:
      corpora: the corpora.
      names: short names of the corpora, for the log.
      shares: their shares of the rows (see `mixture`).
      steps: the number of steps.
    """

    corpora: tuple[Corpus, ...]
    names: tuple[str, ...]
    shares: Shares
    steps: int

    @property
    def sequence_length(self) -> int:
        return self.corpora[0].sequence_length


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """The phases of a run in order. The last one goes on where more steps are taken than it has."""

    phases: tuple[Phase, ...]

    @classmethod
    def of(cls, corpus: Corpus) -> "Curriculum":
        """Returns a single phase with a single corpus."""
        return cls((Phase((corpus,), (corpus.folder.name,), (1,), 1),))

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """The corpora of all phases, in order."""
        return tuple(corpus for phase in self.phases for corpus in phase.corpora)

    @property
    def is_single(self) -> bool:
        """Whether there is just one corpus."""
        return len(self.corpora) == 1

    @property
    def identity(self) -> Any:
        """What a checkpoint records of the rows, as JSON: the fingerprint of a single corpus, or all phases."""
        if self.is_single:
            return self.corpora[0].fingerprint
        return [
            {
                "steps": phase.steps,
                "corpora": [corpus.fingerprint for corpus in phase.corpora],
                "shares": [*phase.shares],
            }
            for phase in self.phases
        ]

    def starts(self) -> list[int]:
        """Returns the number of steps before each phase."""
        return [0, *itertools.accumulate(phase.steps for phase in self.phases[:-1])]

    def phase_of(self, step: int) -> Phase:
        """Returns the phase of a step, counted from 1; of step 0, the first one."""
        return self.phases[max(0, bisect.bisect_left(self.starts(), step) - 1)]

    def tokens_until(self, step: int, batch_size: int) -> int:
        """Returns the number of tokens in the batches of all steps up to this one, with padding."""
        return batch_size * sum(
            taken * phase.sequence_length for phase, taken in zip(self.phases, self._steps_taken(step), strict=True)
        )

    def epochs(self, step: int, batch_size: int) -> dict[str, float]:
        """Returns how often each corpus has been read after a step, by name; 0.5 is one half of its rows."""
        return {
            name: count / corpus.train.rows
            for phase, taken in zip(self.phases, self._steps_taken(step), strict=True)
            for name, corpus, count in zip(
                phase.names, phase.corpora, count_rows(taken * batch_size, phase.shares), strict=True
            )
        }

    def epoch_figures(self, step: int, batch_size: int) -> dict[str, float]:
        """Returns `epochs` as figures of the log: `epoch`, or `epoch/NAME` if there are several corpora."""
        epochs = self.epochs(step, batch_size)
        return {"epoch" if self.is_single else f"epoch/{name}": value for name, value in epochs.items()}

    def describe(self, steps: int, batch_size: int) -> list[str]:
        """Returns one line for each corpus: its share of the rows, its size, and how often it will be read."""
        epochs = self.epochs(steps, batch_size)
        return [
            f"corpus {name}: {share / sum(phase.shares):.2%} of the rows of {phase.sequence_length} tokens in "
            f"{taken:,} steps, {corpus.train.rows:,} rows, {epochs[name]:.3g} epochs"
            for phase, taken in zip(self.phases, self._steps_taken(steps), strict=True)
            for name, share, corpus in zip(phase.names, phase.shares, phase.corpora, strict=True)
        ]

    def _steps_taken(self, step: int) -> list[int]:
        """Returns how many of the first `step` steps each phase has."""
        starts = self.starts()
        return [max(0, min(step, end) - start) for start, end in zip(starts, [*starts[1:], step], strict=True)]


class RowOrder:
    """Where each row of the stream of a curriculum comes from: a selection map of grain.

    Args:
      curriculum: the phases.
      batch_size: rows of a step, over all hosts.
    """

    def __init__(self, curriculum: Curriculum, batch_size: int) -> None:
        self._starts = [start * batch_size for start in curriculum.starts()]
        self._shares = [phase.shares for phase in curriculum.phases]
        sizes = [len(phase.corpora) for phase in curriculum.phases]
        self._first = [0, *itertools.accumulate(sizes)]  # number of the first corpus of each phase

    def __len__(self) -> int:
        return 2**63 - 1  # there is no end

    def __getitem__(self, row: int) -> tuple[int, int]:
        """Returns the number of the corpus, and that of the row in the stream of the corpus."""
        phase = bisect.bisect_right(self._starts, row) - 1
        corpus, index = locate_row(row - self._starts[phase], self._shares[phase])
        return self._first[phase] + corpus, index


def arrange(given: Sequence[tuple[str, Corpus]], stages: Sequence[Stage], *, tokenizer: SupportsEncoding) -> Curriculum:
    """Returns the curriculum of corpora, each of which belongs to the stage with its sequence length.

    Args:
      given: FOLDER or FOLDER:WEIGHT as a user gave it, and the corpus in that folder.
      stages: the stages, at least one.
      tokenizer: the tokenizer of the model.

    Raises:
      UserError: a corpus was made with another tokenizer or is given twice, lengths or weights do not fit, or a stage
        has no corpus.
    """
    folders = [parse_weighted(text) for text, _ in given]
    corpora = [corpus for _, corpus in given]
    resolved = [corpus.folder.resolve() for corpus in corpora]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            raise UserError(f"corpus {folders[number].name} is given twice; give it once, with the sum of the weights")
    _check_lengths(corpora, [stage.sequence_length for stage in stages])
    for corpus in corpora:
        corpus.check(tokenizer=tokenizer, sequence_length=corpus.sequence_length)
    names = short_names([folder.name for folder in folders])
    phases = []
    for stage in stages:
        places = [place for place, corpus in enumerate(corpora) if corpus.sequence_length == stage.sequence_length]
        shares = integer_shares(
            [folders[place].name for place in places],
            [folders[place].weight for place in places],
            [corpora[place].train.rows for place in places],
        )
        phase_corpora = tuple(corpora[place] for place in places)
        phases.append(Phase(phase_corpora, tuple(names[place] for place in places), shares, stage.steps))
    return Curriculum(tuple(phases))


def _check_lengths(corpora: Sequence[Corpus], lengths: Sequence[int]) -> None:
    """Raises UserError if the rows of a corpus have none of the lengths, or a length has no corpus."""
    found = {corpus.sequence_length: corpus.folder for corpus in corpora}
    for length, folder in found.items():
        if length in lengths:
            continue
        if len(found) == len(lengths) == 1:
            raise UserError(
                f"{folder} contains a corpus with sequence_length {length}, not {lengths[0]}; prepare the text again "
                "with these settings, or use those of the corpus"
            )
        others = list_names(lengths)
        raise UserError(
            f"{folder} has rows of {length} tokens, but the run has rows of {others}; prepare the text again with a "
            "length of the run, or give --curriculum, which trains on one length after the other"
        )
    for length in lengths:
        if length not in found:
            raise UserError(
                f"the curriculum has the length {length}, but no corpus has; add one to --corpus that was made with "
                f"`deberta-jax prepare --sequence-length {length}`"
            )
