"""How good are the edits? Free-running, on recordings never trained on, beside the trivial editors.

`validate` scores parameters during training on a few examples of the validation split; `evaluate` scores a
finished model, and editors that need none, over a folder of pairs; `scoreboard` sums that up.

Every editor hears the same mel; the true pointers are those that training learns from (`prepare`).
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editjax import decode, shards
from editjax.beats import BeatSettings, track_beats
from editjax.codec_quality import codec_validate
from editjax.edits import PAD, STOP, UNALIGNED, Source, kept_mask_frames, to_pointers
from editjax.errors import DataError, UsageError
from editjax.labeller import policy_validate
from editjax.losses import nll_of_states, targets
from editjax.mel import FrameGrid, MelSettings
from editjax.metrics import (
    cut_share_by_kind,
    edit_scores,
    keep_ratio,
    kept_iou,
    mean_figures,
    played_iou,
    plus_one_baseline,
    pointer_accuracy,
    spans_found,
    stop_precision,
)
from editjax.mixer import mixer_validate
from editjax.models.autoencoder import ScorerSettings
from editjax.models.codec import CodecSettings
from editjax.models.coverage import played_before
from editjax.models.mixer import MixerSettings
from editjax.models.pointer import ADVANCE, JUMP, PointerSettings, Step, decoder_call
from editjax.models.policy import PolicySettings
from editjax.models.reconstruct import ReconstructSettings
from editjax.models.style import Asked
from editjax.models.window import WindowSettings
from editjax.network import WHOLE_FRAMES, PointerNetwork, padded_length
from editjax.pairs import RawFiles, find_pairs
from editjax.prepare import PrepareSettings, prepare_recording
from editjax.reconstruction import reconstruct_validate
from editjax.records import Edit, Recording
from editjax.retarget import PROMISE, RetargetSettings, retarget
from editjax.score_quality import scorer_validate
from editjax.scoreboard import CUT_KINDS, LENGTH, Row, plain
from editjax.silence import silence_edit
from editjax.styles import STYLES
from editjax.tune import TuneSettings
from editjax.tune_quality import beside_reference, earned
from editjax.window_quality import window_validate

MODEL, KEEP_EVERYTHING, SILENCE_CUTTER = "pointer network", "keep everything", "silence cutter"
MIXES = 512  # that a regressor is watched on
MAX_JUMPS = 256  # of an edit, that its likelihood counts; a static bound
STEPS_AT_ONCE = 128  # whose choices are computed side by side
SHORT_S = 60.0  # edits up to here have a length error of their own


@dataclass(frozen=True)
class ValidateSettings:
    """Which examples training is watched on; `split` None takes every split."""

    split: str | None = "validation"
    style: str = "final"
    examples: int = 32


@dataclass(frozen=True)
class EvaluateSettings:
    """Which pairs are scored: the first `limit` recordings (0: all), edits of `styles` (none named: all)."""

    styles: tuple[str, ...] = ()
    limit: int = 0
    beats: BeatSettings = field(default_factory=BeatSettings)

    def __post_init__(self) -> None:
        if unknown := [style for style in self.styles if style not in STYLES]:
            raise UsageError(f"style {unknown[0]!r}: unknown; choose from {', '.join(STYLES)}")
        if self.limit < 0:
            raise UsageError(f"limit {self.limit}: give a number of recordings, or 0 for all")


class Task(NamedTuple):
    """One pair: what an editor is given, then what only the judge knows.

    `target_frames` is the length the editor is asked for, None where the edit is as long as it comes.
    `true_N` are the true pointers, `by_style` those of every edit of the recording, `events` (kind, start,
    stop) what the raw frames are, where known; `stems_IMF` the mels of its tracks, where there are any.
    """

    id: str
    recording: str
    style: str
    source: Source
    mel: MelSettings
    mel_TF: np.ndarray
    phase_T3: np.ndarray
    target_frames: float | None
    true_N: np.ndarray
    by_style: Mapping[str, np.ndarray]
    events: tuple[tuple[str, int, int], ...]
    stems_IMF: np.ndarray | None = None

    @property
    def grid(self) -> FrameGrid:
        """Frames ↔ samples of this recording."""
        return self.mel.grid(self.source.sample_rate)


class Evaluation(NamedTuple):
    """Every row, what each task is like (`facts`), and the pairs that could not be used with the reason."""

    rows: tuple[Row, ...]
    facts: tuple[dict[str, Any], ...]
    skipped: tuple[dict[str, str], ...]


Editor = Callable[[Task], np.ndarray]  # raw frame of every edited frame


def figures(
    predicted_N: np.ndarray, true_N: np.ndarray, n_frames: int, frames_per_second: float
) -> dict[str, float]:
    """The figures of one edit, flat, by name."""
    s = edit_scores(predicted_N, true_N, n_frames, frames_per_second)
    short = len(true_N) <= SHORT_S * frames_per_second
    return {
        "kept_iou": s.kept_iou,
        "played_iou": s.played_iou,
        "boundary_f1_half_second": s.boundary_half_second.f1,
        "boundary_f1_3_frames": s.boundary_3_frames.f1,
        "order_agreement": s.order_agreement,
        "order_in_common": s.order_in_common,
        "joins_found": s.joins.found,
        "join_target_error_frames": s.joins.target_error_frames,
        "length_error": s.length_error,
        "loop_recall": s.loop_recall,
        "keep_ratio": s.keep_ratio,
        "true_keep_ratio": s.true_keep_ratio,
        "length_mae_frames": s.length_mae_frames,
        "length_mae_frames_up_to_60_s": s.length_mae_frames if short else math.nan,
        "pointer_accuracy": s.pointer_accuracy,
        "within_5": s.within_5,
        "plus_one_accuracy": s.plus_one_accuracy,
    }


def make_validate(
    config: Any, shards_dir: str | Path, settings: ValidateSettings = ValidateSettings()
) -> Callable[[Any], dict[str, float]]:
    """A function of parameters: mean free-running figures on the first examples of the validation split.

    `score`, which decides the best checkpoint, is the mean kept-frame IoU, while tuning what the edits earn
    unless too much of that is lost (`tune_quality.beside_reference`); it is NaN, and said so on stderr, when
    the shards have no validation split. Raises DataError when any split would do and none has the style.
    """
    if isinstance(config.model, CodecSettings):
        return codec_validate(config, shards_dir, settings.examples)
    if isinstance(config.model, WindowSettings):
        return window_validate(config, shards_dir, settings.examples)
    if isinstance(config.model, ScorerSettings):
        return scorer_validate(config, shards_dir, settings.split, settings.style, settings.examples)
    if isinstance(config.model, ReconstructSettings):
        return reconstruct_validate(config, shards_dir, settings.split, settings.examples)
    if isinstance(config.model, PolicySettings):
        return policy_validate(config, shards_dir, settings.split, settings.examples)
    if isinstance(config.model, MixerSettings):
        return mixer_validate(config, shards_dir, MIXES)
    examples = shards.watched(shards_dir, settings.split, [settings.style], settings.examples)
    if not examples:
        return lambda params: {"score": float("nan")}
    frames_per_second = MelSettings(**shards.read_manifest(shards_dir)["mel"]).frames_per_second
    tuned = isinstance(config.loss, TuneSettings)

    def validate(params: Any) -> dict[str, float]:
        network = PointerNetwork(config.model, params)
        rows = []
        for example in examples:
            mel_TF = np.asarray(example.mel_TF, np.float32)
            phase_T3 = np.asarray(example.phase_T3, np.float32)
            stems_IMF = example.stems_IMF
            edited = network.edit_pointers(mel_TF, phase_T3, style=example.style, stems_IMF=stems_IMF)
            row = figures(edited.pointers_N, example.pointers_N, len(mel_TF), frames_per_second)
            kept = np.flatnonzero(edited.keep_T > 0.5)
            row["structure_iou"] = kept_iou(kept, example.pointers_N, len(mel_TF))
            if tuned:
                weights, style = config.loss.reward, example.style
                row |= earned(network, weights, mel_TF, phase_T3, style, edited.pointers_N, stems_IMF)
            rows.append(row)
        mean = mean_figures(rows)
        return {"score": mean["kept_iou"], **mean}

    return beside_reference(config, validate) if tuned else validate


def editors_beside(network: PointerNetwork) -> dict[str, Editor]:
    """The model by its name in the table, then the editors it must beat."""
    return {MODEL: network_editor(network), **trivial_editors()}


def trivial_editors() -> dict[str, Editor]:
    """The editors that need no model."""
    return {KEEP_EVERYTHING: keep_everything, SILENCE_CUTTER: silence_cutter}


def network_editor(network: PointerNetwork) -> Editor:
    """The editor that a pointer network is."""

    def model(task: Task) -> np.ndarray:
        style = style_asked(network, task)
        edited = network.edit_pointers(
            task.mel_TF, task.phase_T3, task.target_frames, style=style, stems_IMF=task.stems_IMF
        )
        return edited.pointers_N

    return model


def style_asked(network: PointerNetwork, task: Task) -> str:
    """The task's style, or the default one for a model that never saw it."""
    return task.style if task.style in network.styles else network.style


