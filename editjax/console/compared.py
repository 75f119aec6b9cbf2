"""What the console did to a stem, by least squares: how engineers compare, and what regressors are told.

A mix is taken to be `a(f) · g(t)` of the stem, of its room and of its echoes, which are `knobs.ROOM`'s.

    transfer   of every band and ear, complex: three unknowns, a, and the parts of room and echoes
    curve      dB of all bands as a sum of what the equaliser's bands do: nearly its settings
    squeeze    g(t) for several thresholds of the compressor, and how well each explains the gain of frames;
               what explains it best is taken away from the stem, and all is done again, PASSES times

No regressor could learn this from pictures, whose cells are too large for a room 30 dB down; what it learns
is what remains: noise, bands without sound, settings that say nearly the same.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editjax.console.desk import Strip, equaliser
from editjax.console.dynamics import decibel, gain_of, left_after, reduction, smooth
from editjax.console.heard import FIGURES, PictureSettings, figures, picture
from editjax.console.knobs import RATIO, ROOM
from editjax.console.room import echoed, reverberated

N_FFT, HOP = 2048, 1024
BANDS, LOWEST_HZ, HIGHEST_HZ = 24, 30.0, 18_000.0
SOUNDING = 1e-6
"""Of the loudest band's power, in bands that say something."""
SHAPES_DB = {"low_db": 6.0, "low_mid_db": 6.0, "high_mid_db": 6.0, "high_db": 6.0}
CUTS_HZ, CUT_DB = (80.0, 160.0, 320.0), 10.0
STILL = (0.02, 0.02, 0.02, 0.02, 0.05, 0.05, 0.05, 1e-5, 1e-5)
"""How dear the parts of a curve are: bands, cuts, and the level of each ear."""
SHAPES = len(SHAPES_DB) + len(CUTS_HZ)
GRID_HZ = np.geomspace(20.0, 22_050.0, 400)
SQUEEZES_DB = np.arange(0.0, 26.0, 2.0, dtype=np.float32)
BLOCK = 64
"""Samples whose peak the compressor's copy hears at once."""
STEP_DB, STEPS = 3.0, 14
"""Of levels below the peak, by which frames are gathered."""
QUIETEST = 10**-4.5
SHARP = 6.0
PASSES = 3
LIMIT = 3.0
COMPARED = 10 * BANDS + 2 + SHAPES + 8 + STEPS + 3 * len(SQUEEZES_DB) + 1
EPSILON = 1e-9
HEARD = 2 * FIGURES + COMPARED
"""Figures of a stem, of its mix, and of both compared."""


class _Transfer(NamedTuple):
    """Of both ears: coefficients (2, B, 3) of stem, room and echoes, power (2, B) of the stem, `sounding_2B`,
    `answer_2N` the complex a of every bin, `whole_23` the coefficients of all bands, equally loud, and what
    is left of the mix (2, T, N) without room and echoes; `even_2N` makes bands equally loud."""

    parts_2B3: Any
    power_2B: Any
    sounding_2B: Any
    answer_2N: Any
    whole_23: Any
    dry_2TN: Any
    even_2N: Any


class _Squeezed(NamedTuple):
    """Of thresholds J: misfit, share unexplained and mean gain, how likely; the gain (S,), that of frames by
    level (STEPS,). All but the likelihood in dB."""

    misfit_J: Any
    left_J: Any
    gain_J: Any
    likely_J: Any
    gain_S: Any
    by_level: Any


def heard(settings: PictureSettings, stem_2S, mix_2S):
    """What regressors hear of a stem and a mix of it: a picture (T, F, 6) and figures (HEARD,)."""
    both = stem_2S, mix_2S
    seen_TFC = jnp.concatenate([picture(settings, x_2S) for x_2S in both], -1)
    told = [*(figures(settings, x_2S) for x_2S in both), compared(*both, settings.rate_hz)]
    return seen_TFC, jnp.concatenate(told)


