"""Reads PyTorch's weight files (`*.bin`, `*.pt`) without PyTorch and without running any code in them.

Such a file is a zip archive: `data.pkl` describes the tensors, and `data/<key>` holds the bytes of each storage. The
pickle may contain only what tensors and plain containers need (see `deberta_jax.safe_pickle`). Checksums are verified
when the file is opened; afterwards a storage is mapped into memory only while one of its tensors is in use.
"""

import collections
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from deberta_jax import safe_pickle

from .containers import find_state_dict
from .errors import ConversionError

_PICKLE_LIMIT = 4 * 2**20  # bytes; the largest released model needs 0.2 MB
_MOST_AXES = 64  # NumPy's limit

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
    """Reads the state dict of a PyTorch file: NumPy arrays and plain values by name.

    An array is a view of the mapped file and is created on each access, so its memory is freed with it.

    The zip format (PyTorch 1.6 and newer) is read without PyTorch. The older format is read by PyTorch itself, in its
    mode that loads only weights.

    Raises:
      FileNotFoundError: The file does not exist.
      ConversionError: The file is damaged, is not a PyTorch file or contains anything but tensors and plain values; or
        it has the older format and PyTorch is not installed.
    """
    path = Path(path)
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        state = _read_archive(path) if is_zip else _read_with_torch(path)
    except ConversionError:
        raise
    except safe_pickle.UnsafePickleError as error:
        raise ConversionError(
            f"{path} was not read: {_one_line(str(error))}; save the state dict of the model alone"
        ) from None
    except Exception as error:  # a damaged archive or pickle can raise anything
        raise ConversionError(
            f"{path} is damaged or not a PyTorch file: {type(error).__name__}: {_one_line(str(error))}; download it "
            "again"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ConversionError(f"{path} contains a {type(state).__name__}; a state dict maps names to tensors")
    return _LazyState(state)


class _StorageType(NamedTuple):
    dtype: np.dtype[Any]


class _Storage(NamedTuple):
    """The position of `size` numbers in a file."""

    path: Path
    start: int  # in bytes
    dtype: np.dtype[Any]
    size: int


class _Tensor(NamedTuple):
    """A strided view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize

    def read(self) -> Shaped[np.ndarray, "*shape"]:
        path, start, dtype, count = self.storage
        if not math.prod(self.size):
            return np.empty(self.size, dtype)
        values = np.memmap(path, dtype, mode="r", offset=start, shape=(count,)).view(np.ndarray)
        byte_strides = tuple(step * dtype.itemsize for step in self.stride)
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.size, byte_strides, writeable=False)


class _LazyState(collections.UserDict[str, Any]):
    """Reads a tensor on each access."""

    def __getitem__(self, key: str) -> Any:
        value = self.data[key]
        return value.read() if isinstance(value, _Tensor) else value


def _read_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return _Archive(path, archive).load()


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
        self._unclaimed = path.stat().st_size  # bytes that do not belong to a storage yet

    def load(self) -> Any:
        """Returns the object that the archive contains, with a `_Tensor` for each tensor."""
        order = self._members.get(f"{self._prefix}byteorder")
        if order is not None and (order.file_size > 16 or self._read(order).strip() != b"little"):
            self._refuse("its numbers are big-endian; save it again on a little-endian machine")
        info = self._members[f"{self._prefix}data.pkl"]
        if info.file_size > _PICKLE_LIMIT:
            self._refuse(f"data.pkl unpacks to {info.file_size} bytes; the limit is {_PICKLE_LIMIT}")
        state = safe_pickle.load(
            io.BytesIO(self._read(info)),
            allowed={
                ("collections", "OrderedDict"): lambda: {},
                ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
                ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
                **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
            },
            persistent_load=self._find_storage,
        )
        state = find_state_dict(state)
        self._check_total(state)
        return state

    def _read(self, info: zipfile.ZipInfo) -> bytes:
        with self._archive.open(info) as member:
            return member.read(info.file_size)  # without this limit, a member may unpack to more than its header states

    def _find_storage(self, reference: Any) -> _Storage:
        """Resolves PyTorch's reference ("storage", type, key, device, number of elements)."""
        kind, storage_type, key, _, count = reference
        known_types = isinstance(storage_type, _StorageType) and isinstance(key, str) and isinstance(count, int)
        if kind != "storage" or not known_types:
            self._refuse("its pickle refers to something that is not the storage of a tensor")
        if key not in self._storages:
            self._storages[key] = self._locate(f"{self._prefix}data/{key}", storage_type.dtype)
        storage = self._storages[key]
        if storage.dtype != storage_type.dtype or storage.size != count:
            self._refuse(f"storage {key} has {storage.size} elements of {storage.dtype}, not {count}")
        return storage

    def _locate(self, name: str, dtype: np.dtype[Any]) -> _Storage:
        """Finds the bytes of a storage in the file and verifies their checksum."""
        info = self._members.get(name)
        if info is None:
            self._refuse(f"its pickle names {name}, which is not in the archive")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            self._refuse(f"{name} is compressed, which PyTorch never does; load and save the file with PyTorch")
        self._archive.open(info).close()  # raises if the member's local header contradicts the archive's directory
        with self._path.open("rb") as file:
            # The bytes follow a local header of 30 bytes, which ends with the lengths of the name and the extra field.
            file.seek(info.header_offset + 26)
            start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        # Members that overlap would let a small file claim any amount of memory.
        self._unclaimed -= info.file_size
        if self._unclaimed < 0:
            self._refuse(f"{name} is cut off or overlaps another member")
        count, remainder = divmod(info.file_size, dtype.itemsize)
        if remainder:
            self._refuse(f"{name} has {info.file_size} bytes, which is not a multiple of the size of {dtype}")
        checksum = 0
        if count:
            checksum = zlib.crc32(np.memmap(self._path, np.uint8, mode="r", offset=start, shape=(info.file_size,)).data)
        if checksum != info.CRC:
            self._refuse(f"{name} does not match its checksum")
        return _Storage(self._path, start, dtype, count)

    def _rebuild_tensor(self, storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> _Tensor:
        """Replaces `torch._utils._rebuild_tensor_v2`: a strided view of a storage, which must stay inside it."""
        if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > _MOST_AXES:
            self._refuse(f"a tensor has {len(size)} axes and {len(stride)} strides")
        # The message does not show the values: nested tuples that share elements can take forever to print.
        if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
            self._refuse("a tensor has an offset, size or stride that is not a non-negative integer")
        count = math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        # If a tensor has more elements than its storage, they overlap, and a few bytes claim any amount of memory.
        if count and (last >= storage.size or count > storage.size):
            self._refuse(f"a tensor of size {size} and stride {stride} exceeds its storage of {storage.size} elements")
        tensor = _Tensor(storage, offset, size, stride)
        tensor.read()  # raises if NumPy cannot represent these numbers; it maps the file but reads nothing
        return tensor

    def _check_total(self, state: Any) -> None:
        """Raises if the tensors are larger than the file allows.

        Tied weights share a storage, but a small file whose tensors all share one could claim any amount of memory.
        """
        tensors = [value for value in state.values() if isinstance(value, _Tensor)] if isinstance(state, dict) else []
        total, file_size = sum(tensor.nbytes for tensor in tensors), self._path.stat().st_size
        if total > 2 * file_size:
            self._refuse(f"its tensors have {total} bytes, but the file has {file_size}")

    def _refuse(self, reason: str) -> NoReturn:
        raise ConversionError(f"{self._path} was not read: {_one_line(reason)}")


def _read_with_torch(path: Path) -> dict[str, Any]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConversionError(
            f"{path} is not a zip archive; if it was saved before PyTorch 1.6, install PyTorch (pip install torch) and "
            "try again, otherwise download it again"
        ) from None
    state = find_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return {key: _to_numpy(value) for key, value in state.items()}


def _to_numpy(value: Any) -> Any:
    """Converts a tensor to an array; other values are returned unchanged."""
    import torch  # pyright: ignore[reportMissingImports]

    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(jnp.bfloat16)
    return value.numpy()


def _one_line(text: str) -> str:
    """Replaces line breaks and control characters, which a damaged or hostile file can put into a message."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())[:200] or "no details"
