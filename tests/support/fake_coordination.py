"""JAX's coordination service, for threads of one process that play the processes of a run."""

import threading


class FakeCoordination:
    """A key-value store and a barrier, with the methods of `CoordinationClient`.

    Attributes:
      values: what is stored.
      answering: while it is not set, every call hangs.
    """

    def __init__(self, count: int) -> None:
        self.values: dict[str, str] = {}
        self.answering = threading.Event()
        self.answering.set()
        self._barrier = threading.Barrier(count)
        self._changed = threading.Condition()

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self.answering.wait()
        with self._changed:
            assert allow_overwrite or key not in self.values
            self.values[key] = value
            self._changed.notify_all()

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        self.answering.wait()
        with self._changed:
            return [(name, value) for name, value in self.values.items() if name.startswith(key)]

    def key_value_delete(self, key: str) -> None:
        with self._changed:
            self.values.pop(key, None)

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000)
            return self.values[key]

    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None:
        self._barrier.wait(timeout=timeout_in_ms / 1000)
