"""Input pipeline: shards → batches against copying the same mels from a memory map; and making the shards.

Simulated sessions of one, two and four minutes are prepared into shards of each length, and their mels are
written to one flat float16 file. Every case then goes through all recordings of a length in the same order:
the flat file copied as it is, the flat file copied into padded float32 batches, the records read and decoded
one by one, Grain batches as they are, and augmented. One core, medians of CPU seconds, the cases taking
turns, page cache warm; `prepare` runs once. Growth is over the frames of a recording.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from report import finish, growth_exponent, median_seconds, options, require_agreement, use_one_core

if TYPE_CHECKING:
    import numpy as np

BATCH = 4
PEER = "memory map, padded float32"
CASES_OF_RECORDS = "records, decoded", "Grain batches", "Grain batches, augmented"


class Size(NamedTuple):
    lengths_s: tuple[int, ...]
    sessions: int
    epochs: int
    rounds: int


class Corpus(NamedTuple):
    """A folder of shards and the same mels in one memory map, recording k at [starts[k], starts[k + 1])."""

    shards: Path
    flat_TF: np.ndarray
    starts: np.ndarray

    @property
    def frames(self) -> int:
        """Of the longest recording."""
        return int((self.starts[1:] - self.starts[:-1]).max())

    @property
    def count(self) -> int:
        return len(self.starts) - 1


def main() -> None:
    """Prove agreement and time every case, at every length of recording."""
    settings = options(__doc__)
    size = Size((60,), 4, 1, 2) if settings.quick else Size((60, 120, 240), 24, 3, 7)
    use_one_core()
    by_length = {length_s: rows_at(length_s, size) for length_s in size.lengths_s}
    ratios = {}
    for length_s, rows in by_length.items():
        per_example = {row["case"]: row["ms_per_example"] for row in rows}
        for case in CASES_OF_RECORDS:
            ratios[f"{case} / {PEER}, {length_s} s"] = per_example[PEER] / per_example[case]
    if len(by_length) > 1:
        for same in zip(*by_length.values(), strict=True):
            frames, ms = ([row[column] for row in same] for column in ("frames", "ms_per_example"))
            ratios[f"growth exponent, {same[0]['case']}"] = growth_exponent(frames, ms)
    every_row = [row for rows in by_length.values() for row in rows]
    finish("data", every_row, ratios, ("numpy", "grain", "array_record"), settings.out)


def rows_at(length_s: int, size: Size) -> list[dict[str, Any]]:
    """A row for each case with recordings of one length, after proof that Grain's batches hold the mels."""
    with tempfile.TemporaryDirectory() as name:
        corpus, prepare_s = make_corpus(Path(name), size.sessions, length_s)
        last_BTF = last_of(grain_batches(corpus, augmented=False)).mel_BTF
        difference = abs(last_BTF - last_of(padded_batches(corpus))).max()
        require_agreement(f"Grain batches, {length_s} s", float(difference), 0.0)
        cases = {
            "memory map, copied": partial(copied, corpus),
            PEER: partial(padded_batches, corpus),
            "records, decoded": partial(decoded, corpus),
            "Grain batches": partial(grain_batches, corpus, augmented=False, epochs=size.epochs),
            "Grain batches, augmented": partial(grain_batches, corpus, augmented=True, epochs=size.epochs),
        }
        repeats = {case: 1 if case.startswith("Grain") else size.epochs for case in cases}
        runs = {case: partial(exhaust, cases[case], repeats[case]) for case in cases}
        seconds = median_seconds(runs, size.rounds)
        per_epoch = {case: taken / size.epochs for case, taken in seconds.items()} | {"prepare": prepare_s}
        return [row(case, taken, corpus) for case, taken in per_epoch.items()]


def make_corpus(folder: Path, sessions: int, length_s: int) -> tuple[Corpus, float]:
    """Simulate sessions and prepare them; also the CPU seconds that preparing took."""
    import numpy as np

    from editjax.prepare import prepare
    from editjax.shards import read
    from editjax.simulate import SimulateSettings, write_sessions

    settings = SimulateSettings(min_length_s=float(length_s), max_length_s=float(length_s))
    for _ in write_sessions(folder / "pairs", sessions, 0, settings):
        pass
    start = time.process_time()
    prepare(folder / "pairs", folder / "shards", workers=1)
    prepare_s = time.process_time() - start
    with read(folder / "shards") as source:
        mels = [source[k].mel_TF for k in range(len(source))]
    np.concatenate(mels).tofile(folder / "mels")
    flat_TF = np.memmap(folder / "mels", np.float16, "r").reshape(-1, mels[0].shape[1])
    return Corpus(folder / "shards", flat_TF, np.cumsum([0, *map(len, mels)])), prepare_s


def copied(corpus: Corpus) -> Iterator[np.ndarray]:
    import numpy as np

    for k in range(corpus.count):
        yield np.array(corpus.flat_TF[corpus.starts[k] : corpus.starts[k + 1]])


def padded_batches(corpus: Corpus) -> Iterator[np.ndarray]:
    import numpy as np

    count, bands = corpus.count, corpus.flat_TF.shape[1]
    for first in range(0, count, BATCH):
        mel_BTF = np.zeros((BATCH, corpus.frames, bands), np.float32)
        for row, k in enumerate(range(first, min(first + BATCH, count))):
            mel_TF = corpus.flat_TF[corpus.starts[k] : corpus.starts[k + 1]]
            mel_BTF[row, : len(mel_TF)] = mel_TF
        yield mel_BTF


def decoded(corpus: Corpus) -> Iterator[Any]:
    from editjax.shards import read

    with read(corpus.shards) as source:
        for entry in source.entries:
            yield source.recording(entry.record, [entry.edit])


def grain_batches(corpus: Corpus, augmented: bool, epochs: int = 1) -> Iterator[Any]:
    from editjax.data import AugmentSettings, DataSettings, batches

    settings = DataSettings(
        batch_frames=BATCH * corpus.frames,
        buckets=((corpus.frames, corpus.frames),),
        shuffle=False,
        threads=1,
        prefetch_batches=1,
    )
    settings = replace(settings, augment=AugmentSettings() if augmented else None)
    with closing(batches(corpus.shards, settings, epochs=epochs)) as iterator:
        yield from iterator


def exhaust(case: Any, times: int) -> None:
    for _ in range(times):
        for _ in case():
            pass


def last_of(items: Iterator[Any]) -> Any:
    *_, last = items
    return last


def row(case: str, seconds: float, corpus: Corpus) -> dict[str, Any]:
    """One time through all recordings."""
    frames = len(corpus.flat_TF)
    return {
        "case": case,
        "examples": corpus.count,
        "frames": frames / corpus.count,
        "ms_per_example": 1000 * seconds / corpus.count,
        "examples_per_s": corpus.count / seconds,
        "frames_per_s": frames / seconds,
        "mb_per_s_float16": frames * 256 / seconds / 1e6,
        "x_real_time": frames * 512 / 22050 / seconds,
    }


if __name__ == "__main__":
    main()
