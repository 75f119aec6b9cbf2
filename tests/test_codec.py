"""A codec to call: streams equal the whole, any rate comes in, and what cannot be coded is refused."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from codec_cases import TINY

from editjax import codec as codec_module
from editjax.audio import resample_stream
from editjax.codec import Codec
from editjax.codec_quality import codec_figures, codec_validate, si_sdr_db
from editjax.errors import UsageError
from editjax.layouts import find
from editjax.models.codec import CodecSettings, decode, encode, init
from editjax.models.quantiser import moved
from editjax.sounds import SoundSettings, write
from editjax.step import TrainConfig

RATE_HZ = TINY.sample_rate_hz


@pytest.fixture(scope="module")
def codec() -> Codec:
    params = init(TINY, jax.random.key(0))
    latents_BTD = jax.random.normal(jax.random.key(1), (4, 64, TINY.dimension))
    books = moved(params["running"]["quantiser"], latents_BTD, jax.random.key(2))
    return Codec(TINY, {**params, "running": {"quantiser": books}})


def sound(samples: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((channels, samples)).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 100, 2047, 2048, 2049, 4103])
def test_a_stream_is_the_whole(codec: Codec, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks it comes in, and however the last of ours is filled."""
    monkeypatch.setattr(codec_module, "BLOCK_FRAMES", 64)
    sound_CS = sound(samples)
    wanted_TD = np.asarray(encode(TINY, codec.params, sound_CS[None]))[0]
    heard_CS = np.asarray(decode(TINY, codec.params, wanted_TD[None]))[0]
    for size in (samples, 300):
        blocks = [sound_CS[:, first : first + size] for first in range(0, samples, size)]
        parts = list(codec.encode_stream(iter(blocks), RATE_HZ))
        assert max(len(part) for part in parts) <= 64
        np.testing.assert_allclose(np.concatenate(parts), wanted_TD, atol=1e-5 * np.abs(wanted_TD).max())
    found_CS = np.concatenate(list(codec.decode_stream(iter([wanted_TD[:7], wanted_TD[7:]]))), axis=1)
    np.testing.assert_allclose(found_CS, heard_CS, atol=1e-5 * np.abs(heard_CS).max())
    np.testing.assert_array_equal(codec.decode(wanted_TD), found_CS)


