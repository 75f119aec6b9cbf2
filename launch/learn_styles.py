"""Teach a trained model more styles, and change nothing of what it does in the style *final*.

    python launch/learn_styles.py CONFIG --data SHARDS --out RUN --start-from NAME|FOLDER [TRAIN OPTIONS]

The middle of the style *final* lies on one axis of the space of styles. Only the parameters that the other
axes, and a wanted length, are multiplied with are learned, and what infers styles from edits: at that point
the model computes what it computed before, bit for bit. The same command goes on with a run that was
killed.
"""

import argparse
import contextlib
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from editjax.cli import complain
from editjax.config import load_config, override
from editjax.data import batches
from editjax.errors import EditjaxError
from editjax.family import Family, family_of
from editjax.files import sha256_of
from editjax.mesh import tree_path
from editjax.models.pointer import PointerSettings
from editjax.models.scales import TARGET_FEATURES
from editjax.shards import MANIFEST, read_manifest
from editjax.styles import STYLES
from editjax.train import begin_from, train


def learned(settings: PointerSettings, path: str, shape: tuple[int, ...]) -> Any:
    """Which entries of a parameter learn: bool, broadcastable to its shape."""
    if path.startswith("style/"):
        return np.ones((1,) * len(shape), bool)
    if path.startswith("encoder/") and path.endswith("asked/kernel"):
        rows, first = np.arange(shape[-2]), TARGET_FEATURES
    elif path == "decoder/enter/kernel":  # styles enter last
        rows, first = np.arange(shape[0]), shape[0] - settings.style_width
    else:
        return np.zeros((1,) * len(shape), bool)
    others = (rows > first) | ((rows < first) & path.startswith("encoder/"))
    return others[:, None] if len(shape) == 2 else others[None, :, None]


def styles_alone(family: Family, settings: PointerSettings) -> Family:
    """The family with gradients for what `learned` lets learn."""

    def loss(params: Any, **rest: Any) -> Any:
        def held(path: Any, a: jax.Array) -> jax.Array:
            return jnp.where(learned(settings, tree_path(path), a.shape), a, jax.lax.stop_gradient(a))

        return family.loss(jax.tree_util.tree_map_with_path(held, params), **rest)

    return family._replace(loss=loss)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start-from", required=True, metavar="NAME|FOLDER")
    chosen, overrides = parser.parse_known_args()
    config = override(load_config(chosen.config), overrides)
    # Decay would change what gets no gradient.
    config = replace(config, optim=replace(config.optim, weight_decay=0.0), validate_every=0)
    first, began = begin_from(chosen.start_from, config)
    manifest = read_manifest(chosen.data)
    origin = {
        "command": shlex.join(["python", "launch/learn_styles.py", *sys.argv[1:]]),
        **began,
        "shards": str(chosen.data),
        "shards_sha256": sha256_of(chosen.data / MANIFEST),
        "mel": manifest["mel"],
        "settings": manifest["settings"],
        "styles": [s for s in STYLES if s in (config.data.styles or manifest["counts"]["styles"])],
    }
    family = styles_alone(family_of(config.model), config.model)
    with contextlib.closing(batches(chosen.data, config.data)) as stream:
        train(config, stream, chosen.out, family=family, origin=origin, first_params=first)


if __name__ == "__main__":
    try:
        main()
    except EditjaxError as error:
        sys.exit(complain(error))
