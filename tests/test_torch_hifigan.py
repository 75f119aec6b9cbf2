"""A HiFi-GAN in PyTorch, saved by PyTorch, sounds the same when converted."""

import json
from pathlib import Path

import numpy as np
import pytest
from hifigan_cases import SMALL, config_of

from editjax.convert import convert_hifigan
from editjax.models.hifigan import HifiGanSettings, synthesise, vocoder_mel
from editjax.vocoder import load_vocoder

torch = pytest.importorskip("torch", reason="PyTorch is an optional peer")
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


def generator(settings: HifiGanSettings, normalise) -> "torch.nn.Module":
    """From the paper, with the names of its public implementation."""
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, channels: int, width: int, dilations: tuple[int, ...]):
            super().__init__()

            def convolutions(dilations):
                return nn.ModuleList(
                    normalise(nn.Conv1d(channels, channels, width, dilation=d, padding=d * (width - 1) // 2))
                    for d in dilations
                )

            if settings.block == 1:
                self.convs1, self.convs2 = convolutions(dilations), convolutions([1] * len(dilations))
            else:
                self.convs = convolutions(dilations)

        def forward(self, x):
            if settings.block == 2:
                for conv in self.convs:
                    x = x + conv(functional.leaky_relu(x, 0.1))
                return x
            for first, second in zip(self.convs1, self.convs2, strict=True):
                x = x + second(functional.leaky_relu(first(functional.leaky_relu(x, 0.1)), 0.1))
            return x

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            channels = [settings.channels // 2**stage for stage in range(len(settings.upsample_rates) + 1)]
            self.conv_pre = normalise(nn.Conv1d(settings.mel.n_mels, channels[0], 7, padding=3))
            shapes = zip(
                channels[:-1], channels[1:], settings.upsample_rates, settings.upsample_kernels, strict=True
            )
            self.ups = nn.ModuleList(
                normalise(nn.ConvTranspose1d(a, b, kernel, rate, padding=(kernel - rate) // 2))
                for a, b, rate, kernel in shapes
            )
            self.resblocks = nn.ModuleList(
                Block(width, kernel, dilations)
                for width in channels[1:]
                for kernel, dilations in zip(settings.block_kernels, settings.block_dilations, strict=True)
            )
            self.conv_post = normalise(nn.Conv1d(channels[-1], 1, 7, padding=3))

        def forward(self, mel_BFT):
            x, count = self.conv_pre(mel_BFT), len(settings.block_kernels)
            for stage, up in enumerate(self.ups):
                x = up(functional.leaky_relu(x, 0.1))
                x = sum(block(x) for block in self.resblocks[stage * count : (stage + 1) * count]) / count
            return torch.tanh(self.conv_post(functional.leaky_relu(x)))[:, 0]

    return Generator()


@pytest.fixture(params=SMALL, ids=["block 1", "block 2"])
def settings(request: pytest.FixtureRequest) -> HifiGanSettings:
    return SMALL[request.param]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("normalisation", ["weight_norm", "parametrizations.weight_norm", "none"])
def test_a_checkpoint_of_pytorchs_sounds_the_same(
    tmp_path: Path, settings: HifiGanSettings, normalisation: str, zipped: bool
) -> None:
    normalise = {
        "weight_norm": torch.nn.utils.weight_norm,
        "parametrizations.weight_norm": torch.nn.utils.parametrizations.weight_norm,
        "none": lambda module: module,
    }[normalisation]
    torch.manual_seed(0)
    theirs = generator(settings, normalise)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(
        {"generator": theirs.state_dict(), "steps": 5}, tmp_path / "g", _use_new_zipfile_serialization=zipped
    )
    (tmp_path / "config.json").write_text(json.dumps(config_of(settings)))
    vocoder = load_vocoder(convert_hifigan(tmp_path / "g", tmp_path / "config.json", tmp_path / "voice"))
    mel_TF = np.random.default_rng(0).standard_normal((50, 10)).astype(np.float32)
    with torch.inference_mode():
        wanted_S = theirs(torch.from_numpy(mel_TF.T[None].copy()))[0].numpy()
    assert np.abs(wanted_S).max() > 0.1
    np.testing.assert_allclose(synthesise(vocoder.settings, vocoder.params, mel_TF), wanted_S, atol=1e-5)


def test_the_mel_is_pytorchs(settings: HifiGanSettings) -> None:
    mel = settings.mel
    samples_S = (0.1 * np.random.default_rng(0).standard_normal(50 * mel.hop)).astype(np.float32)
    around = (mel.n_fft - mel.hop) // 2
    padded = torch.nn.functional.pad(
        torch.from_numpy(samples_S)[None, None], (around, around), mode="reflect"
    )
    spectrum = torch.stft(
        padded[0],
        mel.n_fft,
        mel.hop,
        mel.window,
        torch.hann_window(mel.window),
        center=False,
        return_complex=True,
    )
    magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)[0].numpy()
    from editjax.models.hifigan import _filters

    wanted_TF = np.log(np.maximum(magnitude.T @ _filters(mel), mel.least))
    np.testing.assert_allclose(vocoder_mel(samples_S, mel), wanted_TF, atol=1e-4)
