"""`editjax mix`: stems → a mix, how the console was set for it, a Reaper project and a picture."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from editjax.cli.options import InputOptions, named, parse
from editjax.cli.outputs import tracks_named
from editjax.errors import DataError, UsageError
from editjax.outputs import Outputs

if TYPE_CHECKING:
    import numpy as np

    from editjax.mixing import Heard, Measured
    from editjax.tracks import Mix

SUFFIXES = {"sheet": ".mix.json", "project": ".rpp", "picture": ".png"}


@dataclass(frozen=True, kw_only=True)
class MixOptions(InputOptions):
    """Mixes sample-aligned stems of one song: levels, filters, compression, places, loudness, true peaks.

    Beside MIX.wav come MIX.mix.json (all settings), MIX.rpp (a Reaper project) and MIX.png. Changes are
    small and bounded; with a reference the mix comes near its spectrum and width. A sheet that was changed by
    hand is performed as it stands with --params.
    """

    stems: Positional[Annotated[tuple[str, ...], named("STEMS...")]] = ()
    """A folder of stems, or the stems by name: of one sample rate, all from the beginning of the song."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="MIX.wav")]
    """The mix: WAV or FLAC, 24 bits."""
    genre: Annotated[str | None, named("GENRE")] = None
    """Come near to recordings of this genre; --reference is a folder of sound shards that knows genres."""
    reference: Annotated[Path | None, named("REF")] = None
    """A mix to come near to."""
    loudness: Annotated[float, arg(metavar="LUFS")] = -14.0
    """Integrated loudness of the mix, from -40 to -5."""
    params: Annotated[Path | None, named("MIX.mix.json")] = None
    """Perform this sheet; its stems are found by their names."""
    taste: Annotated[Path | None, named("TASTE.json")] = None
    """Move towards what was liked, as `editjax taste` has learned it; no further than without."""
    still: float = 1.0
    """What changes cost: 0.1 comes nearer to the goal, 10 hardly changes anything."""
    json: bool = False
    """Print one line of JSON instead of the table."""
    overwrite: bool = False
    """Replace outputs that exist."""


def run(arguments: Sequence[str]) -> int:
    """Mixes; outputs that cannot be written are refused first."""
    options = parse(MixOptions, arguments, "editjax mix", spread="stems")
    if not options.stems:
        raise UsageError("mix what? name the stems or their folder, as in: editjax mix STEMS/ -o MIX.wav")
    if not -40.0 <= options.loudness <= -5.0 or not 0.01 <= options.still <= 1000.0:
        raise UsageError("give --loudness from -40 to -5 LUFS and --still from 0.01 to 1000")
    if options.out.suffix.lower() not in (".wav", ".flac"):
        raise UsageError(f"{options.out}: mixes are written as .wav or .flac; choose one of these")
    if options.params and (options.reference or options.taste):
        raise UsageError("--params says all there is to say; leave --reference and --taste out")
    if options.genre and not options.reference:
        raise UsageError("--genre needs --reference, a folder of sound shards with genres")
    from editjax.audio import Reader
    from editjax.tracks import Mix

    paths, folder = tracks_named(list(options.stems))
    limits = options.limits(), options.allow_truncated
    places = {kind: options.out.with_suffix(suffix) for kind, suffix in SUFFIXES.items()}
    inputs = [*paths, *(path for path in (options.reference, options.params, options.taste) if path)]
    with (
        Mix([Reader(path, *limits) for path in paths], folder) as mix,
        Outputs(options.overwrite, inputs) as outputs,
    ):
        new = {kind: outputs.add(path) for kind, path in places.items()}
        new["mix"] = outputs.add(options.out)
        facts = _mixed(options, mix, paths, new)
    print(json.dumps(facts, allow_nan=False) if options.json else _told(facts, options.out))
    return 0


