"""The pointer network in PyTorch: a peer with our parameters, our loss and our gradients, in torch's idiom.

`Twin(settings)` is the model of `editjax/models` with the loss of `editjax/losses.py`; `twin_of` fills it
with our parameters, strictly: none is left over, none is missing. What chance decides about styles is an
argument; `torch_style.chance_of` a key is what our loss draws from it. Attention is `dense` (fused
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
from torch_encoder import Encoded, Encoder
from torch_layers import frame_mask, pick, rows
from torch_pointer import Decoder, Keys, Step
from torch_style import Chance, Styles

from editjax.data import Batch
from editjax.edits import STOP, UNALIGNED
from editjax.events import UNKNOWN
from editjax.losses import BOUNDARY_FRAMES, BOUNDARY_WEIGHT, LossSettings
from editjax.models.decoder_attention import NEVER
from editjax.models.hints import LOOP, LOOPED_SHARE
from editjax.models.pointer import (
    ADVANCE,
    JUMP,
    STOP_MODE,
    PointerSettings,
)
from editjax.models.style import Asked

KINDS = ("dense", "block", "flex")
STACKED = ("landmark_layers", "frame_layers")


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


class Targets(NamedTuple):
    """As `editjax.losses.Targets`."""

    step: Step
    pointer_BN: Tensor
    mode_BN: Tensor
    again_BN: Tensor
    counted_BN: Tensor


def targets(pointers_BN: Tensor, steps_B: Tensor, target_B: Tensor, n_frames: int) -> Targets:
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
    first_BT = first_played(pointers_BN, index_BN, n_frames)
    again_BN = aligned_BN & (pick(first_BT, pointers_BN) < index_BN)
    was_BN = F.pad((last_BN >= 0) & again_BN.gather(1, last_BN.clamp(min=0)), (1, 0))[:, :-1]
    replay_BN2 = torch.stack([was_BN, pick(first_BT, before_BN + 1) < index_BN], -1).float()
    step = Step(before_BN, run_BN, index_BN, target_B, replay_BN2)
    return Targets(step, pointers_BN, mode_BN, again_BN, counted_BN)


def first_played(pointers_BN: Tensor, index_BN: Tensor, n_frames: int) -> Tensor:
    """`losses._first_played`; one column more takes what is not aligned."""
    frame_BN = pointers_BN.where(pointers_BN >= 0, n_frames + 1)
    never_BT = index_BN.new_full((len(pointers_BN), n_frames + 2), pointers_BN.shape[1])
    return never_BT.scatter_reduce(1, frame_BN, index_BN, "amin")[:, :-1]


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


def structure_loss(logits_BTS: Tensor, structure_BT: Tensor) -> Tensor:
    """`losses.structure_loss`."""
    labelled_BT = structure_BT >= 0
    change_BT = labelled_BT[:, 1:] & (structure_BT[:, 1:] != structure_BT[:, :-1])
    padded_BT = F.pad(change_BT.float(), (BOUNDARY_FRAMES, BOUNDARY_FRAMES))
    near_BT = F.max_pool1d(padded_BT, 2 * BOUNDARY_FRAMES, 1)
    weight_BT = (1.0 + (BOUNDARY_WEIGHT - 1.0) * near_BT) * labelled_BT
    return (weight_BT * nll(logits_BTS, structure_BT.clamp(min=0))).sum() / weight_BT.sum().clamp(min=1)


def kind_loss(logits_BLK: Tensor, kind_BT: Tensor, frames: int) -> Tensor:
    """`losses.kind_loss`, without the share that is right."""
    n_landmarks = logits_BLK.shape[1]
    padded_BT = F.pad(kind_BT, (0, n_landmarks * frames - kind_BT.shape[1]), value=UNKNOWN)
    kind_BL = padded_BT.unflatten(1, (n_landmarks, frames)).amax(-1)
    known_BL = kind_BL != UNKNOWN
    return (nll(logits_BLK, kind_BL.clamp(min=0)) * known_BL).sum() / known_BL.sum().clamp(min=1)


class Twin(nn.Module):
    """Encoder, decoder and the whole loss."""

    def __init__(self, settings: PointerSettings, kind: str = "block"):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"attention kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
        self.settings = settings
        self.encoder, self.decoder = Encoder(settings, kind), Decoder(settings, kind)
        self.style = Styles(settings)

    def forward(
        self, batch: Batch, weights: LossSettings, chance: Chance
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.pointer_loss` of a batch of tensors: the loss and its parts."""
        t = targets(batch.pointers_BN, batch.steps_B, batch.target_B, batch.mel_BTF.shape[1])
        joins_BN2 = torch.stack([t.mode_BN == JUMP, t.again_BN], -1).float()
        inferred = self.style(batch, joins_BN2, weights, chance)
        asked = Asked(batch.target_B, inferred.style_BZ)
        encoded = self.encoder(batch.mel_BTF, batch.frames_B, batch.phase_BT3, asked)
        keys = self.decoder.keys(encoded)
        mode_B, target_B, jumps_B, order_B, joins_B = self.sequence_nll(
            keys, t, batch.steps_B, weights.max_jumps
        )
        events = jumps_B.sum() + len(jumps_B)
        length = (encoded.log_length_B - (batch.steps_B - 1).clamp(min=1).log()).square().mean()
        parts = {
            "sequence": (mode_B + target_B).sum() / events,
            "structure": structure_loss(encoded.structure_BTS, batch.structure_BT),
            "order": order_B.mean(),
            "length": length,
            "smoothness": joins_B.sum() / events,
        }
        loss = sum(getattr(weights, name) * part for name, part in parts.items())
        loss = loss + weights.style * inferred.cost * len(jumps_B) / events
        if self.encoder.kinds:
            logits_BLK = self.encoder.kinds(encoded.landmarks_BLD)
            parts["kind"] = kind_loss(logits_BLK, batch.kind_BT, self.settings.landmark_frames)
            loss = loss + weights.kinds * parts["kind"]
        return loss, parts | {"style_nats": inferred.nats}

    def sequence_nll(self, keys: Keys, t: Targets, steps_B: Tensor, max_jumps: int) -> tuple[Tensor, ...]:
        """`losses.sequence_nll`, the three target parts summed: (B,) each."""
        s, decoder = self.settings, self.decoder
        h_BND = decoder.states(keys, t.step, steps_B)
        mode_logits = decoder.mode_logits(h_BND, t.step.pointer_BN, keys)
        mode_B = (nll(mode_logits, t.mode_BN) * t.counted_BN).sum(1)
        joins_B = (mode_logits.softmax(-1)[..., JUMP] * t.counted_BN).sum(1)
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
        return mode_B, (target_nll_BJ * real_BJ).sum(1), jump_BN.sum(1), order_B, joins_B


