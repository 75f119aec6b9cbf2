"""Windowed attention: block equals dense float64 in values and gradients, padding is inert, cost linear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editjax.attention import Window, attend


def inputs(frames, batch=2, heads=2, head=8, tokens=5, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(batch, frames, heads, head)).astype(dtype) for _ in range(3))
    gk, gv = (rng.normal(size=(batch, tokens, heads, head)).astype(dtype) for _ in range(2))
    valid = np.arange(tokens)[None] < np.array([[tokens], [2]])[:batch]
    return q, k, v, gk, gv, valid


def run(kind, window, frames_B, q, k, v, gk, gv, valid):
    return attend(
        q, k, v, window=window, frames_B=jnp.asarray(frames_B), kind=kind,
        global_k_BGHK=gk, global_v_BGHK=gv, global_valid_BG=valid,
    )  # fmt: skip


def float64_dense(window, frames_B, q, k, v, gk, gv, valid):
    """Plain NumPy in float64: an independent reference."""
    q, k, v, gk, gv = (np.asarray(a, np.float64) for a in (q, k, v, gk, gv))
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            near = [s for s in range(max(0, t - window.left), t + window.right + 1) if s < frames_B[b]]
            keys = np.concatenate([k[b, near], gk[b, valid[b]]])
            values = np.concatenate([v[b, near], gv[b, valid[b]]])
            for h in range(q.shape[2]):
                logits = keys[:, h] @ q[b, t, h] / np.sqrt(q.shape[-1])
                weights = np.exp(logits - logits.max())
                out[b, t, h] = weights / weights.sum() @ values[:, h]
    return out


@pytest.mark.parametrize("kind", ["dense", "block"])
@pytest.mark.parametrize("window", [Window(7, 7), Window(15, 0), Window(0, 3)])
@pytest.mark.parametrize("frames", [1, 130, 300])
def test_values_equal_float64_dense(kind, window, frames):
    args = inputs(frames)
    frames_B = np.array([frames, max(1, frames - 40)])
    out = run(kind, window, frames_B, *args)
    expected = float64_dense(window, frames_B, *args)
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_block_gradients_equal_dense():
    args = inputs(300)
    frames_B = np.array([300, 201])
    weights = np.random.default_rng(1).normal(size=args[0].shape).astype(np.float32)

    def gradients(kind):
        def total(q, k, v, gk, gv):
            return (run(kind, Window(20, 9), frames_B, q, k, v, gk, gv, args[-1]) * weights).sum()

        return jax.grad(total, (0, 1, 2, 3, 4))(*args[:-1])

    for block, dense in zip(gradients("block"), gradients("dense"), strict=True):
        np.testing.assert_allclose(block, dense, atol=2e-5)


@pytest.mark.parametrize("kind", ["dense", "block"])
def test_gradients_equal_float64_differences(kind):
    """Along a random direction of every input in turn."""
    *args, valid = inputs(140)
    window, frames_B = Window(20, 9), np.array([140, 101])
    rng = np.random.default_rng(2)
    weights = rng.normal(size=args[0].shape)

    def total(*args):
        return (run(kind, window, frames_B, *args, valid) * weights.astype(np.float32)).sum()

    gradients = jax.grad(total, (0, 1, 2, 3, 4))(*args)
    for i, gradient in enumerate(gradients):
        direction, values = rng.normal(size=args[i].shape), []
        for step in (1e-5, -1e-5):
            moved = [a.astype(np.float64) for a in args]
            moved[i] = moved[i] + step * direction
            values.append((float64_dense(window, frames_B, *moved, valid) * weights).sum())
        numeric = (values[0] - values[1]) / 2e-5
        found = (np.asarray(gradient, np.float64) * direction).sum()
        assert found == pytest.approx(numeric, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kind", ["dense", "block"])
def test_nan_in_the_padding_never_leaks(kind):
    q, k, v, gk, gv, valid = inputs(200)
    frames_B = np.array([200, 100])
    clean = run(kind, Window(9, 9), frames_B, q, k, v, gk, gv, valid)
    k[1, 100:] = v[1, 100:] = np.nan
    poisoned = run(kind, Window(9, 9), frames_B, q, k, v, gk, gv, valid)
    np.testing.assert_array_equal(poisoned[1, :100], clean[1, :100])


@pytest.mark.parametrize("kind", ["dense", "block"])
def test_a_query_that_sees_nothing_gives_zero(kind):
    q, k, v, *_ = inputs(200)
    out = attend(q, k, v, window=Window(3, 3), frames_B=jnp.array([200, 50]), kind=kind)
    np.testing.assert_array_equal(out[1, 60:], 0.0)


def test_frames_outside_the_window_have_no_influence():
    q, k, v, gk, gv, valid = inputs(300)

    def frame(k):
        return run("block", Window(10, 4), np.array([300, 300]), q, k, v, gk, gv, valid)[0, 150].sum()

    reached = np.flatnonzero(np.abs(jax.grad(frame)(k)[0]).sum((-1, -2)))
    assert (reached.min(), reached.max()) == (140, 154)


def test_unknown_kind_is_refused():
    q, k, v, *_ = inputs(10)
    with pytest.raises(ValueError, match="block, dense"):
        attend(q, k, v, window=Window(1, 1), frames_B=jnp.array([10, 10]), kind="flash")


def attention_of(frames):
    def total(q, k, v, gk, gv):
        return attend(
            q, k, v, window=Window(64, 64), frames_B=jnp.array([frames]), kind="block",
            global_k_BGHK=gk, global_v_BGHK=gv, global_valid_BG=jnp.ones((1, 64), bool),
        ).sum()  # fmt: skip

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
