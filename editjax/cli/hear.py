"""`editjax hear`: a stem and a mix of it → how the console would have to be set."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from editjax.cli.options import InputOptions, named, parse
from editjax.errors import DataError, UsageError
from editjax.outputs import Outputs

if TYPE_CHECKING:
    import numpy as np

    from editjax.mixer import Found

LEAST_S, LONGEST_DIFFERENCE_S = 1.0, 10.0


@dataclass(frozen=True, kw_only=True)
class HearOptions(InputOptions):
    """Hears how a stem was mixed: level, filters, compression, place, width, room and echoes.

    Both recordings begin at the same moment. The settings are those of editjax's own console that come
    nearest, whatever the mix was made with. Settings in brackets cannot be told from most stems.
    """

    stem: Positional[Annotated[Path, arg(metavar="STEM")]]
    """The stem as it was recorded."""
    mix: Positional[Annotated[Path, arg(metavar="MIX")]]
    """What was made of it."""
    model: Annotated[tuple[str, ...], arg(metavar="NAME|FOLDER")] = ("mixer",)
    """One regressor, or several whose answers are averaged."""
    refine: bool = False
    """Fit the settings to the sound from there, by gradients through the console: slow and exact."""
    out: Annotated[Path | None, named("SHEET.mix.json", "-o")] = None
    """Write the settings as a sheet, for `editjax mix STEM --params`."""
    json: bool = False
    """Print one line of JSON instead of the table."""
    overwrite: bool = False
    """Replace outputs that exist."""


def run(arguments: Sequence[str]) -> int:
    """Hears; an output that cannot be written is refused first."""
    options = parse(HearOptions, arguments, "editjax hear")
    from editjax.mixer import load_mixer

    with Outputs(options.overwrite, (options.stem, options.mix)) as outputs:
        new = outputs.add(options.out) if options.out else None
        mixer = load_mixer(*options.model)
        stem_2S, mix_2S = (_sound(path, options, mixer.rate_hz) for path in (options.stem, options.mix))
        apart_s = abs(stem_2S.shape[1] - mix_2S.shape[1]) / mixer.rate_hz
        if apart_s > LONGEST_DIFFERENCE_S:
            raise DataError(
                f"{options.mix}: its length differs from that of {options.stem} by {apart_s:.1f} s; give a "
                "stem and what was made of it, from the same moment on"
            )
        count = min(stem_2S.shape[1], mix_2S.shape[1])
        found = mixer.hear(stem_2S[:, :count], mix_2S[:, :count], options.refine)
        if new:
            _write(new, options, found, mixer.rate_hz)
    print(json.dumps(_facts(found), allow_nan=False) if options.json else _told(found))
    return 0


def _sound(path: Path, options: HearOptions, rate_hz: int) -> "np.ndarray":
    """The whole of a recording, (2, S)."""
    import numpy as np

    from editjax.audio import Reader, resample_stream
    from editjax.mixing import blocks_of

    with Reader(path, options.limits(), options.allow_truncated) as reader:
        blocks = (block_2S.T for block_2S in blocks_of(reader))
        parts = [*resample_stream(blocks, reader.info.sample_rate_hz, rate_hz, 2)]
    sound_2S = np.concatenate([np.zeros((0, 2), np.float32), *parts]).T
    if sound_2S.shape[1] < LEAST_S * rate_hz:
        raise UsageError(f"{path}: shorter than {LEAST_S:g} s; give more of it")
    if not sound_2S.any():
        raise DataError(f"{path}: it is silent; there is nothing to hear")
    return np.ascontiguousarray(sound_2S)


def _write(path: Path, options: HearOptions, found: "Found", rate_hz: int) -> None:
    from editjax import sheet as sheets
    from editjax.console.desk import Master

    sheet = sheets.Sheet((options.stem.name,), (found.strip,), Master(), found.loudness_lufs, rate_hz)
    sheets.write(sheet, path, {}, overwrite=True)


def _facts(found: "Found") -> dict[str, Any]:
    knobs = {name: round(value, 4) for name, value in found.values.items()}
    return {"settings": knobs, "apart_db": round(found.apart_db, 3), "before_db": round(found.before_db, 3)}


def _told(found: "Found") -> str:
    from editjax.console.knobs import IDENTIFIABLE

    rows = []
    for name, value in found.values.items():
        setting, _, unit = name.rpartition("_") if "_" in name else (name, "", "")
        said = f"{value:8.2f} {unit.replace('db', 'dB').replace('hz', 'Hz')}".rstrip()
        label = setting.replace("_", " ")
        rows.append(f"{label:<10}{said}" if name in IDENTIFIABLE else f"{label:<10}{said}  (uncertain)")
    return "\n".join(
        [
            *rows,
            f"the stem is {found.before_db:.1f} dB from the mix, and so set {found.apart_db:.1f} dB",
        ]
    )