def compared(stem_2S, mix_2S, rate_hz: int):
    """Figures (COMPARED,) of a stereo stem and what was made of it, of the order of 1, within ± LIMIT."""
    mix_2TN, gain_S = _frames(mix_2S), jnp.ones(stem_2S.shape[1])
    for _ in range(PASSES):
        played_2S = stem_2S * gain_S[None]
        room_2S = reverberated(played_2S, ROOM.room_decay_s, rate_hz)
        echo_2S = echoed(played_2S, ROOM.echo_s, ROOM.echo_feedback, rate_hz)
        heard_32TN = jnp.stack([_frames(x_2S) for x_2S in (played_2S, room_2S, echo_2S)])
        found = _transfer(heard_32TN, mix_2TN, rate_hz)
        curve = _curve(found, rate_hz)
        squeezed = _squeezed(stem_2S, found, curve, rate_hz)
        gain_S = gain_of(squeezed.gain_S)
    middle_side = _solved(_middle_side(heard_32TN, 1), _middle_side(mix_2TN, 0), _bands(rate_hz))
    parts = [*_transfer_figures(found, middle_side), curve / 10.0, *_squeeze_figures(squeezed)]
    row = jnp.concatenate([jnp.ravel(x) for x in parts])
    return jnp.clip(jnp.nan_to_num(row), -LIMIT, LIMIT)


def _transfer_figures(found: _Transfer, middle_side_2B3) -> list[Any]:
    direct_2B = jnp.abs(found.parts_2B3[..., 0]) + EPSILON
    level_2B = 10.0 * jnp.log10(found.power_2B / found.power_2B.max() + 1e-8)
    sends_2B2 = _db(jnp.abs(found.parts_2B3[..., 1:]) / direct_2B[..., None])
    direct_2 = found.whole_23[:, :1]
    sends_22 = found.whole_23[:, 1:] / jnp.where(jnp.abs(direct_2) > 1e-3, direct_2, 1e-3)
    return [
        _db(direct_2B) / 20.0,
        _db(jnp.abs(middle_side_2B3[..., 0])) / 20.0,
        level_2B / 40.0,
        sends_2B2 / 30.0 + 1.0,
        _db(jnp.abs(sends_22)) / 15.0 + 1.5,
        3.0 * jnp.real(sends_22),
    ]


def _squeeze_figures(squeezed: _Squeezed) -> list[Any]:
    likeliest = (squeezed.likely_J * SQUEEZES_DB).sum() / SQUEEZES_DB[-1]
    parts = squeezed.by_level / 10.0, squeezed.misfit_J / 3.0, squeezed.left_J / 10.0, squeezed.gain_J / 20.0
    return [*parts, 2.0 * likeliest]


def _transfer(heard_32TN, mix_2TN, rate_hz: int) -> _Transfer:
    bands_NB = _bands(rate_hz)
    parts_2B3 = _solved(heard_32TN, mix_2TN, bands_NB)
    power_2B = jnp.einsum("ctn,nb->cb", _square(heard_32TN[0]), bands_NB)
    sounding_2B = power_2B > SOUNDING * power_2B.max()
    size_2B = jnp.abs(parts_2B3[..., 0])
    log_2B = jnp.log(size_2B + 1e-6)
    said_2B = sounding_2B.astype(jnp.float32)
    usual_2 = (said_2B * log_2B).sum(1) / (said_2B.sum(1) + EPSILON)
    log_2B = jnp.where(sounding_2B, log_2B, usual_2[:, None])
    turn_2B = jnp.where(sounding_2B, _scaled(parts_2B3[..., 0], 1.0 / (size_2B + EPSILON)), 1.0)
    turn_2N = jax.lax.complex(_to_bins(turn_2B.real, rate_hz), _to_bins(turn_2B.imag, rate_hz))
    answer_2N = _scaled(turn_2N, jnp.exp(_to_bins(log_2B, rate_hz)) / (jnp.abs(turn_2N) + 1e-6))
    even_2B = said_2B / jnp.sqrt(power_2B * jnp.exp(2.0 * log_2B) + EPSILON)
    even_2N = jnp.einsum("cb,nb->cn", even_2B, bands_NB)
    alike_32TN = heard_32TN * answer_2N[None, :, None]
    everything_N1 = np.ones((len(bands_NB), 1), np.float32)
    weighed_2TN = _scaled(mix_2TN, even_2N[:, None])
    weighed_32TN = _scaled(alike_32TN, even_2N[None, :, None])
    whole_23 = _solved(weighed_32TN, weighed_2TN, everything_N1)[:, 0]
    dry_2TN = mix_2TN - (whole_23.T[1:, :, None, None] * alike_32TN[1:]).sum(0)
    return _Transfer(parts_2B3, power_2B, sounding_2B, answer_2N, whole_23, dry_2TN, even_2N)


