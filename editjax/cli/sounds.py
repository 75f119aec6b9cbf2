"""`editjax sounds`: recordings → sound shards, for models that hear samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from editjax.array_records import MANIFEST
from editjax.cli.options import named, parse
from editjax.errors import CannotCreateError, UsageError
from editjax.layouts import Layout, find
from editjax.workers import usable_cores

MAX_ROWS = 20


@dataclass(frozen=True)
class SoundsOptions:
    """Turns a folder of recordings into sound shards, for codecs, creative agents and mixes.

    Recordings of one song, artist or instrument fall into one split. A bad file is skipped by name.
    """

    recordings: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """Folder of audio files, in subfolders or not."""
    sounds: Positional[Annotated[Path, arg(metavar="SOUNDS")]]
    """Folder for the shards and their manifest.json."""
    layout: Layout = "folder"
    """How the folder is laid out: as you like it, or as the unpacked GTZAN, FMA, NSynth, MUSDB18-HQ."""
    rate: Annotated[int, arg(metavar="HZ")] = 44_100
    """Sample rate of the shards; codecs want their own, 24000."""
    channels: int = 2
    """2 keeps stereo, 1 mixes to mono."""
    kinds: Annotated[tuple[str, ...], named("KIND")] = ()
    """Only recordings of these kinds, of music, speech and noise."""
    workers: Annotated[int | None, named("N")] = None
    """Processes that work side by side; default: every core."""
    overwrite: bool = False
    """Replace other sounds in that folder."""


def run(arguments: Sequence[str]) -> int:
    """Reads all files, and says what was written and what was skipped and why."""
    options = parse(SoundsOptions, arguments, "editjax sounds")
    from editjax.sounds import write

    if not 8000 <= options.rate <= 192_000 or options.channels not in (1, 2):
        raise UsageError("give --rate from 8000 to 192000 and --channels 1 or 2")
    if (options.sounds / MANIFEST).exists() and not options.overwrite:
        raise CannotCreateError(f"{options.sounds}: holds shards; choose another folder or pass --overwrite")
    found = find(options.recordings, options.layout)
    if options.kinds:
        found = [one for one in found if one.labels.get("kind") in options.kinds]
    manifest, skipped = write(
        options.sounds,
        found,
        rate_hz=options.rate,
        channels=options.channels,
        workers=options.workers or usable_cores(),
    )
    counts = manifest["counts"]
    splits = ", ".join(f"{count} {split}" for split, count in counts["splits"].items())
    print(
        f"{counts['sounds']} recordings, {counts['seconds'] / 60:.1f} minutes ({splits}) in {options.sounds}"
    )
    for name, reason in skipped[:MAX_ROWS]:
        print(f"  skipped {name}: {reason}")
    if len(skipped) > MAX_ROWS:
        print(f"  … and {len(skipped) - MAX_ROWS} more")
    return 0
