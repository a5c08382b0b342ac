"""PyTorch files that are read without PyTorch, and damaged or hostile ones that are refused."""

import os
import pickle
import sys
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.convert import ConversionError, load_pytorch
from deberta_jax.convert.mapping import to_params
from deberta_jax.convert.pickle_reader import read_bin

from ..support.pytorch_files import MLM, V3, Call, assert_same, bin_bytes, random_state, write_json


def test_pickle_that_would_run_a_command_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    marker = tmp_path / "marker"
    path.write_bytes(bin_bytes({}, extra={"weight": Call(os.system, f"touch {marker}")}))
    with pytest.raises(ConversionError, match=r"asks for posix.system, which is not allowed; nothing in it was run"):
        read_bin(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02(ios\nsystem\n.", "its pickle uses INST, which plain containers do not need"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "numbers more values than it has bytes"),
        (b"\x80\x02].", "contains a list; a state dict maps names"),
        (b"\x80\x02}K\x01K\x01s.", "contains a dict; a state dict maps names"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "damaged or not a PyTorch file: TypeError"),
        (b"\x80\x02ctorch.nn\nLinear\n.", "asks for torch.nn.Linear"),
        (b"\x80\x02", "damaged"),
        (b"", "damaged"),
    ],
)
def test_pickles_without_a_state_dict_are_refused(tmp_path: Path, program: bytes, message: str) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(ConversionError, match=message) as error_info:
        read_bin(path)
    assert "\n" not in str(error_info.value)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (3, 1)), (0, (10**12,), (0,)), (-1, (2,), (1,)), (0, (2,), (-1,))],
)
def test_tensors_outside_their_storage_are_refused(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(bin_bytes({"x": np.arange(4, dtype=np.float32)}, view=(offset, size, stride)))
    with pytest.raises(ConversionError, match="a tensor"):
        read_bin(path)


def test_strided_views_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(bin_bytes({"x": np.arange(12, dtype=np.float32)}, view=(1, (3, 2), (2, 5))))
    np.testing.assert_array_equal(read_bin(path)["x"], [[1, 6], [3, 8], [5, 10]])
    path.write_bytes(bin_bytes({"x": np.arange(2, dtype=np.float32)}, view=(1, (), ())))
    np.testing.assert_array_equal(read_bin(path)["x"], np.float32(1))
    path.write_bytes(bin_bytes({"x": np.zeros(0, np.float32)}, view=(0, (0, 3), (3, 1))))
    assert read_bin(path)["x"].shape == (0, 3)


def test_archives_that_pytorch_does_not_write_are_refused(tmp_path: Path) -> None:
    state = {"x": np.zeros(10**6, np.float32)}
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(bin_bytes(state, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(ConversionError, match="is compressed"):
        read_bin(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(ConversionError, match=r"data.pkl unpacks to 10000000 bytes"):
        read_bin(path)
    data = bytearray(bin_bytes({"x": np.ones(1000, np.float32)}))
    data[data.index(b"\x00\x00\x80\x3f" * 4) + 400] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConversionError, match="data/0 does not match its checksum"):
        read_bin(path)


def test_old_format_without_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(119547037146038801333356, protocol=2))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConversionError, match=r"is not a zip archive; if it was saved before PyTorch 1.6"):
        read_bin(path)


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_written_by_torch_are_read(tmp_path: Path, protocol: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed; it writes the files of this test")
    matrix = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    module = torch.nn.Linear(3, 2)
    state = module.state_dict()  # an OrderedDict with attributes
    state |= {
        "transposed": matrix.t(),
        "column": matrix[:, 1],
        "strided": matrix[1::2, ::3],
        "parameter": torch.nn.Parameter(matrix[2:]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "half": matrix.half(),
        "brain": matrix.bfloat16(),
        "ids": torch.arange(5)[2:],
        "flags": torch.tensor([True, False]),
    }
    path = tmp_path / "pytorch_model.bin"
    torch.save({**state, "config": {"name": "x", "rate": 0.5, "list": [1, None, True]}}, path, pickle_protocol=protocol)
    read = read_bin(path)
    assert read.pop("config") == {"name": "x", "rate": 0.5, "list": [1, None, True]}
    assert read.keys() == state.keys()
    for key, tensor in state.items():
        assert read[key].dtype.name == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(read[key].astype(np.float32), tensor.detach().float().numpy())


@pytest.mark.torch
def test_old_format_is_read_with_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed; it reads the format before PyTorch 1.6")
    state = random_state(V3, MLM)
    tensors = {key: torch.from_numpy(array).bfloat16() for key, array in state.items()}
    write_json(tmp_path, V3)
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    rounded = {key: array.astype(jnp.bfloat16) for key, array in state.items()}
    assert_same(load_pytorch(tmp_path)[1], to_params(rounded, V3))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConversionError, match="is damaged or not a PyTorch file"):
        load_pytorch(tmp_path)
    torch.save({"x": Call(os.system, "true")}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ConversionError, match="is damaged or not a PyTorch file"):
        load_pytorch(tmp_path)
