"""Editing styles on a session planted by hand: every style's segments are known."""

import numpy as np
import pytest

from editjax.edits import EditLabel, beat_labels
from editjax.session import KeptTake, Timeline
from editjax.simulate import SimulateSettings, simulate_session
from editjax.styles import STYLES, edit_of

RATE_HZ = 1000
GENERATOR = np.random.default_rng(0)


def take(section: int, start_s: float, stop_s: float, *, pauses_s=(), room_s=(2.0, 2.0)) -> KeptTake:
    """A take with a bar line every second and a phrase every four."""
    bars = np.arange(start_s * RATE_HZ + 50, stop_s * RATE_HZ - 500, RATE_HZ, dtype=np.int64)
    pauses = tuple((int(a * RATE_HZ), int(b * RATE_HZ)) for a, b in pauses_s)
    before, after = (int(s * RATE_HZ) for s in room_s)
    return KeptTake(
        section, int(start_s * RATE_HZ), int(stop_s * RATE_HZ), bars, bars[::4], pauses, before, after
    )


@pytest.fixture
def timeline() -> Timeline:
    """Three sections of 10, 12 and 14 s; the second was recorded last and holds a pause of one second."""
    kept = (
        take(0, 10.0, 20.0),
        take(1, 60.0, 72.0, pauses_s=[(65.0, 66.0), (68.0, 68.3)]),
        take(2, 30.0, 44.0, room_s=(0.1, 0.0)),
    )
    return Timeline(np.zeros(90 * RATE_HZ, np.float32), RATE_HZ, (), kept)


def spans_s(style: str, timeline: Timeline, seed: int = 0) -> list[tuple[float, float]]:
    edit = edit_of(style, timeline, np.random.default_rng(seed))
    return [(segment.start / RATE_HZ, segment.stop / RATE_HZ) for segment in edit.segments]


def test_final_keeps_whole_takes_in_song_order(timeline: Timeline) -> None:
    assert spans_s("final", timeline) == [(10.0, 20.0), (60.0, 72.0), (30.0, 44.0)]


def test_tight_shortens_long_pauses_only(timeline: Timeline) -> None:
    assert spans_s("tight", timeline) == [(10.0, 20.0), (60.0, 65.21), (65.86, 72.0), (30.0, 44.0)]


def test_loose_keeps_the_quiet_around_a_take_and_nothing_beyond(timeline: Timeline) -> None:
    assert spans_s("loose", timeline) == [(9.2, 21.2), (59.2, 73.2), (29.9, 44.0)]


def test_loose_never_plays_shared_quiet_twice(timeline: Timeline) -> None:
    neighbours = (take(0, 10.0, 20.0, room_s=(2.0, 1.0)), take(1, 21.0, 30.0, room_s=(1.0, 2.0)))
    assert spans_s("loose", timeline._replace(kept=neighbours)) == [(9.2, 21.0), (21.0, 31.2)]


@pytest.mark.parametrize("seed", range(8))
def test_radio_meets_its_target_by_dropping_sections_and_ends(timeline: Timeline, seed: int) -> None:
    edit = edit_of("radio", timeline, np.random.default_rng(seed))
    length_s = sum(segment.stop - segment.start for segment in edit.segments) / RATE_HZ
    assert edit.target_length_s == pytest.approx(length_s, rel=0.025)
    assert 0.4 * 36.0 < length_s < 0.95 * 36.0
    whole = {(take.start, take.stop) for take in timeline.kept}
    for segment in edit.segments:
        owner = next(t for t in timeline.kept if t.start == segment.start)
        assert (segment.start, segment.stop) in whole or segment.stop in owner.phrases


@pytest.mark.parametrize("seed", range(8))
def test_extended_meets_its_target_by_repeating_phrases(timeline: Timeline, seed: int) -> None:
    edit = edit_of("extended", timeline, np.random.default_rng(seed))
    length = sum(segment.stop - segment.start for segment in edit.segments)
    assert edit.target_length_s == pytest.approx(length / RATE_HZ, rel=0.025)
    assert length > 1.1 * 36.0 * RATE_HZ
    played = np.zeros(90 * RATE_HZ, int)
    for segment in edit.segments:
        played[segment.start : segment.stop] += 1
    assert all(played[t.start : t.stop].min() >= 1 for t in timeline.kept)
    assert played.sum() - (played > 0).sum() >= 4 * RATE_HZ
    assert played.max() == 2


@pytest.mark.parametrize("seed", range(8))
def test_produced_fades_at_both_ends_and_overlaps_takes_without_strange_handles(
    timeline: Timeline, seed: int
) -> None:
    edit = edit_of("produced", timeline, np.random.default_rng(seed))
    assert edit.segments[0].fade_in > 0 and edit.segments[-1].fade_out > 0
    crossed = [
        (before, after)
        for before, after in zip(edit.segments, edit.segments[1:], strict=False)
        if before.fade_out and after.fade_in
    ]
    assert len(crossed) == 2
    for before, after in crossed:
        owner = next(t for t in timeline.kept if t.start <= before.start < t.stop)
        following = next(t for t in timeline.kept if t.start <= after.start < t.stop)
        assert before.stop + after.fade_in <= owner.stop
        assert after.start - before.fade_out >= following.start
    assert {name for *_, name in edit.effects} <= {"eq", "reverb"}
    assert any(segment.gain_db for segment in edit.segments)


def test_an_unknown_style_is_refused(timeline: Timeline) -> None:
    with pytest.raises(ValueError, match="choose from final, tight"):
        edit_of("funky", timeline, GENERATOR)


def test_every_label_covers_a_hundredth_of_the_beats_of_produced_edits() -> None:
    counts = np.zeros(len(EditLabel), int)
    for index in range(6):
        session = simulate_session((31, index), SimulateSettings(max_length_s=120.0, styles=("produced",)))
        edit_list = session.edit_list
        n_frames = -(-len(session.raw_S) // 512)
        beats = np.arange(0, n_frames, 43)
        effects = [effect[:2] for effect in edit_list.editor["effects"]]
        counts += np.bincount(beat_labels(edit_list, beats, n_frames, effects=effects), minlength=len(counts))
    assert (counts[: EditLabel.PAD] >= 0.01 * counts.sum()).all(), counts


def test_the_same_session_is_cut_in_every_style() -> None:
    session = simulate_session((32, 0), SimulateSettings(max_length_s=90.0, styles=STYLES))
    alone = simulate_session((32, 0), SimulateSettings(max_length_s=90.0, styles=("radio",)))
    np.testing.assert_array_equal(session.raw_S, alone.raw_S)
    assert session.edit_lists[STYLES.index("radio")] == alone.edit_list
    lengths = dict(zip(STYLES, map(len, session.edited), strict=True))
    assert lengths["radio"] < lengths["tight"] <= lengths["final"] < lengths["extended"]
    assert lengths["final"] <= lengths["loose"]
