"""The optimizer: schedule landmarks, what is decayed, clipping, and the guard."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editjax.optim import OptimSettings, decayed, keep_if, make_optimizer, make_schedule

SETTINGS = OptimSettings(learning_rate=1e-2, warmup_steps=10, steps=110, final_fraction=0.1)


def test_rate_rises_to_its_peak_and_falls_to_its_final_fraction():
    rates = np.array([make_schedule(SETTINGS)(step) for step in range(120)])
    assert np.argmax(rates) == 10
    assert 0 < rates[0] < rates[5] < rates[10] == pytest.approx(1e-2)
    assert rates[60] == pytest.approx((1e-2 + 1e-3) / 2, rel=1e-5)  # half-way down the cosine
    assert rates[110] == rates[119] == pytest.approx(1e-3)


def test_no_warm_up_starts_at_the_peak():
    assert make_schedule(OptimSettings(learning_rate=0.5, warmup_steps=0))(0) == pytest.approx(0.5)


def test_restarts_jump_back_to_the_peak_without_another_warm_up():
    rates = np.array([make_schedule(replace(SETTINGS, steps=200, restarts=3))(step) for step in range(210)])
    assert np.flatnonzero(rates >= 1e-2 * (1 - 1e-6)).tolist() == [10, 50, 100, 150]
    falls = np.diff(rates)[10:199] < 0
    assert np.flatnonzero(~falls).tolist() == [39, 89, 139]
    assert rates[49] < 1.2e-3 and rates[199:] == pytest.approx(np.full(11, rates[199]))
    with pytest.raises(ValueError, match=r"warmup_steps 50 must be below optim\.steps 200 of a cycle"):
        OptimSettings(warmup_steps=50, steps=200, restarts=3)


def test_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match=r"warmup_steps 100 must be below optim\.steps 100"):
        OptimSettings(warmup_steps=100, steps=100)


def test_decay_spares_biases_norms_embeddings_and_vectors_even_when_stacked():
    layer = {"kernel": jnp.ones((3, 4, 4)), "bias": jnp.ones((3, 4)), "norm": {"scale": jnp.ones((3, 4))}}
    params = {"layers": layer, "tokens": {"embedding": jnp.ones((9, 4))}, "offset": jnp.ones(7)}
    mask = decayed(params)
    assert mask["layers"] == {"kernel": True, "bias": False, "norm": {"scale": False}}
    assert mask["tokens"] == {"embedding": False}
    assert mask["offset"] is False


def test_only_decayed_parameters_shrink_without_a_gradient():
    optimizer = make_optimizer(OptimSettings(learning_rate=0.1, warmup_steps=0, weight_decay=0.5))
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    changes, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(changes["kernel"], -0.05 * np.ones((2, 2)), rtol=1e-6)
    np.testing.assert_array_equal(changes["bias"], np.zeros(2))


def test_gradients_are_clipped_by_their_global_norm():
    optimizer = make_optimizer(OptimSettings(clip_norm=1.0, warmup_steps=0, b1=0.0, b2=0.0, eps=1.0))
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradient = {"a": jnp.full(1, 30.0), "b": jnp.full(1, 40.0)}
    changes, _ = optimizer.update(gradient, optimizer.init(params), params)
    # b1 = b2 = 0 and eps = 1: a change is rate · g / (|g| + 1), with g clipped to (0.6, 0.8)
    np.testing.assert_allclose(
        [changes["a"][0], changes["b"][0]], [-1e-3 * 0.6 / 1.6, -1e-3 * 0.8 / 1.8], rtol=1e-5
    )


@pytest.mark.parametrize("ok", [True, False])
def test_keep_if_takes_one_tree_or_the_other_bit_for_bit(ok):
    new, old = {"a": jnp.array([jnp.nan, 1.0])}, {"a": jnp.array([2.0, 3.0])}
    kept = keep_if(jnp.array(ok), new, old)
    np.testing.assert_array_equal(kept["a"], (new if ok else old)["a"])