def _solved(heard_KCTN, wanted_CTN, bands_NB):
    """The coefficients (C, B, K) by which sounds add up to what is wanted, band by band: least squares."""
    normal_NCKL = jnp.einsum("kctn,lctn->nckl", jnp.conj(heard_KCTN), heard_KCTN)
    pull_NCK = jnp.einsum("kctn,ctn->nck", jnp.conj(heard_KCTN), wanted_CTN)
    bands_NB = bands_NB.astype(np.complex64)
    normal_CBKL = jnp.einsum("nckl,nb->cbkl", normal_NCKL, bands_NB)
    pull_CBK = jnp.einsum("nck,nb->cbk", pull_NCK, bands_NB)
    power_CB11 = jnp.trace(normal_CBKL, axis1=-2, axis2=-1).real[..., None, None]
    ridge_11KK = jnp.eye(len(heard_KCTN))[None, None]
    ridged = normal_CBKL + ((1e-6 * power_CB11 + EPSILON) * ridge_11KK).astype(jnp.complex64)
    return jnp.linalg.solve(ridged, pull_CBK[..., None])[..., 0]


def _curve(found: _Transfer, rate_hz: int):
    """What the equaliser's bands and cuts do, in dB (10 dB for cuts), and the level of each ear."""
    shape_KB = _shapes(rate_hz)[0]
    level_2B = _db(jnp.abs(found.parts_2B3[..., 0]))
    weight_2B = jnp.where(found.sounding_2B, (found.power_2B / found.power_2B.max()) ** 0.125, 0.0)
    ears = np.repeat(np.eye(2, dtype=np.float32), BANDS, 1)
    known_KX = jnp.concatenate([jnp.tile(shape_KB, (1, 2)), ears])
    weighed_KX = known_KX * weight_2B.reshape(1, -1)
    normal_KK = weighed_KX @ known_KX.T + jnp.diag(jnp.array(STILL))
    return jnp.linalg.solve(normal_KK, weighed_KX @ level_2B.reshape(-1))


