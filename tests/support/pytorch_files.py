"""Small model files in the layouts of PyTorch, transformers and Microsoft."""

import collections
import io
import json
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from deberta_jax.config import DebertaConfig
from deberta_jax.convert import to_pytorch
from deberta_jax.convert.mapping import entries

from .paths import GOLDEN

State = dict[str, np.ndarray]

RTD_CASES = ("rtd_step", "rtd_es", "rtd_nes", "rtd_gdes_joint")
MLM, RTD = "mlm_head", "rtd_head"

V3 = DebertaConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
    relative_attention=True,
    pos_att_type=("c2p", "p2c"),
    position_buckets=8,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    position_biased_input=False,
)
V2_CONV = V3.replace(conv_kernel_size=3, conv_act="gelu")
V1 = V3.replace(position_buckets=-1, norm_rel_ebd="none", share_att_key=False)
# Options that no released model combines.
UNUSUAL = V2_CONV.replace(
    share_att_key=False,
    embedding_size=12,
    type_vocab_size=3,
    conv_groups=4,
    position_biased_input=True,
    mlm_head="legacy",  # the only head of transformers that allows another embedding size
)


def golden(case: str, prefix: str = "weights/") -> State:
    """Returns the arrays of a golden case whose names begin with the prefix, without it."""
    with np.load(GOLDEN / case / "arrays.npz") as arrays:
        return {key.removeprefix(prefix): arrays[key] for key in arrays.files if key.startswith(prefix)}


def golden_json(case: str) -> dict[str, Any]:
    """Returns the configuration of a golden case, without the fields that only the case uses."""
    fields = json.loads((GOLDEN / case / "config.json").read_text())
    return {key: value for key, value in fields.items() if key not in ("num_choices", "sift", "mask_token_id")}


def random_state(config: DebertaConfig, *heads: str, classes: int = 3) -> State:
    """Returns random float32 weights, exact in float16, under the official names and without GDES differences."""
    rng = np.random.default_rng(0)
    table = [entry for entry in entries(config) if entry.part in ("deberta", *heads) and "_weight" not in entry.key]
    shapes = {entry.key: tuple(classes if size is None else size for size in entry.torch_shape) for entry in table}
    return {key: rng.normal(0, 0.3, shape).astype(np.float16).astype(np.float32) for key, shape in shapes.items()}


def assert_same(first: Any, second: Any) -> None:
    """Asserts that two trees of arrays are equal bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert jax.tree.structure(first) == jax.tree.structure(second)


def write_json(folder: Path, config: DebertaConfig, name: str = "config.json") -> None:
    """Writes the configuration; the folder is created if necessary."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(config.to_json()))


def write_safetensors(folder: Path, config: DebertaConfig, state: State, name: str = "model.safetensors") -> Path:
    """Writes configuration and weights, and returns the path of the weights."""
    from safetensors.numpy import save_file

    write_json(folder, config)
    save_file(state, folder / name)
    return folder / name


class Storage:
    """The storage of a tensor in a handmade pickle."""

    def __init__(self, name: str, key: str, count: int):
        self.reference = (name, key, count)


class Call:
    """An object that is pickled as a call of a global function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def bin_bytes(
    state: State,
    *,
    compression: int = zipfile.ZIP_STORED,
    extra: dict[str, Any] | None = None,
    view: tuple[int, tuple[int, ...], tuple[int, ...]] | None = None,
) -> bytes:
    """Returns the bytes that `torch.save` writes for a state dict, without torch.

    Args:
      state: The tensors.
      compression: Of the zip archive; PyTorch never compresses.
      extra: Further entries of the pickled dict.
      view: (offset, size, stride) of every tensor in its storage (default: those of the arrays).
    """
    torch_names = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}
    fake_modules = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in torch_names.values():
        storage_type = type(name, (), {"__module__": "torch", "__qualname__": name})
        setattr(fake_modules[0], name, storage_type)

    def _rebuild_tensor_v2() -> None:
        raise AssertionError("only its name is used")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    fake_modules[1]._rebuild_tensor_v2 = _rebuild_tensor_v2

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, Storage):
                return None
            name, key, count = value.reference
            return ("storage", getattr(fake_modules[0], name), key, "cpu", count)

    storages, tensors = {}, collections.OrderedDict(extra or {})
    for key, array in state.items():
        number = str(len(storages))
        storages[number] = array.tobytes()
        stride = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)
        storage = Storage(torch_names[array.dtype.name], number, array.size)
        hooks = collections.OrderedDict()
        tensors[key] = Call(_rebuild_tensor_v2, storage, *(view or (0, array.shape, stride)), False, hooks)
    program, data = io.BytesIO(), io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", fake_modules[0])
        patch.setitem(sys.modules, "torch._utils", fake_modules[1])
        Pickler(program, protocol=2).dump(tensors)
    with zipfile.ZipFile(data, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program.getvalue())
        archive.writestr("archive/byteorder", "little")
        for number, values in storages.items():
            archive.writestr(f"archive/data/{number}", values)
    return data.getvalue()


def published_state(name: str) -> tuple[DebertaConfig, State]:
    """Returns a small model with the parameter names and number formats of a published file."""
    config = V1 if name == "base" else V2_CONV if name == "v2-xxlarge" else V3
    heads = [MLM] if name in ("base", "v2-xxlarge", "generator") else [MLM, RTD]
    state = random_state(config, *heads)
    if name in ("v3-base", "v3-xsmall", "mdeberta"):
        state = {key: array.astype(np.float16) for key, array in state.items()}
    if name == "generator":  # of v3-xsmall: only its embedding is float16
        words = "deberta.embeddings.word_embeddings.weight"
        state[words] = state[words].astype(np.float16)
    tables = ["word_embeddings"] + ["position_embeddings"] * (name == "v3-xsmall")
    for table in tables if name in ("v3-xsmall", "mdeberta") else ():
        shape = state[f"deberta.embeddings.{table}.weight"].shape
        state[f"deberta.embeddings.{table}._weight"] = np.full(shape, 0.1, np.float32)
    if name == "base":
        for key in [key for key in state if key.endswith(("key_proj.bias", "pos_key_proj.bias"))]:
            state[key][:] = 0
        state = to_pytorch.join_v1_projections(config, state)
    return config, state
