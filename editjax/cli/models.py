"""`editjax models`: what can be named with `--model`."""

from collections.abc import Sequence
from dataclasses import dataclass

from editjax.bundle import BUNDLED, bundled_names, read_config
from editjax.cli.options import parse


@dataclass(frozen=True)
class ModelsOptions:
    """Lists the models that ship with this installation."""


def run(arguments: Sequence[str]) -> int:
    """Prints a line for each model."""
    parse(ModelsOptions, arguments, "editjax models")
    for name in bundled_names():
        config = read_config(BUNDLED / name)
        training, megabytes = (
            config["training"],
            sum(p.stat().st_size for p in (BUNDLED / name).iterdir()) / 1e6,
        )
        styles = f", styles {' '.join(training['styles'])}" if "styles" in training else ""
        print(f"{name}  {config['family']}, {training['step']} steps, {megabytes:.1f} MB{styles}")
    if not bundled_names():
        print("no model ships with this installation")
    return 0
