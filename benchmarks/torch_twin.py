"""The pointer network in PyTorch: a peer with our parameters, our loss and our gradients, in torch's idiom.

`Twin(settings)` is the model of `editjax/models` with the loss of `editjax/losses.py`; `twin_of` fills it
with our parameters, strictly: none is left over, none is missing. Attention is `dense` (fused
`scaled_dot_product_attention` over all pairs with a mask), `block` (the same function on blocks of queries
beside the keys they see, the fastest of the ways tried on a CPU) or `flex` (FlexAttention with a block mask).
`greedy` decodes as `editjax.decode` does, step by step with a cache.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editjax.attention import Window
from editjax.data import Batch
from editjax.edits import STOP, UNALIGNED
from editjax.losses import LossSettings
from editjax.models.hints import (
    ANNOUNCED_FRAMES,
    AS_RECORDED_BIAS,
    BEEP_FRAMES,
    COUNTED_FRAMES,
    DIP_FRAMES,
    HINT_LIMIT,
    HINT_NEVER,
    PLACE_BARS,
    QUIET_KEEP,
    START_FLOOR,
    STRETCH_FRAMES,
)
from editjax.models.layers import ROTARY_BASE
from editjax.models.level import (
    BOTTOM,
    FAR_BLOCK,
    FAR_BLOCKS,
    LEVEL_CHANNELS,
    NEAR_FRAMES,
    RANGE_DB,
    SILENCE_POWER,
    TOP,
)
from editjax.models.match import (
    APART_STEPS,
    BANDS,
    CELL_STEPS,
    DIAGONAL_STEPS,
    MEAN_STEPS,
    NOT_A_MATCH,
    STEP_FRAMES,
    STRIDE,
)
from editjax.models.pointer import (
    ADVANCE,
    AFTER_FLOOR,
    DISTANCE_BUCKETS,
    JUMP,
    NEVER,
    STOP_MODE,
    PointerSettings,
)
from editjax.models.scales import ANNOUNCE_WIDTH, MATCH_CHANNELS

KINDS = ("dense", "block", "flex")
QUERY_BLOCK = 64
STACKED = ("landmark_layers", "frame_layers")
POSITION_CHANNELS, TARGET_CHANNELS, STEP_CHANNELS, HINT_CHANNELS = 3, 3, 7, 2


def twin_of(settings: PointerSettings, params: dict[str, Any], kind: str) -> "Twin":
    """The twin with our parameters; raises RuntimeError for one it has not, or has and was not given."""
    twin = Twin(settings, kind)
    twin.load_state_dict(converted(params), strict=True)
    return twin


def converted(tree: dict[str, Any]) -> dict[str, Tensor]:
    """Our nested parameters, or gradients, under the twin's names and in its layout."""
    return {torch_name(path): torch_layout(path, array) for path, array in leaves(tree)}


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Every array with its path, the layers of a stack one by one."""
    for name, value in tree.items():
        if not isinstance(value, dict):
            yield (*path, name), np.asarray(value)
        elif name in STACKED:
            for inner, array in leaves(value):
                yield from (((*path, name, str(i), *inner), layer) for i, layer in enumerate(array))
        else:
            yield from leaves(value, (*path, name))


def torch_name(path: tuple[str, ...]) -> str:
    name = re.sub(r"\b(self|cross|mlp)_(\d+)", r"\1_layers.\2", ".".join(path))
    return re.sub(r"(\.scale\.scale|\.kernel)$", ".weight", name)


def torch_layout(path: tuple[str, ...], array: np.ndarray) -> Tensor:
    """Kernels are (…, in, out) with us and (out, in, …) in torch."""
    return torch.tensor(np.ascontiguousarray(array.T) if path[-1] == "kernel" else array)


class Encoded(NamedTuple):
    """As `editjax.models.encoder.Encoded`."""

    frames_BTD: Tensor
    landmarks_BLD: Tensor
    beats_BUD: Tensor
    bars_BVD: Tensor
    structure_BTS: Tensor
    announced_BT: Tensor
    log_length_B: Tensor
    n_frames_B: Tensor


class Hints(NamedTuple):
    """As `editjax.models.hints.Hints`."""

    kept_BT: Tensor
    frame_start_BT: Tensor
    beat_start_BU: Tensor
    bar_start_BV: Tensor
    starts_BT: Tensor
    starts_BV: Tensor
    played_before_BV: Tensor
    recorded_before_BV: Tensor
    place_BV: Tensor


class Keys(NamedTuple):
    """As `editjax.models.pointer.Keys`."""

    frames_BTD: Tensor
    around: tuple[Tensor, ...]
    bars: tuple[Tensor, ...]
    bar_keys_BVD: Tensor
    beat_keys_BUD: Tensor
    frame_keys_BTD: Tensor
    bars_BVD: Tensor
    beats_BUD: Tensor
    hints: Hints
    n_frames_B: Tensor


class Step(NamedTuple):
    """As `editjax.models.pointer.Step`."""

    pointer_BN: Tensor
    run_BN: Tensor
    index_BN: Tensor
    target_B: Tensor

    @property
    def began_BN(self) -> Tensor:
        return torch.maximum(self.pointer_BN - self.run_BN, self.pointer_BN.clamp(max=0))


class Reach(NamedTuple):
    """What the queries of one level may see, and where they stand: made once a pass for all its layers.

    `mask` is of the kind's own form; cos and sin are (1, T, 1, half head).
    """

    mask: Any
    window: Window
    cos: Tensor
    sin: Tensor


class Globals(NamedTuple):
    """How the pooled tokens of `scales.bar_globals` are made and where they stand."""

    pool_BGL: Tensor
    valid_BG: Tensor
    cos: Tensor
    sin: Tensor


def frame_mask(frames_B: Tensor, n_frames: int) -> Tensor:
    return torch.arange(n_frames, device=frames_B.device) < frames_B[:, None]


def masked(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return x_BTD * mask_BT[..., None]


def rotation(position_BT: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `layers.rotary`, (B, T, 1, half head)."""
    half = head // 2
    rate_R = ROTARY_BASE ** (-torch.arange(half, dtype=torch.float32, device=position_BT.device) / half)
    angle = (position_BT.float()[..., None] * rate_R)[:, :, None]
    return angle.cos(), angle.sin()


