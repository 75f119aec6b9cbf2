"""Decoding with the bundled network: step by step, and with drafts of 16 to 256 steps, by length.

The recordings are simulated sessions, one after another; one core, greedy. Agreement first: whatever is
drafted, the pointers are those of decoding step by step. A pass takes what agrees and decides one step more,
so that an edit of M steps with J jumps needs at most J + 1 + M / draft of them (`bound`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from report import fastest_seconds, finish, growth_exponent, options, require_agreement, use_one_core

use_one_core()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from editjax.decode import DRAFT_STEPS, decode, encode  # noqa: E402
from editjax.edits import PAD  # noqa: E402
from editjax.mel import mel_spectrogram  # noqa: E402
from editjax.models.style import Asked  # noqa: E402
from editjax.network import PointerNetwork, load_model, padded_length  # noqa: E402
from editjax.session import SimulateSettings  # noqa: E402
from editjax.simulate import simulate_session  # noqa: E402

MINUTES, QUICK_MINUTES = (1, 3, 10), (1,)
DRAFTS, QUICK_DRAFTS = (0, 16, 32, 64, 128, 256), (0, DRAFT_STEPS)
TOLERANCE = 1e-3


def main() -> None:
    """Prove that drafts change nothing, then time them at every length."""
    chosen = options(__doc__)
    minutes = QUICK_MINUTES if chosen.quick else MINUTES
    drafts, rounds = (QUICK_DRAFTS, 1) if chosen.quick else (DRAFTS, 3)
    network = load_model("final")
    rows = [row for length in minutes for row in measure(network, length, drafts, rounds)]
    default = {row["minutes"]: row for row in rows if row["draft"] == DRAFT_STEPS}
    plain = {row["minutes"]: row for row in rows if row["draft"] == 0}
    ratios = {f"{n} min, step by step / drafts": plain[n]["s"] / default[n]["s"] for n in minutes}
    ratios |= {f"{n} min, passes / bound": default[n]["passes"] / default[n]["bound"] for n in minutes}
    if len(minutes) > 1:
        for name, of_draft in (("step by step", plain), ("drafts", default)):
            sizes, seconds = zip(*((row["steps"], row["s"]) for row in of_draft.values()), strict=True)
            ratios[f"growth exponent, {name}"] = growth_exponent(sizes, seconds)
    finish("decode", rows, ratios, ("jax", "numpy"), chosen.out)


def measure(
    network: PointerNetwork, minutes: int, drafts: tuple[int, ...], rounds: int
) -> list[dict[str, Any]]:
    """A row for each draft."""
    mel_TF = recording(network, minutes)
    length = padded_length(len(mel_TF))
    phase_T3 = network.phases(mel_TF)
    mel_BTF, phase_BT3 = (np.pad(a, [(0, length - len(a)), (0, 0)])[None] for a in (mel_TF, phase_T3))
    frames_B, target_B = np.array([len(mel_TF)], np.int32), np.zeros(1, np.float32)
    asked = Asked(target_B, network.point_of("final")[None])
    _, keys = encode(network.settings, network.params, mel_BTF, frames_B, phase_BT3, asked)
    ready = network.settings, network.params, keys, target_B, length, np.float32(0), jax.random.key(0)

    def run(draft: int) -> Any:
        return jax.block_until_ready(decode(*ready, draft=draft))

    plain = run(0)
    for draft in drafts:
        out = run(draft)
        unequal = int(np.count_nonzero(np.asarray(out.pointers_BN) != np.asarray(plain.pointers_BN)))
        require_agreement(f"draft {draft}, {minutes} min: pointers", unequal, 0)
        unlike = np.abs(np.asarray(out.log_p_BN) - np.asarray(plain.log_p_BN)).max()
        require_agreement(f"draft {draft}, {minutes} min: log-probabilities", float(unlike), TOLERANCE)
    seconds = fastest_seconds({str(draft): partial(run, draft) for draft in drafts}, rounds)
    pointers_N = np.asarray(plain.pointers_BN[0])
    pointers_N = pointers_N[pointers_N != PAD]
    jumps = int(np.count_nonzero(np.diff(pointers_N, prepend=-1) != 1)) - 1  # the stop is none
    return [
        {
            "minutes": minutes,
            "draft": draft,
            "steps": len(pointers_N),
            "jumps": jumps,
            "passes": int(run(draft).passes),
            "bound": jumps + 1 + len(pointers_N) / max(draft, 1),
            "s": seconds[str(draft)],
            "µs / pointer": 1e6 * seconds[str(draft)] / len(pointers_N),
        }
        for draft in drafts
    ]


def recording(network: PointerNetwork, minutes: int) -> np.ndarray:
    """The mel of so many minutes of simulated sessions, (T, mels)."""
    rate_hz = network.mel.sample_rate_hz
    settings = SimulateSettings(sample_rate_hz=rate_hz, min_length_s=60.0, max_length_s=120.0)
    wanted, parts = minutes * 60 * rate_hz, []
    while sum(map(len, parts)) < wanted:
        parts.append(simulate_session((0, len(parts)), settings).raw_S)
    return mel_spectrogram(np.concatenate(parts)[:wanted], network.mel)


if __name__ == "__main__":
    main()
