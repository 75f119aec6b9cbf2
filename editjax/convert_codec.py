"""An EnCodec that somebody trained in PyTorch → model bundle.

Comes in: weights (`editjax.weights`) of the causal 24 kHz architecture, with the names of the public
implementation (`encodec_24khz-d7cc33bc.th`) or those of Hugging Face's. Goes out: a bundle that
`editjax.codec` loads. Sizes are those of the tensors; that the model is causal, and its sample rate, no
tensor says. Weight normalisation is fused (`editjax.convert.taken`).
"""

import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from editjax.bundle import CONFIG, TENSORS
from editjax.config import Json, to_json
from editjax.convert import LICENCE, NORMALISED, taken
from editjax.errors import DataError, UsageError
from editjax.export import write_bundle
from editjax.files import sha256_of
from editjax.mel import MelSettings
from editjax.mesh import tree_path
from editjax.models.codec import QUANTISER, CodecSettings, init
from editjax.models.layers import RUNNING
from editjax.weights import read_weights


class Names(NamedTuple):
    """What a library calls the parts of the model."""

    layers: str
    convolution: str
    transposed: str
    codebook: str


PUBLIC = Names("model", "conv.conv", "convtr.convtr", "quantizer.vq.layers.{}._codebook")
HUGGING_FACE = Names("layers", "conv", "conv", "quantizer.layers.{}.codebook")
IGNORED = ("embed_avg", "inited")
"""Of a codebook: what only its training needed."""


def convert_encodec(weights: Path, out_dir: Path, *, licence: str = LICENCE, overwrite: bool = False) -> Path:
    """Writes the bundle of a codec's weights.

    Raises NoInputError for a file that cannot be opened, DataError for one that is no causal EnCodec, naming
    the tensor, and CannotCreateError when `out_dir` exists and may not be replaced.
    """
    tensors, names = codec_of(read_weights(weights), weights)
    settings = settings_of(tensors, names, weights)
    params = fused(tensors, names, settings, weights)
    command = ["editjax", "convert-codec", str(weights), "-o", str(out_dir)]
    facts = {
        "family": "codec",
        "model": to_json(settings),
        "mel": to_json(MelSettings()),
        "training": {"export_command": shlex.join(command), "weights_sha256": sha256_of(weights)},
        "licence": licence,
    }
    return write_bundle(out_dir, params, facts, overwrite=overwrite, card=_card)


def codec_of(tensors: dict[str, np.ndarray], weights: Path) -> tuple[dict[str, np.ndarray], Names]:
    """The tensors of the one codec in a file by their names within it, and whose names they are."""
    found = []
    for names in (PUBLIC, HUGGING_FACE):
        first = f"encoder.{names.layers}.0.{names.convolution}.bias"
        found += [(name.removesuffix(first), names) for name in tensors if name.endswith(first)]
    if len(found) != 1:
        raise DataError(
            f"{weights}: holds {len(found)} EnCodec models (by their encoder's first bias), wanted one"
        )
    prefix, names = found[0]
    own = {name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)}
    if normed := [name for name in own if ".norm." in name]:
        raise DataError(f"{weights}: {normed[0]} normalises over time: only the causal 24 kHz model is read")
    return own, names


