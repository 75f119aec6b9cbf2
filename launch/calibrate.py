"""A scorer calibrated anew on pairs of your own: the weights of its scores, and the threshold of its edits.

    python launch/calibrate.py MODEL SHARDS OUT [--keep-ratio 0.4] [--style final]

Training does this on its validation pairs; an editor who keeps less, or another kind of recording, may want
another threshold. Without `--keep-ratio` edits keep as much as those of the pairs, on average.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from editjax.array_records import MANIFEST
from editjax.bundle import TENSORS, read_stored
from editjax.cli import complain
from editjax.config import Json
from editjax.errors import CannotCreateError, DataError, EditjaxError, UsageError
from editjax.export import load_bundle, write_bundle
from editjax.files import sha256_of
from editjax.score_quality import known_pairs, validation_figures
from editjax.scorer import load_scorer
from editjax.styles import STYLES

CARRIED = ("family", "model", "mel", "training", "licence", "quantised")


def main(words: Sequence[str] | None = None) -> None:
    chosen = options(words)
    scorer, bundle = load_scorer(chosen.model), load_bundle(chosen.model)
    examples, kept, mel = known_pairs(chosen.shards, None, chosen.style)
    if mel != scorer.mel:
        raise DataError(
            f"{chosen.shards}: hold another mel than {chosen.model} hears; prepare them with its own"
        )
    scores = [scorer.scores(np.asarray(example.mel_TF, np.float32)) for example in examples]
    figures = validation_figures(scorer.settings, scores, kept, mel.frames_per_second, chosen.keep_ratio)
    print(" · ".join(f"{name} {value:.3f}" for name, value in figures.items() if "weight" not in name))
    facts = {name: bundle.config[name] for name in CARRIED if name in bundle.config}
    facts["training"] = {**facts["training"], "scores": figures, **named(chosen.shards)}
    write_bundle(chosen.out, read_stored(bundle.path / TENSORS, bundle.config), facts)


def options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=str)
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep-ratio", type=float)
    parser.add_argument("--style", choices=STYLES, default=STYLES[0])
    chosen = parser.parse_args(words)
    if chosen.keep_ratio is not None and not 0 < chosen.keep_ratio < 1:
        raise UsageError(f"--keep-ratio {chosen.keep_ratio}: give a share above 0 and below 1")
    if os.path.lexists(chosen.out):
        raise CannotCreateError(f"{chosen.out}: exists; choose another name")
    return chosen


def named(shards: Path) -> Json:
    """What a model tells of the shards it was calibrated on: no path, which would be of one machine."""
    name = os.path.basename(os.path.abspath(shards))
    return {"calibrated_on": name, "calibrated_on_sha256": sha256_of(shards / MANIFEST)}


if __name__ == "__main__":
    try:
        main()
    except EditjaxError as error:
        sys.exit(complain(error))
