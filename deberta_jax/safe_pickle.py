"""Reads a pickle of plain containers without running anything in it.

Python's own `pickle` module calls whatever function a file names, so a downloaded file could run any program. This
reader interprets the opcodes itself. It builds lists, tuples and dicts of plain values, calls only the functions that
its caller allows, and refuses all other opcodes, as documented in `pickletools`.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

_NOTHING: Mapping[tuple[str, str], Any] = {}


class UnsafePickleError(ValueError):
    """A pickle has something in it that its reader does not allow."""


def load(
    file: io.BytesIO,
    *,
    allowed: Mapping[tuple[str, str], Any] = _NOTHING,
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle and leaves the file at the first byte after it.

    Args:
      file: Positioned at the start of a pickle. Files of several pickles in a row are read by several calls.
      allowed: Maps the module and name of a global to the value that replaces it. The pickle may call a replacement
        that is a function, with arguments of its own choice, so each must be safe for any arguments.
      persistent_load: Returns the object that a persistent ID refers to (default: persistent IDs are refused).

    Raises:
      UnsafePickleError: The pickle names a global that is not allowed, uses an opcode that plain containers do not
        need, or declares sizes beyond its own length.
      Exception: The pickle is damaged: opcodes that do not fit together raise errors such as IndexError, KeyError,
        TypeError and ValueError, and the functions in `allowed` raise errors of their own.
    """
    return _Interpreter(allowed, persistent_load).run(file)


class _Interpreter:
    """The stack machine of pickle, reduced to the opcodes that plain containers need."""

    def __init__(self, allowed: Mapping[tuple[str, str], Any], persistent_load: Callable[[Any], Any] | None) -> None:
        self._allowed, self._persistent_load = allowed, persistent_load
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: io.BytesIO) -> Any:
        size = file.getbuffer().nbytes
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("BINPUT", "LONG_BINPUT") and (argument or 0) > size:
                raise UnsafePickleError("its pickle numbers more values than it has bytes")
            if opcode.name == "FRAME" and (argument or 0) > size:
                raise UnsafePickleError("its pickle is cut off")
            if opcode.name not in self._STEPS:
                raise UnsafePickleError(f"its pickle uses {opcode.name}, which plain containers do not need")
            self._STEPS[opcode.name](self, argument)
        (value,) = self._stack
        return value

    def _pop(self, count: int | None = None) -> list[Any]:
        """Removes `count` values from the stack and returns them (None: all values above the last mark)."""
        start = self._marks.pop() if count is None else len(self._stack) - count
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _append(self, values: list[Any]) -> None:
        self._stack[-1].extend(values)

    def _set_items(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Tuples nested through the memo have exponentially many elements, so hashing one might never end.
            if not isinstance(key, str | int | float | None):
                raise UnsafePickleError(f"its pickle has a dict with a {type(key).__name__} as key")
            self._stack[-1][key] = value

    def _memoize(self, number: int | None) -> None:
        self._memo[len(self._memo) if number is None else number] = self._stack[-1]

    def _push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):  # a nested tuple again, see `_set_items`
            raise UnsafePickleError("its pickle names a global by something other than strings")
        if (module, name) not in self._allowed:
            raise UnsafePickleError(f"its pickle asks for {module}.{name}, which is not allowed; nothing in it was run")
        self._push(self._allowed[module, name])

    def _push_persistent(self) -> None:
        if self._persistent_load is None:
            raise UnsafePickleError("its pickle has persistent IDs, which plain containers do not need")
        self._push(self._persistent_load(self._stack.pop()))

    def _call(self) -> None:
        function, arguments = self._pop(2)
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
        "TUPLE": lambda self, _: self._push(tuple(self._pop())),
        "TUPLE1": lambda self, _: self._push(tuple(self._pop(1))),
        "TUPLE2": lambda self, _: self._push(tuple(self._pop(2))),
        "TUPLE3": lambda self, _: self._push(tuple(self._pop(3))),
        "APPEND": lambda self, _: self._append(self._pop(1)),
        "APPENDS": lambda self, _: self._append(self._pop()),
        "SETITEM": lambda self, _: self._set_items(self._pop(2)),
        "SETITEMS": lambda self, _: self._set_items(self._pop()),
        **dict.fromkeys("BINPUT LONG_BINPUT MEMOIZE".split(), _memoize),
        **dict.fromkeys("BINGET LONG_BINGET".split(), lambda self, number: self._push(self._memo[number])),
        "GLOBAL": lambda self, name: self._push_global(*name.split(" ", 1)),
        "STACK_GLOBAL": lambda self, _: self._push_global(*self._pop(2)),
        "BINPERSID": lambda self, _: self._push_persistent(),
        "REDUCE": lambda self, _: self._call(),
        # Attributes of an object are dropped: the only ones that PyTorch writes are the versions of a state dict.
        "BUILD": lambda self, _: self._pop(1),
    }
