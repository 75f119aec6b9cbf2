"""Decoding step by step and with drafts of 16 to 256 steps: the bundled network on simulated sessions of 1, 3
and 10 minutes; a decoder of the size of `configs/pointer_base.py` with random weights over 10 minutes, of
whose 10,000 pointers one in 200 jumps; and that decoder in PyTorch eager with a cache.

Agreement first: whatever is drafted, the pointers are those of decoding step by step, greedy and sampled, of
whole recordings and of 512 excerpts; PyTorch's pointers are ours, and its logits at each step. A pass takes
what agrees and decides one step more, so that an edit of M steps with J jumps needs about J + M / draft of
them (`bound`): 5 % more than that end the benchmark. `GFLOP` is what XLA counts for all passes, `of ceiling`
its share of what the fastest matrix product does in that time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
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
from random_decoder import RAW_FRAMES, base_settings, random_decoder  # noqa: E402
from sessions import sessions  # noqa: E402

from editjax.decode import DRAFT_STEPS, Decoded, decode, encode  # noqa: E402
from editjax.edits import PAD, STOP  # noqa: E402
from editjax.losses import targets  # noqa: E402
from editjax.mel import mel_spectrogram  # noqa: E402
from editjax.models.coverage import played_before  # noqa: E402
from editjax.models.pointer import PointerSettings, decoder_call  # noqa: E402
from editjax.models.style import Asked  # noqa: E402
from editjax.network import LONGEST_STEPS, PointerNetwork, load_model, padded_length  # noqa: E402

MINUTES, QUICK_MINUTES = (1, 3, 10), (1,)
MORE_PASSES = 0.05  # than the bound
DRAFTS, QUICK_DRAFTS = (0, 16, 32, 64, 128, 256), (0, DRAFT_STEPS)
BASE_STEPS, QUICK_BASE_STEPS = 10_000, 500
TORCH_STEPS, QUICK_TORCH_STEPS = 500, 200
TORCH = "PyTorch eager"
SEEDS = 3
EXCERPTS, QUICK_EXCERPTS, AT_ONCE = 512, 32, 32
FRAMES_PER_MINUTE = RAW_FRAMES // 10
EXCERPT_FRAMES = 640, 1448  # 15 to 34 s
TOLERANCE, TORCH_TOLERANCE = 1e-3, 1e-4


class Task(NamedTuple):
    """Recordings to decode, without a length asked for."""

    settings: PointerSettings
    params: Any
    keys: Any
    max_steps: int

    def arguments(self, temperature: float = 0.0, seed: int = 0) -> tuple[Any, ...]:
        """What `decode` takes."""
        target_B = np.zeros(len(self.keys.n_frames_B), np.float32)
        return *self[:3], target_B, self.max_steps, np.float32(temperature), jax.random.key(seed)

    def run(self, draft: int, temperature: float = 0.0, seed: int = 0) -> Decoded:
        """Decoded."""
        return jax.block_until_ready(decode(*self.arguments(temperature, seed), draft=draft))


def main() -> None:
    """Prove that drafts change nothing, then time them at every length and size."""
    chosen = options(__doc__)
    drafts, rounds = (QUICK_DRAFTS, 1) if chosen.quick else (DRAFTS, 5)
    network = load_model("final")
    mels = {minutes: recording(network, minutes) for minutes in (QUICK_MINUTES if chosen.quick else MINUTES)}
    longest = max(mels)
    compare_excerpts(network, mels[longest], QUICK_EXCERPTS if chosen.quick else EXCERPTS)
    rows, ratios = [], {}
    for minutes, mel_TF in mels.items():
        task = task_of(network, [mel_TF])
        found = measure(task, drafts, rounds)
        ratios |= ratios_of(f"final, {minutes} min", found)
        rows += [{"model": "final", "minutes": minutes} | row for row in found]
    if not chosen.quick:
        ratios |= dict(growth_of(rows))
    parts = random_decoder(base_settings(), longest * FRAMES_PER_MINUTE)
    base = Task(*parts, QUICK_BASE_STEPS if chosen.quick else BASE_STEPS)
    peers: dict[str, Peer] = {}
    if installed("torch"):
        peers[TORCH] = torch_peer(base, QUICK_TORCH_STEPS if chosen.quick else TORCH_STEPS)
    found = measure(base, (0, DRAFT_STEPS), rounds, peers)
    ratios |= ratios_of(f"base, {longest} min", found)
    rows += [{"model": "base", "minutes": longest} | row for row in found]
    packages = ("jax", "numpy", *(["torch"] if peers else []))
    finish("decode", rows, ratios, packages, chosen.out)


def task_of(network: PointerNetwork, mels: list[np.ndarray]) -> Task:
    """Recordings encoded together."""
    length = padded_length(max(map(len, mels)))

    def padded(parts: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(part, [(0, length - len(part)), (0, 0)]) for part in parts])

    frames_B = np.array([len(mel_TF) for mel_TF in mels], np.int32)
    style_BZ = np.tile(network.point_of("final"), (len(mels), 1))
    asked = Asked(np.zeros(len(mels), np.float32), style_BZ)
    inputs = padded(mels), frames_B, padded([network.phases(mel_TF) for mel_TF in mels]), asked
    _, keys = encode(network.settings, network.params, *inputs)
    return Task(network.settings, network.params, keys, int(length * LONGEST_STEPS))


def compare_excerpts(network: PointerNetwork, mel_TF: np.ndarray, count: int) -> None:
    """Greedy and sampled edits of random excerpts, drafted and step by step."""
    rng = np.random.default_rng(0)
    for first in range(0, count, AT_ONCE):
        sizes = rng.integers(*EXCERPT_FRAMES, AT_ONCE)
        starts = [int(rng.integers(0, len(mel_TF) - size)) for size in sizes]
        task = task_of(network, [mel_TF[start:][:size] for start, size in zip(starts, sizes, strict=True)])
        for temperature in (0.0, 1.0):
            name = f"excerpts from {first}, temperature {temperature}"
            compare(name, *(task.run(draft, temperature, seed=first) for draft in (0, DRAFT_STEPS)))


def compare(name: str, plain: Decoded, drafted: Decoded) -> None:
    """Requires the same pointers and probabilities."""
    unequal = int(np.count_nonzero(np.asarray(plain.pointers_BN) != np.asarray(drafted.pointers_BN)))
    require_agreement(f"{name}: pointers", unequal, 0)
    unlike = np.abs(np.asarray(plain.log_p_BN) - np.asarray(drafted.log_p_BN)).max()
    require_agreement(f"{name}: log-probabilities", float(unlike), TOLERANCE)


class Peer(NamedTuple):
    """Another's decoder, and how many steps it takes."""

    run: Callable[[], Any]
    steps: int


