"""Edits brought to a length: planted repeats are found, beginnings and endings stay, lengths are met."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editjax.adjust import keep_ranges
from editjax.beats import Beats, grid_beats
from editjax.edits import PAD, STOP, Source, duration_samples, from_pointers, identity, to_pointers
from editjax.errors import DataError, UsageError
from editjax.mel import FrameGrid
from editjax.paths import Wanted, cheapest_path
from editjax.retarget import PROMISE, Retargeted, RetargetSettings, retarget, retarget_edit_list

BEAT, BAR = 22, 88  # frames: 118 beats a minute
FACTORS = (0.5, 0.62, 0.75, 1.0, 1.13, 1.25, 1.5)


def music(form: str, bars: int = 8, seed: int = 0) -> np.ndarray:
    """Sections of `bars` bars, one per letter; equal letters sound the same but for a little noise."""
    rng = np.random.default_rng(seed)
    section = {}
    for letter in sorted(set(form)):
        notes = rng.uniform(0.2, 0.7, (bars * 8, 128)).astype(np.float32)
        section[letter] = np.repeat(notes, BEAT // 2, axis=0)
    mel_TF = np.concatenate([section[letter] for letter in form])
    return mel_TF + rng.normal(0.0, 0.003, mel_TF.shape).astype(np.float32)


def planted_beats(n_frames: int) -> Beats:
    beat_frames = np.arange(0, n_frames, BEAT)
    return Beats(118.0, beat_frames, beat_frames[::4], beat_frames[::16], 0.9)


def without_beat(n_frames: int) -> Beats:
    return planted_beats(n_frames)._replace(confidence=0.0)


def assert_whole_spans(found: Retargeted, natural_N: np.ndarray) -> None:
    """The edit is the natural one's units in another order, its first unit first and its last one last."""
    np.testing.assert_array_equal(found.pointers_N, natural_N[found.row_N])
    starts = np.flatnonzero(np.diff(found.row_N, prepend=-9) != 1)
    stops = [*starts[1:], len(found.row_N)]
    assert np.isin(found.row_N[starts], found.edge_E).all()
    assert np.isin([found.row_N[stop - 1] + 1 for stop in stops], found.edge_E).all()
    assert found.row_N[0] == 0 and found.row_N[-1] == len(natural_N) - 1
    assert len(found.joins) == len(starts) - 1
    for join, (stop, start) in zip(found.joins, zip(stops[:-1], starts[1:], strict=True), strict=True):
        assert found.edge_E[join.from_unit + 1] == found.row_N[stop - 1] + 1
        assert found.edge_E[join.to_unit] == found.row_N[start]


def test_a_repeated_section_is_dropped_where_the_music_goes_on_the_same() -> None:
    mel_TF = music("ABCBD")
    natural_N = np.arange(len(mel_TF))
    found = retarget(natural_N, mel_TF, planted_beats(len(mel_TF)), len(mel_TF) - 16 * BAR)
    assert found.error == 0.0 and len(found.joins) == 1
    leave, land = (
        np.flatnonzero(np.diff(found.row_N) != 1)[0],
        found.row_N[np.diff(found.row_N, prepend=0) > 1],
    )
    assert (
        8 * BAR - 1 <= leave + 1 <= 16 * BAR and land[0] == leave + 1 + 16 * BAR
    )  # from one B into the other
    assert found.joins[0].cost < 1.3


def test_a_repeated_section_is_looped_where_the_music_goes_on_the_same() -> None:
    mel_TF = music("ABCBD")
    natural_N = np.arange(len(mel_TF))
    found = retarget(natural_N, mel_TF, planted_beats(len(mel_TF)), len(mel_TF) + 16 * BAR)
    assert found.error == 0.0 and len(found.joins) == 1
    leave, land = found.edge_E[found.joins[0].from_unit + 1], found.edge_E[found.joins[0].to_unit]
    assert leave - land == 16 * BAR and 8 * BAR - 1 <= land <= 16 * BAR
    assert found.joins[0].cost < 1.3


@pytest.mark.parametrize("beats_of", [planted_beats, without_beat], ids=["bars", "grid"])
@pytest.mark.parametrize("factor", FACTORS)
def test_the_length_is_met_by_whole_spans(factor: float, beats_of) -> None:
    mel_TF = music("AABA", bars=4)
    natural_N = np.concatenate([np.arange(40, 500), np.arange(560, 1400)])
    found = retarget(natural_N, mel_TF, beats_of(len(mel_TF)), factor * len(natural_N))
    assert abs(found.error) <= 0.02
    assert found.error == pytest.approx(len(found.pointers_N) / (factor * len(natural_N)) - 1.0)
    assert_whole_spans(found, natural_N)


