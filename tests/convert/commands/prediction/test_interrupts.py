"""Ctrl-C where its exception is lost."""

import contextlib
import signal

import pytest

from deberta_jax.convert.commands.prediction.interrupts import noticed_interrupts


def test_an_interrupt_whose_exception_was_ignored_is_raised_later() -> None:
    original = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with noticed_interrupts() as check:
            check()
            with contextlib.suppress(KeyboardInterrupt):  # as a callback of the garbage collection does
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                check()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, original)
