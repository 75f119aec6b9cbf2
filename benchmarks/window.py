"""One training step of the creative agent on one core: ours, and the earlier one rebuilt in PyTorch.

Latents (2, 1200, 128), three pairs of windows of 800 frames, forward, backward, clipping and AdamW, from the
novelty of the pieces alone, as the earlier figure of 7.9 CPU seconds was (on another machine); no codec. Ours
is timed at its own width and at the earlier composer's (512 wide, every frame a token), and for recordings of
twice the length, windows growing with them. Parameters of all are in the table.
"""

from collections.abc import Callable
from functools import partial

from report import finish, growth_exponent, installed, median_seconds, options, use_one_core

use_one_core()

from dataclasses import replace  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from editjax.models.window import WindowSettings, apply, documents, init  # noqa: E402
from editjax.window_loss import novelty  # noqa: E402

BATCH = 2
CLIP, RATE = 1.0, 1e-4


def main() -> None:
    """Time every case by turns, in CPU seconds."""
    chosen = options(__doc__)
    ours, rounds = documents(), 1 if chosen.quick else 3
    wide = replace(ours, width=512, heads=8, stride=1, window=400)
    sizes = {"ours": ours, "ours, the earlier composer's size": wide}
    if chosen.quick:
        sizes = {"ours": ours}
    longer = () if chosen.quick else (2,)
    sizes |= {f"ours, {by} times as long": longer_by(ours, by) for by in longer}
    cases, counts = {}, {}
    for name, settings in sizes.items():
        cases[name], counts[name] = step_of(settings)
    if installed("torch"):
        name = "the earlier agent, PyTorch"
        cases[name], counts[name] = torch_step(ours.frames)
    seconds = median_seconds(cases, rounds)
    rows = [{"case": name, "parameters": counts[name], "cpu_s": taken} for name, taken in seconds.items()]
    peer = seconds.get("the earlier agent, PyTorch")
    ratios = {
        f"torch / {name}": peer / taken for name, taken in seconds.items() if peer and "torch" not in name
    }
    ratios = {name: value for name, value in ratios.items() if "PyTorch" not in name and "long" not in name}
    if longer:
        taken = [seconds[f"ours, {by} times as long"] if by > 1 else seconds["ours"] for by in (1, *longer)]
        ratios["growth exponent, ours"] = growth_exponent((1, *longer), taken)
    packages = ["numpy", "jax", "flax", "optax", *(["torch"] if peer else [])]
    finish("window", rows, ratios, packages, chosen.out)


def longer_by(settings: WindowSettings, by: int) -> WindowSettings:
    """The same for longer recordings and windows, starts compared as many times."""
    times = {name: by * getattr(settings, name) for name in ("total_s", "window_s", "lag_s")}
    return replace(settings, **times)


def latents(frames: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, BATCH, frames, 128)).astype(np.float32)


def step_of(settings: WindowSettings) -> tuple[Callable[[], Any], int]:
    """One step, and the number of parameters."""
    params = jax.jit(init, static_argnums=0)(settings, jax.random.key(0))
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE))

    @jax.jit
    def step(params, state, both, key):
        def loss(params):
            return novelty(*apply(settings, params, *both, key)[:3]).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        changes, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, changes), state, value

    given = params, jax.jit(optimizer.init)(params), jnp.asarray(latents(settings.frames)), jax.random.key(1)
    count = sum(x.size for x in jax.tree.leaves(params))
    return partial(lambda: jax.block_until_ready(step(*given))), count


def torch_step(frames: int) -> tuple[Callable[[], Any], int]:
    """The same of the earlier agent."""
    import torch
    from torch_window import Windows

    torch.set_num_threads(1)
    torch.manual_seed(0)
    agent = Windows().train()
    optimizer = torch.optim.AdamW(agent.parameters(), RATE)
    first, second = torch.from_numpy(latents(frames)).transpose(2, 3).contiguous()

    def step() -> float:
        optimizer.zero_grad()
        loss = agent(first, second)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step, sum(p.numel() for p in agent.parameters())


if __name__ == "__main__":
    main()
