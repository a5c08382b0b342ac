"""Curricula of several corpora: exact resumption, hosts that divide the rows, counts of epochs, and what is refused."""

import collections
import dataclasses
import itertools
import json

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.corpus_options import Stage
from deberta_jax.train.data.batches import TrainingBatches
from deberta_jax.train.data.curriculum import Curriculum, RowOrder, arrange
from deberta_jax.train.data.masking import MaskingConfig
from deberta_jax.train.data.prepare import prepare

from .test_batches import Words, assert_equal, by_row, local_part, originals, take

BATCH = 8
MASKING = MaskingConfig(max_ngram=3, replace="mlm")
SHORT, LONG = 16, 32
SHORT_STEPS, LONG_STEPS = 30, 12
STAGES = (Stage(SHORT, SHORT_STEPS), Stage(LONG, LONG_STEPS))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Corpora by name: two of 16 tokens a row, two of 32."""
    folder = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(0)
    made = {}
    for name, documents, length in (("a16", 60, SHORT), ("b16", 25, SHORT), ("a32", 60, LONG), ("b32", 9, LONG)):
        text = folder / f"{name[0]}.txt"
        lines = [
            " ".join(f"{name[0]}{n}" for n in rng.integers(0, 9999, rng.integers(5, 40))) for _ in range(documents)
        ]
        text.write_text("\n".join(lines))
        made[name] = prepare(
            [text], Words(), folder / name, sequence_length=length, boundary="line", held_out_fraction=0
        )
    return made


def curriculum(corpora, *given, stages=STAGES):
    chosen = [(str(text), corpora[text.partition(":")[0]]) for text in given]
    return arrange(chosen, stages, tokenizer=Words())


@pytest.fixture(scope="module")
def both(corpora):
    """30 steps of short rows from two corpora, then 12 of long rows from two corpora."""
    return curriculum(corpora, "a16:0.7", "b16:0.3", "a32:1", "b32:1")


def training(rows, *, host=0, hosts=1, seed=5, workers=0):
    return TrainingBatches(
        rows,
        tokenizer=Words(),
        masking=MASKING,
        global_batch=BATCH,
        seed=seed,
        batch_indices=local_part(BATCH, host, hosts),
        workers=workers,
    )


@pytest.fixture(scope="module")
def rows_of(corpora):
    """The training rows of each corpus as they are on disk, without masks."""
    rows = {}
    for name, corpus in corpora.items():
        batches = take(training(Curriculum.of(corpus)), -(-corpus.train.rows // BATCH))
        rows[name] = set(list(itertools.chain.from_iterable(map(originals, batches)))[: corpus.train.rows])
        assert len(rows[name]) == corpus.train.rows
    return rows


@pytest.fixture(scope="module")
def whole(both):
    """All batches of an unbroken run, and some more."""
    return take(training(both), SHORT_STEPS + LONG_STEPS + 3)


def test_each_phase_has_rows_of_its_length(whole):
    assert [batch["input_ids"].shape for batch in whole] == [(BATCH, SHORT)] * SHORT_STEPS + [(BATCH, LONG)] * 15
    assert [batch["masked_labels"].shape[1] for batch in whole[29:31]] == [MASKING.slots(SHORT), MASKING.slots(LONG)]
    assert np.concatenate([batch["row"] for batch in whole]).tolist() == list(range(BATCH * len(whole)))


@pytest.mark.parametrize(
    ("first", "last", "names", "weights"), [(0, 30, ["a16", "b16"], [7, 3]), (30, 45, ["a32", "b32"], [1, 1])]
)
def test_corpora_are_mixed_by_weight_and_each_row_is_read_once_per_epoch(whole, rows_of, first, last, names, weights):
    rows = list(itertools.chain.from_iterable(map(originals, whole[first:last])))
    for name, weight in zip(names, weights, strict=True):
        own = rows_of[name]
        drawn = [row for row in rows if row in own]
        assert abs(len(drawn) - len(rows) * weight / sum(weights)) < 2
        for epoch in range(len(drawn) // len(own)):
            assert set(drawn[epoch * len(own) : (epoch + 1) * len(own)]) == own
        counts = collections.Counter(drawn).values()
        assert max(counts) - min(counts) <= 1
    assert len(drawn) > len(own)  # more than an epoch of the last corpus of the phase


@pytest.mark.parametrize("stop", [7, 29, 30, 31, 42])
def test_a_resumed_run_has_the_batches_of_an_unbroken_one(both, whole, stop):
    """In the middle of a mixture, on both sides of the change of length, and at the end."""
    stream = training(both)
    take(stream, stop)
    resumed = training(both)
    resumed.set_state(json.loads(json.dumps(stream.get_state())))
    assert_equal(take(resumed, 3), whole[stop : stop + 3])


def test_hosts_divide_the_rows_and_may_change_their_number(both, whole):
    parts = [take(training(both, host=host, hosts=2), 31) for host in range(2)]
    assert [by_row(part[step] for part in parts) for step in range(31)] == [by_row([batch]) for batch in whole[:31]]
    for host in range(4):
        stream = training(both, host=host, hosts=4)
        stream.set_state({"global_next_index": 31 * BATCH})
        parts.append(take(stream, 11))
    read = list(itertools.chain.from_iterable(by_row(part) for part in parts))
    assert sorted(read) == list(range(42 * BATCH))  # each row of the stream once, over all hosts


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_make_the_same_batches(both, whole, workers):
    stream = training(both, workers=workers)
    stream.set_state({"global_next_index": 27 * BATCH})
    try:
        assert_equal([next(stream) for _ in range(6)], whole[27:33])
        assert stream.get_state() == {"global_next_index": 33 * BATCH}
        stream.set_state({"global_next_index": 0})
        assert_equal([next(stream) for _ in range(2)], whole[:2])
    finally:
        stream.close()


def test_epochs_are_counted_as_rows_are_drawn(both, whole, corpora, rows_of):
    assert both.epochs(0, BATCH) == {"a16": 0, "b16": 0, "a32": 0, "b32": 0}
    drawn = list(itertools.chain.from_iterable(map(originals, whole)))
    for step in (1, 30, 31, 42, 44):  # the last phase goes on
        rows = drawn[: step * BATCH]
        for name, epochs in both.epochs(step, BATCH).items():
            assert epochs == sum(row in rows_of[name] for row in rows) / len(rows_of[name])
    [first, *_, last] = both.describe(42, BATCH)
    assert first.startswith(f"corpus a16: 70.00% of the rows of {SHORT} tokens in 30 steps, ")
    assert last.endswith(f"{corpora['b32'].train.rows} rows, {48 / corpora['b32'].train.rows:.3g} epochs")


def test_phases_and_tokens_of_a_step(both):
    assert [both.phase_of(step).sequence_length for step in (0, 1, 30, 31, 42, 99)] == [16, 16, 16, 32, 32, 32]
    steps = range(45)
    expected = list(itertools.accumulate([BATCH * SHORT] * 30 + [BATCH * LONG] * 14, initial=0))
    assert [both.tokens_until(step, BATCH) for step in steps] == expected


def test_a_single_corpus_has_the_order_and_identity_of_earlier_versions(corpora):
    plain = Curriculum.of(corpora["a16"])
    alone = curriculum(corpora, "a16", stages=(Stage(SHORT, 9),))
    assert alone.identity == plain.identity == corpora["a16"].fingerprint
    assert_equal(take(training(corpora["a16"]), 3), take(training(alone), 3))
    order = RowOrder(curriculum(corpora, "a16", "b16", stages=(Stage(SHORT, 9),)), BATCH)
    rows = corpora["a16"].train.rows + corpora["b16"].train.rows
    assert collections.Counter(order[row] for row in range(rows)) == collections.Counter(
        (number, row) for number, name in enumerate(("a16", "b16")) for row in range(corpora[name].train.rows)
    )


def test_identity_tells_mixtures_apart(corpora, both):
    identities = [
        both.identity,
        curriculum(corpora, "a16:0.6", "b16:0.4", "a32:1", "b32:1").identity,
        curriculum(corpora, "b16:0.3", "a16:0.7", "a32:1", "b32:1").identity,
        curriculum(corpora, "a16:0.7", "b16:0.3", "a32", stages=(Stage(SHORT, 30), Stage(LONG, 12))).identity,
        curriculum(
            corpora, "a16:0.7", "b16:0.3", "a32:1", "b32:1", stages=(Stage(SHORT, 31), Stage(LONG, 11))
        ).identity,
    ]
    assert len({json.dumps(identity) for identity in identities}) == len(identities)
    assert curriculum(corpora, "a16:7", "b16:3", "a32:5", "b32:5").identity == both.identity
    assert json.loads(json.dumps(both.identity)) == both.identity  # as a checkpoint stores it


@pytest.mark.parametrize(
    ("given", "lengths", "message"),
    [
        (["a16", "a32"], [16], r"a32 has rows of 32 tokens, but the run has rows of 16; .*or give --curriculum"),
        (["a32"], [16], "contains a corpus with sequence_length 32, not 16; prepare the text again"),
        (["a16"], [16, 32], "has the length 32, but no corpus has; .*`deberta-jax prepare --sequence-length 32`"),
        (["a16", "a32"], [16, 64], "a32 has rows of 32 tokens, but the run has rows of 16, 64"),
        (["a16:1", "b16"], [16], "'b16' has no weight, but other corpora have one"),
        (["a16:1", "a16:2"], [16], "corpus a16 is given twice; give it once, with the sum of the weights"),
    ],
)
def test_corpora_that_do_not_fit_are_named(corpora, given, lengths, message):
    with pytest.raises(UserError, match=message) as caught:
        curriculum(corpora, *given, stages=[Stage(length, 5) for length in lengths])
    assert "\n" not in str(caught.value)


def test_a_corpus_of_another_tokenizer_is_named(corpora):
    other = dataclasses.replace(corpora["b16"], tokenizer="other words")
    with pytest.raises(UserError, match=r"b16 contains a corpus with tokenizer 'other words', not 'words'; prepare"):
        arrange([("a16", corpora["a16"]), ("b16", other)], [Stage(SHORT, 5)], tokenizer=Words())
