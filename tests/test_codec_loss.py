"""What codecs learn from: right figures, gradients where they belong, codebooks that follow."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codec_cases import TINY

from editjax.codec_loss import CodecLossSettings, codec_loss, mel_distance, ratio_db
from editjax.family import family_of, settings_type
from editjax.models.codec import CodecSettings, encode, init
from editjax.optim import OptimSettings
from editjax.sounds import SoundBatch
from editjax.step import TrainConfig, init_state, update

SIMPLE = replace(TINY, n_filters=8, residual_layers=0, lstm_layers=0)
WEIGHTS = CodecLossSettings(windows=(128, 64), bands=8)


def batch(size: int = 8, samples: int = 400, seed: int = 0) -> SoundBatch:
    """Sums of slow sines: sound that a small codec can learn."""
    rng = np.random.default_rng(seed)
    hz, phase = rng.uniform(5.0, 40.0, (2, size, 1, 3)), rng.uniform(0.0, 6.28, (2, size, 1, 3))
    at_S = np.arange(samples)[None, :, None] / SIMPLE.sample_rate_hz
    sound_BS = 0.2 * np.sin(2 * np.pi * hz[0] * at_S + phase[0]).sum(-1)
    return SoundBatch(sound_BS[:, None].astype(np.float32), np.arange(size, dtype=np.int32))


LOSS = jax.jit(codec_loss, static_argnums=(2, 3))


def loss_of(params, weights=WEIGHTS, seed=0, settings=SIMPLE):
    return LOSS(params, batch(), settings, weights, jax.random.key(seed))


def test_the_ratio_is_in_decibels_of_noise() -> None:
    sound_BCS = jnp.asarray(batch().sound_BCS)
    np.testing.assert_allclose(ratio_db(0.9 * sound_BCS, sound_BCS), 20.0, atol=0.05)
    np.testing.assert_allclose(ratio_db(jnp.zeros_like(sound_BCS), sound_BCS), 0.0, atol=1e-4)
    silence = jnp.zeros((1, 1, 400))
    gradient = jax.grad(lambda x: ratio_db(x, silence).sum())(silence)
    assert np.isfinite(gradient).all()


def test_the_mel_distance_is_in_natural_logarithms() -> None:
    """Half as loud is ln 2 away in every band that is well above the floor; the same is nowhere."""
    noise_BCS = jax.random.normal(jax.random.key(0), (2, 1, 4000))
    assert float(mel_distance(noise_BCS, noise_BCS, 800, WEIGHTS)) == 0.0
    found = float(mel_distance(0.5 * noise_BCS, noise_BCS, 800, WEIGHTS))
    assert found == pytest.approx(np.log(2.0), rel=0.05)
    silence = jnp.zeros((1, 1, 400))
    gradient = jax.jit(jax.grad(lambda x: mel_distance(x, silence, 800, WEIGHTS)))(silence)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("continuous", "moves"), [(1.0, False), (0.0, True)])
def test_codes_matter_where_examples_are_quantised(continuous: float, moves: bool) -> None:
    """The continuous share hears latents alone; the gradient gets to the encoder past the codes."""
    params = init(SIMPLE, jax.random.key(0))
    weights = replace(WEIGHTS, continuous=continuous, commitment=0.0)
    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, weights)
    books = params["running"]["quantiser"]
    other = {**params, "running": {"quantiser": {**books, "code_QKD": books["code_QKD"] + 1.0}}}
    assert (abs(float(loss_of(other, weights)[0]) - float(loss)) > 1e-4) is moves
    for side in ("encoder", "decoder"):
        assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradient[side]))
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["running"]))
    heard = "continuous_db" if continuous else "quantised_db"
    assert float(metrics[heard]) != 0.0


def test_few_and_many_codebooks_are_drawn() -> None:
    """Of the same batch losses differ from key to key only by depth: as many values as bandwidths."""
    params = init(SIMPLE, jax.random.key(0))
    params["running"] = loss_of(params)[1]["running"]
    weights = replace(WEIGHTS, continuous=0.0)
    one = SoundBatch(*(a[:1] for a in batch()))
    key_of = partial(LOSS, params, one, SIMPLE, weights)
    found = {round(float(key_of(jax.random.key(seed))[0]), 5) for seed in range(20)}
    assert len(found) == len(SIMPLE.bandwidths_kbps)


def test_training_learns_and_codebooks_follow() -> None:
    """200 of the training's own steps; every codebook is alive and says what is as large as the latents."""
    config = TrainConfig(
        model=SIMPLE,
        loss=WEIGHTS,
        optim=OptimSettings(learning_rate=1e-3, warmup_steps=10, steps=200, weight_decay=0.0),
    )
    family = family_of(config.model, config.loss)
    assert family.name == "codec" and settings_type("codec") is CodecSettings
    step = jax.jit(partial(update, config=config, family=family))
    state, key = init_state(config, family, jax.random.key(0)), jax.random.key(1)
    rows = []
    for seed in range(200):
        state, metrics = step(state, batch(seed=seed), key)
        rows.append((float(metrics["continuous_db"]), float(metrics["quantised_db"])))
    assert int(state.total_skipped) == 0
    (continuous, begun), (learned, quantised) = np.mean(rows[:5], 0), np.mean(rows[-20:], 0)
    assert learned > continuous - 1.0 and quantised > begun + 3.0
    books = state.params["running"]["quantiser"]
    assert (np.asarray(books["count_QK"]) > 0).all()
    latents_BTD = encode(config.model, state.params, batch(seed=500).sound_BCS)
    spread = float(jnp.abs(latents_BTD).mean() / jnp.abs(books["code_QKD"][0]).mean())
    assert 0.2 < spread < 5.0


def test_settings_that_cannot_work_are_refused() -> None:
    for bad in ({"continuous": 1.5}, {"windows": (130,)}, {"windows": (32,)}, {"bands": 0}):
        with pytest.raises(ValueError, match=r"give|share"):
            CodecLossSettings(**bad)
