"""Learning styles alone: the style *final* stays what it was, bit for bit, and the others do not."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))

from learn_styles import learned, styles_alone

from editjax.family import family_of
from editjax.mesh import tree_path
from editjax.models.encoder import encode
from editjax.models.pointer import PointerSettings, Step, decoder_call
from editjax.models.style import Asked, prior

SMALL = PointerSettings(
    n_mels=32, width=16, frame_width=8, landmark_layers=1, landmark_window=6, frame_window=5, style_width=8
)
FAMILY = family_of(SMALL)


@pytest.fixture(scope="module")
def params():
    fresh = jax.jit(lambda: FAMILY.init(SMALL, jax.random.key(0)))()
    return jax.tree.map(lambda a: a + 0.05, fresh)


def states(params, style, target=0.0):
    """What the decoder makes of a recording, and the structure head."""
    rng = np.random.default_rng(0)
    mel = rng.uniform(0.3, 0.7, (1, 172, 32)).astype(np.float32)

    @jax.jit
    def run(p, style_BZ, target_B):
        recording = mel, np.array([172]), np.zeros((1, 172, 3), np.float32)
        encoded = encode(SMALL, p["encoder"], *recording, Asked(target_B, style_BZ))
        keys, at = decoder_call(SMALL, p, "keys", encoded), jnp.array([[3]])
        step = Step(at, at, at, target_B, jnp.zeros((1, 1, 2)))
        h_BND = decoder_call(SMALL, p, "states", keys, step, jnp.array([1]))
        return h_BND, encoded.structure_BTS

    return run(params, prior(SMALL, np.array([style])).mean_BZ, jnp.array([target], jnp.float32))


def test_what_is_learned_does_not_touch_the_first_style(params):
    def changed(path, a):
        return a + jnp.where(learned(SMALL, tree_path(path), a.shape), 0.3, 0.0)

    other = jax.tree_util.tree_map_with_path(changed, params)
    for before, after in zip(states(params, 0), states(other, 0), strict=True):
        np.testing.assert_array_equal(before, after)
    for style, target in ((1, 0.0), (5, 0.0), (0, 90.0)):
        for before, after in zip(states(params, style, target), states(other, style, target), strict=True):
            assert float(jnp.abs(before - after).max()) > 1e-3


def test_nothing_else_gets_a_gradient(params):
    def loss(p, **_):
        return sum(jnp.sum(a**2) for a in jax.tree.leaves(p)), {}

    family = styles_alone(FAMILY._replace(loss=loss), SMALL)
    gradient = jax.grad(lambda p: family.loss(p)[0])(params)
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        mask = np.broadcast_to(learned(SMALL, tree_path(path), g.shape), g.shape)
        np.testing.assert_array_equal(np.asarray(g) != 0, mask)
    entry = gradient["encoder"]["entry"]["asked"]["kernel"]
    assert entry[:3].all() and not entry[3].any() and entry[4:].all()
