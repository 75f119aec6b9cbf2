"""Training: it learns, resumes bit for bit, refuses bad updates, stops in good order."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_family import FAMILY, TinyBatches, TinyData, TinySettings, tiny_config, validate

from editjax.checkpoint import Checkpoints
from editjax.config import load_config
from editjax.data import Batch
from editjax.decode import decode, encode
from editjax.errors import CannotCreateError, DataError, TryAgainError, UsageError
from editjax.family import family_of
from editjax.journal import read_journal
from editjax.mel import STEM_FRAMES
from editjax.mesh import MeshSettings
from editjax.models.style import Asked
from editjax.train import TrainConfig, TrainState, _check_batches, begin_from, init_state, train, update

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


def shapes_of(path):
    """A config, and the shapes of its parameters and of its smallest batch."""
    config = load_config(path)
    settings, (frames, steps) = config.model, config.data.buckets[0]
    params = jax.eval_shape(lambda: family_of(settings).init(settings, jax.random.key(0)))
    layout = {"mel_BTF": (frames, settings.n_mels), "phase_BT3": (frames, 3), "pointers_BN": (steps,)}
    layout |= {"structure_BT": (frames,), "kind_BT": (frames,), "present_BI": (2,)}
    layout |= {"stems_BIMF": (2, frames // STEM_FRAMES, settings.n_mels)}
    layout |= {"edited_BTF": (frames, settings.n_mels), "label_BT": (frames,), "beat_BT": (frames,)}
    kinds = dict.fromkeys(("mel_BTF", "phase_BT3", "target_B", "stems_BIMF", "edited_BTF"), jnp.float32)
    kinds |= {"present_BI": jnp.bool_}

    def array(name):
        return jax.ShapeDtypeStruct((2, *layout.get(name, ())), kinds.get(name, jnp.int32))

    return config, params, Batch(*map(array, Batch._fields)), jax.eval_shape(lambda: jax.random.key(0))


def descends(path):
    config = load_config(path)
    return family_of(config.model, config.loss).learn is None


DESCENDING = [path for path in sorted(CONFIGS.glob("*.py")) if descends(path)]


@pytest.mark.parametrize("path", DESCENDING, ids=lambda path: path.stem)
def test_every_config_that_descends_has_a_loss_and_a_gradient(path):
    """Traced with the shapes of its smallest batch, under strict promotion of types and ranks."""
    config, params, batch, key = shapes_of(path)
    family = family_of(config.model, config.loss)
    if family.learn:
        state = jax.eval_shape(lambda params: init_state(config, family, key, params), params)

        def once(state, batch, key, frozen):
            return update(state, batch, key, config, family, frozen)

        after, _ = jax.eval_shape(once, state, batch, key, params)
        assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
        return

    def loss(params, batch, key):
        return family_of(config.model).loss(params, batch, key, config.model, config.loss)

    (value, _), gradient = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), params, batch, key)
    assert value.dtype == jnp.float32 and jax.tree.map(lambda a: a.shape, gradient) == jax.tree.map(
        lambda a: a.shape, params
    )


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
        _check_batches(config)
    _check_batches(replace(config, data=replace(config.data, batch_multiple=4)))


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


def test_bad_updates_in_a_row_end_the_run(tmp_path):
    config = tiny_config(data=TinyData(poison_from=3, poison_until=99))
    with pytest.raises(DataError, match=r"step 6: .* 3 times in a row, last for examples \[40, 41"):
        run(config, tmp_path)


def test_the_best_checkpoint_is_the_one_with_the_highest_score(tmp_path):
    scores = iter([0.1, float("nan"), 0.7, 0.3])
    config = tiny_config(validate_every=2)
    run(config, tmp_path, validate=lambda params: {"score": next(scores)})
    with Checkpoints(tmp_path / "best") as best:
        assert best.latest_step == 6
        assert best.notes(6)["scores"] == {"score": 0.7}


def test_a_best_checkpoint_of_steps_to_be_made_again_is_forgotten(tmp_path):
    run(tiny_config(), tmp_path, validate=lambda params: {"score": 1.0})
    for step in ("best/4", "last/8"):
        shutil.rmtree(tmp_path / step, ignore_errors=True)
    (tmp_path / "best").mkdir(exist_ok=True)
    shutil.copytree(tmp_path / "last" / "4", tmp_path / "best" / "8")
    run(tiny_config(), tmp_path, validate=lambda params: {"score": 0.5})
    with Checkpoints(tmp_path / "best") as best:
        assert best.notes(8)["scores"] == {"score": 0.5}


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
