"""`editjax export`: a training run → a model that can be given away."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from editjax.cli.options import parse
from editjax.export import LICENCE, export_run


@dataclass(frozen=True)
class ExportOptions:
    """Writes a run's checkpoint as a model: safetensors, settings as JSON, a model card; no code."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Folder of a training run, which may still be going on."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="MODEL")]
    """Folder to write."""
    which: Literal["best", "last"] = "best"
    """The checkpoint: best by validation, or last."""
    dtype: Literal["float32", "float16"] = "float32"
    """How parameters are stored."""
    licence: str = LICENCE
    """What the model card says about licences."""
    overwrite: bool = False
    """Replace a model that is there."""


def run(arguments: Sequence[str]) -> int:
    """Exports, and says where the model is."""
    options = parse(ExportOptions, arguments, "editjax export")
    path = export_run(
        options.run,
        options.out,
        which=options.which,
        dtype=options.dtype,
        licence=options.licence,
        overwrite=options.overwrite,
    )
    print(f"model written: {path}")
    return 0
