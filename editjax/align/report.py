"""The files an alignment leaves: pointers, labels per beat, edit list, facts, picture.

In comes an alignment; out go NAME_pointers.npy, NAME_labels.npy, NAME_info.json, NAME.edits.json,
NAME_alignment.png.
"""

import json
import os
from pathlib import Path

import numpy as np

from editjax.align import Alignment, AlignSettings
from editjax.audio import Reader
from editjax.beats import track_beats
from editjax.edits import beat_labels, write_edits
from editjax.errors import CannotCreateError
from editjax.files import atomic_path
from editjax.mel import mel_of
from editjax.picture import draw_alignment

SUFFIXES = ("_pointers.npy", "_labels.npy", "_info.json", ".edits.json", "_alignment.png")


def check_outputs(out_dir: str | Path, name: str, overwrite: bool) -> None:
    """Raises CannotCreateError if the folder cannot be made or, unless `overwrite`, an output exists; makes
    nothing.
    """
    folder = Path(out_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not (there.is_dir() and os.access(there, os.W_OK)):
        reason = "not writable" if there.is_dir() else "not a folder"
        raise CannotCreateError(f"{out_dir}: cannot be made ({there} is {reason}); choose another folder")
    for suffix in () if overwrite else SUFFIXES:
        path = Path(out_dir) / f"{name}{suffix}"
        if os.path.exists(path):
            raise CannotCreateError(f"{path}: exists already; use --overwrite or another folder")


def write_alignment(
    alignment: Alignment,
    raw: Reader,
    edited: Reader,
    out_dir: str | Path,
    name: str,
    settings: AlignSettings,
    overwrite: bool = False,
) -> None:
    """Writes the five files, each complete or not at all, into a folder that is made if need be.

    The raw is read again for its beats.

    `_pointers.npy` is (N,) int32, `_labels.npy` (beats,) uint8 of `EditLabel` for each beat of the raw,
    whose frames are in `_info.json`.
    """
    out_dir, raw_path, edited_path = Path(out_dir), raw.info.path, edited.info.path
    _make_folder(out_dir)
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
    _save_array(out_dir / f"{name}_pointers.npy", alignment.pointers_N, overwrite)
    _save_array(out_dir / f"{name}_labels.npy", labels, overwrite)
    with atomic_path(out_dir / f"{name}_info.json", overwrite) as temporary:
        Path(temporary).write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_edits(alignment.edit_list, out_dir / f"{name}.edits.json", overwrite)
    draw_alignment(
        out_dir / f"{name}_alignment.png",
        alignment.pointers_N,
        alignment.raw_frames,
        settings.mel.frames_per_second,
        f"{edited_path.name} from {raw_path.name}",
        overwrite,
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(
            f"{folder}: cannot be made ({error.strerror}); choose another folder"
        ) from None


def _save_array(path: Path, array: np.ndarray, overwrite: bool) -> None:
    with atomic_path(path, overwrite) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
