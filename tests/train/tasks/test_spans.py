"""Questions and spans: SQuAD's layout and tables of one's own, windows, the choice of answers, scores, a whole run."""

import dataclasses
import hashlib
import json
import math
import random
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaForQuestionAnswering, Tokenizer, load_pretrained, losses, save_pretrained
from deberta_jax.models import SpanOutput
from deberta_jax.sift import SiftConfig, span_logits
from deberta_jax.train import finetune
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.data.text import embedded_corpus, read_documents
from deberta_jax.train.data.train_tokenizer import train_tokenizer
from deberta_jax.train.engine.optimizer import build_optimizer
from deberta_jax.train.engine.state import TrainState
from deberta_jax.train.finetune import build_step
from deberta_jax.train.tasks.batches import FinetuneBatches, evaluation_batches
from deberta_jax.train.tasks.loading import load_task
from deberta_jax.train.tasks.spans.answers import Candidate, best_spans, predictions
from deberta_jax.train.tasks.spans.questions import Answer, Question, QuestionData, load_questions
from deberta_jax.train.tasks.spans.squad_metrics import normalize, squad_v1, squad_v2
from deberta_jax.train.tasks.spans.task import Spans, SpanTask
from deberta_jax.train.tasks.spans.windows import Context, Windows, encode_questions, windows

from ...support.configs import changed, finetune_config
from ...support.paths import GOLDEN
from ...support.small_models import SMALL

NAMES = ["Anne", "Emma", "Jane", "Mary"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    novel = next(read_documents((embedded_corpus(),), boundary="blank_line"))
    return Tokenizer.from_bytes(train_tokenizer(novel.splitlines()[:300], vocab_size=500))


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# ------------------------------------------------------------------------------------------------------- questions

CONTEXT = "Anne was happy; Emma was not."


def squad(*asked, context=CONTEXT):
    return {"version": "x", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(asked)}]}]}


def asked(name, *answers, question="Who was happy?", **more):
    listed = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": question, "answers": listed, **more}


@pytest.mark.parametrize("indent", [None, 2])
def test_squads_layout_in_one_line_or_many(write, indent):
    first = asked("a", ("Anne", 0), ("Anne was", 0))
    second = asked("b", is_impossible=True, plausible_answers=[{"text": "Emma", "answer_start": 16}])
    data = load_questions(write("train-v2.0.json", json.dumps(squad(first, second), indent=indent)))
    assert data.splits["train"] == (
        Question("a", "Who was happy?", CONTEXT, (Answer("Anne", 0), Answer("Anne was", 0))),
        Question("b", "Who was happy?", CONTEXT, ()),
    )
    assert set(data.splits) == {"train"}
    assert data.notes["train"] == ()


def test_a_published_answer_that_is_off_by_little_is_moved_and_counted(write):
    data = load_questions(write("a.json", squad(asked("a", ("Emma", 18)), asked("b", ("Emma", 16), question=" "))))
    assert [question.answers for question in data.splits["train"]] == [(Answer("Emma", 16),)] * 2
    assert data.notes["train"] == (
        "1 questions are blank",
        "1 answers moved by up to 2 characters to where their text stands",
    )


