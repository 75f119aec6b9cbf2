"""What the creative agent learns from: its pieces as they sound, and the windows that it chose.

Each of these is had for every pair of windows, and the loss is their mean over the pairs:

- spectral: how far a piece, decoded, is from both of its windows, decoded, at several resolutions. The codec
  is frozen, but gradients go through it to the piece, and from there to all that the selector chose.
- rhythm: how far the changes of the compressed input window are from those of the target window, frame for
  frame and more and more blurred, which is felt from further away.
- matching: how far from 1 the correlation of both windows is that the selector's choice can expect, which is
  felt from everywhere (`selector`).
- novelty: how much of every frame of the piece lies along the same frame of either window, whatever its sign
  or level. A piece that is its input, or its target, or takes turns, scores 1, which is the worst.
- ratio: how far the compressions are from those that bring both recordings to one pulse. The recordings say
  which: autocorrelations of how much they change, over logarithmic lags, are shifted until they agree.

For the pairs together, `diversity` is by how much their windows overlap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from editjax.errors import UsageError
from editjax.models.codec import CodecSettings, decode, encode
from editjax.models.selector import Windows
from editjax.models.window import Composed, WindowSettings, apply, cut_out, metadata, select

RESOLUTIONS = (256, 1024, 2048)
LOUDEST_FLOOR = 1e-4
"""Of log magnitudes, under the loudest there is: −80 dB."""
BLURS_S = (0.1, 0.4, 1.6)
TINY = 1e-8
STILL = 0.01
SHORTEST_LAG_S, LONGEST_LAG_S, LAGS = 0.25, 1.6, 96
SHIFTS = 65
AGREEMENT = 50.0
"""Of pulses, as a logit: the ratio is the mean under the softmax."""

Hear = Callable[[Any], Any]  # latents (B, T, D) → samples (B, S)


@dataclass(frozen=True)
class WindowLossSettings:
    """Weights of the losses, and the frozen codec: a bundled model or a model folder.

    Of every piece `heard_s` are decoded, at random; 0 is all of it.
    """

    codec: str = "codec"
    heard_s: float = 2.0
    spectral: float = 1.0
    rhythm: float = 1.0
    matching: float = 3.0
    novelty: float = 0.3
    diversity: float = 1.0
    ratio: float = 1.0

    def __post_init__(self) -> None:
        if not self.heard_s >= 0:
            raise UsageError(f"heard_s {self.heard_s}: give the seconds to decode, or 0 for all")


def sound_loss(params, batch, settings: WindowSettings, weights: WindowLossSettings, key, frozen: Any):
    """`window_loss` of a `SoundBatch`, neighbours in it a pair each: input, target. `frozen` is the codec.

    Raises UsageError where that is none, or is of another rate than the agent, or the batch does not pair.
    """
    codec, sound_BCS = frozen.settings, batch.sound_BCS
    check_codec(settings, codec, weights.codec)
    n_samples = settings.frames * codec.hop
    if len(sound_BCS) % 2 or sound_BCS.shape[2] < n_samples:
        raise UsageError(
            f"batches of {len(sound_BCS)} sounds of {sound_BCS.shape[2]} samples: the agent hears pairs of "
            f"{n_samples}; set --data.batch-size to an even number, and --data.seconds"
        )
    latents_BTD = encode(codec, frozen.params, sound_BCS[..., :n_samples])
    hear = hearing(frozen)
    return window_loss(params, latents_BTD[0::2], latents_BTD[1::2], hear, settings, weights, key)


def hearing(codec: Any) -> Hear:
    """What decodes latents (B, T, D) to samples (B, S), the mean of channels; `codec` is a `ppo.Frozen`."""
    return lambda latents_BTD: decode(codec.settings, codec.params, latents_BTD).mean(1)


def check_codec(settings: WindowSettings, codec: Any, name: str) -> None:
    """Raises UsageError where a model is no codec, or not one whose latents the agent was made for."""
    if not isinstance(codec, CodecSettings):
        raise UsageError(f"{name}: is not a codec, whose latents the creative agent hears")
    found = codec.sample_rate_hz, codec.frames_per_second, codec.dimension
    wanted = settings.sample_rate_hz, settings.frames_per_second, settings.channels
    if found != wanted:
        said = [
            f"{rate} Hz with {fps:g} frames of {width} numbers a second"
            for rate, fps, width in (found, wanted)
        ]
        raise UsageError(f"{name}: a codec of {said[0]}, but the agent was made for {said[1]}")


def window_loss(params, input_BTD, target_BTD, hear: Hear, settings: WindowSettings, weights, key):
    """(loss, metrics) of two recordings' latents; `key` drops channels and picks what is heard."""
    drop_key, hear_key = jax.random.split(key)
    composed = apply(settings, params, input_BTD, target_BTD, drop_key)
    return loss_of(composed, input_BTD, target_BTD, hear, settings, weights, hear_key)