def _mixed(options: MixOptions, mix: "Mix", paths: list[Path], new: dict[str, Path]) -> dict[str, Any]:
    """Everything written; the figures of the sum and of the mix."""
    from editjax import mixing
    from editjax import sheet as sheets
    from editjax import taste as tastes
    from editjax.mix_picture import draw_mix

    rate_hz, names = mix.info.sample_rate_hz, [path.name for path in paths]
    reference = _reference(options) if options.reference else None
    heard = [_heard(track, rate_hz) for track in mix.tracks]
    if options.params:
        sheet = sheets.for_these(sheets.read(options.params), names, rate_hz, options.params)
    else:
        settings = mixing.MixingSettings(options.loudness, options.still)
        taste = tastes.read(options.taste) if options.taste else None
        sheet = mixing.decide(names, heard, rate_hz, settings, reference, taste)
    stems = mixing.stems_of(mix)
    found, spectra = {}, {}
    for name, chosen in (("plain sum", mixing.plain(names, rate_hz, sheet.loudness_lufs)), ("mix", sheet)):
        with mixing.kept_sum(stems, chosen, new["mix"].parent) as sum_of:
            gain_db, found[name] = mixing.loud_enough(sum_of, chosen)
            spectra[name] = mixing.listen(mixing.mastered(sum_of, chosen, gain_db), rate_hz)
            if name == "mix":
                sheet = sheet._replace(master=sheet.master._replace(gain_db=gain_db))
                _write(new["mix"], options.out, mixing.mastered(sum_of, sheet, gain_db), rate_hz)
    goal_F, _ = mixing.goal_of(reference) if reference else mixing.released(rate_hz)
    levels = [(name, mixing.goal_of(one)[0]) for name, one in spectra.items()]
    facts = {name: _facts(found[name], levels[k][1], goal_F) for k, name in enumerate(found)}
    length_s = mix.frames / rate_hz
    sheets.write(sheet, new["sheet"], facts["mix"], overwrite=True)
    sheets.write_rpp(sheet, new["project"], paths, length_s, options.out, overwrite=True)
    goal = (options.genre or ("reference" if reference else "released music"), goal_F)
    title = f"{options.out.name}: {len(names)} stems, {found['mix'].loudness_lufs:.1f} LUFS"
    draw_mix(new["picture"], sheet, mixing.centres_hz(), [*levels, goal], title, overwrite=True)
    return facts


def _heard(track: Any, rate_hz: int) -> "Heard":
    from editjax.mixing import blocks_of, listen

    try:
        return listen(blocks_of(track), rate_hz)
    except DataError as error:
        raise DataError(f"{track.info.path}: {error}; leave it out") from None


def _reference(options: MixOptions) -> "Heard":
    from editjax.audio import Reader

    assert options.reference
    if options.genre:
        from editjax.genres import genre_reference

        return genre_reference(options.reference, options.genre)
    with Reader(options.reference, options.limits(), options.allow_truncated) as reader:
        return _heard(reader, reader.info.sample_rate_hz)


def _write(path: Path, out: Path, blocks: Iterator["np.ndarray"], rate_hz: int) -> None:
    from editjax.audio import Writer

    container = out.suffix.lower().lstrip(".").upper()
    with Writer(
        path, sample_rate_hz=rate_hz, channels=2, container=container, subtype="PCM_24", overwrite=True
    ) as writer:
        for block_2N in blocks:
            writer.write(block_2N.T)


def _facts(measured: "Measured", level_F: "np.ndarray", goal_F: "np.ndarray") -> dict[str, float]:
    import numpy as np

    off_F = level_F - goal_F
    facts = {name: round(float(value), 2) for name, value in measured._asdict().items()}
    return facts | {"from_goal_db": round(float(np.std(off_F)), 2)}


def _told(facts: dict[str, Any], out: Path) -> str:
    rows = ["            loudness  true peak   range   from goal"]
    for name, row in facts.items():
        rows.append(
            f"{name:<10}{row['loudness_lufs']:7.1f} LUFS{row['true_peak_db']:6.1f} dBTP"
            f"{row['loudness_range_lu']:5.1f} LU{row['from_goal_db']:8.1f} dB"
        )
    return "\n".join([*rows, f"mix written: {out}"])
