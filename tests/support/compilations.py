"""The programs that JAX compiles, by name."""

import contextlib
import logging
import re
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def compiled_programs() -> Iterator[list[str]]:
    """Yields a list that receives the name of every program that is compiled inside the context.

    An operation outside of jit is a program of its name, such as "broadcast_in_dim", and a jitted function one of the
    function's name.
    """
    programs: list[str] = []

    class Names(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := re.match(r"Finished XLA compilation of (?:jit\()?([^\s)]+)", record.getMessage()):
                programs.append(found[1])

    logger, handler = logging.getLogger("jax"), Names()
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield programs
    finally:
        logger.removeHandler(handler)