def test_an_edit_of_the_wanted_length_is_left_alone() -> None:
    mel_TF = music("AB", bars=4)
    natural_N = np.r_[0:300, 340:700, STOP, PAD]
    found = retarget(natural_N, mel_TF, planted_beats(len(mel_TF)), 660 * 1.015)
    np.testing.assert_array_equal(found.pointers_N, natural_N[:660])
    assert not found.joins and found.pointers_N.dtype == np.int32


def jumps(found: Retargeted) -> list[int]:
    """How far ahead each join goes, in frames."""
    return [int(found.edge_E[j.to_unit] - found.edge_E[j.from_unit + 1]) for j in found.joins]


@pytest.mark.parametrize(
    "drop_beats, bars, without",
    [
        (30, (7, 8), {"meter_cost": 0.0, "phrase_cost": 0.0, "aside_cost": 0.0}),
        (28, (8,), {"phrase_cost": 0.0}),
    ],
    ids=["bars", "phrases"],
)
def test_bars_and_phrases_stay_whole_in_steady_music(drop_beats: int, bars: tuple, without: dict) -> None:
    mel_TF = np.tile(music("A", bars=1)[:BEAT], (64 * 4, 1))  # every beat is like every other
    natural_N, beats = np.arange(len(mel_TF)), planted_beats(len(mel_TF))
    target = len(mel_TF) - drop_beats * BEAT
    (ahead,) = jumps(retarget(natural_N, mel_TF, beats, target))
    assert ahead in [n * BAR for n in bars]
    (ahead,) = jumps(retarget(natural_N, mel_TF, beats, target, RetargetSettings(**without)))
    assert ahead == drop_beats * BEAT


def test_the_same_loop_is_not_played_on_and_on() -> None:
    """Two bars sound the same as the two before, nothing else does, and joins as such are cheap."""
    mel_TF = np.concatenate(
        [music("ABC", seed=1), np.tile(music("X", 2, seed=2), (2, 1)), music("DE", seed=3)]
    )
    natural_N, beats = np.arange(len(mel_TF)), planted_beats(len(mel_TF))

    def most_uses(**changes) -> int:
        cheap = RetargetSettings(join_cost=0.05, unlike_cost=3.0, phrase_cost=0.0, **changes)
        joins = retarget(natural_N, mel_TF, beats, 1.3 * len(mel_TF), cheap).joins
        return max(Counter((join.from_unit, join.to_unit) for join in joins).values())

    assert most_uses() <= 2 < most_uses(most_repeats=99)


def test_silence_is_not_looped_to_gain_time() -> None:
    mel_TF = music("ABC", bars=4)
    mel_TF[5 * BAR : 10 * BAR] = 0.0
    natural_N, beats = np.arange(len(mel_TF)), planted_beats(len(mel_TF))
    target = len(mel_TF) + 3 * BAR

    def silent_frames(settings: RetargetSettings) -> int:
        return int(
            (mel_TF[retarget(natural_N, mel_TF, beats, target, settings).pointers_N] == 0).all(1).sum()
        )

    assert silent_frames(RetargetSettings()) <= 5 * BAR < silent_frames(RetargetSettings(quiet_cost=0.0))


def test_what_is_held_stays() -> None:
    mel_TF = music("AAAAAAAA", bars=2)
    n_frames = len(mel_TF)
    held_T = np.zeros(n_frames, bool)
    held_T[4 * BAR : 8 * BAR] = True
    found = retarget(np.arange(n_frames), mel_TF, planted_beats(n_frames), n_frames // 2, held_T=held_T)
    assert np.isin(np.flatnonzero(held_T), found.pointers_N).all() and abs(found.error) <= 0.02


@pytest.mark.parametrize("n_rows", [8, 20, 43, 100, 260])
@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 1.5])
def test_very_short_edits_keep_the_promise(n_rows: int, factor: float) -> None:
    mel_TF = music("AB", bars=2)
    natural_N = np.arange(30, 30 + n_rows)
    found = retarget(natural_N, mel_TF, planted_beats(len(mel_TF)), factor * n_rows)
    assert abs(found.error) <= max(PROMISE, 0.5 / (factor * n_rows))
    assert_whole_spans(found, natural_N)


