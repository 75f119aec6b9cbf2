"""Hints and decoder of the PyTorch twin, as `editjax/models/hints.py` and `editjax/models/pointer.py`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_encoder import Encoded
from torch_layers import (
    Mlp,
    Reach,
    attend,
    ceil_div,
    frame_mask,
    norm,
    pick,
    reach,
    rotary,
    rotation,
    rows,
    take,
)

from editjax.attention import Window
from editjax.models.decoder_attention import NEVER
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
    SURE_KEPT,
    SURE_START,
)
from editjax.models.pointer import (
    AFTER_FLOOR,
    DISTANCE_BUCKETS,
    PointerSettings,
)

STEP_CHANNELS, HINT_CHANNELS, REPLAY_CHANNELS = 7, 2, 2


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
    sure_start_BV: Tensor


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
    style_BZ: Tensor
    n_frames_B: Tensor


class Step(NamedTuple):
    """As `editjax.models.pointer.Step`."""

    pointer_BN: Tensor
    run_BN: Tensor
    index_BN: Tensor
    target_B: Tensor
    replay_BN2: Tensor

    @property
    def began_BN(self) -> Tensor:
        return torch.maximum(self.pointer_BN - self.run_BN, self.pointer_BN.clamp(max=0))


def hints_of(encoded: Encoded, s: PointerSettings) -> Hints:
    """`hints.hints_of`: no gradient but that of the places."""
    with torch.no_grad():
        structure_BTS, n_frames = encoded.structure_BTS, encoded.structure_BTS.shape[1]
        mask_BT = frame_mask(encoded.n_frames_B, n_frames)
        odds_BT = structure_BTS[..., 1:].logsumexp(-1) - structure_BTS[..., 0]
        p_BT = odds_BT.sigmoid() * mask_BT
        keep_BT = F.relu(p_BT - QUIET_KEEP) / (1 - QUIET_KEEP) * mask_BT
        odds_BT = odds_BT.clamp(-HINT_LIMIT, HINT_LIMIT).where(mask_BT, -HINT_LIMIT)
        steady_BT = steady(keep_BT)
        rise_BT = F.relu(steady_BT - F.pad(steady_BT, (1, 0))[:, :-1])
        rise_BU, rise_BV = (sums(rise_BT, size) for size in (s.frames_per_beat, s.frames_per_bar))
        start_BV = likeliest(rise_BT, s.frames_per_bar)
        sure_BV = (rise_BV > SURE_START) & (kept_onwards(p_BT, steady_BT).gather(1, start_BV) > SURE_KEPT)
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
            start_BV.where(sure_BV, -1),
        )


def steady(keep_BT: Tensor) -> Tensor:
    def most(x_BT: Tensor, size: int) -> Tensor:
        return F.max_pool1d(x_BT, size, 1, size // 2)

    padded_BT = F.pad(keep_BT, (STRETCH_FRAMES, STRETCH_FRAMES))
    closed_BT = -most(-most(padded_BT, DIP_FRAMES), DIP_FRAMES)
    return most(-most(-closed_BT, STRETCH_FRAMES), STRETCH_FRAMES)[:, STRETCH_FRAMES:-STRETCH_FRAMES]


def likeliest(x_BT: Tensor, size: int) -> Tensor:
    spans_BVC = F.pad(x_BT, (0, -x_BT.shape[1] % size)).unflatten(1, (-1, size))
    return torch.arange(spans_BVC.shape[1], device=x_BT.device) * size + spans_BVC.argmax(-1)


def kept_onwards(p_BT: Tensor, steady_BT: Tensor) -> Tensor:
    frame_T, n_frames = torch.arange(p_BT.shape[1], device=p_BT.device), p_BT.shape[1]
    stop_BT = torch.where(steady_BT > 0.5, n_frames, frame_T).flip(1).cummin(1).values.flip(1)
    before_BT = F.pad(p_BT.cumsum(1), (1, 0))
    return (before_BT.gather(1, stop_BT) - before_BT[:, :-1]) / (stop_BT - frame_T).clamp(min=1)


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
        numbers = STEP_CHANNELS + HINT_CHANNELS + REPLAY_CHANNELS + s.style_width
        self.enter = nn.Linear(2 * s.frame_width + numbers, width)
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
            encoded.style_BZ,
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
            numbers = torch.cat([step_features(step), hints_BN2 / 5.0, step.replay_BN2], -1)
        style_BNZ = keys.style_BZ[:, None].expand(-1, numbers.shape[1], -1)
        return self.enter(torch.cat([here, following, numbers, style_BNZ], -1))

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
