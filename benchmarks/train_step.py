"""The training step against the same model in PyTorch: forward, backward, AdamW; and what our loop adds.

Planted batches of noise, one core. `benchmarks/torch_twin.py` has our parameters and must give our loss, its
parts, the states of encoder and decoder, and every gradient (as the optimizers' first moments hold it) within
1e-4 of its own largest entry (values: of themselves, where they are above one) before anything is timed. Its
attention is dense, or block-sparse, the fastest that torch has on a CPU. `--compile` adds torch.compile of
both, which takes minutes, and on a GPU of FlexAttention. Two sizes: `configs/pointer_tiny.py`, and
`configs/pointer_base.py` without the part that listens to stems. Seconds are medians of CPU seconds, the
cases taking turns; our loop takes turns with the bare step, and waits for each of its steps to end; compiling
is apart. `of ceiling` is the share of the fastest matrix product that the model's own products (counted in
the block-sparse twin, so the same for all) would reach if nothing else took time.

On a CPU all is float32. On a GPU agreement is proved in float32, then all is timed in bfloat16 by the wall
clock; nobody has run that yet.
"""

import functools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from report import (
    accelerated,
    clock,
    finish,
    growth_exponent,
    installed,
    matrix_gflops,
    median_seconds,
    options,
    require_agreement,
    use_one_core,
)

use_one_core()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from planted_batch import planted  # noqa: E402

from editjax import losses  # noqa: E402
from editjax.config import load_config  # noqa: E402
from editjax.data import Batch  # noqa: E402
from editjax.family import family_of  # noqa: E402
from editjax.models.encoder import encode  # noqa: E402
from editjax.models.layers import frame_mask  # noqa: E402
from editjax.models.pointer import PointerSettings, decoder_call  # noqa: E402
from editjax.models.style import Asked, prior  # noqa: E402
from editjax.step import TrainConfig, init_state, update  # noqa: E402
from editjax.train import train  # noqa: E402

CONFIGS = Path(__file__).parent.parent / "configs"
FRAMES, LENGTHS = 4096, (2048, 8192)
EXAMPLES = {"tiny": 4, "base": 2}
JUMP_FRAMES = 64  # keep a run of frames this long, then skip as many
TOLERANCE = 1e-4
TWINS = {"torch, dense": "dense", "torch, block-sparse": "block"}
DEVICE = "cuda" if jax.default_backend() == "gpu" else "cpu"
DTYPE = "bfloat16" if accelerated() else "float32"


def main() -> None:
    """Prove that the twins agree, time them beside ours, then our loop."""
    chosen = options(__doc__, compile="also time torch.compile of the twins (minutes)")
    frames, rounds = (688, 1) if chosen.quick else (FRAMES, 5)
    configs = sizes(chosen.quick)
    peers = kinds_of_twins(chosen.compile) if installed("torch") else {}
    rows, ratios = [], {}
    for size, config in configs.items():
        found = rows_of_size(size, config, frames, peers, rounds)
        rows += found
        ours_s = found[0]["step_s"]
        ratios |= {f"{row['case']} / ours, {size}": row["step_s"] / ours_s for row in found[1:]}
    lengths = (frames,) if chosen.quick else (LENGTHS[0], frames, LENGTHS[1])
    loops = [loop_row(configs["tiny"], n_frames) for n_frames in lengths]
    ratios["loop / bare step"] = loops[-1]["step_s"] / loops[-1]["bare step s"]
    if len(lengths) > 1:
        ratios["growth exponent"] = growth_exponent(lengths, [row["bare step s"] for row in loops])
    packages = ("jax", "flax", "optax", *(["torch"] if peers else []))
    finish("train_step", rows + loops, ratios, packages, chosen.out)


def sizes(quick: bool) -> dict[str, TrainConfig]:
    """The two sizes of the model; one small layer each in a smoke test. Nothing is averaged or saved."""
    found = {}
    for size in ("tiny",) if quick else ("tiny", "base"):
        config = load_config(CONFIGS / f"pointer_{size}.py")
        model = replace(config.model, stem_width=0, dtype=DTYPE)
        optim = replace(config.optim, warmup_steps=1, steps=8)
        still = {"ema_decay": 0.0, "validate_every": 0, "checkpoint_every": 0}
        found[size] = replace(config, model=model, optim=optim, **still)
    if quick:
        found["tiny"] = replace(found["tiny"], model=replace(found["tiny"].model, landmark_layers=1))
    return found


def kinds_of_twins(with_compile: bool) -> dict[str, tuple[str, bool]]:
    """Attention of each twin, and whether it is compiled: FlexAttention is made for that, and for GPUs."""
    twins = {case: (kind, False) for case, kind in TWINS.items()}
    if with_compile:
        compiled = TWINS | ({"torch, FlexAttention": "flex"} if accelerated() else {})
        twins |= {f"{case}, compiled": (kind, True) for case, kind in compiled.items()}
    return twins


