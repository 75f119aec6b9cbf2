"""How near what a codec gives back comes to the sound it was given: SI-SDR of recordings held out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from editjax.codec import Codec
from editjax.metrics import mean_figures
from editjax.sounds import watched

EXCERPT_S = 3.4
LEAST_POWER = 1e-12


def si_sdr_db(heard_CS: np.ndarray, sound_CS: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux, Wisdom, Erdogan and Hershey 2019), decibels.

    Of all samples, without their means; of channels together, so that their balance counts.
    """
    heard_N, wanted_N = (a.astype(np.float64) - a.mean(axis=-1, keepdims=True) for a in (heard_CS, sound_CS))
    heard_N, wanted_N = heard_N.ravel(), wanted_N.ravel()
    target_N = wanted_N * (heard_N @ wanted_N) / max(wanted_N @ wanted_N, LEAST_POWER)
    left_N = heard_N - target_N
    return float(10.0 * np.log10((target_N @ target_N + LEAST_POWER) / (left_N @ left_N + LEAST_POWER)))


def codec_figures(codec: Codec, sound_CS: np.ndarray) -> dict[str, float]:
    """SI-SDR in decibels of a sound at the codec's rate: of what its latents give back, and of what each
    bandwidth does."""
    latents_TD, samples = codec.encode(sound_CS, codec.settings.sample_rate_hz), sound_CS.shape[1]
    figures = {"continuous_db": si_sdr_db(codec.decode(latents_TD)[:, :samples], sound_CS)}
    for kbps in codec.settings.bandwidths_kbps:
        heard_CS = codec.decode(codec.dequantise(codec.quantise(latents_TD, kbps)))
        figures[f"{kbps:g}_kbps_db"] = si_sdr_db(heard_CS[:, :samples], sound_CS)
    return figures


def codec_validate(config: Any, sounds_dir: str | Path, examples: int) -> Callable[[Any], dict[str, float]]:
    """A function of parameters: mean figures on excerpts of recordings held out.

    `score`, which decides the best checkpoint, is the mean SI-SDR of continuous latents and of those
    quantised at the highest bandwidth; NaN where nothing is held out.
    """
    settings = replace(config.data, seconds=EXCERPT_S)
    excerpts = [sound_CS for _, sound_CS in watched(sounds_dir, settings, examples)]
    if not excerpts:
        return lambda params: {"score": float("nan")}

    def validate(params: Any) -> dict[str, float]:
        codec = Codec(config.model, params)
        mean = mean_figures([codec_figures(codec, sound_CS) for sound_CS in excerpts])
        highest = mean[f"{config.model.bandwidths_kbps[-1]:g}_kbps_db"]
        return {"score": 0.5 * (mean["continuous_db"] + highest), **mean}

    return validate
