"""`editjax train`: a config and shards → a run folder; started again, it goes on where it stopped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from editjax.cli.options import named, parse_leading
from editjax.errors import UsageError

FIELDS = "--fields"


@dataclass(frozen=True)
class TrainOptions:
    """Trains, or goes on training, a model. Any field of the config can be changed: --optim.steps 100.

    `editjax train CONFIG --fields` lists them.
    """

    config: Positional[Annotated[Path, arg(metavar="CONFIG")]]
    """A file such as configs/pointer_tiny.py."""
    data: Annotated[Path, arg(metavar="SHARDS")]
    """Folder made by `editjax prepare`."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="RUN")]
    """Folder of the run: checkpoints, metrics, config."""
    validation: Annotated[Path | None, named("SHARDS")] = None
    """Shards of sessions to validate on; default: the 'validation' split of the training shards."""
    start_from: Annotated[str | None, arg(metavar="NAME|FOLDER")] = None
    """Begin with a trained model's parameters: a bundled model, or the folder of an exported one."""


def run(arguments: Sequence[str]) -> int:
    """Trains to the last step of the config."""
    if FIELDS in arguments:
        return _show_fields([word for word in arguments if not word.startswith("-")])
    options, overrides = parse_leading(TrainOptions, arguments, "editjax train")
    from editjax.train import train_command

    train_command(
        options.config,
        options.data,
        options.out,
        overrides,
        _validate_on(options.validation),
        options.start_from,
        command=arguments,
    )
    return 0


def _validate_on(shards: Path | None) -> Callable[[Any, Path], Callable[[Any], dict[str, float]]]:
    """What makes the function that scores parameters: on shards of their own, all of them, or on a split."""
    from editjax.evaluate import ValidateSettings, make_validate

    if shards is None:
        return make_validate
    return lambda config, _: make_validate(config, shards, ValidateSettings(split=None))


def _show_fields(words: Sequence[str]) -> int:
    """Prints what can be changed in the config that is named first."""
    from editjax.config import load_config, override

    if not words:
        raise UsageError(f"name the config whose fields you want: editjax train CONFIG {FIELDS}")
    override(load_config(words[0]), ["--help"])
    return 0