def rotary(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x_BTHK.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def rows(x_BTD: Tensor, index: Tensor) -> Tensor:
    """Rows of each example at `index` (B, …), all inside."""
    batch, length, width = x_BTD.shape
    first = torch.arange(batch, device=index.device).view(-1, *[1] * (index.ndim - 1)) * length
    return F.embedding(index + first, x_BTD.reshape(-1, width))


def take(x_BTD: Tensor, index: Tensor) -> Tensor:
    """The same; indices outside give zero."""
    inside = (index >= 0) & (index < x_BTD.shape[1])
    return rows(x_BTD, index.clamp(0, x_BTD.shape[1] - 1)) * inside[..., None]


def pick(x_BT: Tensor, index: Tensor) -> Tensor:
    """Numbers of each example at `index` (B, …); indices outside give zero."""
    return take(x_BT[..., None], index)[..., 0]


def reach(
    kind: str, window: Window, frames_B: Tensor, n_frames: int, head: int, valid_BG: Tensor | None = None
) -> Reach:
    """The mask of every query: its window, itself (so that no row is empty), and the valid globals."""
    device = frames_B.device
    angles = rotation(torch.arange(n_frames, device=device)[None], head)
    if valid_BG is None:
        valid_BG = torch.zeros(len(frames_B), 0, dtype=torch.bool, device=device)
    if kind == "dense":
        offset_TS = torch.arange(n_frames, device=device) - torch.arange(n_frames, device=device)[:, None]
        near_TS = (offset_TS >= -window.left) & (offset_TS <= window.right)
        if bool((frames_B == n_frames).all() & valid_BG.all()):  # one mask for all examples
            mask = F.pad(near_TS, (0, valid_BG.shape[1]), value=True)[None]
        else:
            mask_BTS = near_TS & frame_mask(frames_B, n_frames)[:, None] | (offset_TS == 0)
            mask = torch.cat([mask_BTS, valid_BG[:, None].expand(-1, n_frames, -1)], -1)
        return Reach(mask[:, None], window, *angles)
    if kind == "flex":
        return Reach(_flex_mask(window, frames_B, n_frames, valid_BG), window, *angles)
    query_Q = torch.arange(QUERY_BLOCK, device=device)[:, None]
    span = QUERY_BLOCK + window.left + window.right
    offset_QS = torch.arange(span, device=device) - window.left - query_Q
    near_QS = (offset_QS >= -window.left) & (offset_QS <= window.right)
    first_X = torch.arange(0, n_frames, QUERY_BLOCK, device=device)
    key_XS = first_X[:, None] + torch.arange(span, device=device) - window.left
    valid_BXS = (key_XS >= 0) & (key_XS < frames_B[:, None, None])
    mask_BXQS = near_QS & valid_BXS[:, :, None] | (offset_QS == 0)
    globals_BXQG = valid_BG[:, None, None].expand(-1, len(first_X), QUERY_BLOCK, -1)
    return Reach(torch.cat([mask_BXQS, globals_BXQG], -1).flatten(0, 1)[:, None], window, *angles)


def _flex_mask(window: Window, frames_B: Tensor, n_frames: int, valid_BG: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    valid_BS = torch.cat([frame_mask(frames_B, n_frames), valid_BG], 1)

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (key - query >= -window.left) & (key - query <= window.right)
        return (near | (key >= n_frames)) & valid_BS[b, key] | (key == query)

    batch, keys = valid_BS.shape
    return create_block_mask(seen, batch, None, n_frames, keys, device=str(frames_B.device))


def attend(kind: str, q: Tensor, k: Tensor, v: Tensor, reach: Reach, extra: list[Tensor]) -> Tensor:
    """Attention of (B, T, H, K) to its window and to the extra keys and values (B, G, H, K), if any."""
    if kind == "block":
        return _attend_in_blocks(q, k, v, reach, extra)
    if extra:
        k, v = torch.cat([k, extra[0]], 1), torch.cat([v, extra[1]], 1)
    q, k, v = (a.transpose(1, 2) for a in (q, k, v))
    if kind == "flex":
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(q, k, v, block_mask=reach.mask).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=reach.mask).transpose(1, 2)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, reach: Reach, extra: list[Tensor]) -> Tensor:
    batch, n_frames, heads, head = q.shape
    tail = -n_frames % QUERY_BLOCK
    left, right = reach.window
    span = QUERY_BLOCK + left + right

    def around(x_BTHK: Tensor) -> Tensor:
        padded = F.pad(x_BTHK, (0, 0, 0, 0, left, right + tail))
        return padded.unfold(1, span, QUERY_BLOCK).movedim(-1, 2)

    q = F.pad(q, (0, 0, 0, 0, 0, tail)).unflatten(1, (-1, QUERY_BLOCK))
    k, v = around(k), around(v)
    if extra:
        k, v = (
            torch.cat([x, more[:, None].expand(-1, x.shape[1], -1, -1, -1)], 2)
            for x, more in zip((k, v), extra, strict=True)
        )
    q, k, v = (a.flatten(0, 1).transpose(1, 2) for a in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=reach.mask)
    return out.transpose(1, 2).reshape(batch, n_frames + tail, heads, head)[:, :n_frames]


class Mlp(nn.Module):
    def __init__(self, width: int, expansion: int):
        super().__init__()
        self.norm = norm(width)
        self.up = nn.Linear(width, width * expansion)
        self.down = nn.Linear(width * expansion, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.up(self.norm(x))))


def norm(width: int) -> nn.RMSNorm:
    return nn.RMSNorm(width, eps=1e-6)


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def conv(channels: int, width: int) -> nn.Conv1d:
    return nn.Conv1d(channels, width, 5, padding=2)


def along_time(layer: nn.Conv1d, x_BTF: Tensor) -> Tensor:
    return layer(x_BTF.transpose(1, 2)).transpose(1, 2)


