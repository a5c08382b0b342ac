"""Tests of the batches of examples: every example once per epoch, on any number of hosts, after any interruption."""

import collections
import itertools
import json

import numpy as np
import pytest

from deberta_jax.train.tasks.batches import FinetuneBatches, evaluation_batches, padded_length
from deberta_jax.train.tasks.classification.encoding import EncodedExamples
from deberta_jax.train.tasks.ragged import Ragged


def examples_of_lengths(lengths, *, width, labeled=True):
    """Returns examples whose labels are their indices."""
    ids = Ragged.of([1] * length for length in lengths)
    labels = np.arange(len(lengths), dtype=np.int32)
    return EncodedExamples(ids, None, labels if labeled else None)


def examples(count):
    return examples_of_lengths([2] * count, width=2)


def training(count, *, batch_size=4, seed=3, batch_indices=None):
    return FinetuneBatches(examples(count), batch_size=batch_size, max_length=2, seed=seed, batch_indices=batch_indices)


def drawn(batches, count):
    return [next(batches)["labels"].tolist() for _ in range(count)]


def parts(hosts):
    """Returns the positions of each host in a batch of 4."""
    return np.arange(4).reshape(hosts, -1)


# ----------------------------------------------------------------------------------------------------------- training


def test_training_batches_are_static_and_int32():
    batch = next(training(5))
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "input_ids": ((4, 2), "int32"),
        "attention_mask": ((4, 2), "int32"),
        "token_type_ids": ((4, 2), "int32"),
        "labels": ((4,), "int32"),
    }


def test_training_needs_labels():
    with pytest.raises(ValueError, match="training needs labels"):
        FinetuneBatches(examples_of_lengths([2], width=2, labeled=False), batch_size=1, max_length=2, seed=0)


def test_every_epoch_has_each_example_once_in_another_order():
    order = np.concatenate(drawn(training(10), 5))
    first, second = order[:10].tolist(), order[10:].tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert drawn(training(10, seed=4), 1)[0] != first[:4]


def test_resuming_equals_never_having_stopped():
    whole = drawn(training(7), 8)
    stopped = training(7)
    assert drawn(stopped, 3) == whole[:3]
    state = json.loads(json.dumps(stopped.get_state()))
    assert state == {"global_next_index": 12}
    resumed = training(7)
    next(resumed)  # a position can be restored after a batch was drawn
    resumed.set_state(state)
    assert drawn(resumed, 5) == whole[3:]


def test_batches_of_one_example_on_one_host_and_resumed():
    whole = [labels[0] for labels in drawn(training(5, batch_size=1), 10)]
    assert sorted(whole[:5]) == sorted(whole[5:]) == list(range(5))
    assert whole == np.concatenate(drawn(training(5, batch_size=2), 5)).tolist()
    resumed = training(5, batch_size=1)
    resumed.set_state({"global_next_index": 4})
    assert [labels[0] for labels in drawn(resumed, 6)] == whole[4:]


def test_hosts_share_each_global_batch_and_their_number_may_change():
    whole = drawn(training(9), 6)
    two = [training(9, batch_indices=indices) for indices in parts(2)]
    batches = [drawn(host, 3) for host in two]
    assert [a + b for a, b in zip(*batches, strict=True)] == whole[:3]
    assert two[0].get_state() == two[1].get_state() == {"global_next_index": 12}
    four = [training(9, batch_indices=indices) for indices in parts(4)]
    for host in four:
        host.set_state(two[0].get_state())
    batches = [drawn(host, 3) for host in four]
    assert [list(itertools.chain(*labels)) for labels in zip(*batches, strict=True)] == whole[3:]


def test_the_examples_of_a_host_need_not_be_neighbors():
    """On a torus of chips they are not."""
    local = drawn(training(9, batch_indices=np.array([0, 3])), 3)
    assert local == [[batch[0], batch[3]] for batch in drawn(training(9), 3)]


def test_a_batch_may_be_larger_than_the_data():
    counts = collections.Counter(drawn(training(3, batch_size=6), 1)[0])
    assert counts == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize("state", [{}, {"global_next_index": -1}, {"global_next_index": 1, "more": 2}, {"next": 1}])
def test_bad_positions_in_the_stream_are_refused(state):
    with pytest.raises(ValueError, match="is not a position"):
        training(3).set_state(state)