def test_what_cannot_be_done_is_said() -> None:
    mel_TF = music("A", bars=2)
    beats = planted_beats(len(mel_TF))
    for target in (1.0, 1e7):
        found = retarget(np.arange(80), mel_TF, beats, target)
        assert abs(found.error) > PROMISE and len(found.pointers_N) != 80  # as near as it gets
        assert found.error == pytest.approx(len(found.pointers_N) / target - 1.0)
    held = retarget(np.arange(80), mel_TF, beats, 40.0, held_T=np.arange(len(mel_TF)) < 60)
    assert 60 < len(held.pointers_N) < 80 and held.error > PROMISE
    with pytest.raises(DataError, match="empty"):
        retarget(np.array([STOP]), mel_TF, beats, 100.0)
    with pytest.raises(DataError, match="frame 99 of"):
        retarget(np.arange(100), mel_TF[:99], beats, 100.0)
    with pytest.raises(UsageError, match="above 0"):
        retarget(np.arange(80), mel_TF, beats, 0.0)
    with pytest.raises(UsageError, match="tolerance"):
        RetargetSettings(tolerance=0.2)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_edits_keep_every_promise(data: st.DataObject) -> None:
    mel_TF = music(data.draw(st.text("ABC", min_size=1, max_size=5)), bars=2)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(mel_TF)), min_size=2, max_size=8)))
    runs = [np.arange(a, b) for a, b in pairwise(cuts)]
    natural_N = np.concatenate(data.draw(st.permutations(runs[::2])))
    factor = data.draw(st.floats(0.5, 1.5))
    beats = data.draw(st.sampled_from([planted_beats, without_beat]))(len(mel_TF))
    found = retarget(natural_N, mel_TF, beats, factor * len(natural_N))
    assert_whole_spans(found, natural_N)
    if len(natural_N) >= 64:
        assert abs(found.error) <= PROMISE
    again = retarget(natural_N, mel_TF, beats, factor * len(natural_N))
    np.testing.assert_array_equal(found.row_N, again.row_N)


def test_paths_are_the_cheapest_of_all() -> None:
    rng = np.random.default_rng(3)
    edge_E = np.array([0, 4, 9, 12, 17, 20])
    wanted = Wanted(31.0, 0.02, 0.2, 8)
    for _ in range(10):
        cost_EE = rng.uniform(0.5, 3.0, (6, 6))
        cost_EE[[0, -1]] = np.inf
        np.fill_diagonal(cost_EE, np.inf)
        found = cheapest_path(edge_E, cost_EE, wanted)
        assert found.frames == 31
        assert found.cost == pytest.approx(_cheapest_by_trying(edge_E, cost_EE, 31))


def _cheapest_by_trying(edge_E: np.ndarray, cost_EE: np.ndarray, frames: int) -> float:
    last, best = len(edge_E) - 1, np.inf
    waiting = [(0, 0, 0.0)]
    while waiting:
        edge, played, cost = waiting.pop()
        played += int(edge_E[edge + 1] - edge_E[edge])
        if played > frames or cost >= best:
            continue
        if edge + 1 == last:
            best = cost if played == frames else best
            continue
        waiting.append((edge + 1, played, cost))
        waiting += [
            (land, played, cost + cost_EE[edge + 1, land]) for land in range(last) if land != edge + 1
        ]
    return float(best)


@pytest.mark.parametrize("rate_hz", [22050, 44100, 48000])
def test_an_edit_list_keeps_its_edges_and_reasons(rate_hz: int) -> None:
    mel_TF = music("AABA", bars=4)
    grid = FrameGrid(rate_hz)
    source = Source("a.wav", "0" * 64, rate_hz, 2, int(grid.sample_of_frame(len(mel_TF))))
    natural = keep_ranges(identity(source)._replace(segments=()), [(1.0, 9.3217), (11.0, 30.0)])
    natural = natural._replace(
        segments=tuple(s._replace(reason="asked", gain_db=1.0) for s in natural.segments)
    )
    target = 0.7 * len(to_pointers(natural, grid))
    edited, found = retarget_edit_list(natural, grid, mel_TF, planted_beats(len(mel_TF)), target)
    np.testing.assert_array_equal(to_pointers(edited, grid), found.pointers_N)
    assert duration_samples(edited) == pytest.approx(0.7 * duration_samples(natural), rel=0.02)
    assert edited.segments[0].start == natural.segments[0].start
    assert edited.segments[-1].stop == natural.segments[-1].stop
    assert sum("for the length" in s.reason for s in edited.segments) == len(found.joins) > 0
    assert all(s.gain_db == 1.0 and s.reason.startswith("asked") for s in edited.segments)


def test_pointers_and_edit_lists_are_retargeted_alike() -> None:
    mel_TF = music("AB", bars=4)
    grid = FrameGrid(44100)
    source = Source("a.wav", "0" * 64, 44100, 1, int(grid.sample_of_frame(len(mel_TF))))
    natural_N = np.r_[0:200, 260:700]
    edited, found = retarget_edit_list(
        from_pointers(natural_N, source, grid), grid, mel_TF, grid_beats(len(mel_TF)), 900.0
    )
    plain = retarget(natural_N, mel_TF, grid_beats(len(mel_TF)), 900.0)
    np.testing.assert_array_equal(found.pointers_N, plain.pointers_N)
    np.testing.assert_array_equal(to_pointers(edited, grid), plain.pointers_N)
