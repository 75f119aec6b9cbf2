"""Model bundles: what is exported is what is loaded, and nothing else is accepted."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editjax import export
from editjax.bundle import digest_of, dumped, flatten, read_config, unflatten
from editjax.checkpoint import Checkpoints
from editjax.config import to_json
from editjax.errors import CannotCreateError, DataError, InputOutputError, NoInputError, UsageError
from editjax.export import export_run, load_bundle
from editjax.family import family_of
from editjax.mel import MelSettings
from editjax.models.pointer import PointerSettings
from editjax.quantise import quantised, restored
from editjax.step import TrainConfig

SETTINGS = PointerSettings(
    n_mels=64, width=16, heads=1, landmark_layers=1, frame_width=16, frames_per_beat=4, frames_per_bar=16
)
ORIGIN = {
    "command": "editjax train configs/pointer_tiny.py --data shards --out run",
    "shards_sha256": "5a5a",
    "mel": to_json(MelSettings(n_mels=64)),
    "settings": {"styles": ["final"]},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with a best checkpoint that holds both parameters and their average."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: family_of(SETTINGS).init(SETTINGS, key), jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    average = jax.tree.map(lambda x: x + 1, params)
    config = to_json(TrainConfig(model=SETTINGS, ema_decay=0.9))
    notes = {
        "family": "pointer",
        "config": config,
        "origin": ORIGIN,
        "scores": {"score": 0.75, "iou": 0.8, "loop_recall": None},
    }
    with Checkpoints(folder / "best") as best:
        best.save(12, {"params": params, "ema_params": average, "step": jnp.int32(12)}, notes)
    return folder


@pytest.fixture(scope="module")
def exported(run_dir, tmp_path_factory):
    return export_run(run_dir, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy to break."""
    return shutil.copytree(exported, tmp_path / "tiny")


def average_of(run_dir):
    with Checkpoints(run_dir / "best", writable=False) as best:
        params = jax.eval_shape(lambda key: family_of(SETTINGS).init(SETTINGS, key), jax.random.key(0))
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params)
        return best.restore(12, {"ema_params": wanted})["ema_params"]


def rewrite(bundle, change):
    """Change config.json and renew its digest, as somebody with bad intentions would."""
    path = bundle / "config.json"
    config = {**json.loads(path.read_text()), **change}
    path.write_text(dumped({**config, "digest": digest_of(config)}) + "\n")


def test_the_average_is_exported_and_loaded_bit_for_bit(run_dir, exported):
    loaded, average = load_bundle(exported), average_of(run_dir)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(average)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, average)
    assert loaded.settings == SETTINGS
    assert loaded.mel == MelSettings(n_mels=64)
    assert loaded.path == exported


def test_half_precision_halves_the_file_and_rounds(run_dir, exported, tmp_path):
    small = export_run(run_dir, tmp_path / "small", dtype="float16")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (small, exported)]
    assert sizes[0] < 0.6 * sizes[1]
    params, average = load_bundle(small).params, average_of(run_dir)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3), params, average)


@pytest.fixture(scope="module")
def whole(run_dir, tmp_path_factory):
    """Exported in whole numbers."""
    return export_run(run_dir, tmp_path_factory.mktemp("models") / "whole", dtype="int8")


def test_whole_numbers_quarter_the_matrices_and_lose_half_a_step_at_most(run_dir, exported, whole):
    average, params = flatten(average_of(run_dir)), flatten(load_bundle(whole).params)
    assert params.keys() == average.keys() and {a.dtype for a in params.values()} == {np.dtype(np.float32)}
    table = read_config(whole)["tensors"]
    large = {name for name, array in average.items() if array.ndim > 1 and array.size >= 1024}
    assert {name for name, facts in table.items() if facts["dtype"] == "int8"} == large and large
    for name, array in average.items():
        if name not in large:
            np.testing.assert_array_equal(params[name], array)
            continue
        largest = np.abs(array).reshape(-1, array.shape[-1]).max(0)
        assert (np.abs(params[name] - array) <= 0.5001 * largest / 127).all()  # of its own channel
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (exported, whole)]
    assert sizes[0] - sizes[1] > 2.8 * sum(average[name].size for name in large)


def test_a_bundle_says_what_whole_numbers_lost(run_dir, whole, exported):
    before, after = (flatten(load_bundle(path).params) for path in (exported, whole))
    config = read_config(whole)
    names = [name for name, facts in config["tensors"].items() if facts["dtype"] == "int8"]
    square = sum(float(((after[n] - before[n]).astype(np.float64) ** 2).sum()) for n in names)
    power = sum(float((before[n].astype(np.float64) ** 2).sum()) for n in names)
    loss = config["quantised"]
    assert loss["rms_error"] == pytest.approx((square / power) ** 0.5, rel=1e-4) and loss["tensors"] == len(
        names
    )
    largest = max(np.abs(after[n] - before[n]).max() / np.abs(before[n]).max() for n in names)
    assert loss["largest_error"] == pytest.approx(largest, rel=1e-4)
    card = (whole / "README.md").read_text()
    assert f"{loss['rms_error']:.2%}" in card and f"`{loss['worst']['tensor']}`" in card
    assert (
        "quantised" not in read_config(exported)
        and "whole numbers" not in (exported / "README.md").read_text()
    )


