"""Training: it learns, resumes bit for bit, refuses bad updates, stops in good order."""

import os
import resource
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny_family import FAMILY, TinyBatches, TinyData, TinySettings, tiny_config, validate

from editjax.checkpoint import Checkpoints
from editjax.cli import main
from editjax.config import load_config
from editjax.console.compared import HEARD
from editjax.console.heard import SHOWN
from editjax.console.knobs import NAMES
from editjax.data import Batch
from editjax.decode import decode, encode
from editjax.errors import CannotCreateError, DataError, InputOutputError, TryAgainError, UsageError
from editjax.export import load_bundle
from editjax.family import family_of
from editjax.feed import check_buckets
from editjax.journal import read_journal
from editjax.mel import STEM_FRAMES
from editjax.mesh import MeshSettings, make_mesh, place_batch
from editjax.mixes import MixBatch, MixSettings
from editjax.models.style import Asked
from editjax.ppo import Frozen
from editjax.sounds import SoundBatch, SoundSettings
from editjax.step import TrainConfig, TrainState, compiled_update, init_state, update
from editjax.train import _locked, train, train_command
from editjax.warm_start import begin_from

CONFIGS = Path(__file__).parents[1] / "configs"
advance = jax.jit(update, static_argnames=("config", "family"))


class Stopping(TinyBatches):
    """Sends the process a signal while batch number `at` is made, once."""

    def __init__(self, settings: TinyData, at: int, number: int) -> None:
        super().__init__(settings)
        self.at, self.number = at, number

    def __next__(self):
        if self.position == self.at:
            os.kill(os.getpid(), self.number)
        return super().__next__()


def run(config: TrainConfig, folder, batches=None, **options) -> TrainState:
    options = {"validate": validate, "family": FAMILY, **options}
    return train(config, batches or TinyBatches(config.data), folder, **options)


def steps_of(folder, name="loss") -> list[int]:
    return [row["step"] for row in read_journal(folder / "metrics.jsonl") if name in row]


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
    monkeypatch.setattr("editjax.journal.importlib.util.find_spec", lambda name: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of eight steps: its folder and its final state."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(tiny_config(), folder)


def test_a_planted_task_is_learned(tmp_path):
    config = tiny_config(steps=400, rate=0.05, validate_every=0, checkpoint_every=0)
    run(replace(config, model=TinySettings(width=32, dropout=0.0)), tmp_path, validate=None)
    losses = [row["loss"] for row in read_journal(tmp_path / "metrics.jsonl") if "loss" in row]
    assert np.mean(losses[-20:]) < 0.05 * np.mean(losses[:20])


def test_every_step_and_validation_is_in_the_journal_once(whole):
    folder, _ = whole
    assert steps_of(folder) == list(range(1, 9))
    assert steps_of(folder, "validation/score") == [4, 8]


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_stopped_and_resumed_is_the_uninterrupted_run_bit_for_bit(tmp_path, whole, stop):
    config = tiny_config()
    with pytest.raises(TryAgainError, match=f"stopped at step {stop + 1}, saved in .*same command"):
        run(config, tmp_path, Stopping(config.data, stop, signal.SIGTERM))
    batches = TinyBatches(config.data)
    assert_identical(run(config, tmp_path, batches), whole[1])
    assert batches.position == 8
    assert steps_of(tmp_path) == list(range(1, 9))
    with Checkpoints(tmp_path / "best", writable=False) as mine, Checkpoints(whole[0] / "best") as theirs:
        assert mine.latest_step == theirs.latest_step
        assert mine.notes(mine.latest_step) == theirs.notes(theirs.latest_step)


def test_an_interrupt_saves_and_a_second_one_does_not_wait(tmp_path):
    config = tiny_config()
    with pytest.raises(KeyboardInterrupt, match="stopped at step 4"):
        run(config, tmp_path, Stopping(config.data, 3, signal.SIGINT))
    with Checkpoints(tmp_path / "last") as last:
        assert last.latest_step == 4

    class Twice(Stopping):
        def __next__(self):
            os.kill(os.getpid(), self.number)
            os.kill(os.getpid(), self.number)
            return super().__next__()

    with pytest.raises(KeyboardInterrupt) as caught:
        run(config, tmp_path, Twice(config.data, 5, signal.SIGINT))
    assert not caught.value.args


def test_a_signal_cuts_validation_short_and_it_is_made_up_for(tmp_path, whole):
    finished = []

    def interrupted(params):
        if not finished:
            finished.append(False)
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("validation went on after the signal")
        return validate(params)

    with pytest.raises(TryAgainError, match="stopped at step 4"):
        run(tiny_config(), tmp_path, validate=interrupted)
    assert steps_of(tmp_path, "validation/score") == []
    assert_identical(run(tiny_config(), tmp_path, validate=interrupted), whole[1])
    assert steps_of(tmp_path, "validation/score") == [4, 8]


def test_handlers_are_put_back(tmp_path):
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.getsignal(number) for number in numbers]
    seen = []

    def look(params):
        seen.extend(signal.getsignal(number) for number in numbers)
        return validate(params)

    run(tiny_config(steps=4), tmp_path, validate=look)
    assert seen and not set(seen) & set(before)
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_finished_run_is_left_as_it_is(tmp_path, whole):
    folder, state = whole
    batches = TinyBatches(TinyData())
    assert_identical(run(tiny_config(), folder, batches), state)
    assert batches.position == 8
    assert steps_of(folder) == list(range(1, 9))


