"""Two recordings' latents → which windows of them belong together, and how much each is compressed.

    latents → what each coarse frame sounds like → every window at every ratio of one recording against every
    one of the other → how well they match → where to begin, how much to compress

An average over 50 segments and an MLP, as the owner's documents have it, cannot compare two recordings at a
lag. Here all windows of a grid are compared, each normalised by itself, and what is chosen is a distribution
over them, a softmax of how well they match, half of it to ears that are learned, one for each pair. It begins
as certainty of the documents' windows and learns to trust the grid; its mean is what is used. How well
windows match as they are is expected of it, exactly (`Windows.match_BP`): so a match anywhere in the grid is
felt from everywhere, where gradients through a window alone are felt a fraction of a second around a match.
Where the grid is not trusted, the documents' MLP moves the windows freely; the strength is always its.

A window lies inside its recording by construction: its ratio is chosen first, and its start as a share of
the room which that leaves. Shares are folded into [0, 1], with a slope of ±1 everywhere, so that they can
begin exactly at an end, which a sigmoid cannot reach, and still learn.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from editjax.models.resample import keys_cubic

SHARPNESS = 130.0
"""Of the softmax over matches in [−1, 1] at the beginning: one in ten thousand must outweigh all others."""
COMPRESSING = 0.3
"""By how much better windows must match for every unit that either is compressed by: of windows that match
alike, those of which least is joined at their ends that does not belong to the match."""
BLUR = (0.25, 0.5, 0.25)
"""Of coarse frames: what lies between two places of the grid must match at both."""
LIKING = 0.1
"""What a pair likes is learned slowly: sharpened as matches are, it would soon outdo them."""
SEGMENTS = 24
"""Of each recording, as the free MLP hears it."""
SILENT = 1e-5
LEAST_ROOM = 1e-3
OUTPUTS = 5


class Windows(NamedTuple):
    """What was chosen for every pair, float32 (B, P): starts in frames, compressions, a strength in [0, 1].

    `match` is the correlation of both windows, coarsely heard, that is expected where they are chosen, less
    what compressing costs.
    """

    start_input_BP: Any
    start_target_BP: Any
    ratio_input_BP: Any
    ratio_target_BP: Any
    tonality_strength_BP: Any
    match_BP: Any


class Grid(NamedTuple):
    """Windows to compare: their ratio and start, in frames, and their rows among the compressed recordings;
    and of those the ratios, and where among coarse frames each of their frames stands."""

    ratio_N: np.ndarray
    start_N: np.ndarray
    rows_NK: np.ndarray
    ratio_R: np.ndarray
    place_RK: np.ndarray


def folded(z):
    """Any number, reflected at 0 and at 1 until it lies between; slopes of ±1, at the ends too."""
    z = jnp.mod(jnp.abs(z), 2.0)
    return jnp.where(z <= 1.0, z, 2.0 - z)


def placed(settings, share, ratio):
    """The start, in frames, of a window at a share of the room that its ratio leaves."""
    return share * (settings.frames - settings.window_frames * ratio)


def anchors(settings) -> np.ndarray:
    """Where the windows of fresh parameters begin, (P,), from the first to the last place there is."""
    return np.linspace(0.0, 1.0, settings.pairs, dtype=np.float32)


def grid_of(settings) -> Grid:
    """All windows inside a recording at every ratio, `lag_frames` of the compressed recording apart."""
    lag, window = settings.lag_frames, settings.window_frames
    coarse, per_window = settings.frames // lag, window // lag
    last = settings.most_ratio if settings.compress else 1.0
    ratio_R = np.linspace(1.0, last, settings.ratios if settings.compress else 1)
    places = [
        (at, place)
        for at, ratio in enumerate(ratio_R)
        for place in range(int((settings.frames / ratio - window) / lag + SILENT) + 1)
    ]
    ratio_N = np.array([ratio_R[at] for at, _ in places])
    start_N = np.array([place * lag * ratio_R[at] for at, place in places])
    rows_NK = np.array([at * coarse + place for at, place in places])[:, None] + np.arange(per_window)[None]
    middle = (lag - 1) / (2.0 * lag)  # of a coarse frame, as its own frames count
    place_RK = (np.arange(coarse)[None] + middle) * ratio_R[:, None] - middle
    floats = (x.astype(np.float32) for x in (ratio_R, place_RK))
    return Grid(ratio_N.astype(np.float32), start_N.astype(np.float32), rows_NK, *floats)


class Selector(nn.Module):
    """Latents of both recordings, (B, T, D) each, → `Windows`."""

    settings: Any

    @nn.compact
    def __call__(self, input_BTD, target_BTD) -> Windows:
        s, (batch, pairs), grid = self.settings, (len(input_BTD), self.settings.pairs), grid_of(self.settings)
        coarse = [_coarse(s, x_BTD) for x_BTD in (input_BTD, target_BTD)]
        listen = nn.Dense(pairs * s.match_width, use_bias=False, name="listen")
        heard = [listen(x_BKD) for x_BKD in coarse]
        first, second = (_windows(grid, x.reshape(*x.shape[:2], pairs, s.match_width)) for x in heard)
        plain_BNM = jax.lax.map(lambda pair: _plain_match(grid, *pair), tuple(coarse))
        match_BPNM = 0.5 * (plain_BNM[:, None] + jnp.einsum("bpnx,bpmx->bpnm", first, second))
        spent_NM = COMPRESSING * (grid.ratio_N[:, None] + grid.ratio_N[None, :] - 2.0)
        liking_PNM = _liking(s, grid, self.param("liking", nn.initializers.zeros, (pairs, 2, 2)))
        sharpness_P = jnp.exp(self.param("sharpness", nn.initializers.constant(np.log(SHARPNESS)), (pairs,)))
        worth_BPNM = match_BPNM + (LIKING * liking_PNM - spent_NM[None])[None]
        logits_BPNM = sharpness_P[None, :, None, None] * worth_BPNM
        log_chance_BPX = jax.nn.log_softmax(logits_BPNM.reshape(batch, pairs, -1))
        chance_BPNM = jnp.exp(log_chance_BPX).reshape(match_BPNM.shape)
        sure_BP = 1.0 + (jnp.exp(log_chance_BPX) * log_chance_BPX).sum(-1) / np.log(
            2 * log_chance_BPX.shape[-1]
        )
        known_BP3 = jnp.stack([jnp.ones_like(sure_BP), (chance_BPNM * match_BPNM).sum((2, 3)), sure_BP], -1)
        trust_P3 = self.param("trust", nn.initializers.zeros, (pairs, 3))
        trust_BP = 1.0 - (1.0 - folded((known_BP3 * trust_P3[None]).sum(-1))) ** 2  # steep at 0, flat at 1
        found = [_expected(s, grid, chance_BPNM.sum(axis)) for axis in (3, 2)]
        found_BP4 = jnp.stack([x for both in zip(*found, strict=True) for x in both], -1)
        anchor_P, none = anchors(s), np.zeros(pairs, np.float32)
        anchor_1P4 = np.stack([anchor_P, anchor_P, none, none], -1)[None]
        free_BP5 = self._free(heard)
        alone_BP4 = anchor_1P4 + free_BP5[..., :4]
        share_BP4 = folded(alone_BP4 + trust_BP[..., None] * (found_BP4 - alone_BP4))
        spread = s.most_ratio - 1.0 if s.compress else 0.0
        ratio_input_BP, ratio_target_BP = (1.0 + spread * share_BP4[..., at] for at in (2, 3))
        at_P = np.round(anchor_P * (s.frames - s.window_frames) / s.lag_frames).astype(np.int32)
        found_match_BP = jnp.einsum("bpnm,bnm->bp", chance_BPNM, plain_BNM - spent_NM[None])
        return Windows(
            placed(s, share_BP4[..., 0], ratio_input_BP),
            placed(s, share_BP4[..., 1], ratio_target_BP),
            ratio_input_BP,
            ratio_target_BP,
            folded(0.5 + free_BP5[..., 4]),
            (1.0 - trust_BP) * plain_BNM[:, at_P, at_P] + trust_BP * found_match_BP,
        )

    def _free(self, heard):
        """What the MLP adds to the documents' windows, (B, P, 5): nothing, when fresh."""
        s, coarse = self.settings, heard[0].shape[1]
        edge_S, frame_1K = np.linspace(0, coarse, SEGMENTS + 1), np.arange(coarse)[None]
        inside_SK = np.minimum(edge_S[1:, None], frame_1K + 1) - np.maximum(edge_S[:-1, None], frame_1K)
        mean_SK = (np.maximum(inside_SK, 0.0) * SEGMENTS / coarse).astype(np.float32)
        pooled = [jnp.einsum("sk,bkd->bsd", mean_SK, x_BKD).reshape(len(x_BKD), -1) for x_BKD in heard]
        h_BD = jnp.concatenate(pooled, -1)
        for at in range(2):
            h_BD = nn.gelu(nn.Dense(s.selector_width, name=f"free_{at}")(h_BD))
        free_BX = nn.Dense(s.pairs * OUTPUTS, kernel_init=nn.initializers.zeros, name="free")(h_BD)
        return free_BX.reshape(-1, s.pairs, OUTPUTS)


