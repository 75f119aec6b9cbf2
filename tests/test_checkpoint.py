"""Checkpoints: whole or absent, exact, independent of the layout they were saved with."""

import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from editjax.checkpoint import Checkpoints, abstract
from editjax.errors import CannotCreateError, DataError, InputOutputError
from editjax.mesh import MeshSettings, make_mesh, state_shardings
from editjax.optim import OptimSettings, make_optimizer


def make_parts(key):
    params = {"layer": {"kernel": jax.random.normal(key, (8, 16)), "bias": jnp.zeros(16)}}
    return {
        "params": params,
        "opt_state": make_optimizer(OptimSettings()).init(params),
        "step": jnp.asarray(3, jnp.int32),
    }


def shapes_on(mesh, rules=()):
    shapes = jax.eval_shape(make_parts, jax.random.key(0))
    return abstract(shapes, state_shardings(shapes, mesh, rules))


@pytest.fixture
def parts():
    return jax.jit(make_parts)(jax.random.key(1))


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_restored_is_what_was_saved(tmp_path, parts):
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step is None
        checkpoints.save(3, parts, {"data": {"next": 3}, "scores": None})
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step == 3
        assert checkpoints.notes(3) == {"data": {"next": 3}, "scores": None}
        assert_identical(checkpoints.restore(3, shapes_on(make_mesh())), parts)


def test_a_part_is_restored_without_the_others(tmp_path, parts):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, parts, {})
        restored = checkpoints.restore(1, {"params": shapes_on(make_mesh())["params"]})
    assert_identical(restored, {"params": parts["params"]})


def test_any_layout_restores_on_any_other(tmp_path, parts, monkeypatch):
    monkeypatch.setattr("editjax.mesh.SMALLEST_SPLIT", 1)
    rules = [("kernel", P("fsdp", "tensor"))]
    split = shapes_on(make_mesh(MeshSettings(data=1, fsdp=2, tensor=2)), rules)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, parts, {})
        spread = checkpoints.restore(1, split)
        assert spread["params"]["layer"]["kernel"].sharding.spec == P("fsdp", "tensor")
        checkpoints.save(2, spread, {})
        back = checkpoints.restore(2, shapes_on(make_mesh(devices=jax.devices()[:1])))
    assert_identical(back, parts)


def test_the_newest_and_every_nth_are_kept(tmp_path, parts):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, {"step": parts["step"]}, {})
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [4, 6, 7]


def test_later_checkpoints_are_dropped(tmp_path, parts):
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"step": parts["step"]}, {})
        checkpoints.drop_after(1)
        assert checkpoints.latest_step == 1


@pytest.mark.parametrize("left", ["_CHECKPOINT_METADATA", "MANIFEST.json", "both"])
def test_a_checkpoint_without_its_description_is_none(tmp_path, parts, capsys, left):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"step": parts["step"]}, {"score": 1})
        checkpoints.save(2, {"step": parts["step"]}, {"score": 2})
    for name in ("_CHECKPOINT_METADATA", "MANIFEST.json"):
        if left in (name, "both"):
            (tmp_path / "2" / name).unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest_whole() == 1
        assert re.search(r"/2.*: passed over", capsys.readouterr().err)
        assert checkpoints.notes(1) == {"score": 1}
        checkpoints.drop_after(1)
        checkpoints.save(3, {"step": parts["step"]}, {"score": 3})
        assert checkpoints.steps == [1, 3]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """Checkpoints 4 and 8 of a module's life; copied before they are broken."""
    folder = tmp_path_factory.mktemp("sealed")
    parts = jax.jit(make_parts)(jax.random.key(1))
    with Checkpoints(folder) as checkpoints:
        for step in (4, 8):
            checkpoints.save(step, {**parts, "step": jnp.int32(step)}, {"data": {"next": step}})
    return folder


