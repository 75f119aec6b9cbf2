"""Planted tempi, bars, phrases and takes are found; noise is not taken for music; phases follow the marks."""

import time

import librosa
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editjax.beats import (
    CONFIDENT,
    FRAMES_PER_BAR,
    FRAMES_PER_BEAT,
    Beats,
    BeatSettings,
    beat_phases,
    grid_beats,
    snap_to,
    track_beats,
)
from editjax.errors import UsageError
from editjax.mel import FrameGrid, MelSettings, mel_spectrogram

RATE_HZ = 22050
GRID = FrameGrid(RATE_HZ)
ROOTS_HZ = (110.0, 146.8, 164.8, 130.8)


def planted_beats(bpm, seconds, start_s=0.3, drift=0.0):
    """Beat times in seconds; the tempo grows by `drift` of itself over the recording."""
    times_s = [start_s]
    while times_s[-1] < seconds - 0.5:
        times_s.append(times_s[-1] + 60.0 / (bpm * (1.0 + drift * times_s[-1] / seconds)))
    return np.array(times_s)


def add(samples_S, at_s, sound_S):
    first = round(at_s * RATE_HZ)
    room = len(samples_S[first : first + len(sound_S)])
    samples_S[first : first + room] += sound_S[:room]


def clicks(times_s, seconds):
    samples_S = np.zeros(round(seconds * RATE_HZ), np.float32)
    time_S = np.arange(440) / RATE_HZ
    for at_s in times_s:
        add(samples_S, at_s, 0.5 * np.exp(-time_S / 0.004) * np.sin(2 * np.pi * 1000 * time_S))
    return samples_S


