"""Kernels for accelerators: interpreted against float64, lowered for CUDA and TPU, compiled for TPU."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import draw, reference, value_and_gradients
from jax import export
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from editjax.attention import Window, mosaic

GPU = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
SPLASH = {
    "two-sided": draw(300, Window(30, 50), head=64),
    "packed": draw(300, Window(30, 50), head=64, packed=True),
    "causal, no tokens": draw(200, Window(70, 0), head=64, tokens=0),
}
MOSAIC = {
    "two-sided": draw(140, Window(30, 50), head=64, dtype=jnp.bfloat16, heads=1),
    "packed, places": draw(70, Window(9, 40), head=64, dtype=jnp.bfloat16, packed=True, queries=90),
    "causal, no tokens": draw(70, Window(30, 0), head=64, dtype=jnp.bfloat16, heads=1, tokens=0),
}


@pytest.mark.parametrize("name", SPLASH)
def test_splash_equals_float64_when_interpreted(name):
    case = SPLASH[name]
    d_out = np.random.default_rng(1).normal(size=case.q.shape).astype(np.float32)
    out, gradients = value_and_gradients(case, "splash", d_out, interpret=True)
    expected, expected_gradients = reference(case, d_out)
    np.testing.assert_allclose(out, expected, atol=5e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOSAIC)
def test_mosaic_equals_float64_when_interpreted(name, monkeypatch):
    """Tiles, copies, barriers, masks and softmax; the tensor cores' products are XLA's here."""
    case = MOSAIC[name]
    monkeypatch.setattr(mosaic, "CHUNK", 3)  # of the four tiles of the first case's queries
    d_out = np.random.default_rng(1).normal(size=case.q.shape).astype(jnp.bfloat16)
    out, gradients = value_and_gradients(case, "mosaic", d_out, interpret=gpu_interpreter())
    expected, expected_gradients = reference(case, d_out)
    for found, wanted in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        found = np.asarray(found, np.float64)
        assert np.isfinite(found).all()
        # The first query of a causal window sees itself alone: its gradient is zero but for rounding.
        np.testing.assert_allclose(found[wanted == 0], 0, atol=0 if case.mask.window.right else 0.01)
        assert np.linalg.norm(found - wanted) <= 0.005 * np.linalg.norm(wanted)


def gpu_interpreter():
    with contextlib.suppress(ImportError):
        from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams

        return InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # where JAX 0.10 has it

    return InterpretGPUParams()


@pytest.mark.parametrize(
    "case",
    [
        draw(500, Window(256, 256), head=64, dtype=jnp.bfloat16, tokens=200),
        draw(500, Window(256, 256), head=128, dtype=jnp.float16, tokens=200),
        draw(500, Window(256, 0), head=128, dtype=jnp.bfloat16, tokens=0, queries=90),
    ],
    ids=["64, bfloat16", "128, float16", "causal, no tokens, places"],
)
def test_mosaic_lowers_for_cuda(case):
    """One kernel forward, two backward, from a machine without a GPU."""
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=GPU)
    unchecked = [export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")]
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = export.export(
            jax.jit(gradients_of(case, "mosaic")), platforms=["cuda"], disabled_checks=unchecked
        )
        text = lowered(*map(jnp.asarray, case.arrays)).mlir_module()
    assert text.count("mosaic_gpu_v2") == 3


def test_splash_lowers_for_tpu():
    case = SPLASH["packed"]
    lowered = export.export(jax.jit(gradients_of(case, "splash")), platforms=["tpu"])
    assert lowered(*map(jnp.asarray, case.arrays)).mlir_module().count("tpu_custom_call") == 3


def test_splash_compiles_for_tpu():
    """Ahead of time, where `libtpu` is installed: a recording of 100 s, 256 tokens, heads of 128."""
    pytest.importorskip("libtpu")
    case = draw(4096, Window(256, 256), head=128, dtype=jnp.bfloat16, tokens=256)
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = Mesh(np.array(topology.devices[:1]), ("x",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for a in case.arrays]
    compiled = jax.jit(gradients_of(case, "splash")).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 30 * sum(a.nbytes for a in case.arrays)


def gradients_of(case, kind):
    def total(*arrays):
        return case.attend(kind, *arrays).astype(jnp.float32).sum()

    return jax.grad(total, tuple(range(len(case.arrays))))


@pytest.mark.parametrize(
    ("kind", "case", "reason"),
    [
        ("mosaic", draw(9, Window(3, 3), head=32, dtype=jnp.bfloat16), r"width \(64, 128\), not 32"),
        ("mosaic", draw(9, Window(3, 3), head=64), "not float32"),
        ("splash", draw(9, Window(3, 3), queries=4), "places of their own"),
        ("cudnn", draw(9, Window(3, 1), tokens=0, dtype=jnp.bfloat16), "looks 1 frames ahead"),
        ("cudnn", draw(9, Window(3, 0), tokens=0, dtype=jnp.bfloat16, packed=True), "packed examples"),
        ("cudnn", draw(9, Window(3, 0), dtype=jnp.bfloat16), "global tokens"),
        ("cudnn", draw(9, Window(3, 0), tokens=0), "float32 arrays"),
    ],
)
def test_a_mask_that_a_kernel_cannot_do_is_refused(kind, case, reason):
    with pytest.raises(ValueError, match=reason):
        case.attend(kind)


def test_cudnn_is_asked_for_the_right_mask(monkeypatch):
    """JAX lowers cuDNN only where it is installed; the same call to its XLA twin must give the attention."""
    twin = jax.nn.dot_product_attention

    def xla(*args, implementation, **options):
        assert implementation == "cudnn"
        return twin(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", xla)
    case = draw(200, Window(30, 0), head=64, tokens=0, dtype=jnp.bfloat16)
    d_out = np.random.default_rng(1).normal(size=case.q.shape).astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # the twin promotes; cuDNN does not
        out, gradients = value_and_gradients(case, "cudnn", d_out)
    expected, expected_gradients = reference(case, d_out)
    for found, wanted in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        found = np.asarray(found, np.float64)
        assert np.linalg.norm(found - wanted) <= 0.01 * np.linalg.norm(wanted)
