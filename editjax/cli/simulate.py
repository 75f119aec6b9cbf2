"""`editjax simulate`: recording sessions with known edits, to train and to test on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from editjax.cli.options import named, parse
from editjax.session import SimulateSettings
from editjax.simulate import simulate_folder


@dataclass(frozen=True)
class SimulateOptions:
    """Makes recording sessions with known edits: ID_raw.flac, ID_edit.flac and ID.edits.json in a folder."""

    out: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """Where the sessions go."""
    count: int = 10
    """How many sessions."""
    seed: int = 0
    """The same seed and settings give the same sessions, whatever the number of workers."""
    recordings: Annotated[Path | None, named("FOLDER")] = None
    """A folder of music, speech and noises with a manifest.csv; without it everything is synthesised."""
    workers: int = 1
    """Processes that work side by side."""
    settings: OmitArgPrefixes[SimulateSettings] = field(default_factory=SimulateSettings)


def run(arguments: Sequence[str]) -> int:
    """Simulates, with a progress bar, and says how many sessions there are."""
    options = parse(SimulateOptions, arguments, "editjax simulate")
    made = simulate_folder(
        options.out, options.count, options.seed, options.settings, options.recordings, options.workers
    )
    print(f"{made} sessions in {options.out}")
    return 0
