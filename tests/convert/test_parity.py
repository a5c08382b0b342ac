"""Live parity with transformers on PyTorch: encoder and every head, random weights, real tokens only.

Weights have a standard deviation of 0.2, ten times that of a fresh model. With 0.02, attention is nearly uniform and
the logits are nearly zero, so the error of a wrong position term would be below any tolerance.
"""

import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float, Int

from deberta_jax import DebertaConfig, models
from deberta_jax.convert.mapping import to_params
from deberta_jax.convert.quirks import adapt_heads

from ..support.golden_cases import assert_close

torch = pytest.importorskip("torch", reason="torch is not installed; the reference runs on it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the reference")
pytestmark = pytest.mark.torch

Inputs = dict[str, Int[np.ndarray, "B S"]]
Outputs = dict[str, list[Any]]  # by encoder or head

V1 = {
    "vocab_size": 120,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "pos_att_type": "c2p|p2c",
    "position_biased_input": False,
}
V3 = {**V1, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
FIELDS = {"v1": V1, "v2": {**V3, "conv_kernel_size": 3, "conv_act": "gelu"}, "v3": V3}
# Unlike in any released model, the input has absolute positions and token types.
BIASED = {**V3, "position_biased_input": True, "type_vocab_size": 2}
# 512 tokens reach the logarithmic buckets and the end of the tables; a single token has no neighbors at all.
LENGTHS = [
    pytest.param(version, length, marks=[pytest.mark.long] if is_long else [])
    for version in FIELDS
    for length, is_long in ((1, version != "v2"), (7, True), (40, False), (300, True), (512, False))
]
HEADS = {
    "masked LM": ("ForMaskedLM", {"legacy": False}),
    "legacy masked LM": ("ForMaskedLM", {"legacy": True}),
    "sequence classification": ("ForSequenceClassification", {"num_labels": 3}),
    "regression": ("ForSequenceClassification", {"num_labels": 1}),
    "token classification": ("ForTokenClassification", {"num_labels": 5}),
    "question answering": ("ForQuestionAnswering", {}),
    "multiple choice": ("ForMultipleChoice", {}),
}
ENCODER = "encoder"


def random_model(fields: dict[str, Any], suffix: str, **options: Any) -> Any:
    """Returns transformers' model of that class with random weights and LayerNorm scales near 1."""
    prefix = "DebertaV2" if "share_att_key" in fields else "Deberta"
    model = getattr(transformers, prefix + suffix)(getattr(transformers, prefix + "Config")(**fields, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("LayerNorm.weight" in name), 0.2)
    return model.eval()


@functools.cache
def torch_models(version: str) -> dict[str, Any]:
    """Returns the encoder and every head that transformers has for the version, all with the same encoder."""
    torch.manual_seed(0)
    by_name = {ENCODER: random_model(FIELDS[version], "Model")}
    for name, (suffix, options) in HEADS.items():
        if version == "v1" and suffix == "ForMultipleChoice":
            continue  # transformers has none
        model = random_model(FIELDS[version], suffix, **options)
        model.deberta.load_state_dict(by_name[ENCODER].state_dict())
        by_name[name] = model
    return by_name


def convert(model: Any) -> tuple[DebertaConfig, dict[str, Any]]:
    """Converts a model of transformers in memory."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config = DebertaConfig.from_json(json.loads(model.config.to_json_string(False)))
    config = adapt_heads(config, state.keys())
    return config, to_params(state, config)


@functools.cache
def flax_models(version: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Returns the converted modules and parameters by head; the encoder only once, so that XLA can merge its runs."""
    modules, params = {}, {}
    for name, model in torch_models(version).items():
        config, params[name] = convert(model)
        modules[name] = getattr(models, "Deberta" + HEADS[name][0] if name != ENCODER else "Deberta")(config)
        if name != ENCODER:
            jax.tree.map(np.testing.assert_array_equal, params[name].pop("deberta"), params[ENCODER]["deberta"])
    return modules, params


def make_inputs(length: int) -> Inputs:
    """Returns three examples, padded on the right, padded on the left, and without padding."""
    rng, index = np.random.default_rng(length), np.arange(length)
    third = length // 3
    mask = np.stack([index < length - third, index >= third, index >= 0]).astype(np.int32)
    return {"input_ids": rng.integers(1, 120, mask.shape, np.int32) * mask, "attention_mask": mask}


def as_choices(name: str, inputs: Inputs) -> dict[str, np.ndarray]:
    """Makes all examples the choices of one question for multiple choice: [B, S] -> [1, B, S]."""
    return {key: array[None] for key, array in inputs.items()} if name == "multiple choice" else inputs


def output_arrays(name: str, output: Any) -> list[Any]:
    """Returns the encoder's hidden states, embeddings first, or the logits [B, ...] of a head."""
    if name == ENCODER:
        return list(output.hidden_states)
    if name == "question answering":
        return [np.stack([output.start_logits, output.end_logits], axis=-1)]
    return [output.logits[0, :, None] if name == "multiple choice" else output.logits]


def run_torch(version: str, length: int) -> Outputs:
    inputs, outputs = make_inputs(length), {}
    for name, model in torch_models(version).items():
        tensors = {key: torch.from_numpy(array).long() for key, array in as_choices(name, inputs).items()}
        with torch.no_grad():
            outputs[name] = output_arrays(name, model(**tensors, output_hidden_states=name == ENCODER))
    return outputs


@functools.cache
def run_flax(version: str, length: int, dtype: Any = jnp.float32) -> Outputs:
    modules, params = flax_models(version)
    inputs = make_inputs(length)

    @jax.jit
    def run(params: dict[str, Any]) -> dict[str, Any]:
        outputs = {}
        for name, module in modules.items():
            tree = params[ENCODER]["deberta"] if name == ENCODER else {**params[ENCODER], **params[name]}
            options = {"output_hidden_states": True} if name == ENCODER else {}
            outputs[name] = module.clone(dtype=dtype).apply({"params": tree}, **as_choices(name, inputs), **options)
        return outputs

    return {name: output_arrays(name, output) for name, output in jax.device_get(run(params)).items()}


def on_real_tokens(array: Any, mask: Int[np.ndarray, "B S"]) -> Float[np.ndarray, "..."]:
    """Returns the real tokens of [B, S, ...], or the examples of [B, C] whose first token is real.

    Hidden states of padding differ: padding gets no context here, as in the official code, but the mean of the whole
    example in transformers. A head that reads the first token is therefore not comparable if that is padding.
    """
    is_real = mask.astype(bool)
    return np.asarray(array, np.float32)[is_real if array.ndim == 3 else is_real[:, 0]]


def pairs(first: Outputs, second: Outputs, length: int) -> Iterator[tuple[str, Any, Any]]:
    """Yields a name and both arrays on real tokens, for each array of two outputs."""
    assert first.keys() == second.keys()
    mask = make_inputs(length)["attention_mask"]
    for name, arrays in second.items():
        for index, both in enumerate(zip(first[name], arrays, strict=True)):
            yield f"{name} {index}", *(on_real_tokens(array, mask) for array in both)


@pytest.mark.parametrize(("version", "length"), LENGTHS)
def test_every_layer_and_head_equals_transformers(version: str, length: int) -> None:
    for name, actual, expected in pairs(run_flax(version, length), run_torch(version, length), length):
        assert_close(actual, expected, 1e-4, name)


@pytest.mark.parametrize("version", FIELDS)
def test_bfloat16_is_close_to_float32(version: str) -> None:
    """Compares norms, which leave out heads with a single logit.

    Such a logit is one product of the hidden state and a random vector. It can be close to zero, and then rounding is
    a large part of it, in PyTorch as well.
    """
    for name, actual, expected in pairs(run_flax(version, 40, jnp.bfloat16), run_flax(version, 40), 40):
        error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        if not name.startswith(("regression", "multiple choice", "question answering")):
            assert 1e-6 < error <= 3e-2, f"{name}: {error:.1e}"


@functools.cache
def biased_model() -> tuple[Any, Any, dict[str, Any]]:
    """Returns transformers' model of BIASED, and the converted one as a compiled function and parameters."""
    torch.manual_seed(0)
    model = random_model(BIASED, "Model")
    config, params = convert(model)
    return model, jax.jit(models.Deberta(config).apply), {"params": params["deberta"]}


@pytest.mark.parametrize("positions", ["default", "explicit"])
def test_absolute_positions_and_token_types_equal_transformers(positions: str) -> None:
    """By default, both count positions from the first place of the example, even if that is padding."""
    model, run, params = biased_model()
    inputs = make_inputs(40)
    mask = inputs["attention_mask"]
    inputs["token_type_ids"] = np.broadcast_to(np.arange(40, dtype=np.int32) % 2, mask.shape).copy()
    explicit = {"position_ids": np.maximum(np.cumsum(mask, axis=1, dtype=np.int32) - 1, 0)}
    actual = run(params, **inputs, **(explicit if positions == "explicit" else {})).last_hidden_state
    with torch.no_grad():
        torch_inputs = inputs | (explicit if positions == "explicit" else {})
        tensors = {key: torch.from_numpy(array).long() for key, array in torch_inputs.items()}
        expected = model(**tensors).last_hidden_state
    assert_close(on_real_tokens(actual, mask), on_real_tokens(expected, mask), 1e-4)
    if positions == "explicit":
        default = run(params, **inputs).last_hidden_state
        assert np.abs(on_real_tokens(actual, mask) - on_real_tokens(default, mask)).max() > 0.1
