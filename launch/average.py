"""The mean of two models of one architecture (of one, named twice: itself), two of its hints weighed anew.

    python launch/average.py MODEL MODEL OUT [--advance 2.0] [--avoid 1.3]

Parameters of two runs, one begun from the other, are averaged (Izmailov et al. 2018, stochastic weight
averaging). `--advance` multiplies the trust of the mode logits in the structure head's log-odds, `--avoid`
the cost of skipping expected starts: both are fitted to training recordings, where the decoder knows better
than on new ones. Choose them on validation sessions. What OUT says of its training is said of the second.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from editjax.bundle import flatten
from editjax.cli import complain
from editjax.errors import DataError, EditjaxError
from editjax.export import cast, load_bundle, write_bundle

TRUST, AVOID = "decoder/trust", "decoder/bar_avoid/"
ADVANCE_HINT, SKIPPED, UNDONE = 0, 0, 2
CARRIED = ("family", "model", "mel", "training", "licence")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs=2, type=Path, metavar="MODEL")
    parser.add_argument("out", type=Path)
    parser.add_argument("--advance", type=float, default=1.0)
    parser.add_argument("--avoid", type=float, default=1.0)
    chosen = parser.parse_args()
    one, other = (load_bundle(model) for model in chosen.models)
    if one.settings != other.settings:
        raise DataError(f"{chosen.models[1]}: is of another architecture than {chosen.models[0]}")
    theirs = flatten(other.params)
    tensors = {name: np.asarray((a + theirs[name]) / 2) for name, a in flatten(one.params).items()}
    tensors[TRUST][ADVANCE_HINT] *= chosen.advance
    for name in tensors:
        if name.startswith(AVOID):
            tensors[name][..., [SKIPPED, UNDONE]] *= chosen.avoid
    halves = {name: cast(name, array, "float16") for name, array in tensors.items()}
    write_bundle(chosen.out, halves, {name: other.config[name] for name in CARRIED})


if __name__ == "__main__":
    try:
        main()
    except EditjaxError as error:
        sys.exit(complain(error))