@pytest.mark.parametrize(
    "change, name",
    [
        ({"seed": 1}, "seed"),
        ({"model": TinySettings(width=9)}, r"model\.width"),
        ({"data": TinyData(batch=16)}, r"data\.batch"),
    ],
)
def test_going_on_with_other_settings_is_refused_by_name(whole, change, name):
    with pytest.raises(UsageError, match=f"begun with another {name};"):
        run(replace(tiny_config(), **change), whole[0])


def test_going_on_with_other_shards_is_refused(tmp_path):
    config = tiny_config(steps=3)
    run(config, tmp_path, origin={"shards_sha256": "a"})
    with pytest.raises(UsageError, match="begun with another shards"):
        run(config, tmp_path, origin={"shards_sha256": "b"})


def test_every_second_of_a_run_is_in_the_journal_and_every_step_has_its_rates(whole):
    rows = read_journal(whole[0] / "metrics.jsonl")
    last = [row for row in rows if "badput/start" in row][-1]
    assert last["step"] == 8 and last["badput/start"] == 1
    spent = ("init", "compile", "steps", "save", "validation", "data")
    assert all(last[f"badput/{part}"] > 0 for part in spent) and last["badput/redo"] == 0
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps if "compile_s" in row] == [1]
    assert all(row["flops_s"] > 0 and "mfu" not in row for row in steps)


def test_where_the_time_went_is_said_however_a_run_ends(tmp_path, capsys):
    config = tiny_config()
    with pytest.raises(TryAgainError):
        run(config, tmp_path, Stopping(config.data, 2, signal.SIGTERM))
    assert capsys.readouterr().err.count("time: ") == 1
    shutil.rmtree(tmp_path / "last")  # and with it its three steps
    run(config, tmp_path)
    said = capsys.readouterr().err
    assert "redo 0.0 %" not in said.split("time: ")[1].splitlines()[0]
    assert "time of all 2 starts: " in said
    rows = read_journal(tmp_path / "metrics.jsonl")
    assert [row["badput/start"] for row in rows if "badput/start" in row] == [1, 2, 2]
    run(config, tmp_path)
    assert "time: " not in capsys.readouterr().err


def test_a_run_begins_with_the_parameters_it_is_given(tmp_path, whole):
    given = jax.tree.map(lambda a: a + 1.0, whole[1].params)
    config = tiny_config(steps=3, rate=0.0)
    assert_identical(run(config, tmp_path, first_params=given).params, given)
    with pytest.raises(UsageError, match="begun with another start_from"):
        run(config, tmp_path, origin={"start_from_sha256": "b"})


