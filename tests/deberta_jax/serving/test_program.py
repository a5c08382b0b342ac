"""Exported programs: any batch and length, every platform, stable custom calls, and one line for what cannot be."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import DisabledSafetyCheck, export, symbolic_shape

from deberta_jax import Deberta, DebertaConfig
from deberta_jax.convert.mapping import to_params
from deberta_jax.errors import UserError
from deberta_jax.serving.load import difference, tolerance
from deberta_jax.serving.program import TASKS, TaskName, example_inputs, find_task, inputs_of, serving_program

from ...support.baselines import SMALL
from ...support.golden_cases import assert_close
from ...support.pytorch_files import UNUSUAL, V1, V3, random_state
from ...support.xlnet import SMALL as XLNET_JSON

XLNET = DebertaConfig.from_json(XLNET_JSON)
BASELINE = DebertaConfig.from_json(SMALL["roberta"]).replace(vocab_size=50)


def params_of(config: DebertaConfig, task: TaskName) -> dict[str, Any]:
    if config.model_type == "xlnet":  # whose published arrays have other shapes
        ids = jnp.zeros((1, 4), jnp.int32)
        return jax.jit(TASKS[task].model(config.replace(initializer_range=0.3)).init)(jax.random.key(0), ids)["params"]
    return to_params(random_state(config, *TASKS[task].head), config)


def rows_of(batch: int, length: int) -> list[list[int]]:
    """Returns rows of random ids, the first one shorter."""
    rows = np.random.default_rng(batch).integers(5, 50, (batch, length)).tolist()
    return [rows[0][: max(1, length - 2)], *rows[1:]]


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (V3, "masked-lm"),
        (V1, "encoder"),
        (UNUSUAL, "replaced-tokens"),
        (BASELINE, "encoder"),
        (XLNET, "classification"),
    ],
    ids=["v3", "v1", "unusual", "roberta", "xlnet"],
)
def test_one_program_is_the_model_at_every_length(config: DebertaConfig, task: TaskName) -> None:
    program = serving_program(config, params_of(config, task), task=task)
    assert program.exported.platforms == ("cpu", "tpu", "cuda")
    for batch, length in ((1, 1), (3, 32), *([] if program.longest else [(2, 70)])):
        inputs = example_inputs(program, rows_of(batch, length), pad_id=config.pad_token_id)
        expected = program.run_model(inputs)
        for name, output in program.run(inputs).items():
            assert_close(output, expected[name], 1e-5, name)
            assert np.isfinite(output).all()


def test_custom_calls_are_those_that_jax_keeps_stable() -> None:
    exported = serving_program(V3, params_of(V3, "masked-lm"), task="masked-lm").exported
    targets = set(re.findall(r"custom_call @([\w.]+)", exported.mlir_module()))
    assert targets == {"shape_assertion"}
    assert not exported.disabled_safety_checks


@pytest.mark.parametrize("config", [V3, V1], ids=["buckets", "none"])
def test_the_program_of_a_tpu_computes_the_same(config: DebertaConfig) -> None:
    """The shift, which it has in place of the gather, runs on any platform."""
    params = params_of(config, "encoder")["deberta"]
    model = Deberta(config, attention_implementation="xla")
    shape = jax.ShapeDtypeStruct(symbolic_shape("batch, length"), jnp.int32)

    def encode(ids: jax.Array) -> jax.Array:
        return model.apply({"params": params}, ids).last_hidden_state  # type: ignore[union-attr]

    check = DisabledSafetyCheck.platform()
    run = jax.jit(export(jax.jit(encode), platforms=["tpu"], disabled_checks=[check])(shape).call)
    for batch, length in ((2, 1), (1, 40)):
        ids = np.array(rows_of(1, length + 2) * batch, np.int32)
        assert_close(run(ids), jax.jit(encode)(ids), 1e-5)


def test_sizes_can_be_fixed() -> None:
    program = serving_program(V3, params_of(V3, "encoder"), task="encoder", platforms=["cpu"], batch_size=2, length=8)
    assert inputs_of(program)["input_ids"] == (2, 8)
    assert "custom_call" not in program.exported.mlir_module()
    inputs = example_inputs(program, rows_of(1, 20), pad_id=0)
    assert program.run(inputs)["last_hidden_state"].shape == (2, 8, 16)


def test_more_tokens_than_positions_are_refused() -> None:
    params = params_of(V3, "masked-lm")
    program = serving_program(V3, params, task="masked-lm", platforms=["cpu"])
    assert program.longest == 32
    with pytest.raises(ValueError, match="length"):
        program.run(example_inputs(program, rows_of(1, 36), pad_id=0))
    with pytest.raises(UserError, match=r"^length is 33, but the model has positions for 32 tokens$"):
        serving_program(V3, params, task="masked-lm", length=33)
    with pytest.raises(UserError, match=r"^batch_size is 0; it must be at least 1$"):
        serving_program(V3, params, task="masked-lm", batch_size=0)


def test_the_kernels_are_refused_for_a_variable_length() -> None:
    model = Deberta(V3, attention_implementation="pallas")
    shape = jax.ShapeDtypeStruct(symbolic_shape("batch, length"), jnp.int32)
    with pytest.raises(UserError, match=r"the length is a variable of jax\.export"):
        export(jax.jit(model.init), platforms=["tpu"])(jax.random.key(0), shape)


def test_the_head_tells_the_task() -> None:
    def found(*heads: str, task: TaskName | None = None) -> TaskName:
        return find_task(dict.fromkeys(("deberta", *heads)), task, where="here")

    assert found() == found("pooler") == "encoder"
    assert found("pooler", "classifier") == "classification"
    assert found("pooler", "classifier", task="choice") == "choice"
    assert found("classifier") == "tokens"
    assert found("span_classifier") == "span"
    assert found("rtd_head") == "replaced-tokens"
    assert found("mlm_head", "rtd_head", task="masked-lm") == "masked-lm"
    with pytest.raises(UserError, match=r"^here has the heads of masked-lm, replaced-tokens; choose one with --task"):
        found("mlm_head", "rtd_head")
    with pytest.raises(UserError, match=r"^here has no pooler, classifier, which choice needs; .* as span, encoder$"):
        found("span_classifier", task="choice")


def test_the_loader_finds_a_nan_in_any_output() -> None:
    good, bad = np.ones(2), np.array([1, np.nan])
    assert difference({"a": good, "b": 1.5 * good}, {"a": good, "b": 2 * good}) == 0.25
    for outputs in ({"a": good, "b": bad}, {"a": bad, "b": good}):
        assert not difference(outputs, {"a": good, "b": good}) <= tolerance("float32")
