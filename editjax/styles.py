"""Editing styles: the log of a session comes in, the segments an editor of that style would keep go out.

*final*, the default: of every section the last complete, unspoiled take, in song order, with its own musical
pauses. The rule is the same everywhere: a segment begins LEAD_IN_S (50 ms) before the first onset of the take
and ends where its sound, room included, has decayed to 40 dB below the take's loudness (at most 1.6 s after
the last note's end).
"""

from typing import NamedTuple

import numpy as np

from editjax.edit_list import Segment
from editjax.session import Timeline

STYLES = ("final", "tight", "loose", "radio", "extended", "produced")


class Edit(NamedTuple):
    """An edit of one session: segments in playing order, the length asked for (None: as it comes).

    `effects` are (start, stop, name) in raw samples: spans that sound processed in the edit.
    """

    segments: tuple[Segment, ...]
    target_length_s: float | None = None
    effects: tuple[tuple[int, int, str], ...] = ()


def edit_of(style: str, timeline: Timeline, rng: np.random.Generator) -> Edit:
    """The edit of a session in a style; raises ValueError for a style there is not."""
    match style:
        case "final":
            return final(timeline)
        case _:
            raise ValueError(f"unknown style {style!r}: choose from {', '.join(STYLES)}")


def final(timeline: Timeline) -> Edit:
    """Every section's kept take, whole, in song order."""
    return Edit(tuple(_segment(take.start, take.stop) for take in timeline.kept))


def _segment(start: int, stop: int, reason: str = "keep") -> Segment:
    return Segment(int(start), int(stop), int(start), int(stop), reason=reason)
