"""How well scores tell what is cut from what is kept: scorers beside level, flatness and chance.

    python benchmarks/detection.py --recordings DIR [--models NAME,FOLDER] [--sessions DIR] [--out FILE]
    python benchmarks/detection.py --quick

On the held-out sessions of `quality.py --set whole`, whose recordings no model has seen; on the same with
20 s of steady hum or noise among them, at the level of their music and against it alone (`steady.py`); and on
takes that differ as music alone (`takes.py`), where mean level is at chance. Areas under the ROC and average
precisions are over all frames of a set; IoU is the mean of edits at the calibrated threshold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from quality import SETS, folder_of, simulate
from report import finish, require_agreement
from steady import KINDS, with_steady
from takes import takes

from editjax.edits import kept_mask_frames
from editjax.errors import UsageError
from editjax.evaluate import EvaluateSettings, silence_cutter, tasks
from editjax.metrics import auroc, average_precision, kept_iou
from editjax.score import KeepSettings, keep_mask, smoothed
from editjax.score_quality import trivial_scores
from editjax.scorer import DOCUMENTS, Scorer, combined, load_scorer, weights_of

if TYPE_CHECKING:
    from editjax.evaluate import Task

SEEDS = 40
CALIBRATED = "calibrated ensemble"
NEAR_RATIO = 0.01
PER_SECOND = 8  # frames that are counted, of about 43: neighbours say the same


class Scored(NamedTuple):
    """Scores by name of the frames that count, and which of them are to be cut."""

    by_name: dict[str, list[np.ndarray]]
    cut: list[np.ndarray]


def main() -> int:
    chosen = options()
    scorers = {name: load_scorer(name) for name in chosen.models.split(",")}
    rows: list[dict[str, Any]] = []
    edits: dict[str, list[float]] = {}
    with folder_of(chosen.sessions) as folder:
        simulate(SETS[chosen.set][0], chosen, Path(folder))
        rows += table("sessions", scored(sessions(tasks_of(folder, chosen), edits, scorers), scorers))
        asked, random = edits["keep ratio: true"], edits["keep ratio: random"]
        require_agreement("the random edit's keep ratio", abs(np.mean(random) - np.mean(asked)), NEAR_RATIO)
        for kind in KINDS:
            planted = steady(tasks_of(folder, chosen), kind, edits, scorers)
            rows += table(f"{kind} among the music", scored(planted, scorers))
    for shuffled in (False, True):
        name = "takes in any order" if shuffled else "takes, the good one last"
        made = (takes(seed, shuffled, chosen.recordings) for seed in range(chosen.takes))
        rows += table(name, scored(((t.mel_TF, t.taken_T, t.bad_T) for t in made), scorers))
    ratios = {name: float(np.mean(values)) for name, values in edits.items()}
    finish("detection", rows, ratios, ("jax", "numpy", "scipy"), chosen.out, {"models": chosen.models})
    return 0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="scorer", help="scorers: bundled names, or folders")
    parser.add_argument("--recordings", type=Path, help="the recordings whose test split is played")
    parser.add_argument("--sessions", type=Path, help="folder to keep the sessions in, and to find them in")
    parser.add_argument("--count", type=int, help="the first so many sessions only")
    parser.add_argument("--takes", type=int, default=SEEDS, help="recordings of takes alone")
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate side by side")
    parser.add_argument("--quick", action="store_true", help="a few synthesised sessions, for a smoke test")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    chosen = parser.parse_args()
    if chosen.quick == bool(chosen.recordings):
        raise UsageError("give --recordings DIR for the whole held-out set, or --quick")
    chosen.set = "quick" if chosen.quick else "whole"
    if chosen.quick:
        chosen.takes = 2
    chosen.count = min(chosen.count or (2 if chosen.quick else 1000), SETS[chosen.set][0].sessions)
    return chosen


def tasks_of(folder: str | Path, chosen: argparse.Namespace) -> Iterator[Task]:
    return tasks(folder, EvaluateSettings(limit=chosen.count), [], quiet=not sys.stderr.isatty())


def sessions(
    found: Iterator[Task], edits: dict[str, list[float]], scorers: dict[str, Scorer]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Mels, all of whose frames count, and what their editors cut; notes in `edits` how near edits come."""
    for task in found:
        n_frames = len(task.mel_TF)
        kept_T = kept_mask_frames(task.true_N, n_frames)

        def note(name: str, pointers_N: np.ndarray, task: Task = task, n_frames: int = n_frames) -> None:
            edits.setdefault(f"edit of {name}, IoU", []).append(kept_iou(pointers_N, task.true_N, n_frames))

        note("silence cutter", silence_cutter(task))
        note("keep everything", np.arange(n_frames))
        edits.setdefault("keep ratio: true", []).append(float(kept_T.mean()))
        for name, scorer in scorers.items():
            mask_T = keep_mask(scorer.anomaly(task.mel_TF), scorer.keep, scorer.mel.frames_per_second)
            note(Path(name).name, np.flatnonzero(mask_T))
            edits.setdefault(f"keep ratio: {Path(name).name}", []).append(float(mask_T.mean()))
        random_T = random_mask(task, float(kept_T.mean()))
        edits.setdefault("keep ratio: random", []).append(float(random_T.mean()))
        note("random at the true ratio", np.flatnonzero(random_T))
        yield task.mel_TF, np.ones(n_frames, bool), ~kept_T