def loss_of(composed: Composed, input_BTD, target_BTD, hear: Hear, settings, weights, key):
    """The same of pieces that are composed."""
    losses = pair_losses(composed, input_BTD, target_BTD, hear, settings, weights, key)
    means = {name: loss_BP.mean() for name, loss_BP in losses.items()}
    means["diversity"] = overlap(settings, composed.windows).mean()
    total = sum(getattr(weights, name) * value for name, value in means.items())
    return total, means | metadata(composed.windows)


def pair_losses(composed: Composed, input_BTD, target_BTD, hear: Hear, settings, weights, key):
    """Every loss of every pair, (B, P) each; what weighs nothing is not decoded."""
    losses = {
        "rhythm": rhythm(settings, composed.input_BPWD, composed.target_BPWD),
        "matching": 1.0 - composed.windows.match_BP,
        "novelty": novelty(*composed[:3]),
        "ratio": ratio_error(settings, composed.windows, input_BTD, target_BTD),
    }
    if weights.spectral:
        losses["spectral"] = _heard_distance(settings, weights, composed, hear, key)
    return losses


def matching_losses(settings: WindowSettings, params: Any, input_BTD, target_BTD):
    """What choosing windows alone is learnt from, (B, P): rhythm, matching and ratio, nothing composed."""
    weights, windows = (
        WindowLossSettings(spectral=0.0, novelty=0.0),
        select(settings, params, input_BTD, target_BTD),
    )
    cut = cut_out(settings, input_BTD, target_BTD, windows)
    losses = {
        "rhythm": rhythm(settings, *cut),
        "matching": 1.0 - windows.match_BP,
        "ratio": ratio_error(settings, windows, input_BTD, target_BTD),
    }
    return total_of_pairs(losses, weights)


def total_of_pairs(losses: dict[str, Any], weights: WindowLossSettings):
    """The weighted sum that every pair adds to the loss, (B, P)."""
    return sum(getattr(weights, name) * loss_BP for name, loss_BP in losses.items())


def _heard_distance(
    settings: WindowSettings, weights: WindowLossSettings, composed: Composed, hear: Hear, key
):
    """Spectral distance of every piece from its two windows, (B, P), where they are heard."""
    shape = composed.piece_BPWD.shape[:2]
    asked = round(weights.heard_s * settings.frames_per_second) or settings.window_frames
    n_frames = min(asked, settings.window_frames)
    first = jax.random.randint(key, (), 0, settings.window_frames - n_frames + 1)
    parts = [jax.lax.dynamic_slice_in_dim(x, first, n_frames, 2) for x in composed[:3]]
    heard = hear(jnp.concatenate([x.reshape(-1, *x.shape[2:]) for x in parts]))
    piece_NS, input_NS, target_NS = jnp.split(heard, 3)
    distance_N = spectral_distance(piece_NS, input_NS) + spectral_distance(piece_NS, target_NS)
    return 0.5 * distance_N.reshape(shape)


