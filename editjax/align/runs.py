"""Spans of windows → runs with ends to the sample, gains, fades and crossfades.

In come the spans that explain the edit; out come `Run`s. Where two runs meet, the join is the sample at
which leaving one for the other leaves least unexplained; where a run ends in something else, the last sample
that it explains.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from editjax.align.explain import Span, typical_gain
from editjax.align.signals import Diagonal, Noise, Signals, measure, slice_padded

LOCAL_GAIN_WINDOWS = 20
"""Windows at the end of a run whose gain decides where the run ends (0.23 s)."""
MIXED_GAIN = 0.08
"""Part of its gain with which a run must sound for a window to be a mixture with it."""
ALIKE_RUNS = 0.9
"""Share of energy that the raw of one run explains of the other's, above which a mixture cannot be taken
apart.
"""
MOST_DRIFT = 3e-4
"""Difference of two clocks that is still taken for drift rather than for a cut."""
GOOD_RESIDUAL = 0.1
"""Residual of windows whose gain is believed when fades are looked for."""
UNHEARD_FADE = 0.05
"""Part of a fade that may be too quiet to be matched."""
FULL_GAIN = 0.95
"""Part of its gain at which a run counts as faded in."""
SHORTEST_FADE_WINDOWS = 2
"""Shorter fades are joins (23 ms)."""
FADE_SLACK = 0.05
"""How far the gain may fall back within a fade-in."""


@dataclass(frozen=True)
class JoinSettings:
    """How far around a join its sample is looked for, and the longest fades and crossfades that are looked
    for.

    `mixture_residual` is what two runs together may leave unexplained of a crossfade.
    """

    reach_s: float = 0.05
    longest_mixture_s: float = 3.0
    longest_fade_s: float = 12.0
    mixture_residual: float = 0.4


class Run(NamedTuple):
    """Edit samples [start, stop) are raw samples [start + offset, stop + offset), times `gain` (signed).

    `likeness` (0 to 1) is the typical |ρ| of its windows. `fade_in` and `fade_out` are in samples; where a
    run with a `fade_out` meets one with a `fade_in` the two are a crossfade. `kind` says how it was found:
    "wave", to the sample; "alike", by resemblance, to the frame; "silence", any silence of the raw.
    """

    start: int
    stop: int
    offset: int
    gain: float
    likeness: float
    fade_in: int = 0
    fade_out: int = 0
    kind: str = "wave"


def runs_of(signals: Signals, spans: list[Span], noise: Noise, settings: JoinSettings) -> list[Run]:
    """The runs of the spans, in the order of the edit, disjoint."""
    runs = [_run(signals, span, noise) for span in spans]
    for i, run in enumerate(runs):
        if i and not _meet(signals, runs, i, settings):
            before = runs[i - 1]
            runs[i - 1] = before._replace(stop=_end(signals, before, latest=run.start))
            runs[i] = run._replace(start=_start(signals, run, earliest=before.stop))
        elif not i and run.start:
            runs[i] = run._replace(start=_start(signals, run, earliest=0))
    if runs:
        whole = spans[-1].stop == len(signals.energy_W)
        latest = len(signals.edit_S)
        runs[-1] = runs[-1]._replace(stop=latest if whole else _end(signals, runs[-1], latest))
    runs = [run for run in runs if run.stop > run.start]
    return [_faded(signals, run, i, runs, noise, settings) for i, run in enumerate(runs)]


def _run(signals: Signals, span: Span, noise: Noise) -> Run:
    diagonal = measure(signals, span.offset, span.first, span.stop)
    window = signals.window_samples
    told_W = ~noise.drowned_W(signals.energy_W[span.first : span.stop])
    likeness = float(np.sqrt(1 - np.median(diagonal.residual_W[told_W if told_W.any() else slice(None)])))
    return Run(span.first * window, span.stop * window, span.offset, typical_gain(diagonal), likeness)


def _meet(signals: Signals, runs: list[Run], i: int, settings: JoinSettings) -> bool:
    """Joins runs i − 1 and i in place if nothing foreign is between them."""
    before, after = runs[i - 1], runs[i]
    gap = after.start - before.stop
    if gap > settings.longest_mixture_s * signals.rate_hz:
        return False
    mixed = _mixture(signals, before, after, settings)
    if gap > 2 * signals.window_samples and not (
        mixed and mixed[0] <= before.stop and mixed[1] >= after.start
    ):
        return False
    if mixed and mixed[1] - mixed[0] > 2 * settings.reach_s * signals.rate_hz:
        join, half = (mixed[0] + mixed[1]) // 2, (mixed[1] - mixed[0]) // 2
        runs[i - 1] = before._replace(stop=join, fade_out=min(half, join - before.start))
        runs[i] = after._replace(start=join, fade_in=min(half, after.stop - join))
    else:
        join = _best_join(signals, before, after, round(settings.reach_s * signals.rate_hz))
        runs[i - 1], runs[i] = before._replace(stop=join), after._replace(start=join)
    return True


def _mixture(signals: Signals, before: Run, after: Run, settings: JoinSettings) -> tuple[int, int] | None:
    """The edit samples [low, high) around the meeting of two runs in which both sound; None if there are
    none.
    """
    window = signals.window_samples
    reach = round(settings.longest_mixture_s * signals.rate_hz / window)
    middle = (before.stop + after.start) // 2 // window
    first = max(before.start // window, middle - reach)
    stop = min(after.stop // window, middle + reach)
    if stop - first < 2:
        return None
    edit_WS = signals.edit_S[first * window : stop * window].reshape(-1, window)
    one_WS, two_WS = (
        run.gain
        * slice_padded(signals.raw_S, first * window + run.offset, stop * window + run.offset).reshape(
            -1, window
        )
        for run in (before, after)
    )
    part_W2, residual_W = _parts(edit_WS, one_WS, two_WS)
    both_W = (part_W2.min(axis=1) > MIXED_GAIN) & (residual_W < settings.mixture_residual)
    nearest = int(np.clip(middle - first, 0, len(both_W) - 1))
    near = np.flatnonzero(both_W[max(0, nearest - 2) : nearest + 3])
    if not near.size:
        return None
    low = high = max(0, nearest - 2) + int(near[np.abs(near - 2).argmin()])
    while low > 0 and both_W[low - 1]:
        low -= 1
    while high + 1 < len(both_W) and both_W[high + 1]:
        high += 1
    return (first + low) * window, (first + high + 1) * window


def _parts(edit_WS: np.ndarray, one_WS: np.ndarray, two_WS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares gains (W, 2) of two sounds in a mixture, and the part of its energy they leave (W,)."""

    def dot(a_WS: np.ndarray, b_WS: np.ndarray) -> np.ndarray:
        return np.einsum("ws,ws->w", a_WS, b_WS, dtype=np.float64)

    aa, bb, ab = dot(one_WS, one_WS), dot(two_WS, two_WS), dot(one_WS, two_WS)
    ea, eb, ee = dot(edit_WS, one_WS), dot(edit_WS, two_WS), dot(edit_WS, edit_WS)
    apart = ab**2 < ALIKE_RUNS * aa * bb
    scale = 1 / np.where(apart, aa * bb - ab**2, 1.0)
    part_W2 = np.stack([(ea * bb - eb * ab) * scale, (eb * aa - ea * ab) * scale], axis=1)
    part_W2[~apart] = 0.0
    explained = part_W2[:, 0] * ea + part_W2[:, 1] * eb
    return part_W2, 1 - explained / np.maximum(ee, np.finfo(np.float32).tiny)