def test_a_model_is_exported_anew(exported, whole, tmp_path):
    again = export_run(exported, tmp_path / "again", dtype="int8")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    config, first = read_config(again), read_config(exported)
    assert config["training"]["exported_from"]["sha256"] == first["sha256"]
    assert {name: config[name] for name in ("family", "model", "mel", "licence")} == {
        name: first[name] for name in ("family", "model", "mel", "licence")
    }
    same = export_run(exported, tmp_path / "same", licence="mine")
    assert (same / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    assert read_config(same)["licence"] == "mine"
    with pytest.raises(UsageError, match="a model has no 'last' checkpoint; leave --which out"):
        export_run(exported, tmp_path / "out", which="last")


def test_channels_of_zeros_stay_so_and_what_is_not_finite_is_refused():
    array = np.zeros((64, 32), np.float32)
    array[:, 1] = np.linspace(-1e-42, 1e-42, 64)
    array[:, 2] = np.linspace(-3e38, 3e38, 64)
    found = restored(quantised("a", array))["a"]
    assert not found[:, 0].any() and np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 2], array[:, 2], atol=3e38 / 253)
    with pytest.raises(DataError, match="parameter a holds values that are not finite"):
        quantised("a", array + np.inf)


def test_a_parameter_too_large_for_half_precision_is_named():
    with pytest.raises(DataError, match="parameter out/kernel holds values that float16 cannot"):
        export.cast("out/kernel", np.array([1e6], np.float32), "float16")


