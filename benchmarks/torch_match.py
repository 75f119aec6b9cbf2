"""What the PyTorch twin listens with and learns nothing of: level normalisation, search for repeated takes.

As `editjax/models/level.py` and `editjax/models/match.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_layers import ceil_div, frame_mask, masked, rows

from editjax.models.level import (
    BOTTOM,
    FAR_BLOCK,
    FAR_BLOCKS,
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
    DIFFERENCE_BANDS,
    MEAN_FRAMES,
    NOT_A_MATCH,
    SMOOTH,
    STRIDE,
)


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


def running_sum(x_BT: Tensor, width: int) -> Tensor:
    """`level.running_sum` along the last axis."""
    return F.avg_pool1d(x_BT, width, 1, width // 2) * width


def shapes(x_BTF: Tensor, frames_B: Tensor, step_frames: int) -> Tensor:
    """`match.shapes` of what is zero beyond the recording."""
    batch, n_frames, n_bins = x_BTF.shape
    mean_steps = MEAN_FRAMES // step_frames // 2 * 2 + 1
    x_BTF = F.pad(x_BTF, (0, 0, 0, -n_frames % step_frames))
    x_BMG = x_BTF.view(batch, -1, step_frames, BANDS, n_bins // BANDS).mean((2, 4))
    mask_BM = frame_mask(ceil_div(frames_B, step_frames), x_BMG.shape[1])
    count_BM = running_sum(mask_BM.float(), mean_steps).clamp(min=1)
    mean_BMG = running_sum(x_BMG.mT, mean_steps).mT / count_BM[..., None]
    return masked(x_BMG - mean_BMG, mask_BM)


def fingerprints(shape_BMG: Tensor) -> Tensor:
    """`match.fingerprints`."""
    return shape_BMG / (shape_BMG.norm(dim=-1, keepdim=True) + 0.05)


def refine(
    shape_BLG: Tensor, landmarks_B: Tensor, place_BLJ: Tensor, valid_BLJ: Tensor, reach: int
) -> tuple[Tensor, Tensor]:
    """`match.refine`."""
    last_B111, u_BLG = landmarks_B[:, None, None, None] - 1, fingerprints(shape_BLG)
    near_BLJR = place_BLJ[..., None] + torch.arange(-reach, reach + 1, device=place_BLJ.device)
    inside_BLJR = (near_BLJR >= 0) & (near_BLJR <= last_B111) & valid_BLJ[..., None]
    near_BLJR = near_BLJR.clamp(min=0).minimum(last_B111)
    alike_BLJR = (u_BLG[:, :, None, None] * rows(u_BLG, near_BLJR)).sum(-1) * inside_BLJR
    steady_BLJR = running_sum(alike_BLJR.flatten(2).mT, SMOOTH).mT.view_as(alike_BLJR)
    best_BLJ1 = steady_BLJR.masked_fill(~inside_BLJR, NOT_A_MATCH * SMOOTH).argmax(-1, keepdim=True)
    place_BLJ = near_BLJR.gather(-1, best_BLJ1)[..., 0]
    louder_BLJG = shape_BLG[:, :, None] - rows(shape_BLG, place_BLJ)
    louder_BLJD = louder_BLJG.unflatten(-1, (DIFFERENCE_BANDS, -1)).mean(-1)
    alike_BLJ1 = alike_BLJR.gather(-1, best_BLJ1)
    details = torch.cat([alike_BLJ1, (best_BLJ1 - reach) / max(reach, 1), louder_BLJD], -1)
    return place_BLJ * valid_BLJ, details * valid_BLJ[..., None]


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
