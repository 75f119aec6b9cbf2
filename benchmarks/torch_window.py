"""The earlier creative agent, in PyTorch, from the shapes that are known of it: 21.2 million parameters.

Window selector (average pool to 50, 12,800 → 512 → 256 → 15), compressor (linear), two tonality reducers, two
extractors of rhythm, harmony and timbre, selector of six parts, composer of four layers of width 512. Where
its windows got no gradient, these do: they are read by linear interpolation, which costs the same.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

KERNELS = ((3, 5), (7, 9), (15, 21))
PAIRS, WINDOW = 3, 800


class Selector(nn.Module):
    def __init__(self, channels: int = 128):
        super().__init__()
        layers: list[nn.Module] = []
        for width, into in ((2 * 50 * channels, 512), (512, 256)):
            layers += [nn.Linear(width, into), nn.LayerNorm(into), nn.GELU(), nn.Dropout(0.1)]
        self.layers = nn.Sequential(*layers, nn.Linear(256, 5 * PAIRS))

    def forward(self, first, second, room: float):
        pooled = [F.adaptive_avg_pool1d(x, 50).flatten(1) for x in (first, second)]
        share = torch.sigmoid(self.layers(torch.cat(pooled, 1))).reshape(-1, PAIRS, 5)
        ratio = 1.0 + 0.5 * share[..., 2:4]
        return share[..., :2] * (room - WINDOW * (ratio - 1.0)).clamp(min=0.0), ratio, share[..., 4]


class Reducer(nn.Module):
    def __init__(self, channels: int = 128):
        super().__init__()
        self.along = nn.Conv1d(channels, channels, 7, padding=3, groups=channels)
        self.across = nn.Conv1d(channels, channels, 1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x, strength):
        y = self.norm(self.across(self.along(x)).transpose(1, 2)).transpose(1, 2)
        return (1.0 - strength) * x + strength * y


class Part(nn.Module):
    def __init__(self, kernels: tuple[int, int], channels: int = 128):
        super().__init__()
        first, second = kernels
        self.layers = nn.Sequential(
            nn.Conv1d(channels, channels, first, padding=first // 2),
            nn.BatchNorm1d(channels),
            nn.LeakyReLU(0.2),
            nn.Conv1d(channels, 64, second, padding=second // 2),
            nn.BatchNorm1d(64),
        )
        self.skip = nn.Conv1d(channels, 64, 1)

    def forward(self, x):
        return F.leaky_relu(self.layers(x) + self.skip(x), 0.2)


class Agent(nn.Module):
    def __init__(self, channels: int = 128):
        super().__init__()
        self.parts = nn.ModuleList([nn.ModuleList([Part(k) for k in KERNELS]) for _ in range(2)])
        self.choose = nn.Sequential(nn.Conv1d(384, 256, 1), nn.LeakyReLU(0.2), nn.Conv1d(256, 6, 1))
        self.enter = nn.Linear(384, 512)
        layer = nn.TransformerEncoderLayer(512, 8, 2048, 0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.leave = nn.Sequential(nn.Linear(512, 256), nn.GELU(), nn.Linear(256, channels))
        place = torch.arange(2000)[:, None] * torch.exp(torch.arange(0, 512, 2) * (-math.log(1e4) / 512))
        self.register_buffer("place", torch.stack([place.sin(), place.cos()], -1).flatten(1))

    def forward(self, first, second):
        parts = torch.cat(
            [part(x) for of, x in zip(self.parts, (first, second), strict=True) for part in of], 1
        )
        chosen = parts * torch.softmax(self.choose(parts), 1).repeat_interleave(64, 1)
        x = self.enter(chosen.transpose(1, 2))
        return self.leave(self.layers(x + self.place[: x.shape[1]])).transpose(1, 2).clamp(-50.0, 50.0)


class Windows(nn.Module):
    """Latents (B, 128, T) of input and target → the mean novelty of three pieces (B, 128, 800)."""

    def __init__(self):
        super().__init__()
        self.selector, self.agent = Selector(), Agent()
        self.reducers = nn.ModuleList([Reducer(), Reducer()])

    def forward(self, first, second):
        starts, ratios, strength = self.selector(first, second, float(first.shape[-1] - WINDOW))
        losses = []
        for pair in range(PAIRS):
            cut = []
            for side, x in enumerate((first, second)):
                window = cut_out(x, starts[:, pair, side], ratios[:, pair, side])
                cut.append(self.reducers[side](window, strength[:, pair, None, None]))
            piece = self.agent(*cut)
            losses.append(0.5 * sum(F.cosine_similarity(piece, x, dim=1).abs().mean() for x in cut))
        return torch.stack(losses).mean()


def cut_out(x, start, ratio):
    """Windows (B, D, 800), by linear interpolation."""
    place = start[:, None] + ratio[:, None] * torch.arange(WINDOW)[None]
    below = place.detach().floor().long().clamp(0, x.shape[-1] - 2)
    part = (place - below)[:, None]
    rows = [x.gather(2, (below + k)[:, None].expand(-1, x.shape[1], -1)) for k in (0, 1)]
    return rows[0] * (1.0 - part) + rows[1] * part
