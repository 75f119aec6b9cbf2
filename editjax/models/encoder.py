"""Raw mel → what the pointer decoder reads: frames, landmarks, beats and bars, each seeing all the others.

    listen   frames (43 a second): level-normalised mel, convolutions
    relate   landmarks (of `landmark_frames` each): windowed attention, bar globals, matches to other takes
    settle   back to frames, whose windowed attention settles the boundaries; pooled beats and bars

`listen` and `settle` see only their neighbourhood, so a long recording goes through them in chunks with the
result of the whole; `relate` needs it whole, at their rate. Every cost is linear in the length but
the blockwise match, which keeps O(n) memory.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from editjax.mel import STEM_FRAMES
from editjax.models.layers import anew_if_long, frame_mask, masked
from editjax.models.level import FAR_BLOCK, FAR_BLOCKS, LEVEL_CHANNELS, NEAR_FRAMES, level_normalise
from editjax.models.match import STEP_FRAMES, find_matches, fingerprints, shapes
from editjax.models.scales import (
    MATCH_CHANNELS,
    TARGET_FEATURES,
    Announce,
    FrameEntry,
    FrameLayer,
    Fusion,
    Kinds,
    LandmarkEntry,
    LandmarkLayer,
    Length,
    Levels,
    landmark_matches,
    target_features,
)
from editjax.models.spans import spread
from editjax.models.stems import Stems, init_stems, told_by_stems
from editjax.models.style import Asked

SHAPE_REACH = 48  # shapes take the mean of two seconds out
ALIGN_FRAMES = 344  # two bars: a multiple of the level blocks, fingerprint steps, landmarks and bars


class Encoded(NamedTuple):
    """What the decoder reads; all padding is zero.

    frames_BTD, landmarks_BLD, beats_BUD (43 frames each), bars_BVD (172 each); structure_BTS: logits of cut,
    keep, loop for every raw frame; announced_BT: how much of an announcement every frame is (see
    `hints.hints_of`); log_length_B: natural log of the predicted edit length in frames; style_BZ: the style
    asked for; n_frames_B int32: valid raw frames.
    """

    frames_BTD: jax.Array
    landmarks_BLD: jax.Array
    beats_BUD: jax.Array
    bars_BVD: jax.Array
    structure_BTS: jax.Array
    announced_BT: jax.Array
    log_length_B: jax.Array
    style_BZ: jax.Array
    n_frames_B: jax.Array


def init_encoder(settings, key):
    """Fresh parameters of the encoder; equal layers are stacked along a leading axis."""
    s, keys = settings, jax.random.split(key, 8)
    n_frames = s.frames_per_bar
    n_landmarks = -(-n_frames // s.landmark_frames)
    frames_B = jnp.full((1,), n_frames, jnp.int32)
    dtype = jnp.dtype(s.dtype)
    x = jnp.zeros((1, n_frames, s.frame_width), dtype)
    landmarks = jnp.zeros((1, n_landmarks, s.width), dtype)
    places = jnp.zeros((1, n_landmarks, 2 * s.matches), jnp.int32)
    matches = (places, jnp.zeros((*places.shape, MATCH_CHANNELS)), places > 0)
    level, phase = jnp.zeros((1, n_frames, s.n_mels + LEVEL_CHANNELS)), jnp.zeros((1, n_frames, 3))
    bars, structure = jnp.zeros((1, 1, s.width), dtype), jnp.zeros((1, n_frames, 3))

    def fresh(module, key, *args):
        return module.init(key, *args)["params"]

    def stacked(module, count, key, *args):
        return jax.vmap(lambda k: fresh(module, k, *args))(jax.random.split(key, count))

    asked = jnp.zeros((1, TARGET_FEATURES + s.style_width))
    landmark_args = (landmarks, jnp.full((1,), n_landmarks, jnp.int32), asked, *matches)
    entry_args = (x, matches[1], asked, jnp.ones((1, n_landmarks), bool))
    kinds = {"kinds": fresh(Kinds(), jax.random.fold_in(key, 9), landmarks)} if s.kinds else {}
    return {
        # Named before there were stems: so it is called in every trained model.
        "stem": fresh(FrameEntry(s), keys[0], level, phase, jnp.ones((1, n_frames), bool)),
        "entry": fresh(LandmarkEntry(s), keys[1], *entry_args),
        "landmark_layers": stacked(LandmarkLayer(s), s.landmark_layers, keys[2], *landmark_args),
        "fusion": fresh(Fusion(s), keys[3], x, landmarks, frames_B),
        "frame_layers": stacked(FrameLayer(s), s.frame_layers, keys[4], x, frames_B, asked),
        "levels": fresh(Levels(s), keys[5], x, frames_B),
        "length": fresh(Length(s), keys[6], bars, structure, frames_B),
        "announce": fresh(Announce(), keys[7], level, jnp.ones((1, n_frames), bool)),
        **init_stems(s, jax.random.fold_in(key, 8)),
        **kinds,
    }


def encode(
    settings, params, mel_BTF, frames_B, phase_BT3, asked: Asked, stems: Stems | None = None
) -> Encoded:
    """Raw mel → everything the decoder reads.

    mel (B, T, n_mels) in [0, 1], valid frames (B,), beat/bar/phrase phase (B, T, 3) in [0, 1), what is asked
    of the edit, and the stems where there are any. Padding may hold anything.
    """
    n_frames = mel_BTF.shape[1]
    heard = anew_if_long(partial(listen, settings), n_frames)(params, mel_BTF, frames_B, phase_BT3)
    x, step_shapes, landmark_shapes, announced_BT = heard
    asked_BE = asked_features(asked, frames_B)
    landmarks = relate(settings, params, x, step_shapes, landmark_shapes, frames_B, asked_BE, stems)
    settled = anew_if_long(partial(settle, settings), n_frames)(params, x, landmarks, frames_B, asked_BE)
    frames, beats, bars, structure = settled
    log_length_B = length(settings, params, bars, structure, frames_B)
    parts = frames, landmarks, beats, bars, structure, announced_BT
    return Encoded(*parts, log_length_B, jnp.asarray(asked.style_BZ), frames_B)


def asked_features(asked: Asked, frames_B):
    """What modulates every layer, (B, TARGET_FEATURES + style width); `frames_B` are those of the whole."""
    return jnp.concatenate([target_features(asked.target_B, frames_B), asked.style_BZ], -1)


def listen(settings, params, mel_BTF, frames_B, phase_BT3):
    """Frames (B, T, frame_width), spectral shapes of steps and of landmarks (B, M or L, 32), announcements
    (B, T), all local: see `listen_halo`."""
    mask_BT = frame_mask(frames_B, mel_BTF.shape[1])
    level_BTF = level_normalise(mel_BTF, frames_B, settings.floor_db, settings.ceiling_db)
    phase_BT3 = jnp.where(mask_BT[..., None], phase_BT3, 0.0)
    x = FrameEntry(settings).apply({"params": params["stem"]}, level_BTF, phase_BT3, mask_BT)
    shape_BTF = jax.lax.stop_gradient(level_BTF[..., :-LEVEL_CHANNELS])
    announced_BT = Announce().apply({"params": params["announce"]}, level_BTF, mask_BT)
    steps, landmarks = (shapes(shape_BTF, frames_B, size) for size in (STEP_FRAMES, settings.landmark_frames))
    return x, steps, landmarks, announced_BT


def relate(settings, params, x_BTD, shape_BMG, shape_BLG, frames_B, asked_BE, stems: Stems | None = None):
    """Landmarks (B, L, width) that know the whole recording, its stems and what is asked of the edit."""
    n_landmarks, landmarks_B = shape_BLG.shape[1], -(-frames_B // settings.landmark_frames)
    found = find_matches(fingerprints(shape_BMG), -(-frames_B // STEP_FRAMES), settings.matches)
    matches = landmark_matches(found, shape_BLG, landmarks_B, settings.landmark_frames, settings.match_reach)
    entry = LandmarkEntry(settings).apply(
        {"params": params["entry"]},
        x_BTD,
        matches[1],
        asked_BE,
        frame_mask(landmarks_B, n_landmarks),
    )
    if settings.stem_width and stems is not None and stems.mel_BIMF.shape[1]:
        told = told_by_stems(settings, params["stems"], stems, frames_B)
        told = spread(told, STEM_FRAMES // settings.landmark_frames, n_landmarks)
        entry = masked(entry + told, frame_mask(landmarks_B, n_landmarks))

    def layer(landmarks, one):
        return LandmarkLayer(settings).apply(
            {"params": one}, landmarks, landmarks_B, asked_BE, *matches
        ), None

    layer = anew_if_long(layer, x_BTD.shape[1])
    return jax.lax.scan(layer, entry, params["landmark_layers"])[0]


def settle(settings, params, x_BTD, landmarks_BLD, frames_B, asked_BE):
    """(frames, beats, bars, structure logits) of a stretch that starts on a bar: see `settle_halo`."""
    x = Fusion(settings).apply({"params": params["fusion"]}, x_BTD, landmarks_BLD, frames_B)

    def layer(x, one):
        return FrameLayer(settings).apply({"params": one}, x, frames_B, asked_BE), None

    x, _ = jax.lax.scan(anew_if_long(layer, x.shape[1]), x, params["frame_layers"])
    return Levels(settings).apply({"params": params["levels"]}, x, frames_B)


def kinds(params, landmarks_BLD):
    """Logits of what every landmark is, (B, L, kinds); needs a model with `settings.kinds`."""
    return Kinds().apply({"params": params["kinds"]}, landmarks_BLD)


def length(settings, params, bars_BVD, structure_BTS, frames_B):
    """Logarithm of the predicted edit length in frames, (B,)."""
    return Length(settings).apply({"params": params["length"]}, bars_BVD, structure_BTS, frames_B)


def listen_halo() -> int:
    """Frames on either side that `listen` must see so that the frames between come out as from the whole."""
    reach = max(NEAR_FRAMES // 2, FAR_BLOCK * (FAR_BLOCKS // 2 + 1)) + SHAPE_REACH
    return aligned(reach)


def settle_halo(settings) -> int:
    """The same for `settle`."""
    return aligned(settings.frame_layers * settings.frame_window)


def aligned(n_frames: int) -> int:
    """The next multiple of two bars, where chunks may start."""
    return -(-n_frames // ALIGN_FRAMES) * ALIGN_FRAMES
