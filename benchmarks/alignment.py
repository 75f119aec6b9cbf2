"""Alignment of planted edits: frames found, clean and processed, against plain DTW; time and memory of long
files.

python benchmarks/alignment.py [--quick] [--out FILE] [--recordings DIR] [--pairs DIR]

Each edited track is made of six pieces of a raw of about a minute, reached by cuts, loops and reorders. All
are aligned as they are and again after one of five processes. A frame is right within one frame of what it
plays, or at another place whose samples correlate at 0.999 or more. `--recordings` is a folder of recordings
to plant edits in; without it the raws are synthesised. `--pairs` is a folder with a `pairs.csv` of real
edits (columns before, after, offset_s, sec_before, sec_after, pair): a pair is right when 95 % of what both
have lies at that offset.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import finish, require_agreement, use_one_core

use_one_core()

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
from planting import RATE_HZ, Planted, plant, processes, raw_of, right_frames  # noqa: E402

from editjax.align import Alignment, align  # noqa: E402
from editjax.audio import ArrayReader, Reader  # noqa: E402
from editjax.mel import mel_spectrogram  # noqa: E402

SEED = 20
TRACKS, QUICK_TRACKS = 210, 6
PIECES = 6
RAW_S = (30.0, 75.0)
DTW_TRACKS = 10
LONG_RAW_S, LONG_EDIT_S, LONG_PIECES = 600.0, 120.0, 40
SILENT_MEL = 1e-3
"""Least mel given to DTW: the cosine of digital silence is not a number."""
OFFSET_TOLERANCE_S = 512 / 22050
MEASURED_CHILD = """
import sys, time
from editjax.align import align
from editjax.audio import Reader
start = time.process_time()
with Reader(sys.argv[1]) as raw, Reader(sys.argv[2]) as edited:
    alignment = align(raw, edited)
