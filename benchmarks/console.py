"""The mixing console forwards, and backwards to its settings, against differentiable PyTorch, on all cores.

Stereo noise at 44.1 kHz whose level swells; `error` is the largest difference from a loop in float64 of what
each says it computes, as a part of the largest value (of the compressors in dB of gain, of meters in LU).
*equaliser*: the same two shelves and four bells, down to 30 Hz. *compressor*: ours has attack and release
(smooth decoupled), torchcomp too (branching, of one channel); dasp-pytorch's has one time for both. *room*:
three seconds; dasp-pytorch's has twelve bands, random anew. *mix*: four stems, each with equaliser and
compressor, room, and sum; ours has echoes and the limiter as well. *stream* is the same in blocks, without a
gradient. CPU and wall seconds are medians, all cases taking turns; a busy machine spoils the wall's.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal
from report import finish, growth_exponent, installed, median_seconds, options, require_agreement

from editjax.console import stream
from editjax.console.desk import Master, Strip, channel, mix
from editjax.console.dynamics import decibel, left_after, reduction, smooth
from editjax.console.filters import cascade, filtered, high_shelf, low_shelf, peak, sections
from editjax.console.loudness import hop_powers, integrated, limited, loudness, weighted
from editjax.console.room import reverberated

RATE_HZ = 44_100
STEMS = 4
BANDS = ((100.0, 3.0, 0.71), (30.0, 6.0, 4.0), (400.0, -6.0, 2.0), (2500.0, 4.0, 1.0), (6000.0, -3.0, 1.0))
HIGH = (9000.0, 5.0, 0.71)
THRESHOLD_DB, RATIO, KNEE_DB, ATTACK_S, RELEASE_S = -30.0, 4.0, 6.0, 0.005, 0.1
TOLERANCE = {"equaliser": 1e-5, "compressor": 1e-2, "loudness": 1e-3}


class Case(NamedTuple):
    """What is timed: forwards, and, if it has a gradient, that too; its error, if it has a reference."""

    forward: Callable[[], Any]
    gradient: Callable[[], Any] | None = None
    error: float | None = None
    compile_s: float | None = None


def main() -> None:
    """Prove agreement, then time every case at every length."""
    chosen = options(__doc__)
    lengths_s, rounds = ((1,), 1) if chosen.quick else ((3, 10, 30), 5)
    peers = {
        name: installed(name) for name in ("torch", "dasp_pytorch", "torchcomp", "torchlpc", "pyloudnorm")
    }
    rows, taken = [], {}
    for length_s in lengths_s:
        cases = ours(length_s) | theirs(length_s, peers)
        for name, case in cases.items():
            part, _, who = name.partition(", ")
            if who == "ours" and case.error is not None:
                require_agreement(name, case.error, TOLERANCE[part])
        timed = {(name, "forward"): case.forward for name, case in cases.items()}
        timed |= {(name, "both"): case.gradient for name, case in cases.items() if case.gradient}
        cpu, wall = (median_seconds(timed, rounds, of) for of in (time.process_time, time.perf_counter))
        taken[length_s] = cpu
        rows += [row(name, case, length_s, cpu, wall) for name, case in cases.items()]
    finish("console", rows, ratios(taken), packages(peers), chosen.out)


def row(name: str, case: Case, length_s: int, cpu: dict, wall: dict) -> dict[str, Any]:
    """A row of the table."""
    return {
        "audio_s": length_s,
        "case": name,
        "forward cpu_s": cpu[name, "forward"],
        "with gradient cpu_s": cpu.get((name, "both")),
        "forward, times real time": length_s / wall[name, "forward"],
        "with gradient, times real time": length_s / wall[name, "both"] if case.gradient else None,
        "error": case.error,
        "compile_s": case.compile_s,
    }


def ratios(taken: dict[int, dict]) -> dict[str, float]:
    """Each peer's CPU seconds to ours at the longest, and how ours grow."""
    lengths_s, last = list(taken), taken[max(taken)]
    found = {}
    for name, way in last:
        part, _, who = name.partition(", ")
        if who not in ("ours", "") and (f"{part}, ours", way) in last:
            found[f"{who} / ours, {part}, {way}"] = last[name, way] / last[f"{part}, ours", way]
    found["gradient and forward / forward, mix"] = last["mix, ours", "both"] / last["mix, ours", "forward"]
    if len(lengths_s) > 1:
        seconds = [taken[length_s]["mix, ours", "both"] for length_s in lengths_s]
        found["growth exponent, mix with gradient"] = growth_exponent(lengths_s, seconds)
    return found


def packages(peers: dict[str, bool]) -> list[str]:
    return ["jax", "numpy", "scipy", *(name.replace("_", "-") for name, found in peers.items() if found)]


