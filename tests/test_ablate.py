"""Taking parts away: what is held at zero is what the part enters by, and it stays there."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))

from ablate import PARTS, table, without

from editjax.family import family_of
from editjax.models.pointer import PointerSettings, Step, decoder_call
from editjax.models.stems import Stems
from editjax.models.style import Asked

SMALL = PointerSettings(
    n_mels=32,
    width=16,
    frame_width=8,
    landmark_layers=1,
    landmark_window=6,
    frame_window=5,
    style_width=6,
    stem_width=4,
)
FAMILY = family_of(SMALL)


@pytest.fixture(scope="module")
def params():
    fresh = jax.jit(lambda: FAMILY.init(SMALL, jax.random.key(0)))()
    return jax.tree.map(lambda a: a + 0.1, fresh)


def reduced(part, params):
    return without(FAMILY._replace(init=lambda *_: params), SMALL, PARTS[part]).init(SMALL, None)


@pytest.mark.parametrize("part", [part for part in PARTS if part != "nothing"])
def test_a_part_holds_something_and_not_everything(part, params):
    held = [float((a == 0).mean()) for a in jax.tree.leaves(reduced(part, params))]
    assert max(held) > 0 and sum(share == 1.0 for share in held) <= 4


def test_nothing_taken_away_leaves_the_model_as_it_is(params):
    jax.tree.map(np.testing.assert_array_equal, reduced("nothing", params), params)


def test_what_is_held_gets_no_gradient(params):
    def loss(p, **_):
        return sum(jnp.sum(a**2) for a in jax.tree.leaves(p)), {}

    family = without(FAMILY._replace(loss=loss), SMALL, PARTS["matches"])
    gradient = jax.grad(lambda p: family.loss(p)[0])(params)["encoder"]
    assert not gradient["entry"]["matches"]["kernel"].any() and gradient["entry"]["frames"]["kernel"].all()


@pytest.mark.parametrize(
    ("part", "heard", "value"),
    [
        ("styles", "style", 50.0),
        ("the wanted length", "length", 50.0),
        ("what was played", "replay", 50.0),
        ("stems", "stems", 1.0),
    ],
)
def test_without_a_part_the_model_does_not_hear_of_it(part, heard, value, params):
    rng = np.random.default_rng(0)
    mel = rng.uniform(0.3, 0.7, (1, 172, 32)).astype(np.float32)
    stem = rng.uniform(0.3, 0.7, (1, 1, 22, 32)).astype(np.float32)
    frames, phase = np.array([172], np.int32), np.zeros((1, 172, 3), np.float32)

    @jax.jit
    def states(p, style, length, replay, stems):
        from editjax.models.encoder import encode

        asked = Asked(jnp.full(1, length), jnp.full((1, SMALL.style_width), style))
        heard = Stems(stems * stem, np.ones((1, 1), bool))
        keys = decoder_call(SMALL, p, "keys", encode(SMALL, p["encoder"], mel, frames, phase, asked, heard))
        at = jnp.array([[3]])
        step = Step(at, at, at, asked.target_B, jnp.full((1, 1, 2), replay))
        return decoder_call(SMALL, p, "states", keys, step, jnp.array([1]))

    plain, changed = dict.fromkeys(("style", "length", "replay", "stems"), 0.0), {heard: value}
    less = reduced(part, params)
    for p, deaf in ((params, False), (less, True)):
        one, other = states(p, **plain), states(p, **{**plain, **changed})
        assert bool(jnp.abs(one - other).max() < 1e-6) is deaf


def test_the_table_has_mean_and_spread():
    figures = {name: 0.5 for name in ("kept_iou", "structure_iou", "boundary_f1_half_second")}
    runs = [figures | {"order_agreement": x, "length_error": 0.1} for x in (0.2, 0.4)]
    assert "| nothing | 2 | 0.500 ± 0.000 |" in table({"nothing": runs})
    assert "| 0.300 ± 0.100 |" in table({"nothing": runs})