class Compiled(NamedTuple):
    """Our decoder for one task and draft: `run(temperature, seed)`, what it costs, operations of one pass."""

    run: Callable[..., Decoded]
    columns: dict[str, float]
    gflop: float


def measure(
    task: Task, drafts: tuple[int, ...], rounds: int, peers: dict[str, Peer] | None = None
) -> list[dict[str, Any]]:
    """A row for each draft, the first of which is 0, and for each peer, after proof that all drafts agree."""
    ours = {draft: compiled(task, draft) for draft in drafts}
    found = {draft: case.run() for draft, case in ours.items()}
    counts = {draft: counts_of(draft, found[draft]) for draft in drafts}
    for draft in drafts[1:]:
        compare(f"draft {draft}", found[0], found[draft])
        most = math.ceil((1 + MORE_PASSES) * counts[draft]["bound"])
        require_agreement(f"draft {draft}: passes beyond {most}", max(counts[draft]["passes"] - most, 0), 0)
    for seed in range(SEEDS):
        compare(f"seed {seed}", *(ours[draft].run(1.0, seed) for draft in (0, DRAFT_STEPS)))
    peers = peers or {}
    cases: dict[Any, Callable[[], Any]] = {draft: case.run for draft, case in ours.items()}
    seconds = median_seconds(cases | {name: peer.run for name, peer in peers.items()}, rounds)
    ceiling = matrix_gflops()
    rows = [row_of(counts[draft], case, seconds[draft], ceiling) for draft, case in ours.items()]
    for name, peer in peers.items():
        taken_s = seconds[name]
        rows.append(
            {"peer": name, "steps": peer.steps, "s": taken_s, "µs / pointer": 1e6 * taken_s / peer.steps}
        )
    return rows


def counts_of(draft: int, out: Decoded) -> dict[str, float]:
    """Steps, jumps and passes of an edit, and how many passes it needs about."""
    pointers_N = np.asarray(out.pointers_BN[0])
    pointers_N = pointers_N[pointers_N != PAD]
    jumps = int(np.count_nonzero((np.diff(pointers_N, prepend=-1) != 1) & (pointers_N != STOP)))
    bound = jumps + len(pointers_N) / max(draft, 1)
    counts = {"steps": len(pointers_N), "jumps": jumps, "passes": int(out.passes), "bound": bound}
    return {"draft": draft, **counts}


def row_of(counts: dict[str, float], case: Compiled, taken_s: float, ceiling: float) -> dict[str, Any]:
    """What a draft found, what it took, and what it cost."""
    gflop = counts["passes"] * case.gflop
    return {
        **counts,
        "s": taken_s,
        "µs / pointer": 1e6 * taken_s / counts["steps"],
        **case.columns,
        "GFLOP": gflop,
        "of ceiling": gflop / taken_s / ceiling,
    }