def sound(length_s: float, stems: int = 1) -> np.ndarray:
    """Stems of swelling noise, (I, 2, S)."""
    n_samples = round(length_s * RATE_HZ)
    swell_S = 0.05 + np.sin(np.arange(n_samples) / 9000.0) ** 8
    x_ICS = np.random.default_rng(0).normal(size=(stems, 2, n_samples)) * 0.2 * swell_S[None, None]
    return x_ICS.astype(np.float32)


def compiled(function: Callable, settings: Any, *arrays: np.ndarray) -> Case:
    """A function of settings and arrays, and with its gradient with respect to the settings."""

    def power(settings, *arrays):
        return (function(settings, *arrays) ** 2).sum()

    start = time.perf_counter()
    forward = jax.jit(function).lower(settings, *arrays).compile()
    both = jax.jit(jax.value_and_grad(power)).lower(settings, *arrays).compile()
    compile_s = time.perf_counter() - start
    return Case(
        lambda: jax.block_until_ready(forward(settings, *arrays)),
        lambda: jax.block_until_ready(both(settings, *arrays)),
        compile_s=compile_s,
    )


def ours(length_s: float) -> dict[str, Case]:
    """Ours, by name."""
    x_ICS = sound(length_s, STEMS)
    x_CS = x_ICS[0]
    strip = Strip(*(jnp.float32(value) for value in busy()))
    strips = Strip(*(jnp.full((STEMS,), value) for value in strip))
    master = Master(*(jnp.float32(value) for value in Master()))
    settings = jnp.array([THRESHOLD_DB, RATIO, ATTACK_S, RELEASE_S], jnp.float32)
    cases = {
        "equaliser, ours": compiled(equalised, jnp.array((*BANDS, HIGH), jnp.float32), x_CS),
        "compressor, ours": compiled(reduced, settings, x_CS),
        "strip, ours": compiled(partial(channel_of, rate_hz=RATE_HZ), strip, x_CS),
        "room, ours": compiled(lambda decay_s, x: reverberated(x, decay_s, RATE_HZ), jnp.float32(1.2), x_CS),
        "limiter, ours": compiled(lambda db, x: limited(x, db, RATE_HZ), jnp.float32(-9.0), x_CS),
        "loudness, ours": compiled(lambda g, x: loudness(g * x, RATE_HZ), jnp.float32(1.0), x_CS),
        "mix, ours": compiled(lambda s, x: mix(x, *s, RATE_HZ), (strips, master), x_ICS),
        "stream, ours": Case(
            lambda: [None for _ in stream.render(np.array_split(x_ICS, 7, 2), strips, master, RATE_HZ)]
        ),
    }
    errors = {
        "equaliser": relative(equalised(jnp.array((*BANDS, HIGH), jnp.float32), x_CS), equalised_64(x_CS)),
        "compressor": float(np.abs(reduced(settings, x_CS) - decoupled_64(x_CS)).max()),
        "loudness": abs(float(loudness(x_CS, RATE_HZ)) - loudness_64(x_CS)),
    }
    return cases | {f"{part}, ours": cases[f"{part}, ours"]._replace(error=e) for part, e in errors.items()}


def busy() -> Strip:
    return Strip(
        low_cut_hz=30.0, low_db=3.0, low_mid_db=-6.0, high_mid_db=4.0, high_db=5.0, threshold_db=THRESHOLD_DB,
        ratio=RATIO, attack_s=ATTACK_S, release_s=RELEASE_S, pan=0.2, width=1.2, room_db=-15.0, echo_db=-20.0,
    )  # fmt: skip


def channel_of(strip: Strip, x_CS, rate_hz: float):
    return channel(x_CS, strip, rate_hz)


def prototypes(settings_63) -> list:
    """Shelf, bells, shelf, with their frequencies."""
    low, *bells, high = [tuple(one) for one in settings_63]
    return [
        (low_shelf(low[1], low[2]), low[0]),
        *((peak(gain_db, q), hz) for hz, gain_db, q in bells),
        (high_shelf(high[1], high[2]), high[0]),
    ]


def equalised(settings_63, x_CS):
    return filtered(x_CS, lambda n_bins: cascade(prototypes(settings_63), RATE_HZ, n_bins), RATE_HZ)


def reduced(settings_4, x_CS):
    """By how many dB the compressor reduces, (S,)."""
    threshold_db, ratio, attack_s, release_s = settings_4
    asked_S = reduction(decibel(jnp.abs(x_CS).max(0)), threshold_db, ratio, KNEE_DB)
    return smooth(asked_S, left_after(attack_s, RATE_HZ), left_after(release_s, RATE_HZ))


