"""Mix shards: stems, what the console made of them, and the settings it had; made from sound shards.

The settings are drawn evenly, so the targets are exact. Example number i is a pure function of (sounds,
settings, i); stems are varied before the console plays them: level, channels exchanged, speed. A record has
the pictures and figures of both (`console/heard.py`), and, where it is asked for, the samples of the stem,
which losses on sound need.
"""

import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import soxr

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
from editjax.console.compared import heard
from editjax.console.heard import PictureSettings
from editjax.console.knobs import KNOBS, NAMES, turned
from editjax.errors import DataError, UsageError
from editjax.sounds import LABELS, Excerpts, Sounds, SoundSettings, chosen, weights

MIXES = Kind(
    "editjax.mixes",
    1,
    prefix="mix",
    what="mixes",
    make="make one with `editjax mixes SOUNDS MIXES`",
    again="make the mixes again",
)
AT_ONCE = 8
SPEEDS = (0.85, 1.2)
LEVELS_DB = (-9.0, 3.0)
_FOREVER = 1 << 62


@dataclass(frozen=True)
class MakeSettings:
    """How many mixes of how many seconds; `sound` keeps the stems' samples."""

    count: int = 1000
    seconds: float = 4.0
    sound: bool = False
    seed: int = 0
    picture: PictureSettings = field(default_factory=PictureSettings)


class Mix(NamedTuple):
    """What the manifest says about one example."""

    id: str
    group: str
    split: str
    labels: dict[str, str]


@dataclass(frozen=True)
class MixSettings:
    """Which mixes are learned from; see `sounds.SoundSettings`. Labels are those of the kind `label`."""

    batch_size: int = 32
    split: str = "train"
    folds: int = 0
    fold: int = 0
    balance: str = ""
    label: str = ""
    seed: int = 0
    threads: int = 4
    prefetch_batches: int = 8

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.folds and not 0 <= self.fold < self.folds):
            raise UsageError("mixes: give a batch size of at least 1, and a fold below the number of folds")
        if unknown := {self.balance, self.label} - {"", *LABELS}:
            raise UsageError(
                f"mixes: no labels of the kind {min(unknown)!r}; choose from {', '.join(LABELS)}"
            )


class MixBatch(NamedTuple):
    """Pictures (B, T, F, 2 × 3) of stem and mix, figures (B, HEARD) of both, knobs (B, P) from 0 to 1, labels
    (B,) or −1, numbers of the examples, and the stem's samples (B, 2, S), S = 0 where they were not kept."""

    picture_BTFC: np.ndarray
    figures_BK: np.ndarray
    knobs_BP: np.ndarray
    label_B: np.ndarray
    ids_B: np.ndarray
    sound_BCS: np.ndarray


def write(sounds_dir: str | Path, mixes_dir: str | Path, settings: MakeSettings) -> dict[str, Any]:
    """Make mixes of the recordings, whatever their kind, and return the manifest."""
    heard = SoundSettings(seconds=settings.seconds, channels=2, seed=settings.seed, split="train")
    with Sounds(sounds_dir) as sounds:
        if sounds.rate_hz != settings.picture.rate_hz:
            wanted = settings.picture.rate_hz
            raise UsageError(
                f"{sounds_dir}: at {sounds.rate_hz} Hz, wanted {wanted}; use `editjax sounds --rate {wanted}`"
            )

        def manifest_of(files: Lines, lines: Lines) -> dict[str, Any]:
            counts = {"mixes": len(lines), "splits": dict(sorted(Counter(e["split"] for e in lines).items()))}
            facts = {"settings": asdict(settings), "knobs": [knob._asdict() for knob in KNOBS]}
            return {**facts, "counts": counts, "shards": files, "mixes": lines}

        records = _records(Everything(sounds, heard), settings)
        return write_folder(mixes_dir, records, MIXES, _lines, manifest_of)


class Everything(Excerpts):
    """All recordings, whatever their split: examples inherit it."""

    def __init__(self, sounds: Sounds, settings: SoundSettings):
        super().__init__(sounds, settings)
        self.numbers = list(range(len(sounds.entries)))
        self.weight_K = weights(sounds.entries, np.array([s.samples for s in sounds.entries]), "")


def _records(excerpts: Excerpts, settings: MakeSettings) -> Iterator[bytes]:
    """Records in order, made on all cores."""
    workers = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[list[bytes]]] = deque()
        for first in range(0, settings.count, AT_ONCE):
            pending.append(pool.submit(_made, excerpts, settings, first))
            if len(pending) > 2 * (workers or 1):
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _made(excerpts: Excerpts, settings: MakeSettings, first: int) -> list[bytes]:
    """The examples from number `first` on, AT_ONCE or as many as are wanted."""
    rows = range(first, first + AT_ONCE)
    rngs = [np.random.default_rng([settings.seed, 1, row]) for row in rows]
    drawn = [excerpts.draw(0, row) for row in rows]
    stem_B2S = np.stack([varied(sound, rng) for (_, sound), rng in zip(drawn, rngs, strict=True)])
    knobs_BP = np.stack([rng.random(len(KNOBS)) for rng in rngs]).astype(np.float32)
    made = jax.tree.map(np.asarray, _heard(settings.picture, stem_B2S, knobs_BP))
    records = []
    for at in range(min(AT_ONCE, settings.count - first)):
        entry = excerpts.sounds.entries[drawn[at][0]]
        facts = {"id": entry.id, "group": entry.group, "split": entry.split, "labels": entry.labels}
        arrays = {name: array[at] for name, array in made.items()} | {"knobs": knobs_BP[at]}
        if settings.sound:
            arrays["sound"] = stem_B2S[at].astype(np.float16)
        records.append(pack(facts, **arrays))
    return records


