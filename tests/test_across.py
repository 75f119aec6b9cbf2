"""Attention over a mesh that splits heads and time: the values of the whole, and nothing but halos moved."""

import math
import re
from functools import partial

import jax
import numpy as np
import pytest
from attention_cases import draw, reference, value_and_gradients
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from pointer_cases import TINY, Batch, batch_of

from editjax.attention import Window
from editjax.edits import PAD, STOP
from editjax.family import family_of
from editjax.mesh import MeshSettings, make_mesh, place_batch, state_shardings
from editjax.models.layers import WindowAttention
from editjax.models.rows import take
from editjax.step import TrainConfig, compiled_update, init_state

FRAMES = 128
CASES = {
    "both sides": draw(FRAMES, Window(9, 5)),
    "causal": draw(FRAMES, Window(31, 0), tokens=1),
    "ahead": draw(FRAMES, Window(0, 7)),
    "as wide as a device": draw(FRAMES, Window(32, 32)),
    "wider": draw(FRAMES, Window(33, 0)),
    "packed": draw(FRAMES, Window(20, 20), packed=True),
    "places": draw(FRAMES, Window(4, 6), queries=40),
    "odd": draw(FRAMES - 1, Window(9, 5)),
}
MESHES = {
    "seq": MeshSettings(seq=4),
    "data × seq": MeshSettings(seq=2),
    "tensor × seq": MeshSettings(tensor=2, seq=2),
}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_whole(name, mesh):
    case = CASES[name]
    d_out = np.random.default_rng(1).normal(size=case.q.shape).astype(np.float32)
    wanted, gradients = reference(case, d_out)
    with jax.set_mesh(make_mesh(MESHES[mesh])):
        out, found = value_and_gradients(case, "block", d_out)
    np.testing.assert_allclose(out, wanted, atol=2e-5)
    for d, wanted in zip(found, gradients, strict=True):
        np.testing.assert_allclose(d, wanted, atol=2e-4)


def test_other_kinds_are_split_as_well():
    case = CASES["both sides"]
    d_out = np.ones(case.q.shape, np.float32)
    with jax.set_mesh(make_mesh(MESHES["tensor × seq"])):
        out, _ = value_and_gradients(case, "dense", d_out)
    np.testing.assert_allclose(out, reference(case, d_out)[0], atol=2e-5)


