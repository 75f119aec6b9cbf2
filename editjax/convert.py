"""A HiFi-GAN that somebody trained in PyTorch → model bundle.

Comes in: weights (`editjax.weights`) with the names of the paper's public implementation, and the config.json
beside them. Goes out: a bundle that `editjax.vocoder` loads.
Weight normalisation is fused: w = g v / ‖v‖, under both of PyTorch's names for g and v.
"""

import math
import re
import shlex
from pathlib import Path

import jax
import numpy as np

from editjax.bundle import CONFIG, LARGEST_CONFIG_BYTES, TENSORS, parsed
from editjax.config import Json, from_json, to_json
from editjax.errors import DataError
from editjax.export import write_bundle
from editjax.files import read_regular, sha256_of
from editjax.mel import MelSettings
from editjax.mesh import tree_path
from editjax.models.hifigan import HifiGanSettings, init
from editjax.weights import read_weights

GENERATOR = {
    "channels": "upsample_initial_channel",
    "upsample_rates": "upsample_rates",
    "upsample_kernels": "upsample_kernel_sizes",
    "block": "resblock",
    "block_kernels": "resblock_kernel_sizes",
    "block_dilations": "resblock_dilation_sizes",
}
MEL = {
    "sample_rate_hz": "sampling_rate",
    "n_fft": "n_fft",
    "window": "win_size",
    "hop": "hop_size",
    "n_mels": "num_mels",
    "low_hz": "fmin",
    "high_hz": "fmax",
}
"""What the settings are called in config.json; what else is there concerns training."""

FIRST = "conv_pre.bias"
"""What tells a generator among the tensors of a file."""

AXES = {"conv": (2, 1, 0), "ups": (0, 2, 1)}
"""The axes of a kernel in PyTorch's order, and back: (out, in, width), of transposed (in, out, width)."""

NORMALISED = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
"""PyTorch's names for the lengths g and the directions v of a normalised weight, before 2.0 and since."""

LICENCE = "The weights have the licence that whoever trained them gave them; editjax has only converted them."


def convert_hifigan(
    weights: Path, config: Path, out_dir: Path, *, licence: str = LICENCE, overwrite: bool = False
) -> Path:
    """Writes the bundle of a generator's weights, built as its config.json says.

    Raises NoInputError for a file that cannot be opened, DataError for one that is no HiFi-GAN, naming the
    tensor or the setting, and CannotCreateError when `out_dir` exists and may not be replaced.
    """
    settings = read_settings(config)
    params = fused(generator_of(read_weights(weights), weights), settings, weights)
    command = ["editjax", "convert-vocoder", str(weights), str(config), "-o", str(out_dir)]
    facts = {
        "family": "hifigan",
        "model": to_json(settings),
        "mel": to_json(MelSettings()),
        "training": {"export_command": shlex.join(command), "weights_sha256": sha256_of(weights)},
        "licence": licence,
    }
    return write_bundle(out_dir, params, facts, overwrite=overwrite, card=_card)


def read_settings(config: Path) -> HifiGanSettings:
    """The settings in a HiFi-GAN's config.json, where what concerns training is left aside."""
    try:
        named = config.resolve() if config.is_symlink() else config  # a user's own link may lead anywhere
        tree = parsed(read_regular(named, LARGEST_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{config}: not JSON ({error})") from error
    for name in (*GENERATOR.values(), *MEL.values()):
        if not isinstance(tree, dict) or name not in tree:
            raise DataError(f"{config}: {name} is missing; give the config.json that the vocoder came with")
    values: Json = {ours: tree[theirs] for ours, theirs in GENERATOR.items()}
    values["mel"] = {ours: tree[theirs] for ours, theirs in MEL.items()}
    if values["block"] in ("1", "2"):  # a text in every public config.json
        values["block"] = int(values["block"])
    return from_json(HifiGanSettings, values, str(config))


def generator_of(tensors: dict[str, np.ndarray], weights: Path) -> dict[str, np.ndarray]:
    """The tensors of the one generator in a file, under their names within it."""
    prefixes = [name.removesuffix(FIRST) for name in tensors if name.endswith(FIRST)]
    if len(prefixes) != 1:
        raise DataError(f"{weights}: holds {len(prefixes)} HiFi-GAN generators (by {FIRST}), wanted one")
    prefix = prefixes[0]
    return {name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)}


def fused(tensors: dict[str, np.ndarray], settings: HifiGanSettings, weights: Path) -> dict[str, np.ndarray]:
    """Our parameters by path; DataError names a tensor that is missing, of another shape or unknown."""
    shapes = jax.eval_shape(lambda key: init(settings, key), jax.random.key(0))
    params, left = {}, dict(tensors)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        ours = tree_path(path)
        module, _, kind = re.sub(r"_(\d+)", r".\1", ours).replace("/", ".").rpartition(".")
        axes = AXES["ups" if module.startswith("ups") else "conv"] if kind == "kernel" else (0,)
        theirs = f"{module}.{'weight' if kind == 'kernel' else kind}"
        tensor = taken(left, theirs, tuple(leaf.shape[axis] for axis in axes), weights)
        params[ours] = np.ascontiguousarray(tensor.transpose(axes))
    for name in left:
        raise DataError(f"{weights}: {name} is no part of the generator that the config describes")
    return params


def taken(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], weights: Path) -> np.ndarray:
    """A tensor of this shape, taken out of the others; a weight may come as its length and direction.

    DataError names one that is missing, of another shape, or not made of numbers.
    """

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = tensors.pop(name)
        if tensor.shape != shape:
            raise DataError(f"{weights}: {name} has shape {tensor.shape}, but the config describes {shape}")
        return tensor

    for lengths, directions in NORMALISED:
        g, v = (f"{name.removesuffix('weight')}{part}" for part in (lengths, directions))
        if name.endswith("weight") and {g, v} <= tensors.keys():
            length, direction = take(g, (shape[0], *(1 for _ in shape[1:]))), take(v, shape)
            norm = np.sqrt(np.square(direction, dtype=np.float64).sum((1, 2), keepdims=True))
            with np.errstate(divide="ignore", invalid="ignore"):
                tensor = (length * (direction / norm)).astype(np.float32)
            break
    else:
        if name not in tensors:
            raise DataError(f"{weights}: {name} is missing")
        tensor = take(name, shape)
    if not np.isfinite(tensor).all():
        raise DataError(f"{weights}: {name} holds values that are not numbers")
    return tensor


def _card(name: str, config: Json, size_bytes: int) -> str:
    mel = config["model"]["mel"]
    numbers = sum(math.prod(facts["shape"]) for facts in config["tensors"].values())
    return f"""# {name}

A vocoder for editjax, of the family *hifigan* (Kong, Kim and Bae 2020): {numbers:,} parameters
({size_bytes / 1e6:.1f} MB in `{TENSORS}`, SHA-256 `{config["sha256"]}`), for mels of {mel["n_mels"]} bands,
{mel["hop"]} samples apart at {mel["sample_rate_hz"]} Hz. All settings are in `{CONFIG}`.

    from editjax.vocoder import load_vocoder, waveform
    samples = waveform(mel, vocoder=load_vocoder({name!r}))

Converted from weights of SHA-256 `{config["training"]["weights_sha256"]}` by

    {config["training"]["export_command"]}

## Licence

{config["licence"]}
"""
