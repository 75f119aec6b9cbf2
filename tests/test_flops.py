"""Model FLOPs: planted counts through loops, recomputation, attention of every kind, and devices' shards."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from editjax.attention import Mask, Tokens, Window, attend
from editjax.badput import Badput
from editjax.flops import PEAKS, Counted, model_flops, peak_flops_s
from editjax.mesh import make_mesh
from editjax.models.match import find_matches

SIZE, PRODUCT = 8, 2 * 8**3
SQUARE = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)


def flops(function, *shapes) -> float | None:
    return model_flops(jax.make_jaxpr(function)(*shapes).jaxpr)


def layer(x, w):
    return jnp.tanh(x @ w)


def repeated(x, w, body=layer):
    return jax.lax.scan(lambda x, _: (body(x, w), None), x, length=5)[0].sum()


def test_a_loop_counts_as_often_as_it_runs_where_xla_counts_it_once():
    assert flops(repeated, SQUARE, SQUARE) == 5 * PRODUCT
    xla = jax.jit(repeated).lower(SQUARE, SQUARE).compile().cost_analysis()["flops"]
    assert PRODUCT <= xla < 2 * PRODUCT


def test_gradients_are_two_products_more_and_what_is_computed_anew_none():
    gradient = partial(jax.grad, argnums=(0, 1))
    assert flops(gradient(repeated), SQUARE, SQUARE) == 15 * PRODUCT
    anew = partial(repeated, body=jax.checkpoint(lambda x, w: layer(layer(x, w), w)))
    assert flops(gradient(anew), SQUARE, SQUARE) == 30 * PRODUCT


def test_of_what_is_frozen_there_is_no_gradient():
    frozen = jax.grad(lambda x, w: layer(jax.lax.stop_gradient(layer(x, x)), w).sum(), argnums=1)
    assert flops(frozen, SQUARE, SQUARE) == 3 * PRODUCT


def test_what_depends_on_the_data_has_no_figure():
    def until(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

    def either(x, w, other):
        return jax.lax.cond(x.sum() > 0, layer, other, x, w)

    assert flops(until, SQUARE, SQUARE) is None
    assert flops(partial(either, other=lambda x, w: x), SQUARE, SQUARE) is None
    assert flops(partial(either, other=lambda x, w: w @ x), SQUARE, SQUARE) == PRODUCT


def test_the_search_for_matches_whose_passes_depend_on_the_data_is_left_out():
    def search(steps_B):
        return find_matches(jnp.ones((2, 512, 8)), steps_B, 2).score_BMK.sum() * 1.0

    assert flops(search, jnp.array([512, 99])) == 0


def test_a_kernel_that_nobody_knows_has_no_figure():
    def doubled(x):
        kernel = pl.pallas_call(lambda x, out: out.__setitem__(..., x[...] * 2), out_shape=x, interpret=True)
        return kernel(x) @ x

    assert flops(doubled, jnp.ones((SIZE, SIZE))) is None


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_and_their_gradients(stride):
    """Kernel of 4 over 32 steps, 8 → 16 channels."""

    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,), ((2, 2),), dimension_numbers=("NWC", "WIO", "NWC")
        )

    x, kernel = jnp.ones((3, 32, 8)), jnp.ones((4, 8, 16))
    once = 2 * convolved(x, kernel).size * 4 * 8
    assert flops(convolved, x, kernel) == once
    gradient = jax.grad(lambda *args: convolved(*args).sum(), (0, 1))
    assert flops(gradient, x, kernel) == pytest.approx(3 * once, rel=0.1)  # zeros at the ends


@pytest.mark.parametrize("kind", ["block", "dense", "mosaic"])
def test_attention_is_the_pairs_that_are_seen_whatever_computes_them(kind):
    """33 frames of the window and 8 tokens; a kernel's own products are not looked at."""
    dtype = jnp.bfloat16 if kind == "mosaic" else jnp.float32
    q, token = jax.ShapeDtypeStruct((2, 256, 4, 64), dtype), jax.ShapeDtypeStruct((2, 8, 4, 64), dtype)

    def total(q, k, v, global_k, global_v):
        tokens = Tokens(global_k, global_v, jnp.ones((2, 8), bool))
        mask = Mask(Window(16, 16), jnp.array([256, 99]))
        return attend(q, k, v, mask, tokens, kind=kind).astype(jnp.float32).sum()

    once = 2 * 2 * 2 * 256 * 4 * 64 * (33 + 8)
    assert flops(total, q, q, q, token, token) == once
    assert flops(jax.grad(total, (0, 1, 2)), q, q, q, token, token) == 3 * once
    anew = jax.grad(jax.checkpoint(total), (0, 1, 2))
    assert flops(anew, q, q, q, token, token) == 3 * once


def test_what_devices_do_on_their_shards_is_counted_on_all():
    mesh = make_mesh()
    product = jax.shard_map(layer, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert len(jax.devices()) > 1
    assert flops(product, SQUARE, SQUARE) == PRODUCT


def test_every_shape_is_compiled_once_and_has_its_flops(caplog):
    """A clock that moves by one whenever it is read; what is compiled is counted in JAX's own log."""
    times = iter(range(1000))
    spent = Badput(lambda: float(next(times)))
    counted = Counted(jax.jit(lambda state, batch, w: (state + 1, (batch @ w).sum())), spent)
    w = jnp.ones((SIZE, SIZE))
    batches = [np.ones((rows, SIZE), np.float32) for rows in (4, 4, 2, 4, 2)]
    calls = []
    with jax.log_compiles():
        for batch in batches:
            counted(jnp.int32(0), batch, w)
            calls.append(counted.call)
    compiled = [
        record for record in caplog.records if "Finished XLA compilation of jit(<lambda>)" in record.message
    ]
    assert len(compiled) == 2
    assert [call.flops for call in calls] == [2 * len(batch) * SIZE**2 for batch in batches]
    assert [call.compile_s > 0 for call in calls] == [True, False, True, False, False]
    assert spent.seconds()["compile"] > 0


def test_where_the_peak_is_not_known_there_is_none(monkeypatch):
    assert peak_flops_s() is None  # these are CPUs

    class Device:
        device_kind = "NVIDIA H200"

    monkeypatch.setattr(jax, "devices", lambda: [Device(), Device()])
    assert peak_flops_s() == 2 * PEAKS["NVIDIA H200"] == 2 * 989e12
    monkeypatch.setattr(Device, "device_kind", "NVIDIA H200 MIG 1g.18gb")
    assert peak_flops_s() is None
