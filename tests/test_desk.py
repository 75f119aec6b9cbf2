"""The whole console: what each setting does to a mix, and that all of them can be learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from editjax.console import room
from editjax.console.desk import Master, Strip, bands, channel, equaliser, mix, of_ten
from editjax.console.filters import filtered, sections
from editjax.console.loudness import true_peak
from editjax.console.room import ECHOES, LONGEST_ROOM_S, echoed, reverberated

RATE_HZ = 16_000
TIME_S = np.arange(2 * RATE_HZ, dtype=np.float32) / RATE_HZ
MIDDLE = slice(RATE_HZ // 2, -RATE_HZ // 2)  # of two seconds, where filters and gains have settled


def tone(hz: float = 1000.0, amplitude: float = 0.1) -> np.ndarray:
    """Mono, (1, S)."""
    return amplitude * np.sin(2 * np.pi * np.float32(hz) * TIME_S)[None]


def strips(*given: dict[str, float]) -> Strip:
    """One for each stem."""
    each = [Strip(**one) for one in given]
    return Strip(*(jnp.array(values, jnp.float32) for values in zip(*each, strict=True)))


mixed = jax.jit(functools.partial(mix, rate_hz=RATE_HZ))


def heard(x_CS: np.ndarray, **settings: float) -> np.ndarray:
    """One stem's mix, where it has settled."""
    return np.asarray(mixed(x_CS[None], strips(settings), Master()))[:, MIDDLE]


def level(x_S: np.ndarray) -> float:
    return 10 * np.log10((x_S.astype(np.float64) ** 2).mean())


def test_as_it_stands_it_is_the_sum():
    stems = np.stack([tone(300), tone(2000)])
    found = np.asarray(mixed(stems, strips({}, {}), Master()))
    np.testing.assert_allclose(found[:, MIDDLE], np.tile(stems.sum(0), (2, 1))[:, MIDDLE], atol=2e-4)


@pytest.mark.parametrize(
    "hz, settings, change_db",
    [
        (1000, {"gain_db": -6.0}, -6),
        (1000, {"makeup_db": 3.0}, 3),
        (50, {"low_cut_hz": 200.0}, -24),
        (40, {"low_db": 6.0}, 6),
        (400, {"low_mid_db": -9.0, "low_mid_q": 2.0}, -9),
        (2500, {"high_mid_db": 4.0}, 4),
        (7800, {"high_db": 5.0, "high_hz": 3000.0}, 5),
        (1000, {"threshold_db": -40.0, "ratio": 4.0, "knee_db": 0.0, "release_s": 1.0}, -15),
    ],
)
def test_each_setting_does_what_it_says(hz, settings, change_db):
    assert level(heard(tone(hz), **settings)) - level(heard(tone(hz))) == pytest.approx(change_db, abs=0.35)


BUSY = {
    "gain_db": 3.0,
    "low_cut_hz": 40.0,
    "low_db": 4.0,
    "low_mid_db": -6.0,
    "low_mid_q": 2.0,
    "high_mid_db": 5.0,
    "high_mid_q": 0.7,
    "high_hz": 5000.0,
    "high_db": -8.0,
    "threshold_db": -24.0,
    "ratio": 4.0,
    "attack_s": 0.004,
    "release_s": 0.08,
    "makeup_db": 6.0,
    "width": 1.4,
    "pan": -0.3,
}
NOISE_2S = (0.2 * np.random.default_rng(4).normal(size=(2, RATE_HZ))).astype(np.float32)


@pytest.mark.parametrize("low_cut_hz", [0.0, 40.0])
def test_the_filters_of_a_strip_are_a_cascade_in_float64(low_cut_hz):
    strip = Strip(**BUSY | {"low_cut_hz": low_cut_hz})
    wanted = scipy.signal.sosfilt(sections(bands(strip), RATE_HZ), NOISE_2S.astype(np.float64))
    found = filtered(NOISE_2S, lambda n_bins: equaliser(strip, RATE_HZ, n_bins), RATE_HZ)
    np.testing.assert_allclose(found, wanted, atol=2e-6 * np.abs(wanted).max())


