"""Reads PyTorch's weight files (`*.bin`, `*.pt`) without PyTorch and without running what is in them.

Such a file is a zip archive: `data.pkl` names the tensors, and `data/<key>` holds the bytes of each storage. Only what
tensors and plain containers need is allowed in the pickle; everything else is refused by its name. Storages are mapped
into memory, so nothing is read before it is used.
"""

import collections
import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from .layouts import ConversionError

_PICKLE_LIMIT = 4 * 2**20  # bytes; that of the largest released model has 0.2 MB

_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

# What data.pkl may do; the rest would build objects, or reach for extension tables.
_OPCODES = frozenset(
    {
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "POP",
        "POP_MARK",
        "DUP",
        "GLOBAL",
        "STACK_GLOBAL",
        "REDUCE",
        "BUILD",
        "BINPERSID",
    }
    | {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
    | {"BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"}
    | {"EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"}
    | {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
    | {"BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
)


def read_bin(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state dict of a PyTorch file: name -> NumPy array (a view of the mapped file), or a plain value as it is.

    Reads the zip format (PyTorch 1.6 and newer) without PyTorch. The older format is handed to PyTorch, in its mode
    that loads weights only.

    Raises:
      FileNotFoundError: no such file.
      ConversionError: damaged, not such a file, with something in it that is no tensor and no plain value; or of the
        older format while PyTorch is not installed.
    """
    path = Path(path)
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if not is_zip:
        return _read_with_torch(path)
    try:
        with zipfile.ZipFile(path) as archive:
            state = _Archive(path, archive).load()
    except ConversionError:
        raise
    except Exception as error:  # whatever a damaged archive or pickle leads to is a damaged file
        raise ConversionError(
            f"{path} is damaged or no PyTorch file: {type(error).__name__}: {_one_line(error)}; fetch it again"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ConversionError(f"{path} holds a {type(state).__name__}, not a table from names to tensors")
    return state


class _Storage(NamedTuple):
    values: np.ndarray  # flat


class _StorageType(NamedTuple):
    dtype: np.dtype[Any]


class _Archive:
    """One open zip file in the layout of `torch.save`."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path, self._archive = path, archive
        self._members = {info.filename: info for info in archive.infolist()}
        if len(self._members) != len(archive.infolist()):
            self._refuse("two members of the archive have the same name")
        pickles = [name for name in self._members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            self._refuse(f"the archive has {len(pickles)} members called data.pkl; a PyTorch file has one")
        self._prefix = pickles[0].removesuffix("data.pkl")
        self._bytes = np.memmap(path, np.uint8, mode="r")
        self._storages: dict[str, _Storage] = {}

    def load(self) -> Any:
        order = self._members.get(f"{self._prefix}byteorder")
        if order is not None and self._archive.read(order)[:16].strip() != b"little":
            self._refuse("its numbers are big-endian; save it again on a little-endian machine")
        info = self._members[f"{self._prefix}data.pkl"]
        if info.file_size > _PICKLE_LIMIT:
            self._refuse(f"data.pkl unpacks to {info.file_size} bytes, more than any table of tensors")
        program = self._archive.read(info)
        self._check_opcodes(program)
        return _Unpickler(io.BytesIO(program), self._find, self._storage).load()

    def _check_opcodes(self, program: bytes) -> None:
        """Refuses other opcodes, and memo numbers so large that the memo alone would fill the memory."""
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name not in _OPCODES:
                self._refuse(f"its pickle uses {opcode.name}, which no table of tensors needs")
            if opcode.name in ("BINPUT", "LONG_BINPUT") and (argument or 0) > len(program):
                self._refuse("its pickle numbers more values than it has bytes")

    def _find(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return _rebuild_tensor if name == "_rebuild_tensor_v2" else _rebuild_parameter
        if module == "torch" and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        return self._refuse(f"its pickle asks for {module}.{name}, which is no part of a tensor; nothing of it was run")

    def _storage(self, reference: Any) -> _Storage:
        """The bytes that ("storage", type, key, device, number of elements) stands for."""
        kind, storage_type, key, _, count = reference
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            self._refuse("its pickle refers to something that is no storage of a tensor")
        if key not in self._storages:
            self._storages[key] = _Storage(self._map(f"{self._prefix}data/{key}").view(storage_type.dtype))
        storage = self._storages[key]
        if storage.values.dtype != storage_type.dtype or storage.values.size != count:
            self._refuse(f"storage {key} has {storage.values.size} elements of {storage.values.dtype}, not {count}")
        return storage

    def _map(self, name: str) -> np.ndarray:
        info = self._members.get(name)
        if info is None:
            self._refuse(f"its pickle names {name}, which is not in the archive")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            self._refuse(f"{name} is compressed, which PyTorch never does; unpack and save it again with PyTorch")
        header = self._bytes[info.header_offset : info.header_offset + 30].tobytes()
        signature, name_length, extra_length = struct.unpack("<4s22xHH", header)
        start = info.header_offset + 30 + name_length + extra_length
        values = self._bytes[start : start + info.file_size]
        if signature != b"PK\x03\x04" or values.size != info.file_size:
            self._refuse(f"{name} is cut off")
        if zlib.crc32(values.data) != info.CRC:
            self._refuse(f"{name} does not match its checksum")
        return values

    def _refuse(self, reason: str) -> NoReturn:
        raise ConversionError(f"{self._path} was not read: {reason}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, find: Callable[[str, str], Any], storage: Callable[[Any], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._find, self._storage = find, storage

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return self._find(module_name, global_name)

    def persistent_load(self, pid: Any) -> _Storage:
        return self._storage(pid)


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """`torch._utils._rebuild_tensor_v2`: a strided view of a storage, which must stay inside it."""
    values = storage.values
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"a tensor has offset {offset}, size {size} and stride {stride}")
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # More elements than the storage has means that they overlap: a few bytes would then stand for any amount of memory.
    if count and (last >= values.size or count > values.size):
        raise ValueError(f"a tensor of size {size} and stride {stride} reaches beyond its {values.size} elements")
    if not count:
        return np.empty(size, values.dtype)
    steps = tuple(step * values.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)


def _rebuild_parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    """`torch._utils._rebuild_parameter`."""
    return data


def _read_with_torch(path: Path) -> dict[str, Any]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConversionError(
            f"{path} is no zip archive; if it was saved before PyTorch 1.6, install PyTorch (pip install torch) and "
            "try again, otherwise fetch it again"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: _to_numpy(value) for key, value in state.items()}
    except Exception as error:  # PyTorch raises whatever a damaged file leads to
        raise ConversionError(
            f"{path} is damaged or no PyTorch file: {type(error).__name__}: {_one_line(error)}"
        ) from None


def _to_numpy(value: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(jnp.bfloat16)
    return value.numpy()


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no details"])[0][:200]
