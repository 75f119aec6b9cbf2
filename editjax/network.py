"""A trained pointer network to call: mel in, pointers out.

Recordings are padded to a few standard lengths, because every new shape costs a compilation; padding changes
nothing (tested). Beats are tracked from the mel.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.special import softmax

from editjax.beam import beam_search
from editjax.beats import BeatSettings, beat_phases, track_beats
from editjax.chunks import encode_in_chunks
from editjax.decode import decode, encode, read_keys
from editjax.edits import PAD, STOP
from editjax.errors import DataError, UsageError
from editjax.events import UNKNOWN
from editjax.mel import STEM_FRAMES, MelSettings, layout_error
from editjax.metrics import kept_iou
from editjax.models.encoder import Encoded, aligned, kinds
from editjax.models.pointer import PointerSettings
from editjax.models.stems import Stems
from editjax.models.style import Asked, Example, Gaussian, posterior, prior
from editjax.styles import STYLES

SHORTEST_FRAMES = 1024
WHOLE_FRAMES = 32_768  # 12.7 minutes; longer recordings are encoded in chunks
LONGEST_STEPS = 1.6  # decoding ends after this many times the padded length
SAME_IOU = 0.98
"""Edits that share this much of what they keep are the same to a listener."""
SAME_SECONDS = 0.5  # as are joins this near
KIND_SECONDS = 0.5
"""What a moment is, talk or a take, is heard from what lies around it, as nothing is so for less time."""
BEAM_WIDTH, BEAM_WIDTH_EACH = 16, 4
"""Hypotheses held when variants are searched for: at least, and for each variant."""


class EditedPointers(NamedTuple):
    """One recording's edit: `pointers_N` raw frames in playing order, `score_N` the log-probability of each
    choice, `keep_T` the probability that a raw frame is kept, `kind_T` what it is (its number in
    `events.KINDS`; UNKNOWN to a model that does not hear it), `length_frames` the predicted length, `stopped`
    false when decoding was cut off at the longest length."""

    pointers_N: np.ndarray
    score_N: np.ndarray
    keep_T: np.ndarray
    kind_T: np.ndarray
    length_frames: float
    stopped: bool


class _Heard(NamedTuple):
    """What the dense heads say of one recording: see `EditedPointers`."""

    keep_T: np.ndarray
    kind_T: np.ndarray
    length_frames: float


class PointerNetwork:
    """Settings and parameters of a trained model, with the calls of the pointer network.

    `generate`, `generate_hierarchical` and `inference` take mels (batch, time, mel) or (time, mel) in [0, 1]
    (`editjax.mel`), or a list of (time, mel), and raise UsageError for other shapes; `edit_pointers` and
    `variants` are what the editor uses.

    A style is one of the names in `styles` (those it was trained on) or a point (Z,) in the space of styles,
    which `style_of` infers from an example and `some_style` draws.

    `stems_IMF` are the mels of the tracks that a recording is the sum of (`mel.stem_mel`); a model that does
    not hear stems passes them over.
    """

    def __init__(
        self,
        settings: PointerSettings,
        params: Any,
        mel: MelSettings = MelSettings(),
        beats: BeatSettings | None = None,
        styles: Sequence[str] = STYLES,
    ):
        self.settings, self.params, self.mel = settings, params, mel
        self.styles = tuple(styles) if settings.style_width else STYLES[:1]
        self.style = STYLES[0] if STYLES[0] in self.styles else self.styles[0]
        self.beats = beats or BeatSettings(mel=mel)

    @property
    def hears_stems(self) -> bool:
        """Whether the tracks of a recording, where they are known, change its edit."""
        return self.settings.stem_width > 0

    def edit_pointers(
        self,
        mel_TF: np.ndarray,
        phase_T3: np.ndarray | None = None,
        target_frames: float | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        style: str | np.ndarray | None = None,
        stems_IMF: np.ndarray | None = None,
    ) -> EditedPointers:
        """The edit of one recording, decoded freely: greedy at temperature 0, sampled by `seed` above."""
        phases = None if phase_T3 is None else [phase_T3]
        out, encoded = self._run([mel_TF], phases, target_frames, temperature, seed, style, stems_IMF)
        heard, (pointers_BN, log_p_BN) = self._heard(encoded, len(mel_TF)), jax.device_get(out[:2])
        return _edited(pointers_BN[0], log_p_BN[0], heard)

    def variants(
        self,
        mel_TF: np.ndarray,
        phase_T3: np.ndarray | None = None,
        count: int = 3,
        target_frames: float | None = None,
        style: str | np.ndarray | None = None,
        stems_IMF: np.ndarray | None = None,
    ) -> list[EditedPointers]:
        """At most `count` edits of one recording that differ in what they keep, likeliest first.

        Each has a kept-frame IoU below SAME_IOU with all that are likelier. There are fewer where a beam of
        BEAM_WIDTH_EACH hypotheses for each, and of BEAM_WIDTH in all at least, holds no more.
        """
        phases = None if phase_T3 is None else [phase_T3]
        asked = self._asked(1, target_frames, style)
        encoded, keys, max_steps = self._encoded([mel_TF], phases, asked, stems_IMF)
        width = max(BEAM_WIDTH, BEAM_WIDTH_EACH * count)
        apart = round(SAME_SECONDS * self.mel.frames_per_second)
        found = beam_search(self.settings, self.params, keys, asked.target_B, max_steps, width, apart)
        heard, found = self._heard(encoded, len(mel_TF)), jax.device_get(found)
        held = int(np.isfinite(found.log_p_W).sum())
        edits = [
            _edited(pointers_N, log_p_N, heard)
            for pointers_N, log_p_N in zip(found.pointers_WN[:held], found.log_p_WN[:held], strict=True)
        ]
        return _different(edits, len(mel_TF))[:count]

    def generate(
        self,
        mel: np.ndarray | Sequence[np.ndarray],
        target_length: float | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> np.ndarray:
        """Pointers (batch, steps) int32: raw frames, then STOP (−2), then PAD (−1).

        `mel` may also be a list of recordings (time, mel) of different lengths. At temperature 0 each is
        edited as it is alone, up to rounding, but that one which never stops is cut off where the longest
        would be; above, its noise is drawn for its place in the list.
        `target_length` is the wanted length in frames.
        """
        out, _ = self._run(_recordings(mel, self.settings.n_mels), None, target_length, temperature, seed)
        return _trimmed(out.pointers_BN)

    def generate_hierarchical(
        self,
        mel: np.ndarray | Sequence[np.ndarray],
        coarse_to_fine: bool = True,
        target_length: float | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> dict[str, np.ndarray]:
        """`pointers` as `generate`, with the `bar_indices` and `beat_indices` they were chosen through.

        Jumps are always decided bar → beat → frame, so `coarse_to_fine=False` returns the same pointers.
        Entries at STOP and PAD repeat those values.
        """
        pointers = self.generate(mel, target_length, temperature, seed)
        levels = {
            "bar_indices": self.settings.frames_per_bar,
            "beat_indices": self.settings.frames_per_beat,
        }
        spans = {name: np.where(pointers < 0, pointers, pointers // size) for name, size in levels.items()}
        return {"pointers": pointers, **spans}

    def inference(self, mel: np.ndarray | Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Greedy pointers (batch, steps) and the probability of stopping at each step."""
        out, _ = self._run(_recordings(mel, self.settings.n_mels), None, None, 0.0, 0)
        pointers = _trimmed(out.pointers_BN)
        return pointers, np.asarray(out.stop_p_BN)[:, : pointers.shape[1]]

    def point_of(self, style: str | np.ndarray | None) -> np.ndarray:
        """The point (Z,) of a style, the middle of a named one, None of the default.

        UsageError for a name it did not learn, ValueError for a point in another space.
        """
        if style is None or isinstance(style, str):
            return np.asarray(self._named(style or self.style).mean_BZ[0])
        point_Z = np.asarray(style, np.float32)
        if point_Z.shape != (self.settings.style_width,):
            raise ValueError(f"style of shape {point_Z.shape}, wanted ({self.settings.style_width},)")
        return point_Z

    def some_style(self, style: str, seed: int) -> np.ndarray:
        """A point (Z,) drawn from what is known of a named style, or of one of them at random ("any")."""
        name_key, key = jax.random.split(jax.random.key(seed))
        if style == "any":
            style = self.styles[int(jax.random.randint(name_key, (), 0, len(self.styles)))]
        return np.asarray(self._named(style).draw(key)[0])

    def style_of(
        self, mel_NF: np.ndarray, pointers_N: np.ndarray | None = None, raw_frames: int = 0
    ) -> np.ndarray:
        """The style (Z,) of an example: an edited track, and where they are known its pointers.

        `mel_NF` are the edited frames, with pointers the raw frames they play; `raw_frames` is the length of
        the recording, which counts with pointers alone. UsageError for a model that knows no styles.
        """
        self.refuse_styles()
        n_frames, joins_N2 = len(mel_NF), np.zeros((len(mel_NF), 2), np.float32)
        if pointers_N is not None:
            joins_N2 = _joins(np.asarray(pointers_N))
        length = padded_length(n_frames)
        example = Example(
            _padded([np.asarray(mel_NF, np.float32)], length),
            np.array([n_frames], np.int32),
            _padded([joins_N2], length),
            np.array([raw_frames if pointers_N is not None else 0], np.int32),
        )
        return np.asarray(_posterior(self.settings, self.params, example).mean_BZ[0])

    def refuse_styles(self) -> None:
        """UsageError for a model that knows no styles."""
        if not self.settings.style_width:
            raise UsageError("this model knows no styles: train one with model.style_width above 0")

    def _named(self, style: str) -> Gaussian:
        if style not in self.styles:
            raise UsageError(f"style {style!r} is unknown to this model; it knows {', '.join(self.styles)}")
        return prior(self.settings, np.array([STYLES.index(style)]))

    def phases(self, mel_TF: np.ndarray) -> np.ndarray:
        """Position in beat, bar and phrase of every frame, from tracked beats, (T, 3)."""
        return beat_phases(track_beats(mel_TF, self.beats), len(mel_TF), self.beats)

    def _run(self, mels, phases, target_frames, temperature, seed, style=None, stems_IMF=None):
        if not 0 <= temperature < math.inf:
            raise UsageError(f"temperature {temperature}: give 0 (always the likeliest edit) or more")
        asked = self._asked(len(mels), target_frames, style)
        encoded, keys, max_steps = self._encoded(mels, phases, asked, stems_IMF)
        out = decode(
            self.settings,
            self.params,
            keys,
            asked.target_B,
            max_steps,
            np.float32(temperature),
            jax.random.key(seed),
        )
        return out, encoded

    def _asked(self, count: int, target_frames: float | None, style: str | np.ndarray | None) -> Asked:
        if target_frames is not None and not 0 < target_frames < math.inf:
            raise UsageError(f"wanted length {target_frames} frames: give a length above 0")
        target_B = np.full(count, target_frames or 0.0, np.float32)
        return Asked(target_B, np.tile(self.point_of(style), (count, 1)))

    def _encoded(self, mels, phases, asked: Asked, stems_IMF=None):
        """Recordings, or one with its stems, encoded, their keys, and the most steps their edits may take."""
        phases = phases or [self.phases(mel_TF) for mel_TF in mels]
        frames_B = np.array([len(mel_TF) for mel_TF in mels], np.int32)
        length = padded_length(int(frames_B.max()))
        if length > WHOLE_FRAMES:
            rows = [Asked(target[None], style[None]) for target, style in zip(*asked, strict=True)]
            stems = self.stems(stems_IMF, aligned(length))
            parts = [
                encode_in_chunks(self.settings, self.params["encoder"], *recording, length, stems)
                for recording in zip(mels, phases, rows, strict=True)
            ]
            encoded = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
            keys = read_keys(self.settings, self.params, encoded)
        else:
            padded = _padded(mels, length), frames_B, _padded(phases, length)
            stems = self.stems(stems_IMF, length)
            encoded, keys = encode(self.settings, self.params, *padded, asked, stems)
        return encoded, keys, int(length * LONGEST_STEPS)

    def _heard(self, encoded: Encoded, n_frames: int) -> _Heard:
        """Of the first recording, on the host: on the device every small operation would be a program of its
        own to compile."""
        kind_BLK = _kinds(self.settings, self.params["encoder"], encoded.landmarks_BLD)
        structure_BTS, log_length_B, kind_BLK = jax.device_get(
            (encoded.structure_BTS, encoded.log_length_B, kind_BLK)
        )
        keep_T = softmax(structure_BTS[0, :n_frames], axis=-1)[:, 1:].sum(-1)
        if kind_BLK is None:
            kind_T = np.full(n_frames, UNKNOWN, np.int8)
        else:
            landmark_frames = self.settings.landmark_frames
            around = round(KIND_SECONDS * self.mel.frames_per_second / landmark_frames)
            p_LK = softmax(kind_BLK[0, : -(-n_frames // landmark_frames)], axis=-1)
            kind_L = uniform_filter1d(p_LK, max(around, 1), axis=0, mode="nearest").argmax(-1)
            kind_T = kind_L.astype(np.int8).repeat(landmark_frames)[:n_frames]
        return _Heard(keep_T, kind_T, float(np.exp(log_length_B[0])))

    def stems(self, stems_IMF: np.ndarray | None, length: int) -> Stems | None:
        """The stems of one recording, as many rows as the next power of two: None without any."""
        if not self.hears_stems or stems_IMF is None or not len(stems_IMF):
            return None
        rows = 1 << (len(stems_IMF) - 1).bit_length()
        padded_IMF = _padded(list(stems_IMF), -(-length // STEM_FRAMES))
        padded_IMF = np.pad(padded_IMF, ((0, rows - len(stems_IMF)), (0, 0), (0, 0)))
        return Stems(padded_IMF[None], (np.arange(rows) < len(stems_IMF))[None])


@partial(jax.jit, static_argnums=0)
def _kinds(settings: PointerSettings, params, landmarks_BLD):
    return kinds(params, landmarks_BLD) if settings.kinds else None


_posterior = partial(jax.jit, static_argnums=0)(posterior)


def padded_length(n_frames: int) -> int:
    """The standard length for a recording: 1,024 frames times powers of the square root of two."""
    length = float(SHORTEST_FRAMES)
    while int(length) < n_frames:
        length *= 2**0.5
    return int(length)


def load_model(model: str | Path, attention: str = "block") -> PointerNetwork:
    """The bundled model of that name, or a model folder written by `editjax export`.

    It attends by the kind given, whatever it was trained with: parameters are the same for all.
    Raises NoInputError when there is none, DataError when it is damaged or not a pointer network.
    """
    from editjax.export import load_bundle

    bundle = load_bundle(model)
    if not isinstance(bundle.settings, PointerSettings):
        family = bundle.config["family"]
        raise DataError(f"{bundle.path}: a model of the family {family!r}, not a pointer network")
    settings, styles = replace(bundle.settings, attention=attention), bundle.config["training"].get("styles")
    return PointerNetwork(settings, bundle.params, bundle.mel, styles=styles or STYLES)


def _joins(pointers_N: np.ndarray) -> np.ndarray:
    """Whether each frame of an edit does not follow the one before, and whether it was played before, (N, 2).

    As `losses.targets` has it: after frames of unknown origin an edit goes on from the last known one.
    """
    known_N, index_N = pointers_N >= 0, np.arange(len(pointers_N))
    last_N = np.maximum.accumulate(np.where(known_N, index_N, -1))
    before_N = np.append(-1, np.where(last_N >= 0, pointers_N[last_N], -1))[:-1]
    _, first_N = np.unique(pointers_N, return_index=True)
    again_N = known_N & ~np.isin(index_N, first_N)
    return np.stack([pointers_N != before_N + 1, again_N], -1).astype(np.float32)


def _edited(pointers_N: np.ndarray, log_p_N: np.ndarray, heard: _Heard) -> EditedPointers:
    steps, stopped = int((pointers_N >= 0).sum()), bool((pointers_N == STOP).any())
    return EditedPointers(pointers_N[:steps], log_p_N[:steps], *heard, stopped)


def _different(edits: list[EditedPointers], n_frames: int) -> list[EditedPointers]:
    """Those that keep other frames than all before them, and keep any."""
    chosen: list[EditedPointers] = []
    for edit in edits:
        alike = (kept_iou(edit.pointers_N, other.pointers_N, n_frames) for other in chosen)
        if len(edit.pointers_N) and not any(iou >= SAME_IOU for iou in alike):
            chosen.append(edit)
    return chosen


def _recordings(mel: np.ndarray | Sequence[np.ndarray], n_mels: int) -> list[np.ndarray]:
    """One recording, a batch, or several of any length, as a list. Raises UsageError for other layouts."""
    if not isinstance(mel, list | tuple):
        mel = np.asarray(mel)
        mel = list(mel) if mel.ndim == 3 else [mel]
    mels = [np.asarray(part, np.float32) for part in mel]
    for part in mels:
        if part.ndim != 2 or part.shape[-1] != n_mels or not part.size:
            raise layout_error(part, f"(batch, time, {n_mels}) or (time, {n_mels})")
    if not mels:
        raise layout_error(np.asarray(mel), f"(batch, time, {n_mels}) or (time, {n_mels})")
    return mels


def _padded(parts: list[np.ndarray], length: int) -> np.ndarray:
    out = np.zeros((len(parts), length, parts[0].shape[-1]), np.float32)
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return out


def _trimmed(pointers_BN) -> np.ndarray:
    pointers = np.asarray(pointers_BN)
    used = (pointers != PAD).any(0)
    return pointers[:, : int(used.nonzero()[0].max(initial=-1)) + 1]
