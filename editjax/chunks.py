"""A long recording through the encoder in overlapping chunks: bounded memory, the result of the whole.

Only the landmarks are held at once; the mel's own layers see 4 minutes at a time.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from editjax.models import encoder
from editjax.models.encoder import ALIGN_FRAMES, Encoded
from editjax.models.match import BANDS, STEP_FRAMES
from editjax.models.pointer import PointerSettings
from editjax.models.stems import Stems
from editjax.models.style import Asked

CHUNK_FRAMES = 32 * ALIGN_FRAMES

_asked_features = jax.jit(encoder.asked_features)
_listen = partial(jax.jit, static_argnums=0)(encoder.listen)
_relate = partial(jax.jit, static_argnums=0)(encoder.relate)
_settle = partial(jax.jit, static_argnums=0)(encoder.settle)
_length = partial(jax.jit, static_argnums=0)(encoder.length)


def encode_in_chunks(
    settings: PointerSettings,
    params: Any,
    mel_TF: np.ndarray,
    phase_T3: np.ndarray,
    asked: Asked,
    padded_frames: int,
    stems: Stems | None = None,
    chunk_frames: int = CHUNK_FRAMES,
) -> Encoded:
    """`models.encoder.encode` of one recording, padded to `padded_frames`, chunk by chunk.

    `chunk_frames` must be a multiple of two bars (ALIGN_FRAMES), and so that mel and phase are read in slices
    they may be memory maps. Stems are held at once: 64 bytes a frame each, 10 MB an hour.
    """
    s, n_frames = settings, len(mel_TF)
    if ALIGN_FRAMES % s.frames_per_bar:
        raise ValueError(f"frames_per_bar {s.frames_per_bar}: chunks need a divisor of {ALIGN_FRAMES}")
    total = encoder.aligned(padded_frames)
    valid_B = np.array([n_frames], np.int32)
    x_TD = np.zeros((total, s.frame_width), jnp.dtype(s.dtype))
    shape_rates = STEP_FRAMES, s.landmark_frames
    shapes = [np.zeros((total // rate, BANDS), np.float32) for rate in shape_rates]
    announced_T = np.zeros(total, np.float32)
    for window, inner in windows(n_frames, total, chunk_frames, encoder.listen_halo()):
        mel, phase = (_slice(a, window)[None] for a in (mel_TF, phase_T3))
        heard = _listen(s, params, mel, _valid(n_frames, window), phase)
        x, *heard_shapes, announced = (np.asarray(a[0]) for a in heard)
        x_TD[inner] = _inner(x, window, inner, 1)
        announced_T[inner] = _inner(announced, window, inner, 1)
        for whole, part, rate in zip(shapes, heard_shapes, shape_rates, strict=True):
            whole[_coarse(inner, rate)] = _inner(part, window, inner, rate)
    held = x_TD[None], *(shape[None] for shape in shapes)
    asked_BE = _asked_features(asked, valid_B)
    landmarks_BLD = _relate(s, params, *held, valid_B, asked_BE, stems)
    landmarks_LD = np.asarray(landmarks_BLD[0])
    rates = (1, s.frames_per_beat, s.frames_per_bar, 1)
    parts: list[Any] = [None] * len(rates)
    for window, inner in windows(n_frames, total, chunk_frames, encoder.settle_halo(s)):
        x, landmarks = x_TD[window][None], landmarks_LD[_coarse(window, s.landmark_frames)][None]
        settled = _settle(s, params, x, landmarks, _valid(n_frames, window), asked_BE)
        for k, (rate, part) in enumerate(zip(rates, settled, strict=True)):
            part = np.asarray(part[0])
            parts[k] = np.zeros((total // rate, part.shape[-1]), part.dtype) if parts[k] is None else parts[k]
            parts[k][_coarse(inner, rate)] = _inner(part, window, inner, rate)
    frames, beats, bars, structure = (part[None] for part in parts)
    log_length_B = _length(s, params, bars, structure, valid_B)
    announced_BT = jnp.asarray(announced_T)[None]
    parts_of_all = frames, landmarks_BLD, beats, bars, structure, announced_BT
    return Encoded(*parts_of_all, log_length_B, jnp.asarray(asked.style_BZ), jnp.asarray(valid_B))


def windows(n_frames: int, total: int, chunk: int, halo: int) -> Iterator[tuple[slice, slice]]:
    """(what a chunk sees, what it settles): windows of one static size that tile the valid frames."""
    seen = min(chunk + 2 * halo, total)
    for start in range(0, n_frames, chunk):
        low = min(max(start - halo, 0), total - seen)
        yield slice(low, low + seen), slice(start, min(start + chunk, total))


def _valid(n_frames: int, window: slice) -> np.ndarray:
    return np.array([np.clip(n_frames - window.start, 0, window.stop - window.start)], np.int32)


def _slice(array_T: np.ndarray, window: slice) -> np.ndarray:
    part = np.asarray(array_T[window], np.float32)
    return np.pad(part, ((0, window.stop - window.start - len(part)), (0, 0)))


def _coarse(frames: slice, rate: int) -> slice:
    return slice(frames.start // rate, frames.stop // rate)


def _inner(part: np.ndarray, window: slice, inner: slice, rate: int) -> np.ndarray:
    first = (inner.start - window.start) // rate
    return part[first : first + (inner.stop - inner.start) // rate]
