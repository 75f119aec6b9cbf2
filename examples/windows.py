"""The creative agent's three use cases, on music synthesised here: nothing is downloaded.

    python examples/windows.py FOLDER [--model NAME|FOLDER] [--codec NAME|FOLDER]

- rhythm: a slow ballad and the same beat a quarter faster. Compressed as chosen, both should have one tempo.
- harmony: drums alone and a piano. The strength says how much of the tonality is reduced.
- structure: two songs of verse, chorus and bridge in another order. The pairs should take different parts.

Writes both recordings, the piece and a picture of each into FOLDER, and prints what was chosen.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile

from editjax.cli import main as editjax
from editjax.instruments import draw_timbre, render_drum, render_note

RATE_HZ = 24_000
LENGTH_S = 26.0
SCALE = (0, 2, 4, 7, 9)


def drums(tempo_bpm: float, seed: int) -> np.ndarray:
    """Kick on the beat, snare on every second, hats between."""
    rng = np.random.default_rng(seed)
    sound_S, half_s = _silence(), 30.0 / tempo_bpm
    for at in range(int(LENGTH_S / half_s)):
        name = ("kick", "hat", "snare", "hat")[at % 4]
        stroke_S = render_drum(name, RATE_HZ, np.random.default_rng(seed), rng)
        _add(sound_S, stroke_S * (0.4 if name == "hat" else 0.9), at * half_s)
    return sound_S


def melody(tempo_bpm: float, family: str, parts: str, seed: int) -> np.ndarray:
    """A tune; each letter of `parts` is four bars of their own, the same wherever the letter comes back."""
    timbre = draw_timbre(family, np.random.default_rng(seed))
    rng, sound_S, beat_s, at = np.random.default_rng(seed + 1), _silence(), 60.0 / tempo_bpm, 0
    for part in parts:
        tune = np.random.default_rng([seed, ord(part)])
        for _ in range(16):
            pitch = 55 + 3 * (ord(part) % 5) + int(tune.choice(SCALE))
            if tune.random() < 0.8 and (at + 2) * beat_s < LENGTH_S:
                note_S = render_note(timbre, pitch, beat_s, float(tune.uniform(0.4, 0.9)), RATE_HZ, rng)
                _add(sound_S, note_S, at * beat_s)
            at += 1
    return sound_S


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Both recordings of each use case."""
    slow, fast = (drums(bpm, 3) + melody(bpm, "piano", "ABAB", 5) for bpm in (80.0, 100.0))
    songs = [melody(144.0, "guitar", parts, 7) + 0.5 * drums(144.0, 9) for parts in ("ABCA", "CABB")]
    return {
        "rhythm": (slow, fast),
        "harmony": (drums(110.0, 3), melody(110.0, "piano", "ABC", 5)),
        "structure": (songs[0], songs[1]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="window")
    parser.add_argument("--codec", default="codec")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for name, sounds in cases().items():
        paths = [chosen.folder / f"{name}_{side}.wav" for side in ("input", "target")]
        for path, sound_S in zip(paths, sounds, strict=True):
            soundfile.write(path, 0.5 * sound_S / np.abs(sound_S).max(), RATE_HZ)
        out, plot = (chosen.folder / f"{name}_piece.{kind}" for kind in ("wav", "png"))
        models = ["--model", chosen.model, "--codec", chosen.codec]
        print(f"{name}:", flush=True)
        words = ["remix", *map(str, paths), "-o", str(out), "--plot", str(plot), "--overwrite", *models]
        if code := editjax(words):
            return code
    return 0


def _silence() -> np.ndarray:
    return np.zeros(round(LENGTH_S * RATE_HZ), np.float32)


def _add(sound_S: np.ndarray, part_S: np.ndarray, at_s: float) -> None:
    first = round(at_s * RATE_HZ)
    part_S = part_S[: len(sound_S) - first]
    sound_S[first : first + len(part_S)] += part_S


if __name__ == "__main__":
    sys.exit(main())
