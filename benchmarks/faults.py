"""Faults injected into what training keeps (checkpoints, exported models, shards), and what becomes of each.

A flipped bit, a file cut short, deleted, or exchanged with another (of the same folder, or of its twin: the
checkpoint before, another model, other shards), one at a time, in a file drawn at random. `walked back`: the
checkpoint before is taken, and stderr names the file; `refused`: an error. `named` of these name the damaged
file, `pair named` one that it no longer agrees with, as a whole file in the wrong place makes it. `silent` is
all the rest. Controls: what Orbax loads and ArrayRecord reads where nobody looks at a manifest; `harmless` is
what gives the arrays that were written. Agreement first: without a fault all three are accepted.
"""

import contextlib
import io
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from report import finish, options

from editjax import shards
from editjax.checkpoint import Checkpoints
from editjax.config import to_json
from editjax.errors import EditjaxError
from editjax.export import export_run, load_bundle
from editjax.family import family_of
from editjax.mel import MelSettings
from editjax.models.pointer import PointerSettings
from editjax.optim import OptimSettings, make_optimizer
from editjax.records import Edit, Recording, encode
from editjax.step import TrainConfig

FAULTS, QUICK, CONTROLS = 3400, 60, 200
KINDS = "flip", "cut", "delete", "exchange"
SETTINGS = PointerSettings(
    n_mels=64, width=16, heads=1, landmark_layers=1, frame_width=16, frames_per_beat=4, frames_per_bar=16
)
OLDER, NEWEST = 4, 8


def main() -> None:
    """Make the three, prove that they are accepted, break them."""
    chosen = options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        rows = campaign(Path(folder), QUICK if chosen.quick else FAULTS)
        rows += controls(Path(folder), 10 if chosen.quick else CONTROLS)
    of_ours = [row for row in rows if row["fault"] in KINDS]
    totals = {name: sum(row[name] for row in of_ours) for name in ("faults", "silent")}
    finish("faults", rows, totals, ("orbax-checkpoint", "array_record"), chosen.out)
    if totals["silent"]:
        sys.exit("a fault went unnoticed")


def campaign(folder: Path, count: int) -> list[dict[str, Any]]:
    """Rows of `count` faults, evenly of all kinds, in each of the three."""
    make(folder)
    rng = np.random.default_rng(0)
    outcomes: dict[tuple[str, str], Counter] = {}
    for name, look in LOOKS.items():
        victim, twin = folder / name, folder / f"{name} twin"
        if told := look(victim):
            sys.exit(f"{name} whole, but: {told}")
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            with broken(victim, twin, kind, rng) as path:
                told = look(victim)
            found = outcomes.setdefault((name, kind), Counter())
            found["faults"] += 1
            found[outcome(told)] += 1
            found["named"] += str(path) in told
            found["pair named"] += str(path) not in told and str(victim) in told
    columns = ("faults", "walked back", "refused", "named", "pair named", "silent")
    return [
        {"what": name, "fault": kind} | {column: found[column] for column in columns}
        for (name, kind), found in outcomes.items()
    ]


def outcome(told: str) -> str:
    """A fault must be told of, by a file's name."""
    if "passed over" in told:
        return "walked back"
    return "refused" if told else "silent"


@contextlib.contextmanager
def broken(victim: Path, twin: Path, kind: str, rng: np.random.Generator) -> Iterator[Path]:
    """The file that holds the fault, which is mended on leaving."""
    files = [path for path in sorted(victim.rglob("*")) if path.is_file() and path.name != "README.md"]
    with contextlib.ExitStack() as mended:
        while True:
            path = files[rng.integers(len(files))]
            content = path.read_bytes()
            changed = [(path, fault(path, content, kind, files, victim, twin, rng))]
            if kind == "exchange" and changed[0][1] is not None:
                other = next((p for p in files if p.read_bytes() == changed[0][1]), None)
                changed += [(other, content)] if other else []
            if changed[0][1] != content:
                break
        for target, new in changed:
            mended.callback(target.write_bytes, target.read_bytes())
            if new is None:
                target.unlink()
            else:
                target.write_bytes(new)
        yield path


def fault(
    path: Path,
    content: bytes,
    kind: str,
    files: list[Path],
    victim: Path,
    twin: Path,
    rng: np.random.Generator,
) -> bytes | None:
    """What a file holds after a fault; None: nothing, not even a file."""
    match kind:
        case "delete":
            return None
        case "cut":
            return content[: rng.integers(len(content))] if content else content
        case "flip":
            flipped = bytearray(content)
            if flipped:
                flipped[rng.integers(len(flipped))] ^= 1 << int(rng.integers(8))
            return bytes(flipped)
        case _:
            like = twin / path.relative_to(victim)
            return (
                like if like.exists() and rng.random() < 0.5 else files[rng.integers(len(files))]
            ).read_bytes()


