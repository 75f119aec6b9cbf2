"""`editjax shards verify`: are the shards what their manifest says?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from editjax import shards, sounds
from editjax.array_records import format_of
from editjax.cli.options import parse
from editjax.sounds import SOUNDS


@dataclass(frozen=True)
class ShardsOptions:
    """Checks a folder of shards against its manifest: sizes, SHA-256, every record."""

    action: Positional[Literal["verify"]]
    """What to do."""
    shards: Positional[Annotated[Path, arg(metavar="SHARDS")]]
    """Folder made by `editjax prepare` or `editjax sounds`."""


def run(arguments: Sequence[str]) -> int:
    """Verifies and says what was counted."""
    options = parse(ShardsOptions, arguments, "editjax shards")
    holds_sounds = format_of(options.shards) == SOUNDS.format
    counts = sounds.verify(options.shards) if holds_sounds else shards.verify(options.shards)
    print(f"{options.shards}: intact;", ", ".join(f"{value} {name}" for name, value in counts.items()))
    return 0
