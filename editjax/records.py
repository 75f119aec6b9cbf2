"""One shard record: a raw recording with every edit that was made of it ↔ bytes.

The raw mel is computed and stored once however many edits there are. The bytes are
`u32 header length · header JSON · arrays`, little-endian, no pickle. Arrays of float16 are stored as two byte
planes (all low bytes, then all high bytes), which compress better (measured in `shards.py`); merging them
again takes 0.2 ms for 6,460 frames.
"""

import json
import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from editjax.edits import beat_of_frames, labels_of_frames
from editjax.errors import DataError

_PLANES = "<f2"
_DTYPES = (_PLANES, "<i4", "|u1")
_MAX_HEADER_BYTES = 64 << 20
_LARGEST_BELOW_ONE = np.nextafter(np.float16(1), np.float16(0))


class Edit(NamedTuple):
    """One edit of a recording; `edit_mel_NF` is None when the edit is raw frames and nothing else."""

    id: str
    style: str
    pointers_N: np.ndarray
    labels: np.ndarray
    edit_mel_NF: np.ndarray | None
    meta: dict[str, Any]


class Recording(NamedTuple):
    """What one record holds: mel and phases float16, beat frames and pointers int32, a uint8 label a beat.

    `stems_IMF` are the stems' mels float16, in steps as `mel.pooled` makes them, an eighth of the mel each;
    None where there are none.
    """

    id: str
    mel_TF: np.ndarray
    phase_T3: np.ndarray
    beat_frames: np.ndarray
    edits: tuple[Edit, ...]
    meta: dict[str, Any]
    stems_IMF: np.ndarray | None = None


class Example(NamedTuple):
    """One (recording, edit) pair as the training pipeline reads it."""

    id: str
    style: str
    mel_TF: np.ndarray
    phase_T3: np.ndarray
    pointers_N: np.ndarray
    edit_mel_NF: np.ndarray
    labels: np.ndarray
    beat_frames: np.ndarray
    meta: dict[str, Any]
    stems_IMF: np.ndarray | None


def encode(recording: Recording) -> bytes:
    """A recording with its edits as the bytes of one record."""
    arrays = {"mel": recording.mel_TF, "phase": recording.phase_T3, "beats": recording.beat_frames}
    if recording.stems_IMF is not None:
        arrays["stems"] = recording.stems_IMF
    for k, edit in enumerate(recording.edits):
        arrays[f"pointers/{k}"], arrays[f"labels/{k}"] = edit.pointers_N, edit.labels
        if edit.edit_mel_NF is not None:
            arrays[f"mel/{k}"] = edit.edit_mel_NF
    stored = {name: _stored_array(name, array) for name, array in arrays.items()}
    header = {
        "id": recording.id,
        "meta": recording.meta,
        "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in stored.items()],
        "edits": [{"id": edit.id, "style": edit.style, "meta": edit.meta} for edit in recording.edits],
    }
    head = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([struct.pack("<I", len(head)), head, *map(_to_bytes, stored.values())])


def decode(record: bytes, edits: Sequence[int] | None = None) -> Recording:
    """The recording in one record; only the edits numbered in `edits` where given.

    Raises DataError when the bytes are not such a record.
    """
    try:
        header, offset = read_header(record)
        arrays = _Arrays(record, header, offset)
        wanted = range(len(header["edits"])) if edits is None else edits
        return Recording(
            header["id"],
            arrays("mel"),
            arrays("phase"),
            arrays("beats"),
            tuple(_edit(k, header["edits"][k], arrays) for k in wanted),
            header["meta"],
            arrays("stems") if "stems" in arrays else None,
        )
    except (KeyError, IndexError, TypeError, ValueError, RecursionError, struct.error) as error:
        raise DataError(f"damaged shard record ({error}); build the shards again") from error


def example(recording: Recording, edit: Edit) -> Example:
    """One edit of a recording with its edited mel: stored, or gathered from the raw mel by the pointers."""
    edit_mel_NF = edit.edit_mel_NF
    if edit_mel_NF is None:
        edit_mel_NF = gather_frames(recording.mel_TF, edit.pointers_N)
    return Example(
        edit.id,
        edit.style,
        recording.mel_TF,
        recording.phase_T3,
        edit.pointers_N,
        edit_mel_NF,
        edit.labels,
        recording.beat_frames,
        {**recording.meta, **edit.meta},
        recording.stems_IMF,
    )