def strip_in_a_loop(x_CS: np.ndarray, strip: Strip) -> np.ndarray:
    """The whole strip, sample by sample in float64."""
    x_CS = scipy.signal.sosfilt(sections(bands(strip), RATE_HZ), x_CS.astype(np.float64))
    x_2S = np.broadcast_to(10 ** (strip.gain_db / 20) * x_CS, (2, x_CS.shape[1]))
    attack, release = (np.exp(-1 / (s * RATE_HZ)) for s in (strip.attack_s, strip.release_s))
    left, right = (2**0.5 * turn((strip.pan + 1) * np.pi / 4) for turn in (np.cos, np.sin))
    slow = quick = 0.0
    made = []
    for one_2 in x_2S.T:
        over = 20 * np.log10(max(np.abs(one_2).max(), 1e-6)) - strip.threshold_db
        knee = strip.knee_db
        bent = 0.0 if over < -knee / 2 else over if over > knee / 2 else (over + knee / 2) ** 2 / (2 * knee)
        asked = (1 - 1 / strip.ratio) * bent
        slow = max(asked, release * slow + (1 - release) * asked)
        quick = attack * quick + (1 - attack) * slow
        mid, side = (one_2[0] + one_2[1]) / 2, strip.width * (one_2[0] - one_2[1]) / 2
        gain = 10 ** ((strip.makeup_db - quick) / 20)
        made.append((gain * left * (mid + side), gain * right * (mid - side)))
    return np.array(made).T


@pytest.mark.parametrize("channels", [1, 2])
def test_a_strip_is_the_loop_over_samples(channels):
    strip = Strip(**BUSY)
    wanted = strip_in_a_loop(NOISE_2S[:channels], strip)
    found = np.asarray(channel(NOISE_2S[:channels], strip, RATE_HZ))
    np.testing.assert_allclose(found, wanted, atol=3e-5 * np.abs(wanted).max())


def test_gradients_of_a_strip_are_differences_of_the_loop():
    """Central ones, in float64."""
    strip = Strip(**BUSY)
    ear_2S = np.random.default_rng(5).normal(size=(2, 4000))
    x_2S = NOISE_2S[:, :4000]
    found = jax.grad(lambda strip: (channel(x_2S, strip, RATE_HZ) ** 2 * ear_2S.astype(np.float32)).sum())(
        Strip(*(jnp.float32(value) for value in strip))
    )
    for name in BUSY:
        step = 1e-4 * abs(getattr(strip, name))
        up, down = (
            (strip_in_a_loop(x_2S, strip._replace(**{name: getattr(strip, name) + d})) ** 2 * ear_2S).sum()
            for d in (step, -step)
        )
        assert float(getattr(found, name)) == pytest.approx((up - down) / (2 * step), rel=0.01), name


def test_pan_and_width():
    wide = np.concatenate([tone(300), tone(900)])
    left, right = heard(wide, pan=-1.0)
    assert level(left) - level(wide[0, MIDDLE]) == pytest.approx(3, abs=0.05) and np.abs(right).max() < 1e-6
    left, right = heard(wide, width=0.0)
    np.testing.assert_allclose(left, right, atol=2e-7)
    left, right = heard(wide, width=2.0)
    np.testing.assert_allclose(left - right, 2 * (wide[0] - wide[1])[MIDDLE], atol=2e-4)


def test_echoes_come_when_they_should():
    x_CS = np.zeros((1, 2 * RATE_HZ), np.float32)
    x_CS[0, 100] = 1.0
    found = np.asarray(echoed(x_CS, 0.1 + 0.5 / RATE_HZ, 0.5, RATE_HZ))[0]
    wanted = np.zeros_like(found)
    for k in range(1, ECHOES + 1):
        late = k * (0.1 * RATE_HZ + 0.5)
        wanted[100 + int(late) : 102 + int(late)] = 0.5 ** (k - 1) * np.array([1 - late % 1, late % 1])
    np.testing.assert_allclose(found, wanted, atol=2e-3)


