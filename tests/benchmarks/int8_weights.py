"""Compares predictions with weights of 8 bits and of float32: probabilities, memory of the parameters, and time.

    python -m tests.benchmarks.int8_weights MODEL FILE.tsv [--rows 500]

MODEL is a folder with a classifier, FILE has a column "text" and may have a column "label" with the names of classes.
Both predictors classify the same rows, once to compile and once to measure.
"""

import argparse
import csv
import time
from pathlib import Path

import jax
import numpy as np

from deberta_jax.predict.predictor import Predictor
from deberta_jax.predict.runner import WEIGHTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=500)
    options = parser.parse_args()
    with options.file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[: options.rows]
    texts = [row["text"] for row in rows]
    found = {}
    for weights in WEIGHTS:
        predictor = Predictor.load(options.model, weights=weights)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(predictor.params)) / 2**20
        predictor.classify(texts)
        begin = time.perf_counter()
        found[weights] = predictor.classify(texts)
        seconds = time.perf_counter() - begin
        right = [
            answer.label == row["label"] for answer, row in zip(found[weights], rows, strict=True) if "label" in row
        ]
        accuracy = f"  accuracy {100 * np.mean(right):.1f}" if right else ""
        print(f"{weights:8} parameters {size:8.2f} MiB  {len(texts) / seconds:7.1f} texts/s{accuracy}", flush=True)
    pairs = list(zip(*found.values(), strict=True))
    differences = [
        abs(probability - second.probabilities[name])
        for first, second in pairs
        for name, probability in first.probabilities.items()
    ]
    changed = sum(first.label != second.label for first, second in pairs)
    print(
        f"probabilities differ by {max(differences):.4f} at most, {np.mean(differences):.5f} on average; "
        f"{changed} of {len(pairs)} labels change"
    )


if __name__ == "__main__":
    main()