def test_every_flipped_bit_is_found_and_the_one_before_restored(tmp_path, sealed, capsys):
    rng = np.random.default_rng(0)
    folder = shutil.copytree(sealed, tmp_path / "run")
    for path in sorted(path for path in (folder / "8").rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for at in rng.integers(0, 8 * len(whole), 8 if whole else 0):
            broken = bytearray(whole)
            broken[at // 8] ^= 1 << at % 8
            path.write_bytes(broken)
            with Checkpoints(folder, writable=False) as checkpoints:
                assert checkpoints.newest_whole() == 4
                assert capsys.readouterr().err.startswith(f"{path}: ")
                with pytest.raises(DataError, match=re.escape(f"{path}: ")):
                    checkpoints.restore(8, {"params": shapes_on(make_mesh())["params"]})
                with pytest.raises(DataError, match=re.escape(f"{path}: ")):
                    checkpoints.notes(8)
        path.write_bytes(whole)
    with Checkpoints(folder, writable=False) as checkpoints:
        assert checkpoints.newest_whole() == 8
        assert checkpoints.notes(8) == {"data": {"next": 8}}


def cut(path, folder):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path, folder):
    path.write_bytes(b"")


def remove(path, folder):
    path.unlink()


def swap(path, folder):
    """With the file of the same kind in the checkpoint before, though its content were the same."""
    other = folder / "4" / path.relative_to(folder / "8")
    shutil.copy(other if other.exists() else folder / "4" / "MANIFEST.json", path)


@pytest.mark.parametrize("fault", [cut, empty, remove, swap])
def test_every_file_that_is_cut_missing_or_exchanged_is_found(tmp_path, sealed, capsys, fault):
    folder = shutil.copytree(sealed, tmp_path / "run")
    for path in sorted(path for path in (folder / "8").rglob("*") if path.is_file()):
        whole = path.read_bytes()
        fault(path, folder)
        if not path.exists() or path.read_bytes() != whole:
            with Checkpoints(folder, writable=False) as checkpoints:
                assert checkpoints.newest_whole() == 4
            assert capsys.readouterr().err.startswith(f"{path}: ")
        path.write_bytes(whole)


def test_folders_that_changed_places_are_found(tmp_path, sealed, capsys):
    folder = shutil.copytree(sealed, tmp_path / "run")
    (folder / "8").rename(folder / "8.away")
    (folder / "4").rename(folder / "8")
    with pytest.raises(DataError, match=r"8/MANIFEST\.json: belongs to 4; none here is whole"):
        Checkpoints(folder).newest_whole()
    (folder / "8.away").rename(folder / "4")
    with pytest.raises(
        DataError, match=r"8/MANIFEST.*; .*4/MANIFEST\.json: belongs to 8; none here is whole"
    ):
        Checkpoints(folder).newest_whole()


def test_a_file_that_was_added_is_found(tmp_path, sealed):
    folder = shutil.copytree(sealed, tmp_path / "run")
    (folder / "8" / "params" / ".nfs0001").touch()
    assert Checkpoints(folder).newest_whole() == 8
    (folder / "8" / "params" / "d" / "more").touch()
    assert Checkpoints(folder).newest_whole() == 4


def test_a_checkpoint_of_an_older_editjax_is_taken_with_a_word(tmp_path, parts, capsys):
    ocp.save_checkpointables(tmp_path / "7", {"step": parts["step"]}, custom_metadata={"score": 1})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest_whole() == 7
        assert checkpoints.notes(7) == {"score": 1}
        assert_identical(
            checkpoints.restore(7, {"step": shapes_on(make_mesh())["step"]}), {"step": parts["step"]}
        )
    assert capsys.readouterr().err.count("without a manifest: taken unverified") == 1


def test_none_is_deleted_before_the_next_one_is_verified(tmp_path, parts, monkeypatch):
    def unreadable(folder, number):
        raise DataError(f"{folder}/params: SHA-256 differs from the manifest")

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"step": parts["step"]}, {})
        with monkeypatch.context() as patch, pytest.raises(InputOutputError, match=r"2: not written .*SHA"):
            patch.setattr("editjax.checkpoint.check", unreadable)
            checkpoints.save(2, {"step": parts["step"]}, {})
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        checkpoints.save(2, {"step": parts["step"]}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stands(tmp_path, capfd, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    parts = {"noise": jax.random.normal(jax.random.key(0), (500, 100))}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, parts, {})
        capfd.readouterr()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
            with pytest.raises(
                InputOutputError, match=r"/2: not written \(.*File too large.*\); those before"
            ):
                checkpoints.save(2, parts, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert capfd.readouterr().err == "" and not caplog.records
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        assert checkpoints.newest_whole() == 1
        checkpoints.save(2, parts, {})
        assert checkpoints.newest_whole() == 2


def test_what_is_dropped_is_deleted_only_once_another_is_saved(tmp_path, sealed, parts):
    folder = shutil.copytree(sealed, tmp_path / "run")
    with Checkpoints(folder) as checkpoints:
        checkpoints.drop_after(4)
        assert checkpoints.steps == [4]
        assert len(list(folder.glob(".old-8-*/MANIFEST.json"))) == 1
        checkpoints.save(8, {"step": parts["step"]}, {})
    assert sorted(path.name for path in folder.iterdir()) == ["4", "8"]


def test_a_folder_that_is_no_longer_ours_is_not_written(tmp_path, sealed, parts):
    folder = shutil.copytree(sealed, tmp_path / "run")
    ours = [True, True, False]

    def guard():
        if not ours.pop(0):
            raise CannotCreateError("taken over")

    with Checkpoints(folder, guard=guard) as checkpoints:
        checkpoints.drop_after(8)
        with pytest.raises(CannotCreateError, match="taken over"):
            checkpoints.save(9, {"step": parts["step"]}, {})
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["4", "8"]


def test_an_unfinished_save_is_no_checkpoint_and_only_a_writer_cleans_it_away(tmp_path, parts):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"step": parts["step"]}, {})
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    (unfinished / "step").mkdir(parents=True)
    with Checkpoints(tmp_path, writable=False) as reader:
        assert reader.latest_step == 1
    assert unfinished.exists()
    with Checkpoints(tmp_path) as writer:
        assert writer.latest_step == 1
        writer.save(3, {"step": parts["step"]}, {})
        assert not unfinished.exists()


def test_other_names_and_shapes_are_refused(tmp_path, parts):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, parts, {})
        wanted = shapes_on(make_mesh())["params"]
        kernel = wanted["layer"]["kernel"]
        wanted["layer"]["kernel"] = jax.ShapeDtypeStruct((8, 32), kernel.dtype, sharding=kernel.sharding)
        with pytest.raises(DataError, match=r"1: params/layer/kernel has shape \(8, 16\), wanted \(8, 32\)"):
            checkpoints.restore(1, {"params": wanted})
        del wanted["layer"]["kernel"]
        with pytest.raises(DataError, match=r"layer/kernel has shape \(8, 16\), wanted none"):
            checkpoints.restore(1, {"params": wanted})


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputOutputError, match=r"file/run: not writable"):
        Checkpoints(tmp_path / "file" / "run")
