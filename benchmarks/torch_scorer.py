"""The plain scorer in PyTorch: the same layers on the same parameters, eager, as one would write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from editjax.models.autoencoder import LEAST_LOG_SCALE, MOST_LOG_SCALE, ScorerSettings

EPSILON = 1e-6


def tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def linear(params: Any) -> nn.Linear:
    layer = nn.Linear(*params["kernel"].shape)
    layer.weight.data, layer.bias.data = tensor(params["kernel"]).T.contiguous(), tensor(params["bias"])
    return layer


def convolution(params: Any, stride: int) -> nn.Conv1d:
    kernel = tensor(params["kernel"])  # (taps, in, out)
    taps, width_in, width_out = kernel.shape
    layer = nn.Conv1d(
        width_in, width_out, taps, stride, padding=(taps - stride) // 2 if stride > 1 else taps // 2
    )
    layer.weight.data, layer.bias.data = kernel.permute(2, 1, 0).contiguous(), tensor(params["bias"])
    return layer


def norm(params: Any) -> nn.RMSNorm:
    layer = nn.RMSNorm(len(params["scale"]["scale"]), eps=EPSILON)
    layer.weight.data = tensor(params["scale"]["scale"])
    return layer


class Stack(nn.Module):
    """Linear, convolutions with norms, linear: an encoder, or a decoder where steps are repeated."""

    def __init__(self, params: Any, name: str, count: int, repeat: int):
        super().__init__()
        self.enter, self.out, self.repeat = linear(params["enter"]), linear(params["out"]), repeat
        self.convs = nn.ModuleList(convolution(params[f"{name}_{k}"], 2 // repeat) for k in range(count))
        self.norms = nn.ModuleList(norm(params[f"norm_{k}"]) for k in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.enter(x), approximate="tanh")
        for conv, own in zip(self.convs, self.norms, strict=True):
            x = x.repeat_interleave(self.repeat, 1) if self.repeat > 1 else x
            x = nn.functional.gelu(own(conv(x.transpose(1, 2)).transpose(1, 2)), approximate="tanh")
        return self.out(x)


class TorchScorer(nn.Module):
    """Scores of whole recordings from what was heard, (B, T, scales, scores), as `anomaly.score_heard`."""

    def __init__(self, settings: ScorerSettings, params: Any):
        super().__init__()
        self.settings, count = settings, len(settings.hidden)
        self.encoders, self.decoders, self.usual = nn.ModuleList(), nn.ModuleList(), []
        for number in range(len(settings.scales)):
            own = take(params["scales"], number)
            self.encoders.append(Stack(own["encoder"], "down", count, 1))
            self.decoders.append(Stack(own["edited"], "up", count, 2))
            usual = take(params["running"], number)["usual"]
            self.usual.append({name: tensor(value) for name, value in usual.items()})

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        found = []
        for scale, encoder, decoder, usual in zip(
            self.settings.scales, self.encoders, self.decoders, self.usual, strict=True
        ):
            scores = self.at_scale(pooled(x, scale), pooled(context, scale), encoder, decoder, usual)
            found.append(scores.repeat_interleave(scale, 1)[:, : x.shape[1]])
        return torch.stack(found, 2)

    def at_scale(
        self, x: torch.Tensor, context: torch.Tensor, encoder: Stack, decoder: Stack, usual: dict[str, Any]
    ) -> torch.Tensor:
        z = encoder(x)
        mean, log_scale = decoder(z).chunk(2, -1)
        log_scale = log_scale.clamp(LEAST_LOG_SCALE, MOST_LOG_SCALE)
        away = ((torch.cat([x, context], -1) - mean) * torch.exp(-log_scale)) ** 2
        bands = self.settings.n_mels
        at_vector = torch.cat([z.repeat_interleave(self.settings.reduction, 1), context], -1)
        distance = (at_vector - usual["latent_mean"]) ** 2 / (usual["latent_variance"] + 1e-6)
        scores = [
            log_mean(away[..., :bands]),
            log_mean(away[..., bands:]),
            0.5 * away.mean(-1) + log_scale.mean(-1),
            log_mean(distance),
            context[..., 3] - 0.5 * context[..., 7],
        ]
        return (torch.stack(scores, -1) - usual["score_mean"]) / torch.sqrt(usual["score_variance"] + 1e-6)


def take(tree: Any, number: int) -> Any:
    if isinstance(tree, dict):
        return {name: take(part, number) for name, part in tree.items()}
    return np.asarray(tree)[number]


def pooled(x: torch.Tensor, scale: int) -> torch.Tensor:
    return x.unflatten(1, (-1, scale)).mean(2)


def log_mean(square: torch.Tensor) -> torch.Tensor:
    return torch.log(square.mean(-1) + 1e-6)
