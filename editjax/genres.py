"""Sound shards with genres → what recordings of a genre have in common, as a reference for mixes."""

from pathlib import Path

import numpy as np

from editjax.errors import DataError, UsageError, shown
from editjax.mixing import HIGHEST_HZ, Heard, goal_of, listen
from editjax.sounds import Sounds

GENRE = "genre"
MOST, LONGEST_S = 64, 30.0
"""As many recordings of a genre are heard, and so much of each, from its middle."""


def genre_reference(sounds_dir: str | Path, genre: str) -> Heard:
    """The mean level of each band, in dB, and the mean share of its side, of recordings of a genre.

    Every recording counts alike, however loud it is. Raises UsageError for a genre that no recording has,
    naming those there are, or where the sounds lack what is high; DataError for shards that are damaged.
    """
    with Sounds(sounds_dir) as sounds:
        if sounds.rate_hz < 2 * HIGHEST_HZ:
            raise UsageError(f"{sounds_dir}: at {sounds.rate_hz} Hz; use editjax sounds --rate 44100")
        there = [number for number, entry in enumerate(sounds.entries) if entry.labels.get(GENRE) == genre]
        if not there:
            known = sorted({entry.labels[GENRE] for entry in sounds.entries if GENRE in entry.labels})
            raise UsageError(
                f"{sounds_dir}: no recording is of the genre {shown(genre)}; there are "
                + (", ".join(known) or "no genres: see --layout of editjax sounds")
            )
        heard = [_heard(sounds, number) for number in there[:: -(-len(there) // MOST)]]
    goals = [goal_of(one) for one in heard if one]
    if not goals:
        raise DataError(f"{sounds_dir}: all recordings of the genre {shown(genre)} are silent")
    levels, sides = zip(*goals, strict=True)
    level_F = np.mean([level_F - level_F.mean() for level_F in levels], 0)
    power_F, side_F = 10 ** (level_F / 10), np.mean(sides, 0)
    return Heard((1 - side_F) * power_F, side_F * power_F, 0.0, 0.0, 0.0)


def _heard(sounds: Sounds, number: int) -> Heard | None:
    """What is heard of a recording's middle; None where that is silent."""
    entry, most = sounds.entries[number], round(LONGEST_S * sounds.rate_hz)
    start = max(0, (entry.samples - most) // 2)
    try:
        return listen([sounds.read(number, start, min(entry.samples, start + most), 2)], sounds.rate_hz)
    except DataError:
        return None
