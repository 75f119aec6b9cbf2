"""A trained codec to call: sound in, latents or codes out, and back; any length, block by block.

Sound is (C, S) float, latents (T, D) float32, codes (Q, T) int32. Blocks are of a few standard lengths, so
that few programs are compiled, and carry along what the next must know (`models.codec.encode_block`): what
comes out is what the whole sound would give, in memory that does not grow with it.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from editjax.audio import resample_stream
from editjax.errors import DataError, UsageError
from editjax.export import load_bundle
from editjax.models.codec import QUANTISER, CodecSettings, Past, decode_block, encode_block
from editjax.models.layers import RUNNING
from editjax.models.quantiser import dequantise, quantise

SHORTEST_FRAMES = 32
BLOCK_FRAMES = 512
"""Frames done at once, 6.8 s at 75 a second; shorter sounds take the next power of two."""

Step = Callable[[np.ndarray, Any, Past | None], tuple[jax.Array, Past]]


class Codec:
    """Settings and parameters of a trained codec, and the fingerprint of both."""

    def __init__(self, settings: CodecSettings, params: Any, sha256: str = ""):
        self.settings, self.params, self.sha256 = settings, params, sha256

    def encode(self, sound_CS: np.ndarray, rate_hz: int) -> np.ndarray:
        """Latents (T, D) of a sound (C, S) at any rate; mixed to mono for a codec of one channel.

        UsageError for another number of channels, or what is not made of numbers.
        """
        return _together(self.encode_stream([sound_CS], rate_hz), self.settings.dimension, axis=0)

    def decode(self, latents_TD: np.ndarray) -> np.ndarray:
        """The sound (C, T · hop) of latents (T, D), at the codec's rate."""
        return _together(self.decode_stream([latents_TD]), self.settings.channels, axis=1)

    def encode_stream(self, blocks_CS: Iterable[np.ndarray], rate_hz: int) -> Iterator[np.ndarray]:
        """Latents (≤ BLOCK_FRAMES, D) of a sound that comes in blocks (C, S) of any length."""
        settings = self.settings
        blocks_SC = (self._checked(block_CS) for block_CS in blocks_CS)
        resampled = resample_stream(blocks_SC, rate_hz, settings.sample_rate_hz, settings.channels)
        parts = (part.reshape(-1, settings.channels) for part in resampled)

        def encoded(block_SC: np.ndarray, samples: int, past: Past | None) -> tuple[jax.Array, Past]:
            latents_BTD, past = _encode(settings, self.params, block_SC.T[None], np.int32(samples), past)
            return latents_BTD[0], past

        for latents_TD, samples in self._blocks(parts, settings.hop, encoded):
            yield latents_TD[: settings.frames_of(samples)]

    def decode_stream(self, blocks_TD: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Sound (C, ≤ BLOCK_FRAMES · hop) of latents that come in blocks (T, D) of any length."""
        settings = self.settings

        def decoded(block_TD: np.ndarray, frames: int, past: Past | None) -> tuple[jax.Array, Past]:
            sound_BCS, past = _decode(settings, self.params, block_TD[None], np.int32(frames), past)
            return sound_BCS[0], past

        checked = (self._latents(block_TD) for block_TD in blocks_TD)
        for sound_CS, frames in self._blocks(checked, 1, decoded):
            yield sound_CS[:, : frames * settings.hop]

    def quantise(self, latents_TD: np.ndarray, bandwidth_kbps: float | None = None) -> np.ndarray:
        """Codes (Q, T) of latents by as many codebooks as the bandwidth has room for, all without one."""
        codebooks = self.settings.codebooks_for(bandwidth_kbps)
        found_QT = np.zeros((codebooks, len(latents_TD)), np.int32)
        for first, part_TD in _padded_parts(self._latents(latents_TD)):
            codes_BQT = _quantise(self._books, part_TD[None], codebooks)
            found_QT[:, first : first + BLOCK_FRAMES] = codes_BQT[0, :, : len(latents_TD) - first]
        return found_QT

    def dequantise(self, codes_QT: np.ndarray) -> np.ndarray:
        """Latents (T, D) of codes (Q, T). UsageError for codes that the codebooks have not."""
        codes_QT = np.asarray(codes_QT, np.int32)
        books, codes = self.settings.codebooks, self.settings.codes
        if (
            codes_QT.ndim != 2
            or not 1 <= len(codes_QT) <= books
            or ((codes_QT < 0) | (codes_QT >= codes)).any()
        ):
            raise UsageError(
                f"codes {codes_QT.shape}: give (codebooks, frames), at most {books}, below {codes}"
            )
        found_TD = np.zeros((codes_QT.shape[1], self.settings.dimension), np.float32)
        for first, part_TQ in _padded_parts(codes_QT.T):
            latents_BTD = _dequantise(self._books, part_TQ.T[None])
            found_TD[first : first + BLOCK_FRAMES] = latents_BTD[0, : len(found_TD) - first]
        return found_TD

    @property
    def _books(self) -> Any:
        return self.params[RUNNING][QUANTISER]

    def _blocks(self, parts: Iterable[np.ndarray], unit: int, step: Step) -> Iterator[tuple[np.ndarray, int]]:
        """What `step` makes of rows, `unit` a frame, that come in any parts, and of how many rows each.

        A block is BLOCK_FRAMES long, but where it is the only one.
        """
        past = None
        for block, last in _of_size(parts, BLOCK_FRAMES * unit):
            frames = BLOCK_FRAMES
            if past is None and last:
                frames = max(_power_of_two(-(-len(block) // unit)), self.settings.least_frames)
            padded = np.pad(block, ((0, frames * unit - len(block)), (0, 0)))
            found, past = step(padded, len(block), past)
            yield np.asarray(found), len(block)

    def _checked(self, block_CS: np.ndarray) -> np.ndarray:
        """A block of sound as (S, C)."""
        channels = self.settings.channels
        if block_CS.ndim != 2 or (channels > 1 and len(block_CS) != channels) or not len(block_CS):
            raise UsageError(
                f"a sound of shape {block_CS.shape}: give (channels, samples), {channels} channels"
            )
        if block_CS.dtype.kind == "f" and not np.isfinite(block_CS).all():
            raise UsageError("a sound with values that are not numbers cannot be encoded")
        return block_CS.T

    def _latents(self, latents_TD: np.ndarray) -> np.ndarray:
        latents_TD = np.asarray(latents_TD, np.float32)
        if latents_TD.ndim != 2 or latents_TD.shape[1] != self.settings.dimension:
            raise UsageError(f"latents of shape {latents_TD.shape}: give (frames, {self.settings.dimension})")
        if not np.isfinite(latents_TD).all():
            raise UsageError("latents with values that are not numbers cannot be decoded")
        return latents_TD


def load_codec(model: str | Path) -> Codec:
    """The codec that ships under that name, or in a folder that `editjax export` or `convert-codec` wrote.

    Raises what `load_bundle` does, and DataError for a model that is no codec.
    """
    bundle = load_bundle(model)
    if not isinstance(bundle.settings, CodecSettings):
        raise DataError(f"{bundle.path}: a model of the family {bundle.config['family']!r}, not a codec")
    return Codec(bundle.settings, bundle.params, bundle.config["digest"])


@partial(jax.jit, static_argnums=0)
def _encode(settings, params, block_BCS, samples, past):
    return encode_block(settings, params, block_BCS, samples, past)


@partial(jax.jit, static_argnums=0)
def _decode(settings, params, block_BTD, frames, past):
    return decode_block(settings, params, block_BTD, frames, past)


_quantise = jax.jit(quantise, static_argnums=2)
_dequantise = jax.jit(dequantise)


def _of_size(parts: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, bool]]:
    """The rows of all parts in blocks of `size`, and whether it is the last, which may be shorter."""
    waiting, rows = list[np.ndarray](), 0
    for part in parts:
        waiting, rows = [*waiting, part], rows + len(part)
        if rows <= size:
            continue
        joined, first = np.concatenate(waiting), 0
        while rows - first > size:  # never all, so that the last block is known to be it
            yield joined[first : first + size], False
            first += size
        waiting, rows = [joined[first:]], rows - first
    if rows:
        yield np.concatenate(waiting), True


def _padded_parts(rows_TD: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Rows in blocks of BLOCK_FRAMES, one that is alone or last padded, and where each begins."""
    for first in range(0, len(rows_TD), BLOCK_FRAMES):
        part_TD = rows_TD[first : first + BLOCK_FRAMES]
        length = BLOCK_FRAMES if len(rows_TD) > BLOCK_FRAMES else _power_of_two(len(part_TD))
        yield first, np.pad(part_TD, ((0, length - len(part_TD)), (0, 0)))


def _power_of_two(frames: int) -> int:
    length = SHORTEST_FRAMES
    while length < frames:
        length *= 2
    return length


def _together(parts: Iterator[np.ndarray], width: int, axis: int) -> np.ndarray:
    """Parts one after another; of none an array of no length."""
    nothing = np.zeros((0, width) if axis == 0 else (width, 0), np.float32)
    return np.concatenate([nothing, *parts], axis=axis)
