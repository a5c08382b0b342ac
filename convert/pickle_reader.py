"""Reads PyTorch's weight files (`*.bin`, `*.pt`) without PyTorch and without running what is in them.

Such a file is a zip archive: `data.pkl` names the tensors, and `data/<key>` holds the bytes of each storage. Only what
tensors and plain containers need is allowed in the pickle; everything else is refused by its name. Checksums are
compared first; a storage is then mapped into memory only while one of its tensors is in use.
"""

import collections
import math
import os
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, Self

import jax.numpy as jnp
import numpy as np

from deberta_jax.errors import UserError

from .quirks import ConversionError

_PICKLE_LIMIT = 4 * 2**20  # bytes; that of the largest released model has 0.2 MB
_MOST_AXES = 64  # of an array, in NumPy

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


def read_bin(path: str | os.PathLike[str]) -> MutableMapping[str, Any]:
    """The state dict of a PyTorch file: name -> NumPy array, or a plain value as it is.

    An array is a view of the mapped file, made when it is asked for; its memory goes with it.

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
    try:
        state = _read_archive(path) if is_zip else _read_with_torch(path)
    except ConversionError:
        raise
    except Exception as error:  # whatever a damaged archive or pickle leads to is a damaged file
        raise ConversionError(
            f"{path} is damaged or no PyTorch file: {type(error).__name__}: {_one_line(str(error))}; fetch it again"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ConversionError(f"{path} holds a {type(state).__name__}, not a table from names to tensors")
    return _State(state)


def _read_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        state = _Archive(path, archive).load()
    _check_total(state, path.stat().st_size)
    return state


class _StorageType(NamedTuple):
    dtype: np.dtype[Any]


class _Storage(NamedTuple):
    """Where `size` numbers stand in a file."""

    path: Path
    start: int  # in bytes
    dtype: np.dtype[Any]
    size: int


class _Tensor(NamedTuple):
    """A strided view of a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> np.ndarray:
        path, start, dtype, count = self.storage
        if not math.prod(self.size):
            return np.empty(self.size, dtype)
        values = np.memmap(path, dtype, mode="r", offset=start, shape=(count,)).view(np.ndarray)
        steps = tuple(step * dtype.itemsize for step in self.stride)
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.size, steps, writeable=False)


