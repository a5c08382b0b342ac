"""Entities with their characters: alone, and equal to the pipeline of transformers."""

import copy
import itertools
import re

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.models import DebertaForTokenClassification

from ...support.pipelines import ODD, open_both, real_questions
from ...support.span_predictor import TAGS, predictor_of, tagger, xlnet_predictor_of
from ...support.tokenizer_texts import corpus, real_folder

TEXT = "Emma Woodhouse, handsome,  clever"


def test_characters_and_words_are_those_of_the_item():
    model = tagger()
    words = ("Emma", "Woodhouse,", "handsome")
    of_text, of_words, empty, no_words = model.entities([TEXT, list(words), " ", []], ignore=())
    assert empty == no_words == []
    assert [entity.text for entity in of_text] == [TEXT[entity.start : entity.end] for entity in of_text]
    assert "".join(entity.text for entity in of_text).replace(" ", "") == TEXT.replace(" ", "")
    assert {entity.word_start for entity in of_text} == {None}
    for entity in of_words:
        assert entity.text == " ".join(words)[entity.start : entity.end]
        assert entity.text == " ".join(words[entity.word_start : entity.word_end])
    assert of_words[0].word_start == 0
    assert of_words[-1].word_end == 3


def test_tokens_are_returned_once_with_their_tags():
    model = tagger()
    tokens = model.entities([TEXT], aggregation="none", ignore=())[0]
    windows = model.entities([TEXT], aggregation="none", ignore=(), max_length=8, stride=2)[0]
    assert [(token.start, token.end) for token in tokens] == [(token.start, token.end) for token in windows]
    assert {token.label for token in tokens} <= set(TAGS)
    kept = model.entities([TEXT], aggregation="none", ignore=("O", tokens[0].label))[0]
    assert tokens[0].label not in {token.label for token in kept}


