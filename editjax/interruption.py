"""SIGTERM and SIGINT → a clean stop between steps, with everything saved."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TypeVar

from editjax.errors import TryAgainError

Result = TypeVar("Result")


class Interruption:
    """While open, the two signals are noted and obeyed when asked; a second SIGINT acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._may_cut = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def cuttable(self, function: Callable[[], Result]) -> Result | None:
        """The function's result, or None when a signal cut it short: for long work that can be repeated."""
        try:
            try:
                self._may_cut = True
                return None if self.signal else function()
            finally:
                self._may_cut = False
        except _Cut:
            return None

    def obey(self, number: int, saved: str) -> NoReturn:
        """Raise TryAgainError or KeyboardInterrupt, as a signal asks, with a message opened by `saved`."""
        message = f"{saved}; the same command goes on from there"
        raise TryAgainError(message) if number == signal.SIGTERM else KeyboardInterrupt(message)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
        if self._may_cut:
            raise _Cut


class _Cut(BaseException):
    """Leaves a `cuttable` function; not an Exception, so that no handler on the way takes it for its own."""
