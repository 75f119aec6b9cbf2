"""Sound shards: recordings as samples of one rate, and batches of excerpts, for models that hear samples.

A recording is stored in pieces of ten seconds, 16 bits a sample, so that an excerpt is read without the rest
of it. Batch number i is a pure function of (shards, settings, i), as `data` has it: which recordings, and
where in them, is drawn from a generator seeded by (seed, i, row).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from editjax.array_records import (
    MANIFEST,
    Kind,
    Lines,
    RecordFiles,
    pack,
    read_manifest,
    unpack,
    write_folder,
)
from editjax.audio import Reader, resample_stream
from editjax.errors import DataError, EditjaxError, UsageError
from editjax.layouts import Found
from editjax.workers import results

SOUNDS = Kind(
    "editjax.sounds",
    1,
    prefix="sound",
    what="sounds",
    make="make one with `editjax sounds FOLDER SOUNDS`",
    again="make the sounds again",
)
PIECE_S = 10.0
FULL = 32767.0
LABELS = ("genre", "instrument", "kind")
LOOKS = 8
QUIET = 1e-3
"""Excerpts below −60 dB of full scale are drawn again, so many times: most of them are silence."""
FILES_AT_ONCE = 64
_FOREVER = 1 << 62


class Sound(NamedTuple):
    """What the manifest says about one recording; `first` is the number of its first piece."""

    id: str
    first: int
    samples: int
    channels: int
    group: str
    split: str
    labels: dict[str, str]


@dataclass(frozen=True)
class SoundSettings:
    """Which recordings are heard, and in what excerpts.

    Of `folds` parts of the groups number `fold` is left out, and is what is validated on; without folds that
    is the split `valid`. A recording is drawn as often as it is long; with `balance`, labels of that kind
    (genre, instrument) as often as each other.
    """

    seconds: float = 4.0
    batch_size: int = 16
    channels: int = 1
    split: str = "train"
    folds: int = 0
    fold: int = 0
    kinds: tuple[str, ...] = ()
    balance: str = ""
    seed: int = 0
    threads: int = 4
    prefetch_batches: int = 8

    def __post_init__(self) -> None:
        if not 0.0 < self.seconds <= 600.0 or self.batch_size < 1 or self.channels not in (1, 2):
            raise UsageError("sounds: give seconds up to 600, a batch size of at least 1, 1 or 2 channels")
        if self.folds and not 0 <= self.fold < self.folds:
            raise UsageError(f"fold {self.fold}: choose from 0 to {self.folds - 1}, or no folds")
        if self.balance not in ("", *LABELS):
            raise UsageError(f"balance {self.balance!r}: choose from {', '.join(LABELS)}")


class SoundBatch(NamedTuple):
    """Excerpts (B, C, S) float32 at the shards' rate, silence after the end of a shorter recording, and the
    numbers of their recordings in the manifest."""

    sound_BCS: np.ndarray
    ids_B: np.ndarray


def write(
    sounds_dir: str | Path,
    found: Iterable[Found],
    *,
    rate_hz: int = 44_100,
    channels: int = 2,
    workers: int = 1,
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Write recordings as shards; returns the manifest, and which files were skipped and why.

    Of more channels than `channels` the first are taken, of one their mean. Raises DataError where no file
    can be read.
    """
    skipped: list[tuple[str, str]] = []

    def records() -> Iterator[bytes]:
        jobs = [(one, rate_hz, channels) for one in found]
        for start in range(0, len(jobs), FILES_AT_ONCE):
            part = jobs[start : start + FILES_AT_ONCE]
            made = dict(results(_pieces, part, workers, SOUNDS.again))
            for one, _, _ in part:
                if isinstance(reason := made[one.name], str):
                    skipped.append((one.name, reason))
                else:
                    yield from reason

    def manifest_of(files: Lines, lines: Lines) -> dict[str, Any]:
        if not lines:
            name, reason = skipped[0] if skipped else ("the folder", "holds nothing")
            raise DataError(f"no recording could be read; {name}: {reason}")
        counts = {
            "sounds": len(lines),
            "seconds": round(sum(line["samples"] for line in lines) / rate_hz, 3),
            "splits": dict(sorted(Counter(line["split"] for line in lines).items())),
        }
        return {"rate_hz": rate_hz, "channels": channels, "counts": counts, "shards": files, "sounds": lines}

    return write_folder(sounds_dir, records(), SOUNDS, _lines, manifest_of), skipped


