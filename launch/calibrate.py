"""A scorer calibrated anew on pairs of your own: the weights of its scores, and the threshold of its edits.

    python launch/calibrate.py MODEL SHARDS OUT [--keep-ratio 0.4] [--style final]

Training does this on its validation pairs; an editor who keeps less, or another kind of recording, may want
another threshold. Without `--keep-ratio` edits keep as much as those of the pairs, on average.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from editjax.bundle import flatten
from editjax.cli import complain
from editjax.errors import DataError, EditjaxError, UsageError
from editjax.export import cast, load_bundle, write_bundle
from editjax.score_quality import known_pairs, validation_figures
from editjax.scorer import load_scorer
from editjax.styles import STYLES

CARRIED = ("family", "model", "mel", "training", "licence")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=str)
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep-ratio", type=float)
    parser.add_argument("--style", choices=STYLES, default=STYLES[0])
    chosen = parser.parse_args()
    if chosen.keep_ratio is not None and not 0 < chosen.keep_ratio < 1:
        raise UsageError(f"--keep-ratio {chosen.keep_ratio}: give a share above 0 and below 1")
    scorer, bundle = load_scorer(chosen.model), load_bundle(chosen.model)
    pairs = known_pairs(chosen.shards, None, chosen.style)
    if pairs is None:
        raise DataError(f"{chosen.shards}: no edit of style {chosen.style!r} to calibrate on")
    examples, kept, mel = pairs
    scores = [scorer.scores(np.asarray(example.mel_TF, np.float32)) for example in examples]
    figures = validation_figures(scorer.settings, scores, kept, mel.frames_per_second, chosen.keep_ratio)
    print(" · ".join(f"{name} {value:.3f}" for name, value in figures.items() if "weight" not in name))
    halves = {name: cast(name, np.asarray(a), "float16") for name, a in flatten(bundle.params).items()}
    facts = {name: bundle.config[name] for name in CARRIED}
    facts["training"] = {**facts["training"], "scores": figures, "calibrated_on": str(chosen.shards)}
    write_bundle(chosen.out, halves, facts)


if __name__ == "__main__":
    try:
        main()
    except EditjaxError as error:
        sys.exit(complain(error))
