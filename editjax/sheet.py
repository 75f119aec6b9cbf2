"""A mix sheet: how the console was set for every stem and for their sum, and its files.

    {"format": "editjax.mix", "version": 1, "sample_rate_hz": 48000, "loudness_lufs": -14.0,
     "stems": [{"file": "drums.wav", "gain_db": -1.5, …}, …], "master": {"gain_db": 3.1, …}}

Settings are those of `console.desk.Strip` and `Master`, in their units; what is left out is neutral.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from editjax.bundle import parsed
from editjax.console.desk import OFF_DB, Master, Strip
from editjax.errors import DataError, shown
from editjax.files import atomic_path, open_regular
from editjax.timeline import reaper_item, reaper_name

FORMAT = "editjax.mix"
VERSION = 1
LARGEST_BYTES = 1 << 20
BOUNDS = {
    "gain_db": (-120.0, 40.0),
    "low_cut_hz": (0.0, 20_000.0),
    "ratio": (1.0, 100.0),
    "threshold_db": (-120.0, 40.0),
    "knee_db": (0.0, 60.0),
    "attack_s": (1e-5, 10.0),
    "release_s": (1e-4, 60.0),
    "width": (0.0, 2.0),
    "pan": (-1.0, 1.0),
    "room_decay_s": (0.05, 3.0),
    "echo_s": (0.01, 2.0),
    "echo_feedback": (0.0, 0.95),
    "ceiling_db": (-60.0, 0.0),
}
"""The least and the largest of settings; of others Hz 10 to 20,000, Q 0.1 to 20, dB −120 to 40."""


class Sheet(NamedTuple):
    """`strips[k]` is of the stem named `names[k]`, plain numbers all."""

    names: tuple[str, ...]
    strips: tuple[Strip, ...]
    master: Master
    loudness_lufs: float
    sample_rate_hz: int


def to_json(sheet: Sheet, measured: dict[str, float] | None = None) -> dict[str, Any]:
    """A sheet as JSON, with figures of the mix beside it."""
    stems = [{"file": name, **_rounded(strip)} for name, strip in zip(sheet.names, sheet.strips, strict=True)]
    return {
        "format": FORMAT,
        "version": VERSION,
        "sample_rate_hz": sheet.sample_rate_hz,
        "loudness_lufs": sheet.loudness_lufs,
        "stems": stems,
        "master": _rounded(sheet.master),
        **({"measured": measured} if measured else {}),
    }


def _rounded(settings: Strip | Master) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in settings._asdict().items()}


def write(sheet: Sheet, path: Path, measured: dict[str, float], overwrite: bool = False) -> None:
    """Writes a sheet as JSON, whole or not at all."""
    with atomic_path(path, overwrite) as temporary:
        text = json.dumps(to_json(sheet, measured), indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> Sheet:
    """A sheet. Raises NoInputError where there is none, DataError naming the setting that cannot be."""
    tree = object_of(path, FORMAT, VERSION, "a mix sheet; editjax mix writes one")
    stems, master = tree.get("stems"), tree.get("master", {})
    if not isinstance(stems, list) or not stems or not all(isinstance(stem, dict) for stem in stems):
        raise DataError(f"{path}: stems are missing; give one object for each")
    names = tuple(stem.pop("file", None) for stem in stems)
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise DataError(f"{path}: every stem needs a file's name of its own")
    strips = tuple(
        _settings(Strip(), stem, f"{path}: {shown(name)}") for name, stem in zip(names, stems, strict=True)
    )
    rate, loudness = tree.get("sample_rate_hz", 0), tree.get("loudness_lufs", -14.0)
    if type(rate) is not int or not _is_between(loudness, -70.0, 0.0):
        raise DataError(f"{path}: sample_rate_hz and loudness_lufs must be numbers that a mix can have")
    return Sheet(names, strips, _settings(Master(), master, f"{path}: master"), float(loudness), rate)


def object_of(path: Path, kind: str, version: int, what: str) -> dict[str, Any]:
    """The object in a JSON file of a format. Raises NoInputError without a file, DataError for any other."""
    try:
        with open_regular(path, LARGEST_BYTES) as file:
            tree = parsed(file.read(LARGEST_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(tree, dict) or tree.get("format") != kind:
        raise DataError(f"{path}: not {what} (format is not {kind!r})")
    if tree.get("version") != version:
        raise DataError(f"{path}: version {shown(tree.get('version'))}, this editjax reads {version}")
    return tree


def for_these(sheet: Sheet, names: list[str], rate_hz: int, path: Path) -> Sheet:
    """A sheet with its stems in the order of these. Raises DataError where they are others."""
    if sorted(sheet.names) != sorted(names):
        odd = sorted(set(sheet.names) ^ set(names))[0]
        raise DataError(f"{path}: is a sheet of other stems: {odd} is in one and not in the other")
    strips = tuple(sheet.strips[sheet.names.index(name)] for name in names)
    return sheet._replace(names=tuple(names), strips=strips, sample_rate_hz=rate_hz)


def _settings(neutral: Any, values: Any, where: str) -> Any:
    """Settings that differ from the neutral ones by what is given."""
    if not isinstance(values, dict):
        raise DataError(f"{where}: expected an object of settings")
    for name, value in values.items():
        if name not in neutral._fields:
            raise DataError(f"{where}: unknown setting {shown(name)}; there are {', '.join(neutral._fields)}")
        low, high = bounds(name)
        if not _is_between(value, low, high):
            raise DataError(f"{where}: {name} {shown(value)}: give a number from {low:g} to {high:g}")
    return neutral._replace(**{name: float(value) for name, value in values.items()})


def bounds(name: str) -> tuple[float, float]:
    """The least and the largest value of a setting."""
    unit = name.rpartition("_")[2]
    return BOUNDS.get(name) or {"hz": (10.0, 20_000.0), "q": (0.1, 20.0)}.get(unit, (OFF_DB, 40.0))


def _is_between(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def write_rpp(
    sheet: Sheet, path: Path, stems: list[Path], length_s: float, target: Path, overwrite: bool = False
) -> None:
    """A Reaper project: a track a stem with its level and pan, and all settings as plain numbers in notes.

    Reaper's faders do the gain, makeup, pan and width; its own effects are none of the console's, so that
    filters, compression and sends are not imitated but written down.
    """
    folder = Path(os.path.abspath(target)).parent
    lines = ['<REAPER_PROJECT 0.1 "7.0" 0', f"  SAMPLERATE {sheet.sample_rate_hz} 0 0"]
    lines += ["  <NOTES 0 2", *(f"    |{line}" for line in _told("master", sheet.master)), "  >"]
    gain = 10 ** (sheet.master.gain_db / 20)
    lines.append(f"  MASTER_VOLUME {gain:.12f} 0 -1 -1 1")
    for name, strip, stem in zip(sheet.names, sheet.strips, stems, strict=True):
        volume = 10 ** ((strip.gain_db + strip.makeup_db) / 20)
        lines += [
            "  <TRACK",
            f"    NAME {reaper_name(Path(name).stem)}",
            f"    VOLPAN {volume:.12f} {strip.pan:.6f} -1 -1 1",
            f"    WIDTH {min(strip.width, 1.0):.6f}",
            *reaper_item(stem, folder, 0.0, length_s),
            "    <NOTES",
            *(f"      |{line}" for line in _told(Path(name).stem, strip)),
            "    >",
            "  >",
        ]
    with atomic_path(path, overwrite) as temporary:
        temporary.write_text("\n".join([*lines, ">", ""]), encoding="utf-8")


def _told(name: str, settings: Strip | Master) -> list[str]:
    """Every setting as a line `name = number`."""
    return [" ".join(name.split()), *(f"{key} = {value:g}" for key, value in _rounded(settings).items())]
