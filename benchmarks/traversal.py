"""What the space of styles holds: dimensions in use, and how edits change along lines through it.

    python benchmarks/traversal.py --shards DIR [--model NAME|FOLDER] [--out FILE]
    python benchmarks/traversal.py --quick

DIR are shards of recordings that the model was not trained on, with an edit in every style, as made by

    editjax simulate DATA --split valid --recordings R --styles final tight loose radio extended produced
    editjax prepare DATA SHARDS --split validation

Rows of three kinds. *dimension*: the variance of the inferred styles, between all edits and within a style
(above 0.01 a dimension is active, Burda et al. 2016), and the kept-frame IoU of edits in the style *final*
with those two standard deviations of the prior to either side. *line*: edits at points between the middles of
two named styles and beyond. *example*: how often an edit in the style inferred from another session's true
edit is nearest to the true edit in that style.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from report import finish, use_one_core

from editjax.cli import complain
from editjax.errors import EditjaxError, UsageError

if TYPE_CHECKING:
    from editjax.network import PointerNetwork

STYLE = "final"
LINES = (("tight", "final"), ("final", "loose"), ("final", "radio"), ("final", "extended"))
SHARES = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
DEVIATIONS = (-2.0, 2.0)


class Session(NamedTuple):
    """A recording with its true edits by style, and the style (Z,) inferred from each."""

    mel_TF: np.ndarray
    phase_T3: np.ndarray
    true: dict[str, np.ndarray]
    points: dict[str, np.ndarray]


def main() -> int:
    """Measure, and print the table."""
    chosen = arguments()
    use_one_core()
    from editjax.models.style import ACTIVE
    from editjax.network import PointerNetwork, load_model
    from editjax.styles import STYLES

    network = load_model(chosen.model)
    if chosen.quick:  # whatever the model offers
        network = PointerNetwork(network.settings, network.params, network.mel, styles=STYLES)
    if len(network.styles) < 2:
        raise UsageError(f"{chosen.model}: knows one style only; name a model of several with --model")
    with tempfile.TemporaryDirectory() as folder:
        shards = quick_shards(Path(folder)) if chosen.quick else chosen.shards
        sessions = list(sessions_of(shards, chosen.count, network))
    dimensions = list(dimension_rows(network, sessions))
    rows = [*dimensions, *line_rows(network, sessions), *example_rows(network, sessions)]
    ratios = {
        f"active dimensions, {where}": sum(row[where] > ACTIVE for row in dimensions) / len(dimensions)
        for where in ("between edits", "within a style")
    }
    finish("traversal", rows, ratios, ["jax", "numpy"], chosen.out)
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, help="edits in every style")
    parser.add_argument("--model", default="styles", help="a bundled model's name, or a model's folder")
    parser.add_argument("--count", type=int, default=16, help="sessions used, the first of the shards")
    parser.add_argument("--quick", action="store_true", help="two short sessions, for a smoke test")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    chosen = parser.parse_args()
    if chosen.quick == bool(chosen.shards):
        parser.error("give --shards DIR, or --quick")
    return chosen


def quick_shards(folder: Path) -> Path:
    """Shards of two synthesised sessions in every style."""
    from editjax.prepare import prepare
    from editjax.simulate import SimulateSettings, simulate_folder
    from editjax.styles import STYLES

    settings = SimulateSettings(min_length_s=30.0, max_length_s=40.0, styles=STYLES)
    simulate_folder(folder / "sessions", 2, 5, settings)
    prepare(folder / "sessions", folder / "shards", workers=1)
    return folder / "shards"


def sessions_of(shards: Path, count: int, network: PointerNetwork) -> Iterator[Session]:
    """The first recordings of some shards that have an edit in every style the model knows."""
    from editjax.records import example
    from editjax.shards import read

    source = read(shards)
    records = sorted({entry.record for entry in source.entries})
    for record in records[:count]:
        edits = [entry.edit for entry in source.entries if entry.record == record]
        recording = source.recording(record, edits)
        found = {edit.style: example(recording, edit) for edit in recording.edits}
        if not set(network.styles) <= found.keys():
            continue
        mel_TF = recording.mel_TF.astype(np.float32)
        yield Session(
            mel_TF,
            recording.phase_T3.astype(np.float32),
            {style: found[style].pointers_N for style in network.styles},
            {
                style: network.style_of(
                    found[style].edit_mel_NF.astype(np.float32), found[style].pointers_N, len(mel_TF)
                )
                for style in network.styles
            },
        )


def dimension_rows(network: PointerNetwork, sessions: Sequence[Session]) -> Iterator[dict[str, Any]]:
    """A row a dimension of the space."""
    points_NSZ = np.stack([[one.points[style] for style in network.styles] for one in sessions])
    between_Z, within_Z = points_NSZ.var((0, 1)), points_NSZ.var(0).mean(0)
    middle_Z = network.point_of(STYLE)
    plain = edits_of(network, sessions, middle_Z)
    for z, (between, within) in enumerate(zip(between_Z, within_Z, strict=True)):
        row = {
            "row": "dimension",
            "case": z,
            "between edits": float(between),
            "within a style": float(within),
        }
        for deviations in DEVIATIONS:
            step_Z = np.where(np.arange(len(middle_Z)) == z, deviations, 0.0)
            row[f"IoU at {deviations:+g}"] = alike(
                sessions, plain, edits_of(network, sessions, middle_Z + step_Z)
            )
        yield row


def line_rows(network: PointerNetwork, sessions: Sequence[Session]) -> Iterator[dict[str, Any]]:
    """A row a point on a line between two named styles; `length` is over that of the style *final*."""
    from editjax.metrics import joins_of

    plain = edits_of(network, sessions, network.point_of(STYLE))
    for start, end in (line for line in LINES if set(line) <= set(network.styles)):
        start_Z, end_Z = network.point_of(start), network.point_of(end)
        for share in SHARES:
            edits = edits_of(network, sessions, (1 - share) * start_Z + share * end_Z)
            yield {
                "row": "line",
                "case": f"{start} to {end}",
                "share": share,
                "length": float(
                    np.mean([len(a) / max(len(b), 1) for a, b in zip(edits, plain, strict=True)])
                ),
                "joins": float(np.mean([len(joins_of(edit)) for edit in edits])),
                "played again": float(
                    np.mean([1 - len(np.unique(edit)) / max(len(edit), 1) for edit in edits])
                ),
                "IoU with final": alike(sessions, plain, edits),
            }


def example_rows(network: PointerNetwork, sessions: Sequence[Session]) -> Iterator[dict[str, Any]]:
    """A row a style: edits by example, the example from the session before."""
    from editjax.metrics import played_iou

    for style in network.styles:
        obeyed = []
        for before, one in zip([sessions[-1], *sessions[:-1]], sessions, strict=True):
            (made_N,) = edits_of(network, [one], before.points[style])
            near = {name: played_iou(made_N, true_N, len(one.mel_TF)) for name, true_N in one.true.items()}
            obeyed.append(near[style] >= max(near.values()))
        yield {"row": "example", "case": style, "obeyed": float(np.mean(obeyed))}


def edits_of(network: PointerNetwork, sessions: Sequence[Session], point_Z: np.ndarray) -> list[np.ndarray]:
    """The edit of every session at a point in the space of styles, as pointers."""
    return [
        network.edit_pointers(one.mel_TF, one.phase_T3, style=point_Z.astype(np.float32)).pointers_N
        for one in sessions
    ]


def alike(sessions: Sequence[Session], some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Mean kept-frame IoU of two edits of every session."""
    from editjax.metrics import kept_iou

    return float(
        np.mean([kept_iou(a, b, len(one.mel_TF)) for one, a, b in zip(sessions, some, others, strict=True)])
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EditjaxError as error:
        sys.exit(complain(error))
