"""The command `deberta-jax tokenizer`: trains a SentencePiece tokenizer for DeBERTa v2 and v3 on text files.

Text of any size is read as a stream, of which a random sample of bounded size is kept.
"""

import contextlib
import dataclasses
import heapq
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from deberta_jax.errors import UserError
from deberta_jax.terminal import say, shown_number
from deberta_jax.tokenizers.extend import declare_pieces
from deberta_jax.tokenizers.spm import MODEL_FILE
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.tokenizers.vocabulary import CLS, CONFIG_FILE, MASK, PAD, SEP, UNK

from ..settings import LARGEST_INT, Positive, Range, Settings
from . import sentencepiece_process
from .text import BadLines, embedded_corpus, read_documents
from .text_files import describe_ignored, refuse_output
from .work_folder import stop_at_signals

_SAMPLE_BYTES = 1 << 20
_SPECIAL_AND_BYTE_PIECES = 4 + 256
_MAX_LINE_BYTES = 4192  # SentencePiece silently drops longer lines
_SPACE = "▁"  # U+2581, which SentencePiece writes for a space
_RESERVED = "▅"  # U+2585, which SentencePiece reserves for unknown characters; it drops lines that contain it
_NOT_IN_SYMBOLS = (_SPACE, _RESERVED)
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？]")  # noqa: RUF001
_LARGEST_SAMPLE = 2000  # megabytes; SentencePiece numbers the characters of the text with 32 bits
_THREADS = 16  # a constant: SentencePiece sums expectations per thread, so the number of threads changes the model


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Settings):
    """Train a SentencePiece tokenizer with DeBERTa's special tokens and save it as spm.model.

    Training takes seconds on the embedded corpus. A million lines take minutes and a few GB of memory. With --extend,
    pieces for a text are added to the tokenizer and the embeddings of a model instead.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "--output tok --text corpus/ --vocab-size 32000",
        "--output tok --text 'c4/*.json.gz' --vocab-size 128000",
        "--output medical --extend microsoft/deberta-v3-base --text medicine/ --new-pieces 2000",
    )
    READS_STORES: ClassVar[tuple[str, ...]] = ("text",)

    output: Path
    """folder for spm.model and tokenizer_config.json, with --extend also for the model; created if it does not exist"""
    text: tuple[Path, ...] = ()
    """text files; JSON Lines and Parquet; folders of these; patterns such as 'a/*.zst' (default: the embedded corpus,
    six novels)"""
    text_field: str = "text"
    """field of JSON Lines, or column of Parquet, that contains the text"""
    skip_bad: bool = False
    """leave out lines that are no text, and count them (default: the first one ends the command)"""
    vocab_size: int = 8000
    """number of pieces including 4 special and 256 byte pieces; [MASK] is added to them. DeBERTa-v3 has 128000"""
    character_coverage: float = 0.9995
    """share of the characters that get their own piece, 0.98 to 1; the others are encoded as bytes"""
    input_sentence_size: int = 1_000_000
    """maximum number of lines to train on; if the text has more, a random sample is used"""
    sample_megabytes: Annotated[int, Range(at_least=1, at_most=_LARGEST_SAMPLE)] = 256
    """maximum size of these lines, in 2^20 bytes; training needs about 20 times as much memory"""
    extend: Path | None = None
    """folder of a model of DeBERTa v2 or v3, or a hub name: pieces are added after those of its tokenizer, and a row of
    its embeddings for each, the mean of the pieces that stood for it before. Ids stay as they are. vocab_size is not
    read (default: a new tokenizer is trained)"""
    new_pieces: Positive = 1000
    """number of pieces to add with --extend"""
    symbols: tuple[str, ...] = ()
    """strings that are always single pieces, such as markers of entities, which count as pieces of vocab_size
    (default: none)"""
    overwrite: bool = False
    """replace a different spm.model in the output folder"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extend is not None and self.symbols:
            raise UserError("--symbols are pieces of a new tokenizer; with --extend, leave them out")

    def lines(self, bad: BadLines) -> Iterator[str]:
        """Yields the lines of the text. Raises TextError if one is no text and `skip_bad` is not set."""
        # SentencePiece trains on lines, so that document boundaries do not matter; lines need the least memory.
        paths = self.text or (embedded_corpus(),)
        on_bad = bad.add if self.skip_bad else None
        return read_documents(paths, boundary="line", field=self.text_field, on_bad=on_bad)

    @property
    def sample(self) -> "TrainingSample":
        """How much of the text is used."""
        return TrainingSample(lines=self.input_sentence_size, megabytes=self.sample_megabytes)