def equalised_64(x_CS: np.ndarray) -> np.ndarray:
    return scipy.signal.sosfilt(sections(prototypes((*BANDS, HIGH)), RATE_HZ), x_CS.astype(np.float64))


def asked_64(level_S: np.ndarray, knee_db: float) -> np.ndarray:
    """What a compressor wants to take away, in dB, of amplitudes."""
    over_S = 20.0 * np.log10(np.maximum(level_S.astype(np.float64), 1e-6)) - THRESHOLD_DB
    soft_S = np.clip(over_S + knee_db / 2, 0.0, knee_db) ** 2 / (2 * max(knee_db, 1e-9))
    return (1.0 - 1.0 / RATIO) * (soft_S + np.maximum(over_S - knee_db / 2, 0.0))


def left_64(time_s: float) -> float:
    return float(np.exp(-1.0 / (time_s * RATE_HZ)))


def decoupled_64(x_CS: np.ndarray) -> np.ndarray:
    """`reduced`, in a loop."""
    attack, release, slow, quick, made = left_64(ATTACK_S), left_64(RELEASE_S), 0.0, 0.0, []
    for one in asked_64(np.abs(x_CS).max(0), KNEE_DB).tolist():
        slow = max(one, release * slow + (1 - release) * one)
        quick = attack * quick + (1 - attack) * slow
        made.append(quick)
    return np.array(made)


def loudness_64(x_CS: np.ndarray) -> float:
    """The filters as a recursion in float64; blocks and gates are ours, which the tests compare."""
    meter = stream.Meter(RATE_HZ)
    meter.add(x_CS.astype(np.float64))
    assert hop_powers(weighted(x_CS, RATE_HZ), RATE_HZ).shape == meter._powers().shape
    return float(integrated(meter._powers()))


def relative(found: Any, wanted: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())


def theirs(length_s: float, peers: dict[str, bool]) -> dict[str, Case]:
    """What is installed, by name."""
    if not peers["torch"]:
        return {}
    import torch
    from console_peers import dasp, pyloudnorm_meter, recursion, torchcomp

    torch.manual_seed(0)
    x_ICS = sound(length_s, STEMS)
    cases: dict[str, Case] = {}
    if peers["torchlpc"]:
        sections_N6 = sections(prototypes((*BANDS, HIGH)), RATE_HZ)
        cases["equaliser, torchlpc"] = Case(*recursion(x_ICS[0], sections_N6))
    settings = (THRESHOLD_DB, RATIO, KNEE_DB, ATTACK_S, RELEASE_S)
    if peers["dasp_pytorch"]:
        made = dasp(x_ICS, RATE_HZ, (*BANDS, HIGH), settings)
        cases |= {f"{name}, dasp": Case(*pair) for name, pair in made.items()}
    if peers["torchcomp"]:
        cases["compressor, torchcomp"] = Case(*torchcomp(x_ICS[0], RATE_HZ, settings))
    if peers["pyloudnorm"]:
        cases["loudness, pyloudnorm"] = Case(pyloudnorm_meter(x_ICS[0], RATE_HZ))
    return {name: case._replace(error=error_of(name, case, x_ICS[0])) for name, case in cases.items()}


def error_of(name: str, case: Case, x_CS: np.ndarray) -> float | None:
    """How far a peer is from a loop in float64 of what it says."""
    part, _, who = name.partition(", ")
    if part == "equaliser":
        return relative(case.forward(), equalised_64(x_CS))
    if part == "loudness":
        return abs(float(case.forward()) - loudness_64(x_CS))
    if part != "compressor":
        return None
    wanted = {"torchcomp": branching_64, "dasp": one_time_64}[who](x_CS)
    return float(np.abs(case.forward() - wanted).max())


def branching_64(x_CS: np.ndarray) -> np.ndarray:
    """torchcomp: a gain that goes down by one time and up by another; dB that are taken away, (S,)."""
    down, up, gain, made = 1 - left_64(ATTACK_S), 1 - left_64(RELEASE_S), 1.0, []
    for one in (10 ** (-asked_64(np.abs(x_CS).max(0), 0.0) / 20)).tolist():
        gain += (down if one < gain else up) * (one - gain)
        made.append(gain)
    return -20.0 * np.log10(made)


def one_time_64(x_CS: np.ndarray) -> np.ndarray:
    """dasp-pytorch: one pole, whose attack is the time from 10 % to 90 %; of the channels' sum."""
    left = 9.0 ** (-1.0 / (ATTACK_S * RATE_HZ))
    return scipy.signal.lfilter(
        [1.0 - left], [1.0, -left], asked_64(np.abs(x_CS.astype(np.float64).sum(0)), KNEE_DB)
    )


if __name__ == "__main__":
    main()
