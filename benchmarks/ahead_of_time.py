"""What training and decoding of the base model take on TPUs that are not here, from their compiler alone.

The train step of `configs/pointer_base.py` for its longest bucket, an example or a part of one on every chip,
and the decoder are compiled ahead of time with `libtpu` (`pip install libtpu`; Google's licence, so no
dependency of anything here), each in a process of its own that is ended after an hour. GB are what one chip
holds at most of its memory: arguments, results, and what the program needs between; MB are what collectives
of each kind yield on a chip, those within a loop once; `sequence gathered` is the largest all-gather that is
no parameter's and has a number for every frame at least. TFLOP are model FLOPs a chip (`editjax/flops.py`),
which XLA's own count is not; `shares` are the parts into which the processes of the slice split a batch. The
same step and decoder are lowered for NVIDIA GPUs, which needs no more than JAX: `kernels` are those of
`mosaic`.

Nothing here says how fast anything is.
"""

import functools
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from report import finish, installed, options

CONFIGS = Path(__file__).parent.parent / "configs"
LIMIT_S = 3600
H100 = "NVIDIA H100 80GB HBM3"
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
KINDS = "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
ARRAY = re.compile(r"(\w+)\[([\d,]+)\]")  # scalars are no matter


class Case(NamedTuple):
    """A program for devices that are not here: `topology` as libtpu names it, or `gpu` and how many."""

    topology: str
    program: str
    config: str = "pointer_base"
    overrides: tuple[str, ...] = ()
    bucket: int = -1


def on(topology: str, program: str, *overrides: str, **mesh: int) -> Case:
    """A case with an example, or a part of one, on every chip."""
    chips = math.prod(int(n) for n in topology.split(":")[1].split("x"))
    examples = chips // mesh.get("seq", 1) // mesh.get("tensor", 1)
    settings = {"--data.batch-multiple": examples, **{f"--mesh.{axis}": n for axis, n in mesh.items()}}
    asked = tuple(f"{name}={value}" for name, value in settings.items())
    return Case(topology, program, overrides=(*asked, *overrides))


STEP, DECODER = "train step", "decoder"
CASES = (
    on("v5e:16x16", STEP, fsdp=8),
    on("v5e:16x16", DECODER),
    on("v6e:16x16", STEP, fsdp=8),
    on("v6e:16x16", DECODER),
    on("v5e:16x16", STEP, fsdp=8, seq=4),
    on("v5e:2x2", STEP, fsdp=4),
    on("gpu:8", STEP, fsdp=8),
    on("gpu:8", STEP, "--model.attention=mosaic", fsdp=8),
    on("gpu:8", DECODER),
)
QUICK = (on("gpu:2", STEP, fsdp=2)._replace(config="pointer_tiny", bucket=0),)


def main() -> None:
    """Compile each case in a process of its own; end with an error where one fails or gathers time."""
    chosen = options(__doc__, alone="compile the one case that is given as JSON on standard input")
    if chosen.alone:
        print(json.dumps(compiled(Case(*json.load(sys.stdin)))))
        return
    tpus = not chosen.quick and installed("libtpu")
    cases = QUICK if chosen.quick else [case for case in CASES if tpus or case.topology.startswith("gpu")]
    rows = [row_of(case) for case in cases]
    finish("ahead_of_time", rows, {}, ("jax", *(["libtpu"] if tpus else [])), chosen.out)
    if any("problem" in row for row in rows):
        sys.exit("not every program was compiled as it should be")


