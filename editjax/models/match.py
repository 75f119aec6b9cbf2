"""Where is the music of this moment heard again? Blockwise search for repeated performances.

Choosing takes is content matching at a distance: two takes of a passage form a diagonal in the
self-similarity of the recording, at any offset. Similarities are computed a block of rows at a time, averaged
along the diagonal, and only the best few places of each row are kept: memory is O(n), never n². Of these,
`refine` settles the place and says how what is heard there differs: a wrong note, a missing one, a delay.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from editjax.mesh import EXAMPLES, TIME, split_over
from editjax.models.layers import frame_mask, in_chunks
from editjax.models.level import running_sum

STEP_FRAMES = 8  # 5.4 steps a second
BANDS = 32
MEAN_FRAMES = 88  # 2 s
DIAGONAL_STEPS = 16  # 3 s, a power of two
CELL_STEPS = 8  # at most one candidate a cell of 1.5 s
APART_STEPS = 16  # a match is at least this far away
SEARCH = "search_for_matches"  # the name of it in a program, for `flops`
STRIDE = 2  # every second step is searched; the one after it continues the diagonal
ROW_BLOCK = 128
NOT_A_MATCH = -2.0
SMOOTH = 5  # landmarks whose likeness counts together
DIFFERENCE_BANDS = 8
LANDMARK_CHUNK = 16_384  # whose matches are settled at once
DETAIL_CHANNELS = DIFFERENCE_BANDS + 2


class Matches(NamedTuple):
    """The best matching places of every step: `K` later ones, then `K` earlier ones.

    place_BMK int32: matching step; score_BMK: mean similarity along the diagonal, in [−1, 1];
    here_BMK: similarity of the two steps alone; valid_BMK: false where there are fewer places.
    """

    place_BMK: jax.Array
    score_BMK: jax.Array
    here_BMK: jax.Array
    valid_BMK: jax.Array


def shapes(x_BTF, frames_B, step_frames: int):
    """Spectral shape of every `step_frames`, (B, M, 32), the running mean of 2 s taken out.

    Without that subtraction the timbre that all takes share hides the notes. Steps beyond the recording are
    zero.
    """
    batch, n_frames, n_bins = x_BTF.shape
    n_steps, mean_steps = -(-n_frames // step_frames), MEAN_FRAMES // step_frames // 2 * 2 + 1
    mask_BT = frame_mask(frames_B, n_frames)
    x_BTF = jnp.where(mask_BT[..., None], x_BTF, 0.0)
    x_BTF = jnp.pad(x_BTF, ((0, 0), (0, n_steps * step_frames - n_frames), (0, 0)))
    x_BMG = x_BTF.reshape(batch, n_steps, step_frames, BANDS, n_bins // BANDS).mean((2, 4))
    mask_BM = frame_mask(-(-frames_B // step_frames), n_steps)
    count_BM = jnp.maximum(running_sum(mask_BM.astype(jnp.float32), mean_steps), 1.0)
    total_BMG = running_sum(x_BMG, mean_steps)
    return jnp.where(mask_BM[..., None], x_BMG - total_BMG / count_BM[..., None], 0.0)


def fingerprints(shape_BMG):
    """Spectral shapes as unit vectors; steps without spectral change are zero."""
    return shape_BMG / (jnp.linalg.norm(shape_BMG, axis=-1, keepdims=True) + 0.05)


def refine(shape_BLG, landmarks_B, place_BLJ, valid_BLJ, reach: int):
    """Of the landmarks around each match, `reach` on either side, the most alike one (B, L, J), and how it is
    heard there.

    The details (B, L, J, DETAIL_CHANNELS) are the likeness, the way from the match that was given, and in
    which bands this landmark is louder than that one, in the units of the shapes.
    """
    last_B111 = landmarks_B[:, None, None, None] - 1
    u_BLG = fingerprints(shape_BLG)
    offset_R = jnp.arange(-reach, reach + 1)
    near_BLJR = place_BLJ[..., None] + offset_R[None, None, None]
    inside_BLJR = (near_BLJR >= 0) & (near_BLJR <= last_B111) & valid_BLJ[..., None]
    near_BLJR = jnp.clip(near_BLJR, 0, last_B111)

    def rows(x_BLG, at_BLX):
        flat = jnp.take_along_axis(x_BLG, at_BLX.reshape(at_BLX.shape[0], -1, 1), axis=1)
        return flat.reshape(*at_BLX.shape, -1)

    def likeness(u_BXG, near_BXJR):
        return jnp.einsum("bxg,bxjrg->bxjr", u_BXG, rows(u_BLG, near_BXJR))

    alike_BLJR = in_chunks(likeness, LANDMARK_CHUNK, u_BLG, near_BLJR)
    alike_BLJR = jnp.where(inside_BLJR, alike_BLJR, 0.0)
    steady_BLJR = running_sum(alike_BLJR, SMOOTH)
    best_BLJ1 = jnp.argmax(jnp.where(inside_BLJR, steady_BLJR, NOT_A_MATCH * SMOOTH), axis=-1, keepdims=True)
    place_BLJ = jnp.take_along_axis(near_BLJR, best_BLJ1, axis=-1)[..., 0]
    louder_BLJG = shape_BLG[:, :, None] - rows(shape_BLG, place_BLJ)
    louder_BLJD = louder_BLJG.reshape(*place_BLJ.shape, DIFFERENCE_BANDS, -1).mean(-1)
    alike_BLJ1 = jnp.take_along_axis(alike_BLJR, best_BLJ1, axis=-1)
    details = jnp.concatenate([alike_BLJ1, (best_BLJ1 - reach) / max(reach, 1), louder_BLJD], axis=-1)
    return jnp.where(valid_BLJ, place_BLJ, 0), jnp.where(valid_BLJ[..., None], details, 0.0)


def find_matches(u_BMG, steps_B, count: int) -> Matches:
    """The `count` best later and the `count` best earlier places of every step of each example.

    On a mesh every device searches for its own examples and steps: XLA would have each search for all.
    """
    mesh, (batch, n_steps, _) = jax.sharding.get_abstract_mesh(), u_BMG.shape
    examples = split_over(mesh, EXAMPLES, batch)
    time = split_over(mesh, TIME, n_steps // STRIDE) if n_steps % STRIDE == 0 else None
    search = partial(_search, count=count, parts=mesh.shape[TIME] if time else 1)
    if mesh.size > 1:
        whole, own = PartitionSpec(examples), PartitionSpec(examples, time)
        search = jax.shard_map(search, in_specs=(whole, whole), out_specs=own, check_vma=False)
    with jax.named_scope(SEARCH):
        return search(u_BMG, steps_B)


def _search(u_BMG, steps_B, count: int, parts: int) -> Matches:
    """The matches of this device's part of the steps, one of so many."""
    n_steps, n_own = u_BMG.shape[1], u_BMG.shape[1] // parts
    first = jax.lax.axis_index(TIME) * n_own if parts > 1 else 0
    found = jax.lax.map(lambda one: _find(one[0], one[1], count, first, n_own), (u_BMG, steps_B))
    score_BMK, place_BMK = (jnp.repeat(a, STRIDE, axis=1)[:, :n_own] for a in found)
    step_1M1, steps_B11 = first + jnp.arange(n_own)[None, :, None], steps_B[:, None, None]
    place_BMK = place_BMK + step_1M1 % STRIDE  # along the diagonal
    valid_BMK = (score_BMK > NOT_A_MATCH) & (step_1M1 < steps_B11) & (place_BMK < steps_B11)
    u_own = jax.lax.dynamic_slice_in_dim(u_BMG, first, n_own, axis=1)
    there = jax.vmap(lambda u_MG, at_MK: u_MG[at_MK])(u_BMG, jnp.minimum(place_BMK, n_steps - 1))
    here_BMK = jnp.einsum("bmg,bmkg->bmk", u_own, there)
    return Matches(
        jnp.where(valid_BMK, place_BMK, 0),
        jnp.where(valid_BMK, score_BMK, 0.0),
        jnp.where(valid_BMK, here_BMK, 0.0),
        valid_BMK,
    )


