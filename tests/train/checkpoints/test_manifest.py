"""The manifest of a checkpoint: its format, its own checksum, and how two of them differ."""

import json

import jax.numpy as jnp
import pytest

from deberta_jax.train.checkpoints.manifest import (
    as_json,
    changed_digests,
    create_manifest,
    join_names,
    list_differences,
    verified_content,
)


def test_manifest_survives_json_with_every_field() -> None:
    state = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3, jnp.bfloat16)}}
    manifest = create_manifest(4, state, data={"next_index": 12}, identity={"betas": [0.9, 0.98]})
    content = verified_content(json.loads(json.dumps(manifest)))
    assert list(content) == ["step", "data", "identity", "versions", "leaves"]
    assert (content["step"], content["data"], content["identity"]) == (4, {"next_index": 12}, {"betas": [0.9, 0.98]})
    assert content["leaves"]["dense/kernel"]["shape"] == [2, 3]
    assert content["leaves"]["dense/bias"]["dtype"] == "bfloat16"
    assert {"jax", "orbax-checkpoint"} <= content["versions"].keys()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"content": {"step": 5}, "crc32": 1}, "wrong checksum of meta"),
        ({"content": {"step": 5}}, "meta is not a manifest"),
        ([1, 2], "meta is not a manifest"),
    ],
)
def test_what_was_not_written_is_refused(manifest: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verified_content(manifest)


def test_differences_have_dotted_names_and_both_values() -> None:
    there = as_json({"model": {"layers": 6, "betas": (0.9, 0.98)}, "seed": 1})
    here = {"model": {"layers": 12, "betas": [0.9, 0.98]}, "dtype": "float32"}
    assert list_differences(there, here) == [
        "model.layers is 6 there, 12 here",
        "seed is 1 there, absent here",
        'dtype is absent there, "float32" here',
    ]
    (difference,) = list_differences({"labels": ["a" * 9] * 10_000}, {"labels": []})
    assert len(difference) < 120
    assert [join_names(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_digests_that_a_checkpoint_lacks_are_unknown_rather_than_changed() -> None:
    here = {"examples": "aa", "weights": "bb"}
    assert changed_digests(here, here) == ([], [])
    assert changed_digests({}, here) == ([], ["examples", "weights"])
    assert changed_digests({"examples": "cc"}, here) == (["examples"], ["weights"])
    assert changed_digests(here, {"examples": "aa"}) == (["weights"], [])
