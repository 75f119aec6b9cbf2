"""The best settings of a config, by many short runs (Optuna), of which those that fall behind are cut short.

    python launch/search.py CONFIG --data FOLDER --out STUDY [--trials 50] [--steps N] [TRAIN OPTIONS]

What is varied is in SPACES. Every trial is a run of the one training loop in STUDY/trials/NUMBER, validated
as runs are, and pruned where it is below the median of the others at the same step (Golovin et al. 2017);
the first ten are drawn at random, the others by a tree-structured Parzen estimator (Bergstra et al. 2011).

A second call goes on; so do several at once, on one machine or on several that share STUDY: `--trials` counts
those of all. The run of a process that was killed is gone on with by whoever comes next. STUDY/best.json,
and the last line printed, have the best settings as options of `editjax train`. With `--steps` trials are so
long, and their schedule too; they are validated at least four times. `pip install 'editjax[search]'`.
"""

import argparse
import contextlib
import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

try:
    import optuna
except ImportError:
    sys.exit("editjax: Optuna is not installed; pip install 'editjax[search]'")
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from editjax.array_records import MANIFEST, write_json
from editjax.checkpoint import Checkpoints
from editjax.cli import complain
from editjax.config import first_difference, load_config, option_names, override, to_json
from editjax.errors import CannotCreateError, DataError, EditjaxError, UsageError, first_line
from editjax.evaluate import make_validate
from editjax.family import family_of
from editjax.feed import feed_of
from editjax.files import sha256_of
from editjax.lock import RunLock
from editjax.step import TrainConfig
from editjax.train import train

# The documents' space (mixing_plan.md): learning rate 1e-5 to 1e-3, to which 3e-3 is added as configs begin
# with 1e-3; batches of 16, 32, 64; dropout to 0.5; 3 to 6 layers; 128, 256 or 512 wide in the end; Adam is
# AdamW without decay, RMSprop is Adam with b1 = 0.
#
#   field                      scale     from   to, or one of
ANY = {
    "optim.learning_rate": ("log", 1e-5, 3e-3),
    "optim.weight_decay": ("one of", 0.0, 0.01, 0.1),
    "optim.b1": ("one of", 0.9, 0.0),
}
REGRESSOR = {
    **ANY,
    "data.batch_size": ("one of", 16, 32, 64),
    "model.dropout": ("even", 0.0, 0.5),
}
SPACES: dict[str, dict[str, tuple]] = {
    "any": ANY,
    "mixer baseline": {**REGRESSOR, "model.width": ("one of", 32, 64, 128)},
    "mixer enhanced": {
        **REGRESSOR,
        "model.width": ("one of", 32, 64, 128),
        "model.n_layers": ("one of", 3, 4, 5, 6),
    },
    "mixer ast": {
        **REGRESSOR,
        "model.width": ("one of", 128, 256, 512),
        "model.n_layers": ("one of", 3, 4, 5, 6),
    },
}
"""What is varied, by the family and, where it has kinds, the kind of its model; "any" for all others."""

RUN = "run"
MOST_TRIES = 3
PATIENCE_S = 120.0
FEWEST_VALIDATIONS = 4


def space_of(config: TrainConfig) -> dict[str, Any]:
    """What is varied of a config, as Optuna has it."""
    kind = f"{family_of(config.model, config.loss).name} {getattr(config.model, 'kind', '')}".strip()
    space: dict[str, Any] = {}
    for name, (scale, *values) in SPACES.get(kind, ANY).items():
        if scale == "one of":
            space[name] = CategoricalDistribution(values)
        else:
            space[name] = FloatDistribution(*values, log=scale == "log")
    return space


def words_of(params: dict[str, Any]) -> list[str]:
    """Settings as options of `editjax train`."""
    return [
        word for name, value in params.items() for word in (f"--{name.replace('_', '-')}", f"{value:.6g}")
    ]


