"""Augmentation: it sounds different, and pointers still name the frames that are played."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editjax.augment import (
    AugmentSettings,
    Piece,
    add_noise,
    augment,
    change_gain,
    crop,
    lose_stems,
    mask,
    mix,
    shift_pitch,
    stretch,
)
from editjax.edits import UNALIGNED, kept_mask_frames, structure_of
from editjax.errors import UsageError
from editjax.events import UNKNOWN
from editjax.mel import MelSettings, mel_spectrogram, pooled

MEL = MelSettings()
OFF = AugmentSettings(
    gain_db=0.0,
    stretch=(1.0, 1.0),
    pitch_semitones=0.0,
    noise_probability=0.0,
    mix_probability=0.0,
    time_masks=0,
    mel_masks=0,
)


def make_piece(n_frames=400, pointers_N=None, seed=0):
    """A piece whose first mel band is its frame number over 1,000, and which nobody may write to."""
    rng = np.random.default_rng(seed)
    mel_TF = rng.uniform(0.2, 0.8, (n_frames, MEL.n_mels)).astype(np.float32)
    mel_TF[:, 0] = np.arange(n_frames) / 1000
    phase_T3 = np.stack([np.arange(n_frames) % p / p for p in (43, 172, 688)], axis=1).astype(np.float32)
    if pointers_N is None:
        pointers_N = np.r_[20:90, 150:220, 150:220, 300:390]
    for array in (mel_TF, phase_T3, pointers_N):
        array.setflags(write=False)
    kind_T = (np.arange(n_frames) // 50 % 5).astype(np.int8)
    return Piece(mel_TF, phase_T3, pointers_N.astype(np.int32), kind_T)


def run(piece, settings, seed=0, max_frames=500, max_steps=500):
    rng = np.random.default_rng(seed)
    other = make_piece(300, seed=9)
    limits = {"max_frames": max_frames, "max_steps": max_steps}
    return augment(piece, settings, MEL, rng, other_mel=lambda: other.mel_TF, **limits)


def tone(frequency_hz, gain=0.1, seconds=1.0):
    time_s = np.arange(int(seconds * MEL.sample_rate_hz)) / MEL.sample_rate_hz
    return (gain * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


runs = st.lists(st.tuples(st.integers(0, 370), st.integers(1, 29), st.booleans()), min_size=1, max_size=8)


def pointers_of(spans):
    parts = [np.full(n, UNALIGNED) if lost else np.arange(a, a + n) for a, n, lost in spans]
    return np.concatenate(parts)


def test_with_everything_off_nothing_changes():
    piece = make_piece()
    for before, after in zip(piece, run(piece, OFF), strict=True):
        np.testing.assert_array_equal(before, after, strict=True)


def test_the_same_generator_gives_the_same_piece_and_another_gives_another():
    piece = make_piece()
    settings = AugmentSettings(noise_probability=1.0, mix_probability=1.0)
    first, again, other = run(piece, settings), run(piece, settings), run(piece, settings, seed=1)
    np.testing.assert_array_equal(first.mel_TF, again.mel_TF)
    assert first.mel_TF.shape != other.mel_TF.shape or (first.mel_TF != other.mel_TF).any()


@pytest.mark.parametrize("seed", range(5))
def test_everything_at_once_stays_in_range_and_in_step(seed):
    got = run(make_piece(), AugmentSettings(noise_probability=1.0, mix_probability=1.0), seed)
    assert got.mel_TF.dtype == np.float32
    assert 0.0 <= got.mel_TF.min() <= got.mel_TF.max() <= 1.0
    assert len(got.mel_TF) == len(got.phase_T3)
    assert got.pointers_N.max() < len(got.mel_TF)


@given(runs, st.floats(0.9, 1.1))
def test_what_was_kept_stays_kept_when_time_is_stretched(spans, ratio):
    piece = make_piece(400, pointers_of(spans))
    got = stretch(piece, ratio)
    n_frames = len(got.mel_TF)
    expected = np.zeros(n_frames, bool)
    for first, count, lost in spans:
        if not lost:
            start = min(int(first * ratio + 0.5), n_frames - 1)
            expected[start : max(int((first + count) * ratio + 0.5), start + 1)] = True
    np.testing.assert_array_equal(kept_mask_frames(got.pointers_N, n_frames), expected)
    assert (got.pointers_N == UNALIGNED).any() == any(lost for *_, lost in spans)


@pytest.mark.parametrize("ratio", [0.95, 0.97, 1.0, 1.03, 1.05])
def test_stretched_pointers_play_what_the_old_ones_played(ratio):
    piece = make_piece()
    got = stretch(piece, ratio)
    played_old = piece.mel_TF[piece.pointers_N, 0] * 1000
    played_new = got.mel_TF[got.pointers_N, 0] * 1000
    assert len(got.mel_TF) == round(400 * ratio)
    assert abs(len(played_new) - len(played_old) * ratio) <= 3
    positions = np.linspace(0, len(played_old) - 1, len(played_new))
    inside = np.abs(np.diff(played_new, prepend=played_new[0])) < 2
    near_a_join = np.convolve(~inside, np.ones(9), "same") > 0
    difference = np.abs(played_new - np.interp(positions, np.arange(len(played_old)), played_old))
    assert difference[~near_a_join].max() <= 2.0


def test_loops_stay_loops_when_time_is_stretched():
    piece = make_piece()
    got = stretch(piece, 1.04)
    assert set(structure_of(got.pointers_N, len(got.mel_TF))) == {0, 1, 2}
    assert abs((structure_of(got.pointers_N, len(got.mel_TF)) == 2).sum() - 70 * 1.04) <= 1


def test_stretching_keeps_to_the_room_there_is():
    settings = AugmentSettings(stretch=(1.04, 1.05))
    piece = make_piece()
    for seed in range(8):
        assert len(run(piece, settings, seed, max_frames=417).mel_TF) <= 417
        assert len(run(piece, settings, seed, max_frames=401).mel_TF) == 400
        assert len(run(piece, settings, seed, max_steps=len(piece.pointers_N) + 18).pointers_N) <= 318


@pytest.mark.parametrize("semitones", [-2.0, -0.7, 1.3, 2.0])
def test_a_shifted_tone_is_the_tone_at_the_shifted_pitch(semitones):
    for frequency_hz in (300.0, 1500.0, 4000.0):
        shifted = shift_pitch(mel_spectrogram(tone(frequency_hz)), semitones, MEL)[10:-10].mean(axis=0)
        played = mel_spectrogram(tone(frequency_hz * 2 ** (semitones / 12)))[10:-10].mean(axis=0)
        assert abs(int(shifted.argmax()) - int(played.argmax())) <= 1
        assert np.corrcoef(shifted, played)[0, 1] > 0.88


@pytest.mark.parametrize("gain_db", [-20.0, 6.0, 20.0])
def test_gain_on_the_mel_is_gain_on_the_samples(gain_db):
    rng = np.random.default_rng(0)
    samples_S = (0.01 * rng.standard_normal(22050)).astype(np.float32)
    samples_S[8000:14000] = 0.0
    louder = mel_spectrogram(samples_S * np.float32(10 ** (gain_db / 20)))
    np.testing.assert_allclose(change_gain(mel_spectrogram(samples_S), gain_db, MEL), louder, atol=1e-4)


def power(mel_TF):
    return 10 ** ((mel_TF.astype(np.float64) * (MEL.ceiling_db - MEL.floor_db) + MEL.floor_db) / 10)


def test_noise_has_the_level_that_was_drawn():
    mel_TF = make_piece(900).mel_TF
    settings = AugmentSettings(noise_snr_db=(10.0, 10.0))
    noisy = add_noise(mel_TF, settings, MEL, np.random.default_rng(0))
    added_db = 10 * np.log10(power(noisy).mean() / power(mel_TF).mean() - 1)
    assert added_db == pytest.approx(-10.0, abs=0.3)
    assert (noisy >= mel_TF - 1e-6).all()


def test_a_mixed_recording_has_the_level_that_was_asked_for():
    mel_TF, other_TF = make_piece(400).mel_TF, make_piece(90, seed=3).mel_TF
    mixed = mix(mel_TF, other_TF, -20.0, MEL, np.random.default_rng(0))
    added_db = 10 * np.log10(power(mixed).mean() / power(mel_TF).mean() - 1)
    assert added_db == pytest.approx(-20.0, abs=0.5)


def test_digital_silence_mixes_without_warnings():
    silence_TF = np.zeros((50, MEL.n_mels), np.float32)
    mel_TF = make_piece(40).mel_TF
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(mix(mel_TF, silence_TF, -20.0, MEL, rng), mel_TF, atol=1e-6)
    assert np.isfinite(mix(silence_TF, mel_TF, -20.0, MEL, rng)).all()
    assert not change_gain(silence_TF, 20.0, MEL).any()


@pytest.mark.parametrize("seed", range(8))
def test_steady_sounds_lie_where_something_is_cut_and_are_as_loud_as_was_drawn(seed):
    level_db, piece = -20.0 + 3.5 * seed, make_piece()
    settings = replace(OFF, steady_probability=1.0, steady_frames=(20, 60), steady_db=(level_db, level_db))
    steady = run(piece, settings, seed)
    changed_T = (steady.mel_TF != piece.mel_TF).any(1)
    assert (np.diff(changed_T, prepend=False, append=False)).sum() == 2  # one span
    kept_T = structure_of(piece.pointers_N, len(piece.mel_TF)) > 0
    assert 1 <= changed_T.sum() <= 60 and not (changed_T & kept_T).any()
    assert (steady.kind_T[changed_T] == UNKNOWN).all()
    np.testing.assert_array_equal(steady.kind_T[~changed_T], piece.kind_T[~changed_T])
    span_db = MEL.ceiling_db - MEL.floor_db
    power_TF = 10.0 ** (steady.mel_TF.astype(np.float64) * span_db / 10)
    louder_db = 10 * np.log10(power_TF[changed_T].sum(1).mean() / power_TF[kept_T].sum(1).mean())
    assert louder_db == pytest.approx(level_db, abs=0.2)
    assert steady.mel_TF[changed_T].std(0).mean() < 0.03 < piece.mel_TF[changed_T].std(0).mean()
    assert steady.mel_TF.dtype == np.float32


def test_where_all_or_nothing_is_kept_no_sound_is_planted_and_all_else_is_as_without():
    settings = replace(OFF, steady_probability=1.0)
    for pointers_N in (np.arange(400), np.zeros(0)):
        piece = make_piece(pointers_N=pointers_N)
        np.testing.assert_array_equal(run(piece, settings).mel_TF, piece.mel_TF)
    varied = replace(AugmentSettings(), steady_probability=0.0)
    seldom = replace(varied, steady_probability=1e-9)
    np.testing.assert_array_equal(run(make_piece(), varied).mel_TF, run(make_piece(), seldom).mel_TF)


def test_masks_cover_at_most_what_the_settings_say_with_the_mean_level():
    mel_TF = make_piece(400).mel_TF
    settings = AugmentSettings(time_masks=2, time_mask_frames=20, mel_masks=2, mel_mask_bins=12)
    for seed in range(20):
        masked = mask(mel_TF, settings, np.random.default_rng(seed))
        changed = masked != mel_TF
        assert changed.all(axis=1).sum() <= 40
        assert changed.all(axis=0).sum() <= 24
        assert np.unique(masked[changed]).size <= 1
        assert masked[changed] == pytest.approx(mel_TF.mean(), abs=1e-3)


@given(runs, st.integers(40, 350), st.integers(5, 120), st.integers(0, 99))
def test_a_crop_plays_the_frames_the_whole_edit_plays_there(spans, max_frames, max_steps, seed):
    piece = make_piece(400, pointers_of(spans))
    got = crop(piece, max_frames, max_steps, np.random.default_rng(seed))
    start = round(float(got.mel_TF[0, 0]) * 1000)
    stop = start + len(got.mel_TF)
    assert len(got.mel_TF) <= max_frames and len(got.pointers_N) <= max_steps
    inside = piece.pointers_N[(piece.pointers_N >= start) & (piece.pointers_N < stop)]
    played = got.pointers_N[got.pointers_N >= 0] + start
    if len(got.mel_TF) > 1:  # a single frame may be played more often than there are steps
        assert len(played) == len(inside)
    np.testing.assert_array_equal(played, inside[: len(played)])


def test_a_crop_ends_where_a_kept_run_or_the_recording_ends():
    piece = make_piece()
    ends = set()
    for seed in range(40):
        got = crop(piece, 200, 200, np.random.default_rng(seed))
        ends.add(round(float(got.mel_TF[-1, 0]) * 1000) + 1)
    assert ends == {220, 390, 400}


def test_settings_that_would_make_labels_untrue_are_refused():
    with pytest.raises(UsageError, match="mix_db"):
        AugmentSettings(mix_db=(-30.0, -6.0))
    with pytest.raises(UsageError, match="stretch"):
        AugmentSettings(stretch=(1.1, 1.0))


def with_stems(piece):
    """A piece with itself, and a silent track, for stems."""
    steps_MF = pooled(piece.mel_TF, len(piece.mel_TF))
    return piece._replace(stems_IMF=np.stack([steps_MF, np.zeros_like(steps_MF)]))


@pytest.mark.parametrize("ratio", [0.95, 1.0, 1.037])
@pytest.mark.parametrize("n_frames", [400, 397])
def test_stems_keep_time_with_the_recording(ratio, n_frames):
    """The ramp in the first band says where a step lies: within a frame, but for the ends' half steps."""
    piece = with_stems(make_piece(n_frames))
    for changed in (stretch(piece, ratio), crop(piece, 250, 500, np.random.default_rng(3))):
        steps_M = pooled(changed.mel_TF, len(changed.mel_TF))[:, 0]
        assert changed.stems_IMF.shape == (2, len(steps_M), MEL.n_mels)
        np.testing.assert_allclose(changed.stems_IMF[0, 1:-1, 0], steps_M[1:-1], atol=1e-3)
        np.testing.assert_allclose(changed.stems_IMF[0, :, 0], steps_M, atol=5e-3)
        assert not changed.stems_IMF[1].any()


