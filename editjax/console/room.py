"""What the sends of a console go to: a room, and echoes."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.special

LONGEST_ROOM_S = 3.0
FIRST_S = 0.02
"""From the sound to its reverberation."""
BANDS_HZ = 500.0, 4000.0
DECAYS = 1.0, 0.8, 0.4
"""How long each band takes to decay, of what the lowest takes: air and walls swallow what is high."""
SIXTY_DB = 6.9078
"""The natural logarithm of 60 dB, of which a decay time speaks."""
ECHOES, LONGEST_ECHO_S = 6, 1.0


def reverberated(x_CS, decay_s, rate_hz: float):
    """The room's answer to sound (2, S): noise of unit energy that decays by 60 dB in `decay_s`."""
    return sounding_on(x_CS, decay_s, rate_hz)[:, : x_CS.shape[1]]


def sounding_on(x_CS, decay_s, rate_hz: float):
    """The same, as long as it sounds: (2, S + `rings(rate_hz)`)."""
    answer_CR = _answer(decay_s, rate_hz)
    first, n_samples = round(FIRST_S * rate_hz), x_CS.shape[1] + answer_CR.shape[1]
    length = scipy.fft.next_fast_len(n_samples, real=True)
    heard_CS = jnp.fft.irfft(jnp.fft.rfft(x_CS, length) * jnp.fft.rfft(answer_CR, length), length)
    return jnp.pad(heard_CS[:, :n_samples], ((0, 0), (first, 0)))


def rings(rate_hz: float) -> int:
    """Samples for which the room is heard after the sound."""
    return round(LONGEST_ROOM_S * rate_hz) + round(FIRST_S * rate_hz)


def echo_history(rate_hz: float) -> int:
    """Samples that echoes may come from."""
    return ECHOES * round(LONGEST_ECHO_S * rate_hz) + 1


def echoed(x_CS, delay_s, feedback, rate_hz: float):
    """`ECHOES` of sound (C, S), `delay_s` apart, each but the first `feedback` of that before it."""
    longest, n_samples = echo_history(rate_hz) - 1, x_CS.shape[1]
    padded_CS = jnp.pad(x_CS, ((0, 0), (longest + 1, 0)))

    def echo(k):
        late = jnp.clip(k * delay_s * rate_hz, 0.0, longest)
        whole = jnp.floor(late)
        start = longest - whole.astype(jnp.int32)
        one_CS = jax.lax.dynamic_slice_in_dim(padded_CS, start, n_samples + 1, 1)
        part = late - whole  # a straight line between samples: gradients flow to the delay
        return feedback ** (k - 1.0) * (part * one_CS[:, :-1] + (1.0 - part) * one_CS[:, 1:])

    return sum(echo(float(k)) for k in range(1, ECHOES + 1))


def _answer(decay_s, rate_hz: float):
    """Noise (2, R), always the same, each of its bands with its decay.

    Band after band: of the three at once, constants, times their decays and summed, XLA for CPUs (jax 0.10.2)
    makes the left channel twice.
    """
    answer_CR: Any = 0.0
    for share, band_CR in zip(DECAYS, _noise(rate_hz), strict=True):
        time_R = jnp.arange(band_CR.shape[1], dtype=jnp.float32) / rate_hz
        answer_CR = answer_CR + band_CR * jnp.exp(-SIXTY_DB * time_R / (decay_s * share))[None]
    return answer_CR / jnp.sqrt((answer_CR**2).sum(1, keepdims=True))


@lru_cache(maxsize=4)
def _noise(rate_hz: float) -> np.ndarray:
    """Noise (3, 2, R) of the bands: a constant, for making it takes as long as the rest of the room."""
    n_samples = round(LONGEST_ROOM_S * rate_hz)
    noise_CR = np.random.RandomState(0).standard_normal((2, n_samples))  # whose numbers will never change
    hz_F = np.linspace(0.0, rate_hz / 2, n_samples // 2 + 1)
    below, above = (scipy.special.expit(8.0 * np.log2(np.maximum(hz_F, 1.0) / hz)) for hz in BANDS_HZ)
    bands_3F = np.stack([1.0 - below, below * (1.0 - above), below * above])
    spectrum_CF = scipy.fft.rfft(noise_CR)
    return scipy.fft.irfft(spectrum_CF[None] * bands_3F[:, None], n_samples).astype(np.float32)