def keep_everything(task: Task) -> np.ndarray:
    """The editor that plays the whole recording."""
    return np.arange(len(task.mel_TF))


def silence_cutter(task: Task) -> np.ndarray:
    """The editor that cuts what is quiet."""
    edit_list = silence_edit(task.mel_TF, task.grid, task.source, mel_settings=task.mel)
    return to_pointers(edit_list, task.grid)


def evaluate(
    pairs: str | Path,
    editors: Mapping[str, Editor],
    settings: EvaluateSettings = EvaluateSettings(),
    examine: Callable[[Task], dict[str, float]] | None = None,
    quiet: bool = True,
) -> Evaluation:
    """Scores every editor on every pair. `examine` gives further figures of the first editor.

    Raises NoInputError without pairs, DataError when none can be used.
    """
    rows: list[Row] = []
    facts: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    for task in tasks(pairs, settings, skipped, quiet):
        facts.append(_facts(task))
        for position, (name, editor) in enumerate(editors.items()):
            row = score(task, editor(task))
            if examine and not position:
                row |= examine(task)
            rows.append(Row(task.id, task.recording, task.style, name, row))
    if not rows:
        wanted = f" of style {', '.join(settings.styles)}" if settings.styles else ""
        why = f"; {skipped[0]['pair']}: {skipped[0]['reason']}" if skipped else ""
        raise DataError(f"{pairs}: no pair{wanted} can be used{why}")
    return Evaluation(tuple(rows), tuple(facts), tuple(skipped))