def band(times_s, seconds, first_bar=0, bars_per_section=8):
    """Kick on 1 and 3, snare on 2 and 4, hi-hat in eighths, a chord a bar, another timbre every section."""
    generator = np.random.default_rng(0)
    samples_S = generator.standard_normal(round(seconds * RATE_HZ)) * 1e-4
    drum_S, hat_S = np.arange(3307) / RATE_HZ, np.arange(1102) / RATE_HZ
    kick_S = 0.6 * np.exp(-drum_S / 0.05) * np.sin(2 * np.pi * (50 + 60 * np.exp(-drum_S / 0.02)) * drum_S)
    snare_S = 0.3 * np.exp(-drum_S / 0.04) * generator.standard_normal(len(drum_S))
    hihat_S = 0.08 * np.exp(-hat_S / 0.015) * np.diff(generator.standard_normal(len(hat_S) + 1))
    beat_s = np.append(np.diff(times_s), 0.5)
    for beat, at_s in enumerate(times_s):
        bar, position = divmod(beat - first_bar, 4)
        add(samples_S, at_s, snare_S if position % 2 else kick_S)
        add(samples_S, at_s, hihat_S)
        add(samples_S, at_s + beat_s[beat] / 2, hihat_S)
        if position == 0 or beat == 0:
            time_S = np.arange(round((4 - position) * beat_s[beat] * RATE_HZ)) / RATE_HZ
            partials = (1, 1.5, 2, 2.52, 3) + ((4, 5, 6, 7) if bar // bars_per_section % 2 else ())
            chord_S = sum(np.sin(2 * np.pi * ROOTS_HZ[bar % 4] * k * time_S) for k in partials)
            add(samples_S, at_s, 0.06 * chord_S * np.exp(-time_S / time_S[-1]))
    return samples_S.astype(np.float32)


def beats_of(samples_S):
    return track_beats(mel_spectrogram(samples_S))


def f_measure(found_frames, planted_s, tolerance_s=0.07):
    """Of the planted beats and the found ones in their range; planted gaps exceed twice the tolerance."""
    found_s = GRID.seconds_of_frame(found_frames)
    inside = (found_s > planted_s[0] - tolerance_s) & (found_s < planted_s[-1] + tolerance_s)
    found_s = found_s[inside]
    hits = sum(np.abs(found_s - at_s).min(initial=1.0) <= tolerance_s for at_s in planted_s)
    return 2 * hits / (len(found_s) + len(planted_s))


@pytest.mark.parametrize("bpm", range(60, 181, 15))
def test_clicks_from_60_to_180_bpm_are_found(bpm):
    planted_s = planted_beats(bpm, 30.0)
    found = beats_of(clicks(planted_s, 30.0))
    assert found.tempo_bpm == pytest.approx(bpm, rel=0.01)
    assert f_measure(found.beat_frames, planted_s) >= 0.97
    assert found.confidence > 0.8


@pytest.mark.parametrize("bpm", range(66, 179, 16))
def test_a_bands_beats_are_found_in_the_right_octave(bpm):
    planted_s = planted_beats(bpm, 30.0)
    found = beats_of(band(planted_s, 30.0))
    assert found.tempo_bpm == pytest.approx(bpm, rel=0.01)
    assert f_measure(found.beat_frames, planted_s) >= 0.97
    assert found.confidence > 0.6


@pytest.mark.parametrize("play", [clicks, band])
def test_a_beats_frame_is_the_frame_that_plays_it_give_or_take_one(play):
    planted_s = planted_beats(100, 30.0)[:-1]
    found = beats_of(play(planted_s, 30.0)).beat_frames
    late = [found[np.abs(found - frame).argmin()] - frame for frame in GRID.frame_of_seconds(planted_s)]
    assert np.abs(late).max() <= 1 and -0.5 < np.mean(late) < 0.2


@pytest.mark.parametrize("drift", [-0.3, 0.3])
def test_a_tempo_that_drifts_by_a_third_is_followed(drift):
    planted_s = planted_beats(100, 40.0, drift=drift)
    assert f_measure(beats_of(band(planted_s, 40.0)).beat_frames, planted_s) >= 0.97


def test_two_takes_at_different_tempi_are_both_followed():
    slow_s, fast_s = planted_beats(84, 30.0), planted_beats(126, 30.0)
    both_S = np.concatenate([band(slow_s, 30.0), np.zeros(3 * RATE_HZ, np.float32), band(fast_s, 30.0)])
    found = beats_of(both_S).beat_frames
    assert f_measure(found, slow_s) >= 0.95
    assert f_measure(found, fast_s + 33.0) >= 0.95


def test_the_beats_agree_with_librosas():
    samples_S = band(planted_beats(112, 20.0), 20.0)
    _, theirs = librosa.beat.beat_track(y=samples_S, sr=RATE_HZ)
    assert f_measure(beats_of(samples_S).beat_frames, GRID.seconds_of_frame(theirs)) >= 0.95


@pytest.mark.parametrize("first_bar", [0, 1, 2, 3])
def test_bars_begin_where_the_chords_change(first_bar):
    planted_s = planted_beats(110, 45.0)
    found = beats_of(band(planted_s, 45.0, first_bar))
    assert f_measure(found.bar_frames, planted_s[first_bar::4]) >= 0.9
    assert set(found.bar_frames) <= set(found.beat_frames)
    assert set(found.phrase_frames) <= set(found.bar_frames)


def test_a_new_take_begins_a_new_bar():
    take_s = planted_beats(120, 33.0, start_s=0.0)[:63]  # stops after the third beat of a bar
    take_S = band(take_s, 63 * 0.5)
    found = beats_of(np.concatenate([take_S, take_S]))
    assert f_measure(found.bar_frames, np.concatenate([take_s[::4], 31.5 + take_s[::4]])) >= 0.9


@pytest.mark.parametrize("bars_per_section", [4, 8])
def test_phrases_begin_where_the_timbre_changes(bars_per_section):
    planted_s = planted_beats(140, 110.0)
    found = beats_of(band(planted_s, 110.0, bars_per_section=bars_per_section))
    planted_phrases_s = planted_s[:: 4 * bars_per_section]
    assert f_measure(found.phrase_frames, planted_phrases_s) >= 0.8


def test_noise_silence_and_held_tones_get_the_plain_grid():
    time_S = np.arange(30 * RATE_HZ) / RATE_HZ
    noise_S = 0.1 * np.random.default_rng(0).standard_normal(len(time_S))
    for sound_S in (noise_S, np.zeros_like(time_S), 0.1 * np.sin(2 * np.pi * 440 * time_S)):
        mel_TF = mel_spectrogram(sound_S)
        found = track_beats(mel_TF)
        assert found.confidence < CONFIDENT
        grid = grid_beats(len(mel_TF))
        np.testing.assert_array_equal(beat_phases(found, len(mel_TF)), beat_phases(grid, len(mel_TF)))


@pytest.mark.parametrize("n_frames", [0, 1, 50, 103, 104, 120, 200])
def test_any_length_gives_ascending_marks_and_finite_phases(n_frames):
    found = track_beats(np.random.default_rng(0).random((n_frames, 128), np.float32))
    assert 0.0 <= found.confidence <= 1.0 and found.tempo_bpm > 0
    for marks in (found.beat_frames, found.bar_frames, found.phrase_frames):
        assert marks.dtype == np.int64
        assert (np.diff(marks) > 0).all() and ((marks >= 0) & (marks < max(1, n_frames))).all()
    phase_T3 = beat_phases(found._replace(confidence=1.0), n_frames)
    assert phase_T3.shape == (n_frames, 3) and phase_T3.dtype == np.float32
    assert ((phase_T3 >= 0.0) & (phase_T3 < 1.0)).all()


def test_gain_changes_no_beat():
    samples_S = band(planted_beats(97, 30.0), 30.0)
    loud, quiet = beats_of(samples_S), beats_of(0.1 * samples_S)
    assert f_measure(quiet.beat_frames, GRID.seconds_of_frame(loud.beat_frames), 0.03) >= 0.98


def test_ten_minutes_take_a_moment_and_time_grows_linearly():
    minute_TF = mel_spectrogram(band(planted_beats(120, 60.0), 60.0))
    track_beats(minute_TF)

    def cpu_seconds(minutes):
        mel_TF = np.tile(minute_TF, (minutes, 1))
        start = time.process_time()
        track_beats(mel_TF)
        return time.process_time() - start

    short, long = (min(cpu_seconds(minutes) for _ in range(3)) for minutes in (5, 20))
    assert long < 8 * short
    assert long < 4.0  # 0.2 s on the machine it was written on


def test_the_grid_is_the_documents():
    grid = grid_beats(1000)
    assert (FRAMES_PER_BEAT, FRAMES_PER_BAR) == (43, 172)
    assert grid.beat_frames.tolist() == list(range(0, 1000, 43))
    assert grid.bar_frames.tolist() == list(range(0, 1000, 172))
    assert grid.phrase_frames.tolist() == [0, 688]
    assert grid.tempo_bpm == pytest.approx(60.1, abs=0.1)
    frames = np.arange(1000)
    phase_T3 = beat_phases(grid, 1000)
    for column, length in enumerate((43, 172, 688)):
        np.testing.assert_allclose(phase_T3[:, column], frames % length / length, atol=1e-6)


def test_the_grid_follows_its_settings_at_another_hop():
    settings = BeatSettings(mel=MelSettings(hop=256), frames_per_beat=50, frames_per_bar=150)
    unsure = track_beats(np.zeros((3000, 128), np.float32), settings)
    phase_T3 = beat_phases(unsure, 3000, settings)
    np.testing.assert_allclose(phase_T3[:, 0], np.arange(3000) % 50 / 50, atol=1e-6)
    np.testing.assert_allclose(phase_T3[:, 1], np.arange(3000) % 150 / 150, atol=1e-6)


def test_half_the_hop_finds_the_same_tempo():
    mel = MelSettings(hop=256)
    mel_TF = mel_spectrogram(band(planted_beats(110, 30.0), 30.0), mel)
    assert track_beats(mel_TF, BeatSettings(mel=mel)).tempo_bpm == pytest.approx(110, rel=0.01)


ascending = st.lists(st.integers(0, 400), min_size=1, max_size=40, unique=True).map(
    lambda frames: np.array(sorted(frames))
)


def marked(mark_frames):
    return Beats(120.0, mark_frames, mark_frames, mark_frames, 1.0)


@given(ascending)
def test_phases_are_zero_on_marks_and_grow_in_between(mark_frames):
    phase_T = beat_phases(marked(mark_frames), 401)[:, 0]
    assert (phase_T[mark_frames] == 0.0).all()
    assert (
        np.diff(phase_T)[np.setdiff1d(np.arange(mark_frames[0], mark_frames[-1]), mark_frames - 1)] > 0
    ).all()


@given(ascending.filter(lambda marks: len(marks) > 4))
def test_phases_depend_on_the_surrounding_marks_only(mark_frames):
    whole, part = (beat_phases(marked(m), 401) for m in (mark_frames, mark_frames[1:-1]))
    between = slice(mark_frames[1], mark_frames[-2] + 1)
    np.testing.assert_allclose(whole[between], part[between], atol=1e-5)


@given(ascending, st.integers(-5, 405))
def test_snapping_moves_to_the_nearest_mark(mark_frames, frame):
    snapped = snap_to(mark_frames, frame)
    assert snapped in mark_frames
    assert abs(snapped - frame) == np.abs(mark_frames - frame).min()
    assert snap_to(mark_frames, np.array([frame, frame])).tolist() == [snapped, snapped]


def test_snapping_without_marks_moves_nothing():
    assert snap_to(np.zeros(0, np.int64), 7) == 7
    assert snap_to(np.array([10, 20]), 15) == 10


def test_settings_that_cannot_work_are_refused():
    for bad in ({"slowest_bpm": 200, "fastest_bpm": 100}, {"frames_per_beat": 0}, {"frames_per_bar": 10}):
        with pytest.raises(UsageError):
            BeatSettings(**bad)