def _pieces(job: tuple[Found, int, int]) -> tuple[str, list[bytes] | str]:
    """The name of a file, and its records or why there are none."""
    found, rate_hz, channels = job
    try:
        with Reader(found.path) as reader:
            heard = min(channels, reader.info.channels)
            blocks = reader.blocks() if heard == 1 else (block[:, :heard] for block in reader.blocks())
            parts = [
                _sixteen_bits(part).reshape(-1, heard)
                for part in resample_stream(blocks, reader.info.sample_rate_hz, rate_hz, heard)
            ]
    except EditjaxError as error:
        return found.name, str(error)
    sound_SC = np.concatenate(parts) if parts else np.zeros((0, heard), "<i2")
    if not sound_SC.any():
        return found.name, "is silent"
    facts = {**found._asdict(), "samples": len(sound_SC), "channels": heard}
    del facts["path"]
    size = round(PIECE_S * rate_hz)
    return found.name, [
        pack(facts if not start else {}, sound=sound_SC[start : start + size])
        for start in range(0, len(sound_SC), size)
    ]


def _sixteen_bits(sound: np.ndarray) -> np.ndarray:
    return np.round(np.clip(sound, -1.0, 1.0) * FULL).astype("<i2")


def _lines(record: bytes, number: int) -> Iterator[dict[str, Any]]:
    """The manifest's line of a recording, of its first piece."""
    facts, _ = unpack(record)
    if facts:
        yield {**facts, "id": facts.pop("name"), "first": number}


