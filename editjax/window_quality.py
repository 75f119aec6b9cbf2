"""How well a creative agent does on recordings held out: its own losses, beside those of fresh windows."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from editjax.export import load_bundle
from editjax.metrics import mean_figures
from editjax.models.codec import encode
from editjax.models.window import apply
from editjax.ppo import Frozen
from editjax.sounds import watched
from editjax.window_loss import check_codec, hearing, loss_of


def window_validate(config: Any, sounds_dir: str | Path, examples: int) -> Callable[[Any], dict[str, float]]:
    """A function of parameters: the losses of pairs of excerpts held out, and which windows were chosen.

    `score`, which decides the best checkpoint, is the loss with its sign turned; NaN where fewer than two
    excerpts are held out.
    """
    settings, weights = config.model, config.loss
    sounds = [sound_CS for _, sound_CS in watched(sounds_dir, replace(config.data), examples // 2 * 2)]
    if len(sounds) < 2:
        return lambda params: {"score": float("nan")}
    bundle = load_bundle(weights.codec)
    check_codec(settings, bundle.settings, weights.codec)
    codec = Frozen(bundle.settings, bundle.params)
    n_samples = settings.frames * codec.settings.hop
    encoded = jax.jit(partial(encode, codec.settings))
    latents = [np.asarray(encoded(codec.params, sound_CS[None, :, :n_samples])) for sound_CS in sounds]

    @jax.jit
    def one(params: Any, codec_params: Any, input_BTD: Any, target_BTD: Any) -> dict[str, Any]:
        composed = apply(settings, params, input_BTD, target_BTD)
        hear = hearing(Frozen(codec.settings, codec_params))
        total, metrics = loss_of(composed, input_BTD, target_BTD, hear, settings, weights, jax.random.key(0))
        return {"loss": total, **metrics}

    def validate(params: Any) -> dict[str, float]:
        pairs = zip(latents[0::2], latents[1::2], strict=True)
        rows = [jax.tree.map(float, one(params, codec.params, *pair)) for pair in pairs]
        mean = mean_figures(rows)
        return {"score": -mean["loss"], **mean}

    return validate