def spectral_distance(found_NS, wanted_NS):
    """Spectral convergence plus the L1 of log magnitudes, (N,), averaged over resolutions.

    Yamamoto, Song and Kim 2020, but over the power of both sounds: over that of the wanted alone, a window
    that happens to be quiet would outweigh all others. Magnitudes 80 dB under the loudest count as that.
    """
    total_N = jnp.zeros(found_NS.shape[:1])
    for n_fft in RESOLUTIONS:
        found, wanted = (_power(x_NS, n_fft) for x_NS in (found_NS, wanted_NS))
        loudest = jnp.maximum(found.max((1, 2), keepdims=True), wanted.max((1, 2), keepdims=True))
        floor = loudest * LOUDEST_FLOOR**2 + TINY
        found, wanted = jnp.sqrt(found + floor), jnp.sqrt(wanted + floor)
        away = jnp.sqrt(((found - wanted) ** 2).sum((1, 2)) + TINY)
        convergence_N = away / jnp.sqrt(0.5 * (found**2 + wanted**2).sum((1, 2)) + TINY)
        total_N += convergence_N + jnp.abs(jnp.log(found) - jnp.log(wanted)).mean((1, 2))
    return total_N / len(RESOLUTIONS)


def _power(x_NS, n_fft: int):
    """Power spectra of Hann windows a quarter of their length apart, (N, T, K); no phase, hence no corner."""
    hop, before = n_fft // 4, n_fft // 2
    padded = jnp.pad(x_NS, ((0, 0), (before, before)))
    count = (padded.shape[1] - n_fft) // hop + 1
    rows = np.arange(count)[:, None] * hop + np.arange(n_fft)[None]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)
    spectrum = jnp.fft.rfft(padded[:, rows] * window[None, None])
    return spectrum.real**2 + spectrum.imag**2


def rhythm(settings: WindowSettings, input_BPWD, target_BPWD):
    """1 − the correlation of how much both windows change, channel by channel, (B, P), from 0 to 2."""
    total_BP = jnp.zeros(input_BPWD.shape[:2])
    changes = [jnp.sqrt(jnp.diff(x, axis=2) ** 2 + TINY) for x in (input_BPWD, target_BPWD)]
    for blur_s in BLURS_S:
        size = max(1, round(blur_s * settings.frames_per_second))
        first, second = (_deviations(_averaged(x, size)) for x in changes)
        total_BP += 1.0 - (first * second).mean((-1, -2))
    return total_BP / len(BLURS_S)


def _averaged(x_BPWD, size: int):
    """Means of `size` frames after another."""
    batch, pairs, n_frames, channels = x_BPWD.shape
    whole = n_frames // size * size
    return x_BPWD[:, :, :whole].reshape(batch, pairs, -1, size, channels).mean(3)


def _deviations(x_BPWD):
    """Each channel without its mean, in units of its own deviation, and of a tenth of all channels'.

    What hardly changes is rounding and noise, whose gradients would drown the others.
    """
    off = x_BPWD - x_BPWD.mean(2, keepdims=True)
    square = (off**2).mean(2, keepdims=True)
    return off / jnp.sqrt(square + STILL * square.mean(3, keepdims=True) + TINY)


def novelty(piece_BPWD, input_BPWD, target_BPWD):
    """The mean over frames of the squared cosine with the nearer of the two windows' frames, (B, P).

    Squares, so that signs cancel in no mean; every frame by itself, so that frames do not make up for others.
    """
    along = [_cosine(piece_BPWD, x_BPWD) ** 2 for x_BPWD in (input_BPWD, target_BPWD)]
    return jnp.maximum(*along).mean(-1)


def _cosine(a_BPWD, b_BPWD):
    lengths = [(x**2).sum(-1) for x in (a_BPWD, b_BPWD)]
    return (a_BPWD * b_BPWD).sum(-1) / jnp.sqrt(lengths[0] * lengths[1] + TINY**2)


