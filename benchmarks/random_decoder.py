"""A decoder of the full size with random weights, whose edits have runs as long as real ones.

Width 256, 4 heads of 64, 4 layers, 10 minutes of raw frames. The likeliest mode of a step is a jump where a
random direction of its state says so, which is for `JUMP_SHARE` of the frames: greedy edits jump as often as
sampled ones would. A length is asked for, so that nothing ends the edit before the last step.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editjax.decode import read_keys
from editjax.models.encoder import Encoded
from editjax.models.pointer import ADVANCE, JUMP, STOP_MODE, Decoder, PointerSettings, Step, decoder_call

RAW_FRAMES = 25_840
JUMP_SHARE = 0.005
NEVER_STOP = -50.0
SPREAD = 4.0  # of the jump's logit, in nats
SAMPLE_FRAMES = 4096


class RandomDecoder(NamedTuple):
    """Settings, parameters ({"decoder": …}) and what an encoder would have said, batch 1."""

    settings: PointerSettings
    params: dict[str, Any]
    keys: Any


def base_settings() -> PointerSettings:
    """The decoder of the full size; the encoder's share of the settings does not matter here."""
    return PointerSettings(
        width=256, heads=4, decoder_layers=4, landmark_frames=4, look_back=4, look_ahead=12
    )


def random_decoder(settings: PointerSettings, n_frames: int = RAW_FRAMES, seed: int = 0) -> RandomDecoder:
    """Random everything, the modes set so that `JUMP_SHARE` of the frames are followed by a jump."""
    encoded = random_encoding(settings, n_frames, seed)
    small = random_encoding(settings, settings.frames_per_bar, seed)
    zero_12 = jnp.zeros((1, 2), jnp.int32)
    step = Step(zero_12, zero_12, zero_12, jnp.zeros(1))
    init = partial(Decoder(settings).init, method="touch")
    params = {"decoder": jax.jit(init)(jax.random.key(seed), small, step)["params"]}
    keys = jax.block_until_ready(read_keys(settings, params, encoded))
    params["decoder"]["mode"] = _modes(settings, params, keys, seed)
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
        jnp.full(1, n_frames, jnp.int32),
    )


def _modes(settings: PointerSettings, params: dict[str, Any], keys: Any, seed: int) -> dict[str, jax.Array]:
    """Kernel and bias of the mode: the jump's logit spreads over states, and passes 0 in a share of them."""
    index_1N = jnp.arange(SAMPLE_FRAMES, dtype=jnp.int32)[None]
    step = Step(index_1N, index_1N, index_1N, jnp.full(1, 1e4))
    states = jax.jit(partial(decoder_call, settings), static_argnums=1)
    h_1ND = states(params, "states", keys, step, jnp.full(1, SAMPLE_FRAMES))
    towards_D = jax.random.normal(jax.random.key(seed + 1), (settings.width,))
    said_N = h_1ND[0] @ towards_D
    towards_D = towards_D * SPREAD / said_N.std()
    threshold = jnp.quantile(h_1ND[0] @ towards_D, 1.0 - JUMP_SHARE)
    kernel_D3 = jnp.zeros((settings.width, 3)).at[:, JUMP].set(towards_D)
    bias_3 = (
        jnp.zeros(3).at[jnp.array([ADVANCE, JUMP, STOP_MODE])].set(jnp.array([0.0, -threshold, NEVER_STOP]))
    )
    return {"kernel": kernel_D3, "bias": bias_3}
