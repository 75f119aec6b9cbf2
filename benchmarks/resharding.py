"""A run saved on one topology and gone on with on another: its tensors, its batches, its losses.

Topologies are 1, 2, 4 and 8 devices (of a CPU that counts as eight), over which examples are split (data),
examples and parameters (fsdp), or hidden widths as well (fsdp × tensor). On each a small pointer network
(float32, AdamW, averaged parameters, shards of noise that is varied at random) is trained for 20 steps, is
saved, and goes on for 200 more; from each checkpoint those 200 are made again on every topology. A row gives
the largest relative differences of the losses from those of the run that stayed where it was saved: not
zero, for sums are taken in another order, and some 5e-5 where that puts the two on different sides of a kink
of the network (at which the loss is the same and the gradient is not). `unlike`, which must be 0, counts
what is not the same to the bit: tensors restored and saved (by their SHA-256), batches then and of the run
that stayed, and, where the topology is the same, losses and the final state. With fsdp, a parameter and its
moments must lie in as many pieces as fsdp and tensor make, or nothing would be proved.
"""

import contextlib
import dataclasses
import hashlib
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from report import finish, options

from editjax import shards
from editjax.checkpoint import Checkpoints, abstract
from editjax.cli.cache import compile_quickly
from editjax.data import DataSettings
from editjax.data import batches as read_batches
from editjax.family import Family, family_of
from editjax.losses import LossSettings
from editjax.mesh import MeshSettings, make_mesh, place_batch, state_shardings, tree_path
from editjax.models.pointer import PointerSettings
from editjax.optim import OptimSettings
from editjax.records import Edit, Recording, encode
from editjax.step import TrainConfig, TrainState, compiled_update, init_state
from editjax.train import Batches

DEVICES, BEFORE, AFTER = 8, 20, 200
FIRST_TOLERANCE, TOLERANCE = 1e-6, 1e-4
N_MELS, BUCKET = 32, (64, 32)
TOPOLOGIES = {
    "1 device": MeshSettings(1),
    "2 data": MeshSettings(2),
    "2 fsdp": MeshSettings(1, fsdp=2),
    "4 data": MeshSettings(4),
    "4 fsdp": MeshSettings(1, fsdp=4),
    "2 fsdp × 2 tensor": MeshSettings(1, fsdp=2, tensor=2),
    "8 data": MeshSettings(8),
    "8 fsdp": MeshSettings(1, fsdp=8),
    "4 fsdp × 2 tensor": MeshSettings(1, fsdp=4, tensor=2),
}
QUICK = "1 device", "2 fsdp × 2 tensor"
SETTINGS = PointerSettings(  # as wide as it must be for the smallest array that is split
    n_mels=N_MELS,
    frames_per_beat=8,
    frames_per_bar=16,
    width=128,
    landmark_layers=2,
    landmark_window=8,
    frame_width=16,
    frame_window=8,
    matches=1,
    decoder_window=8,
)


class Job(NamedTuple):
    """What is trained, and its batches from the first on, to be left when done."""

    config: TrainConfig
    family: Family
    batches: Callable[[], contextlib.AbstractContextManager[Batches]]


class Topology(NamedTuple):
    """Devices, how the state lies on them (a TrainState of shapes), and the program of a step."""

    name: str
    mesh: jax.sharding.Mesh
    wanted: TrainState
    advance: Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class Stretch(NamedTuple):
    """Steps in a row: their losses, the SHA-256 of their batches, and of the arrays before and after them."""

    losses: list[float]
    batches: list[str]
    before: dict[str, str]
    after: dict[str, str]


def main() -> None:
    """Train on every topology, go on with each on all."""
    chosen = options(__doc__)
    compile_quickly()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    names = QUICK if chosen.quick else tuple(TOPOLOGIES)
    with tempfile.TemporaryDirectory() as folder:
        job = pointer_job(Path(folder) / "shards")
        rows, totals = campaign(Path(folder), job, names, *((2, 5) if chosen.quick else (BEFORE, AFTER)))
    finish("resharding", rows, totals, ("jax", "optax", "orbax-checkpoint", "grain"), chosen.out)
    if totals["unlike"] or not within(totals):
        sys.exit("a run went on otherwise than it would have")


