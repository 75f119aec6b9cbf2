"""Input pipeline: shards → batches against copying the same mels from a memory map; and making the shards.

Simulated sessions are prepared into shards, and their mels are written to one flat float16 file. Every case
then goes through all recordings in the same order: the flat file copied as it is, the flat file copied into
padded float32 batches, the records read and decoded one by one, Grain batches as they are, and augmented.
One core, CPU seconds, page cache warm.
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

from report import fastest_seconds, finish, options, require_agreement, use_one_core

if TYPE_CHECKING:
    import numpy as np

BATCH = 4
PEER = "memory map, padded float32"


class Size(NamedTuple):
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
        return int((self.starts[1:] - self.starts[:-1]).max())


def main() -> None:
    settings = options(__doc__)
    size = Size(4, 1, 2) if settings.quick else Size(24, 3, 7)
    use_one_core()
    with tempfile.TemporaryDirectory() as name:
        corpus, prepare_s = make_corpus(Path(name), size.sessions)
        last_BTF = last_of(grain_batches(corpus, augmented=False)).mel_BTF
        difference = abs(last_BTF - last_of(padded_batches(corpus))).max()
        require_agreement("Grain batches", float(difference), 0.0)
        cases = {
            "memory map, copied": partial(copied, corpus),
            PEER: partial(padded_batches, corpus),
            "records, decoded": partial(decoded, corpus),
            "Grain batches": partial(grain_batches, corpus, augmented=False, epochs=size.epochs),
            "Grain batches, augmented": partial(grain_batches, corpus, augmented=True, epochs=size.epochs),
        }
        repeats = {case: 1 if case.startswith("Grain") else size.epochs for case in cases}
        runs = {case: partial(exhaust, cases[case], repeats[case]) for case in cases}
        seconds = fastest_seconds(runs, size.rounds)
        frames, examples = len(corpus.flat_TF), len(corpus.starts) - 1
    rows = [row(case, seconds[case] / size.epochs, frames, examples) for case in cases]
    rows.append(row("prepare", prepare_s, frames, examples))
    ratios = {f"{case} / {PEER}": seconds[PEER] / seconds[case] for case in list(cases)[2:]}
    finish("data", rows, ratios, ("numpy", "grain", "array_record"), settings.out)


def make_corpus(folder: Path, sessions: int) -> tuple[Corpus, float]:
    """Simulate sessions and prepare them; also the CPU seconds that preparing took."""
    import numpy as np

    from editjax.prepare import prepare
    from editjax.shards import read
    from editjax.simulate import SimulateSettings, write_sessions

    for _ in write_sessions(folder / "pairs", sessions, 0, SimulateSettings()):
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

    for k in range(len(corpus.starts) - 1):
        yield np.array(corpus.flat_TF[corpus.starts[k] : corpus.starts[k + 1]])


def padded_batches(corpus: Corpus) -> Iterator[np.ndarray]:
    import numpy as np

    count, bands = len(corpus.starts) - 1, corpus.flat_TF.shape[1]
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


def row(case: str, seconds: float, frames: int, examples: int) -> dict[str, str | float]:
    return {
        "case": case,
        "ms_per_example": 1000 * seconds / examples,
        "frames_per_s": frames / seconds,
        "mb_per_s_float16": frames * 256 / seconds / 1e6,
        "x_real_time": frames * 512 / 22050 / seconds,
    }


if __name__ == "__main__":
    main()
