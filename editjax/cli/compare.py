"""`editjax compare`: two mixes of the same stems → a page on which they are compared blind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from editjax.cli.options import InputOptions, parse
from editjax.cli.outputs import tracks_named
from editjax.errors import CannotCreateError, DataError, EditjaxError, InputOutputError, UsageError
from editjax.files import atomic_folder

if TYPE_CHECKING:
    import numpy as np

    from editjax.sheet import Sheet
    from editjax.tracks import Mix


@dataclass(frozen=True, kw_only=True)
class CompareOptions(InputOptions):
    """Performs two mix sheets of the same stems, and makes a page that plays excerpts of both, equally loud
    and under letters that change places; it saves votes, from which `editjax taste` learns.

    Open PAGE/index.html in a browser and save votes.json beside it. PAGE/trials.json says which was which.
    """

    stems: Positional[Annotated[str, arg(metavar="STEMS")]]
    """The folder of stems."""
    first: Positional[Annotated[Path, arg(metavar="A.mix.json")]]
    """The sheet of one mix, as `editjax mix` writes it."""
    second: Positional[Annotated[Path, arg(metavar="B.mix.json")]]
    """The sheet of the other."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="PAGE")]
    """Folder to write."""
    count: int = 6
    """How many excerpts."""
    seconds: float = 10.0
    """How long each is."""
    seed: int = 0
    """Other seeds choose other excerpts, and change which mix is A."""
    overwrite: bool = False
    """Replace a page that is there and was not voted on."""


def run(arguments: Sequence[str]) -> int:
    """Makes the page; what cannot be read or written is refused before any work."""
    options = parse(CompareOptions, arguments, "editjax compare")
    if not 1 <= options.count <= 99 or not 1.0 <= options.seconds <= 60.0:
        raise UsageError("give a --count from 1 to 99 and --seconds from 1 to 60")
    _refuse_place(options.out, options.overwrite)
    from editjax import sheet as sheets
    from editjax.audio import Reader
    from editjax.tracks import Mix

    paths, folder = tracks_named([options.stems])
    limits = options.limits(), options.allow_truncated
    with Mix([Reader(path, *limits) for path in paths], folder) as mix:
        names, rate_hz = [path.name for path in paths], mix.info.sample_rate_hz
        both = [
            sheets.for_these(sheets.read(path), names, rate_hz, path)
            for path in (options.first, options.second)
        ]
        if both[0] == both[1]:
            raise DataError(
                f"{options.second}: is the same mix as {options.first}; there is nothing to vote on"
            )
        try:
            with atomic_folder(options.out.absolute()) as new:
                _write(options, mix, both, new)
                _refuse_place(options.out, options.overwrite)
        except OSError as error:
            raise InputOutputError(
                f"{options.out}: cannot write the page there ({error.strerror})"
            ) from error
    print(f"page written: {options.out / 'index.html'}; save its votes.json beside it")
    return 0


def _refuse_place(out: Path, overwrite: bool) -> None:
    """CannotCreateError for what is there, unless it is a page without votes that may be replaced."""
    from editjax.listening import TRIALS, VOTES_FILE, read_trials

    if not out.exists():
        return
    if not overwrite:
        raise CannotCreateError(f"{out}: exists; choose another name or pass --overwrite")
    if (out / VOTES_FILE).exists():
        raise CannotCreateError(f"{out}: was voted on, so it is not replaced; choose another name")
    try:
        if out.is_dir() and (not any(out.iterdir()) or read_trials(out)):
            return
    except EditjaxError:
        pass
    raise CannotCreateError(f"{out}: is no page (no {TRIALS}), so it is not replaced; choose another name")


def _write(options: CompareOptions, mix: "Mix", both: list["Sheet"], folder: Path) -> None:
    """Everything in the folder."""
    import json

    import numpy as np

    from editjax import listening

    rate_hz, rng = mix.info.sample_rate_hz, np.random.default_rng(options.seed)
    scratch = [folder / f"mix_{k}.f32" for k in range(2)]
    for sheet, path in zip(both, scratch, strict=True):
        _perform(mix, sheet, path)
    sounds = [np.memmap(path, np.float32, "r").reshape(-1, 2) for path in scratch]
    starts = _named(mix, listening.starts, sounds, rate_hz, options.count, options.seconds, rng)
    first_is_a = rng.permutation(np.arange(options.count) % 2 == rng.integers(2))
    trials = []
    for number, (start, first) in enumerate(zip(rng.permutation(starts), first_is_a, strict=True), 1):
        cut = _named(mix, listening.excerpts, sounds, rate_hz, int(start), options.seconds)
        pair = cut if first else cut[::-1]
        for letter, sound_S2 in zip("ab", pair, strict=True):
            _write_sound(folder / listening.sound_name(number, letter), sound_S2, rate_hz)
        features = [listening.heard(sound_S2, rate_hz) for sound_S2 in pair]
        trials.append(listening.Trial(float(start) / rate_hz, bool(first), *features))
    del sounds
    for path in scratch:
        path.unlink()
    names = [str(path.name) for path in (options.first, options.second)]
    told = listening.to_json(trials, names, options.seconds)
    text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / listening.TRIALS).write_text(text + "\n", encoding="utf-8")
    page = listening.page_of(told["page"], len(trials), f"Two mixes of {Path(options.stems).resolve().name}")
    (folder / listening.INDEX).write_text(page, encoding="utf-8")


def _perform(mix: "Mix", sheet: "Sheet", path: Path) -> None:
    """The mix of a sheet, as loud as it says, as float32 (S, 2) in a file."""
    from editjax import mixing

    stems = mixing.stems_of(mix)
    with mixing.kept_sum(stems, sheet, path.parent) as sum_of, path.open("wb") as file:
        gain_db, _ = _named(mix, mixing.loud_enough, sum_of, sheet)
        for block_2N in mixing.mastered(sum_of, sheet, gain_db):
            file.write(block_2N.T.tobytes())


def _named(mix: "Mix", function: Any, *arguments: Any) -> Any:
    """What a function gives; its complaints name the stems."""
    try:
        return function(*arguments)
    except DataError as error:
        raise DataError(f"{mix.info.path}: {error}") from None


def _write_sound(path: Path, sound_S2: "np.ndarray", rate_hz: int) -> None:
    from editjax.audio import Writer

    with Writer(path, sample_rate_hz=rate_hz, channels=2, container="FLAC", subtype="PCM_24") as writer:
        writer.write(sound_S2)