def compiled(task: Task, draft: int) -> Compiled:
    """`decode` for one task, and what it costs."""
    lowered = decode.lower(*task.arguments(), draft=draft)
    began = time.process_time()
    program = lowered.compile()
    compile_s = time.process_time() - began

    def run(temperature: float = 0.0, seed: int = 0) -> Decoded:
        _, params, keys, target_B, _, *chance = task.arguments(temperature, seed)
        return jax.block_until_ready(program(params, keys, target_B, *chance))

    temporary_mb = program.memory_analysis().temp_size_in_bytes / 1e6
    # How often the loop is passed is not known when it is compiled: XLA counts one pass.
    gflop = lowered.cost_analysis()["flops"] / 1e9
    return Compiled(run, {"compile s": compile_s, "temporary MB": temporary_mb}, gflop)


def torch_peer(task: Task, steps: int) -> Peer:
    """The decoder in PyTorch, after its pointers and the logits of every step were found to be ours."""
    import torch
    from torch_decoder import TorchDecoder

    torch.set_num_threads(1)
    peer = TorchDecoder(*task[:3], steps)
    said = peer.greedy(0.0, steps)
    pointers_1N = np.array([[one.pointer for one in said]], np.int32)
    ours_1N = task._replace(max_steps=steps).run(DRAFT_STEPS).pointers_BN
    require_agreement(f"{TORCH}: pointers", int((ours_1N != pointers_1N).sum()), 0)
    parts = jax.jit(logits_of, static_argnums=0)(*task[:3], pointers_1N)
    logits = [np.asarray(part_1NC[0]) for part_1NC in parts]
    unlike = [
        np.abs(part_NC[step][: len(theirs)] - theirs.numpy()).max()
        for step, one in enumerate(said)
        for part_NC, theirs in zip(logits, (one.modes_3, *one.levels), strict=False)  # levels at jumps only
    ]
    require_agreement(f"{TORCH}: {len(unlike)} logits", float(max(unlike)), TORCH_TOLERANCE)
    return Peer(partial(peer.greedy, 0.0, steps), steps)


def logits_of(s: PointerSettings, params: Any, keys: Any, pointers_1N: jax.Array) -> list[jax.Array]:
    """Logits of modes, bars, beats and frames of every step of an edit, all at once."""
    steps_1 = jnp.full(1, pointers_1N.shape[1])
    step = targets(pointers_1N, steps_1, jnp.zeros(1), keys.frames_BTD.shape[1]).step
    ask = partial(decoder_call, s, params)
    h_1ND, before = ask("states", keys, step, steps_1), step.pointer_BN
    every_1N, sizes = jnp.ones_like(pointers_1N, bool), (pointers_1N.shape[1], keys.bars_BVD.shape[1])
    played_1NV = played_before(pointers_1N, every_1N, *sizes, s.frames_per_bar)
    return [
        ask("mode_logits", h_1ND, before, keys),
        ask("bar_logits", h_1ND, before, step.began_BN, played_1NV, keys),
        ask("beat_logits", h_1ND, pointers_1N // s.frames_per_bar, before, keys),
        ask("frame_logits", h_1ND, pointers_1N // s.frames_per_beat, before, keys),
    ]


def ratios_of(name: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Drafts beside step by step, the bound and the peers."""
    of_draft = {row["draft"]: row for row in rows if "draft" in row}
    plain, drafted = of_draft[0], of_draft[DRAFT_STEPS]
    ratios = {
        f"{name}, step by step / drafts": plain["s"] / drafted["s"],
        f"{name}, passes / bound": drafted["passes"] / drafted["bound"],
    }
    peers = [row for row in rows if "peer" in row]
    return ratios | {
        f"{name}, {row['peer']} / drafts": row["µs / pointer"] / drafted["µs / pointer"] for row in peers
    }


def growth_of(rows: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """How the seconds grow with the steps of the edit."""
    for draft, name in ((0, "step by step"), (DRAFT_STEPS, "drafts")):
        of_draft = [row for row in rows if row["draft"] == draft]
        sizes, seconds = ([row[column] for row in of_draft] for column in ("steps", "s"))
        yield f"final, growth exponent, {name}", growth_exponent(sizes, seconds)


def recording(network: PointerNetwork, minutes: int) -> np.ndarray:
    """The mel of so many minutes of simulated sessions, (T, mels)."""
    samples_S = np.concatenate(list(sessions(60 * minutes, network.mel.sample_rate_hz)))
    return mel_spectrogram(samples_S, network.mel)


if __name__ == "__main__":
    main()
