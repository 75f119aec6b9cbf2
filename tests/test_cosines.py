"""A fresh codec is a cosine transform and its inverse: what is low comes back, what is high does not."""

import jax
import numpy as np
import pytest
import scipy.fft
from codec_cases import DECODE, ENCODE

from editjax.models.codec import CodecSettings, init
from editjax.models.cosines import bands_of, cosines

PLAIN = CodecSettings(
    n_filters=8, ratios=(5, 4), dimension=8, residual_layers=0, lstm_layers=0, codebooks=2, codes=8,
    sample_rate_hz=800, bandwidths_kbps=(1.0,),
)  # fmt: skip
DEEP = CodecSettings(**{**vars(PLAIN), "residual_layers": 2})


def test_the_transform_is_scipys() -> None:
    block_R = np.random.default_rng(0).standard_normal(20)
    np.testing.assert_allclose(cosines(20) @ block_R, scipy.fft.dct(block_R, norm="ortho"), atol=1e-6)


def test_bands_are_taken_from_the_lowest_and_fold() -> None:
    """Of two bands of four: the first in order, the second from its end, for its lowest turns up last."""
    bands, ranks = bands_of(np.array([0, 1]), 4, 6)
    assert ranks.tolist() == [0, 1, 2, 3, 4, 5]
    assert bands.channel_A.tolist() == [0, 0, 0, 0, 1, 1] and bands.row_A.tolist() == [0, 1, 2, 3, 3, 2]


@pytest.mark.parametrize("settings", [PLAIN, DEEP], ids=["plain", "residual layers"])
@pytest.mark.parametrize(
    ("hz", "least_db", "most_db"), [(10.0, 20.0, 99.0), (60.0, 10.0, 99.0), (370.0, -9.0, 1.0)]
)
def test_a_fresh_codec_gives_back_what_is_low(
    settings: CodecSettings, hz: float, least_db: float, most_db: float
) -> None:
    """8 numbers of 20 samples at 800 Hz: below 160 Hz."""
    fresh = init(settings, jax.random.key(0))
    sound_BCS = 0.3 * np.sin(2 * np.pi * hz * np.arange(800) / 800.0, dtype=np.float32)[None, None]
    heard_BCS = DECODE(settings, fresh, ENCODE(settings, fresh, sound_BCS))
    error = ((np.asarray(heard_BCS) - sound_BCS) ** 2).mean()
    assert least_db < 10.0 * np.log10((sound_BCS**2).mean() / error) < most_db


def test_every_channel_of_a_sound_comes_back() -> None:
    """Two channels share the latents: bands are the lowest of both."""
    stereo = CodecSettings(**{**vars(PLAIN), "channels": 2, "dimension": 16, "n_filters": 16})
    fresh = init(stereo, jax.random.key(0))
    at_S = np.arange(800, dtype=np.float32) / 800.0
    sound_BCS = 0.3 * np.stack([np.sin(63.0 * at_S), np.cos(126.0 * at_S)])[None].astype(np.float32)
    heard_BCS = np.asarray(DECODE(stereo, fresh, ENCODE(stereo, fresh, sound_BCS)))
    error_C = ((heard_BCS - sound_BCS) ** 2).mean((0, 2))
    assert (error_C < 0.05 * (sound_BCS**2).mean((0, 2))).all()
