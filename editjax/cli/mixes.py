"""`editjax mixes`: sounds → stems with known mixes, to train regressors on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from editjax.array_records import MANIFEST
from editjax.cli.options import parse
from editjax.errors import CannotCreateError, UsageError


@dataclass(frozen=True)
class MixesOptions:
    """Plays recordings through the console with settings drawn at random, and writes mix shards, from which
    regressors (configs/mixer_ast.py) learn to tell the settings by what is heard before and after."""

    sounds: Positional[Annotated[Path, arg(metavar="SOUNDS")]]
    """Folder made by `editjax sounds` at 44100 Hz, its default."""
    mixes: Positional[Annotated[Path, arg(metavar="MIXES")]]
    """Folder for the shards and their manifest.json."""
    count: int = 10_000
    """How many mixes."""
    seconds: float = 4.0
    """How long each is; regressors hear recordings in parts of 4, 15 and 60."""
    sound: bool = False
    """Keep the samples of the stems too, for losses on sound: ten times the space."""
    seed: int = 0
    """Other seeds draw other mixes."""
    overwrite: bool = False
    """Replace other mixes in that folder."""


def run(arguments: Sequence[str]) -> int:
    """Makes them, and says how many."""
    options = parse(MixesOptions, arguments, "editjax mixes")
    from editjax.mixes import MakeSettings, write

    if options.count < 1 or not 1.0 <= options.seconds <= 600.0:
        raise UsageError("give a --count of at least 1 and --seconds from 1 to 600")
    if (options.mixes / MANIFEST).exists() and not options.overwrite:
        raise CannotCreateError(f"{options.mixes}: holds shards; choose another folder or pass --overwrite")
    made = MakeSettings(options.count, options.seconds, options.sound, options.seed)
    counts = write(options.sounds, options.mixes, made)["counts"]
    splits = ", ".join(f"{count} {split}" for split, count in counts["splits"].items())
    print(f"{counts['mixes']} mixes ({splits}) in {options.mixes}")
    return 0