def _coarse(settings, x_BTD):
    """Latents and how much they change, each channel in its own deviations, averaged over coarse frames.

    (B, K, 2 D), a little blurred. Levels and steady colours of a recording are gone.
    """
    change_BTD = jnp.abs(jnp.diff(x_BTD, axis=1, prepend=x_BTD[:, :1]))
    both_BTD = jnp.concatenate([x_BTD, change_BTD], -1).astype(jnp.float32)
    lag, batch = settings.lag_frames, x_BTD.shape[0]
    coarse = settings.frames // lag
    pooled_BKD = both_BTD[:, : coarse * lag].reshape(batch, coarse, lag, -1).mean(2)
    off_BKD = pooled_BKD - pooled_BKD.mean(1, keepdims=True)
    alike_BKD = off_BKD / (jnp.sqrt((off_BKD**2).mean(1, keepdims=True)) + SILENT)
    padded = jnp.pad(alike_BKD, ((0, 0), (1, 1), (0, 0)), mode="edge")
    return sum(share * padded[:, at : at + coarse] for at, share in enumerate(BLUR))


def _windows(grid: Grid, x_BKPD):
    """The grid's windows, compressed, each without its mean and of unit length: (B, P, N, frames · width)."""
    (batch, coarse, *shape), ratio_R11 = x_BKPD.shape, grid.ratio_R[:, None, None]
    place_RK1 = grid.place_RK[..., None]
    frame_11K = np.arange(coarse, dtype=np.float32)[None, None]
    weight_RKT = keys_cubic((place_RK1 - frame_11K) / ratio_R11)
    weight_RKT /= jnp.maximum(weight_RKT.sum(-1, keepdims=True), SILENT)
    all_BXPD = jnp.einsum("rkt,btpd->brkpd", weight_RKT, x_BKPD).reshape(batch, -1, *shape)
    one_BPNKD = jnp.moveaxis(all_BXPD[:, grid.rows_NK], 3, 1)
    off_BPNKD = one_BPNKD - one_BPNKD.mean(3, keepdims=True)
    flat_BPNX = off_BPNKD.reshape(*off_BPNKD.shape[:3], -1)
    return flat_BPNX / jnp.sqrt((flat_BPNX**2).sum(-1, keepdims=True) + SILENT**2)


