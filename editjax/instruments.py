"""Synthesised notes: a timbre, a pitch, a length and a force come in, float32 samples go out.

Every pitched family runs on one of two engines. *Harmonic*: one spectrum per period of the note, turned into
waveforms by a single inverse FFT and read with a phase that may carry vibrato; with decays per harmonic this
is Karplus and Strong's plucked string (Computer Music Journal 7(2), 1983) in closed form, with a formant
envelope it is a voice. *Modal*: a few decaying sines at inharmonic ratios (bars, bells, drum heads). The
electric piano is two-operator FM (Chowning, JAES 21(7), 1973). A timbre's numbers are drawn anew for every
piece, so two pieces with the same family do not share a sound.
"""

from typing import NamedTuple

import numpy as np

HARMONIC_FAMILIES = ("piano", "guitar", "organ", "strings", "flute", "brass", "voice", "synth", "bass")
MODAL_FAMILIES = ("marimba", "bell")
PITCHED_FAMILIES = (*HARMONIC_FAMILIES, *MODAL_FAMILIES, "electric")
DRUMS = ("kick", "snare", "hat", "tom", "rim", "cymbal")
# Families that ring by themselves: their notes are struck or plucked and then only damped.
STRUCK_FAMILIES = ("piano", "guitar", "marimba", "bell", "electric", "bass")
# MIDI ranges in which a family is written for.
RANGES = {
    "piano": (43, 88),
    "guitar": (43, 79),
    "organ": (43, 84),
    "strings": (48, 84),
    "flute": (60, 91),
    "brass": (50, 78),
    "voice": (50, 76),
    "synth": (48, 84),
    "bass": (28, 50),
    "marimba": (52, 88),
    "bell": (64, 93),
    "electric": (43, 84),
}
LENGTH_CLASSES_S = (0.3, 0.6, 1.2, 2.4, 4.8)
FORCE_CLASSES = (0.45, 0.8)
VARIANTS = 2
MAX_HARMONICS = 40
MAX_SPECTRUM_ROWS = 400


class Timbre(NamedTuple):
    """One instrument of one piece; every number is drawn by `draw_timbre`.

    `amplitude_K` are the harmonics' strengths at MIDI note 60, `decay_per_s` and `decay_slope` the decay of
    the first harmonic and its growth with harmonic number, `swell_s` the time in which the harmonics open,
    `noise` the strength of breath, bow or hammer, `release_s` what a note needs to stop.
    """

    family: str
    amplitude_K: np.ndarray
    formants_hz: tuple[float, ...]
    attack_s: float
    release_s: float
    decay_per_s: float
    decay_slope: float
    swell_s: float
    vibrato_cents: float
    vibrato_hz: float
    noise: float
    noise_decay_s: float
    fm_ratio: float
    fm_index: float
    ratios_K: np.ndarray
    detune_cents: float


