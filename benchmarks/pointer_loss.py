"""The pointer loss from decoder states: ours against a softmax over all frames at all steps, time and memory.

Forward and backward for 10,240 steps over 25,840 frames (ten minutes), a half and a quarter of them, one
core, width of the base model. `ours` evaluates modes at every step, and bars, beats, frames at the jumps
alone (`losses.nll_of_states`); `flat` is `log_softmax(h @ frames.T)`; `flat, chunked` the same for 256 steps
at a time under a checkpoint, the usual remedy; `torch, flat` that of PyTorch, where installed. Agreement
first: the flat losses and their gradients agree with each other, and ours is a distribution over the same
frames: it sums to one. Seconds are medians of CPU seconds, the cases taking turns. Memory is what XLA
allocates beside arguments and results; torch's is the three matrices that its backward holds at once,
computed. `GFLOP` is what XLA counts (torch's is that of `flat`), `of ceiling` its share of what the fastest
matrix product does in that time. Growth is over the frames; the steps grow with them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
from random_decoder import random_encoding  # noqa: E402

from editjax.edits import STOP  # noqa: E402
from editjax.losses import LossSettings, Targets, nll_of_states, targets  # noqa: E402
from editjax.models import pointer  # noqa: E402
from editjax.models.pointer import ADVANCE, STOP_MODE, PointerSettings, Step, decoder_call  # noqa: E402

SETTINGS = PointerSettings(width=256, heads=4)
LENGTHS, QUICK_LENGTHS = ((2560, 6460), (5120, 12_920), (10_240, 25_840)), ((256, 512), (512, 1024))
RUN_FRAMES = 200  # a jump every five seconds
MAX_JUMPS = LossSettings().max_jumps
CHUNK = 256
TOLERANCE = 1e-4


class Loss(NamedTuple):
    """A loss and its gradients, ready to call, and what it costs."""

    run: Callable[[], tuple[Any, ...]]
    columns: dict[str, float]


def main() -> None:
    """Prove what can be proved of different losses, then time them at every length."""
    chosen = options(__doc__)
    lengths, rounds = (QUICK_LENGTHS, 1) if chosen.quick else (LENGTHS, 5)
    params = jax.jit(pointer.init, static_argnums=0)(SETTINGS, jax.random.key(0))
    prove_sum(params)
    peers, ceiling = installed("torch"), matrix_gflops()
    rows = [
        row
        for n_steps, n_frames in lengths
        for row in rows_at(params, n_steps, n_frames, rounds, peers, ceiling)
    ]
    ratios = ratios_of(rows, [n_frames for _, n_frames in lengths])
    finish("pointer_loss", rows, ratios, ("jax", "flax", *(["torch"] if peers else [])), chosen.out)


def rows_at(
    params: Any, n_steps: int, n_frames: int, rounds: int, peers: bool, ceiling: float
) -> list[dict[str, Any]]:
    """A row for each loss at one length, after proof that the flat ones are one loss."""
    h_BND, keys, t = planted(params, n_steps, n_frames)
    followed_N = jnp.asarray(t.pointer_BN[0, :-1])
    flat_args = h_BND[0, :-1], keys.frame_keys_BTD[0]
    whole = partial(chunked, followed_N, len(followed_N))  # XLA counts the body of a loop once
    losses = {
        "ours": with_gradient(partial(ours, t), (h_BND, {"decoder": params["decoder"]}, keys)),
        "flat": with_gradient(partial(flat, followed_N), flat_args),
        "flat, chunked": with_gradient(partial(chunked, followed_N, CHUNK), flat_args, counted=whole),
    }
    if peers:
        run = torch_flat(np.asarray(followed_N), *map(np.asarray, flat_args))
        matrices_mb = 3 * 4e-6 * len(followed_N) * n_frames
        losses["torch, flat"] = Loss(run, {"MB": matrices_mb, "GFLOP": losses["flat"].columns["GFLOP"]})
    wanted, *gradients = losses["flat"].run()
    for name in ("flat, chunked", *(["torch, flat"] if peers else [])):
        loss, *found = losses[name].run()
        require_agreement(f"{name}: loss", abs(float(loss) / float(wanted) - 1), TOLERANCE)
        for of, one, other in zip(("states", "frames"), gradients, found, strict=True):
            one, other = np.asarray(one), np.asarray(other)
            unlike = np.abs(one - other).max() / np.abs(one).max()
            require_agreement(f"{name}: gradients of the {of}", float(unlike), TOLERANCE)
    seconds = median_seconds({name: loss.run for name, loss in losses.items()}, rounds)
    return [
        {"case": name, "steps": n_steps, "frames": n_frames, "s": seconds[name], **loss.columns}
        | {"of ceiling": loss.columns["GFLOP"] / seconds[name] / ceiling}
        for name, loss in losses.items()
    ]


def ratios_of(rows: list[dict[str, Any]], lengths: list[int]) -> dict[str, float]:
    """The others beside ours at the longest, and how all grow."""
    by = {(row["case"], row["frames"]): row for row in rows}
    names, longest = list(dict.fromkeys(row["case"] for row in rows)), lengths[-1]
    columns = {"time": "s", "memory": "MB"}
    ratios = {
        f"{name} / ours, {what}": by[name, longest][column] / by["ours", longest][column]
        for what, column in columns.items()
        for name in names[1:]
    }
    return ratios | {
        f"growth exponent, {name}, {what}": growth_exponent(lengths, [by[name, n][column] for n in lengths])
        for name in names
        for what, column in columns.items()
    }


def planted(params: Any, n_steps: int, n_frames: int) -> tuple[jax.Array, pointer.Keys, Targets]:
    """Random states, the keys of a random encoding, and an edit that jumps on after every run."""
    keys = decoder_call(SETTINGS, params, "keys", random_encoding(SETTINGS, n_frames, 0))
    step_N = np.arange(n_steps)
    pointers_BN = (step_N + step_N // RUN_FRAMES * RUN_FRAMES).astype(np.int32)[None] % n_frames
    pointers_BN[0, -1] = STOP
    t = targets(pointers_BN, np.array([n_steps], np.int32), np.zeros(1, np.float32), n_frames)
    h_BND = np.random.default_rng(0).standard_normal((1, n_steps, SETTINGS.width), np.float32)
    return jnp.asarray(h_BND), keys, t


def ours(t: Targets, h_BND: jax.Array, decoder: Any, keys: pointer.Keys) -> jax.Array:
    nll = nll_of_states(SETTINGS, decoder, keys, t, h_BND, MAX_JUMPS)
    return (nll.mode_B + nll.bar_B + nll.beat_B + nll.frame_B).sum()


def flat(followed_N: jax.Array, h_ND: jax.Array, frames_TD: jax.Array) -> jax.Array:
    log_p_NT = jax.nn.log_softmax(h_ND @ frames_TD.T * SETTINGS.width**-0.5, axis=-1)
    return -jnp.take_along_axis(log_p_NT, followed_N[:, None], axis=1).sum()


def chunked(followed_N: jax.Array, size: int, h_ND: jax.Array, frames_TD: jax.Array) -> jax.Array:
    tail = -len(h_ND) % size
    h_CND = jnp.pad(h_ND, ((0, tail), (0, 0))).reshape(-1, size, h_ND.shape[1])
    followed_CN = jnp.pad(followed_N, (0, tail)).reshape(-1, size)
    real_CN = (jnp.arange(h_CND.shape[0] * size) < len(h_ND)).reshape(-1, size)

    @jax.checkpoint
    def one(h_ND: jax.Array, followed_N: jax.Array, real_N: jax.Array) -> jax.Array:
        logits_NT = h_ND @ frames_TD.T * SETTINGS.width**-0.5
        chosen_N = jnp.take_along_axis(logits_NT, followed_N[:, None], axis=1)[:, 0]
        return jnp.where(real_N, jax.nn.logsumexp(logits_NT, axis=-1) - chosen_N, 0.0).sum()

    return jax.lax.map(lambda parts: one(*parts), (h_CND, followed_CN, real_CN)).sum()


def torch_flat(followed_N: np.ndarray, h_ND: np.ndarray, frames_TD: np.ndarray) -> Callable[[], Any]:
    """The flat loss and its gradients in PyTorch, ready to call."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    h, frames = (torch.tensor(a, requires_grad=True) for a in (h_ND, frames_TD))
    followed = torch.tensor(followed_N, dtype=torch.long)

    def run() -> tuple[Any, ...]:
        h.grad = frames.grad = None
        loss = F.cross_entropy(h @ frames.T * SETTINGS.width**-0.5, followed, reduction="sum")
        loss.backward()
        return loss.detach(), h.grad, frames.grad

    return run