def _liking(settings, grid: Grid, weight_P22):
    """What every pair likes of a window whatever it sounds like, by its start and its ratio: (P, N, N)."""
    ratio_N = (grid.ratio_N - 1.0) / (settings.most_ratio - 1.0)
    known_N2 = np.stack([grid.start_N / (settings.frames - settings.window_frames), ratio_N], -1)
    input_PN, target_PN = (jnp.einsum("pk,nk->pn", weight_P22[:, side], known_N2) for side in (0, 1))
    return input_PN[:, :, None] + target_PN[:, None, :]


def _plain_match(grid: Grid, input_KD, target_KD):
    """How well all windows of one recording match those of the other, heard as they are, (N, N)."""
    first, second = (_windows(grid, x_KD[None, :, None])[0, 0] for x_KD in (input_KD, target_KD))
    return first @ second.T


def _expected(settings, grid: Grid, chance_BPN):
    """The mean window, as shares of its room and of the ratios. Windows inside a recording are convex."""
    start_BP, ratio_BP = chance_BPN @ grid.start_N, chance_BPN @ grid.ratio_N
    room_BP = settings.frames - settings.window_frames * ratio_BP
    share_BP = start_BP / jnp.maximum(room_BP, LEAST_ROOM)
    return jnp.clip(share_BP, 0.0, 1.0), (ratio_BP - 1.0) / (settings.most_ratio - 1.0)
