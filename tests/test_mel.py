"""The mel is librosa's, streams and accelerators give the same, and the frame grid is exact."""

import tracemalloc
from fractions import Fraction
from math import floor
from types import SimpleNamespace

import librosa
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from editjax.audio import ArrayReader
from editjax.errors import DataError, UsageError
from editjax.mel import (
    FrameGrid,
    MelSettings,
    MelStream,
    from_documents_layout,
    mel_filterbank,
    mel_of,
    mel_spectrogram,
    to_documents_layout,
)
from editjax.models.mel import mel_spectrogram_jax

RATES_HZ = (8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000, 176400, 192000)
TEN_HOURS_S = 36_000
rates_hz = st.sampled_from(RATES_HZ) | st.integers(8000, 192_000)
other_mels = st.builds(
    FrameGrid,
    rates_hz,
    mel_rate_hz=st.sampled_from([16_000, 32_000, 44_100, 48_000]),
    hop=st.integers(32, 2048),
)
grids = rates_hz.map(FrameGrid) | other_mels


def noise(n_samples, seed=0, level=0.1):
    return (np.random.default_rng(seed).standard_normal(n_samples) * level).astype(np.float32)


def librosa_mel(samples_S, sample_rate_hz=22050):
    power = librosa.feature.melspectrogram(
        y=samples_S, sr=sample_rate_hz, n_fft=2048, hop_length=512, n_mels=128
    )
    return np.clip((librosa.power_to_db(power, ref=1.0, top_db=None).T + 80.0) / 120.0, 0.0, 1.0)


@given(grids, st.integers(0, TEN_HOURS_S * 44))
def test_frames_start_at_the_nearest_sample_and_halves_round_up(grid, frame):
    exact = Fraction(frame * grid.hop * grid.source_rate_hz, grid.mel_rate_hz)
    assert grid.sample_of_frame(frame) == floor(exact + Fraction(1, 2))


@given(grids, st.integers(0, TEN_HOURS_S * 8000))
@example(FrameGrid(8000, 32_000, 50), 12)  # frame 1 starts at 12.5: the half rounds up to 13
def test_frame_of_sample_inverts_sample_of_frame(grid, sample):
    frame = grid.frame_of_sample(sample)
    assert grid.sample_of_frame(frame) <= sample < grid.sample_of_frame(frame + 1)
    assert grid.frame_of_sample(grid.sample_of_frame(frame)) == frame
    assert grid.frame_of_seconds(grid.seconds_of_frame(frame)) == frame


@given(grids, st.integers(0, 20_000))
def test_frames_in_counts_the_frames_that_start_before_the_end(grid, n_samples):
    starts = grid.sample_of_frame(np.arange(20_001))
    assert grid.frames_in(n_samples) == np.count_nonzero(starts < n_samples)
    assert grid.frames_in(0) == 0 and grid.frames_in(1) == 1


@given(st.integers(8000, 768_000))
def test_arrays_of_ten_hours_do_not_overflow_and_ascend(rate_hz):
    grid = FrameGrid(rate_hz)
    last = TEN_HOURS_S * 44
    frames = np.arange(last - 1000, last)
    starts = grid.sample_of_frame(frames)
    assert starts.dtype == np.int64
    assert starts.tolist() == [grid.sample_of_frame(frame) for frame in frames.tolist()]
    assert (np.diff(starts) > 0).all()
    np.testing.assert_array_equal(grid.frame_of_sample(starts), frames)
    np.testing.assert_array_equal(grid.frame_of_sample(starts - 1), frames - 1)
    np.testing.assert_array_equal(grid.frame_of_seconds(grid.seconds_of_frame(frames)), frames)


def test_small_integer_arrays_are_widened_and_floats_refused():
    assert FrameGrid(192_000).sample_of_frame(np.array([2**31 - 1], np.int32))[0] > 2**31
    assert FrameGrid(192_000).sample_of_frame(np.int32(2**31 - 1)) > 2**31
    with pytest.raises(TypeError, match="exact"):
        FrameGrid(44_100).sample_of_frame(1.5)


