"""What a recording holds besides the music: talk, noises, count-ins, slates, the room and its tone.

A generator and a rate come in, float32 samples (S,) go out, at the level they have beside music of
`TAKE_LEVEL`. Everything is synthesised; `recordings.py` adds real speech and real noises where a folder has
them.
"""

import numpy as np
from scipy import signal

from editjax.instruments import band_noise, render_drum
from editjax.performance import TAKE_LEVEL, Room

SLATE_HZ = 1500.0
SLATE_BEEP_S = 0.09
SLATE_STEP_S = 0.22
VOWELS_HZ = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
    (490, 1350, 1690),
)


def draw_room(rate_hz: int, rng: np.random.Generator) -> Room:
    """A room from almost dry to a small hall: decaying noise, the highs dying first."""
    decay_s = rng.uniform(0.08, 0.55)
    n_samples = int(1.2 * decay_s * rate_hz)
    time_S = np.arange(n_samples, dtype=np.float32) / rate_hz
    tail_S = rng.standard_normal(n_samples, dtype=np.float32) * np.exp(-6.9 * time_S / (1.4 * decay_s))
    tail_S = signal.lfilter((0.35,), (1.0, -0.65), tail_S)
    tail_S[: int(rng.uniform(0.004, 0.02) * rate_hz)] = 0.0
    tail_S /= max(float(np.sqrt(np.square(tail_S).sum())), 1e-9)
    return Room(tail_S.astype(np.float32), float(10 ** (rng.uniform(-26.0, -7.0) / 20)))


