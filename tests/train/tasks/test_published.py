"""Published sets: the table against tensorflow_datasets, and both ways of reading them from small files."""

import contextlib
import dataclasses
import hashlib
import io
import json
import tarfile
import zipfile
from unittest import mock

import numpy as np
import pytest
from sklearn.metrics import f1_score

from deberta_jax.train.tasks.choices.questions import Question
from deberta_jax.train.tasks.classification.grouped_metrics import answer_scores, exact_match
from deberta_jax.train.tasks.classification.task import Example, load_examples
from deberta_jax.train.tasks.loading import load_task
from deberta_jax.train.tasks.sources.published import PUBLISHED
from deberta_jax.train.tasks.sources.published_formats import as_it_is
from deberta_jax.train.tasks.sources.source import Source
from deberta_jax.train.tasks.sources.tfds_builder import _do_without_tensorflow
from deberta_jax.train.tasks.tokens.sentences import Sentence

from ...support.configs import finetune_config
from ...support.letters import Letters


def lines(*rows):
    return "\n".join(map(json.dumps, rows)) + "\n"


BOOLQ = {"question": "is it", "passage": "It is.", "idx": 0, "label": True}
COPA = {
    "premise": "It rained.",
    "choice1": "I got wet.",
    "choice2": "I ate.",
    "question": "effect",
    "idx": 0,
    "label": 0,
}
COPA_CAUSE = {**COPA, "question": "cause", "choice1": "I ate.", "choice2": "Clouds came.", "idx": 1, "label": 1}
WIC = {
    "word": "bank",
    "sentence1": "By the banks.",
    "sentence2": "A bank, a bank.",
    **{"start1": 7, "end1": 12, "start2": 2, "end2": 6, "idx": 0, "label": False},
}
MULTIRC = {
    "idx": 3,
    "passage": {
        "text": "A text.",
        "questions": [
            {
                "question": "Who ?",
                "idx": 7,
                "answers": [{"text": "he", "idx": 1, "label": 1}, {"text": "she", "idx": 2, "label": 0}],
            }
        ],
    },
}
RECORD = {
    "idx": 5,
    "passage": {
        "text": "Paris and the Rhine in France.",
        "entities": [{"start": 0, "end": 4}, {"start": 10, "end": 18}, {"start": 23, "end": 28}],
    },
    "qas": [
        {"idx": 9, "query": "A river, @placeholder, flows", "answers": [{"start": 10, "end": 18, "text": "the Rhine"}]}
    ],
}
RACE = {"id": "high1.txt", "article": "A b.", "questions": ["Q1 ?", "It is _ ."], "answers": ["B", "A"]}
RACE["options"] = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
ANLI = {"uid": "u", "context": "a", "hypothesis": "b", "label": "c"}
LANGUAGES = [name.partition("/")[2] for name in PUBLISHED if name.startswith("xnli/")]
XNLI = "language\tgold_label\tsentence1\tsentence2\tpairID\n" + "".join(
    f"{language}\t{label}\tp {language}\th {language}\t{pair}\n"
    for pair, label in enumerate(("entailment", "neutral"))
    for language in LANGUAGES
)
CONLL = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nruns VBZ B-VP O\n\nParis NNP B-NP B-LOC\n\n"


def hidden(row):
    return {name: value for name, value in row.items() if name != "label"}


def super_glue(folder, *rows, test):
    return {f"{folder}/{name}.jsonl": lines(*rows) for name in ("train", "val")} | {f"{folder}/test.jsonl": lines(test)}


MULTIRC_TEST = json.loads(json.dumps(MULTIRC))
for answer in MULTIRC_TEST["passage"]["questions"][0]["answers"]:
    del answer["label"]

RECORD_TEST = {**RECORD, "qas": [{name: RECORD["qas"][0][name] for name in ("idx", "query")}]}

