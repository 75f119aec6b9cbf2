"""`editjax score`: a recording → how far every moment is from edited audio, and where a scorer would cut."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from editjax.cli.options import InputOptions, named, parse
from editjax.errors import DataError, UsageError
from editjax.outputs import Outputs

if TYPE_CHECKING:
    import numpy as np

    from editjax.edits import EditList
    from editjax.score import KeepSettings, Retention, Scores
    from editjax.scorer import Scorer

ROWS = 24
BAR = 40


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(InputOptions):
    """Prints the anomaly score of a recording against time; the higher, the less it sounds like edited audio.

    With `--out` the scores are kept, and `--scores` tries other thresholds on them without scoring again.
    """

    recording: Positional[Annotated[Path, arg(metavar="IN")]]
    """The recording."""
    model: Annotated[str, arg(metavar="NAME|FOLDER")] = "scorer"
    """A scorer: a name that `editjax models` lists, or the folder of an exported one."""
    threshold: Annotated[float | None, named("SD")] = None
    """Keep what scores below this, in standard deviations of edited audio; default: as calibrated."""
    keep_ratio: Annotated[float | None, named("SHARE")] = None
    """Keep this share of the recording, as nearly as whole clips allow."""
    known: Annotated[Path | None, named("FILE.edits.json")] = None
    """An edit of this recording by somebody else: prints retention against IoU, and the best threshold."""
    scores: Annotated[Path | None, named("FILE.npz")] = None
    """Scores of this recording that were written before, instead of new ones."""
    out: Annotated[Path | None, named("FILE.npz", "-o")] = None
    """Write the scores, for --scores here and of `editjax edit --editor scorer`."""
    plot: Annotated[Path | None, named("FILE.png")] = None
    """Picture of the scores against time."""
    json: bool = False
    """Print one line of JSON instead of the table."""
    overwrite: bool = False
    """Replace outputs that exist."""


def run(arguments: Sequence[str]) -> int:
    """Scores one recording; outputs that cannot be written and an unusable known edit are refused first."""
    options = parse(ScoreOptions, arguments, "editjax score")
    if None not in (options.threshold, options.keep_ratio):
        raise UsageError("give a threshold or a keep ratio: --threshold or --keep-ratio")
    from editjax.picture import check_suffix
    from editjax.score import write_scores
    from editjax.scorer import load_scorer

    if options.plot:
        check_suffix(options.plot)
    scorer = load_scorer(options.model)
    keep = scorer.asked(options.threshold, options.keep_ratio)
    known = read_known(options) if options.known else None
    inputs = [path for path in (options.recording, options.scores, options.known) if path]
    with Outputs(options.overwrite, inputs) as outputs:
        paths = {path: outputs.add(path) for path in (options.out, options.plot) if path}
        scores = scores_of(options, scorer)
        if options.out:
            write_scores(scores, paths[options.out], overwrite=True)
        if options.plot:
            _draw(paths[options.plot], options, scores, keep, scorer)
        curve = _curve(known, scores, keep, scorer) if known else []
    print(_for_programs(scores, keep, scorer, curve) if options.json else _told(scores, keep, scorer, curve))
    return 0


def read_known(options: ScoreOptions) -> "EditList":
    """The known edit. Raises DataError where it is of another recording."""
    from editjax.edits import read_edits
    from editjax.files import sha256_of

    assert options.known
    edit_list = read_edits(options.known)
    if edit_list.source.sha256 != sha256_of(options.recording):
        raise DataError(f"{options.known}: is an edit of another recording than {options.recording}")
    return edit_list


def scores_of(options: ScoreOptions, scorer: "Scorer") -> "Scores":
    """The scores of the recording, new or read. Raises DataError for those of or by another."""
    from editjax.audio import Reader
    from editjax.decision import EditSettings
    from editjax.editor import listen
    from editjax.files import sha256_of
    from editjax.score import scores_of_source

    settings = EditSettings(editor="silence", mel=scorer.mel)
    with Reader(options.recording, options.limits(), options.allow_truncated) as reader:
        if options.scores:
            n_frames = scorer.mel.grid(reader.info.sample_rate_hz).frames_in(reader.frames)
            of_source = sha256_of(options.recording), n_frames
            return scores_of_source(options.scores, *of_source, options.model, scorer.sha256)
        heard = listen(reader, settings)
    return scorer.scored(heard.mel_TF, heard.source.sha256, options.model)


def _curve(known: "EditList", scores: "Scores", keep: "KeepSettings", scorer: "Scorer") -> list["Retention"]:
    from editjax.edits import kept_mask_frames, to_pointers
    from editjax.score import retention_curve

    grid = scorer.mel.grid(known.source.sample_rate)
    kept_T = kept_mask_frames(to_pointers(known, grid), len(scores.score_T))
    return retention_curve([scores.score_T], [kept_T], keep, scorer.mel.frames_per_second, steps=ROWS)


def _kept(scores: "Scores", keep: "KeepSettings", scorer: "Scorer") -> tuple["np.ndarray", float]:
    """What is kept, and the threshold that keeps it."""
    from editjax.score import keep_mask, smoothed, threshold_for

    fps = scorer.mel.frames_per_second
    threshold = keep.threshold
    if keep.keep_ratio is not None:
        threshold = threshold_for(smoothed(scores.score_T, keep, fps), keep, fps)
    return keep_mask(scores.score_T, keep, fps), threshold


def _draw(
    path: Path, options: ScoreOptions, scores: "Scores", keep: "KeepSettings", scorer: "Scorer"
) -> None:
    from editjax.picture import draw_anomaly
    from editjax.score import smoothed

    kept_T, threshold = _kept(scores, keep, scorer)
    fps = scorer.mel.frames_per_second
    smooth_T, title = (
        smoothed(scores.score_T, keep, fps),
        f"{options.recording.name}, scored by {scores.model}",
    )
    draw_anomaly(path, smooth_T, kept_T, threshold, fps, title, overwrite=True)


def _told(scores: "Scores", keep: "KeepSettings", scorer: "Scorer", curve: list["Retention"]) -> str:
    """The scores as rows of equal length, with the share of each that is kept."""
    import numpy as np

    from editjax.score import best

    kept_T, threshold = _kept(scores, keep, scorer)
    fps, count = scorer.mel.frames_per_second, min(ROWS, max(1, len(scores.score_T)))
    edges = np.linspace(0, len(scores.score_T), count + 1).astype(int)
    rows = [
        (a / fps, float(scores.score_T[a:b].mean()), float(kept_T[a:b].mean()))
        for a, b in pairwise(edges)
        if b > a
    ]
    low, high = min(row[1] for row in rows), max(row[1] for row in rows)
    lines = ["   time   score  kept"]
    for start_s, score, kept in rows:
        bar = "█" * round(BAR * (score - low) / max(high - low, 1e-6))
        lines.append(
            f"{int(start_s) // 60:4d}:{int(start_s) % 60:02d} {score:7.2f} {kept:5.0%}  {bar}".rstrip()
        )
    lines.append(f"threshold {threshold:.3f} keeps {kept_T.mean():.1%}")
    if curve:
        lines.append("threshold  kept    IoU")
        lines += [f"{p.threshold:9.3f} {p.keep_ratio:5.1%} {p.kept_iou:6.3f}" for p in curve]
        top = best(curve)
        lines.append(
            f"best: threshold {top.threshold:.3f} keeps {top.keep_ratio:.1%}, IoU {top.kept_iou:.3f}"
        )
    return "\n".join(lines)


def _for_programs(scores: "Scores", keep: "KeepSettings", scorer: "Scorer", curve: list["Retention"]) -> str:
    kept_T, threshold = _kept(scores, keep, scorer)
    tree: dict[str, Any] = {
        "model": scores.model,
        "frames_per_second": scorer.mel.frames_per_second,
        "threshold": round(threshold, 4),
        "keep_ratio": round(float(kept_T.mean()), 4),
        "score": [round(float(score), 3) for score in scores.score_T],
    }
    if curve:
        tree["curve"] = [point._asdict() for point in curve]
    return json.dumps(tree, allow_nan=False)
