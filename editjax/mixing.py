"""Stems → a mix sheet, and a mix of the wanted loudness whose true peaks stay below a ceiling.

    listen   every stem: spectrum of middle and side where it sounds, loudness, true peak
    decide   what rumbles is cut, what leaps is compressed, mono stems are placed; then gains, bands and
             widths, by gradient descent through the console's filters, so that the spectrum and width of the
             sum come near those of a reference, or of music as it is released, and nothing moves far
    perform  the sheet through the console, in blocks; the master gain is set by what a meter says

Changes are bounded: levels by 6 dB, bands by 4 dB, and the further the dearer. A stem is not made into
something else. A taste learned from votes (`taste`) moves the mix within the same bounds.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from editjax.audio import BLOCK_SAMPLES, Reader
from editjax.console.desk import Master, Strip, equaliser
from editjax.console.dynamics import decibel, gain_of
from editjax.console.stream import Meter, render
from editjax.errors import DataError
from editjax.formats import to_float
from editjax.sheet import Sheet
from editjax.taste import Taste, utility
from editjax.tracks import Mix

N_FFT = 8192
SOUNDING_DB = -50.0
"""Frames so far below the loudest say nothing of a stem's spectrum."""
LOWEST_HZ, HIGHEST_HZ, PER_OCTAVE = 30.0, 16_000.0, 3
RUMBLE, RUMBLE_HZ = 1e-3, (20.0, 150.0)
"""Up to where a stem has so much of its power nothing is missed."""
CREST_DB, MOST_SQUEEZE_DB, SQUEEZE_RATIO = 16.0, 6.0, 3.0
MOST_GAIN_DB, MOST_BAND_DB = 6.0, 4.0
PLACE, CENTRE_HZ, MONO_DB = 0.3, 250.0, -40.0
IN_THE_MIDDLE = ("vox", "vocal", "voice", "lead", "kick", "snare", "bass", "drum")
STEPS, RATE = 300, 0.05
DEAR, WIDTH_MATTERS, KNOBS_MOVED = 20.0, 100.0, 6
LIKED = 100.0
"""So many dB² of distance from the goal is it worth to be surely preferred to the mix without a taste."""
OPEN_DB = 60.0
QUIETEST_LUFS = -70.0
PASSES, WITHIN_LU = 8, 0.05
CEILING_DB = -1.2
"""Meters that look four times between samples miss up to 0.2 dB: what is wanted is −1 dB of any meter."""
RELEASED = ((30.0, -6.0), (60.0, 0.0), (100.0, 0.0), (4000.0, -26.0), (10_000.0, -36.0), (16_000.0, -46.0))
"""Power per Hz of released music in dB: level around 100 Hz, −5 dB an octave to 4 kHz, steeper above (Pestana
et al. 2013, "Spectral characteristics of popular commercial recordings 1950–2010")."""


@dataclass(frozen=True)
class MixingSettings:
    """`loudness_lufs` of the mix; how dear changes are: `still` 1 moves little, 0.1 follows the goal."""

    loudness_lufs: float = -14.0
    still: float = 1.0


class Heard(NamedTuple):
    """Power in bands (F,) of middle and side, loudness in LUFS, true peak in dB, the lowest use in Hz."""

    middle_F: np.ndarray
    side_F: np.ndarray
    loudness: float
    peak_db: float
    lowest_hz: float


class Measured(NamedTuple):
    """What a meter says of a sound."""

    loudness_lufs: float
    true_peak_db: float
    loudness_range_lu: float


def blocks_of(reader: Reader) -> Iterator[np.ndarray]:
    """A recording as blocks (2, N) float32; of more channels the first two."""
    for block_SC in reader.blocks(BLOCK_SAMPLES):
        block_SC = to_float(block_SC).reshape(len(block_SC), -1)[:, :2]
        yield np.ascontiguousarray(np.broadcast_to(block_SC, (len(block_SC), 2)).T, np.float32)