@pytest.mark.parametrize("decay_s", [0.4, 1.2])
def test_a_room_takes_as_long_to_decay_as_it_is_told(decay_s):
    x_CS = np.zeros((2, round(LONGEST_ROOM_S * RATE_HZ)), np.float32)
    x_CS[:, 0] = 1.0
    answer_CS = np.asarray(reverberated(x_CS, decay_s, RATE_HZ)).astype(np.float64)
    assert (answer_CS**2).sum() == pytest.approx(2.0, rel=0.01)
    low = scipy.signal.butter(
        8, 250, fs=RATE_HZ, output="sos"
    )  # where it is told; what is higher decays faster
    power_S = (scipy.signal.sosfilt(low, answer_CS) ** 2).sum(0)
    left_db = 10 * np.log10(np.cumsum(power_S[::-1])[::-1] / power_S.sum())  # Schroeder 1965
    after_s = [np.argmax(left_db < db) / RATE_HZ for db in (-5, -35)]
    assert 2 * (after_s[1] - after_s[0]) == pytest.approx(decay_s, rel=0.15)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_both_channels_of_a_room_are_the_convolution_in_float64(rate_hz):
    """And so is the slope over its decay, compiled as it is used."""
    bands_3CR = room._noise(rate_hz).astype(np.float64)
    time_R = np.arange(bands_3CR.shape[2]) / rate_hz
    x_CS = np.random.default_rng(6).normal(size=(2, 3000)).astype(np.float32)

    def wanted(decay_s):
        decay_3R = np.exp(-room.SIXTY_DB * time_R / (decay_s * np.array(room.DECAYS)[:, None]))
        answer_CR = np.einsum("bcr,br->cr", bands_3CR, decay_3R)
        answer_CR /= np.linalg.norm(answer_CR, axis=1, keepdims=True)
        made_CS = scipy.signal.fftconvolve(x_CS, answer_CR, axes=1)
        first = round(room.FIRST_S * rate_hz)
        return np.pad(made_CS, ((0, 0), (first, 1)))

    heard = jax.jit(lambda decay_s: room.sounding_on(x_CS, decay_s, rate_hz))
    found_CS, slope_CS = jax.jvp(heard, (jnp.float32(0.8),), (jnp.float32(1.0),))
    np.testing.assert_allclose(found_CS, wanted(0.8), atol=1e-5)
    np.testing.assert_allclose(slope_CS, (wanted(0.81) - wanted(0.79)) / 0.02, atol=2e-3)
    np.testing.assert_allclose(room.reverberated(x_CS, 0.8, rate_hz), found_CS[:, :3000], atol=1e-5)


def test_every_setting_can_be_learned():
    rng = np.random.default_rng(0)
    stems = (0.3 * rng.normal(size=(2, 2, RATE_HZ // 2))).astype(np.float32)
    asked = {
        "threshold_db": -20.0,
        "ratio": 3.0,
        "room_db": -20.0,
        "echo_db": -20.0,
        "pan": 0.3,
        "width": 0.8,
    }
    bands = {"low_db": 2.0, "low_mid_db": 2.0, "high_mid_db": 2.0, "high_db": 2.0, "low_cut_hz": 60.0}
    ear_S = rng.normal(size=RATE_HZ // 2).astype(np.float32)

    def said(strips, master):
        return (mixed(stems, strips, master) * ear_S[None]).sum()

    gradients = jax.jit(jax.grad(said, (0, 1)))(strips(asked | bands, asked | bands), Master(echo_s=0.1))
    for settings in gradients:
        for name, d in settings._asdict().items():
            assert np.isfinite(d).all() and np.all(d != 0), name


def test_ten_numbers_of_any_size_are_a_mix_that_does_not_clip():
    loud = np.concatenate([tone(300, 1.0), tone(901, 1.0)])
    rng = np.random.default_rng(1)
    for p_10 in (np.zeros(10), np.ones(10), *rng.integers(0, 2, (6, 10)), *rng.random((4, 10))):
        strip, master = of_ten(p_10.astype(np.float32))
        found = mixed(loud[None], strip, master)
        assert np.isfinite(found).all() and float(true_peak(found)) <= 0.9501
