"""The encoder of the PyTorch twin, as `editjax/models/encoder.py` and `editjax/models/scales.py`."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_layers import (
    Globals,
    Mlp,
    Reach,
    WindowAttention,
    along_time,
    ceil_div,
    conv,
    frame_mask,
    gelu,
    masked,
    norm,
    reach,
    rotation,
    rows,
)
from torch_match import find_matches, fingerprints, level_normalise, refine, shapes

from editjax.attention import Window
from editjax.events import KINDS
from editjax.models.decoder_attention import NEVER
from editjax.models.level import (
    LEVEL_CHANNELS,
)
from editjax.models.match import (
    STEP_FRAMES,
)
from editjax.models.pointer import (
    PointerSettings,
)
from editjax.models.scales import ANNOUNCE_WIDTH, MATCH_CHANNELS, TARGET_FEATURES
from editjax.models.style import Asked

POSITION_CHANNELS = 3


class Encoded(NamedTuple):
    """As `editjax.models.encoder.Encoded`."""

    frames_BTD: Tensor
    landmarks_BLD: Tensor
    beats_BUD: Tensor
    bars_BVD: Tensor
    structure_BTS: Tensor
    announced_BT: Tensor
    log_length_B: Tensor
    style_BZ: Tensor
    n_frames_B: Tensor


class MatchAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        inner, self.heads = width // 2, heads
        self.head = inner // heads
        self.key_map = nn.Parameter(torch.empty(heads, MATCH_CHANNELS, self.head))
        self.value_map = nn.Parameter(torch.empty(heads, MATCH_CHANNELS, self.head))
        self.norm = norm(width)
        self.query, self.key_value = nn.Linear(width, inner), nn.Linear(width, 2 * inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x_BLD: Tensor, matches: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        places_BLJ, features_BLJC, valid_BLJ = matches
        h = self.norm(x_BLD)
        q_BLHK = self.query(h).unflatten(-1, (self.heads, -1))
        k, v = rows(self.key_value(h), places_BLJ).unflatten(-1, (2, self.heads, -1)).unbind(3)
        asked_BLHC = torch.einsum("blhk,hck->blhc", q_BLHK, self.key_map)
        logits_BLHJ = (q_BLHK[:, :, None] * k).sum(-1).transpose(2, 3) + asked_BLHC @ features_BLJC.mT
        logits_BLHJ = (logits_BLHJ * self.head**-0.5).masked_fill(~valid_BLJ[:, :, None], NEVER)
        weights_BLHJ = F.pad(logits_BLHJ, (0, 1)).softmax(-1)[..., :-1]
        read_BLHC = weights_BLHJ @ features_BLJC
        out = (weights_BLHJ.transpose(2, 3)[..., None] * v).sum(2)
        return self.out((out + torch.einsum("blhc,hck->blhk", read_BLHC, self.value_map)).flatten(2))


class LandmarkLayer(nn.Module):
    def __init__(self, s: PointerSettings, kind: str):
        super().__init__()
        self.window = WindowAttention(s.width, s.heads, kind, with_globals=True)
        self.match, self.mlp = MatchAttention(s.width, s.heads), Mlp(s.width, s.expansion, asked_width(s))

    def forward(
        self, x: Tensor, reach: Reach, tokens: Globals, matches: Any, asked_BE: Tensor, mask_BL: Tensor
    ) -> Tensor:
        x = x + self.window(x, reach, tokens)
        x = masked(x + self.match(x, matches), mask_BL)
        return masked(x + self.mlp(x, asked_BE), mask_BL)


class FrameLayer(nn.Module):
    def __init__(self, s: PointerSettings, kind: str):
        super().__init__()
        self.window = WindowAttention(s.frame_width, s.frame_heads, kind, with_globals=False)
        self.mlp = Mlp(s.frame_width, s.expansion, asked_width(s))

    def forward(self, x: Tensor, reach: Reach, asked_BE: Tensor, mask_BT: Tensor) -> Tensor:
        x = masked(x + self.window(x, reach), mask_BT)
        return masked(x + self.mlp(x, asked_BE), mask_BT)


class Stem(nn.Module):
    def __init__(self, s: PointerSettings):
        super().__init__()
        self.listen = conv(s.n_mels + LEVEL_CHANNELS, s.frame_width)
        self.phase = nn.Linear(2 * POSITION_CHANNELS, s.frame_width)
        self.mix = conv(s.frame_width, s.frame_width)

    def forward(self, level_BTF: Tensor, phase_BT3: Tensor, mask_BT: Tensor) -> Tensor:
        angle = 2 * math.pi * phase_BT3
        x = gelu(along_time(self.listen, level_BTF)) + self.phase(torch.cat([angle.sin(), angle.cos()], -1))
        x = masked(x, mask_BT)
        return masked(x + gelu(along_time(self.mix, x)), mask_BT)


class Announce(nn.Module):
    def __init__(self, s: PointerSettings):
        super().__init__()
        self.listen = conv(s.n_mels + LEVEL_CHANNELS, ANNOUNCE_WIDTH)
        self.sign = nn.Linear(ANNOUNCE_WIDTH, 1)

    def forward(self, level_BTF: Tensor, mask_BT: Tensor) -> Tensor:
        return F.softplus(self.sign(gelu(along_time(self.listen, level_BTF)))[..., 0]) * mask_BT


class LandmarkEntry(nn.Module):
    def __init__(self, s: PointerSettings):
        super().__init__()
        self.size = s.landmark_frames
        self.frames = nn.Linear(s.landmark_frames * s.frame_width, s.width)
        self.matches = nn.Linear(2 * s.matches * MATCH_CHANNELS, s.width)
        self.asked = nn.Linear(asked_width(s), s.width)

    def forward(self, x_BTD: Tensor, features_BLJC: Tensor, asked_BE: Tensor, mask_BL: Tensor) -> Tensor:
        x = F.pad(x_BTD, (0, 0, 0, -x_BTD.shape[1] % self.size)).unflatten(1, (-1, self.size)).flatten(2)
        x = self.frames(x) + self.matches(features_BLJC.flatten(2)) + self.asked(asked_BE)[:, None]
        return masked(x, mask_BL)


class Fusion(nn.Module):
    def __init__(self, s: PointerSettings):
        super().__init__()
        self.settings = s
        self.landmarks = nn.Linear(s.width, s.frame_width)
        self.bars = nn.Linear(2 * s.frame_width, s.frame_width)

    def forward(self, x_BTD: Tensor, landmarks_BLD: Tensor, frames_B: Tensor) -> Tensor:
        s, n_frames = self.settings, x_BTD.shape[1]
        mask_BT = frame_mask(frames_B, n_frames)
        x = masked(x_BTD + upsample(self.landmarks(landmarks_BLD), s.landmark_frames, n_frames), mask_BT)
        bars = self.bars(pool(x, frames_B, s.frames_per_bar))
        return masked(x + upsample(bars, s.frames_per_bar, n_frames), mask_BT)


class Levels(nn.Module):
    def __init__(self, s: PointerSettings):
        super().__init__()
        self.settings = s
        self.norm, self.structure = norm(s.frame_width), nn.Linear(s.frame_width, 3)
        self.beats, self.bars = (nn.Linear(2 * s.frame_width, s.width) for _ in range(2))

    def forward(self, x_BTD: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s = self.settings
        x = masked(self.norm(x_BTD), frame_mask(frames_B, x_BTD.shape[1]))

        def spans(layer: nn.Linear, size: int) -> Tensor:
            pooled = layer(pool(x, frames_B, size))
            return masked(pooled, frame_mask(ceil_div(frames_B, size), pooled.shape[1]))

        return x, spans(self.beats, s.frames_per_beat), spans(self.bars, s.frames_per_bar), self.structure(x)


class Kinds(nn.Module):
    def __init__(self, s: PointerSettings):
        super().__init__()
        self.norm, self.kind = norm(s.width), nn.Linear(s.width, len(KINDS))

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.kind(self.norm(x_BLD))


class Length(nn.Module):
    def __init__(self, s: PointerSettings):
        super().__init__()
        self.frames_per_bar = s.frames_per_bar
        self.hidden, self.correction = nn.Linear(s.width, s.width), nn.Linear(s.width, 1)

    def forward(self, bars_BVD: Tensor, structure_BTS: Tensor, frames_B: Tensor) -> Tensor:
        with torch.no_grad():
            _, keep_BT, loop_BT = structure_BTS.softmax(-1).unbind(-1)
            played_BT = (keep_BT + 2.0 * loop_BT) * frame_mask(frames_B, structure_BTS.shape[1])
            expected_B = (played_BT.sum(-1) + 1.0).log()
        mean_BD = bars_BVD.sum(1) / ceil_div(frames_B, self.frames_per_bar).clamp(min=1)[:, None]
        return expected_B + self.correction(gelu(self.hidden(mean_BD)))[:, 0]


class Encoder(nn.Module):
    """`editjax.models.encoder.encode`."""

    def __init__(self, s: PointerSettings, kind: str):
        super().__init__()
        self.settings, self.kind = s, kind
        self.stem, self.announce, self.entry = Stem(s), Announce(s), LandmarkEntry(s)
        self.landmark_layers = nn.ModuleList(LandmarkLayer(s, kind) for _ in range(s.landmark_layers))
        self.fusion = Fusion(s)
        self.frame_layers = nn.ModuleList(FrameLayer(s, kind) for _ in range(s.frame_layers))
        self.levels, self.length = Levels(s), Length(s)
        self.kinds = Kinds(s) if s.kinds else None

    def forward(self, mel_BTF: Tensor, frames_B: Tensor, phase_BT3: Tensor, asked: Asked) -> Encoded:
        s, n_frames = self.settings, mel_BTF.shape[1]
        mask_BT = frame_mask(frames_B, n_frames)
        n_landmarks, landmarks_B = -(-n_frames // s.landmark_frames), ceil_div(frames_B, s.landmark_frames)
        mask_BL = frame_mask(landmarks_B, n_landmarks)
        with torch.no_grad():
            level_BTF = level_normalise(mel_BTF, frames_B, s.floor_db, s.ceiling_db)
            matches = landmark_matches(level_BTF[..., :-LEVEL_CHANNELS], frames_B, landmarks_B, s)
            target_B3 = target_features(asked.target_B, frames_B)
            tokens = bar_globals(landmarks_B, n_landmarks, s)
            reach_L, reach_T = self.reaches(frames_B, n_frames, tokens.valid_BG)
        announced_BT = self.announce(level_BTF, mask_BT)
        x = self.stem(level_BTF, phase_BT3 * mask_BT[..., None], mask_BT)
        asked_BE = torch.cat([target_B3, asked.style_BZ], -1)
        landmarks = self.entry(x, matches[1], asked_BE, mask_BL)
        for layer in self.landmark_layers:
            landmarks = layer(landmarks, reach_L, tokens, matches, asked_BE, mask_BL)
        x = self.fusion(x, landmarks, frames_B)
        for layer in self.frame_layers:
            x = layer(x, reach_T, asked_BE, mask_BT)
        x, beats, bars, structure = self.levels(x, frames_B)
        log_length_B = self.length(bars, structure, frames_B)
        parts = x, landmarks, beats, bars, structure, announced_BT, log_length_B
        return Encoded(*parts, asked.style_BZ, frames_B)

    def reaches(self, frames_B: Tensor, n_frames: int, valid_BG: Tensor) -> tuple[Reach, Reach]:
        s = self.settings
        n_landmarks, landmarks_B = -(-n_frames // s.landmark_frames), ceil_div(frames_B, s.landmark_frames)
        window_L, window_T = (Window(n, n) for n in (s.landmark_window, s.frame_window))
        return (
            reach(self.kind, window_L, landmarks_B, n_landmarks, s.width // s.heads, valid_BG),
            reach(self.kind, window_T, frames_B, n_frames, s.frame_width // s.frame_heads),
        )


def asked_width(s: PointerSettings) -> int:
    return TARGET_FEATURES + s.style_width


def pool(x_BTD: Tensor, frames_B: Tensor, size: int) -> Tensor:
    """`scales.pool`."""
    padding = -x_BTD.shape[1] % size
    x_BVSD = F.pad(x_BTD, (0, 0, 0, padding)).unflatten(1, (-1, size))
    mask_BVS = frame_mask(frames_B, x_BTD.shape[1] + padding).unflatten(1, (-1, size))[..., None]
    count_BV1 = mask_BVS.sum(2)
    mean = (x_BVSD * mask_BVS).sum(2) / count_BV1.clamp(min=1)
    top = x_BVSD.masked_fill(~mask_BVS, -torch.inf).amax(2).masked_fill(count_BV1 == 0, 0.0)
    return torch.cat([mean, top], -1)


def upsample(x_BVD: Tensor, size: int, n_frames: int) -> Tensor:
    return x_BVD.repeat_interleave(size, 1)[:, :n_frames]


def target_features(target_B: Tensor, frames_B: Tensor) -> Tensor:
    asked = (target_B > 0).float()
    ratio = (torch.where(target_B > 0, target_B, 1.0) / frames_B.clamp(min=1)).log() * asked
    return torch.stack([asked, ratio, ratio.exp() * asked], -1)


def bar_globals(landmarks_B: Tensor, n_landmarks: int, s: PointerSettings) -> Globals:
    """`scales.bar_globals` as a matrix that averages landmarks."""
    per_bar = round(s.frames_per_bar / s.landmark_frames)
    n_tokens = min(-(-n_landmarks // per_bar), s.max_globals)
    span_B1 = ceil_div(ceil_div(landmarks_B, per_bar), s.max_globals).clamp(min=1)[:, None] * per_bar
    token_BL = (torch.arange(n_landmarks, device=landmarks_B.device) // span_B1).clamp(max=n_tokens - 1)
    of_token_BGL = F.one_hot(token_BL, n_tokens).mT * frame_mask(landmarks_B, n_landmarks)[:, None]
    count_BG = of_token_BGL.sum(-1)
    pool_BGL = of_token_BGL / count_BG.clamp(min=1)[..., None]
    position_BG = (torch.arange(n_tokens, device=landmarks_B.device) + 0.5) * span_B1
    return Globals(pool_BGL, count_BG > 0, *rotation(position_BG, s.width // s.heads))


def landmark_matches(
    x_BTF: Tensor, frames_B: Tensor, landmarks_B: Tensor, s: PointerSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """`match.find_matches` of a level-normalised mel, and `scales.landmark_matches` of these."""
    step_shapes, shape_BLG = (shapes(x_BTF, frames_B, size) for size in (STEP_FRAMES, s.landmark_frames))
    n_landmarks, ratio = shape_BLG.shape[1], STEP_FRAMES // s.landmark_frames
    found = find_matches(fingerprints(step_shapes), ceil_div(frames_B, STEP_FRAMES), s.matches)
    place, score, here, valid = (a.repeat_interleave(ratio, 1)[:, :n_landmarks] for a in found)
    landmark_L1 = torch.arange(n_landmarks, device=x_BTF.device)[:, None]
    place = place * ratio + landmark_L1 % ratio
    last_B11 = landmarks_B[:, None, None] - 1
    valid = valid & (place <= last_B11) & (landmark_L1 <= last_B11)
    place, details = refine(shape_BLG, landmarks_B, place * valid, valid, s.match_reach)
    away = (place - landmark_L1).float()
    distance, direction = torch.log1p(away.abs() / 100.0), away.sign()
    best = (score * valid).amax(-1, keepdim=True)
    features = [score, here, score - best, distance * direction, distance, direction]
    features_BLJC = torch.stack(features, -1) * valid[..., None]
    return place, torch.cat([features_BLJC, details], -1), valid
