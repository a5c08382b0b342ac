"""PyTorch files that run code, or exhaust time or memory, if a reader is careless; for `test_fuzz`."""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from tests.support.fuzz_cases import Files, Rng, pick, weights_of


def text(value: str) -> bytes:
    """Returns the opcode BINUNICODE."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def short_text(value: str) -> bytes:
    """Returns the opcode SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def gadgets(sentinel: Path) -> list[bytes]:
    """Returns pieces of pickle that push one value; most create the file `sentinel` in a careless reader."""
    run = f"touch {sentinel}"
    python = f"open({str(sentinel)!r}, 'w')"
    named = [
        *(("os", "system", run), ("posix", "system", run), ("os", "popen", run), ("subprocess", "getoutput", run)),
        *(("builtins", "eval", python), ("builtins", "exec", python), ("__builtin__", "eval", python)),
        *(("torch.hub", "load", run), ("torch", "load", run), ("numpy", "load", run), ("pickle", "loads", run)),
        *(("builtins", "__import__", "antigravity"), ("importlib", "import_module", "antigravity")),
        *(("torch._utils", "_rebuild_tensor_v2.__globals__", run), ("collections", "OrderedDict.__init__", run)),
        *(("torch._utils", "os.system", run), ("torch", "FloatStorage.__class__", run), ("collections", "eval", run)),
        *(("deberta_jax.convert.pickle_reader", "os.system", run), ("runpy", "run_path", run), ("o\x1b[2J", "x", run)),
    ]
    pieces = []
    for module, name, argument in named:
        global_opcode = f"c{module}\n{name}\n".encode()
        pieces.append(global_opcode + text(argument) + b"\x85R")  # GLOBAL, REDUCE
        pieces.append(short_text(module) + short_text(name) + b"\x93" + text(argument) + b"\x85R")  # STACK_GLOBAL
        pieces.append(f"({'S' + repr(argument)}\ni{module}\n{name}\n".encode())  # INST
        pieces.append(b"(" + global_opcode + text(argument) + b"o")  # OBJ
        pieces.append(global_opcode + text(argument) + b"\x85\x81")  # NEWOBJ
        pieces.append(global_opcode + text(argument) + b"\x85}\x92")  # NEWOBJ_EX
    get = b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text("system") + b"tR" + text(run) + b"\x85R"
    table, rebuild = b"ccollections\nOrderedDict\n)R", b"ctorch._utils\n_rebuild_tensor_v2\n"
    pieces += [
        get,
        b"\x82\x01" + text(run) + b"\x85R",  # EXT1
        table + b"}" + text("__class__") + b"cos\nsystem\nsb",  # BUILD
        table + b"}(" + text("items") + b"K\x01" + text("__getitem__") + b"K\x02ub",  # attributes over methods
        rebuild + b"N}" + text("__code__") + text(python) + b"s\x86b",
        rebuild + text(run) + b"\x85R",
        b"(" + text("storage") + b"cos\nsystem\n" + text("0") + text("cpu") + b"K\x01tQ",
        b"cos\nsystem\nQ",
        text(run) + b"Q",
        f"P{run}\n".encode(),  # PERSID
    ]
    return pieces


def bombs() -> list[bytes]:
    """Returns pieces of pickle that push one value and exhaust time or memory in a careless reader."""
    nested = b")" + b"2\x86" * 60
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0")
    tensor += text("cpu") + b"K\x04tQK\x00"
    long = b"\x8a\xff" + b"\x7f" * 255
    # A tuple of nested pairs: the last has 2**60 elements, so printing, hashing or comparing it takes forever.
    shared = b"(" + b")q\x01" + b"h\x01h\x01\x86q\x01" * 60 + b"tq\x02"
    return [
        tensor + shared + b"h\x02\x89)tR",
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + shared + b"tQ",
        b"}" + shared + b"K\x01s",
        nested + b"}" + b")q\x01" + b"h\x01h\x01\x86q\x01" * 60 + b"K\x01s",
        b"}" + b")q\x01" + b"h\x01h\x01\x86q\x01" * 60 + b"K\x01s",
        b"Nr\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\x7f",
        b"\x8d" + struct.pack("<Q", 2**60),
        b"\x8e" + struct.pack("<Q", 2**60),
        b"\x96" + struct.pack("<Q", 2**60),
        b"\x95" + struct.pack("<Q", 2**60) + b"N",
        b"]" * 10**5 + b"a" * (10**5 - 1),
        b"(" * 10**5 + b"t" * 10**5,
        tensor + b"(" + b"\x8a\x08" + struct.pack("<q", 2**62) + b"t(K\x00tt\x89)tR",
        tensor + b"(" + long + b"q\x05" + b"h\x05" * 10**5 + b"t(" + b"h\x05" * 10**5 + b"t\x89)tR",
        tensor + b"(" + b"K\x01" * 1000 + b"t(" + b"K\x01" * 1000 + b"t\x89)tR",
        tensor + b"(K\x01t(" + long + b"t\x89)tR",  # a stride beyond every address space, for one element
        tensor + b"(K\x00" + long + b"t(K\x01K\x01t\x89)tR",
        tensor + b"K\x04K\x01\x89)tR",
        b"I" + b"9" * 10**5 + b"\n",
    ]