ARCHIVES = {
    "ReCoRD.zip": super_glue("ReCoRD", RECORD, test=RECORD_TEST),
    "BoolQ.zip": super_glue("BoolQ", BOOLQ, {**BOOLQ, "idx": 1, "label": False}, test=hidden(BOOLQ)),
    "COPA.zip": super_glue("COPA", COPA, COPA_CAUSE, test=hidden(COPA)),
    "WiC.zip": super_glue("WiC", WIC, {**WIC, "idx": 1, "label": True}, test=hidden(WIC)),
    "MultiRC.zip": super_glue("MultiRC", MULTIRC, test=MULTIRC_TEST),
    "anli_v0.1.zip": {
        f"anli_v0.1/R1/{name}.jsonl": lines(ANLI, {**ANLI, "uid": "v", "label": "e"})
        for name in ("train", "dev", "test")
    },
    "XNLI-1.0.zip": {"XNLI-1.0/xnli.dev.tsv": XNLI, "XNLI-1.0/xnli.test.tsv": XNLI},
    "conll2003.zip": {"train.txt": CONLL, "valid.txt": CONLL, "test.txt": CONLL},
    "RACE.tar.gz": {
        f"RACE/{split}/{level}/1.txt": json.dumps({**RACE, "article": f"{level} {split}"})
        for split in ("train", "dev", "test")
        for level in ("high", "middle")
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of small archives in the published layout, and one to prepare sets in."""
    manual = tmp_path_factory.mktemp("manual")
    for name, members in ARCHIVES.items():
        if name.endswith(".zip"):
            with zipfile.ZipFile(manual / name, "w") as archive:
                for member, content in members.items():
                    archive.writestr(member, content)
        else:
            with tarfile.open(manual / name, "w:gz") as archive:
                for member, content in members.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(content.encode())
                    archive.addfile(info, io.BytesIO(content.encode()))
    return {"manual_dir": manual, "data_dir": tmp_path_factory.mktemp("data")}


def builder_class(name):
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text

    return tfds.builder_cls(name)


@pytest.fixture
def tfds_of_files(folders):
    """tensorflow_datasets takes the small archives for the published ones."""
    with contextlib.ExitStack() as stack:
        for name in ("super_glue", "anli", "xnli", "race"):
            infos = {
                url: dataclasses.replace(info, size=len(data), checksum=hashlib.sha256(data).hexdigest())
                for url, info in builder_class(name).url_infos.items()
                if info.filename in ARCHIVES
                for data in [(folders["manual_dir"] / info.filename).read_bytes()]
            }
            stack.enter_context(mock.patch.object(builder_class(name), "url_infos", infos))
        yield folders


def load(train, folders, tmp_path, **settings):
    config = finetune_config(output=tmp_path, model=tmp_path, train=train, **folders, **settings)
    return load_task(config, Letters())


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        (tmp_path / name).write_text(content, encoding="utf-8")
        return str(tmp_path / name)

    return write


# -------------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith("glue/")])
def test_the_table_agrees_with_tensorflow_datasets(name, tmp_path):
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text

    _do_without_tensorflow()
    known = PUBLISHED[name]
    for builder_name in Source.parse(f"tfds:{name}").builders:
        builder = tfds.builder(builder_name, data_dir=tmp_path)
        features = dict(builder.info.features.items())
        if known.records is as_it_is:
            columns = [
                one for value in known.columns.values() for one in ([value] if isinstance(value, str) else value)
            ]
            assert set(columns) <= set(features), name
            label = features[str(known.columns["label"])]
        elif name == "super_glue/record":  # its labels are whether an entity is among the answers
            assert {"passage", "query", "entities", "answers", "idx"} <= set(features)
            label = None
        else:
            label = features["label"]
        label = getattr(label, "feature", label)
        if known.label_names and label is not None:
            assert sorted(known.renamed.get(one, one) for one in label.names) == sorted(known.label_names)
        if builder.url_infos:
            assert set(known.files) <= {info.filename for info in builder.url_infos.values()}
        else:
            assert known.unchecked_url


def test_every_set_that_was_asked_for_is_there():
    names = {"super_glue/boolq", "super_glue/cb", "super_glue/copa", "super_glue/multirc", "super_glue/wic"}
    names |= {"super_glue/record", "super_glue/rte"}
    names |= {"race", "race/high", "race/middle", "anli/r1", "anli/r2", "anli/r3", "conll2003"}
    assert names <= set(PUBLISHED)
    assert len(LANGUAGES) == 15


# ---------------------------------------------------------------------------------------------- tensorflow_datasets


def test_boolq(tfds_of_files):
    task = load_examples("tfds:super_glue/boolq", test="tfds:super_glue/boolq", **tfds_of_files)
    assert task.label_names == ("false", "true")
    assert set(task.splits["train"]) == {Example("It is.", "is it", 1), Example("It is.", "is it", 0)}
    assert task.splits["test"] == (Example("It is.", "is it", None),)


def test_copa(tfds_of_files, tmp_path):
    task = load("tfds:super_glue/copa", tfds_of_files, tmp_path, test="tfds:super_glue/copa")
    assert (task.name, task.label_names, task.main_metric) == ("super_glue/copa", (), "accuracy")
    effect = Question("It rained.", "so", ("I got wet.", "I ate."), 0)
    assert set(task.questions["train"]) == {effect, Question("It rained.", "because", ("I ate.", "Clouds came."), 1)}
    assert task.questions["test"] == (dataclasses.replace(effect, label=None),)
    assert set(task.splits) == {"train", "validation", "test"}


def test_multirc_counts_whole_questions(tfds_of_files):
    task = load_examples("tfds:super_glue/multirc", test="tfds:super_glue/multirc", **tfds_of_files)
    expected = {Example("A text.", "Who ? he", 1, "3/7"), Example("A text.", "Who ? she", 0, "3/7")}
    assert set(task.splits["train"]) == expected
    assert task.metrics == ("f1", "exact_match")
    assert {example.label for example in task.splits["test"]} == {None}


RECORD_EXAMPLES = tuple(
    Example(RECORD["passage"]["text"], f"A river, {entity}, flows", label, "5/9", entity)
    for entity, label in (("France", 0), ("Paris", 0), ("the Rhine", 1))
)


def test_record_fills_the_gap(tfds_of_files):
    task = load_examples("tfds:super_glue/record", test="tfds:super_glue/record", **tfds_of_files)
    assert task.splits["train"] == task.splits["validation"] == RECORD_EXAMPLES
    assert (task.label_names, task.metrics) == (("false", "true"), ("answer_f1", "answer_exact_match"))
    assert task.splits["test"] == tuple(dataclasses.replace(example, label=None) for example in RECORD_EXAMPLES)


def test_wic_marks_the_word(tfds_of_files):
    task = load_examples("tfds:super_glue/wic", **tfds_of_files)
    texts = ('bank: By the "banks".', 'bank: A "bank", a bank.')
    assert set(task.splits["train"]) == {Example(*texts, 0), Example(*texts, 1)}


def test_anli_is_in_the_official_order(tfds_of_files):
    task = load_examples("tfds:anli/r1", test="tfds:anli/r1", **tfds_of_files)
    assert task.label_names == ("contradiction", "neutral", "entailment")
    for split in ("train", "validation", "test"):
        assert set(task.splits[split]) == {Example("a", "b", 0), Example("a", "b", 2)}


def test_a_language_of_xnli(tfds_of_files, write):
    train = write("a.tsv", "text\tpair\tlabel\na\tb\tneutral\na\tb\tentailment\n")
    xnli = {"validation": "tfds:xnli/de", "test": "tfds:xnli/zh"}
    task = load_examples(train, **xnli, pair_column="pair", **tfds_of_files)
    assert set(task.splits["validation"]) == {Example("p de", "h de", 0), Example("p de", "h de", 1)}
    assert {example.text for example in task.splits["test"]} == {"p zh"}
    with pytest.raises(ValueError, match=r"'tfds:xnli' is not known; there are tfds:xnli/ar, tfds:xnli/bg"):
        load_examples("tfds:xnli", **tfds_of_files)
    with pytest.raises(ValueError, match=r"tfds:xnli/de has no split 'train'; there are .*validation"):
        load_examples("tfds:xnli/de", **tfds_of_files)


def test_race_high_middle_and_both(tfds_of_files, tmp_path):
    task = load("tfds:race/high", tfds_of_files, tmp_path, test="tfds:race/high")
    options = ("a", "b", "c", "d")
    first = Question("high train", "Q1 ?", options, 1)
    assert task.questions["train"] == (first, Question("high train", "It is _ .", ("e", "f", "g", "h"), 0))
    assert task.questions["validation"][0].context == "high dev"
    assert task.questions["test"][0].context == "high test"
    both = load("tfds:race", tfds_of_files, tmp_path)
    assert {question.context for question in both.questions["train"]} == {"high train", "middle train"}
    assert len(both.questions["train"]) == 4


def test_conll2003(tfds_of_files, tmp_path):
    """Its archive has no checksum in tensorflow_datasets; put into the folder by hand, it is taken all the same."""
    task = load("tfds:conll2003", tfds_of_files, tmp_path, test="tfds:conll2003")
    assert task.label_names == ("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
    assert task.sentences["train"][:2] == (Sentence(("EU", "runs"), (5, 0)), Sentence(("Paris",), (7,)))
    assert set(task.sentences) == {"train", "validation", "test"}
    # A file that ends in an empty line has an empty sentence at its end, of tensorflow_datasets' making.
    assert task.sentences["train"][2:] == (Sentence((), ()),)
    assert task.splits["train"].notes == ("1 empty sentences",)


def test_the_kind_of_a_set_is_known(tfds_of_files, tmp_path):
    with pytest.raises(ValueError, match=r"super_glue/copa is a task of kind 'choice'; leave kind out"):
        load("tfds:super_glue/copa", tfds_of_files, tmp_path, kind="classification")
    with pytest.raises(ValueError, match=r"super_glue/copa is a set of kind 'choice', which does not go with kind 'cl"):
        load_examples("tfds:super_glue/boolq", validation="tfds:super_glue/copa", **tfds_of_files)


# -------------------------------------------------------------------------------------------------- published files


def test_published_files_by_name(write, tmp_path):
    boolq = load_examples("super_glue/boolq:" + write("boolq.jsonl", lines(BOOLQ, {**BOOLQ, "label": False})))
    assert boolq.splits["train"] == (Example("It is.", "is it", 1), Example("It is.", "is it", 0))
    assert (boolq.name, boolq.label_names) == ("super_glue/boolq", ("false", "true"))
    multirc = load_examples("super_glue/multirc:" + write("multirc.jsonl", lines(MULTIRC)))
    assert multirc.splits["train"][0] == Example("A text.", "Who ? he", 1, "3/7")
    record = load_examples("super_glue/record:" + write("record.jsonl", lines(RECORD)))
    assert record.splits["train"] == RECORD_EXAMPLES
    wic = load_examples("super_glue/wic:" + write("wic.jsonl", lines(WIC, {**WIC, "label": True})))
    assert wic.splits["train"][0] == Example('bank: By the "banks".', 'bank: A "bank", a bank.', 0)
    anli = load_examples("anli/r1:" + write("anli.jsonl", lines(ANLI, {**ANLI, "label": "n"})))
    assert [example.label for example in anli.splits["train"]] == [0, 1]
    xnli = load_examples("xnli/de:" + write("xnli.dev.tsv", XNLI))
    assert xnli.splits["train"] == (Example("p de", "h de", 2), Example("p de", "h de", 1))
    copa = load("super_glue/copa:" + write("copa.jsonl", lines(COPA, COPA_CAUSE)), {}, tmp_path)
    assert copa.questions["train"][1] == Question("It rained.", "because", ("I ate.", "Clouds came."), 1)
    race = load("race/high:" + write("race.jsonl", lines(RACE)), {}, tmp_path)
    assert [question.label for question in race.questions["train"]] == [1, 0]
    conll = load("conll2003:" + write("train.txt", CONLL), {}, tmp_path)
    assert conll.sentences["train"] == (Sentence(("EU", "runs"), (5, 0)), Sentence(("Paris",), (7,)))
    assert conll.splits["train"].notes == ("1 -DOCSTART- lines skipped in train.txt",)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        (
            "super_glue/copa",
            [{**COPA, "question": "why"}],
            r"line 1: column 'question' holds 'why'; it must be cause or",
        ),
        ("super_glue/record", [{**RECORD, "qas": [{"idx": 1, "query": "Who ?"}]}], r"line 1: .* has no @placeholder"),
        ("super_glue/copa", [{"premise": "a"}], r"line 1: no column 'question'; the columns are 'premise'"),
        ("super_glue/copa", [{**COPA, "premise": 3}], r"line 1: column 'premise' holds 3, not text"),
        ("super_glue/wic", [{**WIC, "end1": 99}], r"line 1: characters 7 to 99 are not in sentence1, which has 13"),
        ("super_glue/multirc", [{"idx": 1, "passage": {"text": "a"}}], r"line 1: no column 'questions'"),
        (
            "super_glue/multirc",
            [{"idx": 1, "passage": "a"}],
            r"line 1: column 'passage' holds 'a', not an object",
        ),
        (
            "super_glue/multirc",
            [{"idx": 1, "passage": {"text": "a", "questions": ["b"]}}],
            r"line 1: column 'questions' holds 'b', not an object",
        ),
        (
            "anli/r1",
            [ANLI, {**ANLI, "label": "x"}],
            r"has only one|label 'x' is not a class of training: contradiction",
        ),
    ],
)
def test_published_files_of_another_form(write, tmp_path, name, rows, message):
    with pytest.raises(ValueError, match=message):
        load(f"{name}:" + write("a.jsonl", lines(*rows)), {}, tmp_path)


def test_files_of_glue_are_read_by_their_columns():
    with pytest.raises(ValueError, match=r"files of glue/sst2 are not read by its name; give 'train\.tsv' and its col"):
        load_examples("glue/sst2:train.tsv")


# ---------------------------------------------------------------------------------------------------------- parquet


def test_parquet_files(tmp_path, write):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1, 0, 1], "score": [0.5, None, 1.0]})
    parquet.write_table(table, tmp_path / "a.parquet")
    task = load_examples(tmp_path / "a.parquet")
    assert task.splits["train"] == (Example("a", None, 1), Example("b", None, 0), Example("c", None, 1))
    with pytest.raises(ValueError, match=r"record 0: no column 'sentence'; the columns are 'text', 'label', 'score'"):
        load_examples(tmp_path / "a.parquet", text_column="sentence")
    with pytest.raises(ValueError, match=r"record 1: label None is not a finite number"):
        load_examples(tmp_path / "a.parquet", label_column="score", kind="regression")
    parquet.write_table(table[:0], tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none\.parquet has no rows"):
        load_examples(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: not a Parquet file") as caught:
        load_examples(write("b.parquet", "text"))
    assert "\n" not in str(caught.value)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(whole[:40] + b"\xff" * 40 + whole[80:])
    with pytest.raises(ValueError, match=r"c\.parquet: (damaged|not a Parquet file)"):
        load_examples(tmp_path / "c.parquet")
    with pytest.raises(FileNotFoundError, match=r"d\.parquet: no such file"):
        load_examples(tmp_path / "d.parquet")


# ---------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("seed", range(5))
def test_the_figures_of_multirc_are_those_of_its_scorer(seed):
    """SuperGLUE's scorer: a question is right if all of its answers are, and F1a is over all answers."""
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    predictions = np.where(rng.random(60) < 0.7, labels, predictions)
    groups = [f"0/{number}" for number in rng.integers(0, 15, 60)]
    of_group: dict[str, list[bool]] = {}
    for group, one, other in zip(groups, predictions, labels, strict=True):
        of_group.setdefault(group, []).append(one == other)
    expected = sum(all(right) for right in of_group.values()) / len(of_group)
    assert exact_match(predictions, labels, groups) == pytest.approx(expected)
    assert 0 < expected < 1


def test_multirc_is_scored_by_both(write):
    task = load("super_glue/multirc:" + write("multirc.jsonl", lines(MULTIRC, {**MULTIRC, "idx": 4})), {}, ".")
    found = [{"probabilities": np.array(one)} for one in ([0.2, 0.8], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9])]
    figures = task.score("train", found)
    assert figures == {"f1": pytest.approx(f1_score([1, 0, 1, 0], [1, 0, 1, 1])), "exact_match": 0.5}
    assert task.main_metric == "f1"


def test_record_is_scored_by_the_likeliest_answer_of_each_query():
    """Source: ReCoRD's evaluation, which compares texts as SQuAD's does, with the best of the accepted ones."""
    shares, labels = [0.2, 0.9, 0.3, 0.8, 0.1], np.array([0, 1, 1, 0, 1])
    groups = ["a", "a", "b", "b", "b"]
    figures = answer_scores(shares, labels, groups, ["Paris", "The Rhine", "New York", "York City", "Rome"])
    assert figures == {"answer_f1": pytest.approx(75), "answer_exact_match": 50}  # York, of two words each: F1 1/2
    exact = answer_scores([0.6, 0.4], np.array([0, 1]), ["a", "a"], ["the rhine!", "Rhine"])
    assert exact == {"answer_f1": 100, "answer_exact_match": 100}
    with pytest.raises(ValueError, match="a question has no answer"):
        answer_scores([0.5], np.array([0]), ["a"], ["Paris"])


def test_a_task_of_record_is_scored(write):
    task = load("super_glue/record:" + write("record.jsonl", lines(RECORD)), {}, ".")
    found = [{"probabilities": np.array([1 - share, share])} for share in (0.1, 0.3, 0.2)]
    assert task.score("train", found) == {"answer_f1": 0, "answer_exact_match": 0}
    assert task.main_metric == "answer_f1"
    assert next(task.records("train", found))["group"] == "5/9"
