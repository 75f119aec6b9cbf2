"""The peers of `console.py` in PyTorch: each a function forwards, and one with the gradient to settings."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Pair = tuple[Callable[[], Any], Callable[[], Any]]


def pair(function: Callable[..., torch.Tensor], *settings: torch.Tensor) -> Pair:
    """`function` of settings, forwards without a graph, and with the gradient of its power."""

    def forward():
        with torch.no_grad():
            return function(*settings).numpy()

    def both():
        asked = [one.clone().requires_grad_() for one in settings]
        (function(*asked) ** 2).sum().backward()
        return [one.grad for one in asked]

    return forward, both


def recursion(x_CS: np.ndarray, sections_N6: np.ndarray) -> Pair:
    """torchlpc's, section after section, in float32."""
    from torchlpc import sample_wise_lpc

    x = torch.from_numpy(x_CS)

    def function(sections_N6):
        y = x
        for one_6 in sections_N6:
            late = torch.nn.functional.pad(y, (2, 0))
            above = one_6[0] * late[:, 2:] + one_6[1] * late[:, 1:-1] + one_6[2] * late[:, :-2]
            y = sample_wise_lpc(above, one_6[4:].expand(*y.shape, 2))
        return y

    return pair(function, torch.from_numpy(sections_N6).float())


def pyloudnorm_meter(x_CS: np.ndarray, rate_hz: int) -> Callable[[], Any]:
    """With the standard's filters, in float64; no gradient."""
    import pyloudnorm

    meter, x_SC = pyloudnorm.Meter(rate_hz, "DeMan"), x_CS.T.astype(np.float64)
    return lambda: meter.integrated_loudness(x_SC)


def torchcomp(x_CS: np.ndarray, rate_hz: int, settings: tuple[float, ...]) -> Pair:
    """The dB by which torchcomp reduces the louder channel."""
    import torchcomp

    threshold_db, ratio, _, attack_s, release_s = settings
    level_1S = torch.from_numpy(np.maximum(np.abs(x_CS).max(0), 1e-6))[None]

    def function(threshold_db, ratio, attack, release):
        expander = torch.tensor([-200.0]), torch.tensor([0.5])
        gain = torchcomp.compexp_gain(level_1S, threshold_db, ratio, *expander, attack, release)
        return -20.0 * torch.log10(gain)[0]

    times = (1.0 - np.exp(-1.0 / (s * rate_hz)) for s in (attack_s, release_s))
    return pair(function, *(torch.tensor([value]).float() for value in (threshold_db, ratio, *times)))


def dasp(
    x_ICS: np.ndarray, rate_hz: int, bands: tuple[tuple[float, ...], ...], settings: tuple[float, ...]
) -> dict[str, Pair]:
    """dasp-pytorch's equaliser, compressor (in dB taken away), room and a mix of all."""
    import dasp_pytorch.functional as effects

    threshold_db, ratio, knee_db, attack_s, release_s = settings
    stems = torch.from_numpy(x_ICS)
    x, n_stems = stems[:1], len(stems)
    bands_63 = torch.tensor([[gain_db, hz, q] for hz, gain_db, q in bands]).float()
    times = torch.tensor([threshold_db, ratio, 1e3 * attack_s, 1e3 * release_s, knee_db, 0.0]).float()
    room = torch.cat([torch.full((12,), 0.3), torch.full((12,), 0.5)])

    def equalised(sound, bands_63):
        return effects.parametric_eq(
            sound, rate_hz, *(one.expand(len(sound)) for one in bands_63.reshape(-1))
        )

    def compressed(sound, times):
        return effects.compressor(sound, rate_hz, *(one.expand(len(sound)) for one in times))

    def taken(times):
        """The gain, from a sound of ones beside that which it hears: the channels' sum is the detector's."""
        pair_2S = torch.stack([torch.ones_like(x[0, 0]), x[0].sum(0) - 1.0])
        return -20.0 * torch.log10(compressed(pair_2S[None], times)[0, 0])

    def reverberated(sound, room, mix):
        return effects.noise_shaped_reverberation(
            sound, rate_hz, *(one.expand(len(sound)) for one in room), mix, num_samples=3 * rate_hz
        )

    def mixed(bands_63, times, room):
        dry = compressed(equalised(stems, bands_63), times).sum(0, keepdim=True) / n_stems
        return reverberated(dry, room, torch.tensor([0.2]))

    return {
        "equaliser": pair(lambda bands_63: equalised(x, bands_63)[0], bands_63),
        "compressor": pair(taken, times),
        "room": pair(lambda room: reverberated(x, room, torch.tensor([1.0])), room),
        "mix": pair(mixed, bands_63, times, room),
    }
