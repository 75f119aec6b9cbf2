"""`editjax train`: a config and shards → a run folder; started again, it goes on where it stopped."""

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from editjax.cli import DEBUG, ended
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
    """Folder made by `editjax prepare`; for codecs and creative agents by `editjax sounds`, for regressors
    of mixes by `editjax mixes`."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="RUN")]
    """Folder of the run: checkpoints, metrics, config."""
    validation: Annotated[Path | None, named("SHARDS")] = None
    """Shards of sessions to validate on; default: the 'validation' split of the training shards."""
    start_from: Annotated[str | None, arg(metavar="NAME|FOLDER")] = None
    """Begin with a trained model's parameters: a bundled model, or the folder of an exported one."""
    takeover: bool = False
    """Take RUN from a trainer that hangs, or whose host is gone: it ends without writing to it again."""
    hang_after: Annotated[str, arg(metavar="LENGTH")] = "30m"
    """End a trainer that makes no step and no validation for so long, and name what hangs; 0: never."""
    wandb: Annotated[str | None, named("PROJECT")] = None
    """Log to this project of Weights & Biases too; WANDB_MODE=offline keeps it in RUN."""
    join_within: Annotated[str, arg(metavar="LENGTH")] = "5m"
    """How long to wait for the other processes of the job, where there are any."""


def run(arguments: Sequence[str]) -> int:
    """Trains to the last step of the config, in a process beside which this one watches."""
    if FIELDS in arguments:
        return _show_fields([word for word in arguments if not word.startswith("-")])
    options, overrides = parse_leading(TrainOptions, arguments, "editjax train")
    if options.wandb and not importlib.util.find_spec("wandb"):
        raise UsageError("--wandb: W&B is not installed; pip install 'editjax[wandb]', or leave it out")
    from editjax.adjust import parse_length

    return in_job(
        [sys.executable, "-P", "-m", "editjax", "train", *arguments, *["--debug"] * DEBUG.get()],
        options.out,
        lambda: _train(options, overrides, arguments),
        hang_after_s=parse_length(options.hang_after),
        join_within_s=parse_length(options.join_within),
    )


def in_job(
    command: Sequence[str],
    run_dir: Path,
    train: Callable[[], int],
    *,
    hang_after_s: float,
    join_within_s: float,
) -> int:
    """The exit code of `train`, called in the process that `command` starts, as one of its job.

    This process watches beside it; that one, which comes here too, trains.
    """
    from editjax import cluster, watchdog

    several = cluster.job() is not None
    pipe = os.environ.get(watchdog.WATCHED)
    if pipe is None and (several or hang_after_s):
        return watchdog.beside(command, run_dir, hang_after_s, several=several)
    watchdog.leave_with_it(pipe or "")
    if not several:
        return train()

    def train_joined() -> int:
        with cluster.joined(join_within_s):
            return train()

    code = ended(train_joined)
    if cluster.leave():
        return code
    sys.stdout.flush()
    os._exit(code)  # the others are at work: what Python does at its end would wait for them


def _train(options: TrainOptions, overrides: Sequence[str], arguments: Sequence[str]) -> int:
    from editjax.train import train_command

    train_command(
        options.config,
        options.data,
        options.out,
        overrides,
        _validate_on(options.validation),
        options.start_from,
        command=[word for word in arguments if word != "--takeover"],
        takeover=options.takeover,
        wandb=options.wandb,
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
