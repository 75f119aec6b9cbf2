"""`editjax align`: a raw recording and somebody's edit of it → what they kept, cut, looped and moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from editjax.cli.options import InputOptions, named, parse
from editjax.cli.outputs import check_name


@dataclass(frozen=True, kw_only=True)
class AlignOptions(InputOptions):
    """Finds what of RAW is heard in EDITED, and writes the edit list that made it.

    In the folder: NAME.edits.json, NAME_pointers.npy, NAME_labels.npy (per beat), NAME_info.json and
    NAME_alignment.png, where NAME is that of EDITED. What occurs nowhere in RAW is marked, not guessed.
    """

    raw: Positional[Annotated[Path, arg(metavar="RAW")]]
    """The recording."""
    edited: Positional[Annotated[Path, arg(metavar="EDITED")]]
    """The edit, of any format and rate; gains, equalisers, noise and codecs do not matter much."""
    out: Annotated[Path | None, named("FOLDER", "-o")] = None
    """Where the results go; default: beside EDITED."""
    overwrite: bool = False
    """Replace results that exist."""
    json: bool = False
    """Print the report as one JSON object."""
    as_ops: bool = False
    """Report the edit as operations: COPY, LOOP, REORDER, CUT, fades; `editjax render` takes their JSON."""
    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print errors only."""


def run(arguments: Sequence[str]) -> int:
    """Aligns, and says what was found."""
    options = parse(AlignOptions, arguments, "editjax align")
    from editjax.align import align_files
    from editjax.cli import report

    check_name(options.raw)
    check_name(options.edited)
    folder = options.edited.parent if options.out is None else options.out
    found = align_files(
        options.raw,
        options.edited,
        folder,
        overwrite=options.overwrite,
        limits=options.limits(),
        allow_truncated=options.allow_truncated,
    )
    edits = folder / f"{options.edited.stem}.edits.json"
    if options.json:
        files = {"edits": str(edits), "alignment_ratio": found.alignment_ratio}
        report.say(report.for_programs(found.edit_list, options.raw, files, {}, options.as_ops))
    elif not options.quiet:
        report.say(report.for_people(found.edit_list, options.raw, edits, options.as_ops))
        unaligned = "; the rest occurs nowhere in it" if found.alignment_ratio < 0.9995 else ""
        report.say(f"  {found.alignment_ratio:.1%} of {options.edited} found in the recording{unaligned}")
    return 0