def test_any_white_space_separates_words():
    model = tagger()
    spaces = model.entities(["Emma was happy and clever"], ignore=())
    for mark in ("\n", "\t", "\u00a0", "\u3000"):
        assert [
            (entity.label, entity.start, entity.end)
            for entity in model.entities([f"Emma{mark}was happy and{mark}clever"], ignore=())[0]
        ] == [(entity.label, entity.start, entity.end) for entity in spaces[0]]


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        (["a", 5], {}, "text 1: the item is a int, 5; give a text, or a tuple of words"),
        ([["a", ""]], {}, "word 1 is '', which is empty; remove it"),
        ([["a", 4]], {}, "word 1 is a int, 4"),
        (["a\ud800"], {}, "the text has half of a surrogate pair"),
        ("a text", {}, "texts_or_words is a str; give a string, a list of strings"),
        (["a"], {"aggregation": "last"}, "aggregation is 'last'; it must be one of none, simple, first"),
        (["a"], {"max_length": 2}, "max_length is 2; it must be at least 3"),
        (["a"], {"stride": 0}, "stride is 0; it must be at least 1"),
    ],
)
def test_bad_items_and_settings_are_one_line(items, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        tagger().entities(items, **options)


def test_bytes_of_one_character_are_one_word():
    """Otherwise entities overlap, and whoever cuts them out of the text damages it."""
    model = tagger()
    text = "Ünal 日本 lives"
    assert any(piece.startswith("<0x") for piece in model.tokenizer.pieces(model.tokenizer.encode(text)))
    for aggregation in ("first", "average", "max"):
        found = model.entities([text], aggregation=aggregation, ignore=())[0]
        assert all(before.end <= after.start for before, after in itertools.pairwise(found))


def test_xlnet_labels_the_tokens_of_the_text():
    """Its rows begin with the text, without [CLS]."""
    model = xlnet_predictor_of(DebertaForTokenClassification, len(TAGS))
    text = "Emma was clever, and rich."
    encoding = model.tokenizer(text, return_offsets=True)
    logits = DebertaForTokenClassification(model.config).apply(
        {"params": model.params}, np.array([encoding.input_ids]), token_type_ids=np.array([encoding.token_type_ids])
    )
    best = [TAGS[index] for index in np.asarray(logits.logits[0]).argmax(axis=1)]
    places = zip(best, encoding.offsets, strict=True)
    expected = [(tag, *place) for tag, place in places if place is not None and text[slice(*place)].strip()]
    found = model.entities([text], aggregation="none", ignore=())[0]
    assert [entity.label for entity in found] == [tag for tag, _, _ in expected]
    assert [entity.end for entity in found] == [end for _, _, end in expected]


def test_a_model_of_texts_is_refused():
    with pytest.raises(UserError, match=r"has a classifier of texts, not of tokens.* --kind tokens"):
        predictor_of("pooler", "classifier").entities(["a"])


# -------------------------------------------------------------------------------------------------- transformers

AGGREGATIONS = ("none", "simple", "first", "average", "max")
TAGS_9 = ("O", *[f"{prefix}-{kind}" for kind in ("PER", "LOC", "ORG", "MISC") for prefix in "BI"])
SPACES = str.maketrans(dict.fromkeys("\n\r\t\u00a0\u3000", " "))  # transformers separates words at spaces only


class Reference:
    """The pipeline of transformers. Its stages run one by one, so that the model runs once for all aggregations."""

    def __init__(self, model, folder):
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=512)
        self.pipe = transformers.pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")

    def run(self, text, *, stride=None, max_length=512):
        """Returns the outputs of the model for a text or, given as a list, for words."""
        self.pipe.tokenizer.model_max_length = max_length
        options = {"is_split_into_words": isinstance(text, list), "delimiter": " "}
        if stride is not None:
            windows = {"return_overflowing_tokens": True, "padding": True, "stride": stride}
            options["tokenizer_params"] = windows
        return [self.pipe.forward(inputs) for inputs in self.pipe.preprocess(text, **options)]

    def run_encoding(self, text, encoding):
        """Returns the outputs of the model for ids and offsets of our tokenizer."""
        import torch

        ids = torch.tensor([encoding.input_ids])
        with torch.no_grad():
            logits = self.pipe.model(ids).logits
        offsets = [[offset or (0, 0) for offset in encoding.offsets]]
        is_special = torch.tensor([[offset is None for offset in encoding.offsets]])
        output = {"logits": logits, "input_ids": ids, "sentence": text, "offset_mapping": offsets}
        return [output | {"special_tokens_mask": is_special}]

    def entities(self, outputs, text, aggregation):
        """Returns label, start, end and score of entities, without white space around them."""
        from transformers.pipelines.token_classification import AggregationStrategy

        found = []
        outputs = copy.deepcopy(outputs)  # transformers moves the offsets of words in place
        for entity in self.pipe.postprocess(outputs, AggregationStrategy(aggregation)):
            part = text[entity["start"] : entity["end"]]
            start = entity["start"] + len(part) - len(part.lstrip())
            if part.strip():
                label = entity.get("entity_group", entity.get("entity"))
                found.append((label, start, start + len(part.strip()), float(entity["score"])))
        return found


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Our model and transformers' pipeline of the same weights, with the published tokenizer of DeBERTa-v3."""
    names = dict(enumerate(TAGS_9))
    fields = {"vocab_size": 128_100, "id2label": names, "label2id": {name: number for number, name in names.items()}}
    folder = tmp_path_factory.mktemp("real")
    model, ours = open_both(folder, "ForTokenClassification", real_folder("deberta-v3"), **fields)
    return ours, Reference(model, folder)


def compare(ours, expected):
    """Asserts that entities are equal, and returns how many there are."""
    assert [(entity.label, entity.start, entity.end) for entity in ours] == [found[:3] for found in expected]
    np.testing.assert_allclose([entity.score for entity in ours], [found[3] for found in expected], atol=1e-4)
    return len(ours)


def is_decided(outputs):
    """Returns whether each token's best label is ahead of its next by more than rounding, which no program repeats."""
    probabilities = [output["logits"].softmax(-1) for output in outputs]
    best = [values.topk(2, -1).values for values in probabilities]
    return all(bool((two[..., 0] - two[..., 1] > 1e-5).all()) for two in best)


