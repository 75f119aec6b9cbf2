"""`editjax convert-vocoder`: a HiFi-GAN trained in PyTorch → a vocoder for editjax."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from editjax.cli.options import named, parse


@dataclass(frozen=True)
class ConvertVocoderOptions:
    """Writes a HiFi-GAN generator's weights as a model of editjax; nothing in their file is executed."""

    weights: Positional[Annotated[Path, arg(metavar="WEIGHTS")]]
    """PyTorch checkpoint (.pth, .pt, g_02500000) or .safetensors."""
    config: Positional[Annotated[Path, arg(metavar="CONFIG.json")]]
    """The config.json that came with the weights."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="MODEL")]
    """Folder to write."""
    licence: Annotated[str | None, named("TEXT")] = None
    """What the model card says about licences."""
    overwrite: bool = False
    """Replace a model that is there."""


def run(arguments: Sequence[str]) -> int:
    """Converts, and says where the vocoder is."""
    options = parse(ConvertVocoderOptions, arguments, "editjax convert-vocoder")
    from editjax.convert import LICENCE, convert_hifigan

    path = convert_hifigan(
        options.weights,
        options.config,
        options.out,
        licence=options.licence or LICENCE,
        overwrite=options.overwrite,
    )
    print(f"vocoder written: {path}")
    return 0
