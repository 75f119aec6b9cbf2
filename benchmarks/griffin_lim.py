"""Mel or magnitudes → samples of real music on one core: ours against librosa and a loop in torch.

*held* is fast Griffin–Lim on given magnitudes, from the same phases (momentum 0.99, 32 iterations); *mel* is
the whole way from the mel, where ours holds to the mel and librosa to an estimate: 32 iterations, and ours at
its own 64. `convergence_db` says how far the mel magnitudes of the result are from those wanted, over these.
The music is that of the tests, three clips of three seconds by turns. CPU seconds are medians.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from report import finish, installed, median_seconds, options, require_agreement, use_one_core

use_one_core()

import jax  # noqa: E402
import librosa  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402

from editjax.mel import MelSettings, hann_window, mel_spectrogram  # noqa: E402
from editjax.models.griffin_lim import (  # noqa: E402
    GriffinLimSettings,
    band_power,
    bin_power,
    griffin_lim,
    mel_to_samples,
)
from editjax.models.hifigan import HifiGanSettings, init  # noqa: E402
from editjax.vocoder import Vocoder, fill, waveform  # noqa: E402

MEL = MelSettings()
RECORDINGS = Path(__file__).parents[1] / "tests" / "recordings"
ITERATIONS = 32
MOMENTUM = 0.99
FEW = 2
TOLERANCE = 1e-3
TAIL_SAMPLES = 8192


def main() -> None:
    """Prove agreement, then time every case at every length."""
    chosen = options(__doc__)
    torch_too = installed("torch")
    lengths_s, rounds = ((4,), 1) if chosen.quick else ((10, 60), 3)
    held(music(lengths_s[0]), torch_too, prove=True)
    rows, seconds, convergence = [], {}, {}
    for length_s in lengths_s:
        samples_S = music(length_s)
        timed = held(samples_S, torch_too) | from_mel(samples_S)
        if not chosen.quick:
            timed["fill, 1 s of it"] = partial(fill, samples_S, mel_of(samples_S), [(100, 143)])
            timed["vocoder V1, random weights"] = partial(waveform, mel_of(samples_S), MEL, vocoder())
        seconds = median_seconds(timed, rounds)
        convergence = {
            name: convergence_db(case, samples_S) for name, case in timed.items() if "vocoder" not in name
        }
        rows += [
            {
                "audio_s": length_s,
                "case": name,
                "cpu_s": taken,
                "cpu_s / audio_s": taken / length_s,
                "convergence_db": convergence.get(name),
            }
            for name, taken in seconds.items()
        ]
    ratios = {
        f"librosa / ours, {way}": seconds[f"{way}, librosa"] / seconds[f"{way}, ours"]
        for way in ("held", "mel")
    }
    if torch_too:
        ratios["torch / ours, held"] = seconds["held, torch"] / seconds["held, ours"]
    ratios["times real time, ours, 64 iterations"] = lengths_s[-1] / seconds["mel, ours, 64 iterations"]
    ratios["dB nearer than librosa"] = convergence["mel, librosa"] - convergence["mel, ours"]
    packages = ["numpy", "scipy", "librosa", "numba", "jax", *(["torch"] if torch_too else [])]
    finish("griffin_lim", rows, ratios, packages, chosen.out)


def music(length_s: float) -> np.ndarray:
    """The clips, repeated to a length of whole frames."""
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(RECORDINGS.glob("*.flac"))]
    whole_S = np.concatenate(clips)
    n_samples = int(length_s * MEL.frames_per_second) * MEL.hop
    return np.tile(whole_S, -(-n_samples // len(whole_S)))[:n_samples]


def mel_of(samples_S: np.ndarray) -> np.ndarray:
    return mel_spectrogram(samples_S)[: len(samples_S) // MEL.hop]


def held(samples_S: np.ndarray, torch_too: bool, prove: bool = False) -> dict[str, Callable[[], np.ndarray]]:
    """Magnitudes estimated from the mel → samples, by name; `prove` ends the benchmark unless all agree."""
    power_BTF = band_power(mel_of(samples_S)[None], MEL)
    magnitude_TK = np.sqrt(np.asarray(bin_power(power_BTF, MEL)))[0]
    phase_TK = np.zeros_like(magnitude_TK)

    def ours(iterations: int = ITERATIONS) -> np.ndarray:
        settings = GriffinLimSettings(iterations, MOMENTUM)
        return np.asarray(griffin_lim(magnitude_TK[None], phase_TK[None], MEL.hop, settings))[0]

    def theirs(iterations: int = ITERATIONS) -> np.ndarray:
        return librosa.griffinlim(
            magnitude_TK.T, n_iter=iterations, hop_length=MEL.hop, momentum=MOMENTUM, pad_mode="constant",
            init=None, length=len(samples_S) - 1,
        )  # fmt: skip

    cases: dict[str, Callable[..., np.ndarray]] = {"held, ours": ours, "held, librosa": theirs}
    if torch_too:
        cases["held, torch"] = partial(torch_griffin_lim, magnitude_TK, phase_TK)
    if prove:  # by few iterations: from phases of zero much cancels, and then rounding counts
        wanted_S = ours(FEW)[:-TAIL_SAMPLES]
        for name, case in cases.items():
            off = np.linalg.norm(case(FEW)[: len(wanted_S)] - wanted_S) / np.linalg.norm(wanted_S)
            require_agreement(name, float(off), TOLERANCE)
    return cases


def from_mel(samples_S: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """The mel → samples, by name."""
    mel_TF = mel_of(samples_S)
    frames_B, key = np.array([len(mel_TF)], np.int32), jax.random.key(0)
    power_FT = np.asarray(band_power(mel_TF, MEL)).T

    def ours(iterations: int) -> np.ndarray:
        settings = GriffinLimSettings(iterations)
        return np.asarray(mel_to_samples(mel_TF[None], frames_B, key, MEL, settings))[0]

    def theirs() -> np.ndarray:
        return librosa.feature.inverse.mel_to_audio(
            power_FT, sr=MEL.sample_rate_hz, n_fft=MEL.n_fft, hop_length=MEL.hop, n_iter=ITERATIONS,
            pad_mode="constant", length=len(samples_S) - 1,
        )  # fmt: skip

    return {
        "mel, ours": partial(ours, ITERATIONS),
        "mel, ours, 64 iterations": partial(ours, 64),
        "mel, librosa": theirs,
    }


def torch_griffin_lim(
    magnitude_TK: np.ndarray, phase_TK: np.ndarray, iterations: int = ITERATIONS
) -> np.ndarray:
    """The same loop with torch.stft and torch.istft."""
    import torch

    torch.set_num_threads(1)
    window, length = torch.from_numpy(hann_window(MEL.n_fft)), len(magnitude_TK) * MEL.hop - 1
    magnitude_KT = torch.from_numpy(np.ascontiguousarray(magnitude_TK.T))
    phase_KT = torch.from_numpy(np.ascontiguousarray(phase_TK.T))

    def samples(spectrum_KT):
        return torch.istft(spectrum_KT, MEL.n_fft, MEL.hop, window=window, length=length)

    spectrum_KT, before_KT = torch.polar(magnitude_KT, phase_KT), 0.0
    for _ in range(iterations):
        found_KT = torch.stft(
            samples(spectrum_KT), MEL.n_fft, MEL.hop, window=window, pad_mode="constant", return_complex=True
        )
        ahead_KT = found_KT - (MOMENTUM / (1.0 + MOMENTUM)) * before_KT
        spectrum_KT = magnitude_KT * ahead_KT / (ahead_KT.abs() + 1e-16)
        before_KT = found_KT
    return samples(spectrum_KT).numpy()


def vocoder() -> Vocoder:
    """The paper's V1 with random weights, which costs what trained ones do."""
    settings = HifiGanSettings()
    return Vocoder(settings, jax.jit(init, static_argnums=0)(settings, jax.random.key(0)))


def convergence_db(case: Callable[[], np.ndarray], samples_S: np.ndarray) -> float:
    """Spectral convergence of the mel magnitudes."""
    made_S = case()
    wanted_TF = mel_of(samples_S)
    found_TF = mel_of(np.pad(made_S, (0, len(samples_S) - len(made_S))).astype(np.float32))
    wanted, found = (np.sqrt(np.asarray(band_power(mel_TF, MEL))) for mel_TF in (wanted_TF, found_TF))
    return float(20.0 * np.log10(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))


if __name__ == "__main__":
    main()