def contexts(ours, reference):
    """Returns the real paragraphs that transformers tokenizes as we do: all but two or, in version 4, one."""
    paragraphs = list(dict.fromkeys(context for _, context in real_questions()))
    encode = reference.pipe.tokenizer
    same = [text for text in paragraphs if encode(text)["input_ids"] == ours.tokenizer(text).input_ids]
    assert len(same) >= len(paragraphs) - 2
    return same


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_texts_equal_the_pipeline_of_transformers(real):
    ours, reference = real
    paragraphs = contexts(ours, reference)
    sentences = [sentence for text in paragraphs for sentence in re.split(r"(?<=[.!?]) ", text)]
    texts = [*sentences[:170], *[text for text in paragraphs if len(text) < 1800][-30:]]
    outputs = [reference.run(text) for text in texts]
    decided = [is_decided(windows) for windows in outputs]
    assert sum(decided) >= len(texts) - 4
    texts = list(itertools.compress(texts, decided))
    outputs = list(itertools.compress(outputs, decided))
    for aggregation in AGGREGATIONS:
        found = ours.entities(texts, aggregation=aggregation)
        expected = [reference.entities(*pair, aggregation) for pair in zip(outputs, texts, strict=True)]
        assert sum(map(compare, found, expected)) > 1000


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("aggregation", "overlap"), [("first", 16), ("simple", 31), ("average", 5), ("max", 40)])
def test_windows_over_long_texts_are_joined_as_in_transformers(real, aggregation, overlap):
    ours, reference = real
    paragraphs = contexts(ours, reference)
    texts = [*paragraphs[:25], " ".join(paragraphs[:8])]
    found = ours.entities(texts, aggregation=aggregation, max_length=64, stride=62 - overlap)
    for entities, text in zip(found, texts, strict=True):
        expected = reference.entities(reference.run(text, stride=overlap, max_length=64), text, aggregation)
        assert compare(entities, expected) > 0


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_texts_equal_the_rules_of_transformers(real):
    """Compares on our tokens, because those of transformers have [UNK] for emoji and other characters.

    Characters that are spelled in bytes are left out if words matter: by the rules of transformers, which has no such
    bytes, each of them would be a word.
    """
    ours, reference = real
    encodings = [ours.tokenizer(text, return_offsets=True) for text in ODD]
    spelled = [has_bytes(encoding.offsets) for encoding in encodings]
    assert sum(spelled) < len(ODD) / 2
    for aggregation in AGGREGATIONS:
        by_words = aggregation in ("first", "average", "max")
        found = ours.entities(ODD, aggregation=aggregation)
        for text, encoding, entities, in_bytes in zip(ODD, encodings, found, spelled, strict=True):
            if in_bytes and by_words:
                continue
            spaced = text.translate(SPACES)
            outputs = reference.run_encoding(spaced, encoding)
            compare(entities, reference.entities(outputs, spaced, aggregation))


def has_bytes(offsets):
    """Returns whether two tokens have the same character."""
    places = [offset for offset in offsets if offset is not None]
    return any(after[0] < before[1] for before, after in itertools.pairwise(places))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_words_equal_those_of_transformers(real):
    ours, reference = real
    sentences = [text.split() for text in contexts(ours, reference)[100:140] if len(text) < 1500]
    outputs = [reference.run(words) for words in sentences]
    for aggregation in AGGREGATIONS:
        found = ours.entities(sentences, aggregation=aggregation)
        for entities, output, words in zip(found, outputs, sentences, strict=True):
            compare(entities, reference.entities(output, " ".join(words), aggregation))
            for entity in entities:
                joined = " ".join(words[entity.word_start : entity.word_end])
                assert entity.text in joined


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_small_tokenizer_equals_the_rules_of_transformers(tmp_path, novel):
    """Compares on our tokens, because transformers gives the characters of a first "▁" that the text does not have."""
    names = dict(enumerate(TAGS_9))
    fields = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    model, ours = open_both(tmp_path, "ForTokenClassification", novel / "tokenizer", **fields)
    reference = Reference(model, tmp_path)
    texts = [line for line in corpus(20_000) if 30 < len(line) < 600][:30]
    for aggregation in ("first", "max"):
        for text, entities in zip(texts, ours.entities(texts, aggregation=aggregation), strict=True):
            outputs = reference.run_encoding(text, ours.tokenizer(text, return_offsets=True))
            compare(entities, reference.entities(outputs, text, aggregation))
