"""Encoding a recording with the architecture of `configs/pointer_tiny.py`: seconds and memory by length.

Noise of 1 to 30 minutes, one core, fresh parameters. Agreement first: encoding in chunks gives what encoding
at once gives. `match` is the search for repeated performances alone, the only part whose cost grows faster
than the length; its memory must not. Seconds are medians of CPU seconds, the two taking turns. Memory is what
XLA allocates beside arguments and results.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from report import finish, growth_exponent, median_seconds, options, require_agreement, use_one_core

use_one_core()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from editjax.chunks import encode_in_chunks  # noqa: E402
from editjax.config import load_config  # noqa: E402
from editjax.models import encoder, pointer  # noqa: E402
from editjax.models.encoder import ALIGN_FRAMES, Encoded  # noqa: E402
from editjax.models.match import STEP_FRAMES, find_matches, fingerprints  # noqa: E402
from editjax.models.pointer import PointerSettings  # noqa: E402
from editjax.models.style import Asked  # noqa: E402

CONFIG = Path(__file__).parent.parent / "configs" / "pointer_tiny.py"
FRAMES_PER_MINUTE = 2584
TOLERANCE = 1e-4


def main() -> None:
    """Prove that chunks change nothing, then time encoding and matching at every length."""
    chosen = options(__doc__)
    minutes, rounds = ((1,), 1) if chosen.quick else ((1, 3, 10, 30), 5)
    settings = load_config(CONFIG).model
    params = jax.jit(pointer.init, static_argnums=0)(settings, jax.random.key(0))["encoder"]
    prove_chunks(settings, params)
    rows = [row(settings, params, length, rounds) for length in minutes]
    ratios = {f"match / encode, {entry['minutes']} min": entry["match / encode"] for entry in rows}
    if len(rows) > 1:
        for name in ("encode s", "match s", "encode MB", "match MB"):
            ratios[f"growth exponent, {name}"] = growth_exponent(minutes, [entry[name] for entry in rows])
    finish("encode", rows, ratios, ("jax", "flax"), chosen.out)


def row(settings: PointerSettings, params: Any, minutes: int, rounds: int) -> dict[str, Any]:
    """Seconds and memory of encoding and of matching at one length."""
    mel, frames_B, phase, asked = noise(minutes * FRAMES_PER_MINUTE, settings)
    _, shape_BMG, _, _ = jax.jit(encoder.listen, static_argnums=0)(settings, params, mel, frames_B, phase)
    u_BMG = fingerprints(shape_BMG)
    steps_B = -(-frames_B // STEP_FRAMES)
    parts = {
        "encode": compiled(partial(encoder.encode, settings), params, mel, frames_B, phase, asked),
        "match": compiled(lambda u, n: find_matches(u, n, settings.matches), u_BMG, steps_B),
    }
    seconds = median_seconds({name: call for name, (call, _) in parts.items()}, rounds)
    return {
        "minutes": minutes,
        **{f"{name} s": seconds[name] for name in parts},
        "match / encode": seconds["match"] / seconds["encode"],
        **{f"{name} MB": size / 1e6 for name, (_, size) in parts.items()},
    }


def compiled(function: Callable[..., Any], *args: Any) -> tuple[Callable[[], Any], int]:
    """A call that waits for its result, and the bytes it allocates on the way."""
    ready = jax.jit(function).lower(*args).compile()
    return lambda: jax.block_until_ready(ready(*args)), ready.memory_analysis().temp_size_in_bytes


def prove_chunks(settings: PointerSettings, params: Any) -> None:
    """Encoding in chunks of 16 bars against encoding the whole."""
    total = 20 * ALIGN_FRAMES
    mel, frames_B, phase, asked = noise(total, settings)
    whole = jax.jit(encoder.encode, static_argnums=0)(settings, params, mel, frames_B, phase, asked)
    chunked = encode_in_chunks(
        settings, params, mel[0], phase[0], asked, total, chunk_frames=8 * ALIGN_FRAMES
    )
    for name in Encoded._fields:
        one, other = (np.asarray(getattr(encoded, name), np.float64) for encoded in (whole, chunked))
        require_agreement(f"{name} in chunks", float(np.abs(one - other).max()), TOLERANCE)


def noise(n_frames: int, settings: PointerSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray, Asked]:
    """Mel, valid frames and phases of a recording of noise, of which nothing is asked."""
    rng = np.random.default_rng(0)
    mel = rng.uniform(0.2, 0.8, (1, n_frames, 128)).astype(np.float32)
    phase = rng.random((1, n_frames, 3), np.float32)
    asked = Asked(np.zeros(1, np.float32), np.zeros((1, settings.style_width), np.float32))
    return mel, np.array([n_frames], np.int32), phase, asked


if __name__ == "__main__":
    main()
