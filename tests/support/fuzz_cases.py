"""Model folders of `test_fuzz`: intact ones like the published files, and mutations that damage them."""

import collections
import functools
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Sequence
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from tests.support.pytorch_files import MLM, RTD, V1, V3, State, bin_bytes, published_state, random_state

Files = dict[str, bytes]
Rng = np.random.Generator
T = TypeVar("T")


# --------------------------------------------------------------------------------------------------- whole folders


def safetensors_bytes(state: State) -> bytes:
    from safetensors.numpy import save

    return save(state)


def sharded(state: State, kind: str) -> Files:
    """Returns two shards of the kind "bin" or "safetensors" with their index."""
    write = bin_bytes if kind == "bin" else safetensors_bytes
    base = "pytorch_model" if kind == "bin" else "model"
    names = {key: f"{base}-0000{i % 2 + 1}-of-00002.{kind}" for i, key in enumerate(state)}
    files = {name: write({key: state[key] for key in state if names[key] == name}) for name in set(names.values())}
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    return {f"{base}.{'bin' if kind == 'bin' else kind}.index.json": json.dumps(index).encode(), **files}


@functools.cache
def sources() -> dict[str, Files]:
    """Returns small folders with the layouts of the published files; mutate copies of them only."""
    v3 = V3.replace(num_hidden_layers=1)
    v3_state = random_state(v3, MLM, RTD)
    half = {key: array.astype(np.float16) for key, array in v3_state.items()}
    v1, v1_state = published_state("base")
    weights = {
        "v3 safetensors": (v3, {"model.safetensors": safetensors_bytes(v3_state)}),
        "v3 bin": (v3, {"pytorch_model.bin": bin_bytes(half)}),
        "v1 bin": (v1, {"pytorch_model.bin": bin_bytes(v1_state, extra={"config": {"hidden_size": 16}})}),
        "v1 safetensors": (V1, {"model.safetensors": safetensors_bytes(v1_state)}),
        "v3 shards": (v3, sharded(v3_state, "safetensors")),
        "v1 bin shards": (v1, sharded(v1_state, "bin")),
    }
    return {
        name: {"config.json": json.dumps(config.to_json(), indent=2).encode(), **dict(sorted(files.items()))}
        for name, (config, files) in weights.items()
    }


def weights_of(files: Files, kind: str) -> list[str]:
    return sorted(name for name in files if name.endswith(f".{kind}"))


# ------------------------------------------------------------------------------------------- an independent reader


class PickledCall(list[Any]):
    """The name and the arguments of a call in a pickle."""


