"""Live parity with the pipelines of transformers and with sentence-transformers: same weights, 200 real texts each.

transformers' tokenizer of v2 and v3 turns some text into [UNK] that the models saw as pieces (emoji, "ﬁ", full-width
letters). Such texts, a few of the 200, are given to its pipelines as the ids of our tokenizer.
"""

import dataclasses
import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deberta_jax import Predictor
from deberta_jax.predict.pipeline import TextPair

from ...support.real_texts import real_texts, real_tokenizer

torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
pytestmark = pytest.mark.torch

COUNT = 200
torch.set_num_threads(1)  # the models are too small for more
# Beyond 512 tokens transformers reads another row of the relative table than the official code, which clamps distances
# first. So long texts are cut here, and `test_windows` reads them in windows.
CUT: dict[str, Any] = {"max_length": 512, "windows": "truncate"}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "pos_att_type": "c2p|p2c",
    "position_biased_input": False,
    "position_buckets": 64,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
    "pad_token_id": 0,
}


class Reference:
    """A random model of transformers in a folder, and the predictor of that folder."""

    def __init__(self, folder: Path, tokenizer: Path, suffix: str, **options: Any) -> None:
        torch.manual_seed(0)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer)
        size = -(-len(self.tokenizer) // 100) * 100
        config = transformers.DebertaV2Config(vocab_size=size, **(SMALL | options))
        self.model = getattr(transformers, f"DebertaV2{suffix}")(config).eval()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.normal_(float("LayerNorm.weight" in name), 0.2)
        self.model.save_pretrained(folder)
        self.folder = folder
        self.predictor = Predictor.load(str(folder), tokenizer=tokenizer, batch_size=16)
        self.predictor.tokenizer.save(folder)

    def pipeline(self, task: str, **options: Any) -> Any:
        return transformers.pipeline(task, model=self.model, tokenizer=self.tokenizer, device="cpu", **options)

    def inputs(self, text: str, pair: str | None = None, *, parse_mask: bool = False) -> dict[str, Any]:
        """Returns what transformers' tokenizer returns, or the ids of ours where they differ."""
        ids = self.predictor.tokenizer(text, pair, parse_mask=parse_mask, max_length=512).input_ids
        theirs = self.tokenizer(text, pair, truncation=True, max_length=512)["input_ids"]
        self.equal = getattr(self, "equal", 0) + (ids == theirs)
        tensor = torch.tensor([ids])
        return {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}


@pytest.fixture(scope="module")
def make_reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tokenizer = real_tokenizer(tmp_path_factory.mktemp("tokenizer"))

    @functools.cache
    def make(suffix: str, **options: Any) -> Reference:
        return Reference(tmp_path_factory.mktemp("model"), tokenizer, suffix, **options)

    return make


@functools.cache
def texts() -> list[str]:
    return real_texts(COUNT)


def pairs() -> list[tuple[str, str]]:
    """Texts with another as the second: all lengths meet."""
    return [(text, texts()[(7 * i + 3) % COUNT][:600]) for i, text in enumerate(texts())]


def assert_same_ids_mostly(reference: Reference) -> None:
    """Asserts that transformers' own tokenizer gave the same ids for most texts."""
    assert reference.equal > 0.85 * COUNT


@pytest.mark.parametrize(
    ("problem", "classes"),
    [(None, 3), ("single_label_classification", 2), ("multi_label_classification", 4), (None, 1)],
)
def test_classes_and_probabilities_of_texts(make_reference: Any, problem: str | None, classes: int) -> None:
    reference = make_reference("ForSequenceClassification", problem_type=problem, num_labels=classes)
    pipe = reference.pipeline("text-classification")
    results = reference.predictor.classify(texts(), **CUT)
    for text, result in zip(texts(), results, strict=True):
        expected = pipe.postprocess(pipe.forward(reference.inputs(text)), top_k=None, _legacy=False)
        compare(result, {entry["label"]: entry["score"] for entry in expected})
    assert_same_ids_mostly(reference)
    # The whole pipeline, on texts that both tokenizers read alike.
    for text, result in zip(texts()[:60], results, strict=False):
        if text.strip() and is_read_alike(reference, text, max_length=512):
            top = pipe(text)[0]
            assert top["label"] == result.label
            assert top["score"] == pytest.approx(result.probability, abs=1e-4)


def compare(result: Any, expected: dict[str, float]) -> None:
    """Compares labels, their order and probabilities."""
    assert result.windows == 1
    assert result.label == max(expected, key=lambda label: expected[label])
    assert result.probabilities.keys() == expected.keys()
    np.testing.assert_allclose([result.probabilities[label] for label in expected], list(expected.values()), atol=1e-4)
    values = list(result.probabilities.values())
    assert values == sorted(values, reverse=True)


def test_pairs(make_reference: Any) -> None:
    reference = make_reference("ForSequenceClassification", num_labels=3)
    pipe = reference.pipeline("text-classification")
    results = reference.predictor.classify(pairs(), **CUT)
    for (text, pair), result in zip(pairs(), results, strict=True):
        expected = pipe.postprocess(pipe.forward(reference.inputs(text, pair)), top_k=None, _legacy=False)
        compare(result, {entry["label"]: entry["score"] for entry in expected})
    (text, pair), result = pairs()[5], results[5]
    assert pipe({"text": text, "text_pair": pair})["label"] == result.label


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("names", [("entailment", "neutral", "contradiction"), ("contradiction", "ENTAILMENT")])
def test_zero_shot_classification(make_reference: Any, names: tuple[str, ...], multi_label: bool) -> None:
    reference = make_reference("ForSequenceClassification", num_labels=len(names))
    reference.model.config.id2label = dict(enumerate(names))
    reference.model.config.label2id = {name: i for i, name in enumerate(names)}
    predictor = dataclasses.replace(reference.predictor, config=reference.predictor.config.replace(label_names=names))
    labels, template = ("politics", "the sea", "love and marriage"), "This text is about {}."
    pipe = reference.pipeline("zero-shot-classification")
    results = predictor.zero_shot(texts(), labels, template=template, multi_label=multi_label, **CUT)
    for text, result in zip(texts(), results, strict=True):
        outputs = [
            pipe.forward(
                {"candidate_label": label, "sequence": text, "is_last": label == labels[-1]}
                | reference.inputs(text, template.format(label))
                | {"token_type_ids": None}
            )
            for label in labels
        ]
        expected = pipe.postprocess(outputs, multi_label=multi_label)
        compare(result, dict(zip(expected["labels"], expected["scores"], strict=True)))
    plain = [text for text in texts() if len(text) > 20 and is_read_alike(reference, text, max_length=400)][:10]
    for text, result in zip(plain, predictor.zero_shot(plain, labels, multi_label=multi_label), strict=True):
        expected = pipe(text, list(labels), multi_label=multi_label)
        compare(result, dict(zip(expected["labels"], expected["scores"], strict=True)))


@pytest.mark.parametrize("legacy", [False, True])
def test_masked_tokens(make_reference: Any, legacy: bool) -> None:
    reference = make_reference("ForMaskedLM", legacy=legacy)
    pipe = reference.pipeline("fill-mask")
    # transformers computes logits of every token, so most texts are short.
    masked = [_with_mask(text[: 1500 if i % 10 == 0 else 200], i) for i, text in enumerate(texts())]
    results = reference.predictor.fill_mask(masked, top_k=5)
    vocabulary = reference.predictor.tokenizer.vocab_size  # the table has spare rows, which are no tokens
    for text, masks in zip(masked, results, strict=True):
        output = pipe.forward(reference.inputs(text, parse_mask=True))
        output["logits"] = output["logits"][..., :vocabulary]
        expected = pipe.postprocess(output, top_k=8)
        by_mask = [expected] if len(masks) == 1 else expected
        assert len(by_mask) == len(masks) == text.count("[MASK]")
        for candidates, theirs in zip(masks, by_mask, strict=True):
            probability = {entry["token"]: entry["score"] for entry in theirs}
            scores = [candidate.probability for candidate in candidates]
            np.testing.assert_allclose(scores, list(probability.values())[:5], rtol=1e-3)
            # Nearly equal probabilities may change places.
            np.testing.assert_allclose(scores, [probability[candidate.id] for candidate in candidates], rtol=1e-3)


def _with_mask(text: str, number: int) -> str:
    """Replaces a word, in some texts several words, by [MASK]."""
    words = text.split(" ")
    for place in range(1 if number % 3 else 3):
        words[(number + 5 * place) % len(words)] = "[MASK]"
    return " ".join(words)


@pytest.mark.parametrize("activation", ["Sigmoid", "Identity"])
def test_cross_encoder(make_reference: Any, activation: str) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="it is the reference of rerankers")
    reference = make_reference("ForSequenceClassification", num_labels=1)
    encoder = sentence_transformers.CrossEncoder(str(reference.folder), max_length=129, device="cpu")
    function = getattr(torch.nn, activation)()
    # 126 tokens beside the special ones: of an odd number the tokenizers give the last to different texts of a pair.
    plain = [pair for pair in pairs() if all(is_read_alike(reference, text) for text in pair)]
    assert len(plain) > 0.6 * COUNT
    options: Any = {"raw": activation == "Identity", "max_length": 129, "windows": "truncate"}
    scores = reference.predictor.score(plain, **options)
    expected = encoder.predict(plain, activation_fn=function, batch_size=16, show_progress_bar=False)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    query, documents = plain[3][0], [text for _, text in plain]
    ranked = reference.predictor.rank(query, documents, **options)
    theirs = encoder.rank(query, documents, activation_fn=function, show_progress_bar=False)
    np.testing.assert_allclose([entry.score for entry in ranked], [entry["score"] for entry in theirs], atol=1e-4)
    by_index = {entry["corpus_id"]: entry["score"] for entry in theirs}
    np.testing.assert_allclose([entry.score for entry in ranked], [by_index[e.index] for e in ranked], atol=1e-4)


