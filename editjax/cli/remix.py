"""`editjax remix`: two recordings → a new piece made of windows of both."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from editjax.cli.options import InputOptions, named, parse
from editjax.outputs import Outputs

if TYPE_CHECKING:
    from editjax.remix import Remix


@dataclass(frozen=True, kw_only=True)
class RemixOptions(InputOptions):
    """Chooses windows of two recordings that belong together, and makes a new piece of them.

    As much of each recording is heard as the agent was made for, 24 seconds; one that is shorter is repeated.
    """

    input: Positional[Annotated[Path, arg(metavar="INPUT")]]
    """The first recording."""
    target: Positional[Annotated[Path, arg(metavar="TARGET")]]
    """The second recording."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="OUT")]
    """The new piece, an audio file."""
    pairs: Annotated[int | None, named("N")] = None
    """Make pieces of the first N pairs of windows; default: of all that the agent chooses, 3."""
    pick: Annotated[str, arg(metavar="best|ensemble|1|2|…")] = "best"
    """Which piece to write: that of the least loss, the mean of all, or the one of a pair by its number."""
    input_start: Annotated[float, arg(metavar="SECONDS")] = 0.0
    """From where on the first recording is heard."""
    target_start: Annotated[float, arg(metavar="SECONDS")] = 0.0
    """From where on the second recording is heard."""
    model: Annotated[str, arg(metavar="NAME|FOLDER")] = "window"
    """A creative agent: a name that `editjax models` lists, or the folder of an exported one."""
    codec: Annotated[str, arg(metavar="NAME|FOLDER")] = "codec"
    """The codec whose latents it was trained on."""
    plot: Annotated[Path | None, named("FILE.png")] = None
    """Picture of the windows in both recordings."""
    json: bool = False
    """Print one line of JSON instead of the table."""
    overwrite: bool = False
    """Replace outputs that exist."""


def run(arguments: Sequence[str]) -> int:
    """Remixes; what cannot be read or written is refused before any work."""
    options = parse(RemixOptions, arguments, "editjax remix")
    from editjax.audio import Reader, Writer
    from editjax.formats import output_format
    from editjax.picture import check_suffix, draw_windows, overview
    from editjax.remix import excerpt, load_remixer, remix

    if options.plot:
        check_suffix(options.plot)
    limits = options.limits(), options.allow_truncated
    paths = options.input, options.target
    starts_s = options.input_start, options.target_start
    with (
        Reader(options.input, *limits) as first,
        Reader(options.target, *limits) as second,
        Outputs(options.overwrite, paths) as outputs,
    ):
        container, subtype = output_format(first.info, options.out)
        written = {path: outputs.add(path) for path in (options.out, options.plot) if path}
        remixer = load_remixer(options.model, options.codec)
        length_s = remixer.settings.total_s
        sounds = [excerpt(*at, length_s) for at in zip((first, second), starts_s, strict=True)]
        rates_hz = [reader.info.sample_rate_hz for reader in (first, second)]
        made = remix(
            remixer, sounds[0], rates_hz[0], sounds[1], rates_hz[1],
            pairs=options.pairs, pick=options.pick, starts_s=starts_s,
        )  # fmt: skip
        with Writer(
            written[options.out], sample_rate_hz=made.rate_hz, channels=len(made.sound_CS),
            container=container, subtype=subtype, overwrite=True,
        ) as writer:  # fmt: skip
            writer.write(made.sound_CS.T)
        if options.plot:
            waves = [overview(reader) for reader in (first, second)]
            lengths_s = [reader.frames / reader.info.sample_rate_hz for reader in (first, second)]
            names = [path.name for path in paths]
            draw_windows(written[options.plot], names, waves, lengths_s, made, overwrite=True)
    print(_for_programs(made, options.out) if options.json else _told(made, options.out))
    return 0


def _told(made: "Remix", out: Path) -> str:
    head = "pair  input from  × faster  target from  × faster  tonality  match   loss"
    rows = [
        f"{at:>3}{'*' if at == made.heard or not made.heard else ' '}  {one.start_input_s:8.2f} s"
        f"  {one.ratio_input:8.3f}  {one.start_target_s:9.2f} s  {one.ratio_target:8.3f}"
        f"  {one.tonality_strength:8.2f}  {one.match:5.2f}  {one.loss:5.2f}"
        for at, one in enumerate(made.pairs, 1)
    ]
    length_s = made.sound_CS.shape[1] / made.rate_hz
    return "\n".join([head, *rows, f"{out}: {length_s:.1f} s at {made.rate_hz} Hz, of the pairs marked *"])


def _for_programs(made: "Remix", out: Path) -> str:
    pairs = [one._asdict() for one in made.pairs]
    facts = {"output": str(out), "rate_hz": made.rate_hz, "window_s": made.window_s, "heard": made.heard}
    return json.dumps({**facts, "pairs": pairs})