class Sounds:
    """Random access to recordings: `sounds.read(k, start, stop)`, `sounds.entries`, `sounds.rate_hz`."""

    def __init__(self, sounds_dir: str | Path):
        self.folder = Path(sounds_dir)
        self.manifest = read_manifest(self.folder, SOUNDS)
        try:
            self.rate_hz = int(self.manifest["rate_hz"])
            self.entries = tuple(
                Sound(**{name: line[name] for name in Sound._fields}) for line in self.manifest["sounds"]
            )
            self.files = RecordFiles(self.folder, self.manifest["shards"], SOUNDS)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.folder / MANIFEST}: incomplete ({error}); {SOUNDS.again}") from error

    def read(self, number: int, start: int = 0, stop: int | None = None, channels: int = 0) -> np.ndarray:
        """Samples [start, stop) of a recording as float32 (C, S), silence after its end.

        With `channels` 1 the mean of its channels, with 2 a single one twice.
        """
        sound, size = self.entries[number], round(PIECE_S * self.rate_hz)
        stop = sound.samples if stop is None else stop
        last = min(stop, sound.samples)
        pieces = range(start // size, -(-last // size))
        parts = [self._piece(sound.first + k, sound.channels) for k in pieces]
        within_SC = np.concatenate(parts)[start - pieces.start * size :][: last - start] if parts else None
        sound_CS = np.zeros((sound.channels, stop - start), np.float32)
        if within_SC is not None:
            sound_CS[:, : len(within_SC)] = within_SC.T / np.float32(FULL)
        if channels == 1 and sound.channels == 2:
            return sound_CS.mean(0, keepdims=True)
        return np.repeat(sound_CS, 2, 0) if channels == 2 and sound.channels == 1 else sound_CS

    def _piece(self, number: int, channels: int) -> np.ndarray:
        try:
            return unpack(self.files.read(number))[1]["sound"].reshape(-1, channels)
        except (ValueError, KeyError) as error:
            raise DataError(f"{self.folder}: damaged record {number} ({error}); {SOUNDS.again}") from error

    def close(self) -> None:
        """Close the open shards; they open again on the next read."""
        self.files.close()

    def __enter__(self) -> "Sounds":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def verify(sounds_dir: str | Path) -> dict[str, Any]:
    """Check every shard and recording against the manifest and return its counts."""
    with Sounds(sounds_dir) as sounds:
        sounds.files.check()
        for number, sound in enumerate(sounds.entries):
            sounds.read(number, max(sound.samples - 1, 0))
        return sounds.manifest["counts"]


class Grouped(Protocol):
    """What can be chosen: an entry of a manifest."""

    @property
    def group(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def labels(self) -> dict[str, str]: ...


class Choice(Protocol):
    """Which entries: see `SoundSettings`."""

    @property
    def split(self) -> str: ...
    @property
    def folds(self) -> int: ...
    @property
    def fold(self) -> int: ...
    @property
    def balance(self) -> str: ...


def chosen(entries: Sequence[Grouped], choice: Choice, held_out: bool = False) -> np.ndarray:
    """The numbers of the entries that a choice trains on, or, `held_out`, is validated on."""
    if not choice.folds:
        wanted = "valid" if held_out else choice.split
        return np.array([k for k, entry in enumerate(entries) if entry.split == wanted], int)
    rest = [(k, entry) for k, entry in enumerate(entries) if entry.split != "test"]
    out = [(fold_of(entry.group, choice.folds) == choice.fold) == held_out for _, entry in rest]
    return np.array([k for (k, _), is_wanted in zip(rest, out, strict=True) if is_wanted], int)


def fold_of(group: str, folds: int) -> int:
    """Which of `folds` parts a group falls into: a hash of its name."""
    return int.from_bytes(hashlib.sha256(f"fold:{group}".encode()).digest()[:4], "big") % folds


def batches(
    sounds_dir: str | Path,
    settings: SoundSettings,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Any:
    """A Grain iterator over `SoundBatch`es, endless; `close()` it when done.

    `get_state()` is a dict of one integer, the number of the next batch; `set_state` resumes there exactly.
    Each of `process_count` processes gets its rows of every batch. Raises DataError without a recording of
    the wanted split.
    """
    import grain

    if settings.batch_size % process_count:
        raise UsageError(f"batches of {settings.batch_size} do not divide over {process_count} processes")
    excerpts = Excerpts(Sounds(sounds_dir), settings)
    share = settings.batch_size // process_count
    rows = range(process_index * share, (process_index + 1) * share)

    def make(index: int) -> SoundBatch:
        drawn = [excerpts.draw(index, row) for row in rows]
        return SoundBatch(np.stack([sound for _, sound in drawn]), np.array([k for k, _ in drawn], np.int32))

    options = grain.ReadOptions(num_threads=settings.threads, prefetch_buffer_size=settings.prefetch_batches)
    return iter(grain.MapDataset.range(_FOREVER).map(make).to_iter_dataset(options))


def weights(entries: Sequence[Grouped], size_K: np.ndarray, balance: str) -> np.ndarray:
    """How likely each entry is drawn: by its size, or every label of the kind `balance` as often."""
    weight_K = np.asarray(size_K, float)
    if balance:
        label_K = np.array([entry.labels.get(balance, "") for entry in entries])
        for label in np.unique(label_K):
            weight_K[label_K == label] /= weight_K[label_K == label].sum()
    return weight_K / weight_K.sum()


class Excerpts:
    """The recordings that settings choose, to draw excerpts from; DataError where they choose none."""

    def __init__(self, sounds: Sounds, settings: SoundSettings, held_out: bool = False):
        self.sounds, self.settings = sounds, settings
        numbers, kinds = chosen(sounds.entries, settings, held_out), settings.kinds
        self.numbers = [k for k in numbers if not kinds or sounds.entries[k].labels.get("kind") in kinds]
        if not self.numbers:
            count = len(sounds.entries)
            raise DataError(
                f"{sounds.folder}: none of its {count} recordings is of the wanted split and kind"
            )
        entries = [sounds.entries[k] for k in self.numbers]
        self.weight_K = weights(entries, np.array([sound.samples for sound in entries]), settings.balance)

    def draw(self, index: int, row: int) -> tuple[int, np.ndarray]:
        """The number of a recording and an excerpt (C, S) of it, not silent where there is sound."""
        rng = np.random.default_rng([self.settings.seed, index, row])
        length = round(self.settings.seconds * self.sounds.rate_hz)
        for _ in range(LOOKS):
            number = int(rng.choice(self.numbers, p=self.weight_K))
            start = int(rng.integers(max(self.sounds.entries[number].samples - length, 0) + 1))
            sound_CS = self.sounds.read(number, start, start + length, self.settings.channels)
            if np.sqrt((sound_CS**2).mean()) > QUIET:
                break
        return number, sound_CS


def watched(sounds_dir: str | Path, settings: SoundSettings, most: int) -> list[tuple[int, np.ndarray]]:
    """The excerpts that training is watched on: `most` of what is held out, always the same; none without.

    Each is the number of its recording and (C, S).
    """
    with Sounds(sounds_dir) as sounds:
        try:
            excerpts = Excerpts(sounds, settings, held_out=True)
        except DataError:
            return []
        return [excerpts.draw(0, row) for row in range(most)]
