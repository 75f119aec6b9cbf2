"""`editjax models`: what can be named with `--model`."""

from collections.abc import Sequence
from dataclasses import dataclass

from editjax.cli.options import parse
from editjax.export import BUNDLED, bundled_names, read_config


@dataclass(frozen=True)
class ModelsOptions:
    """Lists the models that ship with this installation."""


def run(arguments: Sequence[str]) -> int:
    """Prints a line for each model."""
    parse(ModelsOptions, arguments, "editjax models")
    for name in bundled_names():
        config = read_config(BUNDLED / name)
        size = sum(path.stat().st_size for path in (BUNDLED / name).iterdir())
        print(f"{name}  {config['family']}, {config['training']['step']} steps, {size / 1e6:.1f} MB")
    if not bundled_names():
        print("no model ships with this installation")
    return 0
