"""Small models of transformers with random weights, opened by our `Predictor`, and texts to run both on."""

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deberta_jax.predict.predictor import Predictor

from .tokenizer_texts import TRICKY, real_folder

SIZES = {"max_position_embeddings": 512, "position_buckets": 32}
ODD = [
    *[text for text in TRICKY if text.strip()],
    "Ærøskøbing  and   São Tomé,\tnear\r\nÅland; e\u0301t\u00e9 (2024).",
    "東京都庁 is in 新宿区, not in 大阪。「日本」",
    "قال محمد إنه يعيش في القاهرة منذ ٢٠٢٤.",
    "😀😀 👩‍👩‍👧 flew 🇩🇪 to\nBerlin\n\nyesterday",
    "control\x07 char\u200bacters \x1b[31mred\ufeff",
    "x" * 300,
    " . ".join("ABCDEFG"),
]


def open_both(folder: Path, suffix: str, tokenizer: Path, **fields: Any) -> tuple[Any, Predictor]:
    """Returns a model of transformers and the same model opened by us from the folder that it was saved in.

    Args:
      folder: where to write.
      suffix: end of the name of the class, such as "ForTokenClassification".
      tokenizer: a folder with the spm.model.
      **fields: further fields of the configuration.
    """
    import torch

    from .hub_folders import model

    torch.set_num_threads(1)
    built = model(suffix, **SIZES, **fields)
    built.save_pretrained(folder)
    shutil.copyfile(tokenizer / "spm.model", folder / "spm.model")
    (folder / "tokenizer_config.json").write_text('{"vocab_type": "spm", "tokenizer_class": "DebertaV2Tokenizer"}')
    return built, Predictor.load(str(folder))


@functools.cache
def real_questions() -> Sequence[tuple[str, str]]:
    """Returns the questions of XQuAD's English file with their contexts, or skips the test."""
    file = real_folder("xquad") / "xquad.en.json"
    articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    return [(asked["question"], paragraph["context"]) for paragraph in paragraphs for asked in paragraph["qas"]]
