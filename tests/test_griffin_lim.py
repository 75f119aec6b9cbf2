"""Mel → waveform: the transforms are librosa's, real recordings come back near, the key decides the rest."""

from pathlib import Path

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soundfile

from editjax.errors import UsageError
from editjax.mel import MelSettings, mel_filterbank, mel_spectrogram
from editjax.models.griffin_lim import (
    GriffinLimSettings,
    band_power,
    bin_power,
    first_phases,
    griffin_lim,
    istft,
    mel_to_samples,
    overlap_add,
    stft,
)

MEL = MelSettings()
RECORDINGS = Path(__file__).parent / "recordings"
KEY = jax.random.key(0)
FEW = GriffinLimSettings(iterations=4)
SHAPES = [(2048, 512, 20_000), (1024, 256, 1024), (512, 200, 7_001), (64, 64, 640)]


def recording(name: str) -> np.ndarray:
    """Three seconds of music, a whole number of frames."""
    samples_S, _ = soundfile.read(RECORDINGS / f"{name}.flac", dtype="float32")
    return samples_S[: len(samples_S) // MEL.hop * MEL.hop]


def mel_of(samples_S: np.ndarray) -> np.ndarray:
    return mel_spectrogram(samples_S)[: len(samples_S) // MEL.hop]


def convergence_db(samples_S: np.ndarray, mel_TF: np.ndarray) -> float:
    """Spectral convergence: how far mel magnitudes are from those wanted, over these, in dB."""
    wanted, found = (np.sqrt(band_power(mel, MEL)) for mel in (mel_TF, mel_of(samples_S)[: len(mel_TF)]))
    return float(20.0 * np.log10(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))


def inverted(mel_TF: np.ndarray, settings: GriffinLimSettings, key: jax.Array = KEY) -> np.ndarray:
    frames_B = np.array([len(mel_TF)], np.int32)
    return np.asarray(mel_to_samples(mel_TF[None], frames_B, key, MEL, settings))[0]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("n_fft", "hop", "n_samples"), SHAPES)
def test_the_spectrum_is_librosas(n_fft: int, hop: int, n_samples: int) -> None:
    samples_BS = noise(2, n_samples)
    wanted = librosa.stft(samples_BS, n_fft=n_fft, hop_length=hop, pad_mode="constant").swapaxes(1, 2)
    np.testing.assert_allclose(stft(samples_BS, n_fft, hop), wanted, atol=2e-4)


@pytest.mark.parametrize(("n_fft", "hop", "n_samples"), SHAPES[:3])
def test_the_samples_of_a_spectrum_are_librosas(n_fft: int, hop: int, n_samples: int) -> None:
    """Of one that no samples have, too: the nearest in the least squares."""
    n_frames = 1 + n_samples // hop
    spectrum_BTK = noise(2, n_frames, n_fft // 2 + 1) + 1j * noise(2, n_frames, n_fft // 2 + 1, seed=1)
    spectrum_BTK = spectrum_BTK.astype(np.complex64)
    spectrum_BTK.imag[..., [0, -1]] = 0.0
    wanted = librosa.istft(spectrum_BTK.swapaxes(1, 2), n_fft=n_fft, hop_length=hop, length=n_samples)
    inner = slice(0, n_samples - n_fft // 2)  # librosa lets what few windows reach grow without bound
    np.testing.assert_allclose(istft(spectrum_BTK, hop, n_samples)[:, inner], wanted[:, inner], atol=1e-4)
    samples_BS = noise(1, n_samples)
    np.testing.assert_allclose(istft(stft(samples_BS, n_fft, hop), hop, n_samples), samples_BS, atol=1e-4)


def test_overlapping_pieces_add_up() -> None:
    pieces_BTWC = noise(2, 5, 7, 3)
    wanted = np.zeros((2, 4 * 3 + 7, 3), np.float32)
    for at in range(5):
        wanted[:, at * 3 : at * 3 + 7] += pieces_BTWC[:, at]
    np.testing.assert_allclose(overlap_add(pieces_BTWC, 3), wanted, atol=1e-6)


def test_held_magnitudes_are_librosas_griffin_lim() -> None:
    """From phases of zero; later iterations make much of rounding."""
    magnitude_TK = np.abs(np.asarray(stft(recording("guitar")[None], 2048, 512)))[0, :-1]
    still = np.zeros_like(magnitude_TK)
    ours_S = griffin_lim(magnitude_TK[None], still[None], 512, GriffinLimSettings(4, 0.99))[0]
    theirs_S = librosa.griffinlim(
        magnitude_TK.T, n_iter=4, hop_length=512, momentum=0.99, init=None, pad_mode="constant",
        length=len(ours_S) - 1,
    )  # fmt: skip
    inner = slice(0, -8192)  # theirs ends a sample earlier, which the last frames hear
    error = np.linalg.norm(ours_S[:-1][inner] - theirs_S[inner]) / np.linalg.norm(theirs_S)
    assert error < 1e-5


@pytest.mark.parametrize("name", ["piano", "guitar", "band"])
def test_bins_have_the_power_of_their_bands(name: str) -> None:
    power_BTF = band_power(mel_of(recording(name))[None], MEL)
    power_BTK = np.asarray(bin_power(power_BTF, MEL))
    assert (power_BTK >= 0).all()
    heard = (power_BTK @ mel_filterbank(MEL))[power_BTF > 1e-6]
    assert np.abs(10 * np.log10(heard / power_BTF[power_BTF > 1e-6])).mean() < 0.15
    assert not np.asarray(bin_power(jnp.zeros((1, 3, 128)), MEL)).any()


def test_first_phases_turn_as_a_tone_does() -> None:
    """A tone between two bins: near it every bin turns as it does, not as the middle of the bin would."""
    hz = 1003.7
    tone_S = np.sin(2 * np.pi * hz * np.arange(40 * 512) / 22_050).astype(np.float32)
    spectrum_TK = np.asarray(stft(tone_S[None], 2048, 512))[0, 4:-4]
    phase_TK = first_phases(np.abs(spectrum_TK)[None], np.zeros((1, 1025), np.float32), 512)[0]
    near = slice(round(hz * 2048 / 22_050) - 1, round(hz * 2048 / 22_050) + 2)
    off = np.angle(np.exp(1j * (np.diff(phase_TK[:, near], axis=0) - 2 * np.pi * hz * 512 / 22_050)))
    assert np.abs(off).max() < 0.2
    bins = np.angle(np.exp(2j * np.pi * (np.arange(1025)[near] / 2048 - hz / 22_050) * 512))
    assert np.abs(bins).max() > 1.0


@pytest.mark.parametrize("name", ["piano", "band"])
def test_real_recordings_come_back_near_their_mel(name: str) -> None:
    """The magnitudes that it begins from, held with random phases, are worse by far, and so is no search."""
    mel_TF = mel_of(recording(name))
    ours_db = convergence_db(inverted(mel_TF, GriffinLimSettings(64)), mel_TF)
    magnitude_BTK = jnp.sqrt(bin_power(band_power(mel_TF[None], MEL), MEL))
    turns = jax.random.uniform(KEY, magnitude_BTK.shape, maxval=2 * np.pi)
    random_db, held_db = (
        convergence_db(np.asarray(griffin_lim(magnitude_BTK, turns, 512, settings)[0]), mel_TF)
        for settings in (GriffinLimSettings(0), GriffinLimSettings(64, 0.99))
    )
    assert ours_db < -29.0 and ours_db < held_db - 5.0 < random_db - 15.0


def test_a_real_recording_comes_back_nearer_than_by_librosa() -> None:
    """At equal iterations."""
    samples_S = recording("guitar")
    mel_TF = mel_of(samples_S)
    theirs_S = librosa.feature.inverse.mel_to_audio(
        np.asarray(band_power(mel_TF, MEL)).T, sr=22_050, n_fft=2048, hop_length=512, n_iter=32,
        pad_mode="constant", length=len(samples_S) - 1,
    )  # fmt: skip
    theirs_db = convergence_db(np.append(theirs_S, 0.0).astype(np.float32), mel_TF)
    assert convergence_db(inverted(mel_TF, GriffinLimSettings(32)), mel_TF) < theirs_db - 4.0


def test_planted_tones_come_back_in_place_and_level() -> None:
    hz = np.array([220.0, 501.5, 1320.0])
    seconds_S = np.arange(100 * 512) / 22_050
    levels = np.array([0.3, 0.1, 0.03])
    samples_S = (levels @ np.sin(2 * np.pi * hz[:, None] * seconds_S)).astype(np.float32)
    found_S = inverted(mel_of(samples_S), GriffinLimSettings())
    window = np.hanning(32_768)
    spectrum = np.abs(np.fft.rfft(found_S[8192:][:32_768] * window)) / window.sum() * 2
    for wanted_hz, level in zip(hz, levels, strict=True):
        near = slice(int((wanted_hz - 25) / 22_050 * 32_768), int((wanted_hz + 25) / 22_050 * 32_768))
        loudest_hz = (near.start + spectrum[near].argmax()) * 22_050 / 32_768
        assert abs(loudest_hz - wanted_hz) < 12.0  # a band is 26 Hz wide
        power = np.square(spectrum[near]).sum() / 1.5  # of the window's three bins
        assert abs(10 * np.log10(power / level**2)) < 1.5


def test_the_same_key_gives_the_same_samples_and_another_others() -> None:
    mel_TF = mel_of(recording("guitar"))[:40]
    first, again = (inverted(mel_TF, FEW) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - inverted(mel_TF, FEW, jax.random.key(1))).max() > 0.01


def test_padding_and_the_rest_of_the_batch_change_nothing() -> None:
    mel_TF = mel_of(recording("guitar"))[:40]
    alone_S = inverted(mel_TF, FEW)
    padded_BTF = np.full((2, 300, 128), 0.9, np.float32)
    padded_BTF[0, :40], padded_BTF[1, :200], padded_BTF[:, 250:] = mel_TF, 0.6, np.nan
    batch_BS = np.asarray(mel_to_samples(padded_BTF, np.array([40, 200], np.int32), KEY, MEL, FEW))
    assert batch_BS.shape == (2, 300 * 512)
    np.testing.assert_allclose(batch_BS[0, : 40 * 512], alone_S, atol=1e-5)
    assert not batch_BS[0, 40 * 512 :].any() and not batch_BS[1, 200 * 512 :].any()
    assert np.isfinite(batch_BS).all() and batch_BS[1, : 200 * 512].std() > 0.01


@pytest.mark.parametrize("n_frames", [0, 1, 2, 127, 129])
def test_any_number_of_frames_will_do_and_silence_is_silent(n_frames: int) -> None:
    samples_S = inverted(np.zeros((n_frames, 128), np.float32), FEW)
    assert samples_S.shape == (n_frames * 512,) and not samples_S.any()
    samples_S = inverted(np.full((n_frames, 128), 0.5, np.float32), FEW)
    assert samples_S.shape == (n_frames * 512,) and np.isfinite(samples_S).all()
    assert not n_frames or samples_S.std() > 1e-3


def test_other_mels_are_inverted_too() -> None:
    other = MelSettings(
        sample_rate_hz=16_000, n_fft=1024, hop=300, n_mels=80, floor_db=-100.0, ceiling_db=20.0
    )
    samples_S = recording("guitar")[:30_000]
    mel_TF = mel_spectrogram(samples_S, other)[:100]
    found = mel_to_samples(mel_TF[None], np.array([100], np.int32), KEY, other, GriffinLimSettings())
    again_TF = mel_spectrogram(np.asarray(found)[0], other)[:100]
    wanted, heard = (np.sqrt(np.asarray(band_power(mel, other))) for mel in (mel_TF, again_TF))
    assert np.linalg.norm(heard - wanted) < 0.1 * np.linalg.norm(wanted)


def test_memory_grows_by_a_few_waveforms_and_no_spectrum() -> None:
    """Iterations on spectra hold three, 8 kB a frame each; here it is a few times 2 kB, a frame's samples."""

    def temporary_bytes(n_frames: int) -> int:
        shapes = [jax.ShapeDtypeStruct((1, n_frames, 1025), jnp.float32)] * 2
        compiled = griffin_lim.lower(*shapes, 512, FEW).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    waveform_bytes = 1024 * 512 * 4
    assert temporary_bytes(2048) - temporary_bytes(1024) < 7 * waveform_bytes


def test_settings_that_cannot_work_are_refused() -> None:
    for bad in ({"iterations": -1}, {"momentum": -0.1}, {"momentum": 2.0}):
        with pytest.raises(UsageError):
            GriffinLimSettings(**bad)