def draw_timbre(family: str, rng: np.random.Generator) -> Timbre:
    """A random member of a family: spectral envelope, attack, decay, vibrato, noise and detuning."""
    rolloff, attack_s, release_s, decay, slope, swell_s, vibrato_cents, noise, noise_decay_s = (
        _FAMILY_CENTRES[family]
    )
    k = np.arange(1, MAX_HARMONICS + 1)
    amplitude_K = k ** -(rolloff * rng.uniform(0.8, 1.25)) * np.exp(rng.normal(0.0, 0.45, MAX_HARMONICS))
    if family in ("guitar", "bass", "piano"):
        # A string excited at a fraction of its length lacks the harmonics with a node there.
        amplitude_K = amplitude_K * (0.08 + np.abs(np.sin(np.pi * k * rng.uniform(0.09, 0.38))))
    if family == "organ":
        drawbars = rng.uniform(0.0, 1.0, MAX_HARMONICS) ** 2
        amplitude_K = np.where(np.isin(k, (1, 2, 3, 4, 6, 8)), 0.15 + drawbars, 0.0)
    if family == "synth" and rng.random() < 0.5:
        amplitude_K = np.where(k % 2 == 1, amplitude_K, amplitude_K * rng.uniform(0.0, 0.3))
    formants: tuple[float, ...] = ()
    if family in ("voice", "strings", "brass"):
        formants = tuple(rng.uniform(lo, hi) for lo, hi in ((350, 850), (900, 2000), (2300, 3200)))
    ratios_K = np.array(_MODAL_RATIOS["marimba" if family == "marimba" else "bell"])
    # Overtones differ from bar to bar; the prime stays in tune.
    ratios_K = np.where(ratios_K == 1.0, 1.0, ratios_K * np.exp(rng.normal(0.0, 0.012, len(ratios_K))))
    return Timbre(
        family=family,
        amplitude_K=amplitude_K.astype(np.float32),
        formants_hz=formants,
        attack_s=attack_s * rng.uniform(0.6, 1.6),
        release_s=release_s * rng.uniform(0.7, 1.4),
        decay_per_s=decay * rng.uniform(0.6, 1.6),
        decay_slope=slope * rng.uniform(0.5, 1.8),
        swell_s=swell_s * rng.uniform(0.5, 1.6),
        vibrato_cents=vibrato_cents * rng.uniform(0.3, 1.5),
        vibrato_hz=rng.uniform(4.2, 6.6),
        noise=noise * rng.uniform(0.3, 1.7),
        noise_decay_s=noise_decay_s * rng.uniform(0.6, 1.6),
        fm_ratio=float(rng.choice((1.0, 1.0, 2.0, 3.0, 14.0))),
        fm_index=rng.uniform(0.6, 2.6),
        ratios_K=ratios_K,
        detune_cents=rng.uniform(0.0, 9.0) if family in ("piano", "strings", "organ", "synth") else 0.0,
    )


class NoteBank:
    """The rendered notes of one piece: each (timbre, pitch, length class, force class, variant) is made once.

    Lives for one piece: its cache is what makes many takes of the same score cheap.
    """

    def __init__(self, rate_hz: int, seed: int):
        self._rate_hz = rate_hz
        self._seed = seed
        self._cache: dict[tuple, np.ndarray] = {}

    def pitched(
        self, part: int, timbre: Timbre, pitch: int, length_s: float, force: float, variant: int
    ) -> np.ndarray:
        """Samples of a note at unit force and at least `length_s` long (up to the longest class), unfaded."""
        length_class = next((i for i, s in enumerate(LENGTH_CLASSES_S) if s >= length_s), -1)
        force_class = int(force >= 0.62)
        key = (part, pitch, length_class, force_class, variant)
        if key not in self._cache:
            rng = np.random.default_rng((self._seed, part, pitch, force_class, variant))
            self._cache[key] = render_note(
                timbre, pitch, LENGTH_CLASSES_S[length_class], FORCE_CLASSES[force_class], self._rate_hz, rng
            )
        return self._cache[key]

    def drum(self, kit: int, name: str, variant: int) -> np.ndarray:
        """Samples of a stroke on a drum of a kit (a kit is a number: its sizes and tones follow from it)."""
        key = (kit, name, variant)
        if key not in self._cache:
            kit_rng = np.random.default_rng((self._seed, kit, DRUMS.index(name)))
            self._cache[key] = render_drum(
                name, self._rate_hz, kit_rng, np.random.default_rng((self._seed, kit, variant))
            )
        return self._cache[key]