def shortened(config: TrainConfig, steps: int | None) -> TrainConfig:
    """The config of trials: so long, with a warm-up and validations that fit in."""
    steps = config.optim.steps if steps is None else steps
    if steps < FEWEST_VALIDATIONS:
        raise UsageError(f"--steps {steps}: give at least {FEWEST_VALIDATIONS}")
    warmup, every = config.optim.warmup_steps, config.validate_every or steps
    return override(
        config,
        [
            *("--optim.steps", str(steps)),
            *("--optim.warmup-steps", str(min(warmup, steps // 10))),
            *("--validate-every", str(min(every, steps // FEWEST_VALIDATIONS))),
        ],
    )


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Held by one process at a time; the others wait."""
    until = time.monotonic() + PATIENCE_S
    while True:
        lock = RunLock(out)
        try:
            lock.__enter__()
            break
        except CannotCreateError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.__exit__()


def opened(out: Path, about: dict[str, Any]) -> optuna.Study:
    """The study in a folder, begun now or before with the same settings; UsageError for one with others."""
    backend = optuna.storages.journal.JournalFileBackend(str(out / "journal.log"))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="search",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )
    if "about" not in study.user_attrs:
        study.set_user_attr("about", about)
    elif name := first_difference(study.user_attrs["about"], about):
        raise UsageError(f"{out}: begun with another {name}; use that or a new folder")
    return study


def folder_of(out: Path, trial: Any) -> Path:
    """Where a trial runs: it may go on with the run of one that was killed."""
    return out / "trials" / str(trial.user_attrs.get("folder", trial.number))


def next_trial(
    study: optuna.Study, space: dict[str, Any], out: Path, trials: int, seed: int
) -> tuple[optuna.Trial, RunLock] | None:
    """A trial that this process runs, and the lock that says so; None when there are enough."""
    with alone(out):
        bury(study, out)
        states = study.get_trials(deepcopy=False)
        if sum(trial.state != TrialState.WAITING for trial in counted(states)) >= trials:
            return None
        drawn = np.random.default_rng([seed, len(states)]).integers(2**31)
        study.sampler = optuna.samplers.TPESampler(seed=int(drawn))  # alike, however often it was stopped
        trial = study.ask(space)
        folder = folder_of(out, trial)
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
        lock.__enter__()
        return trial, lock


def bury(study: optuna.Study, out: Path) -> None:
    """Ends trials whose process is gone, and asks for the same again, a few times."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        folder = folder_of(out, trial)
        if folder.is_dir():
            try:
                with RunLock(folder):
                    pass
            except CannotCreateError:
                continue
        tries = trial.user_attrs.get("tries", 1)
        study.tell(trial.number, state=TrialState.FAIL)
        if tries < MOST_TRIES:
            again = {"again": trial.number, "folder": folder.name, "tries": tries + 1}
            study.enqueue_trial(trial.params, user_attrs=again)


def counted(trials: list[Any]) -> list[Any]:
    """Trials without those that were killed and are made again."""
    again = {trial.user_attrs.get("again") for trial in trials}
    return [trial for trial in trials if trial.number not in again]


def run(trial: optuna.Trial, config: TrainConfig, data: Path, folder: Path) -> float:
    """The best score of one run. Raises TrialPruned where it falls behind."""
    config = override(config, words_of(trial.params))
    feed = feed_of(config, data)
    feed.check(config, "the config")
    validate, steps = make_validate(config, data), validations(config, folder / RUN)

    def reporting(params: Any) -> dict[str, float]:
        figures = validate(params)
        if not math.isfinite(figures["score"]):
            raise DataError(f"{data}: holds out too little to score on")
        trial.report(figures["score"], next(steps))
        if trial.should_prune():
            raise optuna.TrialPruned
        return figures

    with contextlib.closing(feed.batches(data, config.data)) as stream:
        train(config, stream, folder / RUN, validate=reporting)
    with Checkpoints(folder / RUN / "best", writable=False) as best:
        return best.notes(best.latest_step)["scores"]["score"]


def validations(config: TrainConfig, run_dir: Path) -> Iterator[int]:
    """The steps that are validated, from where a run that was killed goes on."""
    last, every = config.optim.steps, config.validate_every
    begun = 0
    if (run_dir / "last").is_dir():
        with Checkpoints(run_dir / "last", writable=False) as checkpoints:
            if step := checkpoints.newest_whole():
                begun = step if checkpoints.notes(step)["scores"] else step - 1
    for step in range(begun + 1, last + 1):
        if step % every == 0 or step == last:
            yield step


def told(study: optuna.Study, out: Path, command: Callable[[dict[str, Any]], str]) -> dict[str, Any] | None:
    """Writes best.json anew, and returns it; None while no trial was completed."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not done:
        return None
    best = max(done, key=lambda trial: trial.value)
    states = counted(study.get_trials(deepcopy=False))
    found = {
        "score": best.value,
        "params": best.params,
        "options": words_of(best.params),
        "command": command(best.params),
        "trial": best.number,
        "run": str(folder_of(out, best).relative_to(out) / RUN),
        "trials": dict(sorted(Counter(trial.state.name.lower() for trial in states).items())),
    }
    write_json(out / "best.json", found)
    return found


def search(chosen: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """Runs trials until there are enough, and returns what best.json says."""
    config = shortened(override(load_config(chosen.config), overrides), chosen.steps)
    space, out = space_of(config), chosen.out
    if missing := {name.replace("_", "-") for name in space} - set(option_names(config)):
        raise DataError(f"{chosen.config}: has no {', '.join(sorted(missing))} to search over")
    feed_of(config, chosen.data).check(config, str(chosen.config))
    about = {
        "config": to_json(config),
        "data_sha256": sha256_of(chosen.data / MANIFEST),
        "space": {name: repr(values) for name, values in space.items()},
        "seed": chosen.seed,
    }

    def command(params: dict[str, Any]) -> str:
        words = ["editjax", "train", str(chosen.config), "--data", str(chosen.data), "--out", "RUN"]
        return shlex.join([*words, *overrides, *words_of(params)])

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(f"{out}: cannot make this folder ({error.strerror})") from error
    with alone(out):
        study = opened(out, json.loads(json.dumps(about)))
    while found := next_trial(study, space, out, chosen.trials, chosen.seed):
        trial, lock = found
        try:
            ended = finished(study, trial, lambda t: run(t, config, chosen.data, folder_of(out, t)))
        finally:
            lock.__exit__()
        print(f"trial {trial.number}: {ended}; {' '.join(words_of(trial.params))}", flush=True)
        with alone(out):
            told(study, out, command)
    with alone(out):
        best = told(study, out, command)
    if best is None:
        raise DataError(f"{out}: no trial of {len(study.trials)} was completed; see STUDY/trials")
    return best


def finished(study: optuna.Study, trial: optuna.Trial, score_of: Callable[[optuna.Trial], float]) -> str:
    """Runs a trial, tells the study, and says how it ended. An interrupted one is left to be gone on with."""
    try:
        score = score_of(trial)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        return "pruned"
    except DataError as error:  # updates that stay non-finite
        trial.set_user_attr("failed", first_line(error))
        study.tell(trial, state=TrialState.FAIL)
        return f"failed ({first_line(error)})"
    study.tell(trial, score)
    return f"score {score:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    chosen, overrides = parser.parse_known_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    best = search(chosen, overrides)
    print(f"best of {best['trials']}: score {best['score']:.4f}, {chosen.out / best['run']}")
    print(best["command"])


if __name__ == "__main__":
    try:
        main()
    except EditjaxError as error:
        sys.exit(complain(error))