class PlainUnpickler(pickle.Unpickler):
    """Turns calls into lists; used only on files that the converter has accepted."""

    def find_class(self, module: str, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            return collections.OrderedDict() if name == "OrderedDict" else PickledCall([name, *arguments])

        call.storage = name  # type: ignore[attr-defined]
        return call

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_bin_plainly(data: bytes) -> dict[str, Any]:
    sizes = {"FloatStorage": np.float32, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16}
    sizes |= {"DoubleStorage": np.float64}
    archive = zipfile.ZipFile(io.BytesIO(data))
    (program,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
    folder, state = program.removesuffix("data.pkl"), {}
    for key, value in PlainUnpickler(io.BytesIO(archive.read(program)), encoding="utf-8").load().items():
        if not isinstance(value, PickledCall):
            state[key] = value
            continue
        _, (_, kind, number, *_), offset, size, stride, *_ = value
        dtype = np.dtype(sizes[kind.storage])
        numbers = archive.read(f"{folder}data/{number}")  # verifies the checksum
        byte_strides = [step * dtype.itemsize for step in stride]
        state[key] = np.ndarray(size, dtype, numbers, offset * dtype.itemsize, byte_strides)
    return state


def read_safetensors_plainly(data: bytes) -> State:
    kinds = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
    (length,) = struct.unpack("<Q", data[:8])
    header, state = json.loads(data[8 : 8 + length]), {}
    for key, entry in header.items():
        if key != "__metadata__":
            first, last = (8 + length + offset for offset in entry["data_offsets"])
            state[key] = np.frombuffer(data[first:last], kinds[entry["dtype"]]).reshape(entry["shape"])
    return state


def read_plainly(files: Files) -> dict[str, Any]:
    """Returns the state dict of all weight files in a folder."""
    state = {}
    for name, data in files.items():
        if not name.endswith(".json"):
            state |= read_bin_plainly(data) if name.endswith(".bin") else read_safetensors_plainly(data)
    return state


# ------------------------------------------------------------------------------------- mutations of bytes and keys


def pick(rng: Rng, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def truncate(rng: Rng, files: Files) -> None:
    name = pick(rng, sorted(files))
    files[name] = files[name][: int(rng.integers(len(files[name])))]


def truncate_weights(rng: Rng, files: Files) -> None:
    name = pick(rng, sorted(set(files) - {"config.json"}))
    files[name] = files[name][: -int(rng.integers(1, 200))]


def append(rng: Rng, files: Files) -> None:
    name = pick(rng, sorted(files))
    files[name] += rng.bytes(int(rng.integers(1, 300)))


def flip(rng: Rng, files: Files, reach: int | None = None) -> None:
    name = pick(rng, sorted(files))
    data = bytearray(files[name])
    for position in rng.integers(0, min(reach or len(data), len(data)), rng.integers(1, 4)):
        data[position] ^= 1 << int(rng.integers(8))
    files[name] = bytes(data)


def flip_start(rng: Rng, files: Files) -> None:
    flip(rng, files, 600)


def flip_data(rng: Rng, files: Files) -> None:
    """In the middle of the weights, where only checksums could tell."""
    name = pick(rng, sorted(name for name in files if not name.endswith(".json")))
    data = bytearray(files[name])
    data[int(rng.integers(len(data) // 2, len(data) * 3 // 4))] ^= 1 << int(rng.integers(8))
    files[name] = bytes(data)


def overwrite(rng: Rng, files: Files) -> None:
    name = pick(rng, sorted(files))
    data, start = files[name], int(rng.integers(len(files[name])))
    files[name] = data[:start] + rng.bytes(int(rng.integers(1, 40))) + data[start + 40 :]


def swap_files(rng: Rng, files: Files) -> None:
    first, second = pick(rng, sorted(files)), pick(rng, sorted(files))
    files[first], files[second] = files[second], files[first]


def remove_file(rng: Rng, files: Files) -> None:
    del files[pick(rng, sorted(files))]


def edit_state(rng: Rng, files: Files) -> None:
    """Changes shapes, types and keys in files that stay valid."""
    name = pick(rng, weights_of(files, "bin") + weights_of(files, "safetensors"))
    is_bin = name.endswith(".bin")
    state = read_bin_plainly(files[name]) if is_bin else read_safetensors_plainly(files[name])
    state = {key: np.array(value) for key, value in state.items() if isinstance(value, np.ndarray)}
    key = pick(rng, sorted(state))
    match int(rng.integers(12)):
        case 0:
            state[key] = state[key][..., None]
        case 1:
            state[key] = np.concatenate([state[key]] * 2)
        case 2:
            state[key] = np.ascontiguousarray(state[key].T)
        case 3:
            state[key] = state[key].reshape(-1)[:1].reshape(())
        case 4:
            state[key] = state[key][:0]
        case 5:
            state[key] = state[key].astype(np.float16)
        case 6:
            del state[key]
        case 7:
            state[key + ".extra"] = state[key]
        case 8:
            state[key.removeprefix("deberta.")] = state[key]
        case 9:
            state["bert." + key.removeprefix("deberta.")] = state[key] + 1
        case 10:
            state[pick(rng, ["", "a\nb", "\x1b[2J\x07", "../../etc/passwd", "k" * 10**5, "\u202e", "."])] = state[key]
        case 11:
            state[key] = np.full_like(state[key], pick(rng, [np.nan, np.inf, 6e4]))
    files[name] = bin_bytes(state) if is_bin else safetensors_bytes(state)


# -------------------------------------------------------------------------------------------- mutations of safetensors


def split_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_header(header: str, body: bytes) -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode() + body


def edit_header(rng: Rng, files: Files) -> None:
    """Writes fields of a safetensors header that contradict its data."""
    name = pick(rng, weights_of(files, "safetensors"))
    header, body = split_header(files[name])
    keys = sorted(set(header) - {"__metadata__"})
    key, other = pick(rng, keys), pick(rng, keys)
    match int(rng.integers(8)):
        case 0:
            offsets = [[0, 2**60], [2**62, 2**63], [-1, 4], [8, 4], [0], "x", None, [0, 1.5]]
            header[key]["data_offsets"] = pick(rng, offsets)
        case 1:
            shapes = [[2**60], [2**32, 2**32], [-1, -4], [], ["x"], None, [1] * 100, [2**64 + 16]]
            header[key]["shape"] = pick(rng, shapes)
        case 2:
            types = ["F64", "I64", "F8_E4M3", "BOOL", "U8", "F4", "C64", "nonsense", 3, "BF16", "F16", "I32"]
            header[key]["dtype"] = pick(rng, types)
        case 3:
            header[key]["shape"] = header[key]["shape"][::-1]
        case 4:
            swapped = header[other]["data_offsets"], header[key]["data_offsets"]
            header[key]["data_offsets"], header[other]["data_offsets"] = swapped
        case 5:
            del header[key]
        case 6:
            header["__metadata__"] = pick(rng, [{"format": "pt"}, {"a": 1}, [], "x", {"a": {"b": "c"}}])
        case 7:
            header[key + "\n\x1b[0m"] = header.pop(key)
    files[name] = join_header(json.dumps(header), body)


def break_header(rng: Rng, files: Files) -> None:
    """Writes a safetensors header that has another length or a duplicate key, or is not JSON."""
    name = pick(rng, weights_of(files, "safetensors"))
    header, body = split_header(files[name])
    header_json, key = json.dumps(header), pick(rng, sorted(set(header) - {"__metadata__"}))
    short_entry = {**header[key], "data_offsets": [0, 4], "shape": [1]}
    sizes = [2**60, 2**63, 2**64 - 1, 0, 1, len(header_json) - 1, len(header_json) + 1, 10**8, len(files[name])]
    files[name] = pick(
        rng,
        [
            struct.pack("<Q", pick(rng, sizes)) + files[name][8:],
            join_header(header_json[:-1] + f', "{key}": {json.dumps(header[key])}}}', body),
            join_header(header_json[:-1] + f', "{key}": {json.dumps(short_entry)}}}', body),
            join_header("[" * 10**5, body),
            join_header(header_json.replace('"', "'", 1), body),
            join_header(header_json + " " * int(rng.integers(1, 9)), body),
        ],
    )


# ------------------------------------------------------------------------------------- configurations and indices

WRONG_VALUES = (
    *(0, -1, 1, 10**9, 10**18, 2**63, -(10**30), 1.5, 1e999, float("nan"), True, None, "12", "", [], {}, [1, "x"]),
    *("c2p|p2p", "gelu_new", {"dropout": 0.1}, "\x1b[2J", [[["x"]]], {"x": "y"}, 1e-30, ["c2p", 3], "none"),
)


def change_config(rng: Rng, files: Files) -> None:
    """Changes or adds fields of config.json."""
    fields = json.loads(files["config.json"])
    extra = ["id2label", "pooling", "padding_idx", "pad_token_id", "label_names", "discriminator", "surprise", "x\ny"]
    for _ in range(int(rng.integers(1, 3))):
        fields[pick(rng, sorted(fields) + extra)] = pick(rng, WRONG_VALUES)
    files["config.json"] = json.dumps(fields).encode()


def replace_json(rng: Rng, files: Files) -> None:
    """Replaces a JSON file by other or invalid JSON."""
    name = pick(rng, sorted(name for name in files if name.endswith(".json")))
    files[name] = pick(
        rng,
        [
            *(b"", b"[]", b"null", b"3", b'"x"', b"{}", b"[" * 10**5, b'{"a":' * 10**5, b"\xff\xfe{}", b"{} {}"),
            *(b'{"vocab_size": 1' + b"0" * 5000 + b"}", b'{"vocab_size": NaN}', b"\x00" * 1000, b"{'a': 1}"),
            files[name] + files[name],
            files[name].replace(b":", b" ", 1),
            b"\xef\xbb\xbf" + files[name],
        ],
    )


def edit_index(rng: Rng, files: Files) -> None:
    """Changes entries of an index of shards."""
    name = next(name for name in files if name.endswith(".index.json"))
    index = json.loads(files[name])
    table = index["weight_map"]
    key = pick(rng, sorted(table))
    other = "other.index.json"
    match int(rng.integers(8)):
        case 0:
            table[key] = pick(rng, ["../x.bin", "/etc/passwd", "", ".", "..", name, 3, None, ["x"], "a\x00b", "a\nb"])
        case 1:
            del table[key]
        case 2:
            table["more"] = table[key]
        case 3:
            index["weight_map"] = pick(rng, [None, [], "x", 3, {}, {"a": {}}])
        case 4:
            table[key] = pick(rng, sorted(set(table.values())))
        case 5:
            index = {"weight_map": {"a": other}}
            files[other] = json.dumps({"weight_map": {"a": name}}).encode()
        case 6:
            index = {"weight_map": dict.fromkeys(table, "config.json")}
        case 7:
            table[key] = "missing.bin"
    files[name] = json.dumps(index).encode()


# Functions that make many different changes occur several times.
DAMAGE = (truncate, truncate_weights, append, flip, flip_start, flip_data, overwrite, swap_files, remove_file)
CONTRADICTIONS = (edit_state, edit_state, change_config, change_config, change_config, replace_json)