def rows_of_size(
    size: str, config: TrainConfig, n_frames: int, peers: dict[str, tuple[str, bool]], rounds: int
) -> list[dict[str, Any]]:
    """Ours, then each peer, at one size of the model."""
    batch = planted(n_frames, EXAMPLES[size], JUMP_FRAMES, JUMP_FRAMES)
    exact = replace(config, model=replace(config.model, dtype="float32"))
    with jax.default_matmul_precision("highest"):
        ours, twins = runners(exact, batch, peers)
        for case, twin in twins.items():
            prove_agreement(f"{case}, {size}", exact, batch, ours, twin)
    gflop = twins["torch, block-sparse"].gflop() if twins else None
    if config != exact:
        ours, twins = runners(config, batch, peers)
    cases: dict[str, Any] = {"ours": ours, **twins}
    seconds = median_seconds({case: runner.step for case, runner in cases.items()}, rounds, clock())
    ceiling = matrix_gflops()
    return [
        {
            "size": size,
            "case": case,
            "frames": n_frames,
            "examples": EXAMPLES[size],
            "compile_s": cases[case].compile_s,
            "step_s": taken,
            "frames_per_s": EXAMPLES[size] * n_frames / taken,
            **({"GFLOP": gflop, "of ceiling": gflop / taken / ceiling} if gflop else {}),
            **({"temporary MB": cases[case].temporary_mb} if case == "ours" else {}),
        }
        for case, taken in seconds.items()
    ]


def runners(
    config: TrainConfig, batch: Batch, peers: dict[str, tuple[str, bool]]
) -> tuple["Ours", dict[str, "Torch"]]:
    """Our step and the peers', from the same parameters."""
    ours = Ours(config, batch)
    return ours, {case: Torch(config, batch, ours.first.params, *how) for case, how in peers.items()}


class Ours:
    """Our step, compiled; `first` is the state before it, `moments` what AdamW remembers of one gradient."""

    def __init__(self, config: TrainConfig, batch: Batch) -> None:
        family, self.batch, self.key = family_of(config.model), batch, jax.random.key(config.seed)
        self.first = jax.device_get(jax.jit(functools.partial(init_state, config, family))(self.key))
        step = functools.partial(update, config=config, family=family)
        began = clock()()
        self.compiled = jax.jit(step, donate_argnums=0).lower(self.first, batch, self.key).compile()
        self.compile_s = clock()() - began
        self.temporary_mb = self.compiled.memory_analysis().temp_size_in_bytes / 1e6
        self.state, metrics = self.compiled(jax.device_put(self.first), batch, self.key)
        self.metrics = jax.device_get(metrics)
        self.moments = jax.device_get(self.state.opt_state[1][0].mu)

    def step(self) -> None:
        self.state, _ = jax.block_until_ready(self.compiled(self.state, self.batch, self.key))


