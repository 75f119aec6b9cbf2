"""`models.pointer.Decoder` and its greedy loop in PyTorch eager: the same parameters, with a cache.

One recording, no batch axis. What no step changes is computed once before; keys and values of the steps are
appended to arrays made for the longest edit, of which a step reads the last `decoder_window`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import gelu, linear, relu, rms_norm, scaled_dot_product_attention

from editjax.models.decoder_attention import NEVER
from editjax.models.layers import ROTARY_BASE
from editjax.models.pointer import (
    ADVANCE,
    AFTER_FLOOR,
    JUMP,
    STOP_MODE,
    PointerSettings,
    distance_bucket,
)

RMS_EPSILON = 1e-6  # flax.linen.RMSNorm's


class Said(NamedTuple):
    """What one step says: logits of the modes, and of bars, beats and frames where it jumps."""

    modes_3: torch.Tensor
    levels: tuple[torch.Tensor, ...]
    pointer: int


class TorchDecoder:
    """The decoder over the keys of one recording; `params` and `keys` as `decode` takes them."""

    def __init__(self, settings: PointerSettings, params: Any, keys: Any, max_steps: int) -> None:
        self.settings, self.keys = settings, _tensors(keys)
        self.params = _transposed(params["decoder"])
        self.n_frames = int(keys.n_frames_B[0])
        self.heads, self.head_width = settings.heads, settings.width // settings.heads
        half = self.head_width // 2
        self.rate_R = ROTARY_BASE ** (-torch.arange(half, dtype=torch.float32) / half)
        shape = (settings.decoder_layers, settings.heads, max_steps, self.head_width)
        self.k_LHNK, self.v_LHNK = torch.zeros(shape), torch.zeros(shape)
        self.offsets_W = torch.arange(-settings.look_back, settings.look_ahead + 1)
        n_bars = -(-self.n_frames // settings.frames_per_bar)
        self.far_k = [k[:, :n_bars].mT.contiguous() for k, _ in self.keys["bars"]]
        self.far_v = [v[:, :n_bars].contiguous() for _, v in self.keys["bars"]]
        away = np.arange(-n_bars, n_bars + 1)
        self.bucket_of_away = torch.tensor(np.asarray(distance_bucket(away)))
        self.n_bars = n_bars

    @torch.inference_mode()
    def greedy(self, target_frames: float, steps: int) -> list[Said]:
        """So many steps, of which none may end the edit: all frames are looped."""
        self.played_V, self.played_T = torch.zeros(self.n_bars), np.zeros(self.n_frames + 1, np.int32)
        pointer, run, said = -1, 0, []
        for index in range(steps):
            said.append(self.step(pointer, run, index, target_frames))
            run = run + 1 if said[-1].pointer == pointer + 1 else 0
            pointer = said[-1].pointer
            self.played_V[pointer // self.settings.frames_per_bar] += 1
            self.played_T[pointer] += 1
        return said

    def step(self, pointer: int, run: int, index: int, target_frames: float) -> Said:
        """One step after those in the cache. Raises ValueError where it stops."""
        h_D = self.state(pointer, run, index, target_frames)
        modes_3 = self._dense("mode", h_D)
        modes_3[ADVANCE] += self.params["trust"][0] * self._at("kept_BT", pointer + 1)
        if pointer + 1 >= self.n_frames:
            modes_3[ADVANCE] = NEVER
        match int(modes_3.argmax()):
            case mode if mode == ADVANCE:
                return Said(modes_3, (), pointer + 1)
            case mode if mode == STOP_MODE:
                raise ValueError("the edit has an end: ask for one without")
        assert mode == JUMP
        return self._jump(h_D, modes_3, pointer, run)

    def state(self, pointer: int, run: int, index: int, target_frames: float) -> torch.Tensor:
        """State of one step, (width,)."""
        x_D = self._input(pointer, run, index, target_frames)
        angle_R = index * self.rate_R
        turn = angle_R.cos(), angle_R.sin()
        angle_R = max(pointer, 0) / self.settings.frames_per_bar * self.rate_R
        bar_turn = angle_R.cos(), angle_R.sin()
        for layer in range(self.settings.decoder_layers):
            x_D = x_D + self._self_attention(layer, x_D, index, turn)
            x_D = x_D + self._cross_attention(layer, x_D, pointer, bar_turn)
            mlp = self.params[f"mlp_{layer}"]
            up_D = gelu(_dense(mlp["up"], _norm(mlp["norm"], x_D)), approximate="tanh")
            x_D = x_D + _dense(mlp["down"], up_D)
        return _norm(self.params["norm"], x_D)

    def _self_attention(self, layer: int, x_D: torch.Tensor, index: int, turn: Any) -> torch.Tensor:
        part = self.params[f"self_{layer}"]
        q, k, v = (self._heads(a)[0] for a in _dense(part["qkv"], _norm(part["norm"], x_D)).chunk(3))
        self.k_LHNK[layer, :, index], self.v_LHNK[layer, :, index] = _rotated(k, turn), v
        seen = slice(max(index + 1 - self.settings.decoder_window, 0), index + 1)
        q_1H1K = _rotated(q, turn)[None, :, None]
        k_1HNK, v_1HNK = self.k_LHNK[layer, None, :, seen], self.v_LHNK[layer, None, :, seen]
        return _dense(part["out"], scaled_dot_product_attention(q_1H1K, k_1HNK, v_1HNK).reshape(-1))

    def _cross_attention(self, layer: int, x_D: torch.Tensor, pointer: int, turn: Any) -> torch.Tensor:
        s, part = self.settings, self.params[f"cross_{layer}"]
        q_HK = self._heads(_dense(part["query"], _norm(part["norm"], x_D)))[0] * self.head_width**-0.5
        first = max(pointer, 0) // s.landmark_frames - s.look_back
        n_landmarks = -(-self.n_frames // s.landmark_frames)
        seen = slice(max(first, 0), min(first + len(self.offsets_W), n_landmarks))
        near_k, near_v = (self._heads(a) for a in self.keys["around"][layer][seen].chunk(2, -1))
        near_HW = torch.einsum("hk,whk->hw", q_HK, near_k)
        near_HW = near_HW + part["offset"][:, seen.start - first : seen.stop - first]
        far_HV = (_rotated(q_HK, turn)[:, None] @ self.far_k[layer])[:, 0]
        weights = torch.cat([near_HW, far_HV], -1).softmax(-1)
        near_HK = torch.einsum("hw,whk->hk", weights[:, : near_HW.shape[1]], near_v)
        far_HK = (weights[:, None, near_HW.shape[1] :] @ self.far_v[layer])[:, 0]
        return _dense(part["out"], (near_HK + far_HK).reshape(-1))

    def _input(self, pointer: int, run: int, index: int, target_frames: float) -> torch.Tensor:
        frames_TD, starts_T = self.keys["frames_BTD"], self.keys["hints"]["starts_BT"]
        zero_D = torch.zeros_like(frames_TD[0])
        here_D = frames_TD[pointer] if pointer >= 0 else zero_D
        next_D = frames_TD[pointer + 1] if pointer + 1 < len(frames_TD) else zero_D
        after = relu(starts_T[-1] - self._passed(pointer, run))
        left = target_frames - index if target_frames > 0 else 0.0
        sign = (left > 0) - (left < 0)
        numbers_C = torch.tensor(
            [
                float(pointer < 0),
                float(run == 0),
                np.log1p(run) / 5.0,
                float(target_frames > 0),
                min(max(left / (target_frames if target_frames > 0 else 1.0), -1.0), 1.0),
                sign * np.log1p(abs(left)) / 5.0,
                float(left < 0),
                self._at("kept_BT", pointer + 1) / 5.0,
                torch.log(after + AFTER_FLOOR) / 5.0,
                float(pointer >= 0 and self.played_T[pointer] > 1),
                float(self.played_T[pointer + 1] > 0),
            ],
            dtype=torch.float32,
        )
        return self._dense("enter", torch.cat([here_D, next_D, numbers_C, self.keys["style_BZ"]]))

    def _passed(self, pointer: int, run: int) -> torch.Tensor:
        hints = self.keys["hints"]
        if pointer < 0:
            return torch.zeros(())
        began = max(pointer - run, min(pointer, 0))
        bar = max(began, 0) // self.settings.frames_per_bar
        heard = hints["starts_BT"][min(pointer + 1, len(hints["starts_BT"]) - 1)]
        return hints["played_before_BV"][bar] + heard - hints["recorded_before_BV"][bar]

    def _jump(self, h_D: torch.Tensor, modes_3: torch.Tensor, pointer: int, run: int) -> Said:
        s, keys, scale = self.settings, self.keys, self.settings.width**-0.5
        bars_V = self._bar_logits(h_D, pointer, run, self.played_V / s.frames_per_bar)
        bar = int(bars_V.argmax())
        per_bar, per_beat = s.frames_per_bar // s.frames_per_beat, s.frames_per_beat
        query_D = self._dense("beat_query", torch.cat([h_D, keys["bars_BVD"][bar]]))
        beats = slice(bar * per_bar, (bar + 1) * per_bar)
        beats_C = keys["beat_keys_BUD"][beats] @ query_D * scale
        beats_C = beats_C + self.params["trust"][2] * keys["hints"]["beat_start_BU"][beats]
        beat = bar * per_bar + int(beats_C.argmax())
        query_D = self._dense("frame_query", torch.cat([h_D, keys["beats_BUD"][beat]]))
        frames = slice(beat * per_beat, min((beat + 1) * per_beat, self.n_frames))
        frames_C = keys["frame_keys_BTD"][frames] @ query_D * scale
        frames_C = frames_C + self.params["trust"][3] * keys["hints"]["frame_start_BT"][frames]
        if frames.start <= pointer + 1 < frames.stop:
            frames_C[pointer + 1 - frames.start] = NEVER
        return Said(modes_3, (bars_V, beats_C, frames_C), frames.start + int(frames_C.argmax()))

    def _bar_logits(self, h_D: torch.Tensor, pointer: int, run: int, share_V: torch.Tensor) -> torch.Tensor:
        s, hints, n = self.settings, self.keys["hints"], self.n_bars
        content_V = self.keys["bar_keys_BVD"][:n] @ self._dense("bar_query", h_D) * s.width**-0.5
        away_V = torch.arange(n) - max(pointer, 0) // s.frames_per_bar
        distance_V = self._dense("bar_distance", h_D)[self.bucket_of_away[away_V + n]]
        passed, before_V = self._passed(pointer, run), hints["played_before_BV"][:n]
        undone_V = relu(passed - (before_V + hints["starts_BV"][:n]))
        avoid_3 = self._dense("bar_avoid", h_D)
        logits_V = content_V + distance_V + self.params["trust"][1] * hints["bar_start_BV"][:n]
        logits_V = logits_V - avoid_3[0] * torch.expm1(-relu(before_V - passed))
        return logits_V + avoid_3[1] * share_V - avoid_3[2] * torch.expm1(-undone_V)

    def _at(self, hint: str, frame: int) -> float:
        of_hint = self.keys["hints"][hint]
        return float(of_hint[frame]) if 0 <= frame < len(of_hint) else 0.0

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, self.heads, self.head_width)

    def _dense(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return _dense(self.params[name], x)


def _dense(part: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return linear(x, part["kernel"], part["bias"])


def _norm(part: Any, x_D: torch.Tensor) -> torch.Tensor:
    weight_D = part["scale"]["scale"]
    return rms_norm(x_D, weight_D.shape, weight_D, RMS_EPSILON)


def _rotated(x_HK: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cos, sin = turn
    a, b = x_HK.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _tensors(tree: Any) -> Any:
    """Keys as tensors without their batch axis, NamedTuples as dicts."""
    if hasattr(tree, "_asdict"):
        return {name: _tensors(part) for name, part in tree._asdict().items()}
    if isinstance(tree, tuple):
        return [_tensors(part) for part in tree]
    return torch.tensor(np.asarray(tree))[0]


def _transposed(tree: Any, name: str = "") -> Any:
    """Parameters as tensors; kernels as torch has them, (out, in)."""
    if isinstance(tree, dict):
        return {key: _transposed(part, key) for key, part in tree.items()}
    array = np.asarray(tree)
    return torch.tensor(np.ascontiguousarray(array.T) if name == "kernel" else array)
