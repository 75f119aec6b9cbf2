"""Takes that differ as music alone: sections played several times, well and badly, and nothing between.

All takes are equally loud and clean, and no noise is added, so that level tells nothing. In the order of real
sessions the good take comes last; shuffled, its place tells nothing either, and neither does who corrects
whom.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from editjax.composition import compose
from editjax.mel import MelSettings, mel_spectrogram
from editjax.performance import SynthMaterial, TakePlan
from editjax.recordings import scan
from editjax.retakes import draw_material
from editjax.session import Attempt, Script, SimulateSettings, draw_attempt, record

RATE_HZ = 22050
SETTINGS = SimulateSettings(sample_rate_hz=RATE_HZ, min_length_s=20.0, max_length_s=240.0)
GOOD, BAD = "take", "spoiled"


class Takes(NamedTuple):
    """A mel (T, F); which frames belong to a take at all, and which of these to a bad one, bool (T,) each."""

    mel_TF: np.ndarray
    taken_T: np.ndarray
    bad_T: np.ndarray


class Silence:
    """Surroundings in which nothing is heard."""

    def talk(self, length_s: float, rng: np.random.Generator) -> np.ndarray:
        return np.zeros(0, np.float32)

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        return np.zeros(0, np.float32)

    def room_tone(self, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        return np.zeros(n_samples, np.float32)


def takes(seed: int, shuffled: bool, recordings: Path | None = None, split: str = "test") -> Takes:
    """Two to four sections of one piece, each with one to three spoiled takes and a good one."""
    rng = np.random.default_rng((seed, 77))
    lengths_s = rng.uniform(8.0, 20.0, int(rng.integers(2, 5))).tolist()
    library = scan(recordings, split) if recordings else None
    material = draw_material(library, lengths_s, RATE_HZ, rng) if library and rng.random() < 0.5 else None
    material = material or SynthMaterial(compose(lengths_s, rng), RATE_HZ, int(rng.integers(1 << 31)))
    attempts: list[Attempt] = []
    for section, length_s in enumerate(material.section_lengths_s):
        own = [draw_attempt(section, BAD, length_s, rng) for _ in range(int(rng.integers(1, 4)))]
        own.append(Attempt(section, GOOD, TakePlan()))
        attempts += [own[k] for k in rng.permutation(len(own))] if shuffled else own
    script = Script(tuple(attempts), 0.0, slated=False, counts_in=False)
    timeline = record(script, material, Silence(), SETTINGS, rng)
    mel, grid = MelSettings(), MelSettings().grid(RATE_HZ)
    mel_TF = mel_spectrogram(timeline.raw_S, mel)
    taken_T, bad_T = np.zeros(len(mel_TF), bool), np.zeros(len(mel_TF), bool)
    for event in timeline.events:
        if event.kind in (GOOD, BAD):
            rows = slice(grid.frames_in(event.start), grid.frames_in(event.stop))
            taken_T[rows], bad_T[rows] = True, event.kind == BAD
    return Takes(mel_TF, taken_T, bad_T)