def test_only_a_model_of_the_same_architecture_is_begun_from():
    config = load_config(CONFIGS / "pointer_tiny.py")
    params, began = begin_from("final", config)
    assert jax.tree.structure(params) and began["start_from"] == "final"
    wider = replace(config, model=replace(config.model, width=256))
    with pytest.raises(UsageError, match=r"final: has model\.width 128, but the config wants 256"):
        begin_from("final", wider)


def test_a_model_that_hears_no_stems_is_begun_from_with_a_part_that_says_nothing_yet():
    config = load_config(CONFIGS / "pointer_tiny.py")
    without, _ = begin_from("final", config)
    hears = replace(config, model=replace(config.model, stem_width=8))
    grown, _ = begin_from("final", hears)
    shapes = jax.eval_shape(lambda: family_of(hears.model).init(hears.model, jax.random.key(0)))
    assert jax.tree.map(lambda a: a.shape, grown) == jax.tree.map(lambda a: a.shape, shapes)
    stems = grown["encoder"].pop("stems")
    assert not stems["out"]["kernel"].any() and stems["listen"]["kernel"].any()
    assert_identical(grown, without)


@pytest.mark.parametrize("name", ["policy_tiny", "policy_ppo", "pointer_tuned"])
def test_what_goes_on_from_a_trained_model_does_not_begin_from_nothing(tmp_path, name):
    with pytest.raises(UsageError, match=f"{name}.py: goes on from a trained model; add --start-from"):
        train_command(CONFIGS / f"{name}.py", tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def shapes_of(path):
    """A config, and the shapes of its parameters and of its smallest batch, of two examples."""
    config = load_config(path)
    params = jax.eval_shape(lambda: family_of(config.model).init(config.model, jax.random.key(0)))
    match config.data:
        case SoundSettings():
            shapes = sounds_of(config.data, config.model.sample_rate_hz)
        case MixSettings():
            shapes = mixes_of(config.model)
        case _:
            shapes = recordings_of(config.model.n_mels, *config.data.buckets[0])
    return config, params, shapes, jax.eval_shape(lambda: jax.random.key(0))


def recordings_of(n_mels, frames, steps):
    layout = {"mel_BTF": (frames, n_mels), "phase_BT3": (frames, 3), "pointers_BN": (steps,)}
    layout |= {"structure_BT": (frames,), "kind_BT": (frames,), "present_BI": (2,)}
    layout |= {"stems_BIMF": (2, frames // STEM_FRAMES, n_mels)}
    layout |= {"edited_BTF": (frames, n_mels), "label_BT": (frames,), "beat_BT": (frames,)}
    kinds = dict.fromkeys(("mel_BTF", "phase_BT3", "target_B", "stems_BIMF", "edited_BTF"), jnp.float32)
    kinds |= {"present_BI": jnp.bool_}
    return Batch(*(array(kinds.get(name, jnp.int32), *layout.get(name, ())) for name in Batch._fields))


def sounds_of(settings, rate_hz):
    n_samples = round(settings.seconds * rate_hz)
    return SoundBatch(array(jnp.float32, settings.channels, n_samples), array(jnp.int32))


def mixes_of(settings):
    frames = settings.patch[0] * settings.patches_time
    return MixBatch(
        array(jnp.float16, frames, settings.picture.n_mels, 2 * SHOWN),
        array(jnp.float32, HEARD),
        array(jnp.float32, len(NAMES)),
        array(jnp.int32),
        array(jnp.int32),
        array(jnp.float16, 2, 0),
    )


def array(kind, *shape):
    return jax.ShapeDtypeStruct((2, *shape), kind)


def descends(path):
    config = load_config(path)
    return family_of(config.model, config.loss).learn is None


DESCENDING = [path for path in sorted(CONFIGS.glob("*.py")) if descends(path)]


@pytest.mark.parametrize("path", DESCENDING, ids=lambda path: path.stem)
def test_every_config_that_descends_has_a_loss_and_a_gradient(path):
    """Traced with the shapes of its smallest batch, under strict promotion of types and ranks."""
    config, params, batch, key = shapes_of(path)
    family, besides = family_of(config.model, config.loss), {}
    if family.frozen:
        frozen = load_bundle(family.frozen(config))
        besides = {"frozen": Frozen(frozen.settings, frozen.params)}

    def loss(params, batch, key):
        return family.loss(params, batch, key, config.model, config.loss, **besides)

    (value, _), gradient = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), params, batch, key)
    assert value.dtype == jnp.float32 and jax.tree.map(np.shape, gradient) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("pointer*.py")), ids=lambda path: path.stem)