def _best_join(signals: Signals, before: Run, after: Run, reach: int) -> int:
    """The sample at which leaving one run for the other leaves least unexplained."""
    low = max(before.start, before.stop - reach)
    high = min(after.stop, after.start + reach)
    wrong_before_S = _wrong(signals, before, low, high, before.stop)
    wrong_after_S = _wrong(signals, after, low, high, after.start)
    total_S = np.concatenate([[0.0], np.cumsum(wrong_before_S - wrong_after_S)])
    ties = np.flatnonzero(total_S <= total_S.min() + 1e-9 * (wrong_before_S.sum() + wrong_after_S.sum()))
    middle = (before.stop + after.start) / 2 - low
    return low + int(ties[np.abs(ties - middle).argmin()])


def _start(signals: Signals, run: Run, earliest: int) -> int:
    """The first sample that the run explains, within a window of where its first window starts."""
    low, high = max(earliest, run.start - signals.window_samples), run.start + signals.window_samples
    saved_S = _saved(signals, run, low, high, run.start)
    return high - int(np.concatenate([[0.0], np.cumsum(saved_S[::-1])]).argmax())


def _end(signals: Signals, run: Run, latest: int) -> int:
    """One past the last sample that the run explains, within a window of where its last window ends."""
    low, high = run.stop - signals.window_samples, min(latest, run.stop + signals.window_samples)
    saved_S = _saved(signals, run, low, high, run.stop)
    return low + int(np.concatenate([[0.0], np.cumsum(saved_S)]).argmax())


def _saved(signals: Signals, run: Run, low: int, high: int, near: int) -> np.ndarray:
    """Per sample the energy a run explains beyond half of the edit's."""
    return 0.5 * signals.edit_S[low:high].astype(np.float64) ** 2 - _wrong(signals, run, low, high, near)