def render_note(
    timbre: Timbre, pitch: float, length_s: float, force: float, rate_hz: int, rng: np.random.Generator
) -> np.ndarray:
    """One note, peak near 0.5 at any pitch, `length_s` plus its release long, without the release fade."""
    n_samples = int((length_s + timbre.release_s) * rate_hz)
    f0_hz = 440.0 * 2.0 ** ((pitch - 69.0) / 12.0)
    time_S = np.arange(n_samples, dtype=np.float32) / np.float32(rate_hz)
    if timbre.family in MODAL_FAMILIES:
        wave_S = _modal(timbre, f0_hz, force, time_S, rate_hz)
    elif timbre.family == "electric":
        wave_S = _frequency_modulation(timbre, f0_hz, force, time_S)
    else:
        wave_S = _harmonic(timbre, f0_hz, force, time_S, rate_hz, rng)
    wave_S *= 0.5 / max(float(np.abs(wave_S).max()), 1e-6)
    wave_S += _note_noise(timbre, f0_hz, force, time_S, rate_hz, rng)
    attack = min(n_samples, max(2, int(timbre.attack_s * (1.5 - 0.7 * force) * rate_hz)))
    wave_S[:attack] *= np.sin(np.linspace(0.0, np.pi / 2, attack, dtype=np.float32)) ** 2
    return wave_S


def render_drum(
    name: str, rate_hz: int, kit_rng: np.random.Generator, rng: np.random.Generator
) -> np.ndarray:
    """One drum stroke, peak near 0.5; `kit_rng` decides the drum, `rng` what strokes differ in."""
    length_s, tone, low_hz, noise_band_hz = _DRUM_SHAPES[name]
    n_samples = int(length_s * rate_hz)
    time_S = np.arange(n_samples, dtype=np.float32) / np.float32(rate_hz)
    low_hz = low_hz * kit_rng.uniform(0.8, 1.3)
    decay_s = length_s * kit_rng.uniform(0.12, 0.28)
    sweep_S = low_hz * time_S + low_hz * kit_rng.uniform(0.01, 0.05) * (1 - np.exp(-time_S / 0.03))
    body_S = np.sin(2 * np.pi * sweep_S) * np.exp(-time_S / decay_s)
    band_hz = noise_band_hz * kit_rng.uniform(0.7, 1.3)
    hiss_S = band_noise(n_samples, band_hz, 1.2, rate_hz, rng)
    hiss_S *= np.exp(-time_S / (decay_s * kit_rng.uniform(0.5, 1.2)))
    wave_S = (tone * body_S + (1.0 - tone) * hiss_S).astype(np.float32)
    return wave_S * np.float32(0.5 / max(float(np.abs(wave_S).max()), 1e-6))