def is_read_alike(reference: Reference, text: str, *, max_length: int | None = None) -> bool:
    """Returns whether both tokenizers give the same ids, and at most `max_length` of them."""
    ids = reference.predictor.tokenizer(text).input_ids
    return reference.tokenizer(text)["input_ids"] == ids and (max_length is None or len(ids) <= max_length)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_sentence_vectors(make_reference: Any, pooling: str) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="it is the reference of embeddings")
    reference = make_reference("Model")
    parts = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    words = parts.Transformer(str(reference.folder), max_seq_length=512)
    pool = parts.Pooling(SMALL["hidden_size"], pooling_mode=pooling)
    encoder = sentence_transformers.SentenceTransformer(modules=[words, pool, parts.Normalize()], device="cpu")
    plain = [text for text in texts() if is_read_alike(reference, text)]
    expected = encoder.encode(plain, batch_size=8)
    np.testing.assert_allclose(reference.predictor.embed(plain, pooling=pooling, **CUT), expected, atol=1e-4)


def test_regression_gives_the_logit(make_reference: Any) -> None:
    reference = make_reference("ForSequenceClassification", num_labels=1, problem_type="regression")
    pipe = reference.pipeline("text-classification")
    scores = list(reference.predictor.score([TextPair(text).text for text in texts()], **CUT))
    for text, score in zip(texts(), scores, strict=True):
        expected = pipe.postprocess(pipe.forward(reference.inputs(text)))
        assert score == pytest.approx(expected["score"], abs=1e-4, rel=1e-5)
