"""The generator is the paper's, chunks make the whole, and the mel is the one that it was trained on."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hifigan_cases import MEL, SMALL, reference, weights_of

from editjax import convert
from editjax.bundle import unflatten
from editjax.errors import UsageError
from editjax.family import family_of
from editjax.models import hifigan
from editjax.models.hifigan import (
    HifiGanSettings,
    Upsample,
    VocoderMel,
    generate,
    init,
    synthesise,
    vocoder_mel,
)

V2 = HifiGanSettings(channels=128)
V3 = HifiGanSettings(
    channels=256, upsample_rates=(8, 8, 4), upsample_kernels=(16, 16, 8), block=2, block_kernels=(3, 5, 7),
    block_dilations=((1, 2), (2, 6), (3, 12)),
)  # fmt: skip


def params_of(settings: HifiGanSettings) -> dict:
    return unflatten(convert.fused(weights_of(settings), settings, "weights"))


def mel_of(settings: HifiGanSettings, n_frames: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n_frames, settings.mel.n_mels)).astype(np.float32)


@pytest.mark.parametrize("block", SMALL)
def test_the_generator_is_the_papers(block: int) -> None:
    settings = SMALL[block]
    mel_TF = mel_of(settings, 12)
    wanted_S = reference(settings, weights_of(settings), mel_TF)
    found_S = synthesise(settings, params_of(settings), mel_TF)
    assert found_S.shape == (12 * 8,) and np.abs(wanted_S).max() > 0.3
    np.testing.assert_allclose(found_S, wanted_S, atol=2e-6)


@pytest.mark.parametrize(("settings", "millions"), [(HifiGanSettings(), 13.92), (V2, 0.92), (V3, 1.46)])
def test_parameters_are_as_many_as_in_the_paper(settings: HifiGanSettings, millions: float) -> None:
    """Table 1: V1, V2 and V3."""
    shapes = jax.eval_shape(lambda key: family_of(settings).init(settings, key), jax.random.key(0))
    numbers = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert numbers / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(("rate", "kernel"), [(2, 2), (2, 4), (3, 7), (8, 16)])
def test_upsampling_is_a_transposed_convolution(rate: int, kernel: int) -> None:
    """One step of one channel becomes the kernel, its middle in the middle of the `rate` steps."""
    x_BTC = np.zeros((1, 5, 2), np.float32)
    x_BTC[0, 2, 1] = 2.0
    weight = np.arange(2 * kernel * 3, dtype=np.float32).reshape(2, kernel, 3)
    bias = np.array([10.0, 20.0, 30.0], np.float32)
    found = Upsample(3, rate, kernel).apply({"params": {"kernel": weight, "bias": bias}}, x_BTC)
    wanted = np.zeros((5 * rate, 3))
    first = 2 * rate - (kernel - rate) // 2
    wanted[first : first + kernel] = 2.0 * weight[1]
    np.testing.assert_allclose(np.asarray(found)[0], wanted + bias, atol=1e-5)


@pytest.mark.parametrize("settings", [SMALL[1], V3], ids=["block 1", "V3, narrow"])
def test_a_frame_is_heard_as_far_as_it_reaches_and_no_further(settings: HifiGanSettings) -> None:
    """Exactly zero outside; the bound is the least one in whole frames, or one more."""
    if settings is V3:
        settings = HifiGanSettings(**{**vars(V3), "channels": 8})
    params, reach = params_of(settings), settings.reach_frames
    n_frames, hop = 4 * reach + 5, settings.mel.hop
    middle = n_frames // 2

    def heard(mel_TF: jax.Array) -> jax.Array:
        samples_BS = generate(settings, params, mel_TF[None], jnp.array([n_frames]))
        return samples_BS[0, middle * hop : (middle + 1) * hop].sum()

    gradient_T = np.abs(np.asarray(jax.grad(heard)(jnp.asarray(mel_of(settings, n_frames))))).max(-1)
    frames = np.flatnonzero(gradient_T)
    assert frames.min() >= middle - reach and frames.max() <= middle + reach
    assert frames.max() - frames.min() >= 2 * (reach - 1)


def test_chunks_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SMALL[1]
    params, mel_TF = params_of(settings), mel_of(settings, 203)
    whole_S = np.asarray(generate(settings, params, mel_TF[None], np.array([203], np.int32)))[0]
    monkeypatch.setattr(hifigan, "SHORTEST_FRAMES", 8)
    monkeypatch.setattr(hifigan, "LONGEST_FRAMES", 64)
    assert 4 * settings.reach_frames <= 64
    for n_frames in (65, 7):
        part_S = synthesise(settings, params, mel_TF[:n_frames])
        alone_S = np.asarray(
            generate(settings, params, mel_TF[None, :n_frames], np.array([n_frames], np.int32))
        )[0]
        np.testing.assert_allclose(part_S, alone_S, atol=1e-6)
    np.testing.assert_allclose(synthesise(settings, params, mel_TF), whole_S, atol=1e-6)
    assert synthesise(settings, params, mel_TF[:0]).shape == (0,)


def test_padding_is_not_heard() -> None:
    settings = SMALL[2]
    params, mel_TF = params_of(settings), mel_of(settings, 20)
    padded_BTF = np.full((2, 33, 10), np.nan, np.float32)
    padded_BTF[0, :20], padded_BTF[1, :33] = mel_TF, 0.5
    found_BS = np.asarray(generate(settings, params, padded_BTF, np.array([20, 33], np.int32)))
    np.testing.assert_allclose(found_BS[0, : 20 * 8], synthesise(settings, params, mel_TF), atol=1e-6)
    assert not found_BS[0, 20 * 8 :].any() and np.isfinite(found_BS).all()


def public_mel(samples_S: np.ndarray, mel: VocoderMel) -> np.ndarray:
    """As the public implementation computes it, step by step."""
    around = (mel.n_fft - mel.hop) // 2
    spectrum = librosa.stft(
        np.pad(samples_S, around, "reflect"), n_fft=mel.n_fft, hop_length=mel.hop, win_length=mel.window,
        center=False,
    )  # fmt: skip
    filters = librosa.filters.mel(
        sr=mel.sample_rate_hz,
        n_fft=mel.n_fft,
        n_mels=mel.n_mels,
        fmin=mel.low_hz,
        fmax=mel.high_hz,
        htk=mel.htk,
    )
    return np.log(np.maximum(filters @ np.sqrt(np.abs(spectrum) ** 2 + 1e-9), 1e-5)).T


@pytest.mark.parametrize(
    "mel",
    [
        VocoderMel(),
        VocoderMel(sample_rate_hz=16_000, window=800, hop=200, high_hz=None, low_hz=80.0, n_mels=40),
        VocoderMel(htk=True),
    ],
    ids=["as published", "another window", "htk"],
)
def test_the_mel_is_the_one_vocoders_are_trained_on(mel: VocoderMel) -> None:
    levels_S = np.geomspace(1e-7, 0.1, 200 * mel.hop)  # the quietest are lost in what keeps roots from zero
    samples_S = (levels_S * np.random.default_rng(0).standard_normal(len(levels_S))).astype(np.float32)
    found_TF = vocoder_mel(samples_S, mel)
    assert found_TF.shape == (200, mel.n_mels) and found_TF.dtype == np.float32
    np.testing.assert_allclose(found_TF, public_mel(samples_S, mel), atol=2e-4)
    np.testing.assert_array_equal(vocoder_mel(samples_S[: 199 * mel.hop + 1], mel).shape, found_TF.shape)
    assert vocoder_mel(samples_S[:0], mel).shape == (0, mel.n_mels)
    assert vocoder_mel(samples_S[:1], mel).shape == (1, mel.n_mels)


def test_settings_that_cannot_work_are_refused() -> None:
    for bad in (
        {"upsample_rates": (8, 8, 2)},
        {"upsample_kernels": (16, 16, 4, 5)},
        {"upsample_kernels": (16, 16, 4, 1)},
        {"upsample_rates": (8, 8, 2, 4)},
        {"channels": 100},
        {"channels": 0},
        {"block": 3},
        {"block_kernels": (3, 7)},
        {"block_kernels": (3, 7, 10)},
        {"block_dilations": ((1, 0), (1,), (1,))},
    ):
        with pytest.raises(UsageError):
            HifiGanSettings(**bad)
    for bad in (
        {"hop": 0},
        {"hop": 255},
        {"window": 2048},
        {"high_hz": 12_000.0},
        {"low_hz": 9000.0},
        {"least": 0.0},
    ):
        with pytest.raises(UsageError):
            VocoderMel(**bad)


def test_fresh_parameters_have_the_names_of_converted_ones() -> None:
    fresh = jax.eval_shape(lambda key: init(SMALL[1], key), jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: leaf.shape, (fresh, params_of(SMALL[1])))
    assert shapes[0] == shapes[1]
    assert MEL.top_hz == 8000.0