def test_stems_are_varied_as_the_recording_is_which_hears_nothing_of_it():
    settings = replace(
        OFF, gain_db=9.0, pitch_semitones=2.0, stemless_probability=0.0, lost_stem_probability=0.0
    )
    piece = make_piece()
    plain, heard = run(piece, settings), run(with_stems(piece), settings)
    np.testing.assert_array_equal(plain.mel_TF, heard.mel_TF)
    assert plain.stems_IMF is None and np.abs(heard.mel_TF - piece.mel_TF).max() > 0.01
    inside = (heard.mel_TF > 0).all(0) & (heard.mel_TF < 1).all(0)
    np.testing.assert_allclose(heard.stems_IMF[0][:, inside], pooled(heard.mel_TF, 400)[:, inside], atol=1e-5)
    assert inside.sum() > 100 and not heard.stems_IMF[1].any()
    noisy = run(with_stems(piece), replace(settings, noise_probability=1.0)).stems_IMF
    assert noisy[0].std() > 0 and np.isfinite(noisy).all()


def test_stems_go_missing_one_by_one_and_altogether():
    stems_IMF = np.zeros((4, 2, 2), np.float32)
    rng, settings = (
        np.random.default_rng(0),
        replace(OFF, stemless_probability=0.3, lost_stem_probability=0.1),
    )
    left = np.array([len(lose_stems(stems_IMF, settings, rng)) for _ in range(4000)])
    assert abs((left == 0).mean() - 0.3) < 0.03
    assert abs(left.mean() - 0.7 * 0.9 * 4) < 0.1
    never = replace(OFF, stemless_probability=0.0, lost_stem_probability=0.0)
    assert len(lose_stems(stems_IMF, never, rng)) == 4
