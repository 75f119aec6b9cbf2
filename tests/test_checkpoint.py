"""Checkpoints: whole or absent, exact, independent of the layout they were saved with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from editjax.checkpoint import Checkpoints, abstract
from editjax.errors import DataError, InputOutputError
from editjax.mesh import MeshSettings, make_mesh, state_shardings
from editjax.optim import OptimSettings, make_optimizer


def make_parts(key):
    params = {"layer": {"kernel": jax.random.normal(key, (8, 16)), "bias": jnp.zeros(16)}}
    return {
        "params": params,
        "opt_state": make_optimizer(OptimSettings()).init(params),
        "step": jnp.asarray(3, jnp.int32),
    }


def shapes_on(mesh, rules=()):
    shapes = jax.eval_shape(make_parts, jax.random.key(0))
    return abstract(shapes, state_shardings(shapes, mesh, rules))


@pytest.fixture
def parts():
    return jax.jit(make_parts)(jax.random.key(1))


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_restored_is_what_was_saved(tmp_path, parts):
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step is None
        checkpoints.save(3, parts, {"data": {"next": 3}, "scores": None})
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step == 3
        assert checkpoints.notes(3) == {"data": {"next": 3}, "scores": None}
        assert_identical(checkpoints.restore(3, shapes_on(make_mesh())), parts)


def test_a_part_is_restored_without_the_others(tmp_path, parts):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, parts, {})
        restored = checkpoints.restore(1, {"params": shapes_on(make_mesh())["params"]})
    assert_identical(restored, {"params": parts["params"]})


def test_any_layout_restores_on_any_other(tmp_path, parts):
    rules = [("kernel", P("fsdp", "tensor"))]
    split = shapes_on(make_mesh(MeshSettings(data=1, fsdp=2, tensor=2)), rules)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, parts, {})
        spread = checkpoints.restore(1, split)
        assert spread["params"]["layer"]["kernel"].sharding.spec == P("fsdp", "tensor")
        checkpoints.save(2, spread, {})
        back = checkpoints.restore(2, shapes_on(make_mesh(devices=jax.devices()[:1])))
    assert_identical(back, parts)


def test_the_newest_and_every_nth_are_kept(tmp_path, parts):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, {"step": parts["step"]}, {})
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [4, 6, 7]


def test_later_checkpoints_are_dropped(tmp_path, parts):
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"step": parts["step"]}, {})
        checkpoints.drop_after(1)
        assert checkpoints.latest_step == 1


def test_what_an_unfinished_removal_leaves_is_no_checkpoint(tmp_path, parts):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, parts, {"score": 1})
        checkpoints.save(2, parts, {"score": 2})
    (tmp_path / "2" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 1
        assert checkpoints.notes(1) == {"score": 1}
        checkpoints.save(3, parts, {"score": 3})
        assert checkpoints.latest_step == 3


def test_an_unfinished_save_is_no_checkpoint_and_only_a_writer_cleans_it_away(tmp_path, parts):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"step": parts["step"]}, {})
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    (unfinished / "step").mkdir(parents=True)
    with Checkpoints(tmp_path, writable=False) as reader:
        assert reader.latest_step == 1
    assert unfinished.exists()
    with Checkpoints(tmp_path) as writer:
        assert writer.latest_step == 1
        writer.save(3, {"step": parts["step"]}, {})
        assert not unfinished.exists()


def test_other_names_and_shapes_are_refused(tmp_path, parts):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, parts, {})
        wanted = shapes_on(make_mesh())["params"]
        kernel = wanted["layer"]["kernel"]
        wanted["layer"]["kernel"] = jax.ShapeDtypeStruct((8, 32), kernel.dtype, sharding=kernel.sharding)
        with pytest.raises(DataError, match=r"1: params/layer/kernel has shape \(8, 16\), wanted \(8, 32\)"):
            checkpoints.restore(1, {"params": wanted})
        del wanted["layer"]["kernel"]
        with pytest.raises(DataError, match=r"layer/kernel has shape \(8, 16\), wanted none"):
            checkpoints.restore(1, {"params": wanted})


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputOutputError, match=r"file/run: not writable"):
        Checkpoints(tmp_path / "file" / "run")
