"""`editjax export`: a training run, or a model → a model that can be given away."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from editjax.bundle import TENSORS, read_config
from editjax.cli.options import named, parse
from editjax.export import export_run


@dataclass(frozen=True)
class ExportOptions:
    """Writes a run's checkpoint, or a model anew, as a model: safetensors, settings as JSON, a model card; no
    code."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of a training run, which may still be going on; or a model: its folder, or a name that ships."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="MODEL")]
    """Folder to write."""
    which: Literal["best", "last"] = "best"
    """The checkpoint: best by validation, or last."""
    dtype: Literal["float32", "float16", "int8"] = "float32"
    """How parameters are stored; int8: in whole numbers with scales, a quarter of the size; what is lost is
    measured and noted."""
    licence: Annotated[str | None, named("TEXT")] = None
    """What the model card says about licences; default: that of the weights is editjax's, or the model's."""
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
    size = (path / TENSORS).stat().st_size
    print(f"model written: {path} ({size / 1e6:.2f} MB)")
    if loss := read_config(path).get("quantised"):
        print(
            f"lost by whole numbers: errors of {loss['rms_error']:.2%} of the weights (RMS), at worst "
            f"{loss['worst']['rms_error']:.2%} ({loss['worst']['tensor']})"
        )
    return 0
