"""Settings: from files, from the command line, to JSON and back; every committed config builds."""

import functools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editjax.config import first_difference, from_json, load_config, override, to_json
from editjax.console.compared import HEARD
from editjax.console.heard import SHOWN
from editjax.console.knobs import KNOBS
from editjax.data import Batch
from editjax.errors import DataError, NoInputError, UsageError
from editjax.family import family_of
from editjax.mel import STEM_FRAMES, MelSettings
from editjax.mixes import MixBatch, MixSettings
from editjax.models.reconstruct import ReconstructSettings
from editjax.models.window import WindowSettings
from editjax.sounds import SoundBatch, SoundSettings
from editjax.step import TrainConfig, init_state, update
from editjax.tune import TuneSettings

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
CODEC = next(path for path in CONFIGS if path.stem == "codec_tiny")
JUDGE = ReconstructSettings(width=8, heads=2, label_width=4, encoder_layers=1, decoder_layers=1)


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    pairs: tuple[tuple[int, int], ...] = ((1, 2),)
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None
    name: str = "x"
    on: bool = True
    count: int = 3


def empty_batch(frames: int, steps: int, size: int = 2) -> Batch:
    """Shapes of a batch, for tracing."""
    floats, ints = functools.partial(np.zeros, dtype=np.float32), functools.partial(np.zeros, dtype=np.int32)
    return Batch(
        floats((size, frames, 128)),
        ints(size),
        floats((size, frames, 3)),
        ints((size, steps)),
        ints(size),
        ints((size, frames)),
        ints((size, frames)),
        floats(size),
        ints(size),
        ints(size),
        floats((size, 2, frames // STEM_FRAMES, 128)),
        np.ones((size, 2), bool),
        floats((size, frames, 128)),
        ints((size, frames)),
        ints((size, frames)),
    )


def batch_of(config: TrainConfig) -> Batch | SoundBatch | MixBatch:
    """Shapes of the batches that a config trains on."""
    if isinstance(config.data, MixSettings):
        size, seen = config.data.batch_size, config.model.picture
        return MixBatch(
            np.zeros((size, seen.frames_in(4 * seen.rate_hz), seen.n_mels, 2 * SHOWN), np.float16),
            np.zeros((size, HEARD), np.float32),
            np.zeros((size, len(KNOBS)), np.float32),
            np.zeros(size, np.int32),
            np.zeros(size, np.int32),
            np.zeros((size, 2, 0), np.float16),
        )
    if isinstance(config.data, SoundSettings):
        size, samples = config.data.batch_size, round(config.data.seconds * 24_000)
        return SoundBatch(
            np.zeros((size, config.data.channels, samples), np.float32), np.zeros(size, np.int32)
        )
    frames, steps = config.data.buckets[0]
    return empty_batch(frames, steps, config.data.batch_size(frames))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_and_steps_under_eval_shape(path):
    config = load_config(path)
    family = family_of(config.model, config.loss)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: init_state(config, family, key), key)
    batch = batch_of(config)
    other = config.model if isinstance(config.loss, TuneSettings) else JUDGE
    other = load_config(CODEC).model if isinstance(config.model, WindowSettings) else other
    judge = jax.eval_shape(lambda key: family_of(other).init(other, key), key) if family.frozen else None
    step = functools.partial(update, config=config, family=family, frozen_settings=other)
    stepped, metrics = jax.eval_shape(step, state, batch, key, judge)
    assert jax.tree.map(jnp.shape, stepped) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_survives_json_and_says_how_to_run_it(path):
    config = load_config(path)
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config
    assert f"editjax train configs/{path.name} --data" in path.read_text()


inners = st.builds(
    Inner,
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.tuples(st.integers(), st.integers())).map(tuple),
    st.sampled_from(["a", "b"]),
)


@given(st.builds(Outer, inners, st.none() | inners, st.text(), st.booleans(), st.integers()))
def test_json_gives_back_what_it_was_given(settings):
    assert from_json(Outer, json.loads(json.dumps(to_json(settings)))) == settings


@pytest.mark.parametrize(
    "change, message",
    [
        ({"colour": 1}, "settings: unknown field 'colour'"),
        ({"inner": {"ratte": 1}}, r"settings\.inner: unknown field 'ratte'"),
        ({"inner": {"rate": "fast"}}, r"settings\.inner\.rate: 'fast' is not a float"),
        ({"inner": {"pairs": [[1]]}}, r"settings\.inner\.pairs: \[1\] is not"),
        ({"inner": {"kind": "c"}}, r"settings\.inner\.kind: 'c' is not"),
        ({"inner": 3}, r"settings\.inner: expected an object"),
        ({"count": True}, r"settings\.count: True is not a int"),
        ({"count": 1.5}, r"settings\.count: 1\.5 is not a int"),
        ({"on": 1}, r"settings\.on: 1 is not a bool"),
    ],
)
def test_json_that_does_not_fit_is_refused_by_name(change, message):
    with pytest.raises(DataError, match=message):
        from_json(Outer, {**to_json(Outer()), **change})


def test_a_missing_field_without_default_is_refused_by_name():
    @dataclass(frozen=True)
    class Needed:
        width: int

    with pytest.raises(DataError, match="field 'width' is missing"):
        from_json(Needed, {})


def test_what_the_settings_themselves_refuse_is_bad_data():
    with pytest.raises(DataError, match="mel: mel hop 4096 would skip samples"):
        from_json(MelSettings, {"hop": 4096}, "mel")


def test_the_first_difference_is_named_by_its_path():
    a, b = to_json(Outer()), to_json(Outer(inner=Inner(rate=0.25)))
    assert first_difference(a, a) is None
    assert first_difference(a, b) == "inner.rate"
    assert first_difference(a, {**a, "new": 1}) == "new"


@pytest.mark.parametrize(
    "arguments, change",
    [
        ([], {}),
        (["--count", "7"], {"count": 7}),
        (["--inner.rate", "2.5", "--name", "y"], {"inner": Inner(rate=2.5), "name": "y"}),
        (["--inner.pairs", "1", "2", "3", "4"], {"inner": Inner(pairs=((1, 2), (3, 4)))}),
    ],
)
def test_the_command_line_changes_fields(arguments, change):
    assert override(Outer(), arguments) == replace(Outer(), **change)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--inner.ratte", "2"], "unknown option --inner.ratte; did you mean --inner.rate?"),
        (["--zzzz", "2"], "unknown option --zzzz; editjax train CONFIG --help lists them"),
        (["--count", "many"], "Error parsing --count: invalid literal for int() with base 10: 'many'"),
        (["--count"], "Missing value for argument '--count'. Expected 1 values."),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(UsageError) as caught:
        override(Outer(), arguments)
    assert str(caught.value) == message


def test_a_config_that_is_missing_or_is_none_says_so(tmp_path):
    with pytest.raises(NoInputError, match=r"none\.py: no such config"):
        load_config(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("width = 3\n")
    with pytest.raises(DataError, match=r"empty\.py: defines no config\(\) function"):
        load_config(tmp_path / "empty.py")
    (tmp_path / "wrong.py").write_text("def config():\n    raise ValueError('width must be even')\n")
    with pytest.raises(DataError, match=r"wrong\.py: width must be even"):
        load_config(tmp_path / "wrong.py")