def look_at_checkpoints(newest: Path) -> str:
    """What a trainer that resumes is told; the newest checkpoint lies in a folder beside the one before."""
    folder = newest.parent / "run"
    said = io.StringIO()
    with contextlib.redirect_stderr(said), linked(newest, folder / str(NEWEST)):
        try:
            step = Checkpoints(folder, writable=False).newest_whole()
        except EditjaxError as error:
            return f"{error} "
    told = said.getvalue().replace(str(folder / str(NEWEST)), str(newest))
    return told if step == OLDER else ""


@contextlib.contextmanager
def linked(folder: Path, name: Path) -> Iterator[None]:
    folder.rename(name)
    try:
        yield
    finally:
        name.rename(folder)


def told_by(function: Callable[[Path], Any]) -> Callable[[Path], str]:
    """The error that a function of a folder ends with, or nothing."""

    def look(folder: Path) -> str:
        try:
            function(folder)
        except EditjaxError as error:
            return str(error)
        return ""

    return look


LOOKS = {
    "checkpoint": look_at_checkpoints,
    "model": told_by(load_bundle),
    "shards": told_by(shards.verify),
}


def make(folder: Path) -> None:
    """A run with two checkpoints, the models made of them, and two folders of shards."""
    notes = {
        "family": "pointer",
        "config": to_json(TrainConfig(model=SETTINGS)),
        "origin": {"mel": to_json(MelSettings(n_mels=64))},
        "scores": {"score": 0.5},
    }
    with Checkpoints(folder / "run") as run:
        for step in (OLDER, NEWEST):
            run.save(step, {**parts_of(step), "step": jnp.int32(step)}, {**notes, "data": {"next": step}})
            shutil.copytree(folder / "run", folder / f"at {step}" / "last")
            export_run(folder / f"at {step}", folder / f"model {step}", which="last")
    (folder / f"model {NEWEST}").rename(folder / "model")
    (folder / f"model {OLDER}").rename(folder / "model twin")
    (folder / "run" / str(NEWEST)).rename(folder / "checkpoint")
    shutil.copytree(folder / "run" / str(OLDER), folder / "checkpoint twin")
    for seed, name in enumerate(("shards", "shards twin")):
        records = (encode(recording(seed, number)) for number in range(8))
        shards.write(folder / name, records, mel={"n_mels": 4}, settings={}, shard_bytes=2000)


def parts_of(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    shapes = jax.eval_shape(lambda key: family_of(SETTINGS).init(SETTINGS, key), jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    return {"params": params, "opt_state": make_optimizer(OptimSettings()).init(params)}


def recording(seed: int, number: int) -> Recording:
    rng = np.random.default_rng([seed, number])
    edit = Edit(
        id=f"{seed}-{number}",
        style="final",
        pointers_N=np.arange(number, 30, dtype=np.int32),
        labels=np.zeros(5, np.uint8),
        edit_mel_NF=None,
        meta={"natural": True},
    )
    return Recording(
        id=f"{seed}-{number}",
        mel_TF=rng.random((40, 4)).astype(np.float16),
        phase_T3=rng.random((40, 3)).astype(np.float16),
        beat_frames=np.arange(0, 40, 8, dtype=np.int32),
        edits=(edit,),
        meta={"sources": ["a song"], "split": "train"},
    )


def controls(folder: Path, count: int) -> list[dict[str, Any]]:
    """Flipped bits in files of arrays and in shards, read by those who made the formats."""
    from orbax.checkpoint import v1 as ocp

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    parts = parts_of(NEWEST)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), parts)

    def loaded() -> list[np.ndarray]:
        return jax.tree.leaves(jax.device_get(ocp.load_checkpointables(folder / "checkpoint", wanted)))

    def read() -> list[np.ndarray]:
        with shards.read(folder / "shards") as source:
            every = [source.recording(number) for number in range(8)]
        return [array for one in every for array in (one.mel_TF, one.phase_T3, one.edits[0].pointers_N)]

    arrays = [path for path in (folder / "checkpoint").rglob("d/*") if path.is_file()]
    return [
        control("checkpoint", "flip, Orbax alone", loaded, arrays, count),
        control(
            "shards", "flip, ArrayRecord alone", read, sorted(folder.glob("shards/*.array_record")), count
        ),
    ]


def control(
    what: str, name: str, read: Callable[[], list[np.ndarray]], files: list[Path], count: int
) -> dict[str, Any]:
    """A row of bits flipped in some files, larger ones more often."""
    rng, found, whole = np.random.default_rng(1), Counter(), read()
    sizes = np.array([path.stat().st_size for path in files])
    for _ in range(count):
        path = files[rng.choice(len(files), p=sizes / sizes.sum())]
        content = path.read_bytes()
        flipped = np.frombuffer(content, np.uint8).copy()
        flipped[rng.choice(np.flatnonzero(flipped))] ^= 1 << rng.integers(8)  # zeros are mostly padding
        path.write_bytes(flipped.tobytes())
        try:
            same = all(a.tobytes() == b.tobytes() for a, b in zip(read(), whole, strict=True))
            found["harmless" if same else "silent"] += 1
        except Exception:
            found["refused"] += 1
        path.write_bytes(content)
    return {"what": what, "fault": name, "faults": count, **found, "silent": found["silent"]}


if __name__ == "__main__":
    main()
