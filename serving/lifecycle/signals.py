"""SIGINT and SIGTERM as one exception in the main thread."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(BaseException):  # not an error
    """SIGINT or SIGTERM arrived. Not an Exception: nothing may swallow it."""


@contextmanager
def signals_raise() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into StopRequested; later ones are ignored.

    Later ones would interrupt the shutdown that the first one caused, which is bounded in time.
    """
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    install_handlers()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def install_handlers() -> None:
    """Make the next SIGINT or SIGTERM raise StopRequested in the main thread."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise StopRequested(signal.Signals(number).name)

    for number in _SIGNALS:
        signal.signal(number, on_signal)
