"""What the frames of a raw recording are, where that is known: talk, a false start, a fault.

Simulated sessions know it (`simulate`, `editor["events"]` of their edit lists); so may other recordings whose
edit lists say it in the same words. A model that learns it beside the edit (`PointerSettings.kinds`) must
hear why a take was not kept, and its edit lists say what it heard (`editor["heard"]`).
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from editjax.mel import FrameGrid

FAULT = "fault"
KINDS = (
    "silence",
    "breath",
    "noise",
    "noodling",
    "talk",
    "count_in",
    "slate",
    "take",
    "false_start",
    "superseded",
    "spoiled",
    FAULT,
)
"""What a frame can be; where two share one the later in this order counts."""
UNKNOWN = -1
LEAST_SHARE = 0.15  # of a span, that it is named after a kind
FAULT_S = -0.1, 0.5
"""A fault is heard from just before the moment it is noted at until it is over."""


def in_frames(events: Iterable[dict], grid: FrameGrid, n_samples: int) -> list[list]:
    """[first frame, frame after the last, kind] of events in samples, their faults as events of their own.

    What lies beyond the recording's `n_samples` is left out.
    """
    found: list[list] = []
    for event in events:
        spans = [(event["start"], event["stop"], event["kind"])]
        for sample, _ in event.get("faults", ()):
            first, last = (sample + int(seconds * grid.source_rate_hz) for seconds in FAULT_S)
            spans.append((max(first, event["start"]), min(last, event["stop"]), FAULT))
        inside = [(max(start, 0), min(stop, n_samples), kind) for start, stop, kind in spans]
        found += [[grid.frame_of_sample(a), grid.frames_in(b), kind] for a, b, kind in inside if a < b]
    return found


def kinds_of(events: Sequence[Sequence], n_frames: int) -> np.ndarray:
    """The kind of every frame as its number in KINDS, int8 (T,); UNKNOWN where no event says it."""
    kind_T = np.full(n_frames, UNKNOWN, np.int8)
    for first, last, kind in events:
        if kind in KINDS:
            span = slice(first, max(last, first))
            kind_T[span] = np.maximum(kind_T[span], KINDS.index(kind))
    return kind_T


def events_of(kind_T: np.ndarray, grid: FrameGrid, n_samples: int) -> list[dict[str, Any]]:
    """Events in samples from the kind of every frame: the inverse of `in_frames` and `kinds_of`."""
    edges = np.flatnonzero(np.diff(kind_T, prepend=UNKNOWN - 1, append=UNKNOWN - 1)).tolist()
    return [
        {
            "start": int(grid.sample_of_frame(first)),
            "stop": min(int(grid.sample_of_frame(last)), n_samples),
            "kind": KINDS[kind_T[first]],
        }
        for first, last in pairwise(edges)
        if kind_T[first] != UNKNOWN
    ]


def named_after(events: Any, start: int, stop: int) -> str:
    """What fills the samples [start, stop): the kinds with LEAST_SHARE of it or more, most first.

    `events` come from a file that anything may have written: whatever is no event says nothing.
    """
    shares: dict[str, float] = {}
    for event in events if isinstance(events, list) else ():
        match event:
            case {"start": int(first), "stop": int(last), "kind": str(kind)}:
                inside = max(min(last, stop) - max(first, start), 0)
                shares[kind] = shares.get(kind, 0.0) + inside / (stop - start)
    named = sorted((kind for kind in shares if shares[kind] >= LEAST_SHARE), key=lambda kind: -shares[kind])
    return ", ".join(kind.replace("_", " ") for kind in named)