def main(config: TokenizerConfig) -> None:
    """Trains and saves the tokenizer and prints a summary.

    Raises:
      UserError: if the text cannot be read or is too small, if a setting is out of range, or if the output folder
        contains another tokenizer.
    """
    paths = config.text or (embedded_corpus(),)
    refuse_output(config.output, paths)
    with stop_at_signals(), _writable(config.output):
        if ignored := describe_ignored(paths):
            say(ignored)
        if config.extend is not None:
            from .extend_model import extend_model  # here, because it needs JAX

            extend_model(config, config.extend)
            return
        began = time.monotonic()
        bad = BadLines()
        model = train_tokenizer(
            config.lines(bad),
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            input_sentence_size=config.input_sentence_size,
            sample_megabytes=config.sample_megabytes,
            symbols=config.symbols,
        )
        seconds = time.monotonic() - began
        saved = check_overwriting(config, model)
        tokenizer = declare_pieces(Tokenizer.from_bytes(model), config.symbols)
        with _writing(config.output):
            tokenizer.save(config.output)
        rate = _bytes_per_token(tokenizer, config.lines(BadLines()))
    bad.say()
    say(
        f"Trained {tokenizer.vocab_size} ids ({tokenizer.vocab_size - 1} pieces and [MASK]) in {seconds:.1f} s; "
        f"{rate:.2f} bytes per token.\n"
        f"Saved {saved} and {CONFIG_FILE}, fingerprint {tokenizer.fingerprint[:12]}."
    )


def check_overwriting(config: TokenizerConfig, model: bytes) -> Path:
    """Returns the path of the new spm.model. Raises UserError if it is another one and may not be replaced."""
    saved = config.output / MODEL_FILE
    if saved.exists() and saved.read_bytes() != model and not config.overwrite:
        raise UserError(
            f"{saved} is another tokenizer, and data prepared with it would become unusable; "
            "choose another output folder, or pass --overwrite"
        )
    return saved


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Creates the folder and writes to it, so that a fault shows before the work. Removes it if it stays empty."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {folder} is a file; name a folder")
    created = not folder.exists()
    try:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"x")
        yield
    finally:
        if created:
            with contextlib.suppress(OSError):  # it has the tokenizer, or was not created
                folder.rmdir()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Reports a failure to write in one line that names the folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        message = f"cannot write the tokenizer {folder}: {reason}; free some space or choose another folder"
        raise OSError(error.errno, message) from None