def test_a_stream_is_read_as_it_is_wanted(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours need no more memory than a block: no input is read ahead of what is asked for."""
    monkeypatch.setattr(codec_module, "BLOCK_FRAMES", 64)
    read = []

    def blocks():
        for number in range(100):
            read.append(number)
            yield sound(64 * TINY.hop)

    stream = codec.encode_stream(blocks(), RATE_HZ)
    next(stream)
    assert len(read) <= 2
    next(stream)
    assert len(read) <= 3


def test_another_rate_and_more_channels_are_taken(codec: Codec) -> None:
    stereo_CS = sound(3001, channels=2)
    mono_S = np.concatenate(list(resample_stream([stereo_CS.T], 1000, RATE_HZ)))
    wanted_TD = codec.encode(mono_S[None], RATE_HZ)
    np.testing.assert_array_equal(codec.encode(stereo_CS, 1000), wanted_TD)
    two = CodecSettings(**{**vars(TINY), "channels": 2})
    stereo = Codec(two, init(two, jax.random.key(0)))
    found_TD = stereo.encode(stereo_CS, RATE_HZ)
    wanted_TD = np.asarray(encode(two, stereo.params, stereo_CS[None]))[0]
    np.testing.assert_allclose(found_TD, wanted_TD, atol=1e-5 * np.abs(wanted_TD).max())
    assert stereo.decode(found_TD).shape == (2, len(found_TD) * two.hop)
    assert stereo.encode(stereo_CS, 1000).shape == codec.encode(stereo_CS, 1000).shape
    with pytest.raises(UsageError, match="2 channels"):
        stereo.encode(sound(100), RATE_HZ)


def test_codes_say_the_latents_by_bandwidth(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "BLOCK_FRAMES", 64)
    latents_TD = np.random.default_rng(1).standard_normal((150, TINY.dimension)).astype(np.float32)
    errors = []
    for kbps, books in ((0.3, 1), (0.6, 2), (None, 3)):
        codes_QT = codec.quantise(latents_TD, kbps)
        assert codes_QT.shape == (books, 150) and codes_QT.dtype == np.int32
        np.testing.assert_array_equal(codec.quantise(latents_TD[:10], kbps), codes_QT[:, :10])
        coded_TD = codec.dequantise(codes_QT)
        np.testing.assert_array_equal(codec.dequantise(codes_QT[:, :10]), coded_TD[:10])
        errors.append(((coded_TD - latents_TD) ** 2).mean())
    assert sorted(errors, reverse=True) == errors and errors[-1] < 0.5


def test_of_nothing_comes_nothing(codec: Codec) -> None:
    nothing_TD = codec.encode(np.zeros((1, 0), np.float32), RATE_HZ)
    assert nothing_TD.shape == (0, 6) and codec.decode(nothing_TD).shape == (1, 0)
    assert codec.quantise(nothing_TD).shape == (3, 0)
    assert codec.dequantise(np.zeros((3, 0), np.int32)).shape == (0, 6)


def test_what_cannot_be_coded_is_refused(codec: Codec) -> None:
    bad_CS = sound(100)
    bad_CS[0, 50] = np.nan
    for wrong_CS in (bad_CS, sound(100)[0], sound(100)[:0]):
        with pytest.raises(UsageError, match="sound"):
            codec.encode(wrong_CS, RATE_HZ)
    for wrong_TD in (np.zeros((4, 5)), np.zeros(6), np.full((4, 6), np.inf)):
        with pytest.raises(UsageError, match="latents"):
            codec.decode(wrong_TD)
    for wrong_QT in (np.zeros((4, 9)), np.full((1, 9), 8), np.full((1, 9), -1), np.zeros((0, 9))):
        with pytest.raises(UsageError, match="codes"):
            codec.dequantise(wrong_QT)


def test_si_sdr_is_what_its_authors_say() -> None:
    """Noise at right angles and 20 dB below is 20 dB, at any scale, with any constant added."""
    rng = np.random.default_rng(0)
    wanted_CS, noise_CS = rng.standard_normal((2, 1, 1000))
    wanted_CS -= wanted_CS.mean()
    noise_CS -= noise_CS.mean()
    noise_CS -= wanted_CS * (noise_CS * wanted_CS).sum() / (wanted_CS**2).sum()
    noise_CS *= 0.1 * np.linalg.norm(wanted_CS) / np.linalg.norm(noise_CS)
    for scale in (1.0, -3.0):
        heard_CS = scale * (wanted_CS + noise_CS) + 0.5
        assert si_sdr_db(heard_CS, wanted_CS) == pytest.approx(20.0, abs=1e-6)
    assert si_sdr_db(wanted_CS, wanted_CS) > 100.0
    assert np.isfinite(si_sdr_db(np.zeros((1, 9)), np.zeros((1, 9))))


def test_validation_hears_what_was_held_out(tmp_path: Path, codec: Codec) -> None:
    for name in ("alpha", "beta", "gamma", "delta"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * sound(8000)[0], 8000)
    write(tmp_path / "sounds", find(tmp_path), rate_hz=RATE_HZ, channels=1)
    config = TrainConfig(model=TINY, data=SoundSettings(seconds=0.5, batch_size=2, folds=2))
    figures = codec_validate(config, tmp_path / "sounds", 3)(codec.params)
    assert set(figures) == {"score", "continuous_db", "0.3_kbps_db", "0.9_kbps_db"}
    assert figures["score"] == pytest.approx(0.5 * (figures["continuous_db"] + figures["0.9_kbps_db"]))
    assert codec_figures(codec, sound(1000)).keys() == figures.keys() - {"score"}
    nothing = SoundSettings(seconds=0.5, batch_size=2, kinds=("speech",))
    assert np.isnan(codec_validate(replace(config, data=nothing), tmp_path / "sounds", 3)(None)["score"])
