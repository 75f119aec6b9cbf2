"""Where the wall time of a training run goes: every second of it into one of `PARTS`.

The host hands a step to the device and goes on, so what the host waits for is not where the time goes. While
the device works on a step, the time is that step's, whatever the host does meanwhile. What compiling, data,
saving and validating take is the time beyond that, and `other` is when neither had anything to do.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

PARTS = ("steps", "redo", "init", "compile", "data", "save", "validation", "other")
"""`redo` are steps that an earlier start had made already, and that a kill or a fault took."""


class Badput:
    """The parts of the time since this was made, of which the first is `init`; `now` is the clock, in s."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._until = now()  # all before is in a part
        self._turns = deque([(self._until, "init")])  # when the host turned to what, from `_until` on

    def turn_to(self, part: str) -> None:
        """From now on the host is at work on this part."""
        self._turns.append((self.now(), part))

    @contextlib.contextmanager
    def on(self, part: str) -> Iterator[None]:
        """While open, the host is at work on this part."""
        before = self._turns[-1][1]
        self.turn_to(part)
        try:
            yield
        finally:
            self.turn_to(before)

    def ran(self, began: float, ended: float, part: str = "steps") -> None:
        """The device worked on a step from `began`, or the end of the step before it, to `ended`."""
        self._divide(began)
        self._divide(ended, part)

    def seconds(self) -> dict[str, float]:
        """Every part until now; no step may be under way."""
        self._divide(self.now())
        return dict(self._seconds)

    def _divide(self, until: float, part: str | None = None) -> None:
        """Give the time until then to the part, or to those that the host turned to."""
        while self._until < until:
            end = min(until, self._turns[1][0]) if len(self._turns) > 1 else until
            self._seconds[part or self._turns[0][1]] += end - self._until
            self._until = end
            if len(self._turns) > 1 and self._turns[1][0] <= end:
                self._turns.popleft()


def described(seconds: Mapping[str, float]) -> str:
    """One line: the whole time and the share of every part."""
    total = sum(seconds.values())
    shares = ", ".join(f"{part} {100 * seconds[part] / total:.1f} %" for part in PARTS)
    minutes, rest = divmod(round(total), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h: {shares}"