def test_every_pointer_config_has_an_edit(path):
    config, params, batch, key = shapes_of(path)
    settings, steps = config.model, batch.pointers_BN.shape[1]
    asked = Asked(batch.target_B, jax.ShapeDtypeStruct((2, settings.style_width), jnp.float32))

    def edit(params, mel, frames, phase, asked, key):
        _, keys = encode(settings, params, mel, frames, phase, asked)
        return decode(settings, params, keys, asked.target_B, steps, jnp.float32(1), key)

    edited = jax.eval_shape(edit, params, batch.mel_BTF, batch.frames_B, batch.phase_BT3, asked, key)
    assert edited.pointers_BN.shape == (2, steps) and edited.log_p_BN.dtype == jnp.float32


def test_batches_that_the_devices_cannot_share_are_refused():
    config = load_config(CONFIGS / "pointer_tiny.py")
    with pytest.raises(UsageError, match=r"do not divide over 4 devices: add --data\.batch-multiple 4"):
        check_buckets(config)
    check_buckets(replace(config, data=replace(config.data, batch_multiple=4)))
    split = replace(config, mesh=MeshSettings(data=1, seq=4))
    check_buckets(split)
    with pytest.raises(
        UsageError, match=r"2064 frames and 1024 steps does not split over 4 .* multiples of 64 and 4"
    ):
        check_buckets(replace(split, data=replace(config.data, buckets=((2064, 1024),))))
    with pytest.raises(UsageError, match=r"windows of 192 frames and 63 steps reach over .* of 512 and 256"):
        check_buckets(replace(split, data=replace(config.data, buckets=((512, 256),))))
    policy = load_config(CONFIGS / "policy_tiny.py")
    with pytest.raises(UsageError, match="frames and 0 steps reach over"):
        check_buckets(replace(policy, mesh=split.mesh, data=replace(policy.data, buckets=((512, 256),))))


@pytest.mark.parametrize("parts", [2, 8])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(parts):
    config, key = tiny_config(), jax.random.key(0)
    config = replace(config, model=TinySettings(dropout=0.0))
    state, batch = init_state(config, FAMILY, key), next(TinyBatches(config.data))
    found = []
    for accumulate in (1, parts):
        one = replace(config, optim=replace(config.optim, accumulate=accumulate))
        found.append(advance(state, batch, key, config=one, family=FAMILY))
    (whole, figures), (averaged, others) = found
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), averaged.params, whole.params)
    for name in ("loss", "error", "gradient_norm"):
        np.testing.assert_allclose(others[name], figures[name], rtol=1e-5)


def test_parts_take_the_memory_of_one():
    config, key = tiny_config(), jax.random.key(0)
    config = replace(config, model=TinySettings(width=256), data=TinyData(batch=4096))
    state, batch = init_state(config, FAMILY, key), next(TinyBatches(config.data))

    def temporary_bytes(accumulate):
        one = replace(config, optim=replace(config.optim, accumulate=accumulate))
        program = advance.lower(state, batch, key, config=one, family=FAMILY).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8) < temporary_bytes(1) / 4


def test_parts_that_batches_do_not_have_are_refused():
    config = load_config(CONFIGS / "pointer_tiny.py")
    config = replace(
        config, data=replace(config.data, batch_multiple=4), optim=replace(config.optim, accumulate=4)
    )
    with pytest.raises(UsageError, match=r"over 4 devices in 4 parts: add --data\.batch-multiple 16"):
        check_buckets(config)
    check_buckets(replace(config, data=replace(config.data, batch_multiple=16)))
    tuned = load_config(CONFIGS / "policy_ppo.py")
    with pytest.raises(UsageError, match="makes minibatches of its own"):
        check_buckets(replace(tuned, optim=replace(tuned.optim, accumulate=2)))