def rezip(data: bytes, changes: Mapping[str, bytes | None]) -> bytes:
    """Returns the zip archive with some members replaced, added or, if `None`, removed."""
    source, buffer = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    members = {name: source.read(name) for name in source.namelist()} | dict(changes)
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)
    return buffer.getvalue()


def planted(program: bytes, piece: bytes) -> list[bytes]:
    """Returns pickles with the piece instead of the table, as a value, as a key, or before the table and dropped."""
    return [
        b"\x80\x04" + piece + b".",
        program[:-1] + text("config") + piece + b"s.",
        program[:-1] + piece + b"K\x01s.",
        program[:2] + piece + b"0" + program[2:],
    ]


def plant(rng: Rng, files: Files, pieces: list[bytes]) -> None:
    """Plants one of the pieces in a weight file."""
    name, member = pick(rng, weights_of(files, "bin")), "archive/data.pkl"
    piece, program = pick(rng, pieces), zipfile.ZipFile(io.BytesIO(files[name])).read(member)
    files[name] = rezip(files[name], {member: pick(rng, planted(program, piece))})


def plant_bomb(rng: Rng, files: Files) -> None:
    """Plants a piece that exhausts time or memory."""
    plant(rng, files, bombs())


def zip_bomb(rng: Rng, files: Files) -> None:
    """Makes an archive that claims or unpacks to much more memory than it has bytes."""
    name = pick(rng, weights_of(files, "bin"))
    data = files[name]
    match int(rng.integers(6)):
        case 0 | 1:
            member = pick(rng, ["archive/data.pkl", "archive/byteorder", "archive/data/0"])
            files[name] = rezip(data, {member: None})
            files[name] = add_inflated(files[name], member, truthful=bool(rng.integers(2)))
        case 2:  # sizes in the directory that exceed the file
            start = data.index(b"PK\x01\x02")
            files[name] = data[: start + 20] + b"\xfe\xff\xff\xff" * 2 + data[start + 28 :]
        case 3:  # every tensor is the same storage
            pickled = b"\x80\x02}(" + b"".join(
                text(f"deberta.encoder.layer.{i}.x")
                + b"ctorch._utils\n_rebuild_tensor_v2\n(("
                + text("storage")
                + b"ctorch\nFloatStorage\n"
                + text("big")
                + text("cpu")
                + b"J\x00\x00\x04\x00tQK\x00J\x00\x00\x04\x00\x85K\x01\x85\x89)tR"
                for i in range(10000)
            )
            files[name] = rezip(data, {"archive/data.pkl": pickled + b"u.", "archive/data/big": bytes(2**20)})
        case 4:
            files[name] = rezip(data, {f"archive/{i}": b"" for i in range(5000)})
        case 5:
            files[name] = rezip(data, {"other/data.pkl": b"\x80\x02}."})


def add_inflated(data: bytes, member: str, *, truthful: bool) -> bytes:
    """Adds a member that unpacks to 4 GB; its header states that (`truthful`) or 4 bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**22)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = block * 1023 + packer.flush()
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(member, packed)
        info = archive.getinfo(member)
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, 1023 * 2**22 if truthful else 4
    return buffer.getvalue()


def zip_doubles(rng: Rng, files: Files) -> None:
    """Adds a second member with the name of another one."""
    name = pick(rng, weights_of(files, "bin"))
    buffer = io.BytesIO(files[name])
    with zipfile.ZipFile(buffer, "a") as archive:
        first = archive.infolist()[int(rng.integers(2))]
        info = zipfile.ZipInfo("archive/again....."[: len(first.filename)].ljust(len(first.filename), "."))
        archive.writestr(info, b"\x80\x02}.")
    files[name] = buffer.getvalue().replace(info.filename.encode(), first.filename.encode())