@pytest.mark.parametrize(
    ("batch_size", "indices", "message"),
    [
        (0, None, "the global batch has 0 rows"),
        (4, [], "has positions 0 to 3; given"),
        (4, [3, 4], "has positions 0 to 3; given"),
    ],
)
def test_bad_positions_in_the_batch_are_refused(batch_size, indices, message):
    indices = indices if indices is None else np.array(indices, np.int64)
    with pytest.raises(ValueError, match=message):
        training(3, batch_size=batch_size, batch_indices=indices)
    with pytest.raises(ValueError, match=message):
        next(evaluation_batches(examples(3), batch_size=batch_size, max_length=2, batch_indices=indices))


# --------------------------------------------------------------------------------------------------------- evaluation


def evaluation(count, *, batch_indices=None):
    return list(evaluation_batches(examples(count), batch_size=4, max_length=2, batch_indices=batch_indices))


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_evaluation_has_each_example_once(count, batches):
    seen = evaluation(count)
    assert len(seen) == batches
    assert all(batch["input_ids"].shape == (4, 2) for _, batch in seen)
    assert sorted(np.concatenate([indices for indices, _ in seen]).tolist()) == list(range(count))
    for indices, batch in seen:
        assert batch["labels"].tolist() == indices.tolist() + [indices[-1]] * (4 - len(indices))
        assert batch["attention_mask"].all()  # no row without tokens


def test_evaluation_on_two_hosts_equals_that_on_one():
    hosts = [evaluation(5, batch_indices=indices) for indices in parts(2)]
    for (indices, batch), (first_indices, first), (second_indices, second) in zip(evaluation(5), *hosts, strict=True):
        assert indices.tolist() == first_indices.tolist() == second_indices.tolist()
        for name, value in batch.items():
            np.testing.assert_array_equal(value, np.concatenate([first[name], second[name]]))


# ------------------------------------------------------------------------------------------------------------ lengths


@pytest.mark.parametrize(
    ("longest", "most", "padded"), [(1, 512, 64), (64, 512, 64), (65, 512, 128), (300, 320, 320), (20, 32, 32)]
)
def test_padded_lengths_are_few(longest, most, padded):
    assert padded_length(longest, most) == padded


def test_all_hosts_pad_to_the_longest_example_of_the_global_batch():
    encoded = examples_of_lengths([10, 60, 20, 65, 30, 40], width=200)
    lengths = set()
    hosts = [
        FinetuneBatches(encoded, batch_size=2, max_length=200, seed=1, batch_indices=np.array([position]))
        for position in (0, 1)
    ]
    for _ in range(3):
        first, second = (next(host) for host in hosts)
        longest = max(encoded.lengths[first["labels"][0]], encoded.lengths[second["labels"][0]])
        assert first["input_ids"].shape == second["input_ids"].shape == (1, padded_length(longest, 200))
        lengths.add(first["input_ids"].shape[1])
    assert lengths == {64, 128}
    batches = evaluation_batches(encoded, batch_size=2, max_length=200)
    assert [(indices.tolist(), batch["input_ids"].shape[1]) for indices, batch in batches] == [
        ([0, 2], 64),
        ([4, 5], 64),
        ([1, 3], 128),
    ]


def grouped(lengths, *, batch, seed=3, epochs=2, start=0):
    batches = FinetuneBatches(
        examples_of_lengths(lengths, width=128), batch_size=batch, max_length=128, seed=seed, group=True
    )
    batches.set_state({"global_next_index": start})
    return drawn(batches, (epochs * len(lengths) - start) // batch)


def test_grouped_batches_have_similar_lengths_and_each_example_once_per_epoch():
    lengths = np.random.default_rng(0).integers(1, 128, 1000)
    batches = grouped(lengths, batch=8)
    order = np.concatenate(batches)
    assert sorted(order[:1000]) == sorted(order[1000:]) == list(range(1000))
    spread = [np.ptp(lengths[batch]) for batch in batches]
    assert np.median(spread) < 10  # among 400 sorted examples; about 100 in random order
    means = [lengths[batch].mean() for batch in batches[:50]]
    assert np.abs(np.corrcoef(means, np.arange(50))[0, 1]) < 0.5  # batches are not in order of length
    assert grouped(lengths, batch=8, seed=4)[0] != batches[0]


def test_grouped_epochs_that_end_inside_a_batch_resume_exactly():
    lengths = np.random.default_rng(0).integers(1, 128, 107)
    whole = grouped(lengths, batch=4, epochs=6)
    order = np.concatenate(whole)
    for epoch in range(5):
        assert sorted(order[epoch * 107 : (epoch + 1) * 107]) == list(range(107))
    assert len(set(order[5 * 107 :])) == len(order[5 * 107 :]) == 105  # the last batch of epoch 6 is incomplete
    assert grouped(lengths, batch=4, epochs=6, start=4 * 41) == whole[41:]