class _State(collections.UserDict[str, Any]):
    """Reads a tensor whenever it is asked for."""

    def __getitem__(self, key: str) -> Any:
        value = self.data[key]
        return value.read() if isinstance(value, _Tensor) else value


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
        self._storages: dict[str, _Storage] = {}
        self._unclaimed = path.stat().st_size  # bytes that belong to no storage yet

    def load(self) -> Any:
        order = self._members.get(f"{self._prefix}byteorder")
        if order is not None and (order.file_size > 16 or self._read(order).strip() != b"little"):
            self._refuse("its numbers are big-endian; save it again on a little-endian machine")
        info = self._members[f"{self._prefix}data.pkl"]
        if info.file_size > _PICKLE_LIMIT:
            self._refuse(f"data.pkl unpacks to {info.file_size} bytes, more than any table of tensors")
        return _Program(self._find, self._storage, self._refuse).run(self._read(info))

    def _read(self, info: zipfile.ZipInfo) -> bytes:
        with self._archive.open(info) as member:
            return member.read(info.file_size)  # without a limit, a member may unpack to more than it says

    def _find(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _new_table
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
            self._storages[key] = self._locate(f"{self._prefix}data/{key}", storage_type.dtype)
        storage = self._storages[key]
        if storage.dtype != storage_type.dtype or storage.size != count:
            self._refuse(f"storage {key} has {storage.size} elements of {storage.dtype}, not {count}")
        return storage

    def _locate(self, name: str, dtype: np.dtype[Any]) -> _Storage:
        info = self._members.get(name)
        if info is None:
            self._refuse(f"its pickle names {name}, which is not in the archive")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            self._refuse(f"{name} is compressed, which PyTorch never does; unpack and save it again with PyTorch")
        self._archive.open(info).close()  # raises where the member's own header is another one
        with self._path.open("rb") as file:
            file.seek(info.header_offset + 26)
            start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        self._unclaimed -= info.file_size
        if self._unclaimed < 0:
            self._refuse(f"{name} is cut off, or overlaps another one")
        count, rest = divmod(info.file_size, dtype.itemsize)
        if rest:
            self._refuse(f"{name} has {info.file_size} bytes, which are no whole numbers of {dtype}")
        checksum = 0
        if count:
            checksum = zlib.crc32(np.memmap(self._path, np.uint8, mode="r", offset=start, shape=(info.file_size,)).data)
        if checksum != info.CRC:
            self._refuse(f"{name} does not match its checksum")
        return _Storage(self._path, start, dtype, count)

    def _refuse(self, reason: str) -> NoReturn:
        raise ConversionError(f"{self._path} was not read: {_one_line(reason)}")


class _Program:
    """Runs a pickle without `pickle`: it can make lists, tuples and tables, and ask for a tensor, nothing else.

    Opcodes are as documented in `pickletools`; those that torch.save does not write are refused.
    """

    def __init__(
        self, find: Callable[[str, str], Any], storage: Callable[[Any], _Storage], refuse: Callable[[str], NoReturn]
    ):
        self._find, self._storage, self._refuse = find, storage, refuse
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in ("BINPUT", "LONG_BINPUT") and (argument or 0) > len(program):
                self._refuse("its pickle numbers more values than it has bytes")
            if opcode.name == "FRAME" and (argument or 0) > len(program):
                self._refuse("its pickle is cut off")
            if opcode.name not in self._STEPS:
                self._refuse(f"its pickle uses {opcode.name}, which no table of tensors needs")
            self._STEPS[opcode.name](self, argument)
        (value,) = self._stack
        return value

    def _cut(self, count: int | None = None) -> list[Any]:
        """Takes values off the stack; None: all above the last mark."""
        start = self._marks.pop() if count is None else len(self._stack) - count
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _append(self, values: list[Any]) -> None:
        self._stack[-1].extend(values)

    def _set(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | None):  # hashing nested tuples can take forever
                self._refuse(f"its pickle has a table with a {type(key).__name__} for a key")
            self._stack[-1][key] = value

    def _remember(self, number: int | None) -> None:
        self._memo[len(self._memo) if number is None else number] = self._stack[-1]

    def _call(self) -> None:
        function, arguments = self._cut(2)
        self._push(function(*arguments))

    _STEPS: ClassVar[dict[str, Callable[[Self, Any], Any]]] = {
        **dict.fromkeys("PROTO FRAME STOP".split(), lambda self, _: None),
        **dict.fromkeys("BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE".split(), _push),
        **dict.fromkeys("BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES".split(), _push),
        "NONE": lambda self, _: self._push(None),
        "NEWTRUE": lambda self, _: self._push(True),
        "NEWFALSE": lambda self, _: self._push(False),
        "EMPTY_LIST": lambda self, _: self._push([]),
        "EMPTY_DICT": lambda self, _: self._push({}),
        "EMPTY_TUPLE": lambda self, _: self._push(()),
        "MARK": lambda self, _: self._marks.append(len(self._stack)),
        "TUPLE": lambda self, _: self._push(tuple(self._cut())),
        "TUPLE1": lambda self, _: self._push(tuple(self._cut(1))),
        "TUPLE2": lambda self, _: self._push(tuple(self._cut(2))),
        "TUPLE3": lambda self, _: self._push(tuple(self._cut(3))),
        "APPEND": lambda self, _: self._append(self._cut(1)),
        "APPENDS": lambda self, _: self._append(self._cut()),
        "SETITEM": lambda self, _: self._set(self._cut(2)),
        "SETITEMS": lambda self, _: self._set(self._cut()),
        **dict.fromkeys("BINPUT LONG_BINPUT MEMOIZE".split(), _remember),
        **dict.fromkeys("BINGET LONG_BINGET".split(), lambda self, number: self._push(self._memo[number])),
        "GLOBAL": lambda self, name: self._push(self._find(*name.split(" ", 1))),
        "STACK_GLOBAL": lambda self, _: self._push(self._find(*self._cut(2))),
        "BINPERSID": lambda self, _: self._push(self._storage(self._stack.pop())),
        "REDUCE": lambda self, _: self._call(),
        "BUILD": lambda self, _: self._cut(1),  # attributes of a table, such as the state dict's versions
    }


def _new_table() -> dict[str, Any]:
    """`collections.OrderedDict`."""
    return {}


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> _Tensor:
    """`torch._utils._rebuild_tensor_v2`: a strided view of a storage, which must stay inside it."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > _MOST_AXES:
        raise UserError(f"a tensor has {len(size)} axes and {len(stride)} strides")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise UserError(f"a tensor has offset {offset}, size {size} and stride {stride}")
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # More elements than the storage has means that they overlap: a few bytes would then stand for any amount of memory.
    if count and (last >= storage.size or count > storage.size):
        raise UserError(f"a tensor of size {size} and stride {stride} reaches beyond its {storage.size} elements")
    tensor = _Tensor(storage, offset, size, stride)
    tensor.read()  # raises where NumPy has no room for such numbers; maps, and reads nothing
    return tensor


def _rebuild_parameter(data: _Tensor, *_: Any) -> _Tensor:
    """`torch._utils._rebuild_parameter`."""
    return data


def _check_total(state: Any, file_size: int) -> None:
    """Tied weights share a storage; a file whose tensors all share one could stand for any amount of memory."""
    tensors = [value for value in state.values() if isinstance(value, _Tensor)] if isinstance(state, dict) else []
    total = sum(math.prod(tensor.size) * tensor.storage.dtype.itemsize for tensor in tensors)
    if total > 2 * file_size:
        raise UserError(f"its tensors are {total} bytes, but the file has {file_size}")


def _read_with_torch(path: Path) -> dict[str, Any]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConversionError(
            f"{path} is no zip archive; if it was saved before PyTorch 1.6, install PyTorch (pip install torch) and "
            "try again, otherwise fetch it again"
        ) from None
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: _to_numpy(value) for key, value in state.items()}


def _to_numpy(value: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(jnp.bfloat16)
    return value.numpy()


def _one_line(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())[:200] or "no details"