def test_the_same_run_gives_the_same_bytes(run_dir, exported, tmp_path):
    again = export_run(run_dir, tmp_path / "tiny")
    assert (again / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def test_nothing_in_a_bundle_is_code(exported):
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert (exported / "model.safetensors").read_bytes()[8:9] == b"{"


def test_the_card_says_how_the_model_came_about(exported):
    card = (exported / "README.md").read_text()
    for fact in (
        ORIGIN["command"],
        "12 steps",
        "5a5a",
        "| iou | 0.8 |",
        "| loop_recall | – |",
        "Apache-2.0",
        "editjax export",
    ):
        assert fact in card
    assert read_config(exported)["training"]["scores"]["iou"] == 0.8


def test_an_existing_folder_is_not_replaced_unasked(run_dir, bundle):
    (bundle / "README.md").write_text("mine")
    with pytest.raises(CannotCreateError, match="tiny: exists; choose another name or pass --overwrite"):
        export_run(run_dir, bundle)
    assert (bundle / "README.md").read_text() == "mine"
    export_run(run_dir, bundle, overwrite=True)
    assert (bundle / "README.md").read_text() != "mine"
    assert [path.name for path in bundle.parent.iterdir()] == ["tiny"]


def test_a_folder_that_is_no_model_is_never_replaced(run_dir, tmp_path):
    (tmp_path / "thesis").mkdir()
    for content in ("[" * 200_000, '{"chapters": 7}'):
        (tmp_path / "thesis" / "config.json").write_text(content)
        with pytest.raises(CannotCreateError, match="thesis: is not a model, so it is not replaced"):
            export_run(run_dir, tmp_path / "thesis", overwrite=True)
    with pytest.raises(CannotCreateError, match="is not a model"):
        export_run(run_dir, run_dir, overwrite=True)
    assert (tmp_path / "thesis" / "config.json").exists() and (run_dir / "best").exists()
    (tmp_path / "empty").mkdir()
    export_run(run_dir, tmp_path / "empty", overwrite=True)


def test_a_place_that_cannot_be_written_is_named_and_left_clean(run_dir, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputOutputError, match="file/model: cannot write the model there"):
        export_run(run_dir, tmp_path / "file" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_checkpoints_is_no_run(tmp_path, run_dir):
    with pytest.raises(NoInputError, match="no 'best' checkpoint here"):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(NoInputError, match="no 'last' checkpoint here"):
        export_run(run_dir, tmp_path / "out", which="last")
    with pytest.raises(DataError, match="cannot store parameters as int4: choose float32 or float16 or int8"):
        export_run(run_dir, tmp_path / "out", dtype="int4")


def test_a_damaged_checkpoint_is_not_exported(run_dir, tmp_path, capsys):
    folder = shutil.copytree(run_dir, tmp_path / "run")
    shutil.copytree(folder / "best", folder / "last")
    with Checkpoints(folder / "last") as last:
        last.save(13, {"step": jnp.int32(13)}, last.notes(12))
    (broken := folder / "last" / "13" / "_CHECKPOINT_METADATA").write_text("{}")
    model = export_run(folder, tmp_path / "model", which="last")
    assert read_config(model)["training"]["step"] == 12
    assert f"{broken}: size differs from the manifest: passed over" in capsys.readouterr().err
    (broken := folder / "best" / "12" / "ema_params" / "_METADATA").unlink()
    with pytest.raises(
        DataError, match=f"{broken}: missing, though the manifest lists it; none here is whole"
    ):
        export_run(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_names_that_ship_are_found_and_others_get_the_list(exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "final")
    monkeypatch.setattr("editjax.bundle.BUNDLED", tmp_path)
    assert load_bundle("final").path == tmp_path / "final"
    with pytest.raises(NoInputError, match=r"finall: no such model; .* a name that ships: final$"):
        load_bundle("finall")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_any_flipped_byte_is_noticed(bundle, name):
    whole = (bundle / name).read_bytes()
    for at in np.linspace(0, len(whole) - 2, 25, dtype=int):
        broken = bytearray(whole)
        broken[at] ^= 1
        (bundle / name).write_bytes(bytes(broken))
        with pytest.raises(DataError, match=re.escape(f"{bundle / name}: ")) as caught:
            load_bundle(bundle)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_or_cut_file_is_named(bundle, name):
    file = bundle / name
    for lost in 1, 6:
        file.write_bytes(file.read_bytes()[:-lost])
        with pytest.raises(DataError, match=name):
            load_bundle(bundle)
    file.unlink()
    with pytest.raises(NoInputError, match=f"{name}: cannot read it"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"a":' * 200_000, r'{"format": "editjax.model", "version": 1, "a": "\ud800"}']
)
def test_a_config_that_no_export_writes_is_one_line(bundle, content):
    (bundle / "config.json").write_text(content)
    with pytest.raises(DataError, match=r"config\.json: ") as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_a_config_as_deep_as_can_just_be_read_is_one_line(bundle):
    deepest = 2
    with contextlib.suppress(RecursionError):
        while json.loads("[" * deepest + "]" * deepest):
            deepest += 1
    for depth in range(deepest - 16, deepest + 2):
        deep = "[" * depth + "]" * depth
        (bundle / "config.json").write_text(f'{{"format": "editjax.model", "version": 1, "a": {deep}}}')
        with pytest.raises(DataError, match=r"config\.json: "):
            read_config(bundle)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "not an editjax model"),
        ({"version": 2}, "model version 2, this editjax reads 1: upgrade it"),
        ({"family": "oracle"}, "model family 'oracle' is unknown"),
        ({"model": {"widthh": 3}}, "model: unknown field 'widthh'"),
        ({"mel": {"hop": 1 << 20}}, "mel: mel hop 1048576 would skip"),
        ({"tensors": {}}, "tensors of 0 bytes in all"),
        ({"model": {**to_json(SETTINGS), "width": 32}}, "has shape .*, wanted .* another architecture"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(bundle, change, message):
    rewrite(bundle, change)
    with pytest.raises(DataError, match=message):
        load_bundle(bundle)


def test_loading_imports_nothing_that_only_training_needs(exported):
    heavy = ("orbax", "grain", "optax", "tyro", "tqdm")
    program = (
        "import sys; from editjax.export import load_bundle; load_bundle(sys.argv[1]);"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(exported)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


names = st.text("abc_0", min_size=1, max_size=4)
leaves = st.just(np.ones(2))
trees = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, min_size=1), max_leaves=8)


@given(st.dictionaries(names, trees, max_size=3))
def test_unflatten_undoes_flatten(tree):
    again = unflatten(flatten(tree))
    assert jax.tree.structure(again) == jax.tree.structure(tree)


def test_the_mean_of_two_models_with_other_weights_of_hints(run_dir, tmp_path):
    """As `final` was made."""
    models = [export_run(run_dir, tmp_path / name) for name in ("one", "other")]
    tensors = flatten(load_bundle(models[1]).params)
    shifted = {name: np.asarray(array) + 2.0 for name, array in tensors.items()}
    facts = {
        name: load_bundle(models[1]).config[name]
        for name in ("family", "model", "mel", "training", "licence")
    }
    export.write_bundle(models[1], shifted, facts, overwrite=True)
    script = str(Path(__file__).parents[1] / "launch" / "average.py")
    words = [*map(str, models), str(tmp_path / "mean"), "--advance", "2", "--avoid", "3"]
    subprocess.run([sys.executable, script, *words], check=True)
    mean = flatten(load_bundle(tmp_path / "mean").params)
    expected = {name: np.asarray(array) + 1.0 for name, array in tensors.items()}
    expected["decoder/trust"][0] *= 2
    for name in ("decoder/bar_avoid/bias", "decoder/bar_avoid/kernel"):
        expected[name][..., 0] *= 3
        expected[name][..., 2] *= 3
    assert mean.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(mean[name], array, rtol=1e-3, err_msg=name)