def row_of(case: Case) -> dict[str, Any]:
    """The figures of a case, or why there are none."""
    about = {"for": case.topology, "program": case.program, "config": case.config}
    libtpu = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **libtpu}
    command = [sys.executable, __file__, "--alone"]
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, input=json.dumps(case), env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return {**about, "problem": f"not compiled within {LIMIT_S} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or [""]
        return {**about, "problem": f"ended with {done.returncode}: {said[-1][:280]}"}
    row = {**about, **json.loads(done.stdout.splitlines()[-1])}
    if row.get("sequence gathered MB") and "seq" not in row["mesh"]:
        row["problem"] = "gathers a sequence"
    print({**row, "s": round(time.perf_counter() - began)}, file=sys.stderr, flush=True)
    return row


def compiled(case: Case) -> dict[str, Any]:
    """What the compiler says of a case."""
    import jax

    from editjax.config import load_config, override
    from editjax.mesh import make_mesh, share_of_examples

    config = override(load_config(CONFIGS / f"{case.config}.py"), case.overrides)
    kind, count = case.topology.split(":")
    gpus = kind == "gpu"
    mesh = h100s(int(count), config.mesh) if gpus else make_mesh(config.mesh, tpus(case.topology))
    bucket = config.data.buckets[case.bucket]
    shares = {} if gpus else {"shares": len({share_of_examples(mesh, n) for n in processes(mesh)})}
    about = {
        "mesh": " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1),
        "frames": bucket[0],
        "steps": bucket[1],
        "batch": config.data.batch_size(bucket[0]),
        **shares,
    }
    with jax.sharding.use_abstract_mesh(mesh) if gpus else jax.set_mesh(mesh):
        traced, params = (train_step if case.program == STEP else decoder)(config, mesh, bucket)
        if gpus:
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
            return {**about, "attention": config.model.attention, "kernels": text.count("mosaic_gpu")}
        program = traced.lower().compile()
    return {**about, **figures(program, traced, params, bucket[0], mesh.size)}


def tpus(topology: str) -> Any:
    """The chips of a slice."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def processes(mesh: Any) -> set[int]:
    """Those that run on the chips of a mesh."""
    return {chip.process_index for chip in mesh.devices.flat}


def h100s(count: int, settings: Any) -> Any:
    """As many H100s, of which nothing but the kind is known."""
    from jax.sharding import AbstractDevice, AbstractMesh, AxisType

    from editjax.mesh import AXES

    one = AbstractDevice(device_kind=H100, num_cores=132, platform="gpu")
    others = settings.fsdp, settings.tensor, settings.seq
    sizes = count // math.prod(others), *others
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), abstract_device=one)


def laid(shapes: Any, shardings: Any) -> Any:
    """Shapes with their layouts."""
    import jax

    return jax.tree.map(
        lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), shapes, shardings
    )


def train_step(config: Any, mesh: Any, bucket: tuple[int, int]) -> tuple[Any, Any]:
    """The run's own step, traced for a batch of this bucket, and its parameters' shapes."""
    import jax
    from jax.sharding import NamedSharding

    from editjax.family import family_of
    from editjax.mesh import REPLICATED, batch_shardings, state_shardings
    from editjax.step import compiled_update, init_state

    family, key = family_of(config.model, config.loss), jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(init_state, config, family), key)
    layout = state_shardings(state, mesh, family.rules)
    batch = batch_of(config, bucket)
    arguments = (
        laid(state, layout),
        laid(batch, batch_shardings(batch, mesh)),
        laid(key, NamedSharding(mesh, REPLICATED)),
    )
    return compiled_update(config, family, layout).trace(*arguments), state.params


def batch_of(config: Any, bucket: tuple[int, int]) -> Any:
    """The shapes of a batch of this bucket."""
    import jax
    import numpy as np

    from editjax.data import Slot, empty_batch
    from editjax.mel import MelSettings

    one = empty_batch(1, Slot(*bucket, np.arange(1)), 0, config.data.edited, MelSettings())
    size = config.data.batch_size(bucket[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), one)


def decoder(config: Any, mesh: Any, bucket: tuple[int, int]) -> tuple[Any, Any]:
    """Encoding and greedy decoding of a batch of this bucket, traced, and the parameters' shapes."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from editjax.decode import decode, encode
    from editjax.mesh import REPLICATED, batch_shardings
    from editjax.models import pointer
    from editjax.models.style import Asked

    settings, (_, n_steps) = config.model, bucket

    def edit(params: Any, mel_BTF: Any, frames_B: Any, phase_BT3: Any, target_B: Any, key: Any) -> Any:
        asked = Asked(target_B, jnp.zeros((len(mel_BTF), settings.style_width)))
        _, keys = encode(settings, params, mel_BTF, frames_B, phase_BT3, asked)
        return decode(settings, params, keys, target_B, n_steps, 0.0, key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(functools.partial(pointer.init, settings), key)
    whole, batch = NamedSharding(mesh, REPLICATED), batch_of(config, bucket)
    batch = laid(batch, batch_shardings(batch, mesh))
    inputs = batch.mel_BTF, batch.frames_B, batch.phase_BT3, batch.target_B
    copied = jax.tree.map(lambda _: whole, params)
    return jax.jit(edit).trace(laid(params, copied), *inputs, laid(key, whole)), params


def figures(program: Any, traced: Any, params: Any, frames: int, devices: int) -> dict[str, Any]:
    """Memory, traffic and work of a compiled program, of one device."""
    import jax

    from editjax.flops import model_flops

    memory, flops = program.memory_analysis(), model_flops(traced.jaxpr.jaxpr)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    known = {math.prod(leaf.shape[n:]) for leaf in jax.tree.leaves(params) for n in (0, 1)}
    moved, gathered = traffic(program.as_text(), known, frames)
    return {
        "arguments and results GB": held / 1e9,
        "GB": (held + memory.temp_size_in_bytes) / 1e9,
        **{f"{kind} MB": moved.get(kind, 0) / 1e6 for kind in KINDS},
        "sequence gathered MB": gathered / 1e6,
        "TFLOP": None if flops is None else flops / devices / 1e12,
    }


def traffic(text: str, parameters: set[int], frames: int) -> tuple[dict[str, int], int]:
    """Bytes that collectives of each kind yield, and those of the largest all-gather of a sequence.

    `parameters` are the numbers of elements of each, and of its layers where it holds several; of a sequence
    is what has no such number, and one for every frame at least.
    """
    moved: dict[str, int] = {}
    gathered = 0
    for results, kind, started in COLLECTIVE.findall(text):
        arrays = [(dtype, [int(n) for n in shape.split(",")]) for dtype, shape in ARRAY.findall(results)]
        if started and kind != "all-reduce":  # what goes in is told too
            arrays = arrays[len(arrays) // 2 :]
        for dtype, shape in arrays:
            size = BYTES[dtype] * math.prod(shape)
            moved[kind] = moved.get(kind, 0) + size
            if kind == "all-gather" and math.prod(shape) >= frames and math.prod(shape) not in parameters:
                gathered = max(gathered, size)
    return moved, gathered


if __name__ == "__main__":
    main()
