"""The order of the edit: what the dense heads say of it, and how the pointers follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editjax.losses import order_loss
from editjax.models import pointer
from editjax.models.hints import hints_of
from editjax.models.pointer import Decoder, PointerSettings, Step, decoder_call

PER_BEAT, PER_BAR = 4, 16
KEPT = ((60, 260), (500, 660), (800, 990))
"""Stretches the structure head keeps, further apart than an announcement counts."""

STARTS = [start // PER_BAR for start, _ in KEPT]
"""The bars in which they start."""

N_FRAMES = 1008
AS_RECORDED = np.zeros((1, N_FRAMES), np.float32)


def structure():
    kept_T = np.zeros(N_FRAMES, bool)
    for start, stop in KEPT:
        kept_T[start:stop] = True
    sure_T = np.where(kept_T, 9.0, -9.0)
    return np.stack([-sure_T, sure_T, np.full(N_FRAMES, -20.0)], -1)[None].astype(np.float32)


def announced(*numbers):
    """So many beeps heard before each kept stretch."""
    order = AS_RECORDED.copy()
    for (start, _), number in zip(KEPT, numbers, strict=True):
        for beep in range(number):
            order[0, start - 30 + 9 * beep : start - 26 + 9 * beep] = 10.0
    return order


def hints(order, n_frames=N_FRAMES, structure_BTS=None):
    structure_BTS = structure() if structure_BTS is None else structure_BTS
    return hints_of(jnp.asarray(structure_BTS), jnp.asarray(order), jnp.array([n_frames]), PER_BEAT, 4)


def test_starts_before_a_bar_in_the_order_of_the_recording_and_of_the_edit():
    plain = hints(AS_RECORDED)
    expected_V = np.searchsorted(STARTS, np.arange(N_FRAMES // PER_BAR))
    np.testing.assert_allclose(plain.recorded_before_BV[0], expected_V, atol=1e-3)
    np.testing.assert_allclose(plain.played_before_BV, plain.recorded_before_BV, atol=1e-6)
    turned = hints(announced(2, 3, 1))
    np.testing.assert_allclose(turned.recorded_before_BV, plain.recorded_before_BV, atol=1e-6)
    np.testing.assert_allclose(turned.played_before_BV[0, STARTS], [1, 2, 0], atol=1e-3)


def test_padding_changes_no_hint():
    """Not even in the bar that the recording ends in."""
    order, n_frames = announced(2, 3, 1), N_FRAMES - PER_BAR // 2
    plain = hints(order[:, :n_frames], n_frames, structure()[:, :n_frames])
    order[:, n_frames:] = 10.0
    padded = hints(order, n_frames, np.where(np.arange(N_FRAMES)[:, None] < n_frames, structure(), 7.0))
    np.testing.assert_allclose(padded.starts_BT[:, :n_frames], plain.starts_BT, atol=1e-5)
    np.testing.assert_allclose(padded.place_BV, plain.place_BV, atol=1e-5)
    np.testing.assert_allclose(padded.played_before_BV, plain.played_before_BV, atol=1e-5)


@pytest.mark.parametrize(
    ("kept", "cut", "starts"),
    [
        ((), (), (60, 500, 800)),
        ((300, 320), (), (60, 500, 800)),  # too short for a stretch
        ((), (580, 590), (60, 500, 800)),  # too short to end one
        ((), (640, 660), (60, 500, 800)),  # an end that comes earlier
        ((), (140, 160), (500, 800)),  # what is left of the first is too short
        ((300, 440), (), (60, 300, 500, 800)),
    ],
)
def test_flickers_start_nothing(kept, cut, starts):
    flickering = structure()
    sure = flickering[0, KEPT[0][0]], flickering[0, 0]
    for span, value in zip((kept, cut), sure, strict=True):
        flickering[0, slice(*span) if span else slice(0)] = value
    found = np.asarray(hints(AS_RECORDED, structure_BTS=flickering).starts_BT[0])
    np.testing.assert_array_equal(np.flatnonzero(np.diff(found, prepend=0.0) > 0.5), starts)
    assert found[-1] == pytest.approx(len(starts), abs=1e-3)


def test_order_loss_is_of_pairs_played_for_the_first_time():
    place_BJ = jnp.array([[2.0, 5.0, 2.0, 9.0]])
    first_BJ = jnp.array([[True, True, False, True]])
    pairs = np.logaddexp(0, [2 - 5, 2 - 9, 5 - 9]).mean()
    assert float(order_loss(place_BJ, first_BJ)[0]) == pytest.approx(pairs, rel=1e-5)
    assert float(order_loss(place_BJ, jnp.zeros((1, 4), bool))[0]) == 0.0


def test_the_order_is_learned_and_the_structure_is_left_alone():
    def loss(structure_BTS, announced_BT):
        found = hints(announced_BT, structure_BTS=structure_BTS)
        played = jnp.array([STARTS[k] for k in (2, 0, 1)])
        return order_loss(found.place_BV[:, played], jnp.ones((1, 3), bool))[0]

    heard = jnp.asarray(announced(1, 1, 1))
    unsure = structure() / 4  # a sure head has no gradient in any case
    by_structure, by_announced = jax.grad(loss, (0, 1))(jnp.asarray(unsure), heard)
    assert np.abs(by_structure).max() == 0.0
    before = [float(by_announced[0, start - 30 : start].sum()) for start, _ in KEPT]
    assert before[2] > 0 > before[1], "the stretch that comes first must move forward, the last back"


def test_a_number_is_counted_once_however_often_it_is_said():
    once, twice = announced(2, 3, 1), announced(2, 3, 1)
    twice[0, 380:420] = once[0, 460:500]  # a false start, and its slate, right before
    np.testing.assert_allclose(hints(once).place_BV[0, STARTS], hints(twice).place_BV[0, STARTS], rtol=1e-5)


SETTINGS = PointerSettings(
    n_mels=32, frames_per_beat=PER_BEAT, frames_per_bar=PER_BAR, width=32, frame_width=16, matches=2
)


def jumps(order, played):
    """The bars a decoder that minds nothing but order and coverage jumps to after frames in `played`."""
    decoder = jax.jit(pointer.init, static_argnums=0)(SETTINGS, jax.random.key(0))["decoder"]
    still = jax.tree.map(jnp.zeros_like, decoder)
    still["bar_avoid"]["bias"] = jnp.full(3, -8.0)
    still["trust"] = jnp.ones(4)
    found = hints(order)
    keys = pointer.Keys(
        jnp.zeros((1, N_FRAMES, 16)), (), (), jnp.ones((1, 63), bool), jnp.zeros((1, 63, 32)),
        jnp.zeros((1, 252, 32)), jnp.zeros((1, N_FRAMES, 32)), jnp.zeros((1, 63, 32)),
        jnp.zeros((1, 252, 32)), found,
        jnp.zeros((1, SETTINGS.style_width)), jnp.array([N_FRAMES]),
    )  # fmt: skip
    began = pointer_now = -1
    played_V = np.zeros(N_FRAMES // PER_BAR, np.float32)
    bars = []
    for _ in range(played):
        at = (jnp.array([[n]]) for n in (pointer_now, pointer_now - began, 0))
        step = Step(*at, jnp.zeros(1), jnp.zeros((1, 1, 2)))
        logits = decoder_call(
            SETTINGS, {"decoder": still}, "bar_logits",
            jnp.zeros((1, 1, 32)), step.pointer_BN, step.began_BN, jnp.asarray(played_V)[None, None], keys,
        )  # fmt: skip
        bars.append(int(jnp.argmax(logits[0, 0])))
        began, stop = next(span for span in KEPT if span[0] // PER_BAR == bars[-1])
        pointer_now = stop - 1
        np.add.at(played_V, np.arange(began, stop) // PER_BAR, 1 / PER_BAR)
    return bars


@pytest.mark.parametrize(
    ("order", "played"),
    [(AS_RECORDED, (0, 1, 2)), (announced(2, 3, 1), (2, 0, 1)), (announced(3, 2, 1), (2, 1, 0))],
)
def test_jumps_follow_the_order_of_the_edit(order, played):
    assert jumps(order, 3) == [STARTS[k] for k in played]


def test_a_stretch_began_where_its_run_did():
    at = jnp.array([[-1, 0, 7, 40]]), jnp.array([[0, 1, 7, 0]]), jnp.arange(4)[None]
    step = Step(*at, jnp.zeros(1), jnp.zeros((1, 4, 2)))
    np.testing.assert_array_equal(step.began_BN, [[-1, 0, 0, 40]])


def test_the_end_is_near_when_the_last_of_the_edit_plays():
    """However much of the recording follows."""

    def after(order, pointer_now, began):
        at = (jnp.array([[n]]) for n in (pointer_now, began))
        total = hints(order).starts_BT[0, -1]
        return float(total - Decoder(SETTINGS)._passed(hints(order), *at)[0, 0])

    assert after(AS_RECORDED, 550, 500) == pytest.approx(1.0, abs=0.01)
    assert after(announced(2, 3, 1), 550, 500) == pytest.approx(0.0, abs=0.01)
    assert after(announced(2, 3, 1), 850, 800) == pytest.approx(2.0, abs=0.01)