def _squeezed(stem_2S, found: _Transfer, curve, rate_hz: int) -> _Squeezed:
    n_samples, n_frames = stem_2S.shape[1], found.dry_2TN.shape[1]
    shape_db = curve[:SHAPES] @ _shapes(rate_hz)[1]
    bent_2S = _filtered(stem_2S, shape_db, rate_hz)
    blocks, per_frame = n_samples // BLOCK, HOP // BLOCK
    peak_X = decibel(jnp.abs(bent_2S[:, : blocks * BLOCK]).reshape(2, blocks, BLOCK).max((0, 2)))
    loudest_db = decibel(jnp.abs(stem_2S).max())
    times = (left_after(time_s, rate_hz / BLOCK) for time_s in (Strip().attack_s, Strip().release_s))
    attack, release = times

    def reduced(squeeze_db):
        asked_X = reduction(peak_X, loudest_db - squeeze_db, RATIO, Strip().knee_db)
        return smooth(asked_X, attack, release)

    reduced_JX = jax.vmap(reduced)(jnp.asarray(SQUEEZES_DB))
    in_frames_JTK = gain_of(-reduced_JX[:, : n_frames * per_frame]).reshape(-1, n_frames, per_frame)
    gain_JT = (in_frames_JTK[..., 0] + in_frames_JTK.mean(2)) / 2.0
    straight_2TN = _straight(stem_2S, found, curve, shape_db, rate_hz)
    even_21N = (found.even_2N**2)[:, None]
    both_T = ((jnp.conj(straight_2TN) * found.dry_2TN).real * even_21N).sum((0, 2))
    own_T = (_square(straight_2TN) * even_21N).sum((0, 2))
    mix_T = (_square(found.dry_2TN) * even_21N).sum((0, 2))
    scale_J = (gain_JT * both_T[None]).sum(1) / ((gain_JT**2 * own_T[None]).sum(1) + EPSILON)
    scaled_JT = scale_J[:, None] * gain_JT
    unexplained_J = (mix_T[None] - 2.0 * scaled_JT * both_T[None] + scaled_JT**2 * own_T[None]).sum(1)
    seen_T = 20.0 * jnp.log10(jnp.clip(both_T / (own_T + 1e-3 * own_T.mean() + EPSILON), 1e-3, 1e3))
    weight_T = jnp.where(own_T > QUIETEST * own_T.max(), (own_T / (own_T.max() + EPSILON)) ** 0.15, 0.0)
    weight_T = weight_T / (weight_T.sum() + EPSILON)
    off_JT = seen_T[None] - 20.0 * jnp.log10(gain_JT)
    mean_J = off_JT @ weight_T
    misfit_J = jnp.abs(off_JT - mean_J[:, None]) @ weight_T
    likely_J = jax.nn.softmax(-SHARP * misfit_J)
    gain_S = jnp.repeat(-(likely_J @ reduced_JX), BLOCK, total_repeat_length=blocks * BLOCK)
    under_T = peak_X[: n_frames * per_frame].reshape(n_frames, per_frame).max(1) - loudest_db
    return _Squeezed(
        misfit_J,
        10.0 * jnp.log10(jnp.maximum(unexplained_J / (mix_T.sum() + EPSILON), 1e-4)),
        mean_J,
        likely_J,
        jnp.pad(gain_S, (0, n_samples - blocks * BLOCK), mode="edge"),
        _by_level(seen_T, under_T),
    )


def _straight(stem_2S, found: _Transfer, curve, shape_db, rate_hz: int):
    """The stem (2, T, N) after an equaliser of this curve, uncompressed, in phase with what was found."""
    hz_N = np.fft.rfftfreq(N_FFT, 1 / rate_hz)
    bent_N = 10.0 ** (_at(hz_N, shape_db) / 20.0)
    level_21 = 10.0 ** (curve[SHAPES:, None] / 20.0)
    size_2N = bent_N[None] * level_21 / (jnp.abs(found.answer_2N) + EPSILON)
    return _frames(stem_2S) * _scaled(found.answer_2N, size_2N)[:, None]


def _by_level(gain_T, under_T):
    """The mean gain (STEPS,) of frames that are 0, 3, 6, … dB below the stem's peak; 0 without any."""
    step_X1 = -STEP_DB * np.arange(STEPS, dtype=np.float32)[:, None]
    near_XT = (jnp.abs(under_T[None] - step_X1) < 2.0).astype(jnp.float32)
    return near_XT @ gain_T / (near_XT.sum(1) + 1e-3)


def _filtered(x_2S, shape_db, rate_hz: int):
    """A sound after a curve (of GRID_HZ, in dB), in zero phase."""
    hz_F = np.fft.rfftfreq(x_2S.shape[1], 1 / rate_hz)
    answer_1F = 10.0 ** (_at(hz_F, shape_db)[None] / 20.0)
    return jnp.fft.irfft(_scaled(jnp.fft.rfft(x_2S), answer_1F), x_2S.shape[1])


