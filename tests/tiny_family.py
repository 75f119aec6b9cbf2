"""A stand-in family and its batches: the smallest thing `train` can train, with planted answers.

Run as a script it trains in the folder given as its argument, for benchmarks/kills.py, and notes every batch
that it draws (process, step, SHA-256) in a file beside it.
"""

import hashlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editjax.family import Family
from editjax.optim import OptimSettings
from editjax.step import TrainConfig, TrainState
from editjax.train import train


@dataclass(frozen=True)
class TinySettings:
    width: int = 8
    dropout: float = 0.1


@dataclass(frozen=True)
class TinyData:
    batch: int = 8
    threads: int = 1
    poison_from: int = -1  # steps whose batches hold NaN
    poison_until: int = -1


@dataclass(frozen=True)
class TinyWeights:
    square: float = 1.0


class TinyBatch(NamedTuple):
    x_BD: np.ndarray
    y_B: np.ndarray
    ids_B: np.ndarray


class TinyBatches:
    """Batch n is a pure function of n: y is the sum of x."""

    def __init__(self, settings: Any, pause_s: float = 0.0, share: tuple[int, int] = (0, 1)) -> None:
        self.settings, self.pause_s, self.share, self.position = settings, pause_s, share, 0

    def __next__(self) -> TinyBatch:
        step = self.position
        self.position += 1
        time.sleep(self.pause_s)
        x_BD = np.random.default_rng(step).normal(size=(self.settings.batch, 4)).astype(np.float32)
        if self.settings.poison_from <= step < self.settings.poison_until:
            x_BD[0, 0] = np.nan
        ids_B = step * self.settings.batch + np.arange(self.settings.batch, dtype=np.int32)
        whole, (one, of) = TinyBatch(x_BD, x_BD.sum(-1), ids_B), self.share
        size = len(ids_B) // of
        return TinyBatch(*(array[one * size : (one + 1) * size] for array in whole))

    def get_state(self) -> dict[str, int]:
        return {"next": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["next"]


class NotedBatches(TinyBatches):
    """The same; what a process draws it has noted, however it ends."""

    def __init__(self, settings: Any, log: Path, pause_s: float) -> None:
        super().__init__(settings, pause_s)
        self._log = log.open("ab", buffering=0)

    def __next__(self) -> TinyBatch:
        step, batch = self.position, super().__next__()
        self._log.write(f"{os.getpid()} {step} {digest(batch)}\n".encode())
        return batch


def init(settings, key):
    first, second = jax.random.split(key)
    hidden = jax.random.normal(first, (4, settings.width))
    return {
        "hidden": {"kernel": hidden, "bias": jnp.zeros(settings.width)},
        "out": {"kernel": jax.random.normal(second, (settings.width, 1)) * 0.1},
    }


def loss(params, batch, key, settings, weights):
    hidden_BD = jnp.tanh(batch.x_BD @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    hidden_BD *= jax.random.bernoulli(key, 1 - settings.dropout, hidden_BD.shape).astype(jnp.float32)
    error_B = (hidden_BD @ params["out"]["kernel"])[:, 0] - batch.y_B
    return weights.square * jnp.mean(error_B**2), {"error": jnp.mean(jnp.abs(error_B))}


def validate(params):
    """Score on a batch no step ever sees."""
    batches = TinyBatches(TinyData(batch=64))
    batches.position = 10_000
    batch = next(batches)
    hidden, out = params["hidden"], params["out"]
    hidden_BD = np.tanh(batch.x_BD @ np.array(hidden["kernel"]) + np.array(hidden["bias"]))
    return {"score": -float(np.mean(((hidden_BD @ np.array(out["kernel"]))[:, 0] - batch.y_B) ** 2))}


FAMILY = Family("tiny", init, loss)


def tiny_config(steps: int = 8, rate: float = 1e-2, **fields: Any) -> TrainConfig:
    """Settings of the stand-in family in the places of those of the real ones."""
    settings: dict[str, Any] = {
        "model": TinySettings(),
        "loss": TinyWeights(),
        "data": TinyData(),
        "optim": OptimSettings(learning_rate=rate, warmup_steps=2, steps=steps),
        "ema_decay": 0.9,
        "validate_every": 4,
        "checkpoint_every": 4,
        "max_skipped": 3,
    }
    return TrainConfig(**settings | fields)


def digest(arrays: TrainState | TinyBatch) -> str:
    """SHA-256 over every array of a state or a batch, in order."""
    leaves = jax.tree.leaves(arrays)
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


if __name__ == "__main__":
    config, folder = tiny_config(steps=40, checkpoint_every=3, validate_every=7), Path(sys.argv[1])
    batches = NotedBatches(config.data, folder.with_suffix(".batches"), pause_s=0.02)
    print(digest(train(config, batches, folder, validate=validate, family=FAMILY)))