def gather_frames(mel_TF: np.ndarray, pointers_N: np.ndarray) -> np.ndarray:
    """The raw frames an edit plays, (N, F); frames without a pointer are the floor, 0."""
    mel_NF = mel_TF[np.maximum(pointers_N, 0)]
    mel_NF[pointers_N < 0] = 0
    return mel_NF


class Edited(NamedTuple):
    """What becomes of every raw frame: how it is heard first in the edit, the label of its beat, and which
    beat it belongs to (0 before the first)."""

    mel_TF: np.ndarray
    label_T: np.ndarray
    beat_T: np.ndarray


def edited_of(example: Example) -> Edited:
    """What the edit of an example makes of every raw frame."""
    pointers_N, n_frames = example.pointers_N, len(example.mel_TF)
    return Edited(
        scatter_frames(example.edit_mel_NF, pointers_N, n_frames),
        labels_of_frames(example.labels, example.beat_frames, pointers_N, n_frames),
        beat_of_frames(example.beat_frames, n_frames),
    )


def scatter_frames(edit_mel_NF: np.ndarray, pointers_N: np.ndarray, n_frames: int) -> np.ndarray:
    """The edited mel on the raw axis, (T, F): each raw frame as it is heard first, 0 where it never is."""
    mel_TF = np.zeros((n_frames, edit_mel_NF.shape[1]), edit_mel_NF.dtype)
    played_N = np.flatnonzero(pointers_N >= 0)[::-1]  # the first of several is written last
    mel_TF[pointers_N[played_N]] = edit_mel_NF[played_N]
    return mel_TF


def half_phases(phase_T3: np.ndarray) -> np.ndarray:
    """Phases as records hold them, float16, where rounding takes none of them to 1."""
    return np.minimum(phase_T3.astype(np.float16), _LARGEST_BELOW_ONE)


def read_header(record: bytes) -> tuple[dict[str, Any], int]:
    """The JSON header of a record and where its arrays begin; raises ValueError, struct.error."""
    (length,) = struct.unpack_from("<I", record)
    if length > min(len(record) - 4, _MAX_HEADER_BYTES):
        raise ValueError("its header is longer than the record")
    return json.loads(record[4 : 4 + length]), 4 + length


def _stored_array(name: str, array: np.ndarray) -> np.ndarray:
    """The array in the little-endian type its name is stored in."""
    kind = name.partition("/")[0]
    dtype = {"mel": _PLANES, "phase": _PLANES, "stems": _PLANES, "labels": "|u1"}.get(kind, "<i4")
    return np.ascontiguousarray(array, dtype)


def _to_bytes(array: np.ndarray) -> bytes:
    if array.dtype.str != _PLANES:
        return array.tobytes()
    return np.ascontiguousarray(array.reshape(-1, 1).view(np.uint8).T).tobytes()


class _Arrays:
    """The arrays of one record by name, read when asked for."""

    def __init__(self, record: bytes, header: dict[str, Any], offset: int):
        self.record = record
        self.places: dict[str, tuple[str, tuple[int, ...], int]] = {}
        for name, dtype, shape in header["arrays"]:
            if dtype not in _DTYPES or any(size < 0 for size in shape):
                raise ValueError(f"array {name} of type {dtype}, shape {shape}")
            self.places[name] = dtype, tuple(shape), offset
            offset += math.prod(shape) * np.dtype(dtype).itemsize
        if offset != len(record):
            raise ValueError(f"{len(record)} bytes where the header promises {offset}")

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __call__(self, name: str) -> np.ndarray:
        dtype, shape, offset = self.places[name]
        count = math.prod(shape)
        if dtype != _PLANES:
            return np.frombuffer(self.record, dtype, count, offset).reshape(shape).copy()
        low, high = np.frombuffer(self.record, np.uint8, 2 * count, offset).reshape(2, count)
        merged = high.astype("<u2")
        merged <<= 8
        merged |= low
        return merged.view(_PLANES).reshape(shape)


def _edit(k: int, fields: dict[str, Any], arrays: _Arrays) -> Edit:
    pointers_N, labels = arrays(f"pointers/{k}"), arrays(f"labels/{k}")
    edit_mel_NF = arrays(f"mel/{k}") if f"mel/{k}" in arrays else None
    return Edit(fields["id"], fields["style"], pointers_N, labels, edit_mel_NF, fields["meta"])
