"""Draws the figures of docs/mathematics.md: `python docs/figures.py`. Needs the extra `train`."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float

from deberta_jax import Deberta, Tokenizer, load_pretrained
from deberta_jax.layers import normalize
from deberta_jax.positions import log_bucket, relative_index

FIGURES = Path(__file__).parent / "figures"
SENTENCE = "the captain opened the door and she went into the house"
LAYER, HEAD = 0, 1
plt.rcParams |= {"svg.hashsalt": "deberta-jax", "font.size": 9}  # the same drawing gives the same file


def main() -> None:
    """Writes both figures."""
    FIGURES.mkdir(exist_ok=True)
    save(draw_buckets(), "buckets.svg")
    save(draw_terms(), "terms.svg")


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FIGURES / name, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def draw_buckets() -> plt.Figure:
    """Draws the row that each distance reads, in v3 and in v1."""
    figure, axes = plt.subplots(figsize=(6.4, 3.0))
    distances = np.arange(-600, 601)
    axes.plot(distances, np.clip(distances, -511, 511), "--", color="0.6", label="a row per distance (v1)")
    axes.plot(distances, log_bucket(distances, buckets=256, reach=512), label="log buckets (v2, v3)")
    axes.set(xlabel="distance i - j, tokens", ylabel="row, counted from distance 0", xlim=(-600, 600))
    axes.axvspan(-128, 128, color="C0", alpha=0.08, lw=0)
    axes.annotate("one row\neach", (0, -420), ha="center", color="C0")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_terms() -> plt.Figure:
    """Draws the terms of one head of deberta-v3-tiny, and the probabilities that come of them."""
    tokenizer = Tokenizer.from_folder("deberta-v3-tiny")
    ids = tokenizer.encode(SENTENCE)
    names = [piece.strip("▁") for piece in tokenizer.pieces(ids)]
    terms = score_terms(np.array([ids]))
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained")
    for place, (title, scores) in zip(axes, terms.items(), strict=True):
        largest = float(np.abs(scores).max())
        colors = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest} if title != "softmax" else {"cmap": "Blues"}
        place.imshow(scores, **colors)
        place.set_title(title)
        place.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        place.set_yticks(range(len(names)), names if place is axes[0] else [], fontsize=7)
    axes[0].set_ylabel("query")
    return figure


def score_terms(ids: np.ndarray) -> dict[str, Float[jax.Array, "S S"]]:
    """Returns c2c, c2p and p2c of one head, each divided by sqrt(3 H), and the softmax of their sum.

    Raises AssertionError if that is not what the model attends to.
    """
    config, params = load_pretrained("deberta-v3-tiny")
    out = Deberta(config).apply({"params": params["deberta"]}, ids, output_hidden_states=True, output_attentions=True)
    encoder = params["deberta"]["encoder"]
    attention = encoder[f"layer_{LAYER}"]["attention"]
    hidden = out.hidden_states[LAYER][0]
    norm = encoder["layer_norm"]
    table = encoder["rel_embeddings"]["embedding"]
    table = normalize(config.layer_norm_eps, jnp.float32, table, norm["scale"], norm["bias"])

    def project(name: str, rows: jax.Array) -> jax.Array:
        weights = attention[name]
        size = config.attention_head_size
        return (rows @ weights["kernel"] + weights["bias"])[:, HEAD * size : (HEAD + 1) * size]

    query, key = project("query_proj", hidden), project("key_proj", hidden)
    positions = np.arange(len(hidden))
    rows = relative_index(positions[:, None] - positions[None, :], config)
    c2p = jnp.take_along_axis(query @ project("key_proj", table).T, rows, axis=1)
    p2c = jnp.take_along_axis(key @ project("query_proj", table).T, rows.T, axis=1).T
    scale = np.sqrt(3 * config.attention_head_size)
    terms = {"c2c": query @ key.T / scale, "c2p": c2p / scale, "p2c": p2c / scale}
    terms["softmax"] = jax.nn.softmax(sum(terms.values()), axis=-1)
    np.testing.assert_allclose(terms["softmax"], out.attentions[LAYER][0, HEAD], atol=1e-5)
    return terms


if __name__ == "__main__":
    main()
