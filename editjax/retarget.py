"""A natural edit made longer or shorter, to a wanted length, by looping or dropping whole musical spans.

In come pointers (the raw frame each edited frame plays), the recording's mel and beats, and the wanted length
in frames; out go pointers of that length. The natural edit is a chain of units: bars where there is a beat, a
grid moved to quiet places before onsets where there is none; its own joins begin units too. Playing on from
unit to unit is free. A jump costs a constant and more the less its surroundings resemble the place that it
leaves and the one it reaches; jumps forward drop, jumps backward loop. The cheapest path of the wanted
length (`paths`) starts with the edit's beginning and ends with its ending, so nothing is cut short.

Length-constrained cheapest paths through a recording's resemblance to itself: Wenner et al., "Scalable music:
automatic music retargeting and synthesis", Computer Graphics Forum 32(2), 2013.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter1d

from editjax.beats import Beats, BeatSettings, beat_phases, grid_beats
from editjax.edits import PAD, STOP, EditList, Segment, to_pointers
from editjax.errors import DataError, UsageError
from editjax.mel import FrameGrid
from editjax.paths import Wanted, cheapest_path

PROMISE = 0.05
"""The largest length error an edit may have; `RetargetSettings.tolerance` is what is aimed at."""

LONGEST = 8.0  # times the natural length, and its inverse, are the most extreme lengths tried
MOST_UNITS = 600  # the longest edits jump between groups of bars
FEW_UNITS = 400  # beats are looked at beside bars up to here, beyond only when bars do not give the length
ROUNDS = 4  # searches until no loop is repeated too often
MARK_LEAD_FRAMES = 1  # cut just before the beat, which is known to one frame

# Surroundings of a place: 2.2 s before and after it, in steps of 0.19 s and 32 bands; near ones weigh more.
STEP_FRAMES = 8
STEPS = 12
BANDS = 32
FARTHEST_WEIGHT = 0.25
HEARD_DB = 50.0  # what lies further below the loud frames is not heard
STEADY_DB = 1.5  # differences this small are none
LEVEL_DB = 20.0  # a difference in level or tone colour that counts as much as unrelated music
PHASE = 0.06  # of a bar or phrase: marks this far apart are at the same place in it


@dataclass(frozen=True)
class RetargetSettings:
    """What a wanted length may cost. `tolerance` is a part of the length, the other costs compare with
    `join_cost`, that of a jump between places that sound the same.

    `unlike_cost` is added between unrelated music, `meter_cost` when a jump breaks the bar, `phrase_cost`
    when it breaks the phrase, `aside_cost` when it does not lead to a bar line and again when no phrase
    begins there, `quiet_cost` when it loops silence, `repeat_cost` each time a jump was made more than
    `most_repeats` times. Loops are `loop_min_bars` or
    longer, drops `drop_min_bars`; in very short edits a quarter and an eighth of their length will do.
    """

    tolerance: float = 0.02
    loop_min_bars: int = 2
    drop_min_bars: int = 1
    most_repeats: int = 2
    candidates: int = 32
    join_cost: float = 1.0
    unlike_cost: float = 2.0
    meter_cost: float = 1.5
    phrase_cost: float = 0.4
    aside_cost: float = 0.2
    quiet_cost: float = 2.0
    repeat_cost: float = 1.0
    error_cost: float = 0.2
    beats: BeatSettings = field(default_factory=BeatSettings)

    def __post_init__(self):
        if not 0 < self.tolerance <= PROMISE:
            raise UsageError(f"length tolerance {self.tolerance}: give a part of the length up to {PROMISE}")
        if min(self.loop_min_bars, self.drop_min_bars, self.candidates, self.most_repeats) < 1:
            raise UsageError("loop_min_bars, drop_min_bars, candidates and most_repeats must be 1 or more")


class Join(NamedTuple):
    """After unit `from_unit` comes `to_unit`: later than the next one (a drop), or earlier (a loop)."""

    from_unit: int
    to_unit: int
    cost: float


class Retargeted(NamedTuple):
    """An edit of another length.

    `pointers_N` int32 raw frames; `row_N` the place of each in the natural edit; `edge_E` where the units of
    the natural edit begin, and its end; `joins` the jumps in playing order; `error` the length's relative
    error, negative when too short. Beyond ± `PROMISE` the material cannot give the wanted length, and this is
    the nearest that was found.
    """

    pointers_N: np.ndarray
    row_N: np.ndarray
    edge_E: np.ndarray
    joins: list[Join]
    error: float


def retarget(
    pointers_N: np.ndarray,
    mel_TF: np.ndarray,
    beats: Beats,
    target_frames: float,
    settings: RetargetSettings = RetargetSettings(),
    *,
    held_T: np.ndarray | None = None,
) -> Retargeted:
    """The edit `pointers_N` with a length near `target_frames`: unchanged where it is within the tolerance.

    Sentinels are left out. `held_T` is true for raw frames that must not be dropped. Deterministic. Raises
    DataError when the edit is empty or another recording's, UsageError when the length is not positive.
    """
    chain = _chain(pointers_N, mel_TF, held_T, settings)
    n_rows = len(chain.pointers_N)
    if not n_rows:
        raise DataError("the edit is empty: there is nothing to bring to a length")
    if not target_frames > 0:
        raise UsageError(f"wanted length {target_frames} frames: give a length above 0")
    frames = float(np.clip(target_frames, n_rows / LONGEST, n_rows * LONGEST))
    wanted = Wanted(frames, settings.tolerance, settings.error_cost, settings.candidates)
    best = _Plan(np.array([0, n_rows]), [(0, 1)], [], 0.0, n_rows)
    for level, places in enumerate(_levels(chain, mel_TF, beats, settings)):
        met = abs(best.frames - frames) <= settings.tolerance * frames
        if met and (level in (0, 2) or len(places.edge_E) > FEW_UNITS):
            break
        plans = [best, *_plans(chain, places, wanted, settings)]
        best = min(plans, key=lambda plan: wanted.rank(plan.frames, plan.cost))
    row_N = np.concatenate([np.arange(best.edge_E[a], best.edge_E[b]) for a, b in best.spans])
    error = len(row_N) / target_frames - 1.0
    return Retargeted(chain.pointers_N[row_N], row_N, best.edge_E, best.joins, error)


def retarget_edit_list(
    edit_list: EditList,
    grid: FrameGrid,
    mel_TF: np.ndarray,
    beats: Beats,
    target_frames: float,
    settings: RetargetSettings = RetargetSettings(),
    *,
    held_T: np.ndarray | None = None,
) -> tuple[EditList, Retargeted]:
    """`retarget` for an edit list: segments are cut at frames, their other edges, gains and reasons stay.

    A segment that begins with a jump says so in its reason. `unaligned` notes go: nothing renders them.
    """
    notes = {name: note for name, note in edit_list.editor.items() if name != "unaligned"}
    edit_list = edit_list._replace(editor=notes)
    pointers_N = to_pointers(edit_list, grid)
    found = retarget(pointers_N, mel_TF, beats, target_frames, settings, held_T=held_T)
    if not found.joins:
        return edit_list, found
    segments: list[Segment] = []
    left = 0
    for row_N in np.split(found.row_N, np.flatnonzero(np.diff(found.row_N) != 1) + 1):
        first, stop = int(row_N[0]), int(row_N[-1]) + 1
        pieces = _cut_out(edit_list, grid, first, stop)
        if first != left:
            pieces[0] = _with_reason(pieces[0], float(grid.seconds_of_frame(first - left)))
        segments += pieces
        left = stop
    return edit_list._replace(segments=tuple(segments)), found


def _with_reason(segment: Segment, ahead_s: float) -> Segment:
    jump = f"skips {ahead_s:.1f} s" if ahead_s > 0 else f"repeats {-ahead_s:.1f} s"
    return segment._replace(reason="; ".join(filter(None, (segment.reason, f"{jump} for the length"))))


class _Chain(NamedTuple):
    """The natural edit: what each of its N rows plays, and facts about it; sums are from row 0, (N + 1)."""

    pointers_N: np.ndarray
    heard_TG: np.ndarray  # raw frames in bands, floored at what is heard, in dB
    floor_db: float
    quiet_sum: np.ndarray
    held_sum: np.ndarray


class _Places(NamedTuple):
    """Where one may jump: E unit edges (rows), whether each is a join of the natural edit, and its phases in
    bar and phrase, NaN where there is nothing to be kept."""

    edge_E: np.ndarray
    is_join_E: np.ndarray
    bar_phase_E: np.ndarray
    phrase_phase_E: np.ndarray
    bar_frames: int


class _Plan(NamedTuple):
    """A path through the units: spans of edges [start, stop), its jumps, its cost and its length."""

    edge_E: np.ndarray
    spans: list[tuple[int, int]]
    joins: list[Join]
    cost: float
    frames: int


def _chain(pointers_N, mel_TF, held_T, settings: RetargetSettings) -> _Chain:
    pointers_N = np.asarray(pointers_N, np.int32)
    stops = np.flatnonzero(pointers_N == STOP)
    pointers_N = pointers_N[: stops[0]] if stops.size else pointers_N
    pointers_N = pointers_N[pointers_N > PAD]
    if len(pointers_N) and pointers_N.max() >= len(mel_TF):
        raise DataError(f"the edit plays frame {pointers_N.max()} of a recording of {len(mel_TF)} frames")
    mel = settings.beats.mel
    width = max(1, mel_TF.shape[1] // BANDS)
    n_bands = mel_TF.shape[1] // width
    band_TG = mel_TF[:, : n_bands * width].reshape(len(mel_TF), n_bands, width).mean(axis=2, dtype=np.float32)
    band_TG *= mel.ceiling_db - mel.floor_db
    level_N = band_TG.max(axis=1)[pointers_N]
    floor_db = float(np.percentile(level_N, 95.0)) - HEARD_DB if level_N.size else 0.0
    np.maximum(band_TG, np.float32(floor_db), out=band_TG)

    def sums(of_T: np.ndarray | None) -> np.ndarray:
        of_N = np.zeros(len(pointers_N)) if of_T is None else of_T[pointers_N]
        return np.concatenate([[0.0], np.cumsum(of_N)])

    quiet_T = band_TG.max(axis=1) <= floor_db + HEARD_DB / 5
    return _Chain(pointers_N, band_TG, floor_db, sums(quiet_T), sums(held_T))


def _levels(chain: _Chain, mel_TF, beats: Beats, settings: RetargetSettings) -> Iterator[_Places]:
    """Ever smaller units: bars, beats, and where those do not give the length quarter beats or less."""
    n_rows, of_beats = len(chain.pointers_N), settings.beats
    confident = beats.confidence >= of_beats.confident and len(beats.bar_frames) > 1
    if confident:
        marks = [np.maximum(x - MARK_LEAD_FRAMES, 0) for x in (beats.bar_frames, beats.beat_frames)]
        bar_frames = int(np.median(np.diff(beats.bar_frames)))
        phase_T3 = beat_phases(beats, len(mel_TF), of_beats)
    else:
        plain = grid_beats(len(mel_TF), of_beats.frames_per_beat, of_beats.frames_per_bar)
        bar_frames, phase_T3 = of_beats.frames_per_bar, None
        marks = [_before_onsets(chain.heard_TG, x) for x in (plain.bar_frames, plain.beat_frames)]
    for mark_frames in marks:
        is_mark_T = np.zeros(len(mel_TF), bool)
        is_mark_T[mark_frames] = True
        min_frames = max(1, int(np.median(np.diff(mark_frames))) // 2) if len(mark_frames) > 1 else bar_frames
        rows = np.flatnonzero(is_mark_T[chain.pointers_N])
        yield _places(chain, rows, min_frames, bar_frames, phase_T3)
    step = max(1, min(of_beats.frames_per_beat // 4, n_rows // 64))
    yield _places(chain, np.arange(0, n_rows, step), step, bar_frames, phase_T3)


def _places(chain: _Chain, mark_rows, min_frames: int, bar_frames: int, phase_T3) -> _Places:
    """Units begin at marks and at the edit's own joins; the first and last are a bar, or an eighth of all."""
    n_rows = len(chain.pointers_N)
    join_rows = np.flatnonzero(np.diff(chain.pointers_N) != 1) + 1
    joins = _apart(join_rows, min_frames)
    nearest = np.searchsorted(joins, mark_rows)
    fenced = np.concatenate([[-n_rows], joins, [2 * n_rows]])
    room = np.minimum(mark_rows - fenced[nearest], fenced[nearest + 1] - mark_rows)
    rows = np.union1d(joins, _apart(mark_rows[room >= min_frames], min_frames))
    end = max(1, min(bar_frames, n_rows // 8))
    rows = rows[(rows >= end) & (rows <= n_rows - end)]
    stride = 2 ** int(np.ceil(np.log2(max(1.0, len(rows) / MOST_UNITS))))
    rows = rows[::stride]
    is_join = np.isin(rows, join_rows)
    phases = np.full((2, len(rows)), np.nan)
    if phase_T3 is not None:
        phases = np.where(is_join, np.nan, phase_T3[chain.pointers_N[rows], 1:].T)
    phases = np.pad(phases, ((0, 0), (1, 1)), constant_values=np.nan)
    edge_E = np.concatenate([[0], rows, [n_rows]]).astype(np.int64)
    return _Places(edge_E, np.pad(is_join, 1), phases[0], phases[1], bar_frames)


def _apart(rows: np.ndarray, min_frames: int) -> np.ndarray:
    """Of ascending rows the first, and each at least `min_frames` after the last one taken."""
    taken: list[int] = []
    for row in rows.tolist():
        if not taken or row - taken[-1] >= min_frames:
            taken.append(row)
    return np.array(taken, np.int64)


def _before_onsets(heard_TG: np.ndarray, mark_frames: np.ndarray) -> np.ndarray:
    """Each mark of a grid at the steepest rise out of the quietest place within a quarter of the gap."""
    n_frames, width = len(heard_TG), 4
    if n_frames <= 2 * width or len(mark_frames) < 2:
        return mark_frames
    smooth_TG = uniform_filter1d(heard_TG, width, axis=0, mode="nearest")
    frames = np.arange(n_frames)
    before_TG = smooth_TG[np.maximum(frames - width // 2, 0)]
    after_TG = smooth_TG[np.minimum(frames + width // 2, n_frames - 1)]
    score_T = np.maximum(after_TG - before_TG, 0.0).mean(axis=1) - before_TG.mean(axis=1)
    reach = int(mark_frames[1] - mark_frames[0]) // 4
    around_MR = np.clip(mark_frames[:, None] + np.arange(-reach, reach + 1), 0, n_frames - 1)
    return around_MR[np.arange(len(mark_frames)), score_T[around_MR].argmax(axis=1)]


def _unlike(chain: _Chain, edge_E: np.ndarray) -> np.ndarray:
    """How different the surroundings of two places sound, (E, E): 0 the same, about 1 unrelated.

    The course of each band about its mean, and the means. Before the beginning and after the end is silence.
    """
    n_rows, reach = len(chain.pointers_N), STEPS * STEP_FRAMES
    row_ER = edge_E[:, None] + np.arange(-reach, reach)
    around_ERG = chain.heard_TG[chain.pointers_N[np.clip(row_ER, 0, n_rows - 1)]]
    around_ERG[(row_ER < 0) | (row_ER >= n_rows)] = chain.floor_db
    around_EKG = around_ERG.reshape(len(edge_E), 2 * STEPS, STEP_FRAMES, -1).mean(axis=2, dtype=np.float64)
    mean_EG = around_EKG.mean(axis=1)
    distance_K = np.abs(np.arange(2 * STEPS) + 0.5 - STEPS) / STEPS
    weight_K = 1.0 - (1.0 - FARTHEST_WEIGHT) * distance_K
    course_EX = ((around_EKG - mean_EG[:, None]) * weight_K[:, None]).reshape(len(edge_E), -1)
    power_E = (course_EX**2).sum(axis=1)
    both_EE = power_E[:, None] + power_E
    apart_EE = np.maximum(both_EE - 2.0 * course_EX @ course_EX.T, 0.0)
    steady = STEADY_DB**2 * (weight_K**2).sum() * mean_EG.shape[1]
    return apart_EE / (both_EE + steady) + _rms_between(mean_EG) / LEVEL_DB


def _rms_between(mean_EG: np.ndarray) -> np.ndarray:
    power_E = (mean_EG**2).mean(axis=1)
    product_EE = mean_EG @ mean_EG.T / mean_EG.shape[1]
    return np.sqrt(np.maximum(power_E[:, None] + power_E - 2.0 * product_EE, 0.0))


def _jump_costs(chain: _Chain, places: _Places, settings: RetargetSettings) -> np.ndarray:
    """What it costs to leave at one edge and go on at another, (E, E); infinite where it is not allowed."""
    edge_E, n_rows = places.edge_E, len(chain.pointers_N)
    unlike_EE = _unlike(chain, edge_E)
    unlike_EE[np.outer(places.is_join_E, places.is_join_E)] /= 2  # whole sections
    cost_EE = settings.join_cost + settings.unlike_cost * unlike_EE
    cost_EE += settings.meter_cost * _out_of_phase(places.bar_phase_E)
    cost_EE += settings.phrase_cost * _out_of_phase(places.phrase_phase_E)
    for phase_E in (places.bar_phase_E, places.phrase_phase_E):
        cost_EE += settings.aside_cost * (np.minimum(phase_E, 1.0 - phase_E) > PHASE)
    ahead_EE = edge_E - edge_E[:, None]
    span_EE = np.maximum(np.abs(ahead_EE), 1)

    def share(sums: np.ndarray) -> np.ndarray:
        return np.abs(sums[edge_E] - sums[edge_E][:, None]) / span_EE

    cost_EE += np.where(ahead_EE < 0, settings.quiet_cost * share(chain.quiet_sum), 0.0)
    loop_min = min(settings.loop_min_bars * places.bar_frames, n_rows // 4)
    drop_min = min(settings.drop_min_bars * places.bar_frames, n_rows // 8)
    # A bar is never longer or shorter than its neighbours by an eighth.
    too_small = (ahead_EE > -0.875 * loop_min) & (ahead_EE < 0.875 * drop_min) | (ahead_EE == 0)
    held = (ahead_EE > 0) & (share(chain.held_sum) > 0)
    cost_EE = np.where(too_small | held, np.inf, cost_EE.round(4))
    cost_EE[[0, -1]] = np.inf
    return cost_EE


def _out_of_phase(phase_E: np.ndarray) -> np.ndarray:
    apart_EE = np.abs(phase_E - phase_E[:, None])
    return np.minimum(apart_EE, 1.0 - apart_EE) > PHASE


def _plans(chain: _Chain, places: _Places, wanted: Wanted, settings: RetargetSettings) -> list[_Plan]:
    """The best path, searched again at a higher price for the jumps that it makes too often."""
    if len(places.edge_E) < 3:
        return []
    cost_EE = _jump_costs(chain, places, settings)
    raised_EE = cost_EE.copy()
    plans: list[_Plan] = []
    for _ in range(ROUNDS):
        path = cheapest_path(places.edge_E, raised_EE, wanted)
        jumps = [(a[1], b[0]) for a, b in pairwise(path.spans)]
        joins = [Join(leave - 1, land, float(cost_EE[leave, land])) for leave, land in jumps]
        extra = {jump: n - settings.most_repeats for jump, n in Counter(jumps).items()}
        repeated = {jump: n for jump, n in extra.items() if n > 0}
        cost = sum(join.cost for join in joins) + settings.repeat_cost * sum(repeated.values())
        plans.append(_Plan(places.edge_E, path.spans, joins, cost, path.frames))
        if not repeated:
            break
        for jump in repeated:
            raised_EE[jump] += settings.repeat_cost
    return plans


def _cut_out(edit_list: EditList, grid: FrameGrid, first_row: int, stop_row: int) -> list[Segment]:
    """The segments that play rows [first_row, stop_row) of an edit, those at its ends cut at a frame."""
    pieces, row = [], 0
    for segment in edit_list.segments:
        first, stop = grid.frames_in(segment.nominal_start), grid.frames_in(segment.nominal_stop)
        skip, take = max(0, first_row - row), min(stop - first, stop_row - row)
        row += stop - first
        if skip >= take:
            continue
        if take < stop - first:
            edge = int(grid.sample_of_frame(first + take))
            segment = segment._replace(stop=edge, nominal_stop=edge, fade_out=0)
        if skip:
            edge = int(grid.sample_of_frame(first + skip))
            segment = segment._replace(start=edge, nominal_start=edge, fade_in=0)
        pieces.append(segment)
    return pieces
