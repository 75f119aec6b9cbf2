"""A trained label policy to call: mel in, what becomes of every beat out, and the edit that follows."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from editjax import ppo, shards
from editjax.beats import BeatSettings, beat_phases, track_beats
from editjax.chunks import encode_in_chunks
from editjax.edits import EditLabel, EditList, Segment, Source, beat_of_frames
from editjax.errors import DataError
from editjax.labels import Run, labelled_edit, runs_of, without_scraps
from editjax.mel import FrameGrid, MelSettings
from editjax.metrics import macro_f1
from editjax.models.encoder import aligned
from editjax.models.layers import RUNNING
from editjax.models.policy import PolicySettings, asked_of, beats_of, hear, label_logits
from editjax.network import WHOLE_FRAMES, padded_length
from editjax.policy_loss import PolicyPpoSettings, judged, seen_of
from editjax.reconstruction import Reconstruction, judged_pair, load_reconstruction
from editjax.reward import heard_frames

SHORTEST_S = 2.0
"""What is played between two cuts is no shorter: the kept IoU of 24 validation sessions is then 0.901,
without a limit 0.889, with one of 4 s 0.896."""


class Labels(NamedTuple):
    """What becomes of every beat: `label_U` (`EditLabel`), of what the recording begins with and of each
    later beat, `p_U` how sure the policy is of it, `beat_frames` where the later beats begin."""

    label_U: np.ndarray
    p_U: np.ndarray
    beat_frames: np.ndarray


class Labeller:
    """Settings and parameters of a trained label policy, and the model that says how its effects sound."""

    def __init__(
        self,
        settings: PolicySettings,
        params: Any,
        reconstruction: Reconstruction,
        mel: MelSettings = MelSettings(),
    ):
        self.settings, self.params, self.reconstruction, self.mel = settings, params, reconstruction, mel
        self.beats = BeatSettings(mel=mel)

    def labels(self, mel_TF: np.ndarray) -> Labels:
        """The likeliest label of every beat."""
        n_frames, length = len(mel_TF), padded_length(len(mel_TF))
        beats = track_beats(mel_TF, self.beats)
        phase_T3 = beat_phases(beats, n_frames, self.beats)
        beat_frames = beats.beat_frames[beats.beat_frames > 0]  # one at 0 is what lies before the others
        beat_T = beat_of_frames(beat_frames, n_frames)
        encoder, asked = self.params[RUNNING]["encoder"], asked_of(self.settings, 1)
        if length > WHOLE_FRAMES:
            length = aligned(length)
            hears = self.settings.hears
            encoded = encode_in_chunks(hears, encoder, mel_TF, phase_T3, asked, length, None)
        else:
            around = ((0, 0), (0, length - n_frames), (0, 0))
            padded = (np.pad(a[None].astype(np.float32), around) for a in (mel_TF, phase_T3))
            mel_1TF, phase_1T3 = padded
            frames_1 = np.array([n_frames], np.int32)
            encoded = _hear(self.settings, self.params, mel_1TF, frames_1, phase_1T3)
        beat_1T = np.pad(beat_T, (0, length - n_frames))[None]
        p_UC = np.asarray(_probabilities(self.settings, self.params, encoded, beat_1T))[0]
        p_UC = p_UC[: len(beat_frames) + 1]
        return Labels(p_UC.argmax(-1), p_UC.max(-1), beat_frames)

    def edit(
        self,
        mel_TF: np.ndarray,
        grid: FrameGrid,
        source: Source,
        editor: dict[str, Any] | None = None,
        levels: bool = True,
    ) -> EditList:
        """The edit that follows from the labels; `editor` are its notes. Without `levels` effects are played
        as they are, for they get their sound elsewhere. A segment's score is how sure its labels are."""
        labels, n_frames = self.labels(mel_TF), len(mel_TF)
        runs = self._runs(labels, n_frames)
        if levels:
            runs = self._with_levels(runs, mel_TF, labels)
        notes = {"name": "labels", **(editor or {}), "labels": _counts(runs, labels.beat_frames)}
        edit_list = labelled_edit(runs, grid, source, notes)
        p_T = labels.p_U[beat_of_frames(labels.beat_frames, n_frames)]

        def surely(segment: Segment) -> Segment:
            inside = slice(grid.frames_in(segment.start), grid.frames_in(segment.stop))
            return segment._replace(score=round(float(p_T[inside].mean()), 4))

        return edit_list._replace(segments=tuple(map(surely, edit_list.segments)))

    def effects(self, mel_TF: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """The mel of what is heard of every frame, (T, F), and the spans of frames where effects sound."""
        labels = self.labels(mel_TF)
        runs = self._runs(labels, len(mel_TF))
        spans = [(run.start, run.stop) for run in runs if run.label == EditLabel.EFFECT]
        return self._edited_mel(mel_TF, labels), spans

    def _runs(self, labels: Labels, n_frames: int) -> list[Run]:
        shortest = round(SHORTEST_S * self.mel.frames_per_second)
        return without_scraps(runs_of(labels.label_U, labels.beat_frames, n_frames), shortest)

    def _edited_mel(self, mel_TF: np.ndarray, labels: Labels) -> np.ndarray:
        label_T = labels.label_U[beat_of_frames(labels.beat_frames, len(mel_TF))]
        return self.reconstruction.edited_mel(mel_TF, label_T)

    def _with_levels(self, runs: list[Run], mel_TF: np.ndarray, labels: Labels) -> list[Run]:
        """Effects with the change of level that the reconstruction model hears in them."""
        if EditLabel.EFFECT not in labels.label_U:
            return runs
        edited_TF = self._edited_mel(mel_TF, labels)
        before_T, after_T = (
            10.0 * np.log10(self.mel_power(a_TF).sum(-1) + 1e-12) for a_TF in (mel_TF, edited_TF)
        )

        def levelled(run: Run) -> Run:
            if run.label != EditLabel.EFFECT:
                return run
            inside = slice(run.start, run.stop)
            return run._replace(gain_db=round(float(np.median(after_T[inside] - before_T[inside])), 1))

        return [levelled(run) for run in runs]

    def mel_power(self, mel_TF: np.ndarray) -> np.ndarray:
        """Power of a mel in [0, 1]."""
        span_db = self.mel.ceiling_db - self.mel.floor_db
        return 10.0 ** ((np.asarray(mel_TF, np.float64) * span_db + self.mel.floor_db) / 10.0)


def _counts(runs: list[Run], beat_frames: np.ndarray) -> dict[str, int]:
    """How many beats are cut, kept, …, of those that are anything."""
    start_U = np.append(0, beat_frames)
    counts = dict.fromkeys(sorted(run.label for run in runs), 0)
    for run in runs:
        counts[run.label] += int(((start_U >= run.start) & (start_U < run.stop)).sum())
    return {label.name.lower(): count for label, count in counts.items()}


@partial(jax.jit, static_argnums=0)
def _hear(settings, params, mel_BTF, frames_B, phase_BT3):
    return hear(settings, params, mel_BTF, frames_B, phase_BT3)


@partial(jax.jit, static_argnums=0)
def _probabilities(settings, params, encoded, beat_BT):
    return jax.nn.softmax(label_logits(settings, params, beats_of(settings, encoded, beat_BT)))


def load_labeller(model: str | Path, reconstruction: str | Path = "reconstruct") -> Labeller:
    """The bundled label policy of that name, or a folder written by `editjax export`.

    Raises NoInputError when there is none, DataError when it is damaged or no label policy.
    """
    from editjax.export import load_bundle

    bundle = load_bundle(model)
    if not isinstance(bundle.settings, PolicySettings):
        family = bundle.config["family"]
        raise DataError(f"{bundle.path}: a model of the family {family!r}, not a label policy")
    sounds = load_reconstruction(reconstruction)
    if sounds.mel != bundle.mel:
        raise DataError(f"{reconstruction}: made for another mel than {bundle.path}")
    return Labeller(bundle.settings, bundle.params, sounds, bundle.mel)


class Examined(NamedTuple):
    """One recording labelled: true and likeliest labels and the frames of every beat (U,), and the mean
    rewards of the likeliest labels, of drawn ones, of KEEP everywhere and of CUT everywhere."""

    label_U: Any
    likeliest_U: Any
    frames_U: Any
    entropy: Any
    reward: Any
    drawn: Any
    all_keep: Any
    all_cut: Any


@partial(jax.jit, static_argnums=(0, 1, 2))
def examine(settings: PolicySettings, weights: PolicyPpoSettings, judge, params, judge_params, pair, key):
    """What a policy makes of one recording (`Judged`), and what that earns (`Examined`).

    `judge` are the settings of the reconstruction model.
    """
    frozen = ppo.Frozen(judge, judge_params)
    beats, label_BU = seen_of(settings, params, pair)
    logits_BUC = label_logits(settings, params, beats)
    likeliest_BU, counted_BU = logits_BUC.argmax(-1), beats.counted_BU
    chosen = [likeliest_BU, jax.random.categorical(key, logits_BUC)]
    chosen += [np.full(label_BU.shape, label) for label in (EditLabel.KEEP, EditLabel.CUT)]

    def reward(action_BU):
        return ppo.mean_of(judged(weights, action_BU, label_BU, beats.frames_BU, pair, frozen), counted_BU)

    entropy = ppo.mean_of(ppo.categorical(logits_BUC, likeliest_BU)[1], counted_BU)
    return Examined(label_BU[0], likeliest_BU[0], beats.frames_BU[0], entropy, *map(reward, chosen))


def label_figures(rows: list[Examined]) -> dict[str, float]:
    """Figures of several recordings: accuracy and macro-F1 over all of their beats, means of the rest.

    `duration_error` is by how much the edit's length is off, as a share of the true one.
    """
    parts = [(row, row.frames_U > 0) for row in rows]
    true_N = np.concatenate([row.label_U[there] for row, there in parts])
    found_N = np.concatenate([row.likeliest_U[there] for row, there in parts])
    majority = np.bincount(true_N).argmax()
    means = {name: float(np.mean([getattr(row, name) for row in rows])) for name in Examined._fields[3:]}
    return {
        "accuracy": float((true_N == found_N).mean()),
        "macro_f1": macro_f1(found_N, true_N),
        "majority_accuracy": float((true_N == majority).mean()),
        "majority_macro_f1": macro_f1(np.full_like(true_N, majority), true_N),
        "duration_error": float(np.mean(duration_errors(rows))),
        **means,
    }


def duration_errors(rows: list[Examined]) -> list[float]:
    """By how much the length of each edit is off, as a share of the true one."""
    lengths = [
        [float(heard_frames(labels, row.frames_U).sum()) for labels in (row.likeliest_U, row.label_U)]
        for row in rows
    ]
    return [abs(ours / max(true, 1.0) - 1.0) for ours, true in lengths]


def policy_validate(
    config: Any, shards_dir: str | Path, split: str | None, examples: int
) -> Callable[[Any], dict[str, float]]:
    """A function of parameters: figures on validation pairs of the styles that are trained on.

    `score`, which decides the best checkpoint, is the mean reward of the likeliest labels.
    """
    pairs = [judged_pair(one) for one in shards.watched(shards_dir, split, config.data.styles, examples)]
    if not pairs:
        return lambda params: {"score": float("nan")}
    weights = config.loss if isinstance(config.loss, PolicyPpoSettings) else PolicyPpoSettings()
    judge = load_reconstruction(weights.reconstruction)
    fixed = config.model, weights, judge.settings

    def validate(params: Any) -> dict[str, float]:
        rows = [
            jax.device_get(examine(*fixed, params, judge.params, pair, jax.random.key(number)))
            for number, pair in enumerate(pairs)
        ]
        figures = label_figures(rows)
        return {"score": figures["reward"], **figures}

    return validate
