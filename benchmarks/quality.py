"""How good the edits are, on a frozen set of simulated sessions, beside editors that need no model.

    python benchmarks/quality.py --recordings DIR [--set NAME] [--model NAME|FOLDER] [--out FILE]
    python benchmarks/quality.py --quick

The sets are `whole`, 100 sessions of one to four minutes in the style *final*; `long`, its sibling of ten
minutes; `lengths`, as many sessions each of 1, 3, 10 and 30 minutes, scored apart; `styles`, sessions with an
edit in every style; and `--quick`, ten sessions that are synthesised throughout. They are made anew (or read
from `--sessions`, where they stay) from the test split of a folder of recordings, and checked first against
`heldout.json`: the SHA-256 of every raw recording's samples and of its true edits. Another version of NumPy
rounds a few samples otherwise (NumPy 2.4 and 2.5: one step of 16 bits in 0.06 % of them), so a recording also
agrees when its length and its levels do; how many agree bit for bit is reported. `--freeze` writes the list;
do that before training and never after.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from report import finish

from editjax.cli import complain
from editjax.errors import DataError, EditjaxError, UsageError
from editjax.styles import STYLES

if TYPE_CHECKING:
    from editjax.network import PointerNetwork
    from editjax.scoreboard import Board

HELDOUT = Path(__file__).parent / "heldout.json"
SPLIT = "test"
PARTS = 16  # of a recording, whose levels are compared
LEVEL_STEPS, LEVEL_SHARE = 0.05, 1e-3  # levels (RMS, in 16-bit steps) may differ by this, plus this share


class HeldOut(NamedTuple):
    """A frozen set: how its sessions are simulated, and the lengths that edits of them are asked for.

    `minutes` names one of several parts of a set, which has a folder of its own.
    """

    seed: int
    sessions: int
    lengths: tuple[float, ...] = ()
    styles: tuple[str, ...] = ("final",)
    shortest_s: float = 60.0
    longest_s: float = 240.0
    minutes: int = 0

    def folder(self, sessions: str | Path) -> Path:
        return Path(sessions) / f"{self.minutes}_minutes" if self.minutes else Path(sessions)


def of_minutes(seed: int, minutes: int) -> HeldOut:
    return HeldOut(seed, 12, shortest_s=51.0 * minutes, longest_s=69.0 * minutes, minutes=minutes)


SETS = {
    "whole": (HeldOut(20_260, 100, lengths=(0.5, 0.75, 1.25, 1.5)),),
    "long": (HeldOut(20_261, 24, shortest_s=590.0, longest_s=620.0),),
    "lengths": tuple(of_minutes(20_263 + k, minutes) for k, minutes in enumerate((1, 3, 10, 30))),
    "styles": (HeldOut(20_262, 40, styles=STYLES),),
    "quick": (HeldOut(20_260, 10, lengths=(0.5, 1.5)),),
}


def main() -> int:
    chosen = options()
    from editjax.export import load_bundle
    from editjax.network import load_model

    # What is missing is refused before the work, not after.
    network = None if chosen.freeze else load_model(chosen.model)
    expected = {} if chosen.freeze else frozen(chosen)
    with folder_of(chosen.sessions) as folder:
        for part in SETS[chosen.set]:
            simulate(part, chosen, part.folder(folder))
        prints = prints_of(folder)
        if network is None:
            freeze(prints, chosen)
            return 0
        exact = check(prints, expected)
        rows, ratios = evaluate(folder, network, chosen)
    ratios["sessions that agree bit for bit"] = exact
    name = "quality" if chosen.set == "whole" else f"quality-{chosen.set}"
    sha256 = load_bundle(chosen.model).config["sha256"]
    about = {"set": chosen.set, "model": f"{Path(chosen.model).name} ({sha256[:12]}…)"}
    finish(name, rows, ratios, ("jax", "numpy", "scipy", "soundfile"), chosen.out, about)
    return 0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=SETS, default="whole", help="which sessions")
    parser.add_argument("--quick", action="store_true", help="ten synthesised sessions, for a smoke test")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    parser.add_argument("--model", default="final", help="a bundled model's name, or a model's folder")
    parser.add_argument("--recordings", type=Path, help="the recordings whose test split is played")
    parser.add_argument("--sessions", type=Path, help="folder to keep the sessions in, and to find them in")
    parser.add_argument("--count", type=int, help="score the first so many sessions only (of each length)")
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate side by side")
    parser.add_argument("--freeze", action="store_true", help="write heldout.json from what is simulated")
    chosen = parser.parse_args()
    chosen.set = "quick" if chosen.quick else chosen.set
    sessions = SETS[chosen.set][0].sessions
    chosen.count = min(chosen.count or sessions, sessions)
    if chosen.quick == bool(chosen.recordings):
        raise UsageError("give --recordings DIR for the whole held-out set, or --quick")
    return chosen


def folder_of(sessions: Path | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext(sessions) if sessions else tempfile.TemporaryDirectory()


def simulate(held_out: HeldOut, chosen: argparse.Namespace, folder: Path) -> None:
    """Makes the sessions, unless they are there."""
    from editjax.simulate import SimulateSettings, simulate_folder

    found = len(list(folder.glob("*_raw.flac")))
    if found >= chosen.count:
        return
    if found:
        raise DataError(f"{folder}: holds {found} sessions instead of {chosen.count}; name an empty folder")
    settings = SimulateSettings(
        min_length_s=held_out.shortest_s,
        max_length_s=held_out.longest_s,
        split=SPLIT if chosen.recordings else "",
        styles=held_out.styles,
    )
    simulate_folder(folder, chosen.count, held_out.seed, settings, chosen.recordings, chosen.workers)


def prints_of(folder: str | Path) -> dict[str, Any]:
    """What each session is known by: its samples, decoded to 16 bits, and the spans its true edit plays."""
    import numpy as np
    import soundfile

    from editjax.edits import read_edits

    prints = {}
    for raw in sorted(Path(folder).rglob("*_raw.flac")):
        id = raw.name.removesuffix("_raw.flac")
        samples_S, _ = soundfile.read(raw, dtype="int16")
        lists = [read_edits(path) for path in sorted(raw.parent.glob(f"{id}*.edits.json"))]
        spans = [[s.nominal_start, s.nominal_stop] for edit_list in lists for s in edit_list.segments]
        parts = np.array_split(samples_S.astype(np.float64), PARTS)
        prints[id] = {
            "samples": len(samples_S),
            "sha256": hashlib.sha256(samples_S.astype("<i2").tobytes()).hexdigest(),
            "levels": [round(float(np.sqrt(np.mean(part**2))), 2) for part in parts],
            "true_edit": hashlib.sha256(json.dumps(spans).encode()).hexdigest(),
        }
    return prints


def freeze(prints: dict[str, Any], chosen: argparse.Namespace) -> None:
    lists = json.loads(HELDOUT.read_text()) if HELDOUT.exists() else {}
    lists[chosen.set] = prints
    named = [
        f'"{name}": {{\n'
        + ",\n".join(f"{json.dumps(id)}: {json.dumps(lists[name][id])}" for id in lists[name])
        for name in sorted(lists)
    ]
    HELDOUT.write_text("{\n" + "\n},\n".join(named) + "\n}\n}\n")  # a session a line
    print(f"{HELDOUT}: {len(prints)} sessions frozen as {chosen.set!r}", file=sys.stderr)


def frozen(chosen: argparse.Namespace) -> dict[str, Any]:
    lists = json.loads(HELDOUT.read_text()) if HELDOUT.exists() else {}
    if chosen.set not in lists:
        raise DataError(f"{HELDOUT}: holds no list {chosen.set!r}; write it with --freeze")
    return lists[chosen.set]


def check(prints: dict[str, Any], expected: dict[str, Any]) -> float:
    """The share of the sessions that agree bit for bit; ends the benchmark unless all agree."""
    for id, found in prints.items():
        wanted = expected.get(id, {"samples": 0, "true_edit": "", "levels": []})
        same = all(found[what] == wanted[what] for what in ("samples", "true_edit"))
        if not same or any(map(differ, found["levels"], wanted["levels"])):
            raise DataError(
                f"{id}: is not the session frozen in {HELDOUT.name}; simulate with the recordings and the "
                "version of editjax that it was frozen with"
            )
    exact = sum(found["sha256"] == expected[id]["sha256"] for id, found in prints.items())
    print(f"{len(prints)} of {len(expected)} frozen sessions agree, {exact} bit for bit", file=sys.stderr)
    return exact / len(prints)


def differ(level: float, wanted: float) -> bool:
    return abs(level - wanted) > LEVEL_STEPS + LEVEL_SHARE * wanted


def evaluate(
    folder: str | Path, network: PointerNetwork, chosen: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of the table and the figures beside it, of every part of the set."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    ious: dict[int, float] = {}
    for part in SETS[chosen.set]:
        by_style, facts = examined(part, part.folder(folder), network, chosen.count)
        rows += [
            ({"minutes": part.minutes} if part.minutes else {})
            | ({"style": style} if len(by_style) > 1 else {})
            | row
            for style, editors_board in by_style.items()
            for row in rows_of(editors_board)
        ]
        editors = next(iter(by_style.values()))
        where = f", {part.minutes} minutes" if part.minutes else ""
        ratios |= {f"{name}{where}": ratio for name, ratio in ratios_of(editors, facts).items()}
        ious[part.minutes] = next(iter(editors.values()))["kept_iou"].mean
    first, *others = ious
    ratios |= {f"kept IoU, {minutes} minutes - {first}": ious[minutes] - ious[first] for minutes in others}
    return rows, ratios


def examined(
    part: HeldOut, folder: Path, network: PointerNetwork, count: int
) -> tuple[dict[str, Board], dict[str, Any]]:
    """The figures of one part by style, and what its sessions are like."""
    from editjax import evaluate as ours
    from editjax.scoreboard import boards

    def examine(task: ours.Task) -> dict[str, float]:
        row = ours.teacher_forced(network, task) | ours.obedience(network, task)
        return row | ours.at_lengths(network, task, part.lengths) if part.lengths else row

    settings = ours.EvaluateSettings(limit=count, beats=network.beats)
    editors = ours.editors_beside(network)
    evaluation = ours.evaluate(folder, editors, settings, examine, quiet=False)
    if evaluation.skipped:
        raise DataError(f"{evaluation.skipped[0]['pair']}: skipped, {evaluation.skipped[0]['reason']}")
    return boards(evaluation.rows), ours.audit(evaluation.facts)


def rows_of(editors: Board) -> list[dict[str, Any]]:
    """A row a figure: the model's mean, its 95 % interval and extremes, then the others' means."""
    model, *others = editors
    rows = []
    for name, estimate in editors[model].items():
        if estimate.edits:
            known = {other: editors[other].get(name) for other in others}
            means = {other: found.mean for other, found in known.items() if found and found.edits}
            rows.append({"figure": name, model: estimate.mean, **estimate._asdict(), **means})
            del rows[-1]["mean"]
    return rows


def ratios_of(editors: Board, facts: dict[str, Any]) -> dict[str, float]:
    """How far the model is ahead, and what share of the set is what."""
    model, *others = editors
    iou = {editor: figures["kept_iou"].mean for editor, figures in editors.items()}
    ahead = {f"kept IoU above {other}": iou[model] - iou[other] for other in others}
    return {
        **ahead,
        "median keep ratio": facts["median_keep_ratio"],
        "spoiled takes in cut time": facts["spoiled_share_of_cut"],
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EditjaxError as error:
        sys.exit(complain(error))
