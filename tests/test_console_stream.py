"""Block by block, the console and its meters give what they give of the whole."""

import functools
import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editjax.console import loudness, stream
from editjax.console.desk import Master, Strip, mix

RATE_HZ = 16_000
STRIPS = Strip(
    gain_db=jnp.array([3.0, -2.0]),
    low_cut_hz=jnp.array([40.0, 0.0]),
    low_db=jnp.array([4.0, 0.0]),
    low_mid_db=jnp.array([-6.0, 3.0]),
    high_mid_db=jnp.array([5.0, 2.0]),
    high_hz=jnp.array([5000.0, 4000.0]),
    high_db=jnp.array([-8.0, 3.0]),
    threshold_db=jnp.array([-24.0, -30.0]),
    ratio=jnp.array([4.0, 2.0]),
    makeup_db=jnp.array([6.0, 3.0]),
    width=jnp.array([1.4, 0.5]),
    pan=jnp.array([-0.3, 0.8]),
    room_db=jnp.array([-12.0, -20.0]),
    echo_db=jnp.array([-15.0, -30.0]),
)
STRIPS = Strip(*(jnp.broadcast_to(jnp.float32(value), (2,)) for value in STRIPS))


@functools.cache
def stems(channels: int = 2, seconds: float = 7.3) -> np.ndarray:
    """Two, (2, C, S): bursts of noise, the second with something at 0 Hz."""
    rng = np.random.default_rng(0)
    n_samples = round(seconds * RATE_HZ)
    swell_S = 0.02 + np.abs(np.sin(np.arange(n_samples) / 5000)) ** 8
    x_ICS = 0.3 * rng.normal(size=(2, channels, n_samples)) * swell_S[None, None]
    x_ICS[1] += 0.05
    return x_ICS.astype(np.float32)


def parts(x_ICS: np.ndarray, sizes: list[int]):
    """Blocks of these sizes, again and again."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= x_ICS.shape[-1]:
            return
        yield x_ICS[..., start : start + size]
        start += size


@pytest.mark.parametrize("master", [Master(), Master(gain_db=18.0, ceiling_db=-3.0, echo_s=0.21)])
@pytest.mark.parametrize(
    "channels, block, sizes", [(2, 2**16, [10**9]), (2, 4096, [1, 5000, 317]), (1, 8192, [4096])]
)
def test_a_mix_in_blocks_is_the_mix(channels, block, sizes, master):
    x_ICS = stems(channels)
    wanted = np.asarray(jax.jit(functools.partial(mix, rate_hz=RATE_HZ))(x_ICS, STRIPS, master))
    made = list(stream.render(parts(x_ICS, sizes), STRIPS, master, RATE_HZ, block))
    assert max(one.shape[1] for one in made) <= block
    np.testing.assert_allclose(np.concatenate(made, 1), wanted, atol=1e-5)
    assert np.abs(wanted).max() > 0.3


def test_it_comes_as_late_as_is_said_and_ends_when_it_should():
    came = 0

    def counted():
        nonlocal came
        for one in parts(stems(), [1000]):
            came += one.shape[-1]
            yield one

    out = stream.render(counted(), STRIPS, Master(), RATE_HZ, 2048)
    made = 0
    for one in out:
        made += one.shape[1]
        assert made <= came < made + stream.latency(RATE_HZ, 2048) + 2048 + 1000
    assert made == came == stems().shape[-1]


@pytest.mark.parametrize("n_samples", [0, 1, 2047, 2048])
def test_what_is_short_comes_out_as_long_as_it_is(n_samples):
    x_ICS = stems()[:, :, :n_samples]
    made = [one.shape[1] for one in stream.render(parts(x_ICS, [500]), STRIPS, Master(), RATE_HZ, 2048)]
    assert sum(made) == n_samples
    assert not list(stream.render([], STRIPS, Master(), RATE_HZ))


def test_memory_does_not_grow_with_the_length():
    def peak(n_blocks: int) -> int:
        silence = np.zeros((2, 2, 2**14), np.float32)
        tracemalloc.start()
        for _ in stream.render(itertools.repeat(silence, n_blocks), STRIPS, Master(), RATE_HZ, 2**14):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(2)
    assert peak(60) < 1.2 * peak(15)


@pytest.mark.parametrize("sizes", [[10**9], [1, 999, 70_000], [1600]])
def test_meters_of_blocks_are_those_of_the_whole(sizes):
    x_CS = stems()[0]
    meter = stream.Meter(RATE_HZ)
    for one in parts(x_CS, sizes):
        meter.add(one)
    for _ in range(2):  # asking changes nothing
        assert meter.loudness() == pytest.approx(float(loudness.loudness(x_CS, RATE_HZ)), abs=1e-3)
        assert meter.loudness_range() == pytest.approx(
            float(loudness.loudness_range(x_CS, RATE_HZ)), abs=1e-3
        )
        assert meter.true_peak() == pytest.approx(float(loudness.true_peak(x_CS)), rel=1e-6)


def test_a_peak_where_blocks_meet_is_seen():
    """And one behind the last sample, where the filter still sounds."""
    for place in (stream.BLOCK - 1, stream.BLOCK, 2 * stream.BLOCK - 1):
        x_CS = np.zeros((1, 2 * stream.BLOCK), np.float32)
        x_CS[0, place - 1 : place + 1] = 0.7
        meter = stream.Meter(RATE_HZ)
        for one in parts(x_CS, [stream.BLOCK]):
            meter.add(one)
        assert meter.true_peak() == pytest.approx(float(loudness.true_peak(x_CS)), rel=1e-6)
        assert meter.true_peak() > 0.85


def test_a_meter_that_has_heard_nothing():
    meter = stream.Meter(RATE_HZ)
    assert meter.loudness() == -np.inf and meter.loudness_range() == 0 and meter.true_peak() == 0
