"""The training step against the same model in PyTorch: forward, backward, AdamW; and what our loop adds.

Planted batches of noise, one core. `benchmarks/torch_twin.py` has our parameters and must give our loss, its
parts, the states of encoder and decoder, and every gradient (as the optimizers' first moments hold it) within
1e-4 before anything is timed. Its attention is dense, or block-sparse, the fastest that torch has on a CPU.
`--compile` adds torch.compile, which takes minutes. Two sizes: that of `configs/pointer_tiny.py`, and `base`,
with width 256, 4 × 64 heads and 4 + 4 layers. Seconds are medians of CPU seconds, the cases taking turns;
compiling is apart. `of ceiling` is the share of the fastest matrix product that the model's own products
(counted in the block-sparse twin, so the same for all) would reach if nothing else took time.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from report import (
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
from editjax.train import TrainConfig, TrainState, init_state, train, update  # noqa: E402

CONFIG = Path(__file__).parent.parent / "configs" / "pointer_tiny.py"
FRAMES, LENGTHS = 4096, (2048, 8192)
EXAMPLES = {"tiny": 4, "base": 2}
JUMP_FRAMES = 64  # keep a run of frames this long, then skip as many
TOLERANCE = 1e-4
TWINS = {"torch, dense": "dense", "torch, block-sparse": "block"}


def main() -> None:
    """Prove that the twins agree, time them beside ours, then our loop."""
    chosen = options(__doc__, compile="also time torch.compile of both twins (minutes)")
    frames, rounds = (688, 1) if chosen.quick else (FRAMES, 5)
    configs = sizes(load_config(CONFIG), chosen.quick)
    peers = TWINS if installed("torch") else {}
    rows, ratios = [], {}
    for size, config in configs.items():
        found = rows_of_size(size, config, frames, peers, rounds, chosen.compile)
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


def sizes(config: TrainConfig, quick: bool) -> dict[str, TrainConfig]:
    """The two sizes of the model; one small layer each in a smoke test. Nothing is averaged or saved."""
    optim = replace(config.optim, warmup_steps=1, steps=8)
    config = replace(config, optim=optim, ema_decay=0.0, validate_every=0, checkpoint_every=0)
    if quick:
        return {"tiny": replace(config, model=replace(config.model, landmark_layers=1))}
    base = replace(config.model, width=256, heads=4, landmark_layers=4, decoder_layers=4)
    return {"tiny": config, "base": replace(config, model=base)}


def rows_of_size(
    size: str, config: TrainConfig, n_frames: int, peers: dict[str, str], rounds: int, with_compile: bool
) -> list[dict[str, Any]]:
    """Ours, then each peer, at one size of the model."""
    batch = planted(n_frames, EXAMPLES[size], JUMP_FRAMES, JUMP_FRAMES)
    ours = Ours(config, batch)
    twins = {case: Torch(config, batch, ours.first.params, kind) for case, kind in peers.items()}
    for case, twin in twins.items():
        prove_agreement(f"{case}, {size}", config, batch, ours, twin)
    gflop = twins["torch, block-sparse"].gflop() if twins else None
    if with_compile:
        kinds = {f"{case}, compiled": kind for case, kind in peers.items()}
        twins |= {case: Torch(config, batch, ours.first.params, kind, True) for case, kind in kinds.items()}
    cases: dict[str, Any] = {"ours": ours, **twins}
    seconds = median_seconds({case: runner.step for case, runner in cases.items()}, rounds)
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


class Ours:
    """Our step, compiled; `first` is the state before it, `moments` what AdamW remembers of one gradient."""

    def __init__(self, config: TrainConfig, batch: Batch) -> None:
        family, self.batch, self.key = family_of(config.model), batch, jax.random.key(config.seed)
        self.first = jax.device_get(jax.jit(functools.partial(init_state, config, family))(self.key))
        step = functools.partial(update, config=config, family=family)
        began = time.process_time()
        self.compiled = jax.jit(step, donate_argnums=0).lower(self.first, batch, self.key).compile()
        self.compile_s = time.process_time() - began
        self.temporary_mb = self.compiled.memory_analysis().temp_size_in_bytes / 1e6
        self.state, metrics = self.compiled(jax.device_put(self.first), batch, self.key)
        self.metrics = jax.device_get(metrics)
        self.moments = jax.device_get(self.state.opt_state[1][0].mu)

    def step(self) -> None:
        self.state, _ = jax.block_until_ready(self.compiled(self.state, self.batch, self.key))


class Torch:
    """The twin's step, after one step from the same parameters whose loss, parts and moments it keeps."""

    def __init__(
        self, config: TrainConfig, batch: Batch, params: Any, kind: str, compiled: bool = False
    ) -> None:
        import torch
        from torch_style import chance_of
        from torch_twin import tensors, twin_of

        torch.set_num_threads(1)
        self.torch, self.weights, self.batch = torch, config.loss, tensors(batch)
        key = jax.random.fold_in(jax.random.key(config.seed), 0)  # of our first step
        self.chance = chance_of(key, len(batch.steps_B), config.model, config.loss)
        self.twin = twin_of(config.model, params, kind)
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
        began = time.process_time()
        self.loss, self.parts = self.step()
        self.compile_s = time.process_time() - began if compiled else 0.0
        self.moments = {
            n: self.optimizer.state[p]["exp_avg"].clone() for n, p in self.twin.named_parameters()
        }

    def step(self) -> Any:
        self.optimizer.zero_grad()
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
        require_agreement(f"{case}: {name}", abs(value - float(ours.metrics[name])), TOLERANCE)
    moments = converted(ours.moments)
    scale = max(float(moment.abs().max()) for moment in moments.values())
    unlike = max(float((twin.moments[name] - moment).abs().max()) for name, moment in moments.items())
    require_agreement(f"{case}: gradients over the largest", unlike / scale, TOLERANCE)
    for name, difference in state_differences(config, batch, ours.first.params, twin).items():
        require_agreement(f"{case}: {name}", difference, TOLERANCE)