def traffic(compiled) -> dict[str, int]:
    """The most numbers that one collective of each kind moves in a compiled program; whole numbers apart."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found: dict[str, int] = {}
    for results, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", compiled.as_text()):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            name = kind if dtype == "f32" else f"{kind} of {dtype}"
            found[name] = max(found.get(name, 0), math.prod(int(n) for n in shape.split(",") if n))
    return found


def test_only_halos_and_the_gradients_of_tokens_move():
    case = draw(4096, Window(16, 8))
    row = case.q.shape[0] * case.q.shape[2] * case.q.shape[3]
    mesh = make_mesh(MESHES["seq"])

    def both(arrays, d_out):
        out, pull = jax.vjp(lambda *arrays: case.attend("block", *arrays), *arrays)
        return out, pull(d_out)

    def laid(x, *spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P(*spec)))

    split, (told, _) = laid(case.q, None, "seq"), case.arrays[3:]
    layout = split.sharding, ((split.sharding,) * 3 + (NamedSharding(mesh, P()),) * 2)
    with jax.set_mesh(mesh):
        program = jax.jit(both, out_shardings=layout)
        moved = traffic(program.lower((split,) * 3 + (laid(told),) * 2, split).compile())
    segments = {"collective-permute of s32": 16 * len(case.q)}
    assert moved == {"collective-permute": 16 * row, "all-reduce": told.shape[1] * row, **segments}


@pytest.mark.parametrize("dtype", [np.float32, np.int32, bool])
@pytest.mark.parametrize("mesh", MESHES)
def test_rows_are_read_whichever_device_holds_them(mesh, dtype):
    rng = np.random.default_rng(2)
    x_BTD = (rng.normal(size=(2, FRAMES, 3)) * 9).astype(dtype)
    index_BN = rng.integers(-5, FRAMES + 5, (2, 64)).astype(np.int32)
    inside = (index_BN >= 0) & (index_BN < FRAMES)
    rows = np.take_along_axis(x_BTD, np.where(inside, index_BN, 0)[..., None], axis=1)
    with jax.set_mesh(make_mesh(MESHES[mesh])):
        found = jax.jit(take)(x_BTD, index_BN)
        np.testing.assert_array_equal(found, np.where(inside[..., None], rows, np.zeros((), dtype)))
        if dtype == np.float32:
            d_rows = rng.normal(size=rows.shape).astype(dtype)
            (d_x,) = jax.jit(lambda x, d: jax.vjp(lambda x: take(x, index_BN), x)[1](d))(x_BTD, d_rows)
            wanted = np.zeros_like(x_BTD)
            for b, n in np.argwhere(inside):
                wanted[b, index_BN[b, n]] += d_rows[b, n]
            np.testing.assert_allclose(d_x, wanted, atol=1e-5)


def test_attention_over_split_heads_moves_sums_and_weights(monkeypatch):
    """Each device projects for its own heads; of examples nothing but the sums of their products moves."""
    monkeypatch.setattr("editjax.mesh.SMALLEST_SPLIT", 1)
    layer = WindowAttention(width=64, heads=4, window=Window(8, 8))
    x, frames = jax.ShapeDtypeStruct((4, 512, 64), np.float32), jax.ShapeDtypeStruct((4,), np.int32)
    params = {"window": jax.eval_shape(layer.init, jax.random.key(0), x, frames)["params"]}

    def loss(params, x, frames):
        return (layer.apply({"params": params["window"]}, x, frames) ** 2).sum()

    found = []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(MeshSettings(tensor=4))):
        shardings = state_shardings(params, mesh, family_of(TINY).rules)
        with jax.set_mesh(mesh):
            step = jax.jit(jax.grad(loss, (0, 1)), out_shardings=(shardings, NamedSharding(mesh, P())))
            found.append(step.lower(params, x, frames).compile())
    assert shardings["window"]["out"]["kernel"].spec == P("tensor")
    whole, split = found
    assert split.cost_analysis()["flops"] < 0.3 * whole.cost_analysis()["flops"]
    moved = traffic(split)
    assert moved.pop("all-reduce") <= math.prod(x.shape)
    assert all(size <= 3 * 64 * 64 for size in moved.values()), moved


def eight_examples():
    """Of several lengths, with a jump each."""
    ends = [*range(40), *range(20, 40), STOP], [*range(8, 30), *range(4, 8), STOP, *[PAD] * 34]
    examples = [batch_of(ends[k % 2], frames=60 - k) for k in range(8)]
    return Batch(*map(np.concatenate, zip(*examples, strict=True)))


def program_on(mesh, batch):
    """A training step of the small pointer network, and its arguments, laid out over a mesh."""
    config, family, key = TrainConfig(model=TINY), family_of(TINY), jax.random.key(0)
    init = partial(init_state, config, family)
    layout = state_shardings(jax.eval_shape(init, key), mesh, family.rules)
    state = jax.jit(init, out_shardings=layout)(key)
    return compiled_update(config, family, layout), (state, place_batch(batch, mesh), key, None)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [MeshSettings(), MeshSettings(fsdp=2, seq=2), MeshSettings(tensor=2, seq=2)])
def test_a_training_step_is_that_of_one_device(mesh, monkeypatch):
    """But for rounding: sums are taken in another order. Here small parameters are split too."""
    monkeypatch.setattr("editjax.mesh.SMALLEST_SPLIT", 1)
    found = []
    for placed in (make_mesh(devices=jax.devices()[:1]), make_mesh(mesh)):
        with jax.set_mesh(placed):
            program, arguments = program_on(placed, eight_examples())
            found.append(program(*arguments)[1])
    one, other = found
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-6)
    np.testing.assert_allclose(other["gradient_norm"], one["gradient_norm"], rtol=1e-5)


@pytest.mark.slow
def test_split_examples_move_nothing_but_gradients():
    """XLA gathers a batch on every device where it is looped over, sorted, or scattered to by number."""
    with jax.set_mesh(mesh := make_mesh()):
        program, arguments = program_on(mesh, eight_examples())
        largest = max(leaf.size for leaf in jax.tree.leaves(arguments[0].params))
        moved = traffic(program.lower(*arguments).compile())
    counts = moved.pop("all-reduce of s32", 0)
    assert moved == {"all-reduce": largest} and counts <= 1