def test_the_filterbank_is_librosas():
    for rate_hz in (22050, 44100):
        ours_KF = mel_filterbank(MelSettings(sample_rate_hz=rate_hz))
        np.testing.assert_allclose(
            ours_KF.T, librosa.filters.mel(sr=rate_hz, n_fft=2048, n_mels=128), atol=1e-9
        )


@pytest.mark.parametrize("sample_rate_hz", [22050, 44100])
@pytest.mark.parametrize("n_samples", [1, 511, 512, 513, 22050, 44100, 44101, 300_001])
def test_the_mel_is_librosas(n_samples, sample_rate_hz):
    samples_S = noise(n_samples)
    padded_S = np.pad(samples_S, (0, max(0, 2048 - n_samples)))  # librosa warns below one window
    n_frames = 1 + n_samples // 512
    ours_TF = mel_spectrogram(samples_S, MelSettings(sample_rate_hz=sample_rate_hz))
    assert ours_TF.shape == (n_frames, 128) and ours_TF.dtype == np.float32
    np.testing.assert_allclose(ours_TF, librosa_mel(padded_S, sample_rate_hz)[:n_frames], atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 1e-5, 1.0])
def test_silence_hiss_and_full_scale_stay_between_zero_and_one(level):
    samples_S = level * np.sin(np.arange(44_101, dtype=np.float32))
    mel_TF = mel_spectrogram(samples_S)
    assert mel_TF.min() >= 0.0 and mel_TF.max() <= 1.0
    np.testing.assert_allclose(mel_TF, librosa_mel(samples_S), atol=1e-4)


def test_no_samples_give_no_frames():
    assert mel_spectrogram(np.zeros(0, np.float32)).shape == (0, 128)
    assert MelStream().finish().shape == (0, 128)
    assert mel_spectrogram_jax(np.zeros((2, 0), np.float32), MelSettings()).shape == (2, 0, 128)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 250_000), st.lists(st.integers(0, 250_000), max_size=8))
def test_a_stream_gives_the_same_bits_however_it_is_cut(n_samples, cuts):
    samples_S = noise(n_samples)
    stream = MelStream()
    pieces = [
        stream.push(piece_S) for piece_S in np.split(samples_S, sorted(min(c, n_samples) for c in cuts))
    ]
    np.testing.assert_array_equal(
        np.concatenate([*pieces, stream.finish()]), mel_spectrogram(samples_S), strict=True
    )


def test_a_stream_keeps_no_hold_of_the_callers_buffer():
    buffer_S = noise(1000)
    expected_TF = mel_spectrogram(buffer_S)
    stream = MelStream()
    stream.push(buffer_S)
    buffer_S[:] = 0.0
    np.testing.assert_array_equal(stream.finish(), expected_TF)


def test_a_frame_does_not_depend_on_the_rest_of_the_file():
    quiet_S, shout_S = noise(100_000, level=0.01), noise(50_000, seed=1, level=0.9)
    alone_TF = mel_spectrogram(quiet_S)
    together_TF = mel_spectrogram(np.concatenate([quiet_S, shout_S]))
    before = 100_000 // 512 - 2
    np.testing.assert_allclose(together_TF[:before], alone_TF[:before], atol=1e-6)


def test_gain_is_a_constant_shift():
    samples_S = noise(50_000, level=0.01)
    shift = mel_spectrogram(10.0 * samples_S) - mel_spectrogram(samples_S)
    np.testing.assert_allclose(shift, 20.0 / 120.0, atol=1e-5)


def test_stereo_is_refused_by_shape():
    for refuse in (mel_spectrogram, MelStream().push):
        with pytest.raises(ValueError, match=r"\(100, 2\)"):
            refuse(np.zeros((100, 2), np.float32))


def test_settings_that_cannot_work_are_refused():
    for bad in ({"hop": 0}, {"n_fft": 2047}, {"hop": 4096}, {"floor_db": 50.0}):
        with pytest.raises(UsageError):
            MelSettings(**bad)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("n_samples", [1, 2, 511, 512, 1024, 1025, 5000])