def _at(hz_N: np.ndarray, shape_db):
    """A curve of GRID_HZ at other frequencies."""
    return jnp.interp(_log(np.maximum(hz_N, GRID_HZ[0])), _log(GRID_HZ), shape_db)


def _to_bins(x_2B, rate_hz: int):
    """Values of bands at bins, (2, N), with straight lines between them."""
    hz_N = _log(np.maximum(np.fft.rfftfreq(N_FFT, 1 / rate_hz), 1.0))
    return jax.vmap(lambda x_B: jnp.interp(hz_N, _log(_centres_hz()), x_B))(x_2B)


def _log(hz: np.ndarray) -> np.ndarray:
    return np.log(hz).astype(np.float32)


def _frames(x_2S):
    """Spectra (2, T, N) of frames whose middles are HOP apart."""
    n_frames = x_2S.shape[1] // HOP
    padded_2S = jnp.pad(x_2S, ((0, 0), (N_FFT // 2, N_FFT // 2)))
    at_TN = np.arange(n_frames)[:, None] * HOP + np.arange(N_FFT)
    window_N = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    return jnp.fft.rfft(padded_2S[:, at_TN] * window_N[None, None])


def _middle_side(x, axis: int):
    """Middle and side along the axis of left and right."""
    left, right = (jax.lax.index_in_dim(x, ear, axis, keepdims=False) for ear in (0, 1))
    return jnp.stack([left + right, left - right], axis) / 2.0


def _scaled(x, size):
    """Complex numbers by real ones."""
    return jax.lax.complex(x.real * size, x.imag * size)


def _square(x):
    return x.real**2 + x.imag**2


def _db(amplitude):
    return 20.0 * jnp.log10(amplitude + 1e-4)


def _edges_hz() -> np.ndarray:
    return np.geomspace(LOWEST_HZ, HIGHEST_HZ, BANDS + 1)


def _centres_hz() -> np.ndarray:
    edges = _edges_hz()
    return np.sqrt(edges[1:] * edges[:-1])


@lru_cache
def _bands(rate_hz: int) -> np.ndarray:
    """Which bins (N) make which bands (B), one at least."""
    hz_N, edge = np.fft.rfftfreq(N_FFT, 1 / rate_hz), _edges_hz()
    inside_NB = (hz_N[:, None] >= edge[:-1]) & (hz_N[:, None] < edge[1:])
    nearest_B = np.abs(hz_N[:, None] - _centres_hz()).argmin(0)
    empty_B = ~inside_NB.any(0)
    inside_NB[nearest_B[empty_B], np.flatnonzero(empty_B)] = True
    return inside_NB.astype(np.float32)


@lru_cache
def _shapes(rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """What 1 dB of each of the equaliser's bands does, and the cuts for 10 dB, in dB at the middles of bands
    (K, B) and at GRID_HZ."""
    with jax.ensure_compile_time_eval():
        strips = [Strip(**{name: jnp.float32(db)}) for name, db in SHAPES_DB.items()]
        strips += [Strip(low_cut_hz=jnp.float32(hz)) for hz in CUTS_HZ]
        n_bins = 8193
        answers = [np.abs(np.asarray(equaliser(strip, rate_hz, n_bins))) for strip in strips]
    hz_N = np.linspace(0.0, rate_hz / 2, n_bins)
    whole_db = [*SHAPES_DB.values(), *[CUT_DB] * len(CUTS_HZ)]
    level_KN = [
        np.maximum(20 * np.log10(answer + 1e-6), -60.0) / db
        for answer, db in zip(answers, whole_db, strict=True)
    ]
    both = (
        np.stack([np.interp(hz, hz_N, level_N) for level_N in level_KN]) for hz in (_centres_hz(), GRID_HZ)
    )
    at_bands, at_grid = (x.astype(np.float32) for x in both)
    return at_bands, at_grid
