"""The super editor beside what needs no model: reconstructed mels beside the raw ones, labels of beats beside
KEEP everywhere and the commonest label.

    python benchmarks/super_editor.py --recordings DIR [--policies NAME,FOLDER] [--sessions DIR] [--out FILE]
    python benchmarks/super_editor.py --quick

On the *produced* edits of the held-out sessions of `quality.py --set styles`, whose recordings no model has
seen. L1 is of mels in [0, 1], over frames that are played, then over those of fades, effects and transitions
alone; `kept right` is the share of frames labelled KEEP within 0.02 of the edited mel. Accuracy and macro-F1
are over all beats, rewards those of `configs/policy_ppo.py`, per beat, duration errors of lengths that labels
make. What a policy earns more than the first one is session by session, ± standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from quality import SETS, folder_of, simulate
from report import finish

from editjax.config import load_config
from editjax.edits import EditLabel
from editjax.errors import UsageError
from editjax.labeller import Examined, duration_errors, examine, label_figures, load_labeller
from editjax.metrics import macro_f1, mean_figures
from editjax.pairs import find_pairs
from editjax.prepare import PrepareSettings, prepare_recording
from editjax.reconstruction import Judged, judged_pair, load_reconstruction, reconstruction_figures
from editjax.records import example

STYLE = "produced"
CONFIG = Path(__file__).parents[1] / "configs" / "policy_ppo.py"


def main() -> int:
    chosen = options()
    judge = load_reconstruction(chosen.reconstruction)
    policies = {
        Path(name).name: load_labeller(name, chosen.reconstruction) for name in chosen.policies.split(",")
    }
    with folder_of(chosen.sessions) as folder:
        held_out = SETS["styles"][0]
        simulate(held_out._replace(styles=(STYLE,)) if chosen.quick else held_out, chosen, Path(folder))
        pairs = list(produced(Path(folder), chosen.count))
    rows = reconstruction_rows(judge, pairs)
    weights, examined = load_config(CONFIG).loss, {}
    for name, policy in policies.items():
        fixed = policy.settings, weights, judge.settings
        examined[name] = [
            jax.device_get(examine(*fixed, policy.params, judge.params, pair, jax.random.key(number)))
            for number, pair in enumerate(pairs)
        ]
    first = next(iter(examined.values()))
    rows += [label_row(name, label_figures(found)) | more(found, first) for name, found in examined.items()]
    rows += constant_rows(first)
    rows += [row for name, found in examined.items() for row in per_label(name, found)]
    finish("super_editor", rows, {}, ("jax", "numpy"), chosen.out, {"sessions": str(len(pairs))})
    return 0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", default="labels", help="label policies: bundled names, or folders")
    parser.add_argument("--reconstruction", default="reconstruct", help="a bundled name, or a folder")
    parser.add_argument("--recordings", type=Path, help="the recordings whose test split is played")
    parser.add_argument("--sessions", type=Path, help="folder to keep the sessions in, and to find them in")
    parser.add_argument("--count", type=int, help="the first so many sessions only")
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate side by side")
    parser.add_argument("--quick", action="store_true", help="a few synthesised sessions, for a smoke test")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    chosen = parser.parse_args()
    if chosen.quick == bool(chosen.recordings):
        raise UsageError("give --recordings DIR for the whole held-out set, or --quick")
    chosen.count = chosen.count or (2 if chosen.quick else SETS["styles"][0].sessions)
    return chosen


def produced(folder: Path, count: int) -> Iterator[Judged]:
    """The produced edit of each session, on the raw axis."""
    for files in find_pairs(folder).recordings[:count]:
        files = files._replace(edits=tuple(e for e in files.edits if e.style in (None, STYLE)))
        recording, _ = prepare_recording(files, PrepareSettings())
        if recording is None:
            continue
        for edit in recording.edits:
            if edit.style == STYLE:
                yield judged_pair(example(recording, edit))


def reconstruction_rows(judge: Any, pairs: list[Judged]) -> list[dict[str, Any]]:
    """The model, and copying the raw mel."""
    found = [reconstruction_figures(judge.settings, judge.params, pair) for pair in pairs]
    mean = mean_figures(found)
    names = {"l1": "L1", "spectral": "spectral", "kept_right": "kept right", "l1_changed": "L1 of effects"}
    rows = [
        {"mels": who, **{shown: mean[name + suffix] for name, shown in names.items()}}
        for who, suffix in (("reconstruction", ""), ("the raw mel", "_copied"))
    ]
    rows[0]["below the raw mel"] = 1.0 - mean["l1_changed"] / mean["l1_changed_copied"]
    return rows


def label_row(name: str, figures: dict[str, float]) -> dict[str, Any]:
    return {
        "labels": name,
        "accuracy": figures["accuracy"],
        "macro-F1": figures["macro_f1"],
        "duration error": figures["duration_error"],
        "reward": figures["reward"],
        "reward, drawn": figures["drawn"],
        "entropy": figures["entropy"],
    }


def more(found: list[Examined], first: list[Examined]) -> dict[str, Any]:
    """What the likeliest labels and drawn ones earn more than those of the first policy, with its error."""
    if found is first:
        return {}
    row = {}
    for name, shown in (("reward", "more"), ("drawn", "more, drawn")):
        gain = np.array([getattr(a, name) - getattr(b, name) for a, b in zip(found, first, strict=True)])
        row[shown] = float(gain.mean())
        row[f"{shown}, ±"] = float(gain.std(ddof=1) / np.sqrt(len(gain)))
    return row


def constant_rows(found: list[Examined]) -> list[dict[str, Any]]:
    """KEEP everywhere, and the commonest label everywhere."""
    true_N = np.concatenate([row.label_U[row.frames_U > 0] for row in found])
    rewards = {EditLabel.KEEP: "all_keep", EditLabel.CUT: "all_cut"}
    commonest = EditLabel(int(np.bincount(true_N).argmax()))
    rows = []
    for name, label in (("KEEP everywhere", EditLabel.KEEP), (f"{commonest.name} everywhere", commonest)):
        same = [row._replace(likeliest_U=np.full_like(row.label_U, label)) for row in found]
        rows.append(
            {
                "labels": name,
                "accuracy": float((true_N == label).mean()),
                "macro-F1": macro_f1(np.full_like(true_N, label), true_N),
                "duration error": float(np.mean(duration_errors(same))),
                "reward": float(np.mean([getattr(row, rewards[label]) for row in found])),
            }
        )
    return rows


def per_label(name: str, found: list[Examined]) -> Iterator[dict[str, Any]]:
    """How well each label is found."""
    true_N, found_N = (
        np.concatenate([getattr(row, field)[row.frames_U > 0] for row in found])
        for field in ("label_U", "likeliest_U")
    )
    for label in list(EditLabel)[: EditLabel.PAD]:
        right = int(((true_N == label) & (found_N == label)).sum())
        wanted, given = int((true_N == label).sum()), int((found_N == label).sum())
        yield {
            "labels of": name,
            "label": label.name,
            "beats": wanted,
            "precision": right / max(given, 1),
            "recall": right / max(wanted, 1),
        }


if __name__ == "__main__":
    sys.exit(main())
