"""The small pointer network of the tests: its settings, parameters, recordings, and edits by it."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editjax import decode as decoding
from editjax.edits import PAD
from editjax.losses import targets
from editjax.models import pointer
from editjax.models.coverage import played_before
from editjax.models.pointer import JUMP, PointerSettings, decoder_call
from editjax.models.style import Asked

TINY = PointerSettings(
    n_mels=32,
    frames_per_beat=4,
    frames_per_bar=16,
    width=32,
    heads=2,
    landmark_layers=2,
    landmark_window=6,
    frame_width=16,
    frame_layers=1,
    frame_window=5,
    matches=2,
    decoder_window=8,
    look_back=1,
    look_ahead=3,
)


SHORT_BARS = replace(TINY, landmark_frames=2, frames_per_beat=2, frames_per_bar=4)
"""Six frames are two bars, the second of one beat: all edits of so few can be enumerated."""


class Batch(NamedTuple):
    """The fields of `data.Batch` that the loss reads."""

    mel_BTF: Any
    frames_B: Any
    phase_BT3: Any
    pointers_BN: Any
    steps_B: Any
    structure_BT: Any
    target_B: Any
    style_B: Any
    stems_BIMF: Any = np.zeros((1, 0, 8, 32), np.float32)
    present_BI: Any = np.zeros((1, 0), bool)


@jax.jit
def fresh_params(seed):
    return pointer.init(TINY, jax.random.key(seed))


@pytest.fixture(scope="module")
def params():
    @jax.jit
    def wild():
        """Larger weights than at the start, so that choices are not all alike; stopping kept rare."""
        fresh = pointer.init(TINY, jax.random.key(0))
        louder = jax.tree.map(
            lambda a: a * 2.0 + 0.05 * jnp.sin(jnp.arange(a.size, dtype=jnp.float32).reshape(a.shape)), fresh
        )
        kernel, bias = fresh["decoder"]["mode"]["kernel"], jnp.array([1.0, 1.0, -6.0])
        return {**louder, "decoder": {**louder["decoder"], "mode": {"kernel": kernel, "bias": bias}}}

    return wild()


@pytest.fixture(scope="module")
def short_params():
    """Weights as at the start, so that all edits are drawn now and then."""
    return jax.jit(lambda: pointer.init(SHORT_BARS, jax.random.key(0)))()


def recording(frames, seed=0):
    rng = np.random.default_rng(seed)
    mel = np.clip(0.5 + 0.2 * rng.normal(size=(frames, TINY.n_mels)), 0, 1).astype(np.float32)
    return mel, rng.uniform(size=(frames, 3)).astype(np.float32)


def padded(parts, length, fill=0.0):
    return np.stack(
        [np.pad(p, [(0, length - len(p))] + [(0, 0)] * (p.ndim - 1), constant_values=fill) for p in parts]
    )


def encoded(params, recordings, length, target=None, fill=0.0, style_BZ=None, settings=TINY):
    mel = padded([m for m, _ in recordings], length, fill)
    phase = padded([p for _, p in recordings], length, fill)
    frames = jnp.array([len(m) for m, _ in recordings], jnp.int32)
    target_B = jnp.zeros(len(recordings)) if target is None else jnp.asarray(target, jnp.float32)
    style_BZ = jnp.zeros((len(recordings), settings.style_width)) if style_BZ is None else style_BZ
    asked = Asked(target_B, style_BZ)
    return decoding.encode(settings, params, mel, frames, phase, asked)


def with_loops(keys, looped):
    """The keys, as if the structure head had said that every frame may be played again, or none."""
    return keys._replace(hints=keys.hints._replace(looped_BT=jnp.full_like(keys.hints.looped_BT, looped)))


def decoded(params, recordings, length, steps=60, temperature=0.0, seed=0, target=None, draft=5, looped=True):
    keys = with_loops(encoded(params, recordings, length, target)[1], looped)
    target_B = jnp.zeros(len(recordings)) if target is None else jnp.asarray(target, jnp.float32)
    ready = TINY, params, keys, target_B, steps, temperature, jax.random.key(seed)
    return keys, decoding.decode(*ready, draft=draft)


@partial(jax.jit, static_argnames="settings")
def teacher_forced_log_p(params, keys, pointers_BN, target_B, temperature=1.0, settings=TINY):
    """Log-probability of every step by one parallel pass."""

    def ask(method, *args):
        return decoder_call(settings, params, method, *args)

    per_beat, per_bar = settings.frames_per_beat, settings.frames_per_bar
    n = (pointers_BN != PAD).sum(1)
    t = targets(pointers_BN, n, target_B, keys.frames_BTD.shape[1])
    h = ask("states", keys, t.step, n)
    before = t.step.pointer_BN
    target = jnp.maximum(t.pointer_BN, 0)
    bar, beat = target // per_bar, target // per_beat
    every = jnp.ones_like(pointers_BN, bool)
    n_steps, n_bars = pointers_BN.shape[1], keys.bars_BVD.shape[1]
    played = played_before(pointers_BN, every, n_steps, n_bars, per_bar)
    logits = (
        ask("mode_logits", h, before, keys),
        ask("bar_logits", h, before, t.step.began_BN, played, keys),
        ask("beat_logits", h, bar, before, keys),
        ask("frame_logits", h, beat, before, keys),
    )
    labels = (t.mode_BN, bar, beat % (per_bar // per_beat), target % per_beat)
    parts = [
        jnp.take_along_axis(jax.nn.log_softmax(a / temperature), b[..., None], -1)[..., 0]
        for a, b in zip(logits, labels, strict=True)
    ]
    jump = (t.mode_BN == JUMP).astype(jnp.float32)
    return jnp.where(t.counted_BN, parts[0] + jump * sum(parts[1:]), 0.0)


def batch_of(pointers, frames=60, length=64):
    pointers = np.asarray(pointers)
    mel, phase = recording(frames)
    structure = np.full((1, length), -1)
    structure[0, :frames] = np.isin(np.arange(frames), pointers)
    return Batch(
        padded([mel], length), jnp.array([frames]), padded([phase], length), jnp.asarray(pointers[None]),
        jnp.array([int((pointers != PAD).sum())]), jnp.asarray(structure), jnp.zeros(1), jnp.array([2]),
    )  # fmt: skip


def biased(params, bias):
    """The parameters with other biases of the modes."""
    mode = {**params["decoder"]["mode"], "bias": jnp.array(bias)}
    return {**params, "decoder": {**params["decoder"], "mode": mode}}