class Torch:
    """The twin's step, after one step from the same parameters whose loss, parts and moments it keeps."""

    def __init__(self, config: TrainConfig, batch: Batch, params: Any, kind: str, compiled: bool) -> None:
        import torch
        from torch_style import chance_of
        from torch_twin import tensors, twin_of

        torch.set_num_threads(1)
        torch.backends.cudnn.allow_tf32 = False
        self.torch, self.weights, self.batch = torch, config.loss, tensors(batch, DEVICE)
        self.half = torch.autocast(DEVICE, torch.bfloat16, enabled=config.model.dtype == "bfloat16")
        key = jax.random.fold_in(jax.random.key(config.seed), 0)  # of our first step
        chance = chance_of(key, len(batch.steps_B), config.model, config.loss)
        self.chance = type(chance)(*(drawn.to(DEVICE) for drawn in chance))
        self.twin = twin_of(config.model, params, kind).to(DEVICE)
        optim = config.optim
        self.clip = optim.clip_norm
        groups = [
            {"params": [p for p in self.twin.parameters() if p.ndim > 1], "weight_decay": optim.weight_decay},
            {"params": [p for p in self.twin.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=optim.learning_rate, betas=(optim.b1, optim.b2), eps=optim.eps, fused=True
        )
        self.forward: Callable[..., Any] = torch.compile(self.twin) if compiled else self.twin
        began = clock()()
        self.loss, self.parts = self.step()
        self.compile_s = clock()() - began if compiled else 0.0
        moments = {n: self.optimizer.state[p]["exp_avg"] for n, p in self.twin.named_parameters()}
        self.moments = {name: moment.to("cpu", copy=True) for name, moment in moments.items()}

    def step(self) -> Any:
        self.optimizer.zero_grad()
        with self.half:
            loss, parts = self.forward(self.batch, self.weights, self.chance)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.twin.parameters(), self.clip)
        self.optimizer.step()
        return float(loss.detach()), {name: float(part.detach()) for name, part in parts.items()}

    def gflop(self) -> float:
        """Matrix products and convolutions of forward and backward, attention included, in 10⁹ operations."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.forward(self.batch, self.weights, self.chance)[0].backward()
        return counter.get_total_flops() / 1e9


def prove_agreement(case: str, config: TrainConfig, batch: Batch, ours: Ours, twin: Torch) -> None:
    """The loss, its parts, states and gradients of the first step, from the same parameters."""
    from torch_twin import converted

    require_agreement(f"{case}: loss", abs(twin.loss - float(ours.metrics["loss"])), TOLERANCE)
    for name, value in twin.parts.items():
        wanted = float(ours.metrics[name])
        require_agreement(f"{case}: {name}", abs(value - wanted) / max(1.0, abs(wanted)), TOLERANCE)
    moments = converted(ours.moments)
    largest = max(float(moment.abs().max()) for moment in moments.values())
    unlike = {
        name: float((twin.moments[name] - moment).abs().max())
        / max(float(moment.abs().max()), 1e-3 * largest)  # that of a bias of keys is zero
        for name, moment in moments.items()
    }
    worst = max(unlike, key=lambda name: unlike[name])
    require_agreement(f"{case}: gradients, of which {worst}", unlike[worst], TOLERANCE)
    for name, difference in state_differences(config, batch, ours.first.params, twin).items():
        require_agreement(f"{case}: {name}", difference, TOLERANCE)


def state_differences(config: TrainConfig, batch: Batch, params: Any, twin: Torch) -> dict[str, float]:
    """How far apart what the encoder and the decoder make of the batch is, with the first parameters."""
    from torch_style import prior as torch_prior
    from torch_twin import frame_mask, targets, twin_of

    fresh = twin_of(config.model, params, twin.twin.encoder.kind).to(DEVICE)
    with twin.torch.no_grad():
        b = twin.batch
        asked = Asked(b.target_B, torch_prior(config.model, b.style_B).mean_BZ)
        encoded = fresh.encoder(b.mel_BTF, b.frames_B, b.phase_BT3, asked)
        step = targets(b.pointers_BN, b.steps_B, b.target_B, b.mel_BTF.shape[1]).step
        h_BND = fresh.decoder.states(fresh.decoder.keys(encoded), step, b.steps_B)
        theirs = [*encoded, h_BND * frame_mask(b.steps_B, h_BND.shape[1])[..., None]]
    wanted = jax.jit(states, static_argnums=0)(config.model, params, batch)
    names = [*type(encoded)._fields, "states_BND"]
    return {
        name: float(np.abs(np.asarray(one) - other.cpu().numpy()).max())
        for name, one, other in zip(names, wanted, theirs, strict=True)
    }


def states(settings: PointerSettings, params: Any, batch: Batch) -> list[Any]:
    """What our encoder makes of the batch, and the decoder's states, zero in the padding."""
    asked = Asked(batch.target_B, prior(settings, batch.style_B).mean_BZ)
    encoded = encode(settings, params["encoder"], batch.mel_BTF, batch.frames_B, batch.phase_BT3, asked)
    keys = decoder_call(settings, params, "keys", encoded)
    n_frames = batch.mel_BTF.shape[1]
    step = losses.targets(batch.pointers_BN, batch.steps_B, batch.target_B, n_frames).step
    h_BND = decoder_call(settings, params, "states", keys, step, batch.steps_B)
    return [*encoded, jnp.where(frame_mask(batch.steps_B, h_BND.shape[1])[..., None], h_BND, 0.0)]


def loop_row(config: TrainConfig, n_frames: int) -> dict[str, Any]:
    """The loop, `editjax.train.train` with its journal, taking turns with the bare step, whose result it must
    have in the end."""
    ours = Ours(config, planted(n_frames, EXAMPLES["tiny"], JUMP_FRAMES, JUMP_FRAMES))
    ours.state = jax.device_put(ours.first)
    turns = Turns(ours)
    with tempfile.TemporaryDirectory() as folder:
        looped = train(config, turns, folder)
    unequal = jax.tree.map(
        lambda a, b: int((np.asarray(a) != np.asarray(b)).sum()), ours.state.params, looped.params
    )
    require_agreement(f"loop, {n_frames} frames", sum(jax.tree.leaves(unequal)), 0)
    loop_s, bare_s = (statistics.median(taken[1:]) for taken in (turns.loop_s, turns.bare_s))
    return {
        "size": "tiny",
        "case": "our loop",
        "frames": n_frames,
        "examples": EXAMPLES["tiny"],
        "compile_s": ours.compile_s,
        "step_s": loop_s,
        "bare step s": bare_s,
        "frames_per_s": EXAMPLES["tiny"] * n_frames / loop_s,
    }


class Turns:
    """The same batch for ever; whenever the loop asks for it, the bare step takes a turn.

    Seconds of both, the first of the loop's with what it compiles.
    """

    def __init__(self, ours: Ours) -> None:
        self.ours = ours
        self.loop_s: list[float] = []
        self.bare_s: list[float] = []
        self.given: float | None = None

    def __next__(self) -> Batch:
        jax.block_until_ready([array for array in jax.live_arrays() if not array.is_deleted()])
        now = clock()
        began = now()
        if self.given is not None:
            self.loop_s.append(began - self.given)
        self.ours.step()
        self.given = now()
        self.bare_s.append(self.given - began)
        return self.ours.batch

    def get_state(self) -> None:
        """Nothing to remember: every batch is the same."""

    def set_state(self, state: None) -> None:
        """Nothing to restore."""


if __name__ == "__main__":
    main()