class WindowAttention(nn.Module):
    def __init__(self, width: int, heads: int, kind: str, with_globals: bool):
        super().__init__()
        self.heads, self.kind = heads, kind
        self.norm, self.qkv, self.out = norm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        if with_globals:
            self.global_norm, self.global_kv = norm(width), nn.Linear(width, 2 * width)

    def forward(self, x_BTD: Tensor, reach: Reach, tokens: Globals | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm(x_BTD)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = rotary(q, reach.cos, reach.sin), rotary(k, reach.cos, reach.sin)
        extra = []
        if tokens is not None:
            kv = self.global_kv(self.global_norm(tokens.pool_BGL @ x_BTD))
            more_k, more_v = kv.unflatten(-1, (2, self.heads, -1)).unbind(2)
            extra = [rotary(more_k, tokens.cos, tokens.sin), more_v]
        return self.out(attend(self.kind, q, k, v, reach, extra).flatten(2))


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
        self.match, self.mlp = MatchAttention(s.width, s.heads), Mlp(s.width, s.expansion)

    def forward(self, x: Tensor, reach: Reach, tokens: Globals, matches: Any, mask_BL: Tensor) -> Tensor:
        x = x + self.window(x, reach, tokens)
        x = masked(x + self.match(x, matches), mask_BL)
        return masked(x + self.mlp(x), mask_BL)


class FrameLayer(nn.Module):
    def __init__(self, s: PointerSettings, kind: str):
        super().__init__()
        self.window = WindowAttention(s.frame_width, s.frame_heads, kind, with_globals=False)
        self.mlp = Mlp(s.frame_width, s.expansion)

    def forward(self, x: Tensor, reach: Reach, mask_BT: Tensor) -> Tensor:
        x = masked(x + self.window(x, reach), mask_BT)
        return masked(x + self.mlp(x), mask_BT)


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
        self.target = nn.Linear(TARGET_CHANNELS, s.width)

    def forward(self, x_BTD: Tensor, features_BLJC: Tensor, target_B3: Tensor, mask_BL: Tensor) -> Tensor:
        x = F.pad(x_BTD, (0, 0, 0, -x_BTD.shape[1] % self.size)).unflatten(1, (-1, self.size)).flatten(2)
        x = self.frames(x) + self.matches(features_BLJC.flatten(2)) + self.target(target_B3)[:, None]
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

    def forward(self, mel_BTF: Tensor, frames_B: Tensor, phase_BT3: Tensor, target_B: Tensor) -> Encoded:
        s, n_frames = self.settings, mel_BTF.shape[1]
        mask_BT = frame_mask(frames_B, n_frames)
        n_landmarks, landmarks_B = -(-n_frames // s.landmark_frames), ceil_div(frames_B, s.landmark_frames)
        mask_BL = frame_mask(landmarks_B, n_landmarks)
        with torch.no_grad():
            level_BTF = level_normalise(mel_BTF, frames_B, s.floor_db, s.ceiling_db)
            matches = landmark_matches(level_BTF[..., :-LEVEL_CHANNELS], frames_B, landmarks_B, s)
            tokens = bar_globals(landmarks_B, n_landmarks, s)
            reach_L, reach_T = self.reaches(frames_B, n_frames, tokens.valid_BG)
        announced_BT = self.announce(level_BTF, mask_BT)
        x = self.stem(level_BTF, phase_BT3 * mask_BT[..., None], mask_BT)
        landmarks = self.entry(x, matches[1], target_features(target_B, frames_B), mask_BL)
        for layer in self.landmark_layers:
            landmarks = layer(landmarks, reach_L, tokens, matches, mask_BL)
        x = self.fusion(x, landmarks, frames_B)
        for layer in self.frame_layers:
            x = layer(x, reach_T, mask_BT)
        x, beats, bars, structure = self.levels(x, frames_B)
        log_length_B = self.length(bars, structure, frames_B)
        return Encoded(x, landmarks, beats, bars, structure, announced_BT, log_length_B, frames_B)

    def reaches(self, frames_B: Tensor, n_frames: int, valid_BG: Tensor) -> tuple[Reach, Reach]:
        s = self.settings
        n_landmarks, landmarks_B = -(-n_frames // s.landmark_frames), ceil_div(frames_B, s.landmark_frames)
        window_L, window_T = (Window(n, n) for n in (s.landmark_window, s.frame_window))
        return (
            reach(self.kind, window_L, landmarks_B, n_landmarks, s.width // s.heads, valid_BG),
            reach(self.kind, window_T, frames_B, n_frames, s.frame_width // s.frame_heads),
        )


def ceil_div(a: Tensor, size: int) -> Tensor:
    return (a + size - 1) // size


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


def running_sum(x_BT: Tensor, width: int) -> Tensor:
    """`level.running_sum` along the last axis."""
    return F.avg_pool1d(x_BT, width, 1, width // 2) * width


def level_normalise(mel_BTF: Tensor, frames_B: Tensor, floor_db: float, ceiling_db: float) -> Tensor:
    """`level.level_normalise`."""
    n_frames = mel_BTF.shape[1]
    mask_BT = frame_mask(frames_B, n_frames)
    valid_BT = mask_BT.float()
    decibel_BTF = mel_BTF * (ceiling_db - floor_db) + floor_db
    decibel_BTF = decibel_BTF.where(mask_BT[..., None], floor_db)
    power_BT = (10.0 ** (decibel_BTF / 10.0)).mean(-1) * valid_BT
    near_BT = running_sum(power_BT, NEAR_FRAMES) / running_sum(valid_BT, NEAR_FRAMES).clamp(min=1)

    def blocks(a_BT: Tensor) -> Tensor:
        return F.pad(a_BT, (0, -n_frames % FAR_BLOCK)).unflatten(1, (-1, FAR_BLOCK)).sum(-1)

    far = running_sum(blocks(power_BT), FAR_BLOCKS) / running_sum(blocks(valid_BT), FAR_BLOCKS).clamp(min=1)
    far_BT = far.repeat_interleave(FAR_BLOCK, 1)[:, :n_frames]
    near_BT, far_BT, frame_BT = (
        10.0 * a.clamp(min=SILENCE_POWER).log10() for a in (near_BT, far_BT, power_BT)
    )
    levels = torch.stack([near_BT - far_BT, frame_BT - near_BT, frame_BT - far_BT], -1)
    x = torch.cat([decibel_BTF - near_BT[..., None], levels], -1) / RANGE_DB
    return masked(x.clamp(BOTTOM, TOP), mask_BT)


def fingerprints(x_BTF: Tensor, frames_B: Tensor) -> Tensor:
    """`match.fingerprints`."""
    batch, n_frames, n_bins = x_BTF.shape
    x_BTF = F.pad(x_BTF, (0, 0, 0, -n_frames % STEP_FRAMES))
    x_BMG = x_BTF.view(batch, -1, STEP_FRAMES, BANDS, n_bins // BANDS).mean((2, 4))
    mask_BM = frame_mask(ceil_div(frames_B, STEP_FRAMES), x_BMG.shape[1])
    count_BM = running_sum(mask_BM.float(), MEAN_STEPS).clamp(min=1)
    mean_BMG = running_sum(x_BMG.mT, MEAN_STEPS).mT / count_BM[..., None]
    u_BMG = masked(x_BMG - mean_BMG, mask_BM)
    return u_BMG / (u_BMG.norm(dim=-1, keepdim=True) + 0.05)


def find_matches(u_BMG: Tensor, steps_B: Tensor, count: int) -> tuple[Tensor, ...]:
    """`match.find_matches`, all rows at once: places, scores, similarities here, validity, (B, M, 2 K)."""
    n_steps, half = u_BMG.shape[1], DIAGONAL_STEPS // 2
    n_rows, n_cells = -(-n_steps // STRIDE), -(-n_steps // CELL_STEPS)
    columns = n_cells * CELL_STEPS
    u_rows = F.pad(u_BMG, (0, 0, half, half + n_rows * STRIDE - n_steps))[:, ::STRIDE]
    total = u_rows @ F.pad(u_BMG, (0, 0, half, half + columns - n_steps)).mT
    span = 1
    while span < DIAGONAL_STEPS // STRIDE:
        total = total[:, :-span, : -span * STRIDE] + total[:, span:, span * STRIDE :]
        span *= 2
    valid_BC = frame_mask(steps_B, columns)
    score_BRC = (total / span)[:, :n_rows, :columns].masked_fill(~valid_BC[:, None], NOT_A_MATCH)
    cells_BRCS = score_BRC.unflatten(2, (-1, CELL_STEPS))
    peak_BRC, within_BRC = cells_BRCS.max(-1)
    row_R1 = STRIDE * torch.arange(n_rows, device=u_BMG.device)[:, None]
    column_C = CELL_STEPS * torch.arange(n_cells, device=u_BMG.device)
    sides = column_C >= row_R1 + APART_STEPS, column_C + CELL_STEPS - 1 <= row_R1 - APART_STEPS
    best = [peak_BRC.masked_fill(~side, NOT_A_MATCH).topk(count, -1) for side in sides]
    score_BRK, cell_BRK = (torch.cat([pair[i] for pair in best], -1) for i in (0, 1))
    place_BRK = cell_BRK * CELL_STEPS + within_BRC.gather(2, cell_BRK)
    score_BMK, place_BMK = (a.repeat_interleave(STRIDE, 1)[:, :n_steps] for a in (score_BRK, place_BRK))
    step_M1 = torch.arange(n_steps, device=u_BMG.device)[:, None]
    place_BMK = place_BMK + step_M1 % STRIDE
    last_B11 = steps_B[:, None, None]
    valid = (score_BMK > NOT_A_MATCH) & (step_M1 < last_B11) & (place_BMK < last_B11)
    here_BMK = (u_BMG[:, :, None] * rows(u_BMG, place_BMK.clamp(max=n_steps - 1))).sum(-1)
    return place_BMK * valid, score_BMK * valid, here_BMK * valid, valid


def landmark_matches(
    x_BTF: Tensor, frames_B: Tensor, landmarks_B: Tensor, s: PointerSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """`scales.landmark_matches` of a level-normalised mel."""
    n_landmarks, ratio = -(-x_BTF.shape[1] // s.landmark_frames), STEP_FRAMES // s.landmark_frames
    found = find_matches(fingerprints(x_BTF, frames_B), ceil_div(frames_B, STEP_FRAMES), s.matches)
    place, score, here, valid = (a.repeat_interleave(ratio, 1)[:, :n_landmarks] for a in found)
    landmark_L1 = torch.arange(n_landmarks, device=x_BTF.device)[:, None]
    place = place * ratio + landmark_L1 % ratio
    last_B11 = landmarks_B[:, None, None] - 1
    valid = valid & (place <= last_B11) & (landmark_L1 <= last_B11)
    place = place * valid
    away = (place - landmark_L1).float()
    distance, direction = torch.log1p(away.abs() / 100.0), away.sign()
    best = (score * valid).amax(-1, keepdim=True)
    features = [score, here, score - best, distance * direction, distance, direction]
    return place, torch.stack(features, -1) * valid[..., None], valid


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


def hints_of(encoded: Encoded, s: PointerSettings) -> Hints:
    """`hints.hints_of`: no gradient but that of the places."""
    with torch.no_grad():
        structure_BTS, n_frames = encoded.structure_BTS, encoded.structure_BTS.shape[1]
        mask_BT = frame_mask(encoded.n_frames_B, n_frames)
        odds_BT = structure_BTS[..., 1:].logsumexp(-1) - structure_BTS[..., 0]
        keep_BT = F.relu(odds_BT.sigmoid() - QUIET_KEEP) / (1 - QUIET_KEEP) * mask_BT
        odds_BT = odds_BT.clamp(-HINT_LIMIT, HINT_LIMIT).where(mask_BT, -HINT_LIMIT)
        steady_BT = steady(keep_BT)
        rise_BT = F.relu(steady_BT - F.pad(steady_BT, (1, 0))[:, :-1])
        rise_BU, rise_BV = (sums(rise_BT, size) for size in (s.frames_per_beat, s.frames_per_bar))
        weight_BT = (rise_BT + START_FLOOR) * mask_BT
    place_BV = places(encoded.announced_BT, weight_BT, s.frames_per_bar)
    with torch.no_grad():
        order_BV = place_BV.argsort(dim=1, stable=True)
        sorted_BV = rise_BV.gather(1, order_BV)
        before_BV = (sorted_BV.cumsum(1) - sorted_BV).gather(1, order_BV.argsort(1))
        return Hints(
            F.pad(odds_BT, (0, 1), value=-HINT_LIMIT),
            (rise_BT + START_FLOOR).log().where(mask_BT, HINT_NEVER),
            (rise_BU + START_FLOOR).log(),
            (rise_BV + START_FLOOR).log(),
            rise_BT.cumsum(1),
            rise_BV,
            before_BV,
            rise_BV.cumsum(1) - rise_BV,
            place_BV,
        )


def steady(keep_BT: Tensor) -> Tensor:
    def most(x_BT: Tensor, size: int) -> Tensor:
        return F.max_pool1d(x_BT, size, 1, size // 2)

    padded_BT = F.pad(keep_BT, (STRETCH_FRAMES, STRETCH_FRAMES))
    closed_BT = -most(-most(padded_BT, DIP_FRAMES), DIP_FRAMES)
    return most(-most(-closed_BT, STRETCH_FRAMES), STRETCH_FRAMES)[:, STRETCH_FRAMES:-STRETCH_FRAMES]


def places(announced_BT: Tensor, weight_BT: Tensor, frames_per_bar: int) -> Tensor:
    heard_BT = F.pad(announced_BT, (COUNTED_FRAMES - 1, 0))
    count_BT = F.avg_pool1d(heard_BT, COUNTED_FRAMES, 1) * (COUNTED_FRAMES / BEEP_FRAMES)
    before_BT = F.pad(count_BT, (ANNOUNCED_FRAMES - 1, 0), value=-torch.inf)
    number_BT = F.max_pool1d(before_BT, ANNOUNCED_FRAMES, 1)
    recorded_T = torch.arange(number_BT.shape[1], device=number_BT.device) / (PLACE_BARS * frames_per_bar)
    place_BT = recorded_T * (AS_RECORDED_BIAS - number_BT).sigmoid() + number_BT
    return sums(place_BT * weight_BT, frames_per_bar) / sums(weight_BT, frames_per_bar).clamp(min=START_FLOOR)


def sums(x_BT: Tensor, size: int) -> Tensor:
    return F.pad(x_BT, (0, -x_BT.shape[1] % size)).unflatten(1, (-1, size)).sum(-1)


class SelfAttention(nn.Module):
    def __init__(self, s: PointerSettings, kind: str):
        super().__init__()
        self.settings, self.kind = s, kind
        self.norm, self.qkv, self.out = (
            norm(s.width),
            nn.Linear(s.width, 3 * s.width),
            nn.Linear(s.width, s.width),
        )

    def forward(self, x_BND: Tensor, reach: Reach) -> Tensor:
        q, k, v = self.project(x_BND, reach.cos, reach.sin)
        return self.out(attend(self.kind, q, k, v, reach, []).flatten(2))

    def project(self, x_BND: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(self.norm(x_BND)).unflatten(-1, (3, self.settings.heads, -1)).unbind(2)
        return rotary(q, cos, sin), rotary(k, cos, sin), v

    def step(
        self, x_B1D: Tensor, angles: tuple[Tensor, Tensor], index: int, cache: tuple[Tensor, Tensor]
    ) -> Tensor:
        """One step; the caches (B, H, steps, K) get its key and value at `index`."""
        q, k, v = (a.transpose(1, 2) for a in self.project(x_B1D, *angles))
        for held, new in zip(cache, (k, v), strict=True):
            held[:, :, index : index + 1] = new
        first = max(index + 1 - self.settings.decoder_window, 0)
        k, v = (held[:, :, first : index + 1] for held in cache)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    def __init__(self, s: PointerSettings):
        super().__init__()
        self.settings = s
        self.norm, self.query, self.out = (
            norm(s.width),
            nn.Linear(s.width, s.width),
            nn.Linear(s.width, s.width),
        )
        self.around, self.bars = nn.Linear(s.width, 2 * s.width), nn.Linear(s.width, 2 * s.width)
        self.offset = nn.Parameter(torch.empty(s.heads, s.look_back + 1 + s.look_ahead))

    def keys(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        s = self.settings
        k, v = self.bars(encoded.bars_BVD).chunk(2, -1)
        position_1V = torch.arange(k.shape[1], device=k.device)[None] + 0.5
        k = rotary(self.heads(k), *rotation(position_1V, s.width // s.heads)).flatten(2)
        return self.around(encoded.landmarks_BLD), torch.cat([k, v], -1)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.settings.heads, -1))

    def forward(
        self, x_BND: Tensor, pointer_BN: Tensor, around_BLE: Tensor, bars_BVE: Tensor, frames_B: Tensor
    ) -> Tensor:
        s = self.settings
        q_BNHK = self.heads(self.query(self.norm(x_BND)))
        scale = q_BNHK.shape[-1] ** -0.5
        reach_W = torch.arange(-s.look_back, s.look_ahead + 1, device=x_BND.device)
        place_BNW = pointer_BN.clamp(min=0)[..., None] // s.landmark_frames + reach_W
        n_landmarks_B = ceil_div(frames_B, s.landmark_frames)
        seen_BNW = (place_BNW >= 0) & (place_BNW < n_landmarks_B[:, None, None])
        near = rows(around_BLE, place_BNW.clamp(0, around_BLE.shape[1] - 1))
        near_k, near_v = near.unflatten(-1, (2, s.heads, -1)).unbind(3)
        near_logits = torch.einsum("bnhk,bnwhk->bnhw", q_BNHK, near_k) * scale + self.offset
        near_logits = near_logits.masked_fill(~seen_BNW[:, :, None], NEVER)
        far_k, far_v = (self.heads(a) for a in bars_BVE.chunk(2, -1))
        position_BN = pointer_BN.clamp(min=0) / s.frames_per_bar
        q_far = rotary(q_BNHK, *rotation(position_BN, q_BNHK.shape[-1]))
        far_logits = torch.einsum("bnhk,bvhk->bnhv", q_far, far_k) * scale
        bar_BV = frame_mask(ceil_div(frames_B, s.frames_per_bar), far_k.shape[1])
        far_logits = far_logits.masked_fill(~bar_BV[:, None, None], NEVER)
        weights = torch.cat([near_logits, far_logits], -1).softmax(-1)
        near_weights, far_weights = weights.split([len(reach_W), far_k.shape[1]], -1)
        out = torch.einsum("bnhw,bnwhk->bnhk", near_weights, near_v)
        return self.out((out + torch.einsum("bnhv,bvhk->bnhk", far_weights, far_v)).flatten(2))


class Decoder(nn.Module):
    """`editjax.models.pointer.Decoder`."""

    def __init__(self, s: PointerSettings, kind: str):
        super().__init__()
        self.settings, self.kind, width = s, kind, s.width
        self.enter = nn.Linear(2 * s.frame_width + STEP_CHANNELS + HINT_CHANNELS, width)
        self.self_layers = nn.ModuleList(SelfAttention(s, kind) for _ in range(s.decoder_layers))
        self.cross_layers = nn.ModuleList(CrossAttention(s) for _ in range(s.decoder_layers))
        self.mlp_layers = nn.ModuleList(Mlp(width, s.expansion) for _ in range(s.decoder_layers))
        self.norm = norm(width)
        self.trust = nn.Parameter(torch.empty(4))
        self.mode = nn.Linear(width, 3)
        self.bar_query, self.bar_key = nn.Linear(width, width), nn.Linear(width, width)
        self.bar_distance, self.bar_avoid = nn.Linear(width, DISTANCE_BUCKETS), nn.Linear(width, 3)
        self.beat_query, self.beat_key = nn.Linear(2 * width, width), nn.Linear(width, width)
        self.frame_query, self.frame_key = nn.Linear(2 * width, width), nn.Linear(s.frame_width, width)

    def keys(self, encoded: Encoded) -> Keys:
        pairs = [cross.keys(encoded) for cross in self.cross_layers]
        return Keys(
            encoded.frames_BTD,
            tuple(a for a, _ in pairs),
            tuple(b for _, b in pairs),
            self.bar_key(encoded.bars_BVD),
            self.beat_key(encoded.beats_BUD),
            self.frame_key(encoded.frames_BTD),
            encoded.bars_BVD,
            encoded.beats_BUD,
            hints_of(encoded, self.settings),
            encoded.n_frames_B,
        )

    def states(self, keys: Keys, step: Step, steps_B: Tensor) -> Tensor:
        """All steps at once (teacher forcing): (B, N, width)."""
        s = self.settings
        window = Window(s.decoder_window - 1, 0)
        near = reach(self.kind, window, steps_B, step.pointer_BN.shape[1], s.width // s.heads)
        x = self.inputs(keys, step)
        for i, (attention, cross, mlp) in enumerate(self.layers()):
            x = x + attention(x, near)
            x = x + cross(x, step.pointer_BN, keys.around[i], keys.bars[i], keys.n_frames_B)
            x = x + mlp(x)
        return self.norm(x)

    def step(self, keys: Keys, step: Step, caches: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The next step after those in the caches (`empty_caches`), filled in place: (B, 1, width)."""
        x, index = self.inputs(keys, step), int(step.index_BN[0, 0])
        angles = rotation(step.index_BN, self.settings.width // self.settings.heads)
        for i, (attention, cross, mlp) in enumerate(self.layers()):
            x = x + attention.step(x, angles, index, caches[i])
            x = x + cross(x, step.pointer_BN, keys.around[i], keys.bars[i], keys.n_frames_B)
            x = x + mlp(x)
        return self.norm(x)

    def empty_caches(self, batch: int, max_steps: int) -> list[tuple[Tensor, Tensor]]:
        s = self.settings
        shape = batch, s.heads, max_steps, s.width // s.heads
        return [(self.trust.new_zeros(shape), self.trust.new_zeros(shape)) for _ in range(s.decoder_layers)]

    def layers(self) -> Iterator[tuple[Any, Any, Any]]:
        return zip(self.self_layers, self.cross_layers, self.mlp_layers, strict=True)

    def inputs(self, keys: Keys, step: Step) -> Tensor:
        here, following = (take(keys.frames_BTD, step.pointer_BN + ahead) for ahead in (0, 1))
        with torch.no_grad():
            passed_BN = self.passed(keys.hints, step.pointer_BN, step.began_BN)
            after_BN = F.relu(keys.hints.starts_BT[:, -1:] - passed_BN)
            kept_BN = pick(keys.hints.kept_BT, step.pointer_BN + 1)
            hints_BN2 = torch.stack([kept_BN, (after_BN + AFTER_FLOOR).log()], -1)
            numbers = torch.cat([step_features(step), hints_BN2 / 5.0], -1)
        return self.enter(torch.cat([here, following, numbers], -1))

    def passed(self, hints: Hints, pointer_BN: Tensor, began_BN: Tensor) -> Tensor:
        bar_BN = began_BN.clamp(min=0) // self.settings.frames_per_bar
        follower_BN = (pointer_BN + 1).clamp(max=hints.starts_BT.shape[1] - 1)
        heard_BN = pick(hints.starts_BT, follower_BN) - pick(hints.recorded_before_BV, bar_BN)
        return (pick(hints.played_before_BV, bar_BN) + heard_BN) * (pointer_BN >= 0)

    def mode_logits(self, h_BND: Tensor, pointer_BN: Tensor, keys: Keys) -> Tensor:
        advance, jump, stop = self.mode(h_BND).unbind(-1)
        advance = advance + self.trust[0] * pick(keys.hints.kept_BT, pointer_BN + 1)
        advance = advance.masked_fill(pointer_BN + 1 >= keys.n_frames_B[:, None], NEVER)
        return torch.stack([advance, jump, stop], -1)

    def bar_logits(
        self, h_BJD: Tensor, pointer_BJ: Tensor, began_BJ: Tensor, played_BJV: Tensor, keys: Keys
    ) -> Tensor:
        size, hints = self.settings.frames_per_bar, keys.hints
        bar_V = torch.arange(keys.bar_keys_BVD.shape[1], device=h_BJD.device)
        bucket_BJV = distance_bucket(bar_V - (pointer_BJ.clamp(min=0) // size)[..., None])
        logits = self.scaled(self.bar_query(h_BJD) @ keys.bar_keys_BVD.mT)
        logits = logits + self.bar_distance(h_BJD).gather(2, bucket_BJV)
        logits = logits + self.trust[1] * hints.bar_start_BV[:, None]
        passed_BJ1 = self.passed(hints, pointer_BJ, began_BJ)[..., None]
        skipped_BJV = F.relu(hints.played_before_BV[:, None] - passed_BJ1)
        undone_BJV = F.relu(passed_BJ1 - (hints.played_before_BV + hints.starts_BV)[:, None])
        skip, again, back = self.bar_avoid(h_BJD).split(1, -1)
        logits = (
            logits - skip * torch.expm1(-skipped_BJV) + again * played_BJV - back * torch.expm1(-undone_BJV)
        )
        return logits.masked_fill(room(bar_V, size, pointer_BJ, keys.n_frames_B) <= 0, NEVER)

    def beat_logits(self, h_BJD: Tensor, bar_BJ: Tensor, pointer_BJ: Tensor, keys: Keys) -> Tensor:
        size = self.settings.frames_per_beat
        beat_BJC = within(bar_BJ, self.settings.frames_per_bar // size)
        query = self.beat_query(torch.cat([h_BJD, take(keys.bars_BVD, bar_BJ)], -1))
        logits = self.scaled(torch.einsum("bjd,bjcd->bjc", query, take(keys.beat_keys_BUD, beat_BJC)))
        logits = logits + self.trust[2] * pick(keys.hints.beat_start_BU, beat_BJC)
        return logits.masked_fill(room(beat_BJC, size, pointer_BJ, keys.n_frames_B) <= 0, NEVER)

    def frame_logits(self, h_BJD: Tensor, beat_BJ: Tensor, pointer_BJ: Tensor, keys: Keys) -> Tensor:
        frame_BJC = within(beat_BJ, self.settings.frames_per_beat)
        query = self.frame_query(torch.cat([h_BJD, take(keys.beats_BUD, beat_BJ)], -1))
        logits = self.scaled(torch.einsum("bjd,bjcd->bjc", query, take(keys.frame_keys_BTD, frame_BJC)))
        logits = logits + self.trust[3] * pick(keys.hints.frame_start_BT, frame_BJC)
        outside = (frame_BJC >= keys.n_frames_B[:, None, None]) | (frame_BJC == pointer_BJ[..., None] + 1)
        return logits.masked_fill(outside, NEVER)

    def scaled(self, logits: Tensor) -> Tensor:
        return logits * self.settings.width**-0.5


def within(span_BJ: Tensor, size: int) -> Tensor:
    return span_BJ[..., None] * size + torch.arange(size, device=span_BJ.device)


def room(span: Tensor, size: int, pointer_BJ: Tensor, n_frames_B: Tensor) -> Tensor:
    """`Decoder._room`: frames of a span that a jump may land on."""
    n_frames_B11, follower_BJ1 = n_frames_B[:, None, None], pointer_BJ[..., None] + 1
    holds = (follower_BJ1 // size == span) & (follower_BJ1 < n_frames_B11)
    return (n_frames_B11 - span * size).clamp(0, size) - holds.long()


def step_features(step: Step) -> Tensor:
    run, asked = step.run_BN.float(), (step.target_B > 0)[:, None]
    target = torch.where(asked, step.target_B[:, None], 1.0)
    left = (target - step.index_BN) * asked
    parts = [
        (step.pointer_BN < 0).float(),
        (step.run_BN == 0).float(),
        torch.log1p(run) / 5.0,
        asked.float().expand_as(run),
        (left / target).clamp(-1.0, 1.0),
        left.sign() * torch.log1p(left.abs()) / 5.0,
        (left < 0).float(),
    ]
    return torch.stack(parts, -1)


def distance_bucket(away: Tensor) -> Tensor:
    size = away.abs()
    power = 4 + (size.clamp(min=4) / 4.0).log2().floor().long()
    magnitude = torch.where(size < 4, size, power).clamp(max=DISTANCE_BUCKETS // 2 - 1)
    return magnitude + (away < 0) * (DISTANCE_BUCKETS // 2)


class Targets(NamedTuple):
    """As `editjax.losses.Targets`."""

    step: Step
    pointer_BN: Tensor
    mode_BN: Tensor
    counted_BN: Tensor


def targets(pointers_BN: Tensor, steps_B: Tensor, target_B: Tensor) -> Targets:
    """`losses.targets`."""
    index_BN = torch.arange(pointers_BN.shape[1], device=pointers_BN.device).expand_as(pointers_BN)
    aligned_BN = pointers_BN >= 0
    last_BN = index_BN.where(aligned_BN, -1).cummax(1).values
    carried_BN = pointers_BN.gather(1, last_BN.clamp(min=0)).where(last_BN >= 0, -1)
    before_BN = F.pad(carried_BN, (1, 0), value=-1)[:, :-1]
    mode_BN = torch.where(pointers_BN == before_BN + 1, ADVANCE, JUMP)
    mode_BN = mode_BN.masked_fill(pointers_BN == STOP, STOP_MODE)
    since_BN = index_BN.where((mode_BN == JUMP) & aligned_BN, -1).cummax(1).values
    run_BN = index_BN - 1 - F.pad(since_BN, (1, 0), value=-1)[:, :-1]
    counted_BN = frame_mask(steps_B, pointers_BN.shape[1]) & (pointers_BN != UNALIGNED)
    return Targets(Step(before_BN, run_BN, index_BN, target_B), pointers_BN, mode_BN, counted_BN)


def played_before(pointers_BN: Tensor, jump_BN: Tensor, n_jumps: int, n_bars: int, size: int) -> Tensor:
    """`coverage.played_before`."""
    stretch_BN = jump_BN.cumsum(1)
    counted_BN = (pointers_BN >= 0) & (stretch_BN < n_jumps)
    place_BN = stretch_BN.clamp(max=n_jumps - 1) * n_bars + pointers_BN.clamp(min=0) // size
    counts = torch.zeros(len(pointers_BN), n_jumps * n_bars, device=pointers_BN.device)
    counts.scatter_add_(1, place_BN, counted_BN.float())
    return counts.unflatten(1, (n_jumps, n_bars)).cumsum(1) / size


def was_played(frame_BJ: Tensor, played_BJV: Tensor, n_frames_B: Tensor, size: int) -> Tensor:
    """`coverage.was_played`."""
    bar_BJ, offset_BJ = frame_BJ // size, (frame_BJ % size) / size
    padded_BJV = F.pad(played_BJV, (0, 1))
    here_BJ, next_BJ = (padded_BJV.gather(2, bar[..., None])[..., 0] for bar in (bar_BJ, bar_BJ + 1))
    most_BJ = torch.minimum(here_BJ, 1.0 - offset_BJ) + torch.minimum(next_BJ, offset_BJ)
    return most_BJ > 0.5 * ((n_frames_B[:, None] - frame_BJ) / size).clamp(max=1.0)


def nll(logits: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none").view_as(label)


class Twin(nn.Module):
    """Encoder, decoder and the whole loss."""

    def __init__(self, settings: PointerSettings, kind: str = "block"):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"attention kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
        self.settings = settings
        self.encoder, self.decoder = Encoder(settings, kind), Decoder(settings, kind)

    def forward(self, batch: Batch, weights: LossSettings) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.pointer_loss` of a batch of tensors: the loss and its parts."""
        encoded = self.encoder(batch.mel_BTF, batch.frames_B, batch.phase_BT3, batch.target_B)
        keys = self.decoder.keys(encoded)
        t = targets(batch.pointers_BN, batch.steps_B, batch.target_B)
        mode_B, target_B, jumps_B, order_B = self.sequence_nll(keys, t, batch.steps_B, weights.max_jumps)
        sequence = (mode_B + target_B).sum() / (jumps_B.sum() + len(jumps_B))
        labelled_BT = batch.structure_BT >= 0
        structure_BT = nll(encoded.structure_BTS, batch.structure_BT.clamp(min=0)) * labelled_BT
        structure = structure_BT.sum() / labelled_BT.sum().clamp(min=1)
        length = (encoded.log_length_B - (batch.steps_B - 1).clamp(min=1).log()).square().mean()
        parts = {"sequence": sequence, "structure": structure, "order": order_B.mean(), "length": length}
        return sum(getattr(weights, name) * part for name, part in parts.items()), parts

    def sequence_nll(self, keys: Keys, t: Targets, steps_B: Tensor, max_jumps: int) -> tuple[Tensor, ...]:
        """`losses.sequence_nll`, the three target parts summed: modes, targets, jumps, order, (B,) each."""
        s, decoder = self.settings, self.decoder
        h_BND = decoder.states(keys, t.step, steps_B)
        mode_logits = decoder.mode_logits(h_BND, t.step.pointer_BN, keys)
        mode_B = (nll(mode_logits, t.mode_BN) * t.counted_BN).sum(1)
        jump_BN = (t.mode_BN == JUMP) & t.counted_BN
        count = min(max_jumps, jump_BN.shape[1])
        where_BJ = (jump_BN * (jump_BN.shape[1] - t.step.index_BN)).topk(count, 1).indices
        real_BJ = jump_BN.gather(1, where_BJ)
        h_BJD = rows(h_BND, where_BJ)
        before_BJ, began_BJ = (a.gather(1, where_BJ) for a in (t.step.pointer_BN, t.step.began_BN))
        target_BJ = t.pointer_BN.gather(1, where_BJ) * real_BJ
        bar_BJ, beat_BJ = target_BJ // s.frames_per_bar, target_BJ // s.frames_per_beat
        n_bars, per_bar = keys.bars_BVD.shape[1], s.frames_per_bar // s.frames_per_beat
        played_BJV = played_before(t.pointer_BN, jump_BN, count, n_bars, s.frames_per_bar)
        target_nll_BJ = (
            nll(decoder.bar_logits(h_BJD, before_BJ, began_BJ, played_BJV, keys), bar_BJ)
            + nll(decoder.beat_logits(h_BJD, bar_BJ, before_BJ, keys), beat_BJ % per_bar)
            + nll(decoder.frame_logits(h_BJD, beat_BJ, before_BJ, keys), target_BJ % s.frames_per_beat)
        )
        first_BJ = real_BJ & ~was_played(target_BJ, played_BJV, keys.n_frames_B, s.frames_per_bar)
        order_B = order_loss(keys.hints.place_BV.gather(1, bar_BJ), first_BJ)
        return mode_B, (target_nll_BJ * real_BJ).sum(1), jump_BN.sum(1), order_B


def order_loss(place_BJ: Tensor, first_BJ: Tensor) -> Tensor:
    """`losses.order_loss`."""
    pairs_BJJ = (first_BJ[:, :, None] & first_BJ[:, None]).triu(1)
    loss_BJJ = F.softplus(place_BJ[:, :, None] - place_BJ[:, None]) * pairs_BJJ
    return loss_BJJ.sum((1, 2)) / pairs_BJJ.sum((1, 2)).clamp(min=1)


def tensors(batch: Batch, device: str = "cpu") -> Batch:
    """A batch of arrays as tensors, integers as torch's index type."""
    parts = (torch.from_numpy(np.asarray(a)).to(device) for a in batch)
    return Batch(*(a if a.is_floating_point() else a.long() for a in parts))


@torch.inference_mode()
def greedy(twin: Twin, encoded: Encoded, max_steps: int) -> np.ndarray:
    """`editjax.decode.decode` of one recording, greedy and without a wanted length: one step after another.

    Pointers (N,) without the stop.
    """
    s, decoder = twin.settings, twin.decoder
    keys, caches = decoder.keys(encoded), decoder.empty_caches(1, max_steps)
    target_B = encoded.log_length_B.new_zeros(1)
    size = s.frames_per_bar
    was = np.zeros(encoded.frames_BTD.shape[1], bool)
    bars_V = torch.zeros(1, 1, encoded.bars_BVD.shape[1])
    pointer, run, pointers = -1, 0, []
    for index in range(max_steps):
        step = Step(*(torch.tensor([[value]]) for value in (pointer, run, index)), target_B)
        h = decoder.step(keys, step, caches)
        mode = int(decoder.mode_logits(h, step.pointer_BN, keys).argmax())
        if mode == STOP_MODE:
            break
        after = pointer + 1
        if mode == JUMP:
            after = _jump(decoder, keys, h, step, bars_V / size)
            frame_11 = torch.tensor([[after]])
            onwards = after // size == pointer // size and after > pointer
            if not onwards and bool(was_played(frame_11, bars_V / size, encoded.n_frames_B, size)):
                break
        if was[after]:
            break
        run = run + 1 if after == pointer + 1 else 0
        pointer, was[after] = after, True
        bars_V[0, 0, after // size] += 1
        pointers.append(after)
    return np.array(pointers, np.int64)


def _jump(decoder: Decoder, keys: Keys, h: Tensor, step: Step, played: Tensor) -> int:
    s, pointer = decoder.settings, step.pointer_BN
    bar = decoder.bar_logits(h, pointer, step.began_BN, played, keys).argmax(-1)
    beat = decoder.beat_logits(h, bar, pointer, keys).argmax(-1)
    beat = bar * (s.frames_per_bar // s.frames_per_beat) + beat
    return int(beat * s.frames_per_beat + decoder.frame_logits(h, beat, pointer, keys).argmax(-1))
