"""The training step of `configs/pointer_tiny.py`: seconds by length, growth, and what the loop adds to it.

Planted batches of noise, one core. The loop is `editjax.train.train` with its journal and without validation;
the bare step is the same jitted update called by hand. Both must end with the same parameters, bit for bit.
Times are CPU seconds from one batch being asked for to the next, the least of the run.
"""

import functools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from report import finish, growth_exponent, options, require_agreement, use_one_core

use_one_core()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from editjax.config import load_config  # noqa: E402
from editjax.data import Batch  # noqa: E402
from editjax.edits import PAD, STOP  # noqa: E402
from editjax.family import family_of  # noqa: E402
from editjax.train import TrainConfig, TrainState, init_state, train, update  # noqa: E402

CONFIG = Path(__file__).parent.parent / "configs" / "pointer_tiny.py"
EXAMPLES = 4
JUMP_FRAMES = 64  # keep a run of frames this long, then skip as many


def main() -> None:
    """Prove that loop and bare step agree, then time both at every length."""
    chosen = options(__doc__)
    lengths, steps = ((688,), 4) if chosen.quick else ((2064, 4128, 8256), 8)
    config = load_config(CONFIG)
    config = replace(
        config, optim=replace(config.optim, warmup_steps=1, steps=steps), validate_every=0, checkpoint_every=0
    )
    if chosen.quick:
        config = replace(config, model=replace(config.model, landmark_layers=1))
    rows = [row(config, n_frames) for n_frames in lengths]
    ratios = {"loop / bare step": rows[-1]["loop_step_s"] / rows[-1]["bare_step_s"]}
    if len(lengths) > 1:
        seconds = [entry["bare_step_s"] for entry in rows]
        ratios["growth exponent"] = growth_exponent(lengths, seconds)
    finish("train_step", rows, ratios, ("jax", "flax", "optax"), chosen.out)


def row(config: TrainConfig, n_frames: int) -> dict[str, Any]:
    """The bare step and the loop at one length, after proof that they do the same."""
    by_hand, in_loop = Planted(n_frames), Planted(n_frames)
    bare, compile_s = run_by_hand(config, by_hand)
    with tempfile.TemporaryDirectory() as folder:
        looped = train(config, in_loop, folder)
    bare_s, loop_s = by_hand.fastest_step_s(), in_loop.fastest_step_s()
    unequal = jax.tree.map(
        lambda a, b: int((np.asarray(a) != np.asarray(b)).sum()), bare.params, looped.params
    )
    require_agreement(f"loop, {n_frames} frames", sum(jax.tree.leaves(unequal)), 0)
    return {
        "frames": n_frames,
        "examples": EXAMPLES,
        "compile_s": compile_s,
        "bare_step_s": bare_s,
        "loop_step_s": loop_s,
        "frames_per_s": EXAMPLES * n_frames / bare_s,
    }


def run_by_hand(config: TrainConfig, batches: "Planted") -> tuple[TrainState, float]:
    """The final state, and CPU seconds to compile the step."""
    family, key = family_of(config.model), jax.random.key(config.seed)
    state = jax.jit(functools.partial(init_state, config, family))(key)
    began = time.process_time()
    step = functools.partial(update, config=config, family=family)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batches.batch, key).compile()
    compile_s = time.process_time() - began
    for _ in range(config.optim.steps):
        state, _ = jax.block_until_ready(compiled(state, next(batches), key))
    return state, compile_s


class Planted:
    """The same batch for ever: noise, of which every other run of frames is kept."""

    def __init__(self, n_frames: int) -> None:
        rng = np.random.default_rng(0)
        kept = np.arange(n_frames)[np.arange(n_frames) // JUMP_FRAMES % 2 == 0]
        pointers_BN = np.full((EXAMPLES, n_frames // 2 + JUMP_FRAMES), PAD, np.int32)
        pointers_BN[:, : len(kept)], pointers_BN[:, len(kept)] = kept, STOP
        structure_T = np.isin(np.arange(n_frames), kept).astype(np.int32)
        count_B = np.ones(EXAMPLES, np.int32)
        self.batch = Batch(
            mel_BTF=rng.random((EXAMPLES, n_frames, 128), np.float32),
            frames_B=count_B * n_frames,
            phase_BT3=rng.random((EXAMPLES, n_frames, 3), np.float32),
            pointers_BN=pointers_BN,
            steps_B=count_B * (len(kept) + 1),
            structure_BT=np.tile(structure_T, (EXAMPLES, 1)),
            target_B=np.zeros(EXAMPLES, np.float32),
            style_B=count_B * 0,
            ids_B=np.arange(EXAMPLES, dtype=np.int32),
        )

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
