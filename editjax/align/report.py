"""The files an alignment leaves: pointers, labels per beat, edit list, facts, picture.

In comes an alignment; out go NAME_pointers.npy, NAME_labels.npy, NAME_info.json, NAME.edits.json,
NAME_alignment.png.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from editjax.align import Alignment, AlignSettings
from editjax.audio import Reader
from editjax.beats import track_beats
from editjax.edits import beat_labels, write_edits
from editjax.mel import mel_of
from editjax.picture import draw_alignment


class Files(NamedTuple):
    """Where the parts of an alignment go."""

    pointers: Path
    labels: Path
    info: Path
    edits: Path
    picture: Path


def files_of(folder: Path, name: str) -> Files:
    """The files of the alignment of the edited track `name`."""
    suffixes = ("_pointers.npy", "_labels.npy", "_info.json", ".edits.json", "_alignment.png")
    return Files(*(folder / f"{name}{suffix}" for suffix in suffixes))


def write_alignment(
    alignment: Alignment, raw: Reader, edited: Reader, files: Files, settings: AlignSettings
) -> None:
    """Writes the five files over whatever is there. The raw is read again for its beats.

    The pointers are (N,) int32, the labels (beats,) uint8 of `EditLabel` for each beat of the raw, whose
    frames are in the facts.
    """
    raw_path, edited_path = raw.info.path, edited.info.path
    grid = settings.mel.grid(alignment.edit_list.source.sample_rate)
    beats = track_beats(mel_of(raw, settings.mel)[0])
    effects = [(start, stop) for start, stop in alignment.edit_list.editor["effects"]]
    labels = beat_labels(
        alignment.edit_list, beats.beat_frames, alignment.raw_frames, grid=grid, effects=effects
    )
    info = {
        "raw": str(raw_path),
        "edited": str(edited_path),
        "raw_frames": alignment.raw_frames,
        "edit_frames": len(alignment.pointers_N),
        "alignment_ratio": round(alignment.alignment_ratio, 6),
        "mean_confidence": round(float(alignment.confidence_N.mean()), 6)
        if len(alignment.pointers_N)
        else 0.0,
        "frames_per_second": settings.mel.frames_per_second,
        "beat_frames": [int(frame) for frame in beats.beat_frames],
        "runs": [run._asdict() for run in alignment.runs],
    }
    np.save(files.pointers, alignment.pointers_N, allow_pickle=False)
    np.save(files.labels, labels, allow_pickle=False)
    files.info.write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_edits(alignment.edit_list, files.edits, overwrite=True)
    draw_alignment(
        files.picture,
        alignment.pointers_N,
        alignment.raw_frames,
        settings.mel.frames_per_second,
        f"{edited_path.name} from {raw_path.name}",
        overwrite=True,
    )