def test_how_often_to_save_and_how_to_read_may_change(whole):
    run(tiny_config(checkpoint_every=3, validate_every=2, data=TinyData(threads=9)), whole[0])


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_a_bad_update_changes_nothing_but_the_counters(poison):
    config, key = tiny_config(), jax.random.key(0)
    state = init_state(config, FAMILY, key)
    batch = next(TinyBatches(config.data))
    good, _ = advance(state, batch, key, config=config, family=FAMILY)
    poisoned = jax.tree.map(np.copy, batch)  # JAX may still be reading the first
    poisoned.x_BD[3, 2] = poisoned.y_B[3] = poison
    bad, _ = advance(good, poisoned, key, config=config, family=FAMILY)
    assert_identical(bad[1:4], good[1:4])
    assert (int(bad.step), int(bad.skipped), int(bad.total_skipped)) == (2, 1, 1)
    again, _ = advance(bad, next(TinyBatches(config.data)), key, config=config, family=FAMILY)
    assert (int(again.step), int(again.skipped), int(again.total_skipped)) == (3, 0, 1)
    assert not np.array_equal(again.params["out"]["kernel"], good.params["out"]["kernel"])


def test_a_bad_gradient_of_a_finite_loss_changes_nothing_either():
    def loss(params, batch, key, settings, weights):
        return jnp.sqrt(0 * jnp.sum(params["out"]["kernel"])), {}

    config, key = tiny_config(), jax.random.key(0)
    state = init_state(config, FAMILY, key)
    bad, metrics = advance(
        state, next(TinyBatches(config.data)), key, config=config, family=FAMILY._replace(loss=loss)
    )
    assert float(metrics["loss"]) == 0
    assert int(bad.skipped) == 1
    assert_identical(bad[1:4], state[1:4])


def test_bad_batches_are_named_in_the_journal_and_passed_over(tmp_path):
    config = tiny_config(data=TinyData(poison_from=3, poison_until=5))
    state = run(config, tmp_path)
    bad = [row for row in read_journal(tmp_path / "metrics.jsonl") if "ids" in row]
    assert [(row["step"], row["ids"][0], row["loss"]) for row in bad] == [(4, 24, None), (5, 32, None)]
    assert int(state.total_skipped) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


class Poisoned(TinyBatches):
    """The batches of some steps hold NaN."""

    def __init__(self, settings: TinyData, steps: set[int]) -> None:
        super().__init__(settings)
        self.steps = steps

    def __next__(self):
        poisoned = self.position in self.steps
        batch = super().__next__()
        if poisoned:
            batch.x_BD[self.position % len(batch.x_BD), self.position % 4] = np.nan
        return batch


def by_hand(config: TrainConfig, steps: int, passed_over: set[int]) -> TrainState:
    """A run's state, had nobody looked at the batches that are passed over.

    By the program of a run: another of the same mathematics rounds as it likes.
    """
    key, mesh = jax.random.key(config.seed), make_mesh()
    layout = NamedSharding(mesh, P())
    state = jax.jit(init_state, static_argnums=(0, 1), out_shardings=layout)(config, FAMILY, key)
    advance, batches = compiled_update(config, FAMILY, layout), TinyBatches(config.data)
    for step in range(steps):
        batch = place_batch(next(batches), mesh)
        if step in passed_over:
            counters = {name: getattr(state, name) + 1 for name in ("step", "skipped", "total_skipped")}
            state = state._replace(**counters)
        else:
            state, _ = advance(state, batch, key, None)
    return state


def test_two_hundred_bad_batches_leave_no_trace(tmp_path):
    config = tiny_config(steps=400, validate_every=0, checkpoint_every=0, max_skipped=99)
    bad = set(np.random.default_rng(0).choice(400, 200, replace=False).tolist())
    state = run(config, tmp_path, Poisoned(config.data, bad))
    assert_identical(state, by_hand(config, 400, bad))
    assert int(state.total_skipped) == 200
    named = {row["step"] - 1: row["ids"] for row in read_journal(tmp_path / "metrics.jsonl") if "ids" in row}
    assert named == {step: list(range(8 * step, 8 * step + 8)) for step in bad}


