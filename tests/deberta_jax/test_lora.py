"""LoRA on the models: no difference at the start, adapters where they are asked for, and their sums with kernels."""

import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from deberta_jax import DebertaForMaskedLM, DebertaForSequenceClassification, UserError
from deberta_jax.errors import MissingPackageError
from deberta_jax.lora import TARGETS, LoraConfig, adapted_model, adapters_of, check_targets, joined, merged
from deberta_jax.sharding import parameter_path

from ..support import small_models
from ..support.small_models import random_params

SMALL = small_models.SMALL.replace(num_hidden_layers=2, initializer_range=0.1)
IDS = np.asarray(jax.random.randint(jax.random.key(1), (2, 12), 5, 60))
ALL = tuple(target for target in TARGETS if not target.startswith("pos_"))


def model_and_adapters(model: Any, lora: LoraConfig, ids: np.ndarray = IDS) -> tuple[Any, Any, Any]:
    """Returns the adapted model, parameters of the plain one, and adapters whose product is not zero."""
    pytest.importorskip("qwix")
    adapted = adapted_model(model, lora, train=False)
    params = random_params(model, ids)
    shapes = adapters_of(jax.eval_shape(adapted.init, jax.random.key(0), ids)["params"])
    rng = np.random.default_rng(1)
    return adapted, params, jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)


def logits(model: Any, params: Any, ids: np.ndarray = IDS) -> Any:
    return jax.jit(lambda params, ids: model.apply({"params": params}, ids).logits)(params, ids)


@pytest.mark.parametrize("remat", [False, True])
def test_adapters_change_nothing_at_the_start_and_only_adapters_are_added(remat: bool) -> None:
    pytest.importorskip("qwix")
    plain = DebertaForSequenceClassification(SMALL, remat=remat)
    adapted = adapted_model(plain, LoraConfig(rank=4), train=False)
    params = jax.jit(adapted.init)(jax.random.key(0), IDS)["params"]
    adapters = adapters_of(params)
    names = [parameter_path(path) for path, _ in jax.tree.leaves_with_path(adapters)]
    assert len(names) == 2 * 2 * SMALL.num_hidden_layers
    assert all(
        re.fullmatch(r"deberta/encoder/layer_\d/attention/(query|value)_proj/kernel_lora_[ab]", x) for x in names
    )
    before = jax.jit(plain.init)(jax.random.key(0), IDS)["params"]
    assert jax.tree.structure(joined(before, adapters)) == jax.tree.structure(params)
    np.testing.assert_array_equal(logits(adapted, joined(before, adapters)), logits(plain, before))
    first = adapters["deberta"]["encoder"]["layer_0"]["attention"]["query_proj"]
    assert not first["kernel_lora_b"].any()
    bound = SMALL.hidden_size**-0.5  # of PEFT's initial values
    assert bound / 2 < abs(first["kernel_lora_a"]).max() <= bound


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        (DebertaForSequenceClassification(SMALL), ALL),
        (DebertaForSequenceClassification(SMALL.replace(share_att_key=False, conv_kernel_size=3)), TARGETS),
        (DebertaForMaskedLM(SMALL.replace(position_biased_input=False)), ALL),  # whose last layer is the decoder, too
    ],
)
def test_merged_parameters_equal_the_adapted_model(model: Any, targets: Any) -> None:
    lora = LoraConfig(rank=4, alpha=12, targets=targets)
    adapted, params, adapters = model_and_adapters(model, lora)
    found = {parameter_path(path).rpartition("/")[0] for path, _ in jax.tree.leaves_with_path(adapters)}
    assert len(found) == len(targets) * SMALL.num_hidden_layers
    both = joined(params, adapters)
    plain = merged(both, lora.scale)
    assert jax.tree.structure(plain) == jax.tree.structure(params)
    expected = logits(adapted, both)
    np.testing.assert_allclose(logits(model, plain), expected, atol=1e-5, rtol=1e-5)
    assert np.abs(logits(model, params) - expected).max() > 1e-2


@pytest.mark.slow
def test_the_fused_kernels_read_adapted_projections() -> None:
    config = SMALL.replace(num_hidden_layers=1, max_position_embeddings=128)
    ids = np.asarray(jax.random.randint(jax.random.key(1), (1, 128), 5, 60))
    lora = LoraConfig(rank=4, targets=ALL)
    with pltpu.force_tpu_interpret_mode():
        fused = DebertaForSequenceClassification(config, attention_implementation="pallas")
        adapted, params, adapters = model_and_adapters(fused, lora, ids)
        both = joined(params, adapters)
        found = logits(adapted, both, ids)
    plain = DebertaForSequenceClassification(config, attention_implementation="xla")
    np.testing.assert_allclose(found, logits(plain, merged(both, lora.scale), ids), atol=1e-4)


