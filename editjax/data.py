"""Shards → batches for training, through Grain.

Batch number i is a pure function of (shards, settings, i): a plan names its bucket and its examples, and each
example draws its variation from a generator seeded by (seed, i, row). So the position of a run is one
integer, any batch can be made again alone, and threads change nothing. Examples of like length share a
bucket, whose shapes are static: one compilation a bucket.

Grain imports JAX and takes about two seconds; it is imported when batches are asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from editjax.augment import AugmentSettings, Piece, augment, crop
from editjax.edits import PAD, STOP, EditLabel, structure_of
from editjax.errors import DataError, UsageError
from editjax.events import UNKNOWN, kinds_of
from editjax.mel import STEM_FRAMES, MelSettings
from editjax.records import edited_of, example
from editjax.shards import Entry, Source, read
from editjax.styles import STYLES

IGNORE = -1
"""In `structure_BT`: no label, because the frame is padding."""

_FOREVER = 1 << 62


@dataclass(frozen=True)
class DataSettings:
    """Which examples are read, and how they are shaped into batches.

    `buckets` are (frames, steps): a batch holds `batch_frames // frames` examples (at least one, rounded down
    to a multiple of `batch_multiple`), whose edits have fewer than `steps` frames. An example goes to the
    first bucket that holds it; those that no bucket holds are cropped to the last (`augment.crop` says how).
    Of an example with more stems than `most_stems` so many are drawn; 0 reads none. With `edited` batches
    also hold what becomes of every raw frame.
    """

    batch_frames: int = 32_768
    batch_multiple: int = 1
    buckets: tuple[tuple[int, int], ...] = (
        (2048, 1024),
        (4096, 2048),
        (6144, 3072),
        (8192, 4096),
        (11264, 5632),
    )
    styles: tuple[str, ...] = ()
    split: str | None = None
    target_ask_probability: float = 0.5
    most_stems: int = 8
    edited: bool = False
    augment: AugmentSettings | None = field(default_factory=AugmentSettings)
    shuffle: bool = True
    seed: int = 0
    threads: int = 4
    prefetch_batches: int = 8

    def __post_init__(self) -> None:
        ascending = all(list(sizes) == sorted(sizes) for sizes in zip(*self.buckets, strict=True))
        if not self.buckets or not ascending:
            raise UsageError(f"buckets {self.buckets}: give (frames, steps), both in ascending order")
        if min(min(bucket) for bucket in self.buckets) < 2:
            raise UsageError(f"buckets {self.buckets}: a bucket needs at least two frames and two steps")
        if unknown := set(self.styles) - set(STYLES):
            raise UsageError(f"unknown styles {sorted(unknown)}; there are {STYLES}")

    def batch_size(self, frames: int) -> int:
        """Examples in a batch of the bucket with so many frames."""
        return max(self.batch_frames // frames // self.batch_multiple, 1) * self.batch_multiple


class Batch(NamedTuple):
    """What the models train on; every array starts with B and has its bucket's static shape.

    `steps_B` counts STOP. `pointers_BN` are raw frames or UNALIGNED, then STOP once, then PAD. `structure_BT`
    is 0 cut, 1 kept, 2 looped, IGNORE in the padding. `kind_BT` numbers what the frames are (`events.KINDS`),
    UNKNOWN where nobody says. `target_B` is the wanted edit length in frames, 0 where
    none was asked for. `ids_B` number the manifest's examples.

    `stems_BIMF` are the stems in steps of STEM_FRAMES; I is a power of two that holds those of every example
    of the batch, 0 where none has any, and `present_BI` says which of them there are.

    `edited_BTF` is the edited mel on the raw axis, each frame as it is heard first, `label_BT` the label of
    its beat (`edits.EditLabel`), PAD in the padding, and `beat_BT` that beat, counted from 0 in the crop; all
    of no frames where they are not asked for.
    """

    mel_BTF: np.ndarray
    frames_B: np.ndarray
    phase_BT3: np.ndarray
    pointers_BN: np.ndarray
    steps_B: np.ndarray
    structure_BT: np.ndarray
    kind_BT: np.ndarray
    target_B: np.ndarray
    style_B: np.ndarray
    ids_B: np.ndarray
    stems_BIMF: np.ndarray
    present_BI: np.ndarray
    edited_BTF: np.ndarray
    label_BT: np.ndarray
    beat_BT: np.ndarray


class Slot(NamedTuple):
    """The plan of one batch: its bucket and the numbers of its examples."""

    frames: int
    steps: int
    examples: np.ndarray


class Plan:
    """Which examples are in batch i, for every i: `plan[i]`, `plan.batches_per_epoch`.

    `examples` are the numbers of all that are read, `members` those of each bucket.
    Every epoch holds every example. A bucket's last batch is filled up with shorter examples too, so that a
    few long ones do not outweigh the rest.
    """

    def __init__(self, entries: tuple[Entry, ...], settings: DataSettings):
        self.settings = settings
        self.members = _buckets(entries, settings)
        self.examples = np.sort(np.concatenate(self.members))
        sizes = [settings.batch_size(frames) for frames, _ in settings.buckets]
        self.batches_of = [-(-len(m) // size) for m, size in zip(self.members, sizes, strict=True)]
        self.batches_per_epoch = sum(self.batches_of)
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)

    def __getitem__(self, index: int) -> Slot:
        epoch, position = divmod(index, self.batches_per_epoch)
        return self._epoch(epoch)[position]

    def _make_epoch(self, epoch: int) -> list[Slot]:
        rng = np.random.default_rng([self.settings.seed, epoch])
        slots: list[Slot] = []
        for number, (frames, steps) in enumerate(self.settings.buckets):
            shape = self.batches_of[number], self.settings.batch_size(frames)
            rows = self._filled(number, shape[0] * shape[1], rng).reshape(shape)
            slots += [Slot(frames, steps, row) for row in rows]
        return [slots[k] for k in rng.permutation(len(slots))] if self.settings.shuffle else slots

    def _filled(self, number: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """A bucket's examples, then as many more as `count` wants from all that fit it."""
        members, fitting = self.members[number], np.concatenate(self.members[: number + 1])
        missing = count - len(members)
        if not self.settings.shuffle:
            return np.concatenate([members, np.resize(fitting, missing)])
        return np.concatenate([rng.permutation(members), rng.choice(fitting, missing)]) if count else members