def tasks(
    pairs: str | Path, settings: EvaluateSettings, skipped: list[dict[str, str]], quiet: bool = True
) -> Iterator[Task]:
    """The pairs as tasks, one recording in memory at a time; what cannot be used is added to `skipped`."""
    from tqdm import tqdm

    found = find_pairs(pairs)
    skipped += [{"pair": name, "reason": reason} for name, reason in found.skipped]
    recordings = found.recordings[: settings.limit or None]
    prepare_settings = PrepareSettings(beats=settings.beats)
    for files in tqdm(recordings, unit="recording", disable=quiet or not sys.stderr.isatty()):
        files = _of_styles(files, settings.styles)
        recording, outcome = prepare_recording(files, prepare_settings)
        skipped += outcome["skipped"]
        if recording is None:
            continue
        for edit in recording.edits:
            if not settings.styles or edit.style in settings.styles:
                yield _task(recording, edit, settings)


def score(task: Task, pointers_N: np.ndarray) -> dict[str, float]:
    """The figures of an edit, and what it found of what had to be cut.

    `found_KIND` is the share of the frames of that kind which the true edit cuts that this one cuts too,
    `spoiled_takes_found` the share of the spoiled takes of which it cuts at least half.
    """
    n_frames = len(task.mel_TF)
    kept_T, true_T = kept_mask_frames(pointers_N, n_frames), kept_mask_frames(task.true_N, n_frames)
    place_T = np.append(0, np.cumsum(~true_T))  # of a frame among those that are to be cut
    cut_events = [(kind, place_T[start], place_T[stop]) for kind, start, stop in task.events]
    shares = cut_share_by_kind(kept_T[~true_T], cut_events)
    spoiled = [(start, stop) for kind, start, stop in task.events if kind == "spoiled"]
    return {
        **figures(pointers_N, task.true_N, n_frames, task.mel.frames_per_second),
        **{f"found_{kind}": shares.get(kind, math.nan) for kind in CUT_KINDS},
        "spoiled_takes_found": spans_found(kept_T, spoiled),
    }


