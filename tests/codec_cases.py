"""A small EnCodec of the reference implementation, and what it says (`tests/golden/make_codec_golden.py`)."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from editjax.bundle import unflatten
from editjax.convert_codec import codec_of, fused, settings_of
from editjax.models.codec import CodecSettings, decode, decode_block, encode, encode_block
from editjax.weights import read_weights

GOLDEN = Path(__file__).parent / "golden"
WEIGHTS = GOLDEN / "encodec.th"
LENGTHS = (1, 5, 8, 41, 321, 640, 1601)
SETTINGS = CodecSettings(
    n_filters=2, dimension=8, last_kernel=3, codebooks=4, codes=16, bandwidths_kbps=(1.2,)
)
TINY = CodecSettings(
    n_filters=2, ratios=(4, 2), dimension=6, lstm_layers=1, residual_layers=2, codebooks=3, codes=8,
    sample_rate_hz=800, bandwidths_kbps=(0.3, 0.9),
)  # fmt: skip

ENCODE, DECODE, ENCODE_BLOCK, DECODE_BLOCK = (
    partial(jax.jit, static_argnums=0)(function) for function in (encode, decode, encode_block, decode_block)
)


@cache
def tensors() -> dict[str, np.ndarray]:
    """The reference's weights by its names."""
    return read_weights(WEIGHTS)


@cache
def params() -> dict[str, Any]:
    """The same as ours."""
    own, names = codec_of(tensors(), WEIGHTS)
    return unflatten(fused(own, names, settings_of(own, names, WEIGHTS), WEIGHTS))


@cache
def said(length: int) -> dict[str, np.ndarray]:
    """What the reference makes of a sound: sound, latents, codes, decoded, quantised."""
    with np.load(GOLDEN / "encodec.npz") as arrays:
        of = {name.rpartition("_")[0]: arrays[name] for name in arrays.files if name.endswith(f"_{length}")}
    return {name: a.astype(np.int32 if name == "codes" else np.float32) for name, a in of.items()}
