"""Compares the speed of `Predictor` on this CPU with transformers' pipeline and sentence-transformers' CrossEncoder.

    python -m tests.benchmarks.predict_speed            # v3-small and v3-base, on a machine that does nothing else
    python -m tests.benchmarks.predict_speed --quick    # a tiny model and few texts: shows that it runs

All classify the same pairs of real texts, 5 to 400 tokens long together, with the same weights, in float32, with the
same number of threads, and truncate at 512 tokens. The pipeline runs with batches of one, and with the best of the
batch sizes 8, 16, 32 and 64, which a first run of each finds; CrossEncoder, which sorts by length, with its best. Then
they run in turn, so that other load on the machine affects all, and the medians are compared. Compilation is not timed:
it is done once per shape, and the command `predict` keeps the programs. Before anything is timed, all must agree on the
probabilities.
"""

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..support.paths import SHARED

Pair = tuple[str, str]
BATCH_SIZES = (8, 16, 32, 64)
MAX_TOKENS = 512
SHORTEST, LONGEST = 5, 400  # tokens of a pair
IDLE = 0.5  # load above which other programs disturb the result


class Contender(NamedTuple):
    """A way to classify texts.

    Attributes:
      name: Its name.
      classify: Returns the probabilities of the classes of each pair.
    """

    name: str
    classify: Callable[[Sequence[Pair]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, few texts and one round")
    parser.add_argument("--models", nargs="+", default=["deberta-v3-small", "deberta-v3-base"])
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # before JAX counts the cores
    if options.quick:
        options.models, options.texts, options.rounds = ["tiny"], 48, 1
    import torch

    torch.set_num_threads(options.threads)
    names = ("jax", "torch", "transformers", "sentence-transformers")
    print(f"{platform.machine()}, {options.threads} threads; {', '.join(f'{name} {version(name)}' for name in names)}")
    print(f"load before: {load:.2f}")
    if load > IDLE:
        print(f"warning: other programs use this machine (load above {IDLE}), so the figures are unreliable")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            compare(name, Path(folder), options.texts, options.rounds)


def compare(name: str, folder: Path, count: int, rounds: int) -> None:
    """Prints the table of one model."""
    tokenizer = write_model(name, folder)
    pairs, lengths = real_pairs(count, tokenizer)
    print(
        f"\n{name}: {count} pairs, {min(lengths)} to {max(lengths)} tokens, {statistics.mean(lengths):.0f} on average"
    )
    ours, pipelines, cross_encoders = contenders(folder)
    check_equal([ours, pipelines[1], cross_encoders[0]], pairs[:8])
    ours.classify(pairs)  # compiles
    single, *batched = pipelines
    finalists = [ours, single, fastest(batched, pairs), fastest(cross_encoders, pairs)]
    seconds: dict[str, list[float]] = {contender.name: [] for contender in finalists}
    for _ in range(rounds):
        for contender in finalists:
            seconds[contender.name].append(timed(contender, pairs))
    own = statistics.median(seconds[ours.name])
    print(f"{'':44}{'texts/s':>9}{'slowest':>9}{'fastest':>9}{'ratio':>8}")
    for name_, durations in seconds.items():
        median = statistics.median(durations)
        speeds = (count / duration for duration in (median, max(durations), min(durations)))
        print(f"{name_:44}{''.join(f'{speed:9.2f}' for speed in speeds)}{median / own:8.2f}", flush=True)
    best = min(statistics.median(durations) for name_, durations in seconds.items() if name_ != ours.name)
    print(f"deberta-jax has {best / own:.2f} times the speed of the best of the others")


def write_model(name: str, folder: Path) -> Any:
    """Writes a classifier with random weights as transformers reads it, and returns its tokenizer."""
    import jax.numpy as jnp

    from deberta_jax import DebertaConfig, DebertaForSequenceClassification, Tokenizer
    from deberta_jax.convert import save_pytorch

    from ..support.novel import small_tokenizer
    from ..support.small_models import TINY, random_params

    published = SHARED / "real" / "deberta-v3"
    is_small = name == "tiny" or not published.is_dir()
    if is_small:
        small_tokenizer(folder, folder / "text.txt", lines=3000)
    tokenizer = Tokenizer.from_folder(folder if is_small else published)
    config = TINY.replace(max_position_embeddings=512) if name == "tiny" else DebertaConfig.named(name)
    model = DebertaForSequenceClassification(config)
    save_pytorch(folder, config, random_params(model, jnp.ones((1, 8), jnp.int32)))
    tokenizer.save(folder)
    return tokenizer


def real_pairs(count: int, tokenizer: Any) -> tuple[list[Pair], list[int]]:
    """Returns pairs of real texts and their numbers of tokens.

    Half of them are pairs of sentences of RTE, if its files are there; the others are the first sentence of a passage
    of a book with the rest of it, cut so that all lengths are equally frequent.
    """
    from deberta_jax.train.data.text import embedded_corpus, read_documents

    rng = random.Random(0)
    books, glue = SHARED / "data" / "books.txt.xz", SHARED / "real" / "glue" / "rte" / "dev.tsv"
    documents = read_documents((books if books.is_file() else embedded_corpus(),), boundary="blank_line")
    texts = [" ".join(document.split()) for document, _ in zip(documents, range(4 * count), strict=False)]
    sentences: list[Pair] = []
    if glue.is_file():
        rows = [line.split("\t") for line in glue.read_text(encoding="utf-8").splitlines()[1:]]
        sentences = [(row[1], row[2]) for row in rows]
        rng.shuffle(sentences)
    pairs = sentences[: count // 2]
    while len(pairs) < count:
        words = rng.choice(texts).split()
        start, size = rng.randrange(max(1, len(words) - 30)), rng.randint(2, 290)
        passage = words[start : start + size]
        first = max(1, min(12, len(passage) // 2))
        pairs.append((" ".join(passage[:first]), " ".join(passage[first:])))
        if not SHORTEST <= tokens(tokenizer, pairs[-1]) <= LONGEST or not all(pairs[-1]):
            pairs.pop()
    rng.shuffle(pairs)
    return pairs, [tokens(tokenizer, pair) for pair in pairs]


def tokens(tokenizer: Any, pair: Pair) -> int:
    return len(tokenizer(*pair).input_ids)


def contenders(folder: Path) -> tuple[Contender, list[Contender], list[Contender]]:
    """Returns `Predictor`; the pipeline with each batch size, 1 first; and CrossEncoder with each batch size."""
    import transformers
    from sentence_transformers import CrossEncoder

    from deberta_jax.predict.classification import ClassifyTexts
    from deberta_jax.predict.pipeline import TextPair
    from deberta_jax.predict.predictor import Predictor
    from deberta_jax.predict.windows import Windows

    predictor = Predictor.load(str(folder))
    task = ClassifyTexts(Windows(max_length=MAX_TOKENS, combine="truncate"))
    labels = predictor.label_names
    pipeline = transformers.pipeline("text-classification", str(folder), device="cpu", top_k=None)
    encoder = CrossEncoder(str(folder), device="cpu", max_length=MAX_TOKENS)

    def jax_probabilities(pairs: Sequence[Pair]) -> np.ndarray:
        results = predictor.run(task, (TextPair(*pair) for pair in pairs))
        return np.array([[result.probabilities[label] for label in labels] for result in results])

    def pipeline_with(size: int) -> Contender:
        def classify(pairs: Sequence[Pair]) -> np.ndarray:
            inputs = [{"text": text, "text_pair": pair} for text, pair in pairs]
            results = pipeline(inputs, batch_size=size, truncation=True, max_length=MAX_TOKENS)
            scores = [{entry["label"]: entry["score"] for entry in result} for result in results]
            return np.array([[row[label] for label in labels] for row in scores])

        return Contender(f"transformers pipeline, batch {size}", classify)

    def encoder_with(size: int) -> Contender:
        def classify(pairs: Sequence[Pair]) -> np.ndarray:
            return encoder.predict(list(pairs), batch_size=size, apply_softmax=True, show_progress_bar=False)

        return Contender(f"sentence-transformers CrossEncoder, batch {size}", classify)

    return (
        Contender("deberta-jax Predictor", jax_probabilities),
        [pipeline_with(size) for size in (1, *BATCH_SIZES)],
        [encoder_with(size) for size in BATCH_SIZES],
    )


def check_equal(all_contenders: Sequence[Contender], pairs: Sequence[Pair]) -> None:
    """Raises SystemExit if the probabilities differ by more than 1e-4."""
    first, *others = (contender.classify(pairs) for contender in all_contenders)
    for contender, other in zip(all_contenders[1:], others, strict=True):
        difference = np.abs(first - other).max()
        if difference > 1e-4:
            raise SystemExit(f"{contender.name} gives other probabilities, by up to {difference:.1e}")


def fastest(candidates: Sequence[Contender], pairs: Sequence[Pair]) -> Contender:
    """Returns the fastest of several, after one run of each."""
    seconds = [timed(candidate, pairs) for candidate in candidates]
    for candidate, duration in zip(candidates, seconds, strict=True):
        print(f"  {candidate.name}: {len(pairs) / duration:.2f} texts/s", file=sys.stderr, flush=True)
    return candidates[seconds.index(min(seconds))]


def timed(contender: Contender, pairs: Sequence[Pair]) -> float:
    """Returns the seconds of one run."""
    start = time.perf_counter()
    contender.classify(pairs)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