def state_differences(config: TrainConfig, batch: Batch, params: Any, twin: Torch) -> dict[str, float]:
    """How far apart what the encoder and the decoder make of the batch is, with the first parameters."""
    from torch_style import prior as torch_prior
    from torch_twin import frame_mask, targets, twin_of

    fresh = twin_of(config.model, params, twin.twin.encoder.kind)
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
        name: float(np.abs(np.asarray(one) - other.numpy()).max())
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
    """The loop, `editjax.train.train` with its journal, after proof that it does what the bare step does."""
    batch = planted(n_frames, EXAMPLES["tiny"], JUMP_FRAMES, JUMP_FRAMES)
    by_hand, in_loop = Repeated(batch), Repeated(batch)
    bare, compile_s = run_by_hand(config, by_hand)
    with tempfile.TemporaryDirectory() as folder:
        looped = train(config, in_loop, folder)
    unequal = jax.tree.map(
        lambda a, b: int((np.asarray(a) != np.asarray(b)).sum()), bare.params, looped.params
    )
    require_agreement(f"loop, {n_frames} frames", sum(jax.tree.leaves(unequal)), 0)
    loop_s, bare_s = in_loop.fastest_step_s(), by_hand.fastest_step_s()
    return {
        "size": "tiny",
        "case": "our loop",
        "frames": n_frames,
        "examples": EXAMPLES["tiny"],
        "compile_s": compile_s,
        "step_s": loop_s,
        "bare step s": bare_s,
        "frames_per_s": EXAMPLES["tiny"] * n_frames / loop_s,
    }


def run_by_hand(config: TrainConfig, batches: "Repeated") -> tuple[TrainState, float]:
    """The final state, and CPU seconds to compile the step."""
    ours = Ours(config, batches.batch)
    ours.state = jax.device_put(ours.first)
    for _ in range(config.optim.steps):
        next(batches)
        ours.step()
    return ours.state, ours.compile_s


class Repeated:
    """The same batch for ever, noting when it was asked for."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.asked_s: list[float] = []

    def __next__(self) -> Batch:
        self.asked_s.append(time.process_time())
        return self.batch

    def fastest_step_s(self) -> float:
        """Least CPU seconds between two requests; the first step is left out, for it may compile."""
        return float(np.diff(self.asked_s)[1:].min())

    def get_state(self) -> None:
        """Nothing to remember: every batch is the same."""

    def set_state(self, state: None) -> None:
        """Nothing to restore."""


if __name__ == "__main__":
    main()
