"""`editjax convert-codec`: an EnCodec trained in PyTorch → a codec for editjax."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from editjax.cli.options import named, parse


@dataclass(frozen=True)
class ConvertCodecOptions:
    """Writes weights of EnCodec's causal 24 kHz model as a model folder, which `editjax remix --codec` takes;
    nothing in their file is executed."""

    weights: Positional[Annotated[Path, arg(metavar="WEIGHTS")]]
    """PyTorch checkpoint (encodec_24khz-d7cc33bc.th, .pt) or .safetensors."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="MODEL")]
    """Folder to write."""
    licence: Annotated[str | None, named("TEXT")] = None
    """What the model card says about licences."""
    overwrite: bool = False
    """Replace a model that is there."""


def run(arguments: Sequence[str]) -> int:
    """Converts, and says where the codec is."""
    options = parse(ConvertCodecOptions, arguments, "editjax convert-codec")
    from editjax.convert import LICENCE
    from editjax.convert_codec import convert_encodec

    path = convert_encodec(
        options.weights, options.out, licence=options.licence or LICENCE, overwrite=options.overwrite
    )
    print(f"codec written: {path}")
    return 0