def listen(blocks: Iterable[np.ndarray], rate_hz: int) -> Heard:
    """What decisions need to know of a sound; DataError where it is silent."""
    meter, window_N = Meter(rate_hz), np.hanning(N_FFT).astype(np.float32)
    powers: list[np.ndarray] = []
    for block_2S in blocks:
        meter.add(block_2S)
        whole = block_2S.shape[1] // N_FFT * N_FFT
        frames_2TN = block_2S[:, :whole].reshape(2, -1, N_FFT)
        both = np.stack([frames_2TN.sum(0), frames_2TN[0] - frames_2TN[1]]) / 2.0
        powers.append(np.abs(np.fft.rfft(both * window_N)) ** 2)
    power_2TF = np.concatenate(powers, 1) if powers else np.zeros((2, 0, N_FFT // 2 + 1))
    if not power_2TF.any():
        raise DataError("it is silent")
    level_T = power_2TF[0].sum(1) + power_2TF[1].sum(1)
    sounding_T = level_T > level_T.max() * 10 ** (SOUNDING_DB / 10)
    mean_2F = power_2TF[:, sounding_T].mean(1) * sounding_T.mean()
    share_F = np.cumsum(mean_2F.sum(0)) / mean_2F.sum()
    lowest_hz = float(np.searchsorted(share_F, RUMBLE) * rate_hz / N_FFT)
    middle_F, side_F = (mean_2F @ _bands(rate_hz)).astype(np.float32)
    return Heard(middle_F, side_F, meter.loudness(), float(decibel(meter.true_peak())), lowest_hz)


def centres_hz() -> np.ndarray:
    """The middle frequencies (F,) of the bands, a third of an octave apart."""
    count = round(np.log2(HIGHEST_HZ / LOWEST_HZ) * PER_OCTAVE)
    return LOWEST_HZ * 2.0 ** (np.arange(count + 1) / PER_OCTAVE)


def _bands(rate_hz: int) -> np.ndarray:
    """Which bins (N) make which bands (F): 1 where a bin lies in a band; every band has one at least."""
    hz_N, centre_F = np.fft.rfftfreq(N_FFT, 1 / rate_hz), centres_hz()
    edge = 2.0 ** (0.5 / PER_OCTAVE)
    inside_NF = (hz_N[:, None] >= centre_F / edge) & (hz_N[:, None] < centre_F * edge)
    nearest_F = np.abs(hz_N[:, None] - centre_F).argmin(0)
    empty_F = ~inside_NF.any(0)
    inside_NF[nearest_F[empty_F], np.flatnonzero(empty_F)] = True
    return inside_NF.astype(np.float64)


def released(rate_hz: int) -> tuple[np.ndarray, None]:
    """The goal without a reference: levels of bands in dB, and no width."""
    hz, level_db = zip(*RELEASED, strict=True)
    per_hz_F = np.interp(np.log(centres_hz()), np.log(hz), level_db)
    return per_hz_F + 10 * np.log10(_bands(rate_hz).sum(0)), None


def goal_of(reference: Heard) -> tuple[np.ndarray, np.ndarray]:
    """The goal of a reference: levels of bands in dB, and how much of each is side."""
    both_F = reference.middle_F + reference.side_F
    return 10 * np.log10(both_F + 1e-12), reference.side_F / (both_F + 1e-12)


def decide(
    names: Sequence[str],
    heard: Sequence[Heard],
    rate_hz: int,
    settings: MixingSettings = MixingSettings(),
    reference: Heard | None = None,
    taste: Taste | None = None,
) -> Sheet:
    """A sheet for stems of these names and sounds."""
    strips = [_prepared(one) for one in heard]
    pans = _places(names, heard)
    strips = [strip._replace(pan=pan) for strip, pan in zip(strips, pans, strict=True)]
    goal_F, side_F = goal_of(reference) if reference else released(rate_hz)
    moved_IK = _matched(strips, heard, goal_F, side_F, rate_hz, settings.still, taste)
    strips = [
        strip._replace(
            **{name: float(value) for name, value in _settings_of(moved_K, side_F is not None).items()}
        )
        for strip, moved_K in zip(strips, moved_IK, strict=True)
    ]
    return Sheet(tuple(names), tuple(strips), Master(ceiling_db=CEILING_DB), settings.loudness_lufs, rate_hz)


def plain(names: Sequence[str], rate_hz: int, loudness_lufs: float) -> Sheet:
    """The sheet of the plain sum, at a loudness."""
    neutral = tuple(Strip() for _ in names)
    return Sheet(tuple(names), neutral, Master(ceiling_db=CEILING_DB), loudness_lufs, rate_hz)


def _prepared(heard: Heard) -> Strip:
    """What a stem by itself asks for: no rumble, and peaks that do not stand out by more than CREST_DB."""
    low_cut_hz = float(np.clip(heard.lowest_hz / 1.5, *RUMBLE_HZ))
    squeeze_db = float(np.clip((heard.peak_db - heard.loudness - CREST_DB) / 2.0, 0.0, MOST_SQUEEZE_DB))
    threshold_db = heard.peak_db - squeeze_db / (1.0 - 1.0 / SQUEEZE_RATIO)
    if squeeze_db == 0.0:
        return Strip(low_cut_hz=low_cut_hz)
    return Strip(low_cut_hz=low_cut_hz, threshold_db=threshold_db, ratio=SQUEEZE_RATIO)


def _places(names: Sequence[str], heard: Sequence[Heard]) -> list[float]:
    """Mono stems that are not low and not named as what stays in the middle go left and right in turn, those
    with the highest sound furthest (Perez Gonzalez and Reiss 2010)."""
    centre_F, pans = centres_hz(), [0.0] * len(names)
    free = []
    for k, (name, one) in enumerate(zip(names, heard, strict=True)):
        mono = one.side_F.sum() < one.middle_F.sum() * 10 ** (MONO_DB / 10)
        centroid_hz = float(np.exp((np.log(centre_F) * one.middle_F).sum() / one.middle_F.sum()))
        if mono and centroid_hz > CENTRE_HZ and not any(word in name.lower() for word in IN_THE_MIDDLE):
            free.append((centroid_hz, k))
    for rank, (_, k) in enumerate(sorted(free)):
        pans[k] = PLACE * (rank + 1) / len(free) * (-1) ** rank if len(free) > 1 else 0.0
    return pans


def _settings_of(moved_K: Any, widths: bool) -> dict[str, Any]:
    """Numbers that may be anything as settings within their bounds."""
    gain, *bands = (jnp.tanh(moved_K[k]) for k in range(5))
    names = ("low_db", "low_mid_db", "high_mid_db", "high_db")
    found = {"gain_db": MOST_GAIN_DB * gain}
    found |= {name: MOST_BAND_DB * band for name, band in zip(names, bands, strict=True)}
    return found | ({"width": 1.0 + 0.5 * jnp.tanh(moved_K[5])} if widths else {})


def _matched(
    strips: Sequence[Strip],
    heard: Sequence[Heard],
    goal_F: np.ndarray,
    side_F: np.ndarray | None,
    rate_hz: int,
    still: float,
    taste: Taste | None = None,
) -> np.ndarray:
    """Numbers (I, K) for `_settings_of` that bring the sum near the goal.

    Stems are taken to be independent of each other, so that powers add up. With a taste it also counts how
    probably the sum is preferred to that without: what is liked enough moves no further.
    """
    bands_NF = _bands(rate_hz)
    mean_NF = jnp.asarray(bands_NF / bands_NF.sum(0), jnp.float32)
    middle_IF, side_IF = (jnp.asarray(np.stack(parts)) for parts in zip(*(h[:2] for h in heard), strict=True))
    weight_F = jnp.asarray(_audible(heard))
    fixed = Strip(*(jnp.asarray(values, jnp.float32) for values in zip(*strips, strict=True)))

    def summed(moved_IK):
        def one(strip, moved_K, middle_F, side_F):
            strip = strip._replace(**_settings_of(moved_K, sides is not None))
            answer_N = equaliser(strip, rate_hz, N_FFT // 2 + 1)
            power_F = (answer_N.real**2 + answer_N.imag**2) @ mean_NF * gain_of(strip.gain_db) ** 2
            return power_F * middle_F, strip.width**2 * power_F * side_F

        return [parts.sum(0) for parts in jax.vmap(one)(fixed, moved_IK, middle_IF, side_IF)]

    def apart(moved_IK, before=None):
        middle_F, side_F = summed(moved_IK)
        level_F = 10.0 * jnp.log10(middle_F + side_F + 1e-12) - goal
        level_F = level_F - (weight_F * level_F).sum() / weight_F.sum()
        total = (weight_F * level_F**2).sum() / weight_F.sum() + still * DEAR * (moved_IK**2).mean()
        if sides is not None:
            wider_F = side_F / (middle_F + side_F + 1e-12) - sides
            total += WIDTH_MATTERS * (weight_F * wider_F**2).sum() / weight_F.sum()
        if before is not None:
            total -= LIKED * jax.nn.sigmoid(utility(taste, middle_F, side_F) - before)
        return total

    goal, sides = (
        jnp.asarray(goal_F, jnp.float32),
        None if side_F is None else jnp.asarray(side_F, jnp.float32),
    )
    start_IK = jnp.zeros((len(strips), KNOBS_MOVED))
    moved_IK = _descended(apart, start_IK)
    if taste is not None:
        before = utility(taste, *summed(moved_IK))
        moved_IK = _descended(lambda x_IK: apart(x_IK, before), start_IK)
    return np.asarray(moved_IK)


def _audible(heard: Sequence[Heard]) -> np.ndarray:
    """1 for bands in which the sum has something, 0 where there is nothing to move."""
    level_F = 10 * np.log10(sum(one.middle_F + one.side_F for one in heard) + 1e-12)
    return (level_F > level_F.max() - 60.0).astype(np.float32)


def _descended(function: Callable[[Any], Any], x: Any) -> Any:
    """Where Adam gets from `x` in STEPS."""
    optimiser = optax.adam(RATE)

    def step(carry, _):
        x, state = carry
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimiser.update(jax.grad(function)(x), state)
        return (x + change, state), None

    return jax.jit(lambda x: jax.lax.scan(step, (x, optimiser.init(x)), None, STEPS)[0][0])(x)


Source = Callable[[], Iterable[np.ndarray]]
"""Begins anew with each call: blocks of all stems, (I, 2, N)."""


def stems_of(mix: Mix) -> Source:
    """The stems of a session, block by block."""

    def blocks() -> Iterator[np.ndarray]:
        for parts in zip(*map(blocks_of, mix.tracks), strict=True):
            yield np.stack(parts)

    return blocks


def perform(stems: Source, sheet: Sheet, keep: Callable[[np.ndarray], Any]) -> None:
    """The sum of the stems under their strips, without master: blocks go to `keep`."""
    strips = Strip(*(np.asarray(values, np.float32) for values in zip(*sheet.strips, strict=True)))
    open_master = sheet.master._replace(gain_db=0.0, ceiling_db=OPEN_DB)
    for block_2N in render(stems(), strips, open_master, sheet.sample_rate_hz):
        keep(block_2N)


@contextlib.contextmanager
def kept_sum(stems: Source, sheet: Sheet, folder: Path) -> Iterator[Callable[[], Iterator[np.ndarray]]]:
    """What gives the sum of the stems under their strips, block by block, as often as it is called; it lies
    in a temporary file in the folder meanwhile."""
    with tempfile.TemporaryFile(dir=folder) as scratch:
        perform(stems, sheet, lambda block_2N: scratch.write(np.ascontiguousarray(block_2N.T).data))

        def sum_of() -> Iterator[np.ndarray]:
            scratch.seek(0)
            while part := scratch.read(8 * 2**16):
                yield np.frombuffer(part, np.float32).reshape(-1, 2).T

        yield sum_of


def mastered(
    sum_of: Callable[[], Iterable[np.ndarray]], sheet: Sheet, gain_db: float
) -> Iterator[np.ndarray]:
    """The sum (blocks (2, N)) with a gain and the limiter."""
    neutral = Strip(*(np.full(1, value, np.float32) for value in Strip()))
    master = Master(gain_db=gain_db, ceiling_db=sheet.master.ceiling_db)
    yield from render((block_2N[None] for block_2N in sum_of()), neutral, master, sheet.sample_rate_hz)


def loud_enough(sum_of: Callable[[], Iterable[np.ndarray]], sheet: Sheet) -> tuple[float, Measured]:
    """The master gain in dB at which the mix is as loud as its sheet says, and what it measures then.

    A limiter takes some of a gain away, so it is found by trying, as by the secant. Raises DataError for a
    mix that is silent.
    """
    rate_hz, wanted = sheet.sample_rate_hz, sheet.loudness_lufs
    before = measure(sum_of(), rate_hz)
    if before.loudness_lufs < QUIETEST_LUFS:
        raise DataError("the mix is silent, or shorter than 400 ms: there is no loudness to reach")
    gain_db = wanted - before.loudness_lufs
    for _ in range(PASSES):
        found = measure(mastered(sum_of, sheet, gain_db), rate_hz)
        missing = wanted - found.loudness_lufs
        if abs(missing) < WITHIN_LU:
            break
        gain_db += (
            1.5 * missing if missing > 0 and found.true_peak_db > sheet.master.ceiling_db - 0.5 else missing
        )
    return gain_db, found


def measure(blocks: Iterable[np.ndarray], rate_hz: int) -> Measured:
    """What a meter says of blocks (2, N)."""
    meter = Meter(rate_hz)
    for block_2N in blocks:
        meter.add(block_2N)
    return Measured(meter.loudness(), float(decibel(meter.true_peak())), meter.loudness_range())