def settings_of(tensors: dict[str, np.ndarray], names: Names, weights: Path) -> CodecSettings:
    """The settings of a codec by the shapes of its tensors; DataError for one of another build."""

    def shape(name: str, axes: int = 3) -> tuple[int, ...]:
        for direction in ("weight", *(v for _, v in NORMALISED)):
            tensor = tensors.get(re.sub("weight$", direction, name))
            if tensor is not None and tensor.ndim == axes:
                return tensor.shape
        raise DataError(f"{weights}: {name} is missing, or has not {axes} axes")

    def numbers(form: str) -> list[int]:
        """The numbers n of the names that begin with `form`, with n in its place."""
        before, after = form.split("{}")
        found = (re.match(rf"{re.escape(before)}(\d{{1,4}}){re.escape(after)}", name) for name in tensors)
        return sorted({int(match[1]) for match in found if match})

    layer = f"encoder.{names.layers}.{{}}."
    convolution = f"{layer}{names.convolution}."
    enter, *downs, leave = [shape(f"{convolution.format(n)}weight") for n in numbers(convolution)] or [()]
    blocks, books = numbers(f"{layer}block."), numbers(f"{names.codebook}.embed")
    lstm_layers = sum(
        len(numbers(f"{layer.format(n)}lstm.weight_ih_l{{}}")) for n in numbers(f"{layer}lstm.")
    )
    if not downs or not books:
        raise DataError(f"{weights}: no EnCodec: {len(downs)} strided convolutions, {len(books)} codebooks")
    narrow, residual_kernel = enter[0], CodecSettings.residual_kernel
    if blocks:
        narrow, _, residual_kernel = shape(f"{layer.format(blocks[0])}block.1.{names.convolution}.weight")
    codes, _ = shape(f"{names.codebook.format(0)}.embed", axes=2)
    sizes: dict[str, Any] = {
        "n_filters": enter[0], "channels": enter[1], "kernel": enter[2],
        "dimension": leave[0], "last_kernel": leave[2],
        "ratios": tuple(down[2] // 2 for down in reversed(downs)),
        "residual_layers": len(blocks) // len(downs), "residual_kernel": residual_kernel,
        "compress": enter[0] // max(1, narrow), "lstm_layers": lstm_layers,
        "codebooks": len(books), "codes": codes,
    }  # fmt: skip
    try:
        settings = CodecSettings(**sizes)
        bandwidths = [b for b in settings.bandwidths_kbps if b <= settings.kbps_of(len(books))]
        settings = replace(settings, bandwidths_kbps=tuple(bandwidths) or (settings.kbps_of(len(books)),))
    except (ValueError, UsageError) as error:
        raise DataError(f"{weights}: {error}") from None
    if settings.hop != CodecSettings().hop:
        raise DataError(
            f"{weights}: frames of {settings.hop} samples: only the causal 24 kHz model's, of 320, are read"
        )
    return settings


def fused(
    tensors: dict[str, np.ndarray], names: Names, settings: CodecSettings, weights: Path
) -> dict[str, np.ndarray]:
    """Our parameters by path; DataError names a tensor that is missing, of another shape or unknown."""
    shapes = jax.eval_shape(lambda key: init(settings, key), jax.random.key(0))
    left = {name: a for name, a in tensors.items() if not name.endswith(IGNORED)}
    params, quantiser = {}, f"{RUNNING}/{QUANTISER}/"
    for at, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = tree_path(at)
        if path.startswith(quantiser):
            kind = "embed" if path.endswith("code_QKD") else "cluster_size"
            books = [f"{names.codebook.format(n)}.{kind}" for n in range(settings.codebooks)]
            params[path] = np.stack([taken(left, name, leaf.shape[1:], weights) for name in books])
            continue
        side, *parts, kind = path.split("/")
        number, part = place_of(settings, side, parts)
        theirs = f"{side}.{names.layers}.{number}."
        if part.startswith("lstm"):
            params[path] = _gates(
                left, f"{theirs}lstm.", part.removeprefix("lstm_"), kind, leaf.shape, weights
            )
            continue
        theirs += {"up": names.transposed, "": names.convolution}.get(part, f"{part}.{names.convolution}")
        axes = (0,) if kind == "bias" else (0, 2, 1) if part == "up" else (2, 1, 0)
        name = f"{theirs}.{'bias' if kind == 'bias' else 'weight'}"
        tensor = taken(left, name, tuple(leaf.shape[axis] for axis in axes), weights)
        params[path] = np.ascontiguousarray(tensor.transpose(axes))
    for name in left:
        raise DataError(f"{weights}: {name} is no part of a causal EnCodec")
    return params


def place_of(settings: CodecSettings, side: str, parts: list[str]) -> tuple[int, str]:
    """The number of the layer in which they have a part of ours, and the part's name there.

    Activations are numbered too. A stage of the encoder ends, one of the decoder begins with what changes
    the rate: activation, convolution.
    """
    stages, each = len(settings.ratios), settings.residual_layers + 2
    recurrent = int(settings.lstm_layers > 0)
    encoding = side == "encoder"
    first = 1 if encoding else 1 + recurrent
    match parts:
        case ["enter"]:
            return 0, ""
        case ["leave"]:
            return 2 + recurrent + stages * each, ""
        case [lstm]:
            return (1 + stages * each if encoding else 1), lstm
        case [stage, "down"]:
            return first + int(stage.removeprefix("stage_")) * each + each - 1, ""
        case [stage, "up"]:
            return first + int(stage.removeprefix("stage_")) * each + 1, "up"
        case [stage, residual, part]:
            within = int(residual.removeprefix("residual_")) + (0 if encoding else 2)
            name = {"narrow": "block.1", "widen": "block.3", "shortcut": "shortcut"}[part]
            return first + int(stage.removeprefix("stage_")) * each + within, name
    raise ValueError(f"{side}/{'/'.join(parts)} is no part of a codec")


def _gates(
    left: dict[str, np.ndarray], lstm: str, layer: str, kind: str, shape: tuple[int, ...], weights: Path
) -> np.ndarray:
    """An LSTM layer's weights, transposed, or the sum of its two biases."""
    if kind == "bias":
        of_input, of_state = (taken(left, f"{lstm}bias_{of}_l{layer}", shape, weights) for of in ("ih", "hh"))
        return of_input + of_state
    name = f"{lstm}weight_{'ih' if kind == 'input_CG' else 'hh'}_l{layer}"
    return np.ascontiguousarray(taken(left, name, shape[::-1], weights).T)


def _card(name: str, config: Json, size_bytes: int) -> str:
    model = config["model"]
    numbers = sum(math.prod(facts["shape"]) for facts in config["tensors"].values())
    return f"""# {name}

A codec for editjax, of the family *codec* (Défossez, Copet, Synnaeve and Adi 2022): {numbers:,} parameters
({size_bytes / 1e6:.1f} MB in `{TENSORS}`, SHA-256 `{config["sha256"]}`), {model["dimension"]} numbers every
{math.prod(model["ratios"])} samples at {model["sample_rate_hz"]} Hz, {model["codebooks"]} codebooks of
{model["codes"]} codes. All settings are in `{CONFIG}`.

    from editjax.codec import load_codec
    codec = load_codec({name!r})
    latents = codec.encode(sound, rate_hz)

Converted from weights of SHA-256 `{config["training"]["weights_sha256"]}` by

    {config["training"]["export_command"]}

## Licence

{config["licence"]}
"""
