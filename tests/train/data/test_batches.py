"""Tests that batches are the same on any number of hosts and after any interruption, with each row once per epoch."""

import itertools
import json
import zlib

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.data.batches import TrainingBatches, held_out_batches
from deberta_jax.train.data.masking import MaskingConfig
from deberta_jax.train.data.prepare import prepare

S, BATCH = 32, 8
CLS, SEP, VOCABULARY = 1, 2, 500
MASKING = MaskingConfig(max_ngram=3, replace="mlm")


class Words:
    """A tokenizer of whole words, whose ids are hashes."""

    pad_id, cls_id, sep_id, unk_id, mask_id = 0, CLS, SEP, 3, VOCABULARY
    vocab_size, fingerprint = VOCABULARY + 1, "words"
    is_special = np.isin(np.arange(VOCABULARY + 1), [0, 1, 2, 3, VOCABULARY])
    starts_word = np.arange(VOCABULARY + 1) % 3 > 0

    def encode_batch(self, texts):
        return [[4 + zlib.crc32(word.encode()) % (VOCABULARY - 4) for word in text.split()] for text in texts]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus of 43 training rows in files of about 10, so that an epoch ends inside a batch, and 7 held-out rows."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data")
    documents = [" ".join(f"w{n}" for n in rng.integers(0, 9999, rng.integers(5, 50))) for _ in range(50)]
    (folder / "a.txt").write_text("\n".join(documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deberta_jax.train.data.prepare.SHARD_BYTES", 10 * 2 * S)
        made = prepare(
            [folder / "a.txt"], Words(), folder / "c", sequence_length=S, boundary="line", held_out_fraction=0.15
        )
    assert len(made.train.files) > 1
    assert made.train.rows % BATCH
    assert made.held_out.rows % 4
    return made


def local_part(batch, host, hosts):
    """Returns the positions of one host in the global batch, for hosts in a row."""
    return np.arange(batch).reshape(hosts, -1)[host]


def training(corpus, *, batch=BATCH, seed=5, masking=MASKING, host=0, hosts=1):
    return TrainingBatches(
        corpus,
        tokenizer=Words(),
        masking=masking,
        global_batch=batch,
        seed=seed,
        batch_indices=local_part(batch, host, hosts),
    )


def take(batches, count):
    """Returns the next batches of a stream and closes it."""
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_equal(first, second):
    assert len(first) == len(second)
    for left, right in zip(first, second, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def originals(batch) -> list[bytes]:
    """Returns the rows before masking, which identify them."""
    ids = batch["input_ids"].copy()
    rows, slots = np.nonzero(batch["masked_labels"])
    ids[rows, batch["masked_positions"][rows, slots]] = batch["masked_labels"][rows, slots]
    return [row.tobytes() for row in ids]


def by_row(batches) -> dict[int, tuple[bytes, ...]]:
    """Returns all arrays of each row, keyed by its number in the stream."""
    contents = {}
    for batch in batches:
        for index, row in enumerate(batch["row"].tolist()):
            assert row not in contents
            contents[row] = tuple(batch[name][index].tobytes() for name in sorted(batch) if name != "row")
    return contents


def test_batch_has_documented_arrays(corpus):
    (batch,) = take(training(corpus), 1)
    slots = MASKING.slots(S)
    assert {name: (array.dtype, array.shape) for name, array in batch.items()} == {
        "input_ids": (np.int32, (BATCH, S)),
        "segment_ids": (np.int32, (BATCH, S)),
        "masked_positions": (np.int32, (BATCH, slots)),
        "masked_labels": (np.int32, (BATCH, slots)),
        "row": (np.int64, (BATCH,)),
    }
    assert batch["row"].tolist() == list(range(BATCH))
    for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
        segment = 0
        for token, segment_id in zip(ids, segments, strict=True):
            segment += token == CLS
            assert segment_id == (segment if token else 0)
        assert segments[0] == 1
        assert segments.max() == np.count_nonzero(ids == SEP) == segment
    assert batch["segment_ids"].max() > 1


def test_epoch_has_each_row_once_in_new_order_with_new_masks(corpus):
    rows = corpus.train.rows
    stream = take(training(corpus), 3 * rows // BATCH + 1)
    texts = list(itertools.chain.from_iterable(map(originals, stream)))
    epochs = [texts[start : start + rows] for start in range(0, 3 * rows, rows)]
    assert len(set(epochs[0])) == rows
    for epoch in epochs[1:]:
        assert sorted(epoch) == sorted(epochs[0])
        assert epoch != epochs[0]
    positions = np.concatenate([batch["masked_positions"] for batch in stream])
    changed = [
        not np.array_equal(positions[texts.index(text)], positions[rows + epochs[1].index(text)]) for text in epochs[0]
    ]
    assert np.mean(changed) > 0.9


def test_batches_of_one_row_are_those_of_larger_batches(corpus):
    """Grain would count one more batch than fits into 64 bits."""
    rows = by_row(take(training(corpus, batch=1), 2 * BATCH))
    assert rows == by_row(take(training(corpus), 2))
    resumed = training(corpus, batch=1)
    resumed.set_state({"global_next_index": 5})
    assert by_row(take(resumed, 3)) == {row: rows[row] for row in (5, 6, 7)}
    for index in (-1, 2**53, 2**64, 1.0, None):
        with pytest.raises(UserError, match="is not a position"):
            resumed.set_state({"global_next_index": index})


def test_seed_determines_order_and_masks(corpus):
    first = take(training(corpus), 3)
    assert_equal(first, take(training(corpus), 3))
    other = take(training(corpus, seed=6), 3)
    assert originals(other[0]) != originals(first[0])
    assert not np.array_equal(first[0]["masked_positions"], other[0]["masked_positions"])


@pytest.mark.parametrize("stop", [0, 2, 5, 6, 11])  # an epoch is 5 batches and a bit
def test_resume_equals_uninterrupted_stream(corpus, stop):
    whole = take(training(corpus), stop + 8)
    interrupted = training(corpus)
    take(interrupted, stop)
    state = json.loads(json.dumps(interrupted.get_state()))
    assert state == {"global_next_index": stop * BATCH}
    resumed = training(corpus)
    resumed.set_state(state)
    assert_equal(take(resumed, 8), whole[stop:])
    rewound = training(corpus)
    for _ in range(4):
        next(rewound)
    rewound.set_state(state)
    assert_equal(take(rewound, 2), whole[stop : stop + 2])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_divide_the_same_batches(corpus, hosts):
    alone = take(training(corpus), 9)
    parts = [take(training(corpus, host=host, hosts=hosts), 9) for host in range(hosts)]
    for step, batch in enumerate(alone):
        together = by_row(part[step] for part in parts)
        assert together == by_row([batch])
        assert all(len(part[step]["row"]) == BATCH // hosts for part in parts)


def test_resume_with_other_hosts_and_batch_size(corpus):
    alone = by_row(take(training(corpus), 12))
    streams = [training(corpus, host=host, hosts=2) for host in range(2)]
    before = by_row(itertools.chain.from_iterable(take(stream, 3) for stream in streams))
    (state,) = {json.dumps(stream.get_state()) for stream in streams}
    after = []
    for host in range(4):
        stream = training(corpus, batch=16, host=host, hosts=4)
        stream.set_state(json.loads(state))
        after += take(stream, 4)
    resumed = by_row(after)
    assert not before.keys() & resumed.keys()
    assert before | resumed == {row: alone[row] for row in range(3 * 8 + 4 * 16)}


def test_batch_may_exceed_corpus(corpus):
    (batch,) = take(training(corpus, batch=3 * corpus.train.rows), 1)
    texts = originals(batch)
    assert {texts.count(text) for text in texts} == {3}


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_is_one_pass_with_fixed_masks(corpus, hosts):
    def run(host, hosts):
        return list(
            held_out_batches(
                corpus,
                tokenizer=Words(),
                masking=MASKING,
                global_batch=4,
                batch_indices=local_part(4, host, hosts),
            )
        )

    rows = corpus.held_out.rows
    parts = [run(host, hosts) for host in range(hosts)]
    assert {len(part) for part in parts} == {-(-rows // 4)}
    batches = list(itertools.chain.from_iterable(parts))
    padding = sum(np.count_nonzero(batch["row"] < 0) for batch in batches)
    assert padding == -rows % 4
    for batch in batches:
        empty = batch["row"] < 0
        for name in ("input_ids", "segment_ids", "masked_positions", "masked_labels"):
            assert batch[name].dtype == np.int32
            assert not batch[name][empty].any()
        assert batch["masked_labels"][~empty].any(axis=1).all()
    real = [{name: array[batch["row"] >= 0] for name, array in batch.items()} for batch in batches]
    evaluated = by_row(real)
    assert sorted(evaluated) == list(range(rows))
    assert evaluated == by_row({name: array[batch["row"] >= 0] for name, array in batch.items()} for batch in run(0, 1))


def test_training_and_held_out_rows_are_disjoint(corpus):
    trained = set(itertools.chain.from_iterable(map(originals, take(training(corpus), 6))))
    evaluated = held_out_batches(corpus, tokenizer=Words(), masking=MASKING, global_batch=1)
    held_out = set(itertools.chain.from_iterable(map(originals, evaluated)))
    assert len(held_out) == corpus.held_out.rows
    assert not trained & held_out


def test_invalid_settings(corpus):
    with pytest.raises(ValueError, match="global batch has 0 rows; it must have at least 1"):
        training(corpus, batch=0)
    with pytest.raises(ValueError, match="seed is -1; it must not be negative"):
        training(corpus, seed=-1)
    other = Words()
    other.fingerprint = "other"
    with pytest.raises(ValueError, match="contains a corpus with tokenizer 'words', not 'other'; prepare the text"):
        TrainingBatches(corpus, tokenizer=other, masking=MASKING, global_batch=8, seed=0)


def test_corpus_without_held_out_rows(corpus, tmp_path):
    text = corpus.folder.parent / "a.txt"
    whole = prepare([text], Words(), tmp_path / "c", sequence_length=S, boundary="line", held_out_fraction=0)
    with pytest.raises(ValueError, match="has no held-out rows; prepare it with a held_out_fraction above 0"):
        held_out_batches(whole, tokenizer=Words(), masking=MASKING, global_batch=4)


def test_damaged_and_swapped_files_are_named(corpus, tmp_path):
    text = corpus.folder.parent / "a.txt"
    made = prepare([text], Words(), tmp_path / "c", sequence_length=S, boundary="line", held_out_fraction=0)
    file = made.folder / made.train.files[0].name
    other = corpus.folder / corpus.train.files[0].name
    assert other.stat().st_size == file.stat().st_size  # ArrayRecord fills whole blocks
    file.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=rf"train-00000\.array_record has 10 rows instead of {made.train.rows}; copy"):
        training(made)
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ValueError, match=r"train-00000\.array_record is damaged: .*; copy the folder again") as caught:
        training(made)
    assert "\n" not in str(caught.value)


def test_damaged_row_is_named(corpus, tmp_path):
    text = corpus.folder.parent / "a.txt"
    made = prepare([text], Words(), tmp_path / "c", sequence_length=S, boundary="line", held_out_fraction=0)
    file = made.folder / made.train.files[0].name
    content = bytearray(file.read_bytes())
    content[1000] ^= 255  # among the first rows
    file.write_bytes(content)
    stream = training(made, batch=made.train.rows)
    with pytest.raises(
        ValueError, match=r"train-00000\.array_record: row \d+ is damaged: .*; copy the folder again, or prepare"
    ):
        next(stream)
    stream.close()
