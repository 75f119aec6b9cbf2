"""Mel of mono samples on one core: ours against librosa and torch, the JAX twin, and growth with length.

Peers compute the power mel alone, ours goes on to decibels and [0, 1]; torch is skipped when not installed.
CPU milliseconds are medians, the cases taking turns.
"""

from importlib.util import find_spec

from report import finish, growth_exponent, median_seconds, options, require_agreement, use_one_core

use_one_core()

import librosa  # noqa: E402
import numpy as np  # noqa: E402

from editjax.beats import track_beats  # noqa: E402
from editjax.mel import MelSettings, MelStream, hann_window, mel_filterbank, mel_spectrogram  # noqa: E402
from editjax.models.mel import mel_spectrogram_jax  # noqa: E402

SETTINGS = MelSettings()
TOLERANCE = 1e-4
BLOCK_SAMPLES = 1 << 17


def main() -> None:
    """Prove agreement, then time every case at every length."""
    chosen = options(__doc__)
    lengths_s = (5, 20) if chosen.quick else (10, 60, 600)
    rounds = 3 if chosen.quick else 7
    prove_agreement(noise(lengths_s[0]))
    rows, seconds = [], {}
    for length_s in lengths_s:
        seconds[length_s] = median_seconds(cases(noise(length_s)), rounds)
        rows += [
            {"audio_s": length_s, "case": name, "cpu_ms": 1e3 * taken, "x_real_time": length_s / taken}
            for name, taken in seconds[length_s].items()
        ]
    longest = seconds[lengths_s[-1]]
    ratios = {
        f"{peer} / ours": longest[peer] / longest["ours"] for peer in longest if peer in ("librosa", "torch")
    }
    ratios["librosa / jax twin"] = longest["librosa"] / longest["jax twin"]
    ratios["growth exponent, ours"] = growth_exponent(lengths_s, [seconds[s]["ours"] for s in lengths_s])
    packages = ["numpy", "scipy", "librosa", "jax", *(["torch"] if find_spec("torch") else [])]
    finish("mel", rows, ratios, packages, chosen.out)


def cases(samples_S: np.ndarray) -> dict:
    """What is timed, by name; none keeps its result."""
    mel_TF = mel_spectrogram(samples_S)
    timed = {
        "ours": lambda: mel_spectrogram(samples_S),
        "ours, streaming": lambda: streamed(samples_S),
        "jax twin": lambda: mel_spectrogram_jax(samples_S[None], SETTINGS).block_until_ready(),
        "librosa": lambda: librosa_power(samples_S),
        "beats from the mel": lambda: track_beats(mel_TF),
    }
    if find_spec("torch"):
        timed["torch"] = torch_power(samples_S)
    return timed


def prove_agreement(samples_S: np.ndarray) -> None:
    ours_TF = mel_spectrogram(samples_S)
    powers = {"librosa": lambda: librosa_power(samples_S).T}
    if find_spec("torch"):
        powers["torch"] = lambda: torch_power(samples_S)().numpy().T
    for name, power in powers.items():
        require_agreement(name, float(np.abs(normalised(power()) - ours_TF).max()), TOLERANCE)
    require_agreement("ours, streaming", float(np.abs(streamed(samples_S) - ours_TF).max()), 0.0)
    twin_TF = np.asarray(mel_spectrogram_jax(samples_S[None], SETTINGS))[0]
    require_agreement("jax twin", float(np.abs(twin_TF - ours_TF).max()), TOLERANCE)


def noise(length_s: int) -> np.ndarray:
    """Noise (S,) float32 in [-1, 1], the same every time."""
    generator = np.random.default_rng(0)
    samples_S = 0.1 * generator.standard_normal(length_s * SETTINGS.sample_rate_hz)
    return np.clip(samples_S, -1.0, 1.0).astype(np.float32)


def streamed(samples_S: np.ndarray) -> np.ndarray:
    stream = MelStream(SETTINGS)
    starts = range(0, len(samples_S), BLOCK_SAMPLES)
    pieces = [stream.push(samples_S[start : start + BLOCK_SAMPLES]) for start in starts]
    return np.concatenate([*pieces, stream.finish()])


def librosa_power(samples_S: np.ndarray) -> np.ndarray:
    return librosa.feature.melspectrogram(
        y=samples_S,
        sr=SETTINGS.sample_rate_hz,
        n_fft=SETTINGS.n_fft,
        hop_length=SETTINGS.hop,
        n_mels=SETTINGS.n_mels,
    )


def torch_power(samples_S: np.ndarray):
    """The power mel of torchaudio's recipe, ready to call: stft and a dense filterbank."""
    import torch

    torch.set_num_threads(1)
    samples, window = torch.from_numpy(samples_S), torch.from_numpy(hann_window(SETTINGS.n_fft))
    filters_FK = torch.from_numpy(mel_filterbank(SETTINGS).T.copy())

    def power():
        spectrum = torch.stft(
            samples, SETTINGS.n_fft, SETTINGS.hop, window=window, pad_mode="constant", return_complex=True
        )
        return filters_FK @ (spectrum.real**2 + spectrum.imag**2)

    return power


def normalised(power_TF: np.ndarray) -> np.ndarray:
    decibels_TF = librosa.power_to_db(power_TF, ref=1.0, top_db=None)
    return np.clip((decibels_TF - SETTINGS.floor_db) / (SETTINGS.ceiling_db - SETTINGS.floor_db), 0.0, 1.0)


if __name__ == "__main__":
    main()
