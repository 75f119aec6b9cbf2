"""A decoder of the full size with random weights, whose edits have runs as long as real ones.

The likeliest mode of a step is a jump where a random direction of its state says so: after `JUMP_SHARE`
of the frames. All frames are looped, so that nothing ends an edit before its last step.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editjax.config import load_config
from editjax.decode import read_keys
from editjax.models.encoder import Encoded
from editjax.models.pointer import ADVANCE, JUMP, STOP_MODE, Decoder, PointerSettings, Step, decoder_call

RAW_FRAMES = 25_840
JUMP_SHARE = 0.004
"""Of the frames in the order of the recording; of the steps of an edit it is 0.005."""
NEVER_STOP = -50.0
SPREAD = 4.0  # of the jump's logit, in nats
SAMPLE_FRAMES = 4096


class RandomDecoder(NamedTuple):
    """Settings, parameters ({"decoder": …}) and what an encoder would have said, batch 1."""

    settings: PointerSettings
    params: dict[str, Any]
    keys: Any


def base_settings() -> PointerSettings:
    """The architecture of `configs/pointer_base.py`, in float32: CPUs are slower in bfloat16."""
    config = load_config(Path(__file__).parents[1] / "configs" / "pointer_base.py")
    return replace(config.model, dtype="float32")


def random_decoder(settings: PointerSettings, n_frames: int = RAW_FRAMES, seed: int = 0) -> RandomDecoder:
    """Random everything, the modes set so that `JUMP_SHARE` of the frames are followed by a jump."""
    encoded = random_encoding(settings, n_frames, seed)
    small = random_encoding(settings, settings.frames_per_bar, seed)
    init = partial(Decoder(settings).init, method="touch")
    params = {"decoder": jax.jit(init)(jax.random.key(seed), small, _steps(2))["params"]}
    keys = read_keys(settings, params, encoded)
    keys = keys._replace(hints=keys.hints._replace(looped_BT=jnp.ones_like(keys.hints.looped_BT)))
    params["decoder"]["mode"] = _modes(settings, params, jax.block_until_ready(keys), seed)
    return RandomDecoder(settings, params, keys)


def random_encoding(settings: PointerSettings, n_frames: int, seed: int) -> Encoded:
    """Unit normal vectors on every level; every frame is as likely to be kept as not."""
    rng = np.random.default_rng(seed)

    def normal(count: int, width: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((1, count, width)), jnp.float32)

    def spans(size: int) -> int:
        return -(-n_frames // size)

    return Encoded(
        normal(n_frames, settings.frame_width),
        normal(spans(settings.landmark_frames), settings.width),
        normal(spans(settings.frames_per_beat), settings.width),
        normal(spans(settings.frames_per_bar), settings.width),
        jnp.zeros((1, n_frames, 3)),
        jnp.zeros((1, n_frames)),
        jnp.zeros(1),
        normal(1, settings.style_width)[:, 0],
        jnp.full(1, n_frames, jnp.int32),
    )


def _modes(settings: PointerSettings, params: dict[str, Any], keys: Any, seed: int) -> dict[str, jax.Array]:
    """Kernel and bias of the mode: the jump's logit spreads over states, and passes 0 in a share of them."""
    states = jax.jit(partial(decoder_call, settings), static_argnums=1)
    h_1ND = states(params, "states", keys, _steps(SAMPLE_FRAMES), jnp.full(1, SAMPLE_FRAMES))
    towards_D = jax.random.normal(jax.random.key(seed + 1), (settings.width,))
    said_N = h_1ND[0] @ towards_D
    towards_D = towards_D * SPREAD / said_N.std()
    threshold = jnp.quantile(h_1ND[0] @ towards_D, 1.0 - JUMP_SHARE)
    kernel_D3 = jnp.zeros((settings.width, 3)).at[:, JUMP].set(towards_D)
    bias_3 = (
        jnp.zeros(3).at[jnp.array([ADVANCE, JUMP, STOP_MODE])].set(jnp.array([0.0, -threshold, NEVER_STOP]))
    )
    return {"kernel": kernel_D3, "bias": bias_3}


def _steps(count: int) -> Step:
    """So many steps from the first frame on."""
    index_1N = jnp.arange(count, dtype=jnp.int32)[None]
    return Step(index_1N, index_1N, index_1N, jnp.zeros(1), jnp.zeros((1, count, 2)))