def within(totals: dict[str, Any]) -> bool:
    """Whether losses are as near to one another as they must be; what is no number is not."""
    return totals["first loss, at most"] <= FIRST_TOLERANCE and totals["losses, at most"] <= TOLERANCE


def campaign(
    folder: Path, job: Job, names: Sequence[str], before: int, after: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of every ordered pair of topologies, and totals; `unlike` counts what is not the same bits."""
    topologies = [topology(name, job) for name in names]
    rows, unlike, tensors = [], 0, 0
    for one in topologies:
        whole = train_and_save(folder / one.name, one, job, before, after)
        for other in topologies:
            resumed = resume(folder / one.name, other, job, after)
            problems = differences(whole, resumed, same_topology=one is other)
            unlike, tensors = unlike + len(problems), tensors + len(resumed.before)
            apart = np.abs(np.subtract(resumed.losses, whole.losses) / whole.losses)
            first, largest = float(apart[0]), float(apart.max())
            row = {"saved on": one.name, "restored on": other.name, "first loss": first, "losses": largest}
            rows.append(row)
            print(*row.values(), *problems, sep=", ", file=sys.stderr)
    return rows, {
        "pairs": len(rows),
        "tensors compared": tensors,
        "batches and losses compared": len(rows) * after,
        "unlike": unlike,
        "first loss, at most": float(np.max([row["first loss"] for row in rows])),
        "losses, at most": float(np.max([row["losses"] for row in rows])),
    }


def topology(name: str, job: Job) -> Topology:
    """The first devices as a mesh, and the program of a step on them, compiled when it is first used."""
    settings = TOPOLOGIES[name]
    mesh = make_mesh(settings, devices=jax.devices()[: math.prod(dataclasses.astuple(settings))])
    shapes = jax.eval_shape(partial(init_state, job.config, job.family), jax.random.key(0))
    layout = state_shardings(shapes, mesh, job.family.rules)
    return Topology(name, mesh, abstract(shapes, layout), compiled_update(job.config, job.family, layout))


def train_and_save(folder: Path, on: Topology, job: Job, before: int, after: int) -> Stretch:
    """The run that stays where it is: the steps after its checkpoint."""
    layout = jax.tree.map(lambda leaf: leaf.sharding, on.wanted)
    init = jax.jit(partial(init_state, job.config, job.family), out_shardings=layout)
    with jax.set_mesh(on.mesh), job.batches() as batches, Checkpoints(folder) as checkpoints:
        state = init(jax.random.key(job.config.seed))
        require_split(on, state)
        state, _, _ = go_on(on, job, state, batches, before)
        checkpoints.save(before, state._asdict(), {"data": batches.get_state()})
        return stretch(on, job, state, batches, after)


def resume(folder: Path, on: Topology, job: Job, steps: int) -> Stretch:
    """The steps after a checkpoint, which may have been saved on another topology."""
    with (
        jax.set_mesh(on.mesh),
        job.batches() as batches,
        Checkpoints(folder, writable=False) as checkpoints,
    ):
        step = checkpoints.newest_whole()
        state = TrainState(**checkpoints.restore(step, on.wanted._asdict()))
        require_split(on, state)
        batches.set_state(checkpoints.notes(step)["data"])
        return stretch(on, job, state, batches, steps)


def stretch(on: Topology, job: Job, state: TrainState, batches: Batches, steps: int) -> Stretch:
    before = digests(state)
    state, losses, drawn = go_on(on, job, state, batches, steps)
    return Stretch(losses, drawn, before, digests(state))


def go_on(
    on: Topology, job: Job, state: TrainState, batches: Batches, steps: int
) -> tuple[TrainState, list[float], list[str]]:
    """The state so many steps later; losses, and digests of the batches as the devices have them."""
    losses, drawn, key = [], [], jax.random.key(job.config.seed)
    for _ in range(steps):
        placed = place_batch(next(batches), on.mesh)
        drawn.append(" ".join(digests(placed).values()))
        state, metrics = on.advance(state, placed, key, None)
        losses.append(float(metrics["loss"]))
    return state, losses, drawn


def differences(whole: Stretch, resumed: Stretch, same_topology: bool) -> list[str]:
    """What was resumed otherwise than it was saved, to the bit."""
    found = [f"{name} restored" for name in changed(whole.before, resumed.before)]
    pairs = enumerate(zip(whole.batches, resumed.batches, strict=True))
    found += [f"batch {number}" for number, (one, other) in pairs if one != other]
    if same_topology:
        found += [f"{name} at the end" for name in changed(whole.after, resumed.after)]
        found += ["losses"] if whole.losses != resumed.losses else []
    return found


def changed(ones: dict[str, str], others: dict[str, str]) -> list[str]:
    return [name for name in sorted(ones | others) if ones.get(name) != others.get(name)]


def digests(tree: Any) -> dict[str, str]:
    """The SHA-256 of every array of a tree, by its path."""
    return {
        tree_path(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def require_split(on: Topology, state: TrainState) -> None:
    """Ends the benchmark unless a parameter and both its moments lie in as many pieces as they may."""
    pieces = {
        tree_path(path): leaf.size // max(leaf.addressable_shards[0].data.size, 1)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    most = on.mesh.shape["fsdp"] * on.mesh.shape["tensor"]
    split = {name for name, count in pieces.items() if count == most}
    for name in split:
        if name.startswith("params/"):
            moments = [f"/{moment}/{name.removeprefix('params/')}" for moment in ("mu", "nu")]
            if all(any(one.endswith(moment) for one in split) for moment in moments):
                return
    sys.exit(f"{on.name}: no parameter lies in {most} pieces with its moments")


def pointer_job(folder: Path) -> Job:
    """The small pointer network, and recordings of noise with planted edits."""
    records = (encode(recording(number)) for number in range(24))
    shards.write(folder, records, mel={"n_mels": N_MELS}, settings={})
    frames, _ = BUCKET
    data = DataSettings(batch_frames=8 * frames, batch_multiple=8, buckets=(BUCKET,), threads=1)
    optim = OptimSettings(learning_rate=3e-4, warmup_steps=10, steps=BEFORE + AFTER)
    config = TrainConfig(
        model=SETTINGS, loss=LossSettings(max_jumps=4), data=data, optim=optim, ema_decay=0.99
    )
    return Job(config, family_of(SETTINGS), lambda: contextlib.closing(read_batches(folder, data)))


def recording(number: int) -> Recording:
    """Noise of which every other bar is kept."""
    rng, (frames, _) = np.random.default_rng(number), BUCKET
    n_frames = int(rng.integers(frames // 2, frames))
    kept_T = np.arange(n_frames) // SETTINGS.frames_per_bar % 2 == number % 2
    edit = Edit(
        id=f"{number}",
        style="final",
        pointers_N=np.flatnonzero(kept_T).astype(np.int32),
        labels=np.zeros(n_frames // SETTINGS.frames_per_beat + 1, np.uint8),
        edit_mel_NF=None,
        meta={"natural": True},
    )
    return Recording(
        id=f"{number}",
        mel_TF=(rng.random((n_frames, N_MELS)) * (0.5 + 0.5 * kept_T[:, None])).astype(np.float16),
        phase_T3=rng.random((n_frames, 3)).astype(np.float16),
        beat_frames=np.arange(0, n_frames, SETTINGS.frames_per_beat, dtype=np.int32),
        edits=(edit,),
        meta={"sources": ["noise"], "split": "train"},
    )


if __name__ == "__main__":
    main()