def test_bad_updates_in_a_row_end_the_run_with_the_last_good_state_saved(tmp_path):
    config = tiny_config(data=TinyData(poison_from=3, poison_until=99))
    with pytest.raises(DataError, match=r"step 6: .* 3 times in a row, last for examples \[40, 41.*step 7, "):
        run(config, tmp_path)
    assert steps_of(tmp_path) == list(range(1, 8))
    good = by_hand(config, 7, {3, 4, 5, 6})
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), good.ema_params
    )
    with Checkpoints(tmp_path / "last") as last:
        assert last.newest_whole() == 7
        assert_identical(last.restore(7, {"ema_params": wanted})["ema_params"], good.ema_params)


def flip_a_bit(folder: Path) -> Path:
    """In the largest file of arrays."""
    path = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return path


def test_a_damaged_checkpoint_is_passed_over_and_its_steps_made_again_bit_for_bit(tmp_path, whole, capsys):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    broken = flip_a_bit(folder / "last" / "8"), flip_a_bit(folder / "best" / "8")
    batches = TinyBatches(TinyData())
    assert_identical(run(tiny_config(), folder, batches), whole[1])
    said = capsys.readouterr().err
    assert f"{broken[0]}: SHA-256 differs from the manifest: passed over" in said
    assert f"{broken[1]}: SHA-256 differs from the manifest: passed over" in said
    assert f"going on from step 4 of {folder}" in said
    assert batches.position == 8
    assert steps_of(folder) == list(range(1, 9))
    assert steps_of(folder, "validation/score") == [4, 8]
    for name in ("last", "best"):
        with Checkpoints(folder / name) as mine, Checkpoints(whole[0] / name) as theirs:
            assert mine.newest_whole() == 8
            assert mine.notes(8) == theirs.notes(8)


def test_a_damaged_best_checkpoint_is_made_again(tmp_path, whole, capsys):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    broken = flip_a_bit(folder / "best" / "8")
    run(tiny_config(), folder)
    assert f"{broken}: SHA-256 differs from the manifest: passed over" in capsys.readouterr().err
    with Checkpoints(folder / "best") as mine, Checkpoints(whole[0] / "best") as theirs:
        assert mine.newest_whole() == 8
        assert mine.notes(8) == theirs.notes(8)


def test_without_a_whole_checkpoint_nothing_is_begun_anew(tmp_path, whole):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    broken = [flip_a_bit(folder / "last" / step) for step in ("8", "4")]
    journal = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(DataError, match=f"{broken[0]}: .*; {broken[1]}: .* begin in a new folder"):
        run(tiny_config(), folder)
    assert all(path.exists() for path in broken)
    assert (folder / "metrics.jsonl").read_bytes() == journal


class Meanwhile(TinyBatches):
    """Something happens while batch number `at` is made."""

    def __init__(self, settings: TinyData, at: int, happens) -> None:
        super().__init__(settings)
        self.at, self.happens = at, happens

    def __next__(self):
        if self.position == self.at:
            self.happens()
        return super().__next__()


def test_a_second_trainer_is_refused_and_the_first_goes_on(tmp_path, whole):
    def second():
        with pytest.raises(CannotCreateError, match=rf"run: process {os.getpid()} on .* is training here"):
            run(tiny_config(), tmp_path / "run")

    state = run(tiny_config(), tmp_path / "run", Meanwhile(TinyData(), 6, second))
    assert_identical(state, whole[1])
    assert not list((tmp_path / "run").glob("*.lock"))


def test_a_trainer_whose_folder_was_taken_over_ends_without_writing(tmp_path, whole):
    def second():
        assert_identical(run(tiny_config(), tmp_path / "run", takeover=True), whole[1])

    with pytest.raises(CannotCreateError, match="run: moved, deleted or taken over while this trainer"):
        run(tiny_config(), tmp_path / "run", Meanwhile(TinyData(), 6, second))
    assert_identical(run(tiny_config(), tmp_path / "run"), whole[1])
    assert steps_of(tmp_path / "run") == list(range(1, 9))


