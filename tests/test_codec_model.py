"""The codec is the reference's, at every length; blocks make the whole; gradients are right and finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codec_cases import (
    DECODE,
    DECODE_BLOCK,
    ENCODE,
    ENCODE_BLOCK,
    LENGTHS,
    SETTINGS,
    TINY,
    WEIGHTS,
    params,
    said,
    tensors,
)

from editjax.convert_codec import codec_of, settings_of
from editjax.errors import UsageError
from editjax.models.codec import CodecSettings, init
from editjax.models.quantiser import dequantise, moved, quantise, stages_of


def near(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def sound(samples: int, batch: int = 1, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, channels, samples)).astype(np.float32)


def test_the_defaults_are_the_official_models() -> None:
    """24 kHz: 75 frames a second; 1.5 to 24 kbps are 2 to 32 codebooks; parameters as in the public file."""
    settings = CodecSettings()
    assert settings.hop == 320 and settings.frames_per_second == 75.0
    assert [settings.codebooks_for(kbps) for kbps in settings.bandwidths_kbps] == [2, 4, 8, 16, 32]
    assert (settings.codebooks_for(0.1), settings.codebooks_for(99.0), settings.codebooks_for()) == (
        1,
        32,
        32,
    )
    shapes = jax.eval_shape(lambda key: init(settings, key), jax.random.key(0))
    sizes = {side: sum(a.size for a in jax.tree.leaves(shapes[side])) for side in ("encoder", "decoder")}
    assert sizes == {"encoder": 7_419_376, "decoder": 7_419_249}


def test_the_sizes_are_read_off_the_tensors() -> None:
    own, names = codec_of(tensors(), WEIGHTS)
    assert settings_of(own, names, WEIGHTS) == SETTINGS


@pytest.mark.parametrize("length", LENGTHS)
def test_latents_codes_and_sound_are_the_references(length: int) -> None:
    wanted = said(length)
    books = params()["running"]["quantiser"]
    latents_BTD = ENCODE(SETTINGS, params(), wanted["sound"])
    near(latents_BTD, wanted["latents"].swapaxes(1, 2))
    np.testing.assert_array_equal(quantise(books, latents_BTD, 4), wanted["codes"])
    near(DECODE(SETTINGS, params(), latents_BTD), wanted["decoded"])
    near(DECODE(SETTINGS, params(), dequantise(books, wanted["codes"])), wanted["quantised"])


@pytest.mark.parametrize("samples", [384, 375, 263, 257])
def test_blocks_make_the_whole(samples: int) -> None:
    """Two residual layers, so dilated ones too, and an LSTM; the last block is full, or not."""
    fresh, sound_BCS = init(TINY, jax.random.key(0)), sound(samples, batch=2)
    whole_BTD, hop = ENCODE(TINY, fresh, sound_BCS), TINY.hop
    latents, heard, encoded, decoded = [], [], None, None
    for first in range(0, samples, 128):
        part = sound_BCS[..., first : first + 128]
        padded = np.pad(part, ((0, 0), (0, 0), (0, 128 - part.shape[2])), constant_values=9.0)
        frames = TINY.frames_of(part.shape[2])
        found_BTD, encoded = ENCODE_BLOCK(TINY, fresh, padded, jnp.int32(part.shape[2]), encoded)
        latents.append(found_BTD[:, :frames])
        found_BCS, decoded = DECODE_BLOCK(TINY, fresh, found_BTD, jnp.int32(frames), decoded)
        heard.append(found_BCS[..., : frames * hop])
    near(np.concatenate(latents, 1), np.asarray(whole_BTD))
    near(np.concatenate(heard, 2), np.asarray(DECODE(TINY, fresh, whole_BTD)))


@pytest.mark.parametrize("samples", [1, 7, 9, 40])
def test_a_padded_block_is_the_sound_alone(samples: int) -> None:
    """What pads a block is not heard, however short the sound."""
    fresh, sound_BCS = init(TINY, jax.random.key(0)), sound(samples)
    padded = np.pad(sound_BCS, ((0, 0), (0, 0), (0, 256 - samples)), constant_values=9.0)
    found_BTD, _ = ENCODE_BLOCK(TINY, fresh, padded, jnp.int32(samples))
    alone_BTD = ENCODE(TINY, fresh, sound_BCS)
    near(np.asarray(found_BTD[:, : alone_BTD.shape[1]]), np.asarray(alone_BTD))
    found_BCS, _ = DECODE_BLOCK(TINY, fresh, found_BTD, jnp.int32(alone_BTD.shape[1]))
    alone_BCS = DECODE(TINY, fresh, alone_BTD)
    near(np.asarray(found_BCS[..., : alone_BCS.shape[2]]), np.asarray(alone_BCS))


def test_nothing_is_heard_before_it_sounds() -> None:
    """Causal, to a frame: gradients of the frame's latents reach no later sample, those of its samples no
    later latents."""
    fresh, at = init(TINY, jax.random.key(0)), 12
    of_sound = jax.grad(lambda x: ENCODE(TINY, fresh, x)[0, at].sum())(sound(30 * TINY.hop))[0, 0]
    reached = np.flatnonzero(of_sound)
    assert reached.min() == 0 and at * TINY.hop <= reached.max() < (at + 1) * TINY.hop
    latents_BTD = np.ones((1, 30, 6), np.float32)
    span = slice(at * TINY.hop, (at + 1) * TINY.hop)
    of_latents = jax.grad(lambda z: DECODE(TINY, fresh, z)[0, 0, span].sum())(latents_BTD)[0]
    assert np.flatnonzero(np.abs(of_latents).max(-1)).max() == at


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_gradients_are_finite(scale: float) -> None:
    fresh = init(TINY, jax.random.key(0))

    def loss(params, sound_BCS):
        latents_BTD = ENCODE(TINY, params, sound_BCS)
        return (DECODE(TINY, params, latents_BTD) ** 2).mean()

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(fresh, scale * sound(100))):
        assert np.isfinite(leaf).all()


def test_the_gradient_is_the_slope() -> None:
    fresh, sound_BCS = init(TINY, jax.random.key(0)), jnp.asarray(sound(20 * TINY.hop))
    latents_BTD = ENCODE(TINY, fresh, sound_BCS)
    direction = jax.random.normal(jax.random.key(1), latents_BTD.shape)

    def heard(step):
        return (DECODE(TINY, fresh, latents_BTD + step * direction) ** 2).mean()

    slope = (heard(1e-3) - heard(-1e-3)) / 2e-3
    assert jax.grad(heard)(0.0) == pytest.approx(float(slope), rel=1e-2)


def test_each_codebook_codes_what_is_left() -> None:
    """Sum of what is said: the latents without the last remainder; deeper is nearer."""
    books = params()["running"]["quantiser"]
    latents_BTD = jnp.asarray(said(1601)["latents"].swapaxes(1, 2))
    stages = stages_of(books, latents_BTD)
    errors = []
    for depth in range(1, 5):
        coded_BTD = dequantise(books, quantise(books, latents_BTD, depth))
        near(np.asarray(coded_BTD), np.asarray(stages.said_QBTD[:depth].sum(0)))
        errors.append(float(((coded_BTD - latents_BTD) ** 2).mean()))
    assert sorted(errors, reverse=True) == errors


def test_codebooks_learn_from_the_first_batch() -> None:
    """Fresh codes give way at once; repeated batches bring the error down."""
    fresh = init(TINY, jax.random.key(0))["running"]["quantiser"]
    centres = jax.random.normal(jax.random.key(1), (8, 6))
    drawn = jax.random.randint(jax.random.key(2), (4, 50), 0, 8)
    latents_BTD = 5.0 * centres[drawn] + 0.1 * jax.random.normal(jax.random.key(3), (4, 50, 6))

    def error(books):
        coded_BTD = dequantise(books, quantise(books, latents_BTD, 3))
        return float(((coded_BTD - latents_BTD) ** 2).mean())

    after = moved(fresh, latents_BTD, jax.random.key(4))
    first = error(after)
    assert first < 0.2 * error(fresh)
    for step in range(30):
        after = moved(after, latents_BTD, jax.random.key(5 + step))
    assert error(after) < 0.5 * first


def test_settings_that_cannot_work_are_refused() -> None:
    for bad in (
        {"ratios": ()},
        {"ratios": (8, 0)},
        {"n_filters": 33},
        {"n_filters": 0},
        {"codes": 1 << 20},
        {"codes": 1},
        {"bandwidths_kbps": (3.0, 1.5)},
        {"bandwidths_kbps": ()},
        {"bandwidths_kbps": (0.0,)},
        {"sample_rate_hz": 100},
        {"ratios": (64, 64, 64)},
        {"residual_layers": 40},
    ):
        with pytest.raises((UsageError, ValueError)):
            CodecSettings(**bad)
