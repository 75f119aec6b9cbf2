"""Devices → mesh, and the layout of parameters and batches over it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from editjax.errors import UsageError
from editjax.mesh import AXES, WIDTHS, MeshSettings, make_mesh, place_batch, state_shardings
from editjax.optim import OptimSettings, make_optimizer

BIG = jax.ShapeDtypeStruct((512, 1024), jnp.float32)
SMALL = jax.ShapeDtypeStruct((8, 8), jnp.float32)


def specs(tree, mesh, rules=()):
    return jax.tree.map(lambda sharding: sharding.spec, state_shardings(tree, mesh, rules))


def test_data_axis_takes_the_devices_the_others_leave():
    assert dict(make_mesh(MeshSettings(fsdp=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 1, "seq": 1}
    assert dict(make_mesh(devices=jax.devices()[:1]).shape) == dict.fromkeys(AXES, 1)


@pytest.mark.parametrize("settings", [MeshSettings(fsdp=3), MeshSettings(data=8), MeshSettings(data=1)])
def test_a_mesh_that_does_not_use_every_device_is_refused(settings):
    with pytest.raises(UsageError, match="does not use 4 devices"):
        make_mesh(settings)


def test_one_device_replicates_everything():
    assert specs({"a": BIG}, make_mesh(devices=jax.devices()[:1])) == {"a": P()}


def test_fsdp_splits_the_longest_axis_of_large_arrays_only():
    assert specs({"a": BIG, "b": SMALL}, make_mesh(MeshSettings(fsdp=4))) == {"a": P(None, "fsdp"), "b": P()}


def test_rules_go_by_the_end_of_the_path_and_moments_follow_their_parameters():
    params = {"encoder": {"qkv": {"kernel": BIG}}, "head": {"kernel": BIG}}
    state = jax.eval_shape(lambda p: (p, make_optimizer(OptimSettings()).init(p)), params)
    mesh = make_mesh(MeshSettings(data=1, tensor=4))
    rules = [(r"qkv/kernel", P(None, "tensor"))]
    found, moments = specs(state, mesh, rules)
    assert found == {"encoder": {"qkv": {"kernel": P(None, "tensor")}}, "head": {"kernel": P()}}
    assert moments[1][0].mu == moments[1][0].nu == found
    assert moments[1][0].count == P()


def test_hidden_widths_are_split_over_tensor_and_the_rest_over_fsdp():
    deep = jax.ShapeDtypeStruct((3, 256, 1024), jnp.float32)
    odd = jax.ShapeDtypeStruct((512, 1023), jnp.float32)
    tree = {"mlp": {"up": {"kernel": deep}, "down": {"kernel": deep}}, "up": {"kernel": odd}, "key": BIG}
    found = specs(tree, make_mesh(MeshSettings(fsdp=2, tensor=2)), WIDTHS)
    assert found == {
        "mlp": {"up": {"kernel": P(None, "fsdp", "tensor")}, "down": {"kernel": P(None, "tensor", "fsdp")}},
        "up": {"kernel": P("fsdp")},
        "key": P(None, "fsdp"),
    }


def test_a_batch_is_split_over_its_examples_and_keeps_its_values():
    mesh = make_mesh(MeshSettings(data=2, fsdp=2))
    batch = {"mel": np.arange(32.0, dtype=np.float32).reshape(8, 4), "ids": np.arange(8, dtype=np.int32)}
    placed = place_batch(batch, mesh)
    assert {shard.data.shape for shard in placed["mel"].addressable_shards} == {(2, 4)}
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