def with_gradient(
    loss: Callable[..., jax.Array], args: tuple, counted: Callable[..., jax.Array] | None = None
) -> Loss:
    """The loss with the gradients of all floating arguments, compiled; `counted` has the same operations."""
    floats, rebuild = _floats_of(args)

    def lowered(loss: Callable[..., jax.Array]) -> Any:
        return jax.jit(jax.value_and_grad(lambda parts: loss(*rebuild(parts)))).lower(floats)

    compiled = lowered(loss).compile()

    def run() -> tuple[Any, ...]:
        found, gradients = jax.block_until_ready(compiled(floats))
        return found, *gradients

    gflop = lowered(counted or loss).cost_analysis()["flops"] / 1e9
    return Loss(run, {"MB": compiled.memory_analysis().temp_size_in_bytes / 1e6, "GFLOP": gflop})


def _floats_of(args: tuple) -> tuple[list[jax.Array], Callable[[list[jax.Array]], tuple]]:
    leaves, tree = jax.tree.flatten(args)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def rebuild(parts: list[jax.Array]) -> tuple:
        whole = list(leaves)
        for place, part in zip(places, parts, strict=True):
            whole[place] = part
        return jax.tree.unflatten(tree, whole)

    return [leaves[i] for i in places], rebuild


def prove_sum(params: Any) -> None:
    """Over every raw frame, and the stop, the probabilities of one step must sum to one."""
    n_frames, before = 4 * SETTINGS.frames_per_bar - 50, 300
    _, keys, _ = planted(params, 4, n_frames)
    index_BN = jnp.zeros((1, 1), jnp.int32)
    step = Step(index_BN + before, index_BN, index_BN, jnp.zeros(1), jnp.zeros((1, 1, 2)))
    h_BND = jax.random.normal(jax.random.key(1), (1, 1, SETTINGS.width))

    def log_p(method: str, *args: Any) -> jax.Array:
        return jax.nn.log_softmax(decoder_call(SETTINGS, params, method, *args), -1)[0]

    jumps = jnp.array([f for f in range(n_frames) if f != before + 1])[None]
    ask = jnp.broadcast_to(h_BND, (1, jumps.shape[1], SETTINGS.width))
    befores = jnp.full_like(jumps, before)
    bar, beat, frame = (jumps // size for size in (SETTINGS.frames_per_bar, SETTINGS.frames_per_beat, 1))
    per_bar = SETTINGS.frames_per_bar // SETTINGS.frames_per_beat
    played = jnp.zeros((1, jumps.shape[1], keys.bars_BVD.shape[1]))
    parts = (
        (log_p("bar_logits", ask, befores, befores, played, keys), bar),
        (log_p("beat_logits", ask, bar, befores, keys), beat % per_bar),
        (log_p("frame_logits", ask, beat, befores, keys), frame % SETTINGS.frames_per_beat),
    )
    jump_p = jnp.exp(sum(jnp.take_along_axis(p, at[0][:, None], axis=1)[:, 0] for p, at in parts)).sum()
    mode_p = jnp.exp(log_p("mode_logits", h_BND, step.pointer_BN, keys))[0]
    total = mode_p[ADVANCE] + mode_p[STOP_MODE] + (1 - mode_p[ADVANCE] - mode_p[STOP_MODE]) * jump_p
    require_agreement("ours: sum of all probabilities − 1", abs(float(total) - 1), TOLERANCE)


if __name__ == "__main__":
    main()
