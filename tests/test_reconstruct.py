"""Phase 1: fresh it copies, padding is not heard, losses are what they say, a planted change is learned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editjax.edits import EditLabel
from editjax.models.layers import places_in_runs
from editjax.models.reconstruct import ReconstructSettings, init, reconstruct
from editjax.optim import OptimSettings, make_optimizer
from editjax.reconstruct_loss import ReconstructLossSettings, loss_of, reconstruct_loss, spectral_loss

TINY = ReconstructSettings(
    n_mels=32, width=16, heads=2, label_width=8, encoder_layers=2, decoder_layers=1, window=8, expansion=2
)
WEIGHTS = ReconstructLossSettings()
run = jax.jit(reconstruct, static_argnums=0)
KEEP, CUT, EFFECT = EditLabel.KEEP, EditLabel.CUT, EditLabel.EFFECT


class Batch(NamedTuple):
    """The fields of `data.Batch` that the loss reads."""

    mel_BTF: Any
    frames_B: Any
    structure_BT: Any
    edited_BTF: Any
    label_BT: Any


def params_of(seed: int = 0):
    return jax.jit(init, static_argnums=0)(TINY, jax.random.key(seed))


def wild():
    """Parameters that change something."""
    return jax.tree.map(
        lambda a: a + 0.05 * jnp.sin(jnp.arange(a.size, dtype=jnp.float32).reshape(a.shape)), params_of()
    )


def a_batch(seed: int = 0, frames: int = 64, fill: float = 0.0, padding: int = 16) -> Batch:
    """A third kept as it is, a third louder by an effect, a third cut."""
    rng = np.random.default_rng(seed)
    mel = rng.uniform(0.2, 0.8, (2, frames, 32)).astype(np.float32)
    label = np.repeat([KEEP, EFFECT, CUT], [24, 24, frames - 48])[None].repeat(2, 0)
    edited = mel + 0.15 * (label == EFFECT)[..., None]
    structure = (label != CUT).astype(np.int32)
    edited = np.where(structure[..., None] > 0, edited, 0.0).astype(np.float32)

    def padded(a, value):
        around = ((0, 0), (0, padding)) + ((0, 0),) * (a.ndim - 2)
        return np.pad(a, around, constant_values=value)

    arrays = padded(mel, fill), np.full(2, frames, np.int32), padded(structure, -1)
    return Batch(*arrays, padded(edited, fill), padded(label.astype(np.int32), EditLabel.PAD))


def test_fresh_it_copies_the_recording():
    batch = a_batch()
    found = run(TINY, params_of(), batch.mel_BTF, batch.label_BT, batch.frames_B)
    np.testing.assert_allclose(found[:, :64], batch.mel_BTF[:, :64], atol=1e-6)


def test_labels_change_what_comes_out_near_them_and_nothing_far_away():
    batch, params = a_batch(frames=200, padding=0), wild()
    other = batch.label_BT.copy()
    other[:, 100] = EditLabel.FADE_IN
    a, b = (
        np.asarray(run(TINY, params, batch.mel_BTF, label, batch.frames_B))
        for label in (batch.label_BT, other)
    )
    changed = np.flatnonzero(np.abs(a - b).max((0, 2)) > 0)
    reach = TINY.window * (TINY.encoder_layers + TINY.decoder_layers)
    assert 100 in changed and changed.min() >= 100 - reach and changed.max() <= 100 + reach


def test_places_in_runs_by_hand():
    label = jnp.array([[4, 4, 2, 2, 2, 0], [3, 3, 3, 3, 3, 3], [0, 1, 0, 1, 1, 0]])
    before, after = places_in_runs(label)
    assert before.tolist() == [[1, 2, 1, 2, 3, 1], [1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 2, 1]]
    assert after.tolist() == [[2, 1, 3, 2, 1, 1], [6, 5, 4, 3, 2, 1], [1, 1, 1, 2, 1, 1]]


@pytest.mark.parametrize(("label", "told"), [(EditLabel.FADE_OUT, True), (KEEP, False), (CUT, False)])
def test_a_frame_knows_how_far_the_end_of_its_fade_is(label, told):
    """Fades are longer than what the layers see; what is kept or cut is so wherever it lies."""
    batch, params = a_batch(frames=200, padding=0), wild()
    outputs = []
    for end in (150, 160):
        label_BT = np.full_like(batch.label_BT, EditLabel.LOOP)
        label_BT[:, 20:end] = label
        outputs.append(np.asarray(run(TINY, params, batch.mel_BTF, label_BT, batch.frames_B))[:, 30])
    assert (np.abs(outputs[0] - outputs[1]).max() > 1e-4) == told


def test_padding_is_not_heard():
    params = wild()
    clean, poisoned = (a_batch(fill=fill) for fill in (0.0, np.nan))
    a, b = (run(TINY, params, batch.mel_BTF, batch.label_BT, batch.frames_B) for batch in (clean, poisoned))
    np.testing.assert_allclose(a, b, atol=1e-6)
    short = run(TINY, params, clean.mel_BTF[:, :64], clean.label_BT[:, :64], clean.frames_B)
    np.testing.assert_allclose(a[:, :64], short, atol=1e-5)
    assert not np.asarray(a[:, 64:]).any()
    key = jax.random.key(0)
    losses = [reconstruct_loss(params, batch, TINY, WEIGHTS, key)[0] for batch in (clean, poisoned)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_what_is_cut_has_no_target():
    batch = a_batch()
    noise = np.where((batch.structure_BT == 0)[..., None], 0.7, batch.edited_BTF).astype(np.float32)
    losses = [loss_of(batch.mel_BTF, b, TINY, WEIGHTS)[0] for b in (batch, batch._replace(edited_BTF=noise))]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_losses_are_what_they_say():
    batch = a_batch()
    _, found = loss_of(batch.mel_BTF, batch, TINY, WEIGHTS)
    np.testing.assert_allclose(found["l1"], 0.15 / 2, rtol=1e-4)
    np.testing.assert_allclose(found["mse"], 0.15**2 / 2, rtol=1e-4)
    np.testing.assert_allclose(found["l1_changed_copied"], 0.15, rtol=1e-4)
    assert float(found["consistency"]) == 0.0 and float(found["kept_right"]) == 1.0
    total, found = loss_of(batch.edited_BTF, batch, TINY, WEIGHTS)
    assert float(total) < 1e-5


def test_the_spectral_loss_of_a_constant_gain_is_known():
    """6.02 dB louder: amplitudes twice as large, at every resolution; convergence 1, ln 2 nepers."""
    rng = np.random.default_rng(0)
    target = rng.uniform(0.3, 0.7, (1, 48, 32)).astype(np.float32)
    louder = target + np.float32(20 * np.log10(2) / 120)
    mask = np.ones((1, 48), bool)
    found = spectral_loss(louder, target, mask, -80.0, 40.0)
    np.testing.assert_allclose(found, 1.0 + np.log(2.0), rtol=1e-3)
    assert float(spectral_loss(target, target, mask, -80.0, 40.0)) < 1e-6


def test_the_spectral_loss_has_gradients_where_it_is_zero_and_only_inside_the_mask():
    target = np.random.default_rng(0).uniform(0.3, 0.7, (1, 16, 32)).astype(np.float32)
    mask = np.arange(16)[None] < 9
    gradient = jax.grad(lambda x: spectral_loss(x, target, mask, -80.0, 40.0))(jnp.asarray(target) * 0.9)
    assert (
        np.isfinite(gradient).all()
        and np.asarray(gradient[:, :9]).any()
        and not np.asarray(gradient[:, 9:]).any()
    )
    assert np.isfinite(
        jax.grad(lambda x: spectral_loss(x, target, mask, -80.0, 40.0))(jnp.asarray(target))
    ).all()


def test_a_planted_effect_is_learned_and_what_is_kept_stays():
    optimizer = make_optimizer(OptimSettings(learning_rate=5e-3, warmup_steps=5, steps=150))
    settings = TINY

    @jax.jit
    def step(params, state, batch, key):
        (_, found), gradient = jax.value_and_grad(reconstruct_loss, has_aux=True)(
            params, batch, settings, WEIGHTS, key
        )
        changes, state = optimizer.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, changes), state, found

    params = params_of()
    state = optimizer.init(params)
    for k in range(150):
        params, state, _ = step(params, state, a_batch(k), jax.random.key(k))
    batch = a_batch(1000)
    _, found = loss_of(
        run(settings, params, batch.mel_BTF, batch.label_BT, batch.frames_B), batch, settings, WEIGHTS
    )
    assert float(found["l1_changed"]) < 0.5 * float(found["l1_changed_copied"])
    assert float(found["kept_right"]) > 0.9


def test_nothing_is_dropped_without_a_key_and_something_with_one():
    batch, params = a_batch(), wild()
    args = batch.mel_BTF, batch.label_BT, batch.frames_B
    still = run(TINY, params, *args)
    np.testing.assert_array_equal(still, run(TINY, params, *args))
    assert np.abs(np.asarray(run(TINY, params, *args, jax.random.key(0)) - still)).max() > 1e-3


@pytest.mark.parametrize("change", [{"heads": 5}, {"dropout": 1.0}, {"attention": "magic"}])
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError):
        ReconstructSettings(**change)