def batches(
    shards_dir: str | Path,
    settings: DataSettings,
    *,
    epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Any:
    """A Grain iterator over `Batch`es, endless unless `epochs` is given; `close()` it when done.

    `get_state()` is a dict of one integer, the number of the next batch; `set_state` resumes there exactly.
    Each of `process_count` processes gets its rows of every batch, so that all agree on the position. Raises
    DataError when no example is of the wanted styles and split.
    """
    import grain

    source = read(shards_dir)
    plan = Plan(source.entries, settings)
    if not plan.batches_per_epoch:
        wanted = f"style {settings.styles or 'any'}, split {settings.split or 'any'}"
        raise DataError(f"{shards_dir}: none of its {len(source)} examples is of {wanted}")
    for frames, _ in settings.buckets:
        if settings.batch_size(frames) % process_count:
            raise UsageError(
                f"batches of {settings.batch_size(frames)} do not divide over {process_count} processes"
            )
    make = _batch_maker(source, plan, settings, process_index, process_count)
    length = _FOREVER if epochs is None else epochs * plan.batches_per_epoch
    options = grain.ReadOptions(num_threads=settings.threads, prefetch_buffer_size=settings.prefetch_batches)
    return iter(grain.MapDataset.range(length).map(make).to_iter_dataset(options))


def _buckets(entries: tuple[Entry, ...], settings: DataSettings) -> list[np.ndarray]:
    """The example numbers of each bucket, ascending; stretched examples must fit too, where they can."""
    wanted = np.array(
        [
            (not settings.styles or entry.style in settings.styles)
            and (settings.split is None or entry.split == settings.split)
            for entry in entries
        ],
        bool,
    )
    longest = settings.augment.stretch[1] if settings.augment else 1.0
    frames = np.array([entry.frames for entry in entries]) * longest
    steps = np.array([entry.steps for entry in entries]) * longest + 1
    bucket_of = np.full(len(entries), len(settings.buckets) - 1)
    for number, (max_frames, max_steps) in reversed(list(enumerate(settings.buckets))):
        bucket_of[(frames <= max_frames) & (steps <= max_steps)] = number
    return [np.flatnonzero(wanted & (bucket_of == number)) for number in range(len(settings.buckets))]


def _batch_maker(
    source: Source, plan: Plan, settings: DataSettings, process_index: int, process_count: int
) -> Callable[[int], Batch]:
    mel = MelSettings(**source.manifest["mel"])

    def make(index: int) -> Batch:
        slot = plan[index]
        share = len(slot.examples) // process_count
        rows = range(process_index * share, (process_index + 1) * share)
        most = max(source.entries[number].stems for number in slot.examples)
        batch = empty_batch(share, slot, min(most, settings.most_stems), settings.edited, mel)
        for at, row in enumerate(rows):
            rng = np.random.default_rng([settings.seed, index, row])
            number = int(slot.examples[row])
            piece = _load(source, plan, number, slot, mel, rng)
            _fill(batch, at, piece, number, source.entries[number], settings, rng)
        return batch

    return make


def _load(
    source: Source, plan: Plan, number: int, slot: Slot, mel: MelSettings, rng: np.random.Generator
) -> Piece:
    """One example, cropped where it is too long for its bucket, and varied."""

    def other_mel() -> np.ndarray:
        return source.recording(source.entries[rng.choice(plan.examples)].record, []).mel_TF

    settings, entry = plan.settings, source.entries[number]
    recording = source.recording(entry.record, [entry.edit])
    kind_T = kinds_of(recording.meta.get("events", ()), len(recording.mel_TF))
    stems_IMF = _some_stems(recording.stems_IMF, settings.most_stems, rng)
    edited = edited_of(example(recording, recording.edits[0])) if settings.edited else None
    pointers_N = recording.edits[0].pointers_N
    piece = Piece(recording.mel_TF, recording.phase_T3, pointers_N, kind_T, stems_IMF, edited)
    max_steps = slot.steps - 1
    if entry.frames > slot.frames or entry.steps > max_steps:
        piece = crop(piece, slot.frames, max_steps, rng)
    if settings.augment is None:
        return piece
    piece = piece._replace(mel_TF=piece.mel_TF.astype(np.float32))
    if piece.edited is not None:
        piece = piece._replace(edited=piece.edited._replace(mel_TF=piece.edited.mel_TF.astype(np.float32)))
    limits = {"max_frames": slot.frames, "max_steps": max_steps}
    return augment(piece, settings.augment, mel, rng, other_mel=other_mel, **limits)


def _some_stems(stems_IMF: np.ndarray | None, most_stems: int, rng: np.random.Generator) -> np.ndarray | None:
    """The stems in float32, `most_stems` of them where there are more."""
    if stems_IMF is None:
        return None
    if len(stems_IMF) > most_stems:
        (apart,) = rng.spawn(1)  # with stems, all else of a batch is as without
        stems_IMF = stems_IMF[apart.choice(len(stems_IMF), most_stems, replace=False)]
    return stems_IMF.astype(np.float32)


def empty_batch(size: int, slot: Slot, stems: int, edited: bool, mel: MelSettings) -> Batch:
    """Nothing but padding, in a batch's shapes and types; room for as many stems at least."""
    rows = 1 << (stems - 1).bit_length() if stems else 0  # a compilation for every number of rows
    return Batch(
        mel_BTF=np.zeros((size, slot.frames, mel.n_mels), np.float32),
        frames_B=np.zeros(size, np.int32),
        phase_BT3=np.zeros((size, slot.frames, 3), np.float32),
        pointers_BN=np.full((size, slot.steps), PAD, np.int32),
        steps_B=np.zeros(size, np.int32),
        structure_BT=np.full((size, slot.frames), IGNORE, np.int32),
        kind_BT=np.full((size, slot.frames), UNKNOWN, np.int32),
        target_B=np.zeros(size, np.float32),
        style_B=np.zeros(size, np.int32),
        ids_B=np.zeros(size, np.int32),
        stems_BIMF=np.zeros((size, rows, -(-slot.frames // STEM_FRAMES), mel.n_mels), np.float32),
        present_BI=np.zeros((size, rows), bool),
        edited_BTF=np.zeros((size, slot.frames if edited else 0, mel.n_mels), np.float32),
        label_BT=np.full((size, slot.frames if edited else 0), EditLabel.PAD, np.int32),
        beat_BT=np.zeros((size, slot.frames if edited else 0), np.int32),
    )


def _fill(
    batch: Batch,
    row: int,
    piece: Piece,
    number: int,
    entry: Entry,
    settings: DataSettings,
    rng: np.random.Generator,
) -> None:
    """Write one example into its row of the batch."""
    frames, steps = len(piece.mel_TF), len(piece.pointers_N)
    batch.mel_BTF[row, :frames] = piece.mel_TF
    batch.phase_BT3[row, :frames] = piece.phase_T3
    batch.frames_B[row] = frames
    batch.pointers_BN[row, :steps] = piece.pointers_N
    batch.pointers_BN[row, steps] = STOP
    batch.steps_B[row] = steps + 1
    batch.structure_BT[row, :frames] = structure_of(piece.pointers_N, frames)
    batch.kind_BT[row, :frames] = piece.kind_T
    asked = not entry.natural or rng.random() < settings.target_ask_probability
    batch.target_B[row] = steps if asked else 0
    batch.style_B[row] = STYLES.index(entry.style)
    batch.ids_B[row] = number
    if piece.stems_IMF is not None:
        count, n_steps, _ = piece.stems_IMF.shape
        batch.stems_BIMF[row, :count, :n_steps] = piece.stems_IMF
        batch.present_BI[row, :count] = True
    if piece.edited is not None:
        batch.edited_BTF[row, :frames] = piece.edited.mel_TF
        batch.label_BT[row, :frames] = piece.edited.label_T
        batch.beat_BT[row, :frames] = piece.edited.beat_T - piece.edited.beat_T[0]