def order_loss(place_BJ: Tensor, first_BJ: Tensor) -> Tensor:
    """`losses.order_loss`."""
    pairs_BJJ = (first_BJ[:, :, None] & first_BJ[:, None]).triu(1)
    loss_BJJ = F.softplus(place_BJ[:, :, None] - place_BJ[:, None]) * pairs_BJJ
    return loss_BJJ.sum((1, 2)) / pairs_BJJ.sum((1, 2)).clamp(min=1)


def tensors(batch: Batch, device: str = "cpu") -> Batch:
    """A batch of arrays as tensors, integers as torch's index type."""
    parts = (torch.from_numpy(np.asarray(a)).to(device) for a in batch)
    return Batch(*(a if a.is_floating_point() else a.long() for a in parts))


def greedy(twin: Twin, encoded: Encoded, max_steps: int) -> np.ndarray:
    """`editjax.decode.decode` of one recording, greedy and without a wanted length: one step after another.

    Pointers (N,) without the stop.
    """
    chosen_N = choices(twin, encoded, max_steps)
    return chosen_N[chosen_N != STOP]


@torch.inference_mode()
def choices(
    twin: Twin,
    encoded: Encoded,
    max_steps: int,
    told_N: np.ndarray | None = None,
    margins: list[float] | None = None,
) -> np.ndarray:
    """What is chosen at every step (N,), the stop included.

    Each step goes on from the choice before, or from `told_N`, up to the stop in it. `margins` is filled with
    how far at each step the runner-up was behind in its logit, where it was nearest.
    """
    s, decoder = twin.settings, twin.decoder
    keys, caches = decoder.keys(encoded), decoder.empty_caches(1, max_steps)
    target_B = encoded.log_length_B.new_zeros(1)
    size, n_frames = s.frames_per_bar, int(encoded.n_frames_B[0])
    looped_T = (encoded.structure_BTS[0].softmax(-1)[:, LOOP] > LOOPED_SHARE).numpy()
    played_T = np.zeros(n_frames + 1, np.int64)
    bars_V = torch.zeros(1, 1, encoded.bars_BVD.shape[1])
    pointer, run, chosen = -1, 0, []

    def best(logits: Tensor) -> Tensor:
        if margins is not None:
            first, second = logits.flatten().topk(2).values.tolist()
            margins[-1] = min(margins[-1], first - second)
        return logits.argmax(-1)

    def bar_logits(h: Tensor, step: Step) -> Tensor:
        return decoder.bar_logits(h, step.pointer_BN, step.began_BN, bars_V / size, keys)

    def land(h: Tensor, step: Step) -> int:
        bar = best(bar_logits(h, step))
        beat = best(decoder.beat_logits(h, bar, step.pointer_BN, keys))
        beat = bar * (size // s.frames_per_beat) + beat
        return int(beat * s.frames_per_beat + best(decoder.frame_logits(h, beat, step.pointer_BN, keys)))

    def was(frames: Tensor) -> Tensor:
        played_1JV = (bars_V / size).expand(1, frames.numel(), -1)
        return was_played(frames.view(1, -1), played_1JV, encoded.n_frames_B, size)[0]

    def choice(h: Tensor, step: Step) -> int:
        mode = int(best(decoder.mode_logits(h, step.pointer_BN, keys)))
        after = pointer + 1 if mode != JUMP else land(h, step)
        onwards = mode != JUMP or (after // size == pointer // size and after > pointer)
        again = bool(played_T[after]) or (not onwards and bool(was(torch.tensor(after))))
        if mode != STOP_MODE and (looped_T[after] or not again):
            return after
        start_V = keys.hints.sure_start_BV[0]
        begun_V = torch.from_numpy(played_T)[start_V] > 0  # the last entry, of −1, is no frame's
        left_V = (start_V >= 0) & ~begun_V & ~was(start_V.clamp(min=0))
        return int(start_V[best(bar_logits(h, step).where(left_V, 2 * NEVER))]) if left_V.any() else STOP

    for index in range(max_steps):
        replay = pointer >= 0 and played_T[pointer] > 1, played_T[pointer + 1] > 0
        numbers = (torch.tensor([[value]]) for value in (pointer, run, index))
        step = Step(*numbers, target_B, torch.tensor([[replay]], dtype=torch.float32))
        if margins is not None:
            margins.append(math.inf)
        chosen.append(choice(decoder.step(keys, step, caches), step))
        after = chosen[-1] if told_N is None else int(told_N[index])
        if after == STOP:
            break
        run = run + 1 if after == pointer + 1 else 0
        pointer = after
        played_T[after] += 1
        bars_V[0, 0, after // size] += 1
    return np.array(chosen, np.int64)
