"""Sequences whose items are built whenever they are read, because all of them would take too much memory."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

Item = TypeVar("Item")


class OnDemand(Sequence[Item], Generic[Item]):
    """A sequence of which a subclass defines `__len__` and `_build`."""

    @abc.abstractmethod
    def _build(self, position: int) -> Item:
        """Returns the item at a position, which is at least 0 and below the length."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        positions = range(len(self))[index]
        return tuple(map(self._build, positions)) if isinstance(positions, range) else self._build(positions)


class Mapped(OnDemand[Item]):
    """The results of a function for the items of a sequence."""

    def __init__(self, function: Callable[[Any], Item], items: Sequence[Any]) -> None:
        self._function, self._items = function, items

    def __len__(self) -> int:
        return len(self._items)

    def _build(self, position: int) -> Item:
        return self._function(self._items[position])