def varied(sound_2S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same sound at another speed and level, its channels exchanged or not."""
    n_samples, speed = sound_2S.shape[1], float(rng.uniform(*SPEEDS))
    if rng.random() < 0.5:
        sound_2S = sound_2S[::-1]
    played_S2 = soxr.resample(np.ascontiguousarray(sound_2S.T), speed, 1.0, quality="MQ")[:n_samples]
    played_S2 = np.pad(played_S2, ((0, n_samples - len(played_S2)), (0, 0)))
    return (played_S2.T * 10 ** (rng.uniform(*LEVELS_DB) / 20)).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def _heard(settings: PictureSettings, stem_B2S, knobs_BP):
    """Pictures (T, F, 6) float16 and figures (HEARD,) of stems and of what knobs make of them."""

    def one(stem_2S, knobs_P):
        seen_TFC, told_K = heard(settings, stem_2S, turned(stem_2S, knobs_P, settings.rate_hz))
        return {"picture": seen_TFC.astype(jnp.float16), "figures": told_K}

    return jax.vmap(one)(stem_B2S, knobs_BP)


def _lines(record: bytes, number: int) -> Iterator[dict[str, Any]]:
    yield unpack(record)[0]


class Mixes:
    """Random access to the examples of a folder: `mixes[k]` is a dict of arrays."""

    def __init__(self, mixes_dir: str | Path):
        self.folder = Path(mixes_dir)
        self.manifest = read_manifest(self.folder, MIXES)
        try:
            names = [knob["name"] for knob in self.manifest["knobs"]]
            self.entries = tuple(Mix(**line) for line in self.manifest["mixes"])
            self.files = RecordFiles(self.folder, self.manifest["shards"], MIXES)
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.folder / MANIFEST}: incomplete ({error}); {MIXES.again}") from error
        if names != list(NAMES):
            raise DataError(f"{self.folder}: mixes of other settings than {', '.join(NAMES)}; {MIXES.again}")

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        try:
            return unpack(self.files.read(number))[1]
        except ValueError as error:
            raise DataError(f"{self.folder}: damaged record {number} ({error}); {MIXES.again}") from error

    def labels(self, kind: str) -> list[str]:
        """The labels of a kind that there are, in order."""
        return sorted({entry.labels[kind] for entry in self.entries if kind in entry.labels})

    def batch(self, numbers: Any, label: str = "") -> MixBatch:
        """These examples."""
        rows, classes = [self[int(k)] for k in numbers], self.labels(label) if label else []
        of = [self.entries[int(k)].labels.get(label) for k in numbers]
        nothing = np.zeros((2, 0), np.float16)
        return MixBatch(
            np.stack([row["picture"] for row in rows]),
            np.stack([row["figures"] for row in rows]),
            np.stack([row["knobs"] for row in rows]),
            np.array([classes.index(name) if name in classes else -1 for name in of], np.int32),
            np.array(numbers, np.int32),
            np.stack([row.get("sound", nothing) for row in rows]),
        )


def verify(mixes_dir: str | Path) -> dict[str, Any]:
    """Check every shard and example against the manifest and return its counts."""
    mixes = Mixes(mixes_dir)
    mixes.files.check()
    for number in range(len(mixes.entries)):
        mixes[number]
    return mixes.manifest["counts"]


def batches(
    mixes_dir: str | Path, settings: MixSettings, *, process_index: int = 0, process_count: int = 1
) -> Any:
    """A Grain iterator over `MixBatch`es, endless; see `sounds.batches`."""
    import grain

    if settings.batch_size % process_count:
        raise UsageError(f"batches of {settings.batch_size} do not divide over {process_count} processes")
    mixes = Mixes(mixes_dir)
    numbers = chosen(mixes.entries, settings)
    if not len(numbers):
        raise DataError(f"{mixes_dir}: none of its {len(mixes.entries)} mixes is of the wanted split")
    weight_K = weights([mixes.entries[k] for k in numbers], np.ones(len(numbers)), settings.balance)
    share = settings.batch_size // process_count

    def make(index: int) -> MixBatch:
        rng = np.random.default_rng([settings.seed, index])
        drawn = rng.choice(numbers, settings.batch_size, p=weight_K)
        return mixes.batch(drawn[process_index * share :][:share], settings.label)

    options = grain.ReadOptions(num_threads=settings.threads, prefetch_buffer_size=settings.prefetch_batches)
    return iter(grain.MapDataset.range(_FOREVER).map(make).to_iter_dataset(options))
