"""Small HiFi-GANs: settings, weights under PyTorch's names, and a reference from the paper in NumPy."""

import numpy as np

from editjax.models.hifigan import HifiGanSettings, VocoderMel

MEL = VocoderMel(n_fft=64, window=48, hop=8, n_mels=10)
SMALL = {
    1: HifiGanSettings(MEL, 8, (4, 2), (8, 4), 1, (3, 5), ((1, 3), (1, 2))),
    2: HifiGanSettings(MEL, 8, (2, 4), (2, 6), 2, (3, 7), ((1, 2), (2, 3))),
}
CONFIG = {
    "resblock": "1", "num_gpus": 0, "batch_size": 16, "learning_rate": 0.0002, "num_freq": 1025,
    "dist_config": {"world_size": 1}, "segment_size": 8192, "seed": 1234,
}  # fmt: skip
"""What concerns training only."""


def config_of(settings: HifiGanSettings) -> dict:
    """The config.json of the public implementation."""
    mel = settings.mel
    return {
        **CONFIG,
        "resblock": str(settings.block),
        "upsample_rates": list(settings.upsample_rates),
        "upsample_kernel_sizes": list(settings.upsample_kernels),
        "upsample_initial_channel": settings.channels,
        "resblock_kernel_sizes": list(settings.block_kernels),
        "resblock_dilation_sizes": [list(dilations) for dilations in settings.block_dilations],
        "num_mels": mel.n_mels,
        "n_fft": mel.n_fft,
        "hop_size": mel.hop,
        "win_size": mel.window,
        "sampling_rate": mel.sample_rate_hz,
        "fmin": int(mel.low_hz),
        "fmax": int(mel.top_hz),
    }


def weights_of(settings: HifiGanSettings) -> dict[str, np.ndarray]:
    """Random tensors by the public implementation's names, weights whole."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}

    def convolution(name: str, outputs: int, inputs: int, width: int, transposed: bool = False) -> None:
        shape = (inputs, outputs, width) if transposed else (outputs, inputs, width)
        tensors[f"{name}.weight"] = (0.3 * rng.standard_normal(shape)).astype(np.float32)
        tensors[f"{name}.bias"] = (0.3 * rng.standard_normal(outputs)).astype(np.float32)

    channels = settings.channels
    convolution("conv_pre", channels, settings.mel.n_mels, 7)
    for stage, kernel in enumerate(settings.upsample_kernels):
        convolution(f"ups.{stage}", channels // 2, channels, kernel, transposed=True)
        channels //= 2
        for n, width in enumerate(settings.block_kernels):
            block = f"resblocks.{stage * len(settings.block_kernels) + n}"
            for at in range(len(settings.block_dilations[n])):
                for part in ("convs1", "convs2") if settings.block == 1 else ("convs",):
                    convolution(f"{block}.{part}.{at}", channels, channels, width)
    convolution("conv_post", 1, channels, 7)
    return tensors


def normalised(tensors: dict[str, np.ndarray], names: tuple[str, str]) -> dict[str, np.ndarray]:
    """The same as lengths and directions, the directions of any length."""
    split: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name.endswith("bias"):
            split[name] = tensor
            continue
        norm = np.sqrt((tensor.astype(np.float64) ** 2).sum((1, 2), keepdims=True))
        split[name.replace("weight", names[0])] = norm.astype(np.float32)
        split[name.replace("weight", names[1])] = (3.0 * tensor).astype(np.float32)
    return split


def reference(settings: HifiGanSettings, tensors: dict[str, np.ndarray], mel_TF: np.ndarray) -> np.ndarray:
    """The generator in float64, sum by sum, as the paper and its public code have it: samples (S,)."""

    def rectified(x_CT: np.ndarray, slope: float) -> np.ndarray:
        return np.where(x_CT > 0, x_CT, slope * x_CT)

    def convolved(x_CT: np.ndarray, name: str, dilation: int = 1) -> np.ndarray:
        weight = tensors[f"{name}.weight"].astype(np.float64)
        reach = dilation * (weight.shape[2] - 1) // 2
        padded = np.pad(x_CT, ((0, 0), (reach, reach)))
        taps = [
            weight[:, :, tap] @ padded[:, tap * dilation :][:, : x_CT.shape[1]]
            for tap in range(weight.shape[2])
        ]
        return sum(taps) + tensors[f"{name}.bias"][:, None]

    def stretched(x_CT: np.ndarray, name: str, rate: int) -> np.ndarray:
        weight = tensors[f"{name}.weight"].astype(np.float64)
        kernel = weight.shape[2]
        long = np.zeros((weight.shape[1], (x_CT.shape[1] - 1) * rate + kernel))
        for step in range(x_CT.shape[1]):
            long[:, step * rate : step * rate + kernel] += np.einsum("i,iok->ok", x_CT[:, step], weight)
        cut = (kernel - rate) // 2
        return long[:, cut : long.shape[1] - cut] + tensors[f"{name}.bias"][:, None]

    def block(x_CT: np.ndarray, name: str, dilations: tuple[int, ...]) -> np.ndarray:
        for at, dilation in enumerate(dilations):
            if settings.block == 1:
                branch = convolved(rectified(x_CT, 0.1), f"{name}.convs1.{at}", dilation)
                branch = convolved(rectified(branch, 0.1), f"{name}.convs2.{at}")
            else:
                branch = convolved(rectified(x_CT, 0.1), f"{name}.convs.{at}", dilation)
            x_CT = x_CT + branch
        return x_CT

    x_CT = convolved(mel_TF.T.astype(np.float64), "conv_pre")
    for stage, rate in enumerate(settings.upsample_rates):
        x_CT = stretched(rectified(x_CT, 0.1), f"ups.{stage}", rate)
        count = len(settings.block_kernels)
        blocks = [
            block(x_CT, f"resblocks.{stage * count + n}", settings.block_dilations[n]) for n in range(count)
        ]
        x_CT = sum(blocks) / count
    return np.tanh(convolved(rectified(x_CT, 0.01), "conv_post"))[0]
