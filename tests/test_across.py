"""Attention over a mesh that splits heads and time: the values of the whole, and nothing but halos moved."""

import math
import re
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from attention_cases import draw, reference, value_and_gradients
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from pointer_cases import TINY, Batch, batch_of

from editjax.attention import Window
from editjax.decode import decode, encode
from editjax.edits import PAD, STOP
from editjax.family import family_of
from editjax.losses import LossSettings
from editjax.mesh import MeshSettings, make_mesh, place_batch, state_shardings
from editjax.models import pointer
from editjax.models.layers import WindowAttention
from editjax.models.rows import take
from editjax.models.spans import over_spans, pool, spread
from editjax.models.style import Asked
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


@pytest.mark.parametrize("size", [3, 5, 12, 31, 32, 33, FRAMES])
@pytest.mark.parametrize("mesh", MESHES)
def test_spans_are_those_of_the_whole(mesh, size):
    """Beats that begin on one device and end on another, pooled and spread again, with their gradients."""
    rng = np.random.default_rng(3)
    x_BTD, d_out = (rng.normal(size=(2, FRAMES, width)).astype(np.float32) for width in (3, 6))
    frames_B = np.array([FRAMES, 70], np.int32)

    def there_and_back(x_BTD, d_out):
        def forth(x_BTD):
            return spread(pool(x_BTD, frames_B, size), size, FRAMES)

        largest = over_spans(lambda x: x.argmax(2), size, x_BTD)
        out, pull = jax.vjp(forth, x_BTD)
        return largest, out, pull(d_out)

    wanted = jax.jit(there_and_back)(x_BTD, d_out)
    with jax.set_mesh(make_mesh(MESHES[mesh])):
        found = jax.jit(there_and_back)(x_BTD, d_out)
    np.testing.assert_array_equal(found[0], wanted[0])
    for a, b in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_of_spans_nothing_moves_but_their_edges_and_results():
    size, frames = 12, 4096
    mesh = make_mesh(MESHES["seq"])
    split = NamedSharding(mesh, P(None, "seq"))
    x = jax.ShapeDtypeStruct((2, frames, 8), np.float32, sharding=split)

    def both(x_BTD, d_BTD):
        def forth(x_BTD):
            return spread(over_spans(lambda x: x.max(2), size, x_BTD), size, frames)

        out, pull = jax.vjp(forth, x_BTD)
        return out, pull(d_BTD)[0]

    with jax.set_mesh(mesh):
        moved = traffic(jax.jit(both, out_shardings=(split, split)).lower(x, x).compile())
    assert moved == {"collective-permute": 2 * (size - 1) * 8, "all-reduce": 2 * -(-frames // size) * 8}


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


def program_on(mesh, batch, settings=TINY):
    """A training step of the small pointer network, and its arguments, laid out over a mesh."""
    config, family, key = TrainConfig(model=settings), family_of(settings), jax.random.key(0)
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


@pytest.mark.slow
def test_split_time_is_not_gathered():
    """But for spectral shapes and the states that jump; parts of these are no multiples of a beat."""
    frames, settings = 256, replace(TINY, frames_per_beat=6, frames_per_bar=18)
    ends = [*range(60), *range(30, 91), STOP, PAD, PAD]
    examples = [batch_of(ends, frames - k, frames) for k in range(8)]
    with jax.set_mesh(mesh := make_mesh(MeshSettings(seq=4))):
        batch = Batch(*map(np.concatenate, zip(*examples, strict=True)))
        program, arguments = program_on(mesh, batch, settings)
        moved = traffic(program.lower(*arguments).compile())
    states = 8 * LossSettings().max_jumps * settings.width
    gathered = max(count for kind, count in moved.items() if kind.startswith("all-gather"))
    assert gathered <= states < 8 * frames * settings.frame_width


@pytest.mark.slow
def test_decoding_split_examples_moves_nothing_but_whether_one_goes_on():
    with jax.set_mesh(mesh := make_mesh()):
        batch, key = place_batch(eight_examples(), mesh), jax.eval_shape(lambda: jax.random.key(0))
        params = jax.eval_shape(partial(pointer.init, TINY), key)

        def edit(params, batch, key):
            asked = Asked(batch.target_B, np.zeros((8, TINY.style_width), np.float32))
            _, keys = encode(TINY, params, batch.mel_BTF, batch.frames_B, batch.phase_BT3, asked)
            return decode(TINY, params, keys, batch.target_B, 60, 0.0, key)

        assert traffic(jax.jit(edit).lower(params, batch, key).compile()) == {"all-reduce of pred": 1}