def _wrong(signals: Signals, run: Run, low: int, high: int, near: int) -> np.ndarray:
    """Squared residual of edit samples [low, high) under a run, with the gain it has near one of its ends."""
    reach = LOCAL_GAIN_WINDOWS * signals.window_samples
    inside = slice(max(run.start, near - reach), min(run.stop, near + reach))
    raw_S = slice_padded(signals.raw_S, inside.start + run.offset, inside.stop + run.offset)
    energy = float(np.dot(raw_S, raw_S))
    gain = float(np.dot(signals.edit_S[inside], raw_S)) / energy if energy else run.gain
    raw_S = slice_padded(signals.raw_S, low + run.offset, high + run.offset)
    return (signals.edit_S[low:high].astype(np.float64) - gain * raw_S) ** 2


def _faded(signals: Signals, run: Run, i: int, runs: list[Run], noise: Noise, settings: JoinSettings) -> Run:
    """The run with the fades at ends that meet no other run, and its gain outside them."""
    window = signals.window_samples
    first = -(-run.start // window)
    diagonal = measure(signals, run.offset, first, max(run.stop // window, first))
    gain = _full_gain(diagonal, run.gain)
    most = round(settings.longest_fade_s * signals.rate_hz / window)
    before = runs[i - 1].stop if i else 0
    after = runs[i + 1].start if i + 1 < len(runs) else len(signals.edit_S)
    faded = run
    if (not i or before < run.start) and (rise := _fade_windows(diagonal, gain, noise, slice(0, most))):
        start = max(before, run.start - _unheard(rise, window))
        faded = faded._replace(start=start, fade_in=(first + rise) * window - start, gain=gain)
    if (i + 1 == len(runs) or after > run.stop) and (
        fall := _fade_windows(diagonal, gain, noise, slice(None, -most - 1, -1))
    ):
        stop = min(after, run.stop + _unheard(fall, window))
        faded = faded._replace(stop=stop, fade_out=stop - (diagonal.stop - fall) * window, gain=gain)
    return faded._replace(fade_out=min(faded.fade_out, faded.stop - faded.start - faded.fade_in))


def _full_gain(diagonal: Diagonal, typical: float) -> float:
    """The gain of a run outside its fades: high among those of windows that match well."""
    good = (diagonal.residual_W < GOOD_RESIDUAL) & (diagonal.gain_W * typical > 0)
    return (
        float(np.copysign(np.percentile(np.abs(diagonal.gain_W[good]), 85), typical))
        if good.any()
        else typical
    )


def _unheard(fade_windows: int, window_samples: int) -> int:
    """Samples of a fade too quiet to be matched (the last 30 dB, with slack)."""
    return round(UNHEARD_FADE * fade_windows + 1) * window_samples


def _fade_windows(diagonal: Diagonal, gain: float, noise: Noise, inwards: slice) -> int:
    """Windows from an end of a run until it has its full gain; 0 if it starts with that or does not rise to
    it.
    """
    part_W = np.abs(diagonal.gain_W / gain)[inwards]
    told_W = ~noise.drowned_W((gain**2 * diagonal.raw_energy_W)[inwards])
    full = np.flatnonzero(told_W & (part_W > FULL_GAIN))
    if not full.size or full[0] < SHORTEST_FADE_WINDOWS:
        return 0
    rise_W = part_W[: full[0]][told_W[: full[0]]]
    steady = rise_W.size >= SHORTEST_FADE_WINDOWS and np.mean(np.diff(rise_W) > -FADE_SLACK) > 0.8
    return int(full[0]) if steady and rise_W[:2].mean() < 0.5 else 0


def merged(runs: list[Run], slack_samples: int) -> list[Run]:
    """Runs that follow each other in the raw but for a sample or two (clock drift) as one, at the middle
    offset.

    No offset of a merged run is further than `slack_samples` from its first.
    """
    groups: list[list[Run]] = []
    for run in runs:
        last = groups[-1][-1] if groups else None
        if last and _drifts(last, run) and abs(run.offset - groups[-1][0].offset) <= slack_samples:
            groups[-1].append(run)
        else:
            groups.append([run])
    return [_one(group) for group in groups]


def _drifts(before: Run, after: Run) -> bool:
    allowed = 2 + MOST_DRIFT * (after.stop - before.start)
    near = before.stop == after.start and abs(after.offset - before.offset) <= allowed
    return near and before.kind == after.kind == "wave"


def _one(group: list[Run]) -> Run:
    if len(group) == 1:
        return group[0]
    lengths = np.array([run.stop - run.start for run in group])
    middle = group[int(np.searchsorted(np.cumsum(lengths), lengths.sum() / 2))]
    likeness = float(np.average([run.likeness for run in group], weights=lengths))
    return middle._replace(
        start=group[0].start,
        stop=group[-1].stop,
        likeness=likeness,
        fade_in=group[0].fade_in,
        fade_out=group[-1].fade_out,
    )