def teacher_forced(network: PointerNetwork, task: Task) -> dict[str, float]:
    """What the model makes of the true edit, step by step: figures that only a model has.

    `sequence_nll` is −log p in nats per event (jumps and the stop). The others are those of the documents,
    of the greedy choice after each true history: exact and within five frames, over all steps and over the
    jumps alone; which stops are true ones, over recordings where it stops at all, and where it stops in time.
    Beside them the same of the `+1` baseline, which never edits. Recordings too long to encode at once have
    none of these.
    """
    steps, true_N = len(task.true_N) + 1, task.true_N
    length = padded_length(max(len(task.mel_TF), steps))
    if length > WHOLE_FRAMES:
        return {}
    pointers_BN = np.full((1, length), PAD, np.int32)
    pointers_BN[0, :steps] = np.append(true_N, STOP)
    mel_BTF, phase_BT3 = (
        np.pad(a, [(0, length - len(a)), (0, 0)])[None] for a in (task.mel_TF, task.phase_T3)
    )
    frames_B, steps_B = np.array([len(task.mel_TF)], np.int32), np.array([steps], np.int32)
    target_B = np.array([task.target_frames or 0], np.float32)
    settings, params = network.settings, network.params
    asked = Asked(target_B, network.point_of(style_asked(network, task))[None])
    stems = network.stems(task.stems_IMF, length)
    _, keys = decode.encode(settings, params, mel_BTF, frames_B, phase_BT3, asked, stems)
    nll_B, greedy_N = _forced(settings, params, keys, pointers_BN, steps_B, target_B)
    greedy_N = np.asarray(greedy_N[:steps])
    aligned_N = np.append(true_N, STOP) != UNALIGNED
    goes_on_N = np.where(greedy_N == STOP, UNALIGNED, greedy_N)[:-1]  # a wrong stop is one wrong step here
    jumps_N = (plus_one_baseline(true_N) != true_N) & (true_N >= 0)
    at_jumps = goes_on_N[jumps_N], true_N[jumps_N]
    return {
        "sequence_nll": float(nll_B[0]),
        "forced_accuracy": pointer_accuracy(goes_on_N, true_N),
        "forced_within_5": pointer_accuracy(goes_on_N, true_N, within_frames=5),
        "forced_jumps_exact": pointer_accuracy(*at_jumps),
        "forced_jumps_within_5": pointer_accuracy(*at_jumps, within_frames=5),
        "stop_precision": stop_precision((greedy_N == STOP) & aligned_N, np.arange(steps) == steps - 1),
        "stop_recall": float(greedy_N[-1] == STOP),
        "plus_one_within_5": pointer_accuracy(plus_one_baseline(true_N), true_N, within_frames=5),
    }


