"""Recordings of which it is known where a compressed excerpt of the one lies in the other, as latents.

A recording is a sum of decaying events on a pulse, a function of continuous time, so that an excerpt is had
at any ratio without resampling.
"""

from typing import NamedTuple

import numpy as np

from editjax.models.window import WindowSettings

COLOURS = 12
DECAY_S = 0.25
NOISE = 0.1
TINY = WindowSettings(
    frames_per_second=25.0, total_s=24.0, channels=16, match_width=16, selector_width=32, part_width=8,
    width=32, heads=2, composer_layers=1, window=8, dropout=0.0,
)  # fmt: skip


class Planted(NamedTuple):
    """Latents, and the windows that belong together: starts in frames, the input's ratio."""

    input_BTD: np.ndarray
    target_BTD: np.ndarray
    start_input_B: np.ndarray
    start_target_B: np.ndarray
    ratio_B: np.ndarray


def planted(settings: WindowSettings, batch: int, seed: int, noise: float = NOISE) -> Planted:
    """`batch` pairs of recordings, the target with a window's length of the input, compressed, in it."""
    rng = np.random.default_rng(seed)
    rows = [_one(settings, rng, noise) for _ in range(batch)]
    return Planted(*(np.stack(column).astype(np.float32) for column in zip(*rows, strict=True)))


def _one(settings: WindowSettings, rng: np.random.Generator, noise: float) -> tuple:
    rate, total_s, window_s = settings.frames_per_second, settings.total_s, settings.window_s
    ratio = rng.uniform(1.0, min(settings.most_ratio, total_s / window_s))
    start_s = rng.uniform(0.0, total_s - window_s * ratio)
    at_s = rng.uniform(0.0, total_s - window_s)
    colours_CD = rng.normal(size=(COLOURS, settings.channels))
    time_T = np.arange(settings.frames) / rate
    piece, around = _piece(rng, colours_CD, total_s), _piece(rng, colours_CD, total_s)
    inside_T = (time_T >= at_s) & (time_T < at_s + window_s)
    target_TD = np.where(
        inside_T[:, None], _played(piece, start_s + ratio * (time_T - at_s)), _played(around, time_T)
    )
    input_TD = _played(piece, time_T)
    noisy = [x + noise * x.std() * rng.normal(size=x.shape) for x in (input_TD, target_TD)]
    return *noisy, start_s * rate, at_s * rate, ratio


def _piece(rng: np.random.Generator, colours_CD: np.ndarray, total_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Events at places of a pulse, of a few colours each piece: their times (E,) and what they add (E, D)."""
    pulse_s = rng.uniform(0.25, 0.5)
    place_E = np.arange(-4, total_s / pulse_s + 4)
    place_E = place_E[rng.random(len(place_E)) < 0.7]
    colour_E = rng.integers(0, len(colours_CD), len(place_E))
    return place_E * pulse_s, colours_CD[colour_E] * rng.uniform(0.5, 1.5, (len(place_E), 1))


def _played(piece: tuple[np.ndarray, np.ndarray], time_T: np.ndarray) -> np.ndarray:
    since_TE = time_T[:, None] - piece[0][None]
    return np.where(since_TE >= 0, np.exp(-np.maximum(since_TE, 0.0) / DECAY_S), 0.0) @ piece[1]
