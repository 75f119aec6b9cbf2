"""Views of a segment: each change does what it says, and none at all gives the segment."""

import jax
import jax.numpy as jnp
import numpy as np

from editjax.mel import MelSettings, band_centres_hz
from editjax.models.level import RANGE_DB
from editjax.models.views import ViewSettings, mixed, stretched, transposed, view

CENTRES = band_centres_hz(MelSettings())


def test_no_change_gives_the_segment():
    x_NSF = jnp.asarray(np.random.default_rng(0).uniform(-2, 1, (3, 16, 128)), jnp.float32)
    still = ViewSettings((1.0, 1.0), 0.0, (-300.0, -300.0))
    np.testing.assert_allclose(view(x_NSF, CENTRES, still, jax.random.key(0)), x_NSF, atol=1e-5)


def test_stretching_slows_down_about_the_middle():
    ramp_SF = jnp.arange(33, dtype=jnp.float32)[:, None]
    slow = np.asarray(stretched(ramp_SF, 2.0))[:, 0]
    np.testing.assert_allclose(slow, 16 + (np.arange(33) - 16) / 2)
    fast = np.asarray(stretched(ramp_SF, 0.5))[:, 0]
    np.testing.assert_allclose(fast, np.clip(16 + (np.arange(33) - 16) * 2, 0, 32))


def test_an_octave_up_moves_a_band_to_twice_its_frequency():
    band = 40
    up = np.asarray(
        transposed(jnp.zeros((1, 128)).at[0, band].set(1.0), jnp.asarray(CENTRES, jnp.float32), 12.0)
    )
    np.testing.assert_allclose(CENTRES[up[0].argmax()], 2 * CENTRES[band], rtol=0.03)


def test_mixing_adds_powers():
    x, other = jnp.full((1, 2, 3), 0.5), jnp.full((1, 2, 3), 0.5)
    np.testing.assert_allclose(mixed(x, other, jnp.zeros(1)), 0.5 + 10 * np.log10(2) / RANGE_DB, rtol=1e-5)


def test_views_differ_by_key_and_are_bounded():
    x_NSF = jnp.asarray(np.random.default_rng(0).uniform(-3, 2, (2, 16, 128)), jnp.float32)
    one, other = (np.asarray(view(x_NSF, CENTRES, ViewSettings(), jax.random.key(k))) for k in (0, 1))
    assert not np.allclose(one, other, atol=0.05)
    assert one.min() >= -3.0 and one.max() <= 2.0