def audit(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the pairs are like: how many, how long, how much of them is kept, what the cut time is."""
    seconds = {fact["recording"]: fact["seconds"] for fact in facts}
    cut = sum(fact["cut_frames"] for fact in facts)
    return {
        "recordings": len(seconds),
        "edits": len(facts),
        "seconds": plain(sum(seconds.values())),
        "median_seconds": plain(float(np.median(list(seconds.values())))),
        "median_keep_ratio": plain(float(np.median([fact["keep_ratio"] for fact in facts]))),
        "spoiled_share_of_cut": plain(sum(f["spoiled_frames"] for f in facts) / cut) if cut else None,
    }


def at_lengths(network: PointerNetwork, task: Task, lengths: Sequence[float]) -> dict[str, float]:
    """What becomes of wanted lengths, given as multiples of the natural edit's, as `editjax edit` meets them.

    `error` is that of the length, `met` whether it is within 5 %, `ending` the share of the natural edit's
    last second that is still played: 0 for a shorter edit that was merely cut off.
    """
    natural_N = network.edit_pointers(
        task.mel_TF, task.phase_T3, style=style_asked(network, task), stems_IMF=task.stems_IMF
    ).pointers_N
    ending = natural_N[-round(task.mel.frames_per_second) :]
    beats = track_beats(task.mel_TF, network.beats)
    row: dict[str, float] = {}
    for times in lengths:
        wanted_frames = times * len(natural_N)
        pointers_N = natural_N
        if len(natural_N):
            settings = RetargetSettings(beats=network.beats)
            pointers_N = retarget(natural_N, task.mel_TF, beats, wanted_frames, settings).pointers_N
        error = abs(len(pointers_N) / wanted_frames - 1) if wanted_frames else math.nan
        named = {"error": error, "met": float(error <= PROMISE), "ending": _share(ending, pointers_N)}
        row |= {LENGTH.format(f"{times:g}", what): value for what, value in named.items()}
    return row


def obedience(network: PointerNetwork, task: Task) -> dict[str, float]:
    """Whether the edit in the style asked for is nearest to that style's true edit (1) or to another's (0).

    Near is `played_iou`; NaN where the recording has one true edit or the model does not know the style. Two
    styles may come to the same edit: the one asked for counts then.
    """
    if len(task.by_style) < 2 or task.style not in network.styles:
        return {"style_obeyed": math.nan}
    edited = network.edit_pointers(
        task.mel_TF, task.phase_T3, task.target_frames, style=task.style, stems_IMF=task.stems_IMF
    )
    near = {s: played_iou(edited.pointers_N, true_N, len(task.mel_TF)) for s, true_N in task.by_style.items()}
    return {"style_obeyed": float(near[task.style] >= max(near.values()))}


def _share(ending_N: np.ndarray, pointers_N: np.ndarray) -> float:
    return float(np.isin(ending_N, pointers_N).mean()) if len(ending_N) else math.nan


def _of_styles(files: RawFiles, styles: Sequence[str]) -> RawFiles:
    """The recording without edits whose name already says another style."""
    kept = [edit for edit in files.edits if not styles or edit.style is None or edit.style in styles]
    return files._replace(edits=tuple(kept))


def _task(recording: Recording, edit: Edit, settings: EvaluateSettings) -> Task:
    meta, mel = recording.meta, settings.beats.mel
    target_s = edit.meta.get("target_s")
    return Task(
        id=edit.id,
        recording=recording.id,
        style=edit.style,
        source=Source("", "", meta["sample_rate_hz"], 1, meta["samples"]),
        mel=mel,
        mel_TF=recording.mel_TF.astype(np.float32),
        phase_T3=recording.phase_T3.astype(np.float32),
        target_frames=None if target_s is None else target_s * mel.frames_per_second,
        true_N=edit.pointers_N,
        by_style={edit.style: edit.pointers_N for edit in recording.edits},
        events=tuple((kind, start, stop) for start, stop, kind in meta.get("events", ())),
        stems_IMF=recording.stems_IMF,
    )


def _facts(task: Task) -> dict[str, Any]:
    n_frames = len(task.mel_TF)
    cut_T = ~kept_mask_frames(task.true_N, n_frames)
    spoiled_T = np.zeros(n_frames, bool)
    for kind, start, stop in task.events:
        spoiled_T[start:stop] |= kind == "spoiled"
    return {
        "recording": task.recording,
        "seconds": task.source.frames / task.source.sample_rate,
        "keep_ratio": keep_ratio(task.true_N, n_frames),
        "cut_frames": int(cut_T.sum()),
        "spoiled_frames": int((cut_T & spoiled_T).sum()),
    }


@partial(jax.jit, static_argnames=("settings",))
def _forced(settings: PointerSettings, params, keys, pointers_BN, steps_B, target_B):
    """−log p per event (1,), and the greedy choice at each step after the true steps before it (N,)."""
    t = targets(pointers_BN, steps_B, target_B, keys.frames_BTD.shape[1])
    h_BND = decoder_call(settings, params, "states", keys, t.step, steps_B)
    nll = nll_of_states(settings, params, keys, t, h_BND, MAX_JUMPS)
    total_B = nll.mode_B + nll.bar_B + nll.beat_B + nll.frame_B
    every_BN, any_key_B1 = jnp.ones_like(pointers_BN, bool), jax.random.key(0)[None, None]
    n_steps, n_bars = pointers_BN.shape[1], keys.bars_BVD.shape[1]
    played_BNV = played_before(pointers_BN, every_BN, n_steps, n_bars, settings.frames_per_bar)
    fixed = decode.Fixed(settings, params, keys, target_B, n_steps, 0)

    def landing(at):
        h_D, played_V, pointer, run, index, replay_2 = (a[None, None] for a in at)
        step = Step(pointer, run, index, target_B, replay_2)
        return decode.land(fixed, decode.Turn(step, h_D, played_V[0], any_key_B1))[0][0, 0]

    s = t.step
    steps = h_BND[0], played_BNV[0], s.pointer_BN[0], s.run_BN[0], s.index_BN[0], s.replay_BN2[0]
    target_N = jax.lax.map(landing, steps, batch_size=STEPS_AT_ONCE)
    mode_N = decoder_call(settings, params, "mode_logits", h_BND, s.pointer_BN, keys)[0].argmax(-1)
    following = [mode_N == ADVANCE, mode_N == JUMP]
    greedy_N = jnp.select(following, [s.pointer_BN[0] + 1, target_N], STOP)
    return total_B / (nll.jumps_B + 1).astype(jnp.float32), greedy_N
