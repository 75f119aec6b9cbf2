"""Simulated sessions: the edit follows from the log, loudness gives nothing away, and a seed decides all."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from editjax.cli import main
from editjax.edit_list import read_edits
from editjax.errors import CannotCreateError, UsageError
from editjax.performance import LEAD_IN_S, TAKE_LEVEL, Room, Stem, Take, TakePlan, loudness
from editjax.session import Attempt, Event, Script, Timeline, joined, record
from editjax.simulate import (
    Session,
    SimulateSettings,
    simulate_folder,
    simulate_session,
    write_sessions,
)
from editjax.studio import SLATE_HZ, SynthSurroundings, slate

SETTINGS = SimulateSettings(min_length_s=60.0, max_length_s=130.0)
SESSIONS = 6
SILENCE_DB = -40.0


@pytest.fixture(scope="module")
def sessions() -> list[Session]:
    return [simulate_session((4, index), SETTINGS) for index in range(SESSIONS)]


def kept_S(session: Session) -> np.ndarray:
    mask_S = np.zeros(len(session.raw_S), bool)
    for segment in session.edit_list.segments:
        mask_S[segment.start : segment.stop] = True
    return mask_S


def quiet_S(session: Session) -> np.ndarray:
    """What a silence cutter would cut: 20 ms blocks 40 dB below the 95th percentile."""
    block = session.rate_hz // 50
    power = np.square(session.raw_S[: len(session.raw_S) // block * block].reshape(-1, block)).mean(axis=1)
    quiet = power < np.percentile(power, 95) * 10 ** (SILENCE_DB / 10)
    return np.pad(np.repeat(quiet, block), (0, len(session.raw_S) - len(quiet) * block))


def events_of(session: Session, *kinds: str) -> list[Event]:
    return [event for event in session.events if event.kind in kinds]


def last_good_takes(events: Iterable[Event]) -> list[tuple[int, int]]:
    """The rule of the style *final*, from the log alone."""
    good = {
        event.section: (event.start, event.stop)
        for event in events
        if event.kind in ("take", "superseded", "spoiled", "false_start")
        and event.complete
        and not event.faults
    }
    return [good[section] for section in sorted(good)]


def test_the_edit_is_the_last_complete_unspoiled_take_of_every_section(sessions: list[Session]) -> None:
    for session in sessions:
        kept = [(segment.start, segment.stop) for segment in session.edit_list.segments]
        assert kept == last_good_takes(session.events)
        assert 2 <= len(kept) <= 5
        assert all(a + session.rate_hz * 4 < b for a, b in kept)


def test_events_cover_the_recording_without_gaps_or_overlaps(sessions: list[Session]) -> None:
    for session in sessions:
        events = [event for event in session.events if event.kind != "pause"]
        assert events[0].start == 0 and events[-1].stop == len(session.raw_S)
        assert all(a.stop == b.start for a, b in pairwise(events))
        for event in session.events:
            assert all(event.start <= at < event.stop for at, _ in event.faults)
        for pause in events_of(session, "pause"):
            assert any(a <= pause.start < pause.stop <= b for a, b in last_good_takes(session.events))


def test_lengths_levels_and_shares_are_as_promised(sessions: list[Session]) -> None:
    kept = [kept_S(session) for session in sessions]
    spoiled = [sum(e.stop - e.start for e in events_of(session, "spoiled")) for session in sessions]
    shares = [mask_S.mean() for mask_S in kept]
    assert all(60.0 <= len(session.raw_S) / session.rate_hz <= 135.0 for session in sessions)
    assert all(10 ** (-21 / 20) <= np.abs(session.raw_S).max() <= 10 ** (-2.9 / 20) for session in sessions)
    assert 0.2 <= np.median(shares) <= 0.6
    assert np.mean(shares) <= 0.6  # the score of keeping everything
    assert np.mean([s / (~mask_S).sum() for s, mask_S in zip(spoiled, kept, strict=True)]) >= 0.15


def test_a_silence_cutter_finds_at_most_a_tenth_of_the_spoiled_takes(sessions: list[Session]) -> None:
    shares = [
        quiet_S(session)[event.start : event.stop].mean()
        for session in sessions
        for event in events_of(session, "spoiled")
    ]
    assert len(shares) >= SESSIONS
    assert np.mean(np.array(shares) > 0.5) <= 0.1
    assert np.mean(shares) <= 0.15


def test_loudness_does_not_tell_good_takes_from_bad_ones(sessions: list[Session]) -> None:
    differences_db = []
    for session in sessions:
        level = {
            kind: [
                loudness(session.raw_S[e.start : e.stop], session.rate_hz) for e in events_of(session, kind)
            ]
            for kind in ("take", "spoiled")
        }
        if level["spoiled"]:
            differences_db.append(20 * np.log10(np.mean(level["spoiled"]) / np.mean(level["take"])))
    assert abs(np.mean(differences_db)) < 1.5
    assert np.abs(differences_db).max() < 4.0


def test_what_follows_a_take_does_not_tell_whether_it_is_kept() -> None:
    after: dict[bool, list[bool]] = {True: [], False: []}
    for index in range(10):
        session = simulate_session((5, index), SETTINGS)
        events = [event for event in session.events if event.kind != "pause"]
        for event, following in pairwise(events):
            if event.complete:
                after[event.kind == "take"].append(following.kind == "silence")
    assert all(after[True]) and all(after[False])


def test_takes_sound_from_their_lead_in_on(sessions: list[Session]) -> None:
    for session in sessions:
        lead = int(LEAD_IN_S * session.rate_hz)
        for segment in session.edit_list.segments:
            take_S = session.raw_S[segment.start : segment.stop]
            assert np.square(take_S[lead : 6 * lead]).mean() > 1e-3 * loudness(take_S, session.rate_hz) ** 2


def test_failed_attempts_after_the_good_take_exist() -> None:
    late = 0
    for index in range(8):
        session = simulate_session((6, index), SimulateSettings(max_length_s=120.0, failed_last_share=0.6))
        kept = dict(enumerate(last_good_takes(session.events)))
        late += sum(e.start > kept[e.section][1] for e in events_of(session, "false_start", "spoiled"))
        assert [(s.start, s.stop) for s in session.edit_list.segments] == list(kept.values())
    assert late >= 4


def test_slates_say_which_section_follows_and_the_edit_plays_song_order() -> None:
    settings = SimulateSettings(max_length_s=120.0, slate_share=0.77)
    reordered = 0
    for index in range(4):
        session = simulate_session((7, index), settings)
        slates = {event.stop: event for event in events_of(session, "slate")}
        for event in events_of(session, "take", "superseded", "spoiled", "false_start"):
            stop = max(stop for stop in slates if stop <= event.start)
            beeps_S = session.raw_S[slates[stop].start : stop]
            assert count_beeps(beeps_S, session.rate_hz) == event.section + 1
        starts = [segment.start for segment in session.edit_list.segments]
        reordered += starts != sorted(starts)
    assert reordered >= 2


def count_beeps(samples_S: np.ndarray, rate_hz: int) -> int:
    """Rises of the envelope at SLATE_HZ."""
    time_S = np.arange(len(samples_S)) / rate_hz
    window = int(0.03 * rate_hz)
    envelope_S = np.abs(
        np.convolve(
            samples_S * np.exp(-2j * np.pi * SLATE_HZ * time_S), np.ones(window) / window, mode="same"
        )
    )
    return int((np.diff((envelope_S > 0.5 * envelope_S.max()).astype(int)) == 1).sum())


def test_a_slate_has_as_many_beeps_as_its_number() -> None:
    for number in range(1, 6):
        padded_S = np.pad(slate(number, 22050), 2000)
        assert count_beeps(padded_S, 22050) == number
        assert np.abs(padded_S).max() < 2 * TAKE_LEVEL


def test_long_recordings_hold_several_pieces_with_their_sections_numbered_through() -> None:
    longer = SimulateSettings(min_length_s=260.0, max_length_s=300.0, styles=("final", "radio"))
    session = simulate_session((4, 0), longer)
    assert 260.0 <= len(session.raw_S) / session.rate_hz <= 330.0
    takes = [event.section for event in session.events if event.kind == "take"]
    assert sorted(takes) == list(range(len(takes))) and len(takes) > 5
    spans = [(segment.start, segment.stop) for segment in session.edit_list.segments]
    assert spans == last_good_takes(session.events)
    quiet_share = np.mean(quiet_S(session))
    assert quiet_share < 0.5, "filled up with silence"
    natural, shortened = (sum(s.stop - s.start for s in edit.segments) for edit in session.edit_lists)
    assert 0.45 < shortened / natural < 0.9


@pytest.mark.parametrize("index", [6, 9])
def test_short_recordings_of_almost_one_length(index: int) -> None:
    """The attempts are short too: one that breaks off before its first note is silence, not an error."""
    for shortest_s, longest_s in ((55.0, 80.0), (60.0, 62.0)):
        settings = SimulateSettings(min_length_s=shortest_s, max_length_s=longest_s)
        session = simulate_session((1, index), settings)
        assert shortest_s <= len(session.raw_S) / session.rate_hz < 1.3 * longest_s


def test_a_session_is_a_function_of_seed_index_and_settings() -> None:
    one, same, other = (simulate_session((8, index), SETTINGS) for index in (0, 0, 1))
    np.testing.assert_array_equal(one.raw_S, same.raw_S)
    assert one.edit_lists == same.edit_lists
    assert len(one.raw_S) != len(other.raw_S) or not np.array_equal(one.raw_S, other.raw_S)


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_files_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    short = SimulateSettings(min_length_s=30.0, max_length_s=45.0, styles=("final", "radio"))
    for workers in (1, 2):
        list(write_sessions(tmp_path / str(workers), 2, 9, short, workers))
    assert digest(tmp_path / "1") == digest(tmp_path / "2")
    assert len(digest(tmp_path / "1")) == 10


def test_written_sessions_agree_with_their_edit_lists(tmp_path: Path) -> None:
    short = SimulateSettings(min_length_s=30.0, max_length_s=45.0, sample_rate_hz=16000)
    (name,) = write_sessions(tmp_path, 1, 10, short)
    edit_list = read_edits(tmp_path / f"{name}.edits.json")
    raw_S, rate_hz = soundfile.read(tmp_path / f"{name}_raw.flac", dtype="int16")
    edited_S, _ = soundfile.read(tmp_path / f"{name}_edit.flac", dtype="int16")
    assert rate_hz == edit_list.source.sample_rate == 16000
    assert edit_list.source.frames == len(raw_S)
    assert edit_list.source.sha256 == hashlib.sha256((tmp_path / f"{name}_raw.flac").read_bytes()).hexdigest()
    assert len(edited_S) == sum(segment.stop - segment.start for segment in edit_list.segments)
    first = edit_list.segments[0]
    middle, at = (first.start + first.stop) // 2, (first.stop - first.start) // 2
    np.testing.assert_array_equal(edited_S[at : at + 1000], raw_S[middle : middle + 1000])
    editor = json.loads((tmp_path / f"{name}.edits.json").read_text())["editor"]
    assert editor["name"] == "simulator" and editor["style"] == "final" and editor["target_length_s"] is None
    spoiled = [event for event in editor["events"] if event["kind"] == "spoiled"]
    assert all(event["start"] <= event["at"] < event["stop"] and event["spoil"] for event in spoiled)
    assert editor["sections"] == len(edit_list.segments)


def test_style_weights_give_each_session_one_style() -> None:
    settings = SimulateSettings(
        min_length_s=30.0, max_length_s=40.0, styles=("final", "tight"), style_weights=(0.5, 0.5)
    )
    styles = [simulate_session((11, index), settings).styles for index in range(8)]
    assert {len(s) for s in styles} == {1}
    assert {s[0] for s in styles} == {"final", "tight"}


def test_bad_requests_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--count 0"):
        simulate_folder(tmp_path, 0, 0, SETTINGS)
    with pytest.raises(UsageError, match="--styles funky: unknown; choose from final"):
        simulate_folder(tmp_path, 1, 0, SimulateSettings(styles=("funky",)))
    with pytest.raises(ValueError, match="style_weights"):
        SimulateSettings(style_weights=(1.0, 2.0))
    (tmp_path / "s0_00000_raw.flac").write_bytes(b"")
    with pytest.raises(CannotCreateError, match="s0_00000_raw"):
        simulate_folder(tmp_path, 1, 0, SimulateSettings(min_length_s=30.0, max_length_s=40.0))
    assert main(["simulate", str(tmp_path / "new"), "--recordings", str(tmp_path / "none")]) == 66
    assert "no such folder of recordings" in capsys.readouterr().err
    assert main(["simulate", str(tmp_path / "s0_00000_raw.flac" / "below")]) == 73
    (tmp_path / "manifest.csv").write_bytes(b"file,kind\n\xff.wav,music\n")
    assert main(["simulate", str(tmp_path / "new"), "--recordings", str(tmp_path)]) == 65


def test_stems_add_up_to_the_recording_and_change_nothing_of_it(tmp_path: Path) -> None:
    """Sample for sample in the files; in memory within the rounding of float32."""
    settings = SimulateSettings(min_length_s=30.0, max_length_s=45.0, slate_share=0.77, stems=True)
    (name,) = write_sessions(tmp_path, 1, 9, settings)
    session = simulate_session((9, 0), settings)
    plain = simulate_session((9, 0), replace(settings, stems=False))
    np.testing.assert_array_equal(session.raw_S, plain.raw_S)
    assert not plain.stems and session.edit_lists == plain.edit_lists
    added_S = sum(stem.samples_S.astype(np.float64) for stem in session.stems)
    np.testing.assert_allclose(added_S, session.raw_S, atol=1e-6)
    raw_S, _ = soundfile.read(tmp_path / f"{name}_raw.flac", dtype="int16")
    paths = sorted((tmp_path / f"{name}_stems").iterdir())
    stems = {path.stem: soundfile.read(path, dtype="int16")[0].astype(int) for path in paths}
    assert set(stems) == {stem.name for stem in session.stems} >= {"lead", "talk", "room"}
    np.testing.assert_array_equal(sum(stems.values()), raw_S)
    for stem in session.stems:
        apart = 0.5 if stem.name != "room" else 0.5 * len(stems) + 0.1  # what rounding left is in the room
        assert np.abs(stems[stem.name] - 2.0**15 * stem.samples_S).max() <= apart
    spoken = np.zeros(len(raw_S), bool)
    for event in session.events:
        spoken[event.start : event.stop] |= event.kind in ("talk", "slate", "count_in")
    assert spoken.any() and stems["talk"][spoken].any() and not stems["talk"][~spoken].any()


def test_stems_of_pieces_are_joined_by_name_with_silence_where_there_are_none() -> None:
    lead, bass, room = (
        Stem(name, np.full(4, k, np.float32)) for k, name in enumerate(("lead", "bass", "room"), 1)
    )
    one = Timeline(np.zeros(4, np.float32), 8000, (), (), (lead, room))
    two = Timeline(np.zeros(4, np.float32), 8000, (), (), (bass, room))
    stems = {name: samples_S.tolist() for name, samples_S in joined([one, two]).stems}
    assert stems == {"lead": [1] * 4 + [0] * 4, "room": [3] * 8, "bass": [0] * 4 + [2] * 4}


class OneSound:
    """Material of which no players are known: as recordings are."""

    tempo_bpm, instruments, sources, section_lengths_s = 100.0, [], [], [3.0]

    def play(self, section: int, plan: TakePlan, room: Room, rng: np.random.Generator) -> Take:
        samples_S = 0.1 * rng.standard_normal(3 * 22050, np.float32)
        return Take(samples_S, np.array([1000, 30000]), np.array([1000]), ())

    def noodle(self, room: Room, rng: np.random.Generator) -> Take:
        return self.play(0, TakePlan(), room, rng)


def test_music_of_unknown_players_is_one_stem() -> None:
    attempts = (Attempt(0, "spoiled", TakePlan()), Attempt(0, "take", TakePlan()))
    script = Script(attempts, 30.0, slated=True, counts_in=True)
    settings, rng = SimulateSettings(min_length_s=20.0, stems=True), np.random.default_rng(0)
    timeline = record(script, OneSound(), SynthSurroundings(22050), settings, rng)
    stems = dict(timeline.stems)
    assert {"music", "talk", "room"} <= set(stems) <= {"music", "talk", "noise", "room"}
    np.testing.assert_allclose(sum(stems.values()), timeline.raw_S, atol=1e-6)
    played = np.zeros(len(timeline.raw_S), bool)
    for event in timeline.events:
        played[event.start : event.stop] |= event.kind in ("spoiled", "take", "noodling")
    assert stems["music"][played].any() and not stems["music"][~played].any()