def random_mask(task: Task, wanted: float) -> np.ndarray:
    """A random edit that keeps the share r that is wanted: what chance gives, an IoU of about r / (2 − r)."""
    noise_T = trivial_scores(task.mel_TF, task.mel, seed=len(task.mel_TF))["random"]
    return keep_mask(noise_T, KeepSettings(keep_ratio=wanted), task.mel.frames_per_second)


def steady(
    found: Iterator[Task], kind: str, edits: dict[str, list[float]], scorers: dict[str, Scorer]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Mels with a steady sound in them, which is to be cut; of the rest only the kept music counts.

    Notes in `edits` what share of the sound is cut.
    """
    for number, task in enumerate(found):
        kept_T = kept_mask_frames(task.true_N, len(task.mel_TF))
        mel_TF, steady_T, music_T = with_steady(task.mel_TF, kept_T, kind, task.mel, number)
        for name, scorer in scorers.items():
            mask_T = keep_mask(scorer.anomaly(mel_TF), scorer.keep, scorer.mel.frames_per_second)
            cut = edits.setdefault(f"cut of the {kind}: {Path(name).name}", [])
            cut.append(1.0 - float(mask_T[steady_T].mean()))
        yield mel_TF, steady_T | music_T, steady_T


def scored(
    recordings: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]], scorers: dict[str, Scorer]
) -> Scored:
    """Every score of every recording, at the frames that count."""
    by_name: dict[str, list[np.ndarray]] = {}
    cut: list[np.ndarray] = []
    mel = next(iter(scorers.values())).mel
    every = round(mel.frames_per_second / PER_SECOND)
    for seed, (mel_TF, counted_T, cut_T) in enumerate(recordings):
        at = np.flatnonzero(counted_T)[::every]
        cut.append(cut_T[at])
        for name, score_T in trivial_scores(mel_TF, mel, seed).items():
            by_name.setdefault(name, []).append(score_T[at])
        for model, scorer in scorers.items():
            score_TQN = scorer.scores(mel_TF)
            for name, weight_QN in ensembles(scorer).items():
                score_T = combined(score_TQN, weight_QN)
                if name == CALIBRATED:  # as its edits see it
                    score_T = smoothed(score_T, scorer.keep, scorer.mel.frames_per_second)
                by_name.setdefault(f"{Path(model).name}: {name}", []).append(score_T[at])
    return Scored(by_name, cut)


def ensembles(scorer: Scorer) -> dict[str, np.ndarray]:
    """Weights of every single score, of the documents' ensemble and of the calibrated one."""
    each = {name: weights_of(scorer.settings, {name: 1.0}) for name in scorer.settings.scores}
    if scorer.settings.dual:
        each["ensemble 0.3, 0.3, 0.4"] = weights_of(scorer.settings, DOCUMENTS)
    return each | {CALIBRATED: scorer.calibration.weight_QN}


def table(of: str, found: Scored) -> list[dict[str, Any]]:
    """A row a score."""
    cut_N = np.concatenate(found.cut)
    return [
        {
            "set": of,
            "frames": len(cut_N),
            "cut": float(cut_N.mean()),
            "score": name,
            "auroc": auroc(np.concatenate(parts), cut_N),
            "average_precision": average_precision(np.concatenate(parts), cut_N),
        }
        for name, parts in found.by_name.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