def test_dropout_of_the_adapters_is_for_training_only() -> None:
    lora = LoraConfig(rank=4, dropout=0.5)
    still = SMALL.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    evaluated, params, adapters = model_and_adapters(DebertaForSequenceClassification(still), lora)
    trained = adapted_model(DebertaForSequenceClassification(still), lora, train=True)

    @jax.jit
    def train(params: Any, key: jax.Array) -> Any:
        return trained.apply({"params": params}, IDS, train=True, rngs={"dropout": key}).logits

    both = joined(params, adapters)
    expected = logits(evaluated, both)
    draws = [train(both, jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 1e-3
    assert np.abs(draws[0] - expected).max() > 1e-3


def test_bfloat16_keeps_its_type() -> None:
    lora = LoraConfig(rank=4, targets=ALL)
    model = DebertaForSequenceClassification(SMALL.replace(initializer_range=0.05), dtype=jnp.bfloat16)
    adapted, params, adapters = model_and_adapters(model, lora)
    both = joined(params, adapters)
    call = jax.jit(lambda params: adapted.apply({"params": params}, IDS, output_hidden_states=True))
    out = call(both)
    assert {state.dtype for state in out.hidden_states} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(out.logits, logits(model, merged(both, lora.scale)), atol=0.05)


def test_arrays_of_numpy_are_refused_outside_of_jit() -> None:
    """qwix would leave the adapters out without a word."""
    adapted, params, adapters = model_and_adapters(DebertaForSequenceClassification(SMALL), LoraConfig(rank=4))
    with pytest.raises(TypeError, match=r"needs arrays of JAX as parameters; call it under jax.jit"):
        adapted.apply({"params": joined(params, adapters)}, IDS)


def test_a_plain_model_refuses_adapters_that_it_would_not_read() -> None:
    _, params, adapters = model_and_adapters(DebertaForSequenceClassification(SMALL), LoraConfig(rank=4))
    with pytest.raises(UserError, match=r"_proj/kernel_lora_a, .*which Dense does not read"):
        DebertaForSequenceClassification(SMALL).apply({"params": joined(params, adapters)}, IDS)


def test_layers_below_the_first_one_have_no_adapters() -> None:
    pytest.importorskip("qwix")
    model = adapted_model(DebertaForSequenceClassification(SMALL), LoraConfig(rank=4), train=False, first_layer=1)
    adapters = adapters_of(jax.eval_shape(model.init, jax.random.key(0), IDS)["params"])
    assert list(adapters["deberta"]["encoder"]) == ["layer_1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "the rank of LoRA is -1; it must be 0 to"),
        ({"rank": 4, "alpha": 0.0}, "the alpha of LoRA is 0.0; it must be above 0"),
        ({"rank": 4, "dropout": 1.0}, "the dropout of LoRA is 1.0; it must be at least 0 and below 1"),
        ({"rank": 4, "targets": ("query",)}, "targets of LoRA are query; give each once, of: query_proj, key_proj"),
        ({"rank": 4, "targets": ()}, "targets of LoRA are nothing; give each once"),
        ({"alpha": 8.0}, "alpha of LoRA needs a rank; give --lora.rank as well"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        LoraConfig(**options)


def test_targets_and_ranks_that_do_not_fit_the_model_are_refused() -> None:
    params = random_params(DebertaForSequenceClassification(SMALL), IDS)
    check_targets(params, LoraConfig(rank=31, targets=ALL))
    with pytest.raises(UserError, match=r"no projection pos_key_proj for .*; it has query_proj, .*feed_forward/output"):
        check_targets(params, LoraConfig(rank=4, targets=("pos_key_proj",)))
    with pytest.raises(UserError, match="rank of LoRA is 32, but the smaller side of query_proj has only 32 numbers"):
        check_targets(params, LoraConfig(rank=32))


def test_without_qwix_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(MissingPackageError, match=re.escape("pip install 'deberta-jax[adapt]'")):
        adapted_model(DebertaForSequenceClassification(SMALL), LoraConfig(rank=4), train=False)