def band_noise(
    n_samples: int, centre_hz: float, octaves: float, rate_hz: int, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian noise in a band (a bell over log frequency `octaves` wide), shaped in the frequency domain."""
    size = 1 << max(4, (n_samples - 1).bit_length())
    freqs_hz = np.fft.rfftfreq(size, 1.0 / rate_hz).astype(np.float32)
    shape = np.exp(-0.5 * (np.log2(np.maximum(freqs_hz, 10.0) / centre_hz) / octaves) ** 2)
    shape = shape.astype(np.float32)
    spectrum = np.empty(len(freqs_hz), np.complex64)
    spectrum.real = rng.standard_normal(len(freqs_hz), dtype=np.float32) * shape
    spectrum.imag = rng.standard_normal(len(freqs_hz), dtype=np.float32) * shape
    wave_S = np.fft.irfft(spectrum, size)[:n_samples].astype(np.float32)
    return wave_S * np.float32(1.0 / max(float(wave_S.std()), 1e-9))


# Per family: roll-off exponent, attack, release, decay (1/s), its growth per harmonic, swell, vibrato in
# cents, noise strength, noise decay (seconds).
_FAMILY_CENTRES = {
    "piano": (1.5, 0.003, 0.18, 0.9, 0.10, 0.0, 0.0, 0.03, 0.03),
    "guitar": (1.0, 0.002, 0.12, 1.3, 0.14, 0.0, 2.0, 0.03, 0.02),
    "organ": (1.0, 0.02, 0.08, 0.0, 0.0, 0.0, 2.0, 0.01, 0.05),
    "strings": (1.2, 0.07, 0.16, 0.0, 0.0, 0.08, 14.0, 0.02, 9.0),
    "flute": (2.4, 0.045, 0.09, 0.0, 0.0, 0.05, 12.0, 0.05, 9.0),
    "brass": (0.8, 0.03, 0.10, 0.0, 0.0, 0.06, 7.0, 0.01, 0.1),
    "voice": (1.2, 0.06, 0.12, 0.0, 0.0, 0.04, 22.0, 0.02, 9.0),
    "synth": (0.9, 0.012, 0.12, 0.3, 0.03, 0.01, 3.0, 0.0, 0.1),
    "bass": (1.4, 0.004, 0.08, 1.1, 0.20, 0.0, 0.0, 0.03, 0.02),
    "marimba": (1.0, 0.002, 0.25, 4.0, 0.8, 0.0, 0.0, 0.04, 0.015),
    "bell": (1.0, 0.001, 0.40, 1.2, 0.5, 0.0, 0.0, 0.01, 0.01),
    "electric": (1.0, 0.003, 0.12, 1.2, 0.3, 0.0, 2.0, 0.01, 0.01),
}
# Partials of a tuned bar and of a bell (hum, prime, tierce, quint and octave), relative to the prime.
_MODAL_RATIOS = {"marimba": (1.0, 3.93, 9.2, 10.6), "bell": (0.5, 1.0, 1.19, 2.0, 2.74, 3.76)}
# Per drum: length (seconds), share of the tone against the hiss, lowest tone, centre of the hiss (Hz).
_DRUM_SHAPES = {
    "kick": (0.45, 0.93, 52.0, 1800.0),
    "snare": (0.32, 0.35, 185.0, 3200.0),
    "hat": (0.16, 0.0, 400.0, 8500.0),
    "tom": (0.5, 0.9, 105.0, 900.0),
    "rim": (0.1, 0.5, 950.0, 4200.0),
    "cymbal": (1.6, 0.0, 300.0, 6500.0),
}


def _harmonic(
    timbre: Timbre, f0_hz: float, force: float, time_S: np.ndarray, rate_hz: int, rng: np.random.Generator
) -> np.ndarray:
    """Reads one period after another from a table whose rows are the note's changing spectrum."""
    n_harmonics = int(min(MAX_HARMONICS, max(1, 0.46 * rate_hz // f0_hz)))
    phase_S = _phase(timbre, f0_hz, time_S, rng)
    n_periods = int(phase_S[-1]) + 2
    repeat = -(-n_periods // MAX_SPECTRUM_ROWS)
    row_time_M = np.arange(0, n_periods, repeat, dtype=np.float32)[:, None] / np.float32(f0_hz)
    k = np.arange(1, n_harmonics + 1, dtype=np.float32)
    decay = (
        timbre.decay_per_s
        * (f0_hz / 261.6) ** 0.5
        * (1.0 + timbre.decay_slope * (k - 1) * (f0_hz / 261.6) ** 0.5)
    )
    closed = (1.6 - force) * 0.12 + 0.5 * np.exp(-row_time_M / max(timbre.swell_s, 1e-3)) * (
        timbre.swell_s > 0
    )
    level_MK = np.exp(-decay * row_time_M - closed * (k - 1))
    level_MK *= timbre.amplitude_K[:n_harmonics] * _formant_gain(timbre, f0_hz * k)
    period = max(32, 1 << (4 * n_harmonics - 1).bit_length())
    spectrum_MK = np.zeros((len(row_time_M), period // 2 + 1), np.complex64)
    spectrum_MK[:, 1 : n_harmonics + 1] = level_MK * np.exp(2j * np.pi * rng.random(n_harmonics))
    table = np.fft.irfft(spectrum_MK, period, axis=1).astype(np.float32)
    table = np.append(np.repeat(table, repeat, axis=0)[:n_periods], np.float32(0.0))
    wave_S = _read(table, phase_S * period)
    if timbre.detune_cents > 0.5:
        second_S = phase_S * 2.0 ** (-timbre.detune_cents / 1200.0)
        wave_S = wave_S + 0.7 * _read(table, second_S * period)
    return wave_S


def _read(table: np.ndarray, position_S: np.ndarray) -> np.ndarray:
    """Linear interpolation in a flat table at positions that never reach its last entry."""
    index_S = position_S.astype(np.int64)
    low_S = table[index_S]
    return low_S + (table[index_S + 1] - low_S) * (position_S - index_S).astype(np.float32)


def _phase(timbre: Timbre, f0_hz: float, time_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Periods passed since the start of the note, with vibrato that sets in after a quarter of a second."""
    phase_S = f0_hz * time_S.astype(np.float64)
    if timbre.vibrato_cents < 0.5:
        return phase_S
    rate = timbre.vibrato_hz * rng.uniform(0.92, 1.08)
    depth = f0_hz * timbre.vibrato_cents / 1731.0 / (2 * np.pi * rate)
    onset_S = np.minimum(1.0, time_S * 4.0) ** 2
    return phase_S + depth * onset_S * (1.0 - np.cos(2 * np.pi * rate * time_S))


def _formant_gain(timbre: Timbre, freqs_hz: np.ndarray) -> np.ndarray:
    if not timbre.formants_hz:
        return np.ones_like(freqs_hz)
    sharpness = 6.0 if timbre.family == "voice" else 2.0
    gain = np.full_like(freqs_hz, 0.06 if timbre.family == "voice" else 0.4)
    for strength, formant_hz in zip((1.0, 0.6, 0.3), timbre.formants_hz, strict=True):
        gain = gain + strength * np.exp(-sharpness * np.log2(freqs_hz / formant_hz) ** 2)
    return gain


def _modal(timbre: Timbre, f0_hz: float, force: float, time_S: np.ndarray, rate_hz: int) -> np.ndarray:
    wave_S = np.zeros_like(time_S)
    for i, ratio in enumerate(timbre.ratios_K):
        freq_hz = f0_hz * ratio
        if freq_hz > 0.45 * rate_hz:
            break
        decay = timbre.decay_per_s * (1.0 + timbre.decay_slope * i) * (f0_hz / 261.6) ** 0.6
        level = timbre.amplitude_K[i] ** 0.5 * (0.4 + 0.6 * force) ** i
        wave_S += (level * np.exp(-decay * time_S) * np.sin(2 * np.pi * freq_hz * time_S)).astype(np.float32)
    return wave_S


def _frequency_modulation(timbre: Timbre, f0_hz: float, force: float, time_S: np.ndarray) -> np.ndarray:
    decay = timbre.decay_per_s * (f0_hz / 261.6) ** 0.4
    index_S = timbre.fm_index * force * np.exp(-3.0 * decay * time_S) * (0.12 if timbre.fm_ratio > 4 else 1.0)
    modulator_S = index_S * np.sin(2 * np.pi * f0_hz * timbre.fm_ratio * time_S)
    return (np.exp(-decay * time_S) * np.sin(2 * np.pi * f0_hz * time_S + modulator_S)).astype(np.float32)


def _note_noise(
    timbre: Timbre, f0_hz: float, force: float, time_S: np.ndarray, rate_hz: int, rng: np.random.Generator
) -> np.ndarray:
    """Breath, bow or hammer: band noise above the fundamental, dying away with `noise_decay_s`."""
    if timbre.noise <= 0.0:
        return np.zeros_like(time_S)
    active = min(len(time_S), int(timbre.noise_decay_s * 6 * rate_hz) + 1)
    hiss_S = np.zeros_like(time_S)
    centre_hz = float(np.clip(4.0 * f0_hz, 600.0, 5000.0))
    hiss_S[:active] = band_noise(active, centre_hz, 1.0, rate_hz, rng)
    return hiss_S * (0.25 * timbre.noise * (0.5 + force) * np.exp(-time_S / timbre.noise_decay_s)).astype(
        np.float32
    )