def room_tone(n_samples: int, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """The noise floor of a whole session, 42–72 dB below the music: coloured hiss, at times mains hum."""
    tone_S = rng.standard_normal(n_samples, dtype=np.float32)
    pole = np.float32(rng.uniform(0.0, 0.97))
    tone_S = signal.lfilter((np.float32(1.0),), np.array((1.0, -pole), np.float32), tone_S)
    tone_S *= np.float32(1.0 / max(float(tone_S[: 10 * rate_hz].std()), 1e-9))
    if rng.random() < 0.3:
        mains_hz = rng.choice((50.0, 60.0))
        period = round(rate_hz / mains_hz)
        phase_S = 2 * np.pi * np.arange(period) / period
        hum_S = np.sin(phase_S) + 0.5 * np.sin(2 * phase_S) + 0.3 * np.sin(3 * phase_S + 1.0)
        tone_S += np.resize(hum_S.astype(np.float32) * np.float32(rng.uniform(0.3, 1.5)), n_samples)
    return tone_S * np.float32(TAKE_LEVEL * 10 ** (rng.uniform(-72.0, -42.0) / 20))


def talk(length_s: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Babble of one speaker: syllables of moving formants and pitch, noisy consonants, pauses for breath."""
    pitch_hz = float(rng.uniform(85.0, 230.0))
    pieces, left = [], int(length_s * rate_hz)
    while left > 0:
        syllable_S = _syllable(pitch_hz * rng.uniform(0.8, 1.25), rate_hz, rng)
        gap = int(rng.choice((0.0, 0.02, 0.05, 0.25), p=(0.4, 0.3, 0.2, 0.1)) * rate_hz)
        pieces += [syllable_S, np.zeros(gap, np.float32)]
        left -= len(syllable_S) + gap
    return levelled(np.concatenate(pieces), rng.uniform(-13.0, 1.0))


def noise(rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """A click, a bump, a rustle, a breath or a few taps: 0.05–1.5 s."""
    match int(rng.integers(5)):
        case 0:
            wave_S = render_drum("rim", rate_hz, rng, rng)
        case 1:
            wave_S = render_drum("kick", rate_hz, rng, rng)
        case 2:
            wave_S = _rustle(rng.uniform(0.3, 1.5), rate_hz, rng)
        case 3:
            return breath(rate_hz, rng)
        case _:
            taps = [render_drum("rim", rate_hz, rng, rng) for _ in range(int(rng.integers(2, 6)))]
            gaps = [np.zeros(int(rng.uniform(0.02, 0.3) * rate_hz), np.float32) for _ in taps]
            wave_S = np.concatenate([piece for pair in zip(taps, gaps, strict=True) for piece in pair])
    return levelled(wave_S, rng.uniform(-16.0, 3.0))


def breath(rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """A breath drawn before playing: 0.35–0.9 s."""
    n_samples = int(rng.uniform(0.35, 0.9) * rate_hz)
    swell_S = np.sin(np.pi * np.linspace(0.0, 1.0, n_samples) ** rng.uniform(0.6, 1.6)) ** 2
    breath_S = band_noise(n_samples, rng.uniform(900, 2500), 0.8, rate_hz, rng) * swell_S
    return levelled(breath_S.astype(np.float32), rng.uniform(-26.0, -10.0))


def count_in(tempo_bpm: float, beats: int, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Stick clicks or spoken numbers, one a beat; the last is followed by a whole beat of waiting."""
    step = int(60.0 / tempo_bpm * rate_hz)
    counted_S = np.zeros(step * beats, np.float32)
    spoken, pitch_hz = rng.random() < 0.4, float(rng.uniform(90.0, 220.0))
    stick_S = render_drum("rim", rate_hz, rng, rng)
    for beat in range(beats):
        hit_S = _syllable(pitch_hz, rate_hz, rng) if spoken else stick_S
        start = beat * step + int(abs(rng.normal(0.0, 0.006)) * rate_hz)
        stop = min(start + len(hit_S), len(counted_S))
        counted_S[start:stop] += hit_S[: stop - start]
    return levelled(counted_S, rng.uniform(-12.0, -1.0))


def slate(number: int, rate_hz: int) -> np.ndarray:
    """`number` beeps of SLATE_HZ, SLATE_STEP_S apart: says which section follows."""
    time_S = np.arange(int(SLATE_BEEP_S * rate_hz), dtype=np.float32) / rate_hz
    beep_S = np.sin(2 * np.pi * SLATE_HZ * time_S) * np.minimum(
        1.0, 40.0 * np.sin(np.pi * time_S / SLATE_BEEP_S)
    )
    slate_S = np.zeros(int(((number - 1) * SLATE_STEP_S + SLATE_BEEP_S) * rate_hz) + 1, np.float32)
    for i in range(number):
        start = int(i * SLATE_STEP_S * rate_hz)
        slate_S[start : start + len(beep_S)] += beep_S[: len(slate_S) - start]
    return slate_S * np.float32(1.2 * TAKE_LEVEL)


def processed(samples_S: np.ndarray, name: str, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """A span through an equaliser (`eq`: a strong tilt) or a hall (`reverb`), as loud as before."""
    if name == "eq":
        tilt = rng.choice((-1.0, 1.0)) * rng.uniform(0.6, 0.9)
        wet_S = signal.lfilter((1.0, tilt), (1.0,), samples_S)
    else:
        hall = draw_room(rate_hz, rng)
        wet_S = samples_S + signal.oaconvolve(samples_S, hall.response_S)[: len(samples_S)] * rng.uniform(
            0.5, 1.0
        )
    wet_S = wet_S * (np.linalg.norm(samples_S) / max(float(np.linalg.norm(wet_S)), 1e-9))
    edge = max(1, min(int(0.01 * rate_hz), len(samples_S) // 2))
    ramp_S = np.minimum(1.0, np.minimum(np.arange(len(samples_S)), np.arange(len(samples_S))[::-1]) / edge)
    return (samples_S + ramp_S * (wet_S - samples_S)).astype(np.float32)


def levelled(wave_S: np.ndarray, level_db: float) -> np.ndarray:
    """The wave with the louder quarter of its blocks of about 200 samples `level_db` from the music."""
    blocks = max(1, len(wave_S) // 200)
    power = np.sort(np.square(wave_S[: blocks * (len(wave_S) // blocks)].reshape(blocks, -1)).mean(axis=1))
    loud = float(np.sqrt(power[-max(1, blocks // 4) :].mean()))
    scaled_S = wave_S * np.float32(TAKE_LEVEL * 10 ** (level_db / 20) / max(loud, 1e-9))
    # A short click may have a high crest: hold its peak near the music's own.
    return scaled_S * np.float32(min(1.0, 8.0 * TAKE_LEVEL / max(float(np.abs(scaled_S).max()), 1e-9)))


def _syllable(pitch_hz: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """A consonant of noise and a vowel that glides from one set of formants to another."""
    n_samples = int(rng.uniform(0.09, 0.24) * rate_hz)
    x_S = np.linspace(0.0, 1.0, n_samples, dtype=np.float32)
    contour_S = pitch_hz * (1.0 + rng.uniform(-0.15, 0.12) * x_S)
    phase_S = (2 * np.pi / rate_hz * np.cumsum(contour_S)).astype(np.float32)
    first, last = rng.choice(len(VOWELS_HZ), 2)
    k = np.arange(1, int(min(28, 4000 // pitch_hz)) + 1)
    from_K, to_K = _vowel(k * pitch_hz, VOWELS_HZ[first]), _vowel(k * pitch_hz, VOWELS_HZ[last])
    voiced_S = np.zeros(n_samples, np.float32)
    for harmonic, start, stop in zip(k, from_K, to_K, strict=True):
        voiced_S += (start + (stop - start) * x_S) * np.sin(np.float32(harmonic) * phase_S)
    voiced_S *= np.maximum(np.sin(np.pi * np.sqrt(x_S)), 0.0) ** 0.6 / max(
        float(np.abs(voiced_S).max()), 1e-6
    )
    if rng.random() < 0.6:
        hiss = band_noise(int(rng.uniform(0.02, 0.09) * rate_hz), rng.uniform(1500, 6000), 0.7, rate_hz, rng)
        return np.concatenate((np.float32(rng.uniform(0.02, 0.12)) * hiss, voiced_S)).astype(np.float32)
    return voiced_S.astype(np.float32)


def _vowel(freqs_hz: np.ndarray, formants_hz: tuple[int, int, int]) -> np.ndarray:
    gain = np.full(len(freqs_hz), 0.01)
    for strength, formant_hz in zip((1.0, 0.5, 0.2), formants_hz, strict=True):
        gain += strength * np.exp(-0.5 * ((freqs_hz - formant_hz) / (60 + 0.06 * formant_hz)) ** 2)
    return gain * (200.0 / (200.0 + freqs_hz)) ** 0.3


def _rustle(length_s: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    n_samples = int(length_s * rate_hz)
    knots = rng.random(max(3, int(length_s * 14))) ** 3
    envelope_S = np.interp(np.linspace(0, len(knots) - 1, n_samples), np.arange(len(knots)), knots)
    return (band_noise(n_samples, rng.uniform(700, 6000), 1.0, rate_hz, rng) * envelope_S).astype(np.float32)


class SynthSurroundings:
    """Talk, noises and room tone without any files."""

    def __init__(self, rate_hz: int):
        self._rate_hz = rate_hz
        self.used: list[str] = []

    def talk(self, length_s: float, rng: np.random.Generator) -> np.ndarray:
        """Synthetic babble."""
        return talk(length_s, self._rate_hz, rng)

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """A synthetic noise."""
        return noise(self._rate_hz, rng)

    def room_tone(self, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        """A synthetic noise floor."""
        return room_tone(n_samples, self._rate_hz, rng)
