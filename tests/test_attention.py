"""Attention in XLA: equal to float64 in values and gradients, padding inert, cost linear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import draw, reference, value_and_gradients

from editjax.attention import Mask, Tokens, Window, attend

KINDS = ["dense", "block"]
CASES = {
    "one frame": draw(1, Window(7, 7)),
    "two-sided": draw(130, Window(7, 7)),
    "blocks": draw(300, Window(20, 9)),
    "causal": draw(300, Window(15, 0)),
    "ahead": draw(130, Window(0, 3)),
    "no tokens": draw(131, Window(9, 9), tokens=0),
    "everything": draw(140, Window(999, 999)),
    "packed": draw(257, Window(40, 40), packed=True),
    "packed, no tokens": draw(150, Window(40, 0), packed=True, tokens=0),
    "places": draw(150, Window(6, 9), queries=201),
    "places, packed": draw(150, Window(30, 9), queries=77, packed=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_float64(kind, name):
    """Though padding is NaN, and though some queries see nothing: those give zero, and zero gradients."""
    case = CASES[name]
    d_out = np.random.default_rng(1).normal(size=case.q.shape).astype(np.float32)
    out, gradients = value_and_gradients(case, kind, d_out)
    expected, expected_gradients = reference(case, d_out)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=2e-5)


def test_frames_outside_the_window_have_no_influence():
    case = draw(300, Window(10, 4))

    def frame(k):
        return case.attend("block", case.q, k, *case.arrays[2:])[0, 150].sum()

    reached = np.flatnonzero(np.abs(jax.grad(frame)(case.k)[0]).sum((-1, -2)))
    assert (reached.min(), reached.max()) == (140, 154)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_examples_are_what_they_are_alone(kind):
    """Three examples in one row, each with tokens of its own, against each by itself."""
    rng = np.random.default_rng(0)
    lengths, window = (130, 40, 88), Window(33, 12)
    q, k, v = (rng.normal(size=(1, sum(lengths), 2, 8)).astype(np.float32) for _ in range(3))
    global_k, global_v = (rng.normal(size=(1, 6, 2, 8)).astype(np.float32) for _ in range(2))
    valid_16, owner_16 = np.ones((1, 6), bool), np.repeat(np.arange(3), 2)[None].astype(np.int32)
    segment_1S = np.repeat(np.arange(3), lengths)[None].astype(np.int32)
    mask = Mask(window, np.array([sum(lengths)]), segment_1S)
    packed = attend(q, k, v, mask, Tokens(global_k, global_v, valid_16, owner_16), kind=kind)
    for i, (stop, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
        own, two = np.s_[:, stop - length : stop], np.s_[:, 2 * i : 2 * i + 2]
        tokens = Tokens(global_k[two], global_v[two], valid_16[two])
        alone = attend(q[own], k[own], v[own], Mask(window, np.array([length])), tokens, kind="dense")
        np.testing.assert_allclose(packed[own], alone, atol=2e-6)


def test_bfloat16_sums_in_float32():
    case = draw(200, Window(30, 30), dtype=jnp.bfloat16, head=64)
    d_out = np.random.default_rng(1).normal(size=case.q.shape).astype(jnp.bfloat16)
    expected, expected_gradients = reference(case, d_out)
    out, gradients = value_and_gradients(case, "block", d_out)
    assert out.dtype == jnp.bfloat16
    for found, wanted in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        error = np.linalg.norm(np.asarray(found, np.float64) - wanted) / np.linalg.norm(wanted)
        assert error <= 0.003  # sums rounded to bfloat16 are 0.004 off


def test_what_is_not_known_is_refused():
    case = draw(10, Window(1, 1))
    with pytest.raises(ValueError, match="block, cudnn, dense, mosaic, splash"):
        case.attend("flash")
    with pytest.raises(ValueError, match="10 queries among 9 keys: give the frame"):
        attend(case.q, case.k[:, :9], case.v[:, :9], case.mask)


def attention_of(frames):
    def total(q, k, v, gk, gv):
        tokens = Tokens(gk, gv, jnp.ones((1, 64), bool))
        return attend(q, k, v, Mask(Window(64, 64), jnp.array([frames])), tokens).sum()

    shape = jax.ShapeDtypeStruct((1, frames, 2, 32), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 64, 2, 32), jnp.float32)
    return jax.grad(total, (0, 1, 2)), (shape, shape, shape, tokens, tokens)


def product_flops(jaxpr):
    """Floating-point operations of all matrix products; loop bodies count once per iteration."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * int(np.prod([left[i] for i in contracted]))
        inner = [p for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        times = equation.params.get("length", 1)
        total += times * sum(product_flops(getattr(p, "jaxpr", p)) for p in inner)
    return total


def test_flops_grow_with_length_not_with_its_square():
    def flops(frames):
        function, args = attention_of(frames)
        return product_flops(jax.make_jaxpr(function)(*args).jaxpr)

    assert flops(8192 * 4) / flops(8192) == pytest.approx(4, rel=0.1)


def test_memory_grows_with_length_not_with_its_square():
    def temporary_bytes(frames):
        function, args = attention_of(frames)
        return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(32768 * 4) / temporary_bytes(32768) == pytest.approx(4, rel=0.1)