ROWS = [
    {"question": "q1", "context": CONTEXT, "answers": {"text": ["Emma", "Anne"], "answer_start": [16, 0]}},
    {"question": "q2", "context": CONTEXT, "answers": [{"text": "was", "answer_start": 21}]},
    {"question": "q3", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
    {"question": "q4", "context": CONTEXT, "answers": []},
    {"question": "q5", "context": CONTEXT, "answers": "was"},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_lines(write, name):
    data = load_questions(write(name, "\n".join(map(json.dumps, ROWS))))
    assert [(question.id, question.answers) for question in data.splits["train"]] == [
        ("1", (Answer("Emma", 16), Answer("Anne", 0))),
        ("2", (Answer("was", 21),)),
        ("3", ()),
        ("4", ()),
        ("5", (Answer("was", 5),)),  # the first
    ]


def test_tables_by_columns(write):
    columns = {"text_column": "q", "pair_column": "c", "label_column": "a"}
    plain = write("a.tsv", f"q\tc\ta\nwho\t{CONTEXT}\twas\nwhom\t{CONTEXT}\t\n")
    assert [one.answers for one in load_questions(plain, **columns).splits["train"]] == [(Answer("was", 5),), ()]
    placed = write("b.csv", f"id,q,c,a,answer_start\nx,who,{CONTEXT},was,21\ny,whom,{CONTEXT},,\n")
    found = load_questions(placed, **columns).splits["train"]
    assert [(one.id, one.answers) for one in found] == [("x", (Answer("was", 21),)), ("y", ())]
    named = write("c.tsv", f"q\tc\ta\tat\nwho\t{CONTEXT}\twas\t21\n")
    assert load_questions(named, **columns, start_column="at").splits["train"][0].answers == (Answer("was", 21),)


def test_parquet_files_with_either_form_of_answers(tmp_path):
    import pyarrow
    from pyarrow import parquet

    for number, forms in enumerate((ROWS[0:1] + ROWS[2:3], ROWS[1:2] + ROWS[3:4])):
        parquet.write_table(pyarrow.Table.from_pylist(forms), tmp_path / f"{number}.parquet")
    first, second = (load_questions(str(tmp_path / f"{number}.parquet")).splits["train"] for number in (0, 1))
    assert [one.answers for one in first] == [(Answer("Emma", 16), Answer("Anne", 0)), ()]
    assert [one.answers for one in second] == [(Answer("was", 21),), ()]


def test_a_published_file_by_the_name_of_its_set(write, tmp_path, tokenizer):
    path = write("train-v2.0.json", squad(asked("a", ("Anne", 0)), asked("b", is_impossible=True)))
    given = f"squad/v2.0:{path}"
    data = load_questions(given, validation=given)
    assert (data.name, set(data.splits)) == ("squad/v2.0", {"train", "validation"})
    assert data.splits["validation"][1] == Question("b", "Who was happy?", CONTEXT, ())
    task = load_task(finetune_config(output=tmp_path, model=tmp_path, train=given), tokenizer)
    assert (task.name, task.main_metric) == ("squad/v2.0", "f1")


def test_a_test_file_may_leave_its_answers_out(write):
    train = write("a.json", squad(asked("a", ("Anne", 0))))
    hidden = write("t.jsonl", json.dumps({"question": "q", "context": "c"}))
    data = load_questions(train, test=hidden)
    assert data.splits["test"] == (Question("1", "q", "c", None),)
    with pytest.raises(
        ValueError, match=r"t\.jsonl, line 1: no column 'answers'; the columns are 'question', 'context'"
    ):
        load_questions(train, validation=hidden)
    mixed = write("m.jsonl", json.dumps({"question": "q", "context": "c"}) + "\n" + json.dumps(ROWS[0]))
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2: the first row and this one differ"):
        load_questions(train, test=mixed)


def line(**changes):
    return {**ROWS[0], **changes}


BAD_ROWS = {
    "no column": ({"question": "q", "text": "c"}, r"line 1: no column 'context'; the columns are 'question', 'text'"),
    "blank question": (line(question=" "), r"line 1: column 'question' is empty"),
    "blank context": (line(context="\n"), r"line 1: column 'context' is empty"),
    "other text": (
        line(answers=[{"text": "Emma", "answer_start": 15}]),
        r"line 1: the answer 'Emma' is said to start at character 15, where the context has ' Emm'; it stands at 16",
    ),
    "nowhere": (line(answers=[{"text": "Mary", "answer_start": 0}]), r"has 'Anne'; it is not in the context"),
    "outside": (
        line(answers=[{"text": "Emma", "answer_start": 300}]),
        r"starts at 300, outside the context, which has 29",
    ),
    "negative": (line(answers=[{"text": "Emma", "answer_start": -1}]), r"starts at -1, outside the context"),
    "plain nowhere": (line(answers="Mary"), r"line 1: the answer 'Mary' is not in the context"),
    "no start": (
        line(answers=[{"text": "Emma"}]),
        r"column 'answers' holds \[\{'text': 'Emma'\}\]; give a text, a list",
    ),
    "uneven": (line(answers={"text": ["Emma"], "answer_start": []}), r"column 'answers' has 1 texts but 0 starts"),
    "null": (line(answers=None), r"column 'answers' holds None; give .* empty where there is no answer"),
    "empty answer": (
        line(answers=[{"text": "", "answer_start": 0}]),
        r"has an answer without text; where there is none",
    ),
    "start in words": (line(answers="Emma", answer_start="x"), r"an answer starts at 'x', which is not a whole number"),
    "start is true": (line(answers="Emma", answer_start=True), r"starts at True, which is not a whole number"),
    "contradiction": (line(is_impossible=True), r"is_impossible is true, but column 'answers' has an answer"),
    "number": (line(answers=[{"text": 3, "answer_start": 0}]), r"column 'answers' holds 3, not text"),
    "half pair": (line(id="\ud800"), r"line 1: column 'id' holds a NUL character or half a surrogate pair"),
    "with its id": (line(id="x7", answers="Mary"), r"line 1: question 'x7': the answer 'Mary' is not in the context"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_named(write, row, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_questions(write("a.jsonl", json.dumps(row)))
    assert str(caught.value).count("a.jsonl") == 1
    assert "\n" not in str(caught.value)


BAD_FILES = {
    "no article": ({"data": {}}, r"a\.json has no list 'data'; SQuAD's layout is"),
    "no paragraphs": ({"data": [{"title": "t"}]}, r"a\.json: data\[0\] has no list 'paragraphs'"),
    "no context": ({"data": [{"paragraphs": [{"qas": []}]}]}, r"data\[0\]\.paragraphs\[0\] has no text 'context'"),
    "no questions": (squad(), r"a\.json has no questions"),
    "odd question": (squad("who?"), r"data\[0\]\.paragraphs\[0\]\.qas\[0\] is not an object"),
    "twice": (squad(asked("a", ("Anne", 0)), asked("a")), r"record 1: question 'a': the id occurs before, in record 0"),
    "misplaced": (
        squad(asked("a", ("Anne", 9))),
        r"record 0: question 'a': the answer 'Anne' is said to start at .* 9",
    ),
    "nothing to learn": (squad(asked("a")), r"a\.json: not one question has an answer"),
    "no answers": (squad({"id": "a", "question": "q"}), r"record 0: question 'a': no column 'answers'"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named(write, content, message):
    with pytest.raises(ValueError, match=message):
        load_questions(write("a.json", content))


def test_a_missing_start_column_and_a_set_of_another_kind(write):
    train = write("a.tsv", f"question\tcontext\tanswers\nwho\t{CONTEXT}\twas\n")
    with pytest.raises(ValueError, match=r"line 2: no column 'at'; the columns are 'question', 'context', 'answers'"):
        load_questions(train, start_column="at")
    with pytest.raises(
        ValueError, match=r"tfds:glue/sst2 is a set of kind 'classification', which does not go with .*'span'"
    ):
        load_questions(train, validation="tfds:glue/sst2")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json: no such file"):
        load_questions("nowhere.json")


# ---------------------------------------------------------------------------------------------- tensorflow_datasets


@pytest.fixture(scope="module")
def fake_squad(tmp_path_factory):
    """Small files in the published layout, taken for the published ones; a folder to prepare the sets in."""
    import tensorflow_datasets as tfds

    manual = tmp_path_factory.mktemp("manual")
    train = asked("a", ("Anne", 0)), asked("b", ("Emma", 16), question="Who was not?")
    answers = asked("c", ("Anne", 0), ("Anne was happy", 0))
    nothing = {"is_impossible": True, "plausible_answers": [{"text": "Emma", "answer_start": 16}]}
    files = {
        "train-v1.1.json": squad(*train, context=CONTEXT),
        "dev-v1.1.json": squad(answers),
        "train-v2.0.json": squad(*({**one, "is_impossible": False} for one in train), asked("d", **nothing)),
        "dev-v2.0.json": squad({**answers, "is_impossible": False}, asked("e", **nothing)),
    }
    for name, content in files.items():
        (manual / name).write_text(json.dumps(content), encoding="utf-8")
    builder = tfds.builder_cls("squad")
    infos = {
        url: dataclasses.replace(info, size=len(data), checksum=hashlib.sha256(data).hexdigest())
        for url, info in builder.url_infos.items()
        for data in [(manual / info.filename).read_bytes()]
    }
    with mock.patch.object(builder, "url_infos", infos):
        yield {"manual_dir": manual, "data_dir": tmp_path_factory.mktemp("data")}


def test_squad_by_name(fake_squad):
    one, two = (load_questions(f"tfds:squad/{name}", **fake_squad) for name in ("v1.1", "v2.0"))
    train = {
        Question("a", "Who was happy?", CONTEXT, (Answer("Anne", 0),)),
        Question("b", "Who was not?", CONTEXT, (Answer("Emma", 16),)),
    }
    dev = Question("c", "Who was happy?", CONTEXT, (Answer("Anne", 0), Answer("Anne was happy", 0)))
    assert (one.name, set(one.splits)) == ("squad/v1.1", {"train", "validation"})
    assert set(one.splits["train"]) == train
    assert one.splits["validation"] == (dev,)
    assert set(two.splits["train"]) == train | {Question("d", "Who was happy?", CONTEXT, ())}
    assert set(two.splits["validation"]) == {dev, Question("e", "Who was happy?", CONTEXT, ())}


def test_the_table_agrees_with_tensorflow_datasets_about_squad(fake_squad):
    import tensorflow_datasets as tfds

    from deberta_jax.train.tasks.sources.published import PUBLISHED

    for config in tfds.builder_cls("squad").BUILDER_CONFIGS:
        task = PUBLISHED[f"squad/{config.name}"]
        builder = tfds.builder(f"squad/{config.name}", data_dir=fake_squad["data_dir"])
        assert (task.kind, task.files) == ("span", (config.train_file, config.dev_file))
        assert set(task.columns.values()) <= set(builder.info.features)


def test_settings_lead_to_a_task(fake_squad, tokenizer, tmp_path):
    config = finetune_config(output=tmp_path, model=tmp_path, train="tfds:squad/v2.0", **fake_squad)
    task = load_task(config, tokenizer)
    assert (task.name, task.main_metric, task.label_names, set(task.splits)) == (
        "squad/v2.0",
        "f1",
        (),
        {"train", "validation"},
    )
    with pytest.raises(ValueError, match="is a task of kind 'span'; leave kind out"):
        load_task(changed(config, kind="classification"), tokenizer)
    with pytest.raises(
        ValueError, match=r"max_length 64 leaves 0 tokens for the context, beside max_question_length 64"
    ):
        load_task(changed(config, max_length=64), tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_stride": 0}, "doc_stride is 0; it must be at least 1"),
        ({"n_best": -1}, "n_best is -1; it must be at least 1"),
        ({"null_threshold": math.nan}, "null_threshold is nan; it must be a finite number"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        finetune_config(output=tmp_path, model=tmp_path, train="a.json", **changes)


# --------------------------------------------------------------------------------------------------------- windows

SYLLABLES = [
    "a",
    "the",
    "happy",
    " ",
    "  ",
    "\t",
    "was",
    "é",
    "e\u0301",
    "日本",
    "😀",
    "👩‍👩‍👧",
    "ﬁ",
    "…",
    "\u00a0",
    "x;y",
    "\uff26",
]
SETTINGS = {"max_length": 40, "max_question_length": 10, "doc_stride": 12, "max_answer_length": 14}


def random_question(seed, *, answered=True):
    """A context of up to a few windows, and an answer anywhere in it, which need not fit the tokens."""
    rng = random.Random(seed)
    context = "".join(rng.choice(SYLLABLES) + rng.choice(["", " "]) for _ in range(rng.randint(3, 60)))
    while answered:
        start, size = rng.randrange(len(context)), rng.randint(1, 12)
        text = context[start : start + size]
        if text == text.strip() and text:
            return Question(str(seed), "was the man happy", context, (Answer(text, start),))
    return Question(str(seed), "was the man happy", context, ())


@pytest.mark.parametrize("tokens", [0, 1, 9, 10, 11, 57])
@pytest.mark.parametrize("stride", [1, 4, 10])
def test_windows_cover_a_context_and_end_with_it(tokens, stride):
    seen = list(windows(tokens, room=10, stride=stride))
    assert seen[0][0] == 0
    assert sum(seen[-1]) == tokens
    assert [first for first, _ in seen] == [stride * number for number in range(len(seen))]
    assert all(size == 10 for _, size in seen[:-1])
    assert set().union(*(range(first, first + size) for first, size in seen)) == set(range(tokens))
    assert all(first + size < tokens for first, size in seen[:-1])  # no window more than it takes


def test_a_context_that_fits_is_the_pair_that_the_tokenizer_makes(tokenizer):
    question = Question("1", "Who was happy?", CONTEXT, (Answer("Emma was", 16),))
    encoded = encode_questions([question], tokenizer, **SETTINGS | {"max_length": 64})
    pair = tokenizer("Who was happy?"[:200], CONTEXT, return_offsets=True)
    assert len(tokenizer.encode("Who was happy?")) <= 10
    assert encoded.lengths.tolist() == [len(pair.input_ids)]
    batch = encoded.batch(np.array([0]), length=60)
    size = len(pair.input_ids)
    assert batch["input_ids"][0, :size].tolist() == pair.input_ids
    assert batch["token_type_ids"][0, :size].tolist() == pair.token_type_ids
    assert batch["attention_mask"][0].tolist() == [1] * size + [0] * (60 - size)
    context = [kind == 1 and offset is not None for kind, offset in zip(pair.token_type_ids, pair.offsets, strict=True)]
    assert batch["choosable"][0].tolist() == [1, *context[1:], *[0] * (60 - size)]
    first, last = batch["ends"][0]
    assert CONTEXT[pair.offsets[first][0] : pair.offsets[last][1]] == "Emma was"
    names = ("input_ids", "attention_mask", "token_type_ids", "choosable", "ends")
    assert {name: (array.dtype.name, array.ndim) for name, array in batch.items()} == dict.fromkeys(names, ("int32", 2))


@pytest.mark.parametrize("seed", range(60))
def test_labeled_tokens_are_the_fewest_that_cover_the_answer(tokenizer, seed):
    question = random_question(seed)
    (answer,) = question.answers
    stride = 12 if seed % 2 else 100  # more than the overlap allows
    encoded = encode_questions([question], tokenizer, **SETTINGS | {"doc_stride": stride})
    batch = encoded.batch(np.arange(len(encoded.lengths)), length=40)
    offsets = [offset for offset in tokenizer(question.context, return_offsets=True).offsets if offset is not None]
    stop = answer.start + len(answer.text)
    covering = [n for n, (start, end) in enumerate(offsets) if start < stop and end > answer.start]
    held = 0
    for row, (first, last) in enumerate(batch["ends"].tolist()):
        assert batch["choosable"][row, [first, last]].tolist() == [1, 1]
        if (first, last) == (0, 0):
            continue
        held += 1
        start, end = encoded.characters(row, first, last)
        assert answer.text in question.context[start:end]
        assert start <= answer.start
        assert stop <= end
        assert last - first == covering[-1] - covering[0]
        # Neither end can be left out.
        assert encoded.characters(row, first, first)[1] > answer.start
        assert encoded.characters(row, last, last)[0] < stop
    short = covering[-1] - covering[0] < SETTINGS["max_answer_length"]
    assert held or not short, "an answer that may be predicted is whole in a window"
    lost, too_long = "1 answers are in no window as a whole", "1 answers have more than 14 tokens and cannot be found"
    assert (lost in encoded.notes, too_long in encoded.notes) == (not held, not short)


def test_what_is_cut_or_passed_over_is_counted(tokenizer):
    long = "was the man happy " * 5
    context = "a man " * 60
    questions = [
        Question("1", long, context, (Answer(context[:-1], 0),)),
        Question("2", "who", context, (Answer("a", 0), Answer("man", 2))),
        Question("3", "who", "\u200b", (Answer("\u200b", 0),)),  # a text that has no tokens
    ]
    encoded = encode_questions(questions, tokenizer, **SETTINGS, training=True, notes=("as read",))
    assert encoded.notes == (
        "as read",
        "windows over 3 questions",
        "1 questions cut to 10 tokens",
        "1 questions have several answers, of which the first is trained on",
        "2 answers are in no window as a whole",
        "1 answers have more than 14 tokens and cannot be found",
    )
    assert encoded.lengths.max() == 40
    assert (encoded.lengths >= 3).all()
    assert encoded.batch(np.array([len(encoded.lengths) - 1]), length=40)["choosable"].sum() == 1  # [CLS]
    heldout = encode_questions(questions, tokenizer, **SETTINGS)
    assert not any("several answers" in note for note in heldout.notes)
    assert encode_questions([Question("1", "who", CONTEXT, None)], tokenizer, **SETTINGS).ends is None


def test_batches_of_training_and_evaluation_take_windows(tokenizer):
    encoded = encode_questions([random_question(seed) for seed in range(8)], tokenizer, **SETTINGS)
    batch = next(FinetuneBatches(encoded, batch_size=4, max_length=40, seed=0))
    assert {name: array.shape for name, array in batch.items()} == {
        "input_ids": (4, 40),
        "attention_mask": (4, 40),
        "token_type_ids": (4, 40),
        "choosable": (4, 40),
        "ends": (4, 2),
    }
    seen = [number for numbers, _ in evaluation_batches(encoded, batch_size=3, max_length=40) for number in numbers]
    assert sorted(seen) == list(range(len(encoded.lengths)))


# ------------------------------------------------------------------------------------------------- loss and answers


def test_the_loss_is_the_mean_cross_entropy_of_start_and_end():
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 3, 7))
    choosable = np.array([[1, 0, 1, 1, 1, 0, 0], [1, 0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]])
    ends = np.array([[2, 4], [0, 0], [3, 3]])
    expected, smoothed = [], []
    for logits, column in ((start, 0), (end, 1)):
        for row in range(3):
            chosen = logits[row][choosable[row] == 1]
            label = int(choosable[row, : ends[row, column]].sum())
            shares = np.exp(chosen) / np.exp(chosen).sum()
            expected.append(-np.log(shares[label]))
            smoothed.append(-0.9 * np.log(shares[label]) - 0.1 * np.log(shares).mean())
    logits = span_logits(jnp.asarray(start), jnp.asarray(end), jnp.asarray(choosable))
    total, count = losses.span(logits, jnp.asarray(ends), jnp.asarray(choosable))
    assert count == 6
    assert total == pytest.approx(sum(expected), rel=1e-5)
    total, count = losses.span(logits, jnp.asarray(ends), jnp.asarray(choosable), smoothing=0.1)
    assert total == pytest.approx(sum(smoothed), rel=1e-5)

    def loss(start, smoothing):
        logits = span_logits(start, jnp.asarray(end), jnp.asarray(choosable))
        return losses.span(logits, jnp.asarray(ends), jnp.asarray(choosable), smoothing=smoothing)[0]

    for smoothing in (0.0, 0.1):
        gradient = np.asarray(jax.grad(loss)(jnp.asarray(start), smoothing))
        assert np.isfinite(gradient).all()
        assert (gradient[choosable == 0] == 0).all()
        assert (gradient[choosable == 1] != 0).all()


@pytest.mark.parametrize(("n_best", "most"), [(5, 3), (20, 30), (1000, 4)])
def test_best_spans_are_those_of_a_search_through_all(n_best, most):
    rng = np.random.default_rng(1)
    start, end = rng.normal(size=(2, 2, 12)).astype(np.float32)
    inside = np.zeros((2, 12), np.int32)
    inside[0, 3:10] = inside[1, 5:6] = 1
    found = jax.device_get(best_spans(start, end, inside, n_best=n_best, max_answer_length=most))
    for row in range(2):
        tokens = np.flatnonzero(inside[row])
        spans = [(start[row, a] + end[row, b], a, b) for a in tokens for b in tokens if a <= b < a + most]
        spans.sort(reverse=True)
        kept = np.isfinite(found["scores"][row])
        got = list(zip(found["scores"][row][kept], found["starts"][row][kept], found["ends"][row][kept], strict=True))
        assert [span[1:] for span in got] == [span[1:] for span in spans[:n_best]]
        np.testing.assert_allclose([span[0] for span in got], [span[0] for span in spans[:n_best]], rtol=1e-6)


def span_task(tokenizer, questions, *, silent, settings=SETTINGS, **options):
    """A task that is scored on `questions`; with silent, training has a question without an answer."""
    training = (random_question(0), *([random_question(1, answered=False)] if silent else []))
    splits = {"train": training, "validation": tuple(questions)}
    data = QuestionData("test", splits, {"train": (), "validation": ()})
    encoded = {name: encode_questions(split, tokenizer, **settings) for name, split in splits.items()}
    objective = Spans(n_best=5, max_answer_length=settings["max_answer_length"])
    return SpanTask(data, objective, encoded, **options)


def answer_with(task, logits_of):
    """What `logits_of(batch)` -> start and end logits [E, S] comes to for every window of validation."""
    encoded = task.splits["validation"]
    batch = encoded.batch(np.arange(len(encoded.lengths)), length=40)
    out = SpanOutput(*map(jnp.asarray, logits_of(batch)))
    arrays = jax.device_get(task.objective.predict(out, jax.tree.map(jnp.asarray, batch)))
    return [{name: array[row] for name, array in arrays.items()} for row in range(len(encoded.lengths))]


def perfect(batch):
    """Certain of the labels, and of [SEP] and padding, which are not to choose, even more."""
    logits = np.where(batch["choosable"][None] == 0, 90.0, np.zeros((2, 1, 1))).astype(np.float32)
    for which in range(2):
        logits[which, np.arange(len(batch["ends"])), batch["ends"][:, which]] = 10
    return logits


def on_token_boundaries(question, tokenizer, seed):
    """The question with an answer that tokens can say exactly."""
    rng = random.Random(seed)
    offsets = [offset for offset in tokenizer(question.context, return_offsets=True).offsets if offset is not None]
    while True:
        first = rng.randrange(len(offsets))
        last = min(len(offsets) - 1, first + rng.randrange(4))
        start, end = offsets[first][0], offsets[last][1]
        text = question.context[start:end]
        covering = [n for n, (left, right) in enumerate(offsets) if left < end and right > start]
        if text.strip() == text and text and len(covering) <= SETTINGS["max_answer_length"]:
            return dataclasses.replace(question, answers=(Answer(text, start),))


@pytest.mark.parametrize("silent", [True, False])
def test_perfect_logits_give_the_answers_themselves(tokenizer, silent):
    questions = [on_token_boundaries(random_question(seed), tokenizer, seed) for seed in range(60)]
    if silent:
        questions += [random_question(seed, answered=False) for seed in range(60, 70)]
    task = span_task(tokenizer, questions, silent=silent)
    assert len(task.splits["validation"].lengths) > 1.5 * len(questions)
    found = answer_with(task, perfect)
    records = list(task.records("validation", found))
    assert [record["id"] for record in records] == [question.id for question in questions]
    for record, question in zip(records, questions, strict=True):
        assert record["prediction_text"] == (question.answers[0].text if question.answers else "")
        assert record["answers"] == [answer.text for answer in question.answers]
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        for entry in record["n_best"]:
            if entry["text"]:
                assert question.context.startswith(entry["text"], entry["answer_start"])
        assert sum(entry["probability"] for entry in record["n_best"]) == pytest.approx(1)
        assert record["probability"] == max(entry["probability"] for entry in record["n_best"])
        assert any(entry["text"] == "" for entry in record["n_best"]) == silent
    figures = task.score("validation", found)
    # 1.1 gives a prediction without words ("…") no F1 even where it is right.
    worded = sum(bool(normalize(question.answers[0].text)) for question in questions if question.answers)
    assert figures["exact_match"] == 100
    assert figures["f1"] == pytest.approx(100 if silent else 100 * worded / len(questions))
    assert ("NoAns_f1" in figures, "best_f1_thresh" in figures) == (silent, silent)


def test_where_training_always_has_an_answer_one_is_always_given(tokenizer):
    """However sure the model is that there is none."""
    questions = [random_question(3), random_question(4, answered=False)]

    def nothing(batch):
        logits = np.zeros((2, *batch["input_ids"].shape), np.float32)
        logits[:, :, 0] = 50
        return logits

    task = span_task(tokenizer, questions, silent=False)
    records = list(task.records("validation", answer_with(task, nothing)))
    assert all(record["prediction_text"] == record["n_best"][0]["text"] != "" for record in records)
    assert not any("no_answer_score" in record for record in records)
    assert task.score("validation", answer_with(task, nothing))["NoAns_exact"] == 0
    silent = span_task(tokenizer, questions, silent=True)
    assert [record["prediction_text"] for record in silent.records("validation", answer_with(silent, nothing))] == [
        "",
        "",
    ]


def test_the_threshold_decides_between_a_span_and_none(tokenizer):
    question = Question("1", "who", CONTEXT, (Answer("Emma", 16),))

    def close(batch):
        logits = perfect(batch)
        logits[:, :, 0] = 11.0  # 22 against 20
        return logits

    for threshold, text in ((0.0, ""), (1.9, ""), (2.0, "Emma"), (5.0, "Emma")):
        task = span_task(tokenizer, [question], silent=True, null_threshold=threshold, settings=SETTINGS)
        (record,) = task.records("validation", answer_with(task, close))
        assert record["prediction_text"] == text
        assert record["null_score"] == pytest.approx(22)
        assert record["no_answer_score"] == pytest.approx(2)
        expected = 100 * (text == "Emma")
        figures = task.score("validation", answer_with(task, close))
        assert figures == {
            "exact_match": expected,
            "f1": expected,
            "HasAns_exact": expected,
            "HasAns_f1": expected,
            "best_exact": 100,
            "best_exact_thresh": 2,
            "best_f1": 100,
            "best_f1_thresh": 2,
        }


def test_no_answer_is_as_likely_as_in_the_window_that_doubts_it_most(tokenizer):
    context = "was the man happy " * 12
    task = span_task(tokenizer, [Question("1", "who", context, ())], silent=True)
    count = len(task.splits["validation"].lengths)
    assert count > 2

    def rising(batch):
        logits = np.zeros((2, *batch["input_ids"].shape), np.float32)
        logits[:, :, 0] = np.arange(count) + 3
        logits[:, 1, 12] = 1
        return logits

    (record,) = task.records("validation", answer_with(task, rising))
    assert record["null_score"] == 6
    assert record["no_answer_score"] == 4
    assert len({entry["text"] for entry in record["n_best"]}) == len(record["n_best"]) == 6  # 5 and none


def test_a_text_has_its_highest_score_and_no_white_space_around_it(tokenizer):
    """Offsets as those of v1's tokenizer, for which a piece may be one of two spaces."""
    offsets = np.array([[0, 1], [2, 2], [3, 4], [5, 6]], np.int32)
    context = Context(np.array([5, 6, 7, 5], np.int32), offsets)
    rows = np.array([[0, 0], [0, 1], [8, 7]], np.int32)  # owner, first, lengths
    two = Windows(tokenizer, [np.array([9], np.int32)], [context], *rows, None, ())
    rest = {"null_score": np.float32(1), "finite": np.bool_(True)}
    found = [
        {"starts": np.array([6, 4]), "ends": np.array([6, 5]), "scores": np.array([3, 2], np.float32), **rest},
        {"starts": np.array([3, 5]), "ends": np.array([3, 5]), "scores": np.array([9, 4], np.float32), **rest},
    ]
    (prediction,) = predictions([Question("1", "q", "a  b a", None)], two, found, n_best=5)
    assert prediction.candidates == (Candidate("a", 5, 4.0), Candidate("b", 3, 2.0))
    assert (prediction.null_score, prediction.no_answer) == (1, -3)


def test_a_context_without_tokens_has_no_answer_but_a_record(tokenizer):
    task = span_task(tokenizer, [Question("1", "who", "\u200b", ())], silent=False)
    found = answer_with(task, lambda batch: np.zeros((2, *batch["input_ids"].shape), np.float32))
    (record,) = task.records("validation", found)
    assert (record["prediction_text"], record["probability"]) == ("", 1)
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(tokenizer, value):
    task = span_task(tokenizer, [random_question(5)], silent=True)

    def broken(batch):
        logits = perfect(batch)
        logits[1, 0, 13] = value
        return logits

    with pytest.raises(ValueError, match="the logits of window 0 are not finite; the model has diverged"):
        task.score("validation", answer_with(task, broken))


def test_a_split_without_answers_is_predicted_but_not_scored(tokenizer):
    task = span_task(tokenizer, [Question("1", "who", CONTEXT, None)], silent=True)
    found = answer_with(task, lambda batch: np.zeros((2, *batch["input_ids"].shape), np.float32))
    assert "answers" not in next(task.records("validation", found))
    with pytest.raises(ValueError, match="the validation split has no answers to measure against"):
        task.score("validation", found)


# ---------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's, a-hat!", "cats ahat"),
        ("An apple a day", "apple day"),
        ("theatre Anna", "theatre anna"),
        ("«Thé» …", "«thé» …"),  # punctuation is ASCII's
        ("the-end a.", "theend"),  # articles go last
        ("\u00a0A\u00a0b\n", "b"),
        ("the", ""),
    ],
)
def test_texts_are_normalized_as_published(text, normal):
    assert normalize(text) == normal


def test_worked_cases():
    """By hand, from the definitions of the two scripts."""
    assert squad_v1([["a cat sat"], ["the"], ["x", "big dog"]], ["The cat.", "The", "dog"]) == {
        "exact_match": pytest.approx(100 / 3),  # "the" is "The" without its words, and exact
        "f1": pytest.approx(100 * (2 / 3 + 0 + 2 / 3) / 3),  # but shares none
    }
    golds = [["cat sat"], ["the", "dog"], ["the"], [], []]
    texts = ["cat", "the", "the", "", "an ox"]
    assert squad_v2(golds, texts) == {
        "exact_match": pytest.approx(100 * 2 / 5),  # the third, whose only answer has no words, and the fourth
        "f1": pytest.approx(100 * (2 / 3 + 0 + 1 + 1 + 0) / 5),
        "HasAns_exact": pytest.approx(100 / 3),
        "HasAns_f1": pytest.approx(100 * (2 / 3 + 1) / 3),
        "NoAns_exact": 50,
        "NoAns_f1": 50,
    }
    with pytest.raises(ValueError, match=r"a question has no answer, which SQuAD 1\.1 does not know"):
        squad_v1(golds, texts)


def test_the_best_threshold_of_a_worked_case():
    golds, texts = [["cat"], [], ["dog"], []], ["cat", "ox", "a dog", "hat"]
    figures = squad_v2(golds, texts, [-3.0, 1.0, 2.5, 4.0], threshold=1.5)
    assert figures["exact_match"] == 50  # right about the first and the last
    # From all silent, 2 right: cat 3, ox 2, dog 3, hat 2. The first of the best is kept.
    assert (figures["best_exact"], figures["best_exact_thresh"]) == (75, -3)
    assert squad_v2([[], ["x"]], ["y", "z"], [0.5, 0.6])["best_f1_thresh"] == 0  # to be silent is best


@pytest.mark.parametrize(
    "case", json.loads((GOLDEN / "squad_scores" / "cases.json").read_text()), ids=lambda case: case["name"]
)
def test_scores_are_those_of_the_published_scripts(case):
    """tests/golden/README.md says how they were run."""
    expected = case["scores"]
    if case["script"] == "evaluate-v1.1.py":
        figures = squad_v1(case["golds"], case["predictions"])
    else:
        figures = squad_v2(case["golds"], case["predictions"], case["no_answer"], threshold=case["threshold"])
        expected = {"exact_match" if name == "exact" else name: value for name, value in expected.items()}
        expected = {name: value for name, value in expected.items() if not name.endswith("total")}
    assert figures == pytest.approx(expected, rel=1e-12, abs=1e-12)


WORDS = ["the", "a", "An", "cat", "Cat's", "dog,", "big", "…", "!", "é", "10-20", "The.", "  "]


def random_texts(rng, count):
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(0, 5))) for _ in range(count)]


def words_of(text):
    """Another way to the words of a normalized text."""
    kept = re.sub("[!-/:-@[-`{-~]", "", text.lower())
    return re.sub(r"(?<!\w)(?:the|an|a)(?!\w)", "\t", kept).split()


def f1_of(expected, found):
    left, shared = list(expected), 0
    for word in found:
        if word in left:
            left.remove(word)
            shared += 1
    return 2 * shared / (len(expected) + len(found)) if shared else 0.0


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_random_predictions_are_those_of_another_implementation(seed):
    rng = random.Random(seed)
    count = rng.randint(1, 30)
    predictions = random_texts(rng, count)
    golds = [random_texts(rng, rng.randint(1, 3)) for _ in range(count)]
    exact = [
        any(words_of(gold) == words_of(text) for gold in some) for some, text in zip(golds, predictions, strict=True)
    ]
    shared = [
        max(f1_of(words_of(g), words_of(text)) for g in some) for some, text in zip(golds, predictions, strict=True)
    ]
    assert squad_v1(golds, predictions) == {
        "exact_match": pytest.approx(100 * np.mean(exact)),
        "f1": pytest.approx(100 * np.mean(shared)),
    }

    golds = [some if rng.random() < 0.6 else [] for some in golds]
    no_answer = [rng.gauss(0, 1) for _ in range(count)]  # no two alike
    threshold = rng.gauss(0, 1)

    def score(index, text):
        """Exact match and F1."""
        accepted = [gold for gold in golds[index] if words_of(gold)] or [""]
        found = words_of(text)
        pairs = [
            (
                found == words_of(gold),
                f1_of(words_of(gold), found) if words_of(gold) and found else found == words_of(gold),
            )
            for gold in accepted
        ]
        return np.max(np.array(pairs, float), axis=0)

    def at(cut, chosen=range(count)):
        """Mean scores where a no_answer above cut stands for "": wrong just where the question has an answer."""
        rows = [(score(i, predictions[i]) if no_answer[i] <= cut else np.full(2, float(not golds[i]))) for i in chosen]
        return 100 * np.mean(rows, axis=0)

    figures = squad_v2(golds, predictions, no_answer, threshold=threshold)
    assert (figures["exact_match"], figures["f1"]) == pytest.approx(at(threshold))
    for part, chosen in (
        ("HasAns", [i for i in range(count) if golds[i]]),
        ("NoAns", [i for i in range(count) if not golds[i]]),
    ):
        if chosen:
            assert (figures[f"{part}_exact"], figures[f"{part}_f1"]) == pytest.approx(at(threshold, chosen))
        else:
            assert f"{part}_f1" not in figures
    final = squad_v2(
        golds, [text if doubt <= threshold else "" for text, doubt in zip(predictions, no_answer, strict=True)]
    )
    assert set(final) == {name for name in figures if not name.startswith("best")}

    # Where nothing is left of a prediction to a question without answer, the script's search counts it as wrong.
    if all(golds[i] or words_of(predictions[i]) for i in range(count)):
        everywhere = np.array([at(cut) for cut in [-math.inf, *no_answer]])
        assert (figures["best_exact"], figures["best_f1"]) == pytest.approx(everywhere.max(axis=0))
        if figures["best_f1_thresh"]:
            assert at(figures["best_f1_thresh"])[1] == pytest.approx(figures["best_f1"])


# ------------------------------------------------------------------------------------------------------- training

TINY = SMALL.replace(
    vocab_size=640,
    num_hidden_layers=1,
    num_attention_heads=2,
    initializer_range=0.02,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def test_a_step_in_chunks_has_the_plain_loss_and_scale_invariant_finetuning_beside_it(tokenizer, tmp_path):
    encoded = encode_questions([random_question(seed) for seed in range(8)], tokenizer, **SETTINGS)
    batch = next(FinetuneBatches(encoded, batch_size=4, max_length=40, seed=0))
    objective = Spans(label_smoothing=0.1)
    model = objective.model(TINY, dtype=jnp.float32, remat=False)
    params = jax.jit(model.init)(jax.random.key(0), batch["input_ids"])["params"]
    settings, sift = OptimizerConfig(learning_rate=1e-3), SiftConfig(weight=2.0)
    config = finetune_config(
        output=tmp_path, model=tmp_path, train="a.json", accumulation=2, optimizer=settings, sift=sift
    )
    optimizer = build_optimizer(settings, total_steps=10)
    state = TrainState.create({"model": params}, {"model": optimizer.init(params)}, seed=0)
    step = jax.jit(build_step(model, objective, optimizer, config, total_steps=10))
    _, metrics = jax.device_get(step(state, batch))
    out = jax.jit(model.apply)({"params": params}, batch["input_ids"], batch["attention_mask"])
    total, count = objective.loss(out, batch)
    assert metrics["count"] == count == objective.count(batch) == 8
    assert metrics["loss_sum"] == pytest.approx(float(total), rel=1e-4)
    assert metrics["adversarial_sum"] > 0
    assert 0 < metrics["grad_norm"] < np.inf


def names_in_noise(seed, count):
    """Who is the queen? The only name there is; where there is none, nobody."""
    rng = random.Random(seed)
    noise = ["the", "man", "was", "very", "happy", "and", "a", "good", "house"]
    rows = []
    for number in range(count):
        name = rng.choice(NAMES) if rng.random() < 0.75 or number == 0 else None
        words = [rng.choice(noise) for _ in range(rng.randint(8, 40))]
        if name:
            words.insert(rng.randrange(len(words)), name)
        context = " ".join(words)
        answers = {"text": [name], "answer_start": [context.index(name)]} if name else {"text": [], "answer_start": []}
        rows.append({"id": f"{seed}-{number}", "question": "who was it", "context": context, "answers": answers})
    return "\n".join(map(json.dumps, rows))


def test_finetuning_learns_to_find_a_name_or_that_there_is_none(tokenizer, write, tmp_path):
    model = DebertaForQuestionAnswering(TINY)
    params = model.init(jax.random.key(0), np.ones((1, 8), np.int32))["params"]
    save_pretrained(tmp_path / "model", TINY, params)
    tokenizer.save(tmp_path / "model")
    config = finetune_config(
        output=tmp_path / "run",
        model=tmp_path / "model",
        random_weights=True,
        kind="span",
        train=write("train.jsonl", names_in_noise(0, 96)),
        validation=write("dev.jsonl", names_in_noise(1, 48)),
        max_length=40,
        max_question_length=12,
        max_answer_length=8,
        batch_size=16,
        steps=80,
        evaluate_every=1000,
        optimizer=OptimizerConfig(learning_rate=5e-3),
    )
    results = finetune.main(config)["validation"]
    assert results["HasAns_f1"] > 90
    assert results["NoAns_f1"] > 90
    assert results["best_exact"] >= results["exact_match"] > 90
    lines = (tmp_path / "run" / "predictions" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["id"] for record in records] == [f"1-{number}" for number in range(48)]
    final = squad_v2([record["answers"] for record in records], [record["prediction_text"] for record in records])
    assert results == final | {name: value for name, value in results.items() if name.startswith("best")}
    saved, weights = load_pretrained(tmp_path / "run" / "model")
    assert saved.label_names == ()
    assert weights["span_classifier"]["kernel"].shape == (32, 2)
