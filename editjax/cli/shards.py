"""`editjax shards verify`: are the shards what their manifest says?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from editjax.cli.options import parse


@dataclass(frozen=True)
class ShardsOptions:
    """Checks a folder of shards against its manifest: sizes, SHA-256, every record."""

    action: Positional[Literal["verify"]]
    """What to do."""
    shards: Positional[Annotated[Path, arg(metavar="SHARDS")]]
    """Folder made by `editjax prepare`, `editjax sounds` or `editjax mixes`."""


def run(arguments: Sequence[str]) -> int:
    """Verifies and says what was counted."""
    options = parse(ShardsOptions, arguments, "editjax shards")
    from editjax import mixes, shards, sounds
    from editjax.array_records import format_of

    verify_of = {sounds.SOUNDS.format: sounds.verify, mixes.MIXES.format: mixes.verify}
    counts = verify_of.get(format_of(options.shards), shards.verify)(options.shards)
    print(f"{options.shards}: intact;", ", ".join(f"{value} {name}" for name, value in counts.items()))
    return 0