def _bytes_per_token(tokenizer: Tokenizer, lines: Iterable[str]) -> float:
    """Returns the bytes per token in the first MiB of text. Higher means better compression."""
    sample, size = [], 0
    for line in lines:
        sample.append(line)
        size += len(line.encode())
        if size >= _SAMPLE_BYTES:
            break
    return size / sum(map(len, tokenizer.encode_batch(sample)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSample:
    """How much of a text a model is trained on: at most this many lines, and megabytes (2^20 bytes) of them.

    Raises:
      UserError: if a value is out of range.
    """

    lines: int = 1_000_000
    megabytes: int = 256

    def __post_init__(self) -> None:
        if not 100 < self.lines <= LARGEST_INT:
            given = shown_number(self.lines)
            raise UserError(f"input_sentence_size is {given}; it must be above 100 and at most {LARGEST_INT}")
        if not 1 <= self.megabytes <= _LARGEST_SAMPLE:
            given = shown_number(self.megabytes)
            raise UserError(f"sample_megabytes is {given}; it must be at least 1 and at most {_LARGEST_SAMPLE}")


def train_tokenizer(
    documents: Iterable[str],
    *,
    vocab_size: int,
    character_coverage: float = 0.9995,
    input_sentence_size: int = 1_000_000,
    sample_megabytes: int = 256,
    symbols: Sequence[str] = (),
) -> bytes:
    """Trains a SentencePiece unigram model with DeBERTa's special pieces and returns the content of spm.model.

    Like the released v3 file, it normalizes with nmt_nfkc, encodes characters outside the vocabulary as bytes and has
    the ids [PAD] 0, [CLS] 1, [SEP] 2 and [UNK] 3. With one release of sentencepiece, the same documents give the same
    bytes on any number of cores.

    Args:
      documents: texts of any length. Training uses their lines. Lines over 4192 bytes, which SentencePiece would drop
        silently, are split at sentence ends or spaces.
      vocab_size: number of pieces, including 4 special and 256 byte pieces. [MASK] is added to them: 128000 gives ids
        up to 128000, as in v3.
      character_coverage: share of the characters that get their own piece; the others are encoded as bytes.
      input_sentence_size: maximum number of lines, all of which are held in memory. If the text has more, a random
        sample is used.
      sample_megabytes: maximum size of these lines, in 2^20 bytes.
      symbols: strings that are always single pieces, SentencePiece's user-defined symbols. They follow the special
        tokens and count as pieces of vocab_size.

    Raises:
      UserError: if a symbol cannot be one, vocab_size does not fit the text (the message contains the limit), a setting
        is out of range, or there is no text.
    """
    if isinstance(documents, str):
        raise TypeError("documents is a single string; pass a list of strings")
    if not _SPECIAL_AND_BYTE_PIECES < vocab_size <= LARGEST_INT:
        raise UserError(
            f"vocab_size is {shown_number(vocab_size)}; it must be above {_SPECIAL_AND_BYTE_PIECES}, usually "
            f"8000-128000, and at most {LARGEST_INT}"
        )
    check_symbols(symbols)
    if not 0.98 <= character_coverage <= 1:
        raise UserError(f"character_coverage is {character_coverage}; it must be 0.98 to 1")
    lines = training_sample(documents, TrainingSample(lines=input_sentence_size, megabytes=sample_megabytes))
    settings = {
        "vocab_size": vocab_size,
        "character_coverage": character_coverage,
        "input_sentence_size": input_sentence_size,
        "shuffle_input_sentence": True,
        "max_sentence_length": _MAX_LINE_BYTES,
        "normalization_rule_name": "nmt_nfkc",
        "byte_fallback": True,
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3},
        **{"pad_piece": PAD, "bos_piece": CLS, "eos_piece": SEP, "unk_piece": UNK},
        **({"user_defined_symbols": list(symbols)} if symbols else {}),
    }
    return run_trainer(settings, lines)


def run_trainer(settings: dict[str, Any], lines: list[str]) -> bytes:
    """Trains a unigram model in a process of its own and returns the content of spm.model.

    Args:
      settings: arguments of SentencePiece's trainer.
      lines: the training lines.

    Raises:
      UserError: training failed.
    """
    common = {"model_type": "unigram", "num_threads": _THREADS, "minloglevel": 2}
    code, model, message = _run_trainer(common | settings, lines)
    if code == sentencepiece_process.FAILED:
        raise _training_error(model.decode(errors="replace"), settings["vocab_size"])
    if code:
        raise UserError(
            f"the process that trains ended with exit code {code}, which a lack of memory may cause; give a smaller "
            f"sample_megabytes or vocab_size: {message}"
        )
    return model


def check_symbols(symbols: Sequence[str]) -> None:
    """Raises UserError if a string cannot be a piece that stands for itself."""
    for number, symbol in enumerate(symbols):
        if symbol in symbols[:number]:
            raise UserError(f"symbols have {symbol!r} twice; give it once")
        if symbol in (PAD, CLS, SEP, UNK, MASK):
            raise UserError(f"symbols have {symbol!r}, which every tokenizer has as a special token; leave it out")
        if not symbol or any(character.isspace() or character in _NOT_IN_SYMBOLS for character in symbol):
            raise UserError(
                f"symbols have {symbol!r}; a symbol needs at least one character, and has no white space, {_SPACE} or "
                f"{_RESERVED}"
            )
        if not symbol.isprintable():
            raise UserError(f"symbols have {symbol!r}, which has characters that cannot be printed; leave them out")


def _run_trainer(settings: dict[str, Any], lines: list[str]) -> tuple[int, bytes, str]:
    """Runs `sentencepiece_process`. Returns its exit code, the model or an error, and what C++ code wrote.

    An exception, for instance KeyboardInterrupt, ends it at once.
    """
    # -P: the script's folder, which has modules of common names, is not searched.
    command = [sys.executable, "-P", sentencepiece_process.__file__, json.dumps(settings)]
    pipe = subprocess.PIPE
    # In a separate session, because the terminal sends Ctrl-C to all processes of its session.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            assert process.stdin is not None
            with (
                contextlib.suppress(BrokenPipeError),
                process.stdin as file,
            ):  # if it ends early, its exit code says why
                for line in lines:
                    file.write(line.encode() + b"\n")
                file.write(b"\n")
            process.stdin = None
            model, errors = process.communicate()
        except BaseException:
            process.kill()
            process.wait()
            raise
    return process.returncode, model, errors.decode(errors="replace").strip()


def training_sample(documents: Iterable[str], sample: TrainingSample) -> list[str]:
    """Returns the training lines of documents in their order, or a random sample of them, always the same.

    A line has a random number. Those with the smallest numbers are kept, so that every line has the same chance.
    Memory is bounded by the sample. SentencePiece would draw another sample in each process.

    Raises:
      UserError: there is no text.
    """
    draw, limit = random.Random(0).random, sample.megabytes << 20
    kept: list[tuple[float, int, str, int]] = []  # a heap: negated random number, number, line, bytes
    size, highest = 0, 1.0
    for number, line in enumerate(_training_lines(documents)):
        rank = draw()
        if rank >= highest:
            continue
        length = len(line.encode())
        heapq.heappush(kept, (-rank, number, line, length))
        size += length
        while len(kept) > sample.lines or (size > limit and len(kept) > 1):
            removed = heapq.heappop(kept)
            highest, size = -removed[0], size - removed[3]
    if not kept:
        raise UserError("there is no text to train on; give documents with at least one visible character")
    return [line for _, _, line, _ in sorted(kept, key=lambda entry: entry[1])]


def _training_lines(documents: Iterable[str]) -> Iterator[str]:
    """Yields the training lines of documents, none of which is blank."""
    for document in documents:
        for line in document.replace(_RESERVED, " ").splitlines():
            if any(char.isprintable() and char not in " \ufffd" for char in line):
                yield from _split_line(line)


def _split_line(line: str) -> Iterator[str]:
    """Splits a line into parts of at most _MAX_LINE_BYTES bytes, after a sentence end or a space if there is one."""
    start = 0
    while start < len(line):
        part = line[start : start + _MAX_LINE_BYTES].encode()[:_MAX_LINE_BYTES].decode(errors="ignore")
        if start + len(part) < len(line):
            ends = [match.end() for match in _SENTENCE_END.finditer(part)]
            part = part[: ends[-1] if ends else part.rfind(" ") + 1 or len(part)]
        yield part
        start += len(part)


def _training_error(message: str, vocab_size: int) -> UserError:
    """Translates a failed check of SentencePiece's C++ code."""
    if most := re.search(r"Vocabulary size too high.*<= (\d+)", message):
        return UserError(
            f"vocab_size {vocab_size} is more than this text can fill; give at most {most[1]}, or more text"
        )
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"vocab_size {vocab_size} is too small for the characters of this text; give at least {least[1]}, "
            "or a lower character_coverage"
        )
    return UserError(f"sentencepiece could not train on this text: {' '.join(message.split())}")