def test_processes_wait_for_a_shared_folder_and_refuse_one_that_is_not(tmp_path, monkeypatch):
    """As on NFS, where a host that looked before the file was there does not see it at once."""
    first, asked = {"host": "a", "pid": 1}, []

    def read_record(path):
        asked.append(path)
        return first if len(asked) in (1, 4) else None

    monkeypatch.setattr("editjax.train.read_record", read_record)
    monkeypatch.setattr("editjax.train.time.sleep", lambda _: None)
    with _locked(tmp_path, takeover=False):
        assert len(asked) == 4
    monkeypatch.setattr("editjax.train.SHARED_S", 0.0)
    asked.clear()
    with pytest.raises(UsageError, match="process 0 sees nothing"), _locked(tmp_path, takeover=False):
        raise AssertionError("it trains")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_moved_away_is_not_made_again(tmp_path, whole):
    folder = tmp_path / "run"
    batches = Meanwhile(TinyData(), 5, lambda: folder.rename(tmp_path / "old"))
    with pytest.raises(CannotCreateError, match="run: moved, deleted or taken over while this trainer"):
        run(tiny_config(), folder, batches)
    assert not folder.exists() and batches.position == 6

    def moved_and_begun_anew():
        folder.rename(tmp_path / "older")
        run(tiny_config(), folder)

    with pytest.raises(CannotCreateError, match="run: moved, deleted or taken over while this trainer"):
        run(tiny_config(), folder, Meanwhile(TinyData(), 6, moved_and_begun_anew))
    for name in ("old", "older", "run"):
        assert_identical(run(tiny_config(), tmp_path / name), whole[1])


def test_the_command_line_takes_over_and_watches(monkeypatch):
    asked, watched = [], []
    monkeypatch.setattr("editjax.train.train_command", lambda *_, **options: asked.append(options))
    monkeypatch.setattr("editjax.watchdog.beside", lambda *it, several: watched.append((*it, several)) or 75)
    words = ["train", "config.py", "--data", "shards", "--out", "run", "--takeover"]
    assert main([*words, "--hang-after", "0"]) == 0  # nothing to watch for
    assert main([*words, "--hang-after", "2m"]) == main(words) == 75
    assert [it[1:] for it in watched] == [(Path("run"), 120.0, False), (Path("run"), 1800.0, False)]
    assert watched[1][0] == [sys.executable, "-P", "-m", "editjax", *words]
    assert main([words[0], "--debug", *words[1:]]) == 75
    assert watched.pop()[0] == [sys.executable, "-P", "-m", "editjax", *words, "--debug"]
    monkeypatch.setenv("EDITJAX_WATCHED", "")
    assert main(words) == 0
    assert len(watched) == 2
    assert all(one["takeover"] and "--takeover" not in one["command"] for one in asked) and len(asked) == 2


@pytest.mark.parametrize("error, code", [(TryAgainError("saved"), 75), (CannotCreateError("taken"), 73)])
def test_how_a_run_ends_is_its_exit_code(monkeypatch, error, code):
    def train_command(*_, **__):
        raise error

    monkeypatch.setattr("editjax.train.train_command", train_command)
    assert main(["train", "config.py", "--data", "shards", "--out", "run", "--hang-after", "0"]) == code


