"""Effects that no original samples have: spans of a recording changed to sound like a wanted mel.

Comes in: a recording, its mel, the wanted mel and which frames are to sound like it. Goes out: a `Reader` of
the recording with these spans changed, and not a bit elsewhere.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from editjax.audio import BLOCK_SAMPLES, Reader, resample_stream
from editjax.crossfade import Quantum
from editjax.formats import INTEGER_BITS
from editjax.mel import FrameGrid, MelSettings
from editjax.vocoder import Vocoder, fill

AROUND_S = 0.05
"""What a resampler must hear on either side of a span."""


class Change(NamedTuple):
    """What is added to every channel from a sample on, (S,), full scale being 1."""

    start: int
    added_S: np.ndarray


class Changed(Reader):
    """A recording with something added to some spans, in its own number type."""

    def __init__(self, reader: Reader, changes: Sequence[Change]) -> None:
        self._reader, self._changes = reader, changes
        self.info, self.dtype, self.tags = reader.info, reader.dtype, reader.tags
        self._grid = Quantum.of(self.dtype, INTEGER_BITS.get(self.info.subtype, 16))
        self._full_scale = 1.0 if self.dtype.kind == "f" else 2.0 ** (8 * self.dtype.itemsize - 1)

    @property
    def frames(self) -> int:
        """The number of samples a channel."""
        return self._reader.frames

    def read(self, start_sample: int, stop_sample: int) -> np.ndarray:
        """Samples [start, stop) as (S, C). Raises as the recording does."""
        samples_SC = self._reader.read(start_sample, stop_sample)
        for start, added_S in self._changes:
            first = max(start, start_sample)
            last = min(start + len(added_S), stop_sample)
            if first < last:
                rows = slice(first - start_sample, last - start_sample)
                added_S1 = self._full_scale * added_S[first - start : last - start, None].astype(np.float64)
                samples_SC[rows] = self._grid.round(samples_SC[rows] + added_S1).astype(self.dtype)
        return samples_SC

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """The whole recording in order."""
        for start in range(0, self.frames, block_samples):
            yield self.read(start, min(start + block_samples, self.frames))

    def close(self) -> None:
        """Closes the recording."""
        self._reader.close()


def with_effects(
    reader: Reader,
    wanted_TF: np.ndarray,
    spans: Iterable[tuple[int, int]],
    mel: MelSettings = MelSettings(),
    vocoder: Vocoder | None = None,
) -> Changed:
    """The recording with frames [start, stop) of `spans` sounding like the mel (T, F), by `vocoder.fill`.

    Made at the mel rate in mono, and the difference added to every channel: what a mel does not tell, sides
    and what lies above it, stays. Holds the recording at the mel rate in memory, 5 MB a minute.
    """
    spans, rate_hz = list(spans), reader.info.sample_rate_hz
    mono_S = np.concatenate([*resample_stream(reader.blocks(), rate_hz, mel.sample_rate_hz), np.zeros(0)])
    difference_S = fill(mono_S, wanted_TF, spans, mel, vocoder) - mono_S.astype(np.float32)
    grid = mel.grid(rate_hz)
    changes = [_change(difference_S, span, grid, mel, reader.frames) for span in spans]
    return Changed(reader, [change for change in changes if len(change.added_S)])


def _change(
    difference_S: np.ndarray, span: tuple[int, int], grid: FrameGrid, mel: MelSettings, frames: int
) -> Change:
    """The difference in a span at the recording's rate, resampled from where samples of both rates meet."""
    start, stop = (min(int(grid.sample_of_frame(frame)), frames) for frame in span)
    shared = math.gcd(mel.sample_rate_hz, grid.source_rate_hz)
    step, source_step = mel.sample_rate_hz // shared, grid.source_rate_hz // shared
    around = math.ceil(AROUND_S * mel.sample_rate_hz)
    steps = max(0, span[0] * mel.hop - around) // step
    heard_S = difference_S[steps * step : span[1] * mel.hop + around]
    resampled_S = np.concatenate(
        [*resample_stream([heard_S], mel.sample_rate_hz, grid.source_rate_hz), np.zeros(0, np.float32)]
    )
    first = steps * source_step
    return Change(start, resampled_S[start - first : stop - first])