seconds = time.process_time() - start
peak_kb = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak_kb) / 1024, alignment.alignment_ratio)
"""


def main() -> None:
    """Prove that the sample-exact offset is found, then count right frames case by case."""
    chosen = _options()
    tracks = QUICK_TRACKS if chosen.quick else TRACKS
    _prove_agreement(chosen.recordings)
    others: list[dict[str, Any]] = []
    if not chosen.quick:
        others.append(_dtw_row(chosen.recordings))
        others += [_long_row(chosen.recordings, process) for process in ("clean", "MP3")]
    if chosen.pairs:
        others += _pairs_rows(chosen.pairs)
    rows = _planted_rows(tracks, chosen.recordings) + others
    ratios = {f"right frames, {row['case']}": row["right"] for row in rows if "right" in row}
    finish("alignment", rows, ratios, ["numpy", "scipy", "soundfile", "soxr", "librosa"], chosen.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TRACKS} tracks instead of {TRACKS}")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    parser.add_argument("--recordings", type=Path, help="folder of recordings to plant edits in")
    parser.add_argument("--pairs", type=Path, help="folder of real before/after pairs with a pairs.csv")
    return parser.parse_args()


def _planted(track: int, folder: Path | None) -> tuple[np.random.Generator, Planted]:
    rng = np.random.default_rng((SEED, track))
    return rng, plant(rng, raw_of(rng, rng.uniform(*RAW_S), folder), PIECES)


def _prove_agreement(folder: Path | None) -> None:
    """The offset of an excerpt must be that of brute-force correlation."""
    rng = np.random.default_rng(SEED)
    raw_S = raw_of(rng, 20.0, folder)
    start = int(rng.integers(0, 15 * RATE_HZ))
    edit_S = raw_S[start : start + 2 * RATE_HZ]
    found = align(ArrayReader(raw_S, RATE_HZ), ArrayReader(edit_S, RATE_HZ)).runs[0].offset
    windows = np.lib.stride_tricks.sliding_window_view(raw_S, 4096)
    norms = np.sqrt(np.convolve(raw_S.astype(np.float64) ** 2, np.ones(4096), "valid"))
    brute = int(np.argmax(windows @ edit_S[:4096] / np.maximum(norms, 1e-9)))
    require_agreement("offset by brute force", abs(found - brute), 0)


def _planted_rows(tracks: int, folder: Path | None) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    kinds: dict[str, list[float]] = {}
    names = list(processes())
    for track in range(tracks):
        rng, planted = _planted(track, folder)
        right_N = _count(rows, "clean", planted, planted.edit_S)
        for kind, part in _by_kind(planted, right_N):
            kinds.setdefault(kind, []).extend(part)
        name = names[track % len(names)]
        _count(rows, name, planted, processes()[name](rng, planted.edit_S))
        print(f"\r{track + 1}/{tracks} tracks", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    ordered = [rows[case] for case in ("clean", *names) if case in rows]
    processed = _together("processed, all five", [row for row in ordered if row["case"] != "clean"])
    parts = [
        {"case": f"clean, after a {kind}", "frames": len(part), "right": float(np.mean(part))}
        for kind, part in sorted(kinds.items())
    ]
    return [_finished(row) for row in [*ordered, processed]] + parts


def _count(rows: dict[str, dict[str, Any]], case: str, planted: Planted, edit_S: np.ndarray) -> np.ndarray:
    """Aligns one track and adds what was found to the row of its case; which frames are right (N,)."""
    start = time.process_time()
    alignment = align(ArrayReader(planted.raw_S, RATE_HZ), ArrayReader(edit_S.astype(np.float32), RATE_HZ))
    seconds = time.process_time() - start
    right_N = right_frames(planted, alignment.pointers_N)
    new = {
        "tracks": 0,
        "joins": 0,
        "frames": 0,
        "right_frames": 0,
        "aligned_frames": 0.0,
        "worst": 1.0,
        "cpu_s": 0.0,
    }
    row = rows.setdefault(case, {"case": case, **new})
    row["tracks"] += 1
    row["joins"] += len(planted.pieces) - 1
    row["frames"] += len(right_N)
    row["right_frames"] += int(right_N.sum())
    row["aligned_frames"] += alignment.alignment_ratio * len(right_N)
    row["worst"] = min(row["worst"], float(right_N.mean()))
    row["cpu_s"] += seconds
    return right_N


def _together(case: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key not in ("case", "worst")}
    return {"case": case, **total, "worst": min(row["worst"] for row in rows)}


def _finished(row: dict[str, Any]) -> dict[str, Any]:
    """Shares and seconds a track in place of sums."""
    shares = {
        "right": row["right_frames"] / row["frames"],
        "alignment_ratio": row["aligned_frames"] / row["frames"],
    }
    kept = {key: row[key] for key in ("case", "tracks", "joins", "frames")}
    return kept | shares | {"worst_track": row["worst"], "cpu_s_a_track": row["cpu_s"] / row["tracks"]}


def _by_kind(planted: Planted, right_N: np.ndarray) -> list[tuple[str, list[float]]]:
    """The right frames of each piece, with how it was reached."""
    ends = np.cumsum([stop - start for start, stop in planted.pieces]) * 22050 // (512 * RATE_HZ)
    starts = np.concatenate([[0], ends[:-1]])
    spans = zip(planted.kinds, starts, ends, strict=True)
    return [(kind, right_N[start:end].astype(float).tolist()) for kind, start, end in spans]


def _dtw_row(folder: Path | None) -> dict[str, Any]:
    """Plain subsequence DTW of mels (librosa) on the first clean tracks."""
    from librosa.sequence import dtw

    right, frames, seconds = 0, 0, 0.0
    for track in range(DTW_TRACKS):
        _, planted = _planted(track, folder)
        mels = (mel_spectrogram(samples_S[::2]) for samples_S in (planted.raw_S, planted.edit_S))
        raw_TF, edit_NF = (np.maximum(mel_TF, SILENT_MEL) for mel_TF in mels)
        start = time.process_time()
        path = dtw(edit_NF.T, raw_TF.T, metric="cosine", subseq=True)[1][::-1]
        seconds += time.process_time() - start if track else 0.0  # the first call compiles
        pointers_N = np.full(len(edit_NF), -3)
        pointers_N[path[:, 0]] = path[:, 1]
        right_N = right_frames(planted, pointers_N)
        right, frames = right + int(right_N.sum()), frames + len(right_N)
    case = {"case": "plain DTW (librosa), clean", "tracks": DTW_TRACKS, "frames": frames}
    return case | {"right": right / frames, "cpu_s_a_track": seconds / (DTW_TRACKS - 1)}


def _long_row(folder: Path | None, process: str) -> dict[str, Any]:
    """Ten minutes of raw against two of edit, in a process of its own: CPU seconds and peak memory."""
    rng = np.random.default_rng((SEED, 1_000_000))
    planted = plant(rng, raw_of(rng, LONG_RAW_S, folder), LONG_PIECES)
    edit_S = planted.edit_S[: round(LONG_EDIT_S * RATE_HZ)]
    if process != "clean":
        edit_S = processes()[process](rng, edit_S)
    with tempfile.TemporaryDirectory() as scratch:
        paths = [f"{scratch}/raw.wav", f"{scratch}/edit.wav"]
        for path, samples_S in zip(paths, (planted.raw_S, edit_S), strict=True):
            soundfile.write(path, samples_S, RATE_HZ, subtype="PCM_24")
        command = [sys.executable, "-c", MEASURED_CHILD, *paths]
        seconds, peak_mb, ratio = map(float, subprocess.check_output(command, text=True).split())
    case = {"case": f"10 min raw, 2 min edit, {process}", "tracks": 1, "joins": LONG_PIECES - 1}
    return case | {"alignment_ratio": ratio, "cpu_s_a_track": seconds, "peak_mb": peak_mb}


def _pairs_rows(folder: Path) -> list[dict[str, Any]]:
    """Real edits: how many are found at the offset the table gives, and a row for each that is not."""
    missed, pairs, seconds = [], 0, 0.0
    with open(folder / "pairs.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            start = time.process_time()
            with Reader(folder / row["before"]) as raw, Reader(folder / row["after"]) as edited:
                alignment = align(raw, edited)
                rate_hz = raw.info.sample_rate_hz
            seconds += time.process_time() - start
            pairs += 1
            if not _at_offset(alignment, rate_hz, row):
                missed.append({"case": "real pair missed", "pair": row["pair"], "edit": row["edit"]})
    case = {"case": "real pairs", "tracks": pairs, "right": 1 - len(missed) / pairs}
    return [case | {"cpu_s_a_track": seconds / pairs}, *missed]


def _at_offset(alignment: Alignment, rate_hz: int, row: dict[str, str]) -> bool:
    offset_s = float(row["offset_s"])
    shared_s = min(float(row["sec_after"]), float(row["sec_before"]) - offset_s) - max(0.0, -offset_s)
    near = [run for run in alignment.runs if abs(run.offset / rate_hz - offset_s) <= OFFSET_TOLERANCE_S]
    return sum(run.stop - run.start for run in near) >= 0.95 * shared_s * rate_hz


if __name__ == "__main__":
    main()