def test_a_full_disk_ends_the_run_and_costs_only_the_steps_since_the_last_save(tmp_path):
    config = replace(tiny_config(validate_every=0), model=TinySettings(width=1 << 12))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    try:
        with pytest.raises(InputOutputError, match=r"best/8: not written \(.*File too large"):
            run(config, tmp_path / "run", Meanwhile(config.data, 6, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with Checkpoints(tmp_path / "run" / "last") as last:
        assert last.newest_whole() == 4
    assert_identical(run(config, tmp_path / "run"), run(config, tmp_path / "whole"))


def test_a_read_only_folder_is_named_before_anything_is_trained(whole):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(whole[0], folder, dirs_exist_ok=True)
        os.chmod(folder, 0o555)
        user = os.geteuid()
        if user == 0:  # whom no mode stops
            os.seteuid(65534)
        try:
            with pytest.raises(CannotCreateError, match=f"{folder}: cannot be written .Permission denied"):
                run(tiny_config(), folder)
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o755)


def test_the_best_checkpoint_is_the_one_with_the_highest_score(tmp_path):
    scores = iter([0.1, float("nan"), 0.7, 0.3])
    config = tiny_config(validate_every=2)
    run(config, tmp_path, validate=lambda params: {"score": next(scores)})
    with Checkpoints(tmp_path / "best") as best:
        assert best.latest_step == 6
        assert best.notes(6)["scores"] == {"score": 0.7}


def test_a_run_ends_after_its_patience_and_is_left_as_it_is_or_goes_on_with_more(tmp_path):
    config = replace(tiny_config(steps=60), validate_every=5, patience=2)
    scores, seen = iter([0.1, 0.3, 0.2, 0.3, 0.9, 0.1, 0.1, 0.1]), []

    def validate(params):
        return {"score": seen.append(1) or next(scores)}

    assert int(run(config, tmp_path, validate=validate).step) == 20 and len(seen) == 4
    assert int(run(config, tmp_path, validate=validate).step) == 20 and len(seen) == 4
    assert int(run(replace(config, patience=3), tmp_path, validate=validate).step) == 40


def test_a_best_checkpoint_of_steps_to_be_made_again_is_forgotten(tmp_path):
    scores = iter([0.7, 1.0])
    run(tiny_config(), tmp_path, validate=lambda params: {"score": next(scores)})
    shutil.rmtree(tmp_path / "last" / "8")
    run(tiny_config(), tmp_path, validate=lambda params: {"score": 0.5})
    with Checkpoints(tmp_path / "best") as best:
        assert best.steps == [4]
        assert best.notes(4)["scores"] == {"score": 0.7}


def test_the_average_follows_the_parameters_and_is_what_is_validated(tmp_path):
    seen = []
    config = tiny_config(steps=3, validate_every=1)
    state = run(
        config, tmp_path, validate=lambda p: seen.append(np.array(p["out"]["kernel"])) or {"score": 0}
    )
    np.testing.assert_array_equal(seen[-1], state.ema_params["out"]["kernel"])
    assert not np.array_equal(seen[-1], state.params["out"]["kernel"])
    assert init_state(tiny_config(ema_decay=0.0), FAMILY, jax.random.key(0)).ema_params is None


@pytest.mark.parametrize("mesh", [MeshSettings(), MeshSettings(fsdp=4), MeshSettings(fsdp=2, tensor=2)])
def test_every_mesh_trains_alike(tmp_path, mesh):
    config = replace(tiny_config(validate_every=0), model=TinySettings(width=1 << 15, dropout=0.0))
    alone = init_state(config, FAMILY, jax.random.key(0))
    batches = TinyBatches(config.data)
    for _ in range(8):
        alone, _ = advance(alone, next(batches), jax.random.key(0), config=config, family=FAMILY)
    spread = run(replace(config, mesh=mesh), tmp_path, validate=None)
    kernel = spread.params["hidden"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // mesh.fsdp
    np.testing.assert_allclose(spread.params["out"]["kernel"], alone.params["out"]["kernel"], atol=1e-4)


def test_the_key_of_a_step_depends_on_the_step_alone(whole):
    config, key = tiny_config(), jax.random.key(config_seed := 0)
    assert config.seed == config_seed
    state = init_state(config, FAMILY, key)
    batch = next(TinyBatches(config.data))
    later = state._replace(step=jnp.int32(5))
    losses = [
        float(advance(s, batch, key, config=config, family=FAMILY)[1]["loss"]) for s in (state, state, later)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotCreateError, match="file/run: cannot make this folder"):
        run(tiny_config(), tmp_path / "file" / "run")