def overlap(settings: WindowSettings, windows: Windows):
    """By how much the windows of two pairs overlap, squared, on average over pairs and recordings, (B,).

    In shares of what the shorter of the two covers; 1 where all windows are the same, 0 for one pair alone.
    """
    pairs = windows.start_input_BP.shape[1]
    first, second = np.triu_indices(pairs, 1)
    if not len(first):
        return jnp.zeros(windows.start_input_BP.shape[0])
    sides = (
        (windows.start_input_BP, windows.ratio_input_BP),
        (windows.start_target_BP, windows.ratio_target_BP),
    )
    total_B = jnp.zeros(windows.start_input_BP.shape[:1])
    for start_BP, ratio_BP in sides:
        length_BP = ratio_BP * settings.window_frames
        stop_BP = start_BP + length_BP
        common = jnp.minimum(stop_BP[:, first], stop_BP[:, second])
        common -= jnp.maximum(start_BP[:, first], start_BP[:, second])
        share = jnp.maximum(common, 0.0) / jnp.minimum(length_BP[:, first], length_BP[:, second])
        total_B += (share**2).mean(-1)
    return total_B / len(sides)


def ratio_error(settings: WindowSettings, windows: Windows, input_BTD, target_BTD):
    """Squared errors of log compressions against those that the recordings' pulses ask for, (B, P).

    They count by how well the pulses agree. Of all pairs of ratios with the quotient that is asked for, the
    one that compresses least is right.
    """
    quotient_B, trust_B = pulse_quotient(settings, input_BTD, target_BTD)
    wanted = jnp.maximum(quotient_B, 0.0), jnp.maximum(-quotient_B, 0.0)
    ratios = windows.ratio_input_BP, windows.ratio_target_BP
    error_BP = sum((jnp.log(r_BP) - w_B[:, None]) ** 2 for r_BP, w_B in zip(ratios, wanted, strict=True))
    return trust_B[:, None] * error_BP


def pulse_quotient(settings: WindowSettings, input_BTD, target_BTD):
    """The logarithm of by how much more the input must be compressed to have the target's pulse, and how far
    to trust it, (B,) each; from −log to log of `most_ratio`, and trust from 0 to 1.
    """
    limit = np.log(settings.most_ratio)
    lags_L = np.geomspace(SHORTEST_LAG_S, LONGEST_LAG_S, LAGS) * settings.frames_per_second
    shift_H = np.linspace(-limit, limit, SHIFTS).astype(np.float32)
    first = _at_lags(_pulse(input_BTD), lags_L[None] * np.exp(shift_H / 2)[:, None])
    second = _at_lags(_pulse(target_BTD), lags_L[None] * np.exp(-shift_H / 2)[:, None])
    off = [x_BHL - x_BHL.mean(-1, keepdims=True) for x_BHL in (first, second)]
    length = jnp.sqrt((off[0] ** 2).sum(-1) * (off[1] ** 2).sum(-1) + TINY)
    agree_BH = (off[0] * off[1]).sum(-1) / length
    chance_BH = jax.nn.softmax(AGREEMENT * agree_BH)
    return (chance_BH * shift_H[None]).sum(-1), jnp.maximum((chance_BH * agree_BH).sum(-1), 0.0)


def _pulse(x_BTD):
    """The autocorrelation of how much latents change, (B, T), 1 at lag 0."""
    change_BT = jnp.abs(jnp.diff(x_BTD.astype(jnp.float32), axis=1)).mean(-1)
    off_BT = change_BT - change_BT.mean(1, keepdims=True)
    length = off_BT.shape[1]
    spectrum = jnp.fft.rfft(off_BT, 2 * length)
    found_BT = jnp.fft.irfft(spectrum.real**2 + spectrum.imag**2, 2 * length)[:, : length + 1]
    return found_BT / (found_BT[:, :1] + TINY)


def _at_lags(pulse_BT, lags_HL):
    """An autocorrelation at lags between frames, (B, H, L)."""
    below = np.minimum(np.floor(lags_HL).astype(np.int32), pulse_BT.shape[1] - 2)
    part = (lags_HL - below).astype(np.float32)[None]
    return (1.0 - part) * pulse_BT[:, below] + part * pulse_BT[:, below + 1]
