"""Live parity with transformers on PyTorch: encoder and every head, random weights, real tokens only.

Weights have a standard deviation of 0.2 or more, ten times that of a fresh model: with 0.02 attention is close to
uniform and the heads close to zero, so that a wrong position term would hide below any tolerance.
"""

import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaConfig, models
from deberta_jax.convert.mapping import to_params
from deberta_jax.convert.quirks import masked_lm_form

from ..support.golden_cases import assert_close

torch = pytest.importorskip("torch", reason="torch is not installed; the other side of the comparison runs on it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is the other side")
pytestmark = pytest.mark.torch

LENGTHS = (1, pytest.param(7, marks=pytest.mark.long), 40, pytest.param(300, marks=pytest.mark.long), 512)
V1 = {
    "vocab_size": 120,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "pos_att_type": "c2p|p2c",
    "position_biased_input": False,
}
V3 = {**V1, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
FIELDS = {"v1": V1, "v2": {**V3, "conv_kernel_size": 3, "conv_act": "gelu"}, "v3": V3}
# As no released model: absolute positions and token types in the input.
BIASED = {**V3, "position_biased_input": True, "type_vocab_size": 2}
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


def random_model(fields: dict, suffix: str, **options):
    """transformers' model of that class, every weight random, LayerNorm scales about 1."""
    prefix = "DebertaV2" if "share_att_key" in fields else "Deberta"
    model = getattr(transformers, prefix + suffix)(getattr(transformers, prefix + "Config")(**fields, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("LayerNorm.weight" in name), 0.2)
    return model.eval()


@functools.cache
def torch_models(version: str) -> dict[str, Any]:
    """The encoder and every head that transformers has for the version, all on the same encoder."""
    torch.manual_seed(0)
    found = {ENCODER: random_model(FIELDS[version], "Model")}
    for name, (suffix, options) in HEADS.items():
        if version == "v1" and suffix == "ForMultipleChoice":
            continue  # transformers has none
        found[name] = random_model(FIELDS[version], suffix, **options)
        found[name].deberta.load_state_dict(found[ENCODER].state_dict())
    return found


def convert(model) -> tuple[DebertaConfig, dict]:
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config = masked_lm_form(state.keys(), DebertaConfig.from_json(json.loads(model.config.to_json_string(False))))
    return config, to_params(state, config)


@functools.cache
def flax_models(version: str) -> tuple[dict[str, Any], dict[str, dict]]:
    """The same with us: modules and parameters; the encoder's only once, so that XLA can merge its runs."""
    modules, params = {}, {}
    for name, model in torch_models(version).items():
        config, params[name] = convert(model)
        modules[name] = getattr(models, "Deberta" + HEADS[name][0] if name != ENCODER else "Deberta")(config)
        if name != ENCODER:
            jax.tree.map(np.testing.assert_array_equal, params[name].pop("deberta"), params[ENCODER]["deberta"])
    return modules, params


def make_inputs(length: int) -> dict[str, np.ndarray]:
    """Three rows, padded on the right, on the left and not at all."""
    rng, index = np.random.default_rng(length), np.arange(length)
    third = length // 3
    mask = np.stack([index < length - third, index >= third, index >= 0]).astype(np.int32)
    return {"input_ids": rng.integers(1, 120, mask.shape, np.int32) * mask, "attention_mask": mask}


def as_choices(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For multiple choice, all rows are choices of one question: [B, S] -> [1, B, S]."""
    return {key: array[None] for key, array in inputs.items()} if name == "multiple choice" else inputs


def results(name: str, out) -> list:
    """Hidden states of the encoder, embeddings first, or the logits [B, ...] of a head."""
    if name == ENCODER:
        return list(out.hidden_states)
    if name == "question answering":
        return [np.stack([out.start_logits, out.end_logits], axis=-1)]
    return [out.logits[0, :, None] if name == "multiple choice" else out.logits]


def run_torch(version: str, length: int) -> dict[str, list]:
    inputs, found = make_inputs(length), {}
    for name, model in torch_models(version).items():
        tensors = {key: torch.from_numpy(array).long() for key, array in as_choices(name, inputs).items()}
        with torch.no_grad():
            found[name] = results(name, model(**tensors, output_hidden_states=name == ENCODER))
    return found


@functools.cache
def run_flax(version: str, length: int, dtype: Any = jnp.float32) -> dict[str, list]:
    modules, params = flax_models(version)
    inputs = make_inputs(length)

    @jax.jit
    def run(params):
        found = {}
        for name, module in modules.items():
            tree = params[ENCODER]["deberta"] if name == ENCODER else {**params[ENCODER], **params[name]}
            options = {"output_hidden_states": True} if name == ENCODER else {}
            found[name] = module.clone(dtype=dtype).apply({"params": tree}, **as_choices(name, inputs), **options)
        return found

    return {name: results(name, out) for name, out in jax.device_get(run(params)).items()}


def on_real_tokens(array, mask: np.ndarray) -> np.ndarray:
    """Padding gets no context here, as in the official code, and the mean of the whole row in transformers.

    A head on the first token therefore says nothing of a row that begins with padding.
    """
    real = mask.astype(bool)
    return np.asarray(array, np.float32)[real if array.ndim == 3 else real[:, 0]]


def pairs(first: dict[str, list], second: dict[str, list], length: int) -> Iterator[tuple[str, Any, Any]]:
    """What it is, and both sides' arrays on real tokens."""
    mask = make_inputs(length)["attention_mask"]
    for name, arrays in second.items():
        for index, both in enumerate(zip(first[name], arrays, strict=True)):
            yield f"{name} {index}", *(on_real_tokens(array, mask) for array in both)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("version", FIELDS)
def test_every_layer_and_every_head(version: str, length: int) -> None:
    ours, theirs = run_flax(version, length), run_torch(version, length)
    assert ours.keys() == theirs.keys()
    for what, got, want in pairs(ours, theirs, length):
        assert_close(got, want, 1e-4, what)


@pytest.mark.parametrize("version", FIELDS)
def test_bfloat16_stays_near_float32(version: str) -> None:
    """In the norm of every layer, and of the logits of heads with several.

    A single logit is one product of the hidden state with a random vector: the less it comes to, the larger the share
    of it that rounding takes, there as well.
    """
    for what, got, want in pairs(run_flax(version, 40, jnp.bfloat16), run_flax(version, 40), 40):
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        if not what.startswith(("regression", "multiple choice", "question answering")):
            assert 1e-6 < error <= 3e-2, f"{what}: {error:.1e}"


@pytest.mark.parametrize("positions", ["default", "given"])
def test_absolute_positions_and_token_types_in_the_input(positions: str) -> None:
    """Both count positions from the row's first place unless told otherwise, padding on the left included."""
    torch.manual_seed(0)
    model = random_model(BIASED, "Model")
    config, params = convert(model)
    inputs = make_inputs(40)
    mask = inputs["attention_mask"]
    inputs["token_type_ids"] = np.broadcast_to(np.arange(40, dtype=np.int32) % 2, mask.shape).copy()
    given = {"position_ids": np.maximum(np.cumsum(mask, axis=1, dtype=np.int32) - 1, 0)}
    inputs |= given if positions == "given" else {}
    run = jax.jit(models.Deberta(config).apply)
    got = run({"params": params["deberta"]}, **inputs).last_hidden_state
    with torch.no_grad():
        want = model(**{key: torch.from_numpy(array).long() for key, array in inputs.items()}).last_hidden_state
    assert_close(on_real_tokens(got, mask), on_real_tokens(want, mask), 1e-4)
    if positions == "given":
        moved = run({"params": params["deberta"]}, **{**inputs, "position_ids": None}).last_hidden_state
        assert np.abs(on_real_tokens(got, mask) - on_real_tokens(moved, mask)).max() > 0.1