def _find(u_MG, n_valid, count: int, first, n_own: int):
    """Scores and places of the best cells of every `STRIDE`-th step from `first` on, in one recording."""
    n_steps = u_MG.shape[0]
    half, n_rows = DIAGONAL_STEPS // 2, -(-n_own // STRIDE)
    n_cells = -(-n_steps // CELL_STEPS)
    rows = min(ROW_BLOCK, n_rows)
    n_blocks = -(-n_rows // rows)
    columns, own = n_cells * CELL_STEPS, n_blocks * rows * STRIDE
    u_rows = jnp.pad(u_MG, ((half, half + own - n_own), (0, 0)))
    u_rows = jax.lax.dynamic_slice_in_dim(u_rows, first, own + 2 * half)[::STRIDE]
    u_columns = jnp.pad(u_MG, ((half, half + columns - n_steps), (0, 0)))

    def one_block(index, found):
        at = index * rows
        slab = jax.lax.dynamic_slice_in_dim(u_rows, at, rows + DIAGONAL_STEPS // STRIDE, axis=0)
        score_RM = _diagonal_mean(slab @ u_columns.T)[:rows, :columns]
        score_RM = jnp.where(jnp.arange(columns)[None, :] < n_valid, score_RM, NOT_A_MATCH)
        cells_RCS = score_RM.reshape(rows, n_cells, CELL_STEPS)
        peak_RC = cells_RCS.max(-1)
        row_R1 = first + STRIDE * (at + jnp.arange(rows)[:, None])
        column_1C = jnp.arange(n_cells)[None, :] * CELL_STEPS
        later = column_1C >= row_R1 + APART_STEPS
        earlier = column_1C + CELL_STEPS - 1 <= row_R1 - APART_STEPS
        best = (_best(cells_RCS, jnp.where(side, peak_RC, NOT_A_MATCH), count) for side in (later, earlier))
        return tuple(
            jax.lax.dynamic_update_slice(whole, jnp.concatenate(pair, axis=-1), (at, 0))
            for whole, pair in zip(found, zip(*best, strict=True), strict=True)
        )

    nothing = jnp.full((n_blocks * rows, 2 * count), NOT_A_MATCH)
    blocks = jnp.clip(-(-(n_valid - first) // (rows * STRIDE)), 0, n_blocks)  # the padding costs nothing
    return jax.lax.fori_loop(0, blocks, one_block, (nothing, jnp.zeros(nothing.shape, jnp.int32)))


def _diagonal_mean(similarity_RM):
    """Mean of the entries down DIAGONAL_STEPS of each diagonal, every STRIDE-th of them, by doubling."""
    total, span = similarity_RM, 1
    while span < DIAGONAL_STEPS // STRIDE:
        total = total[:-span, : -span * STRIDE] + total[span:, span * STRIDE :]
        span *= 2
    return total / span


def _best(cells_RCS, peak_RC, count: int):
    """The best cell maxima of each row: (scores, places), both (R, count)."""
    column_C = jnp.arange(peak_RC.shape[1])[None, :]
    scores, places = [], []
    for _ in range(count):
        cell_R1 = jnp.argmax(peak_RC, axis=-1)[:, None]
        scores.append(jnp.take_along_axis(peak_RC, cell_R1, axis=-1)[:, 0])
        within_R = jnp.argmax(jnp.take_along_axis(cells_RCS, cell_R1[..., None], axis=1)[:, 0], axis=-1)
        places.append(cell_R1[:, 0] * CELL_STEPS + within_R)
        peak_RC = jnp.where(column_C == cell_R1, NOT_A_MATCH, peak_RC)
    return jnp.stack(scores, -1), jnp.stack(places, -1).astype(jnp.int32)