def test_a_files_mel_has_the_grids_frames(rate_hz, n_samples):
    samples_SC = np.zeros((n_samples, 2), np.int16)
    mel_TF, counted = mel_of(ArrayReader(samples_SC, rate_hz))
    assert counted == n_samples
    assert len(mel_TF) == FrameGrid(rate_hz).frames_in(n_samples)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_a_click_in_a_file_is_heard_in_the_frame_that_plays_it(rate_hz):
    grid = FrameGrid(rate_hz)
    frame = 200
    samples_S = np.zeros(10 * rate_hz, np.float32)
    samples_S[grid.sample_of_frame(frame)] = 1.0
    mel_TF, _ = mel_of(ArrayReader(samples_S, rate_hz))
    loudness_T = mel_TF[:, :32].mean(axis=1)
    assert loudness_T.argmax() == frame
    assert loudness_T[frame - 1] == pytest.approx(loudness_T[frame + 1], abs=0.01)


def test_a_file_at_the_mel_rate_has_the_whole_mel():
    samples_S = noise(700_001)
    mel_TF, _ = mel_of(ArrayReader(samples_S, 22050))
    np.testing.assert_array_equal(mel_TF, mel_spectrogram(samples_S))


def test_an_error_while_reading_reaches_the_caller():
    def blocks():
        yield noise(100_000)[:, None]
        raise DataError("take.wav: the sample at 2.3 s is NaN")

    reader = SimpleNamespace(info=SimpleNamespace(sample_rate_hz=44_100), blocks=blocks)
    with pytest.raises(DataError, match="NaN"):
        mel_of(reader)


def test_a_long_file_takes_the_memory_of_its_mel():
    block_SC = noise(1 << 18).reshape(-1, 1)
    reader = SimpleNamespace(
        info=SimpleNamespace(sample_rate_hz=44_100), blocks=lambda: (block_SC for _ in range(200))
    )
    tracemalloc.start()
    mel_TF, n_samples = mel_of(reader)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_samples == 200 << 18
    assert peak < 2.1 * mel_TF.nbytes + 16e6


@pytest.mark.parametrize("n_samples", [1, 512, 44_100, 44_101, 200_000])
def test_the_jax_twin_equals_the_host(n_samples):
    time_S = np.arange(n_samples) / 22050
    samples_BS = np.stack(
        [noise(n_samples), 0.2 * np.sin(2 * np.pi * 440 * time_S), np.zeros(n_samples)], dtype=np.float32
    )
    twin_BTF = mel_spectrogram_jax(samples_BS, MelSettings())
    assert twin_BTF.dtype == np.float32
    np.testing.assert_allclose(twin_BTF, [mel_spectrogram(row) for row in samples_BS], atol=1e-4)


def test_the_jax_twin_is_near_the_host_even_115_db_below_a_pure_tone():
    tone_S = np.sin(2 * np.pi * 440 * np.arange(44_100) / 22050).astype(np.float32)
    np.testing.assert_allclose(
        mel_spectrogram_jax(tone_S[None], MelSettings())[0], mel_spectrogram(tone_S), atol=1e-3
    )


def test_the_jax_twin_follows_its_settings():
    other = MelSettings(
        sample_rate_hz=16000, n_fft=1024, hop=160, n_mels=40, floor_db=-100.0, ceiling_db=20.0
    )
    samples_S = noise(30_000)
    np.testing.assert_allclose(
        mel_spectrogram_jax(samples_S[None], other)[0], mel_spectrogram(samples_S, other), atol=1e-4
    )


def test_the_documents_layout_is_a_transposition_with_a_clear_error():
    mel_BTF = noise(2 * 10 * 128).reshape(2, 10, 128)
    mel_BFT = to_documents_layout(mel_BTF)
    assert mel_BFT.shape == (2, 128, 10)
    np.testing.assert_array_equal(from_documents_layout(mel_BFT), mel_BTF)
    with pytest.raises(UsageError, match=r"\(2, 10, 128\), wanted \(batch, 128, time\)"):
        from_documents_layout(mel_BTF)
    with pytest.raises(UsageError, match=r"\(2, 128, 10\), wanted \(batch, time, 128\)"):
        to_documents_layout(mel_BFT)
    with pytest.raises(UsageError, match=r"\(10, 128\)"):
        to_documents_layout(mel_BTF[0])
