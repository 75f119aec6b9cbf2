"""`editjax prepare`: pairs of raw and edited recordings → mel shards for training."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from editjax.cli.options import named, parse
from editjax.errors import UsageError
from editjax.prepare import PrepareSettings, prepare

MAX_ROWS = 20


@dataclass(frozen=True)
class PrepareOptions:
    """Turns pairs (NAME_raw.*, NAME_edit.*, with NAME.edits.json where there is one) into mel shards.

    Pairs are found in one folder, in the folders input/ and desired_output/ inside it, or in a CSV. The
    tracks of NAME_raw.* may lie in NAME_stems/. In their place may be the cache of an earlier super editor:
    the folder that holds features/NAME_raw.npz, features/NAME_edit.npz and labels/NAME_labels.npy. A bad pair
    is skipped by name. An interrupted run goes on where it was. Both places may be in an object store
    (s3://…, gs://…). Apache Beam's own options follow after --.
    """

    pairs: Positional[Annotated[str, arg(metavar="PAIRS")]]
    """Folder or CSV of pairs, or folder of cached mels."""
    shards: Positional[Annotated[str, arg(metavar="SHARDS")]]
    """Folder for the shards, their manifest.json and report.json."""
    split: str = "train"
    """What part of the data these pairs are."""
    validation: float = 0.0
    """Share of the recordings to hold out for validation."""
    least_aligned: float = 0.5
    """A pair of which alignment finds less than this share, or cached labels tell less truly, is skipped."""
    check_alignment: bool = False
    """Also align the pairs that have an edit list, and report how well the two agree."""
    workers: int | None = None
    """Processes that work side by side; default: every core."""
    runner: Annotated[Literal["direct", "flink", "dataflow", "spark"] | None, named("RUNNER")] = None
    """Work on Apache Beam instead, by this runner: direct, flink, dataflow or spark."""
    overwrite: bool = False
    """Replace other shards in that folder."""


def run(arguments: Sequence[str]) -> int:
    """Prepares, and says what was used and what was skipped and why."""
    own, beams = _split(arguments)
    options = parse(PrepareOptions, own, "editjax prepare")
    if beams and options.runner is None:
        raise UsageError(f"{beams[0]}: what follows -- is for Apache Beam; name its --runner")
    settings = PrepareSettings(
        split=options.split,
        validation=options.validation,
        least_aligned=options.least_aligned,
        check_alignment=options.check_alignment,
    )
    report = prepare(
        options.pairs, options.shards, settings, options.workers, options.overwrite, options.runner, beams
    )
    for row in report["aligned"]:
        if "doubt" in row:
            print(f"warning: {row['pair']}: its labels {row['doubt']}", file=sys.stderr)
    print(_summary(report, options.shards))
    return 0


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our words and Beam's, which follow after `--`."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _summary(report: dict[str, Any], shards: str) -> str:
    skipped = report["skipped"]
    rows = [f"  skipped {row['pair']}: {row['reason']}" for row in skipped[:MAX_ROWS]]
    if len(skipped) > MAX_ROWS:
        rows.append(f"  … and {len(skipped) - MAX_ROWS} more; {shards}/report.json has them all")
    return "\n".join([f"{len(report['good'])} pairs in {shards}, {len(skipped)} skipped", *rows])
