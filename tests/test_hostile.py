"""Models from strangers: whatever is in the folder is refused with one line, and nothing else is opened.

The attacks are in hostile_models.py.
"""

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from hostile_models import ATTACKS, ESCAPE, PICKLE, SETTINGS, TRACE, good_model

import editjax
from editjax.bundle import bundled_names
from editjax.checkpoint import Checkpoints
from editjax.cli import main
from editjax.config import to_json
from editjax.errors import DataError, NoInputError
from editjax.export import export_run, load_bundle, refuse_misfit
from editjax.mel import MelSettings
from editjax.models.pointer import init

ROOT = Path(editjax.__file__).parents[1]
OWN = tuple(os.path.realpath(path) for path in (ROOT, sys.prefix, sys.base_prefix))
LARGEST_BYTES = 64 << 20
LONGEST_S = 300
LONGEST_LINE = 1000

_heard: list[str] | None = None


def _listen(event: str, arguments: tuple) -> None:
    """What Python is about to open, list or start; hooks stay, so this one is deaf at other times."""
    if _heard is None:
        return
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _heard.append(os.path.realpath(os.fsdecode(arguments[0])))
    elif event.split(".")[0] in ("subprocess", "socket") or event in (
        "os.system",
        "os.exec",
        "pickle.find_class",
    ):
        _heard.append(f"{event} {arguments}")


sys.addaudithook(_listen)


@contextlib.contextmanager
def audited() -> Iterator[list[str]]:
    """What was opened meanwhile that is neither Python's nor our own."""
    global _heard
    opened: list[str] = []
    _heard = []
    try:
        yield opened
    finally:
        opened += [path for path in _heard if not path.startswith(OWN)]
        _heard = None


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """An error where something is waited for."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def model(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the good model to change; pickles that are executed leave a trace in the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    load_bundle(good)  # imports, and traces the architecture
    return shutil.copytree(good, tmp_path / "models" / "model")


def contents(folder: Path) -> dict[str, object]:
    """Everything in a folder by name: its kind and size, and what is in files."""
    if folder.is_symlink():
        return {"": folder.readlink()}
    found: dict[str, object] = {}
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        small = stat.S_ISREG(status.st_mode) and status.st_size < LARGEST_BYTES
        found[path.name] = status.st_mode, status.st_size, small and path.read_bytes()
    return found


def test_the_good_model_is_taken(model: Path, capsys: pytest.CaptureFixture) -> None:
    with audited() as opened:
        assert load_bundle(model).settings == SETTINGS
    assert set(opened) == {str(model / "config.json"), str(model / "model.safetensors")}
    assert main(["edit", "--model", str(model), "nowhere.wav"]) == 66
    assert "nowhere.wav" in capsys.readouterr().err  # the model was accepted before


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 60


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_model_is_refused(
    name: str, good: Path, model: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    attack, said = ATTACKS[name]
    attack(model)
    assert contents(model) != contents(good), "the attack does nothing"
    tracemalloc.start()
    try:
        with in_time(), audited() as opened, pytest.raises((DataError, NoInputError), match=said) as caught:
            load_bundle(model)
        assert tracemalloc.get_traced_memory()[1] < LARGEST_BYTES
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    with in_time(), audited() as also_opened:
        code = main(["edit", "--model", str(model), "nowhere.wav"])
    assert code == caught.value.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("editjax: ") and line.isprintable() and len(line) < LONGEST_LINE, line
    assert "internal error" not in line and "nowhere.wav" not in line
    allowed = {str(model / "config.json"), str(model / "model.safetensors")}
    assert set(opened) | set(also_opened) <= allowed
    assert not list((tmp_path / "here").iterdir()), TRACE


def test_what_else_lies_in_the_folder_is_never_opened(model: Path) -> None:
    for name in ("model.pkl", "pytorch_model.bin", "__init__.py", "README.md", "tokenizer.json", ESCAPE):
        (model / name.replace("/", "")).unlink(missing_ok=True)
        (model / name.replace("/", "")).write_bytes(PICKLE)
    os.mkfifo(model / "pipe")
    (model / "up").symlink_to("/")
    with in_time(), audited() as opened:
        load_bundle(model)
    assert set(opened) == {str(model / "config.json"), str(model / "model.safetensors")}
    assert not Path(TRACE).exists()


def test_the_folder_itself_may_be_a_link(model: Path) -> None:
    link = model.parent / "link"
    link.symlink_to(model)
    assert load_bundle(link).settings == SETTINGS


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_named(
    name: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    really = os.open

    def denied(path, *arguments, **more):
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really(path, *arguments, **more)

    monkeypatch.setattr(os, "open", denied)  # as root reads what nobody may
    assert main(["edit", "--model", str(model), "nowhere.wav"]) == 66
    assert f"{name}: cannot read it (Permission denied)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", ESCAPE, "a\nb", "\ud800"])
def test_a_name_that_no_folder_has_is_one_line(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["edit", "--model", name, "nowhere.wav"]) == 66
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("editjax: ") and line.isprintable()


@pytest.mark.parametrize("name", bundled_names())
def test_what_ships_fits_though_nobody_asks_when_it_is_loaded(name: str) -> None:
    bundle = load_bundle(name)
    refuse_misfit(bundle.path, bundle.settings, bundle.config["tensors"])


def test_what_ships_may_be_installed_as_links(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config is a link outside", "tensors are a link outside"):
        ATTACKS[name][0](model)
    with pytest.raises(DataError, match="is a link"):
        load_bundle(model)
    monkeypatch.setattr("editjax.bundle.BUNDLED", model.parent)
    assert load_bundle(model.name).settings == SETTINGS


def test_the_pickle_would_leave_a_trace(model: Path) -> None:
    import pickle

    pickle.loads(PICKLE)
    assert Path(TRACE).is_dir()


def test_an_audit_hears_what_lies_outside(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    (model / "link").symlink_to(tmp_path / "secret")
    with audited() as opened:
        (model / "link").read_text()
    assert opened == [str(tmp_path / "secret")]


MEMORY = """
import contextlib, resource, sys
from pathlib import Path
from editjax.errors import EditjaxError
from editjax.export import load_bundle
load_bundle(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for model in Path(sys.argv[2]).glob("*/model"):
    with contextlib.suppress(EditjaxError):
        load_bundle(model)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_no_attack_takes_much_memory(good: Path, tmp_path: Path) -> None:
    """Of all libraries, by the kernel's own count, in a process that has loaded a good model."""
    for number, (attack, _) in enumerate(ATTACKS.values()):
        attack(shutil.copytree(good, tmp_path / str(number) / "model"))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(good), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < LARGEST_BYTES


def notes_of_a_run(**changes: object) -> dict[str, object]:
    """The notes of a checkpoint, as training writes them but for some changes; ... leaves one out."""
    config = {"model": to_json(SETTINGS), "ema_decay": 0.0}
    origin = {"mel": to_json(MelSettings(n_mels=64))}
    notes = {"family": "pointer", "config": config, "origin": origin, "scores": {"score": 0.5}, **changes}
    return {name: value for name, value in notes.items() if value is not ...}


def config_with(**model: object) -> dict[str, object]:
    return {"model": {**to_json(SETTINGS), **model}, "ema_decay": 0.0}


NOTES = {
    "no family": ({"family": ...}, "notes lack"),
    "no config": ({"config": ...}, "notes lack"),
    "no origin": ({"origin": ...}, "notes lack"),
    "no scores": ({"scores": ...}, "notes lack"),
    "no settings": ({"config": {}}, "no settings of a model"),
    "a family that is a list": ({"family": ["pointer"]}, "notes lack"),
    "a family that is a path": ({"family": "../.."}, "is unknown"),
    "settings that are a list": ({"config": {"model": [], "ema_decay": 0}}, "expected an object"),
    "a width of a milliard": ({"config": config_with(width=10**9)}, "width 1000000000"),
    "no heads": ({"config": config_with(heads=0)}, "heads 0"),
    "another width": ({"config": config_with(width=32)}, "wanted"),
    "a mel of a milliard": ({"origin": {"mel": {"n_fft": 10**9}}}, "mel settings are no larger"),
    "a mel that is a list": ({"origin": {"mel": []}}, "expected an object"),
    "a mel that is not heard": ({"origin": {"mel": to_json(MelSettings())}}, "differ in n_mels"),
    "styles that are paths": ({"origin": {"styles": ["/etc"]}}, "training.styles"),
    "scores that are words": ({"scores": {"score": ESCAPE}}, "training.scores"),
}


def run_of(folder: Path, notes: dict[str, object]) -> Path:
    """A run with one checkpoint of parameters that fit the settings, and of these notes."""
    shapes = jax.eval_shape(lambda key: init(SETTINGS, key), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with Checkpoints(folder / "best") as best:
        best.save(1, {"params": jax.device_put(params)}, notes)
    return folder


def test_a_good_run_is_exported(tmp_path: Path) -> None:
    load_bundle(export_run(run_of(tmp_path / "run", notes_of_a_run()), tmp_path / "model"))


@pytest.mark.parametrize("name", NOTES)
def test_a_checkpoint_with_hostile_notes_is_not_exported(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changes, said = NOTES[name]
    run = run_of(tmp_path / "run", notes_of_a_run(**changes))
    with pytest.raises(DataError, match=said):
        export_run(run, tmp_path / "model")
    assert main(["export", str(run), "--out", str(tmp_path / "model")]) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable() and len(line) < LONGEST_LINE
    assert not (tmp_path / "model").exists()


LEADING = {
    "a file": lambda run, outside: lead(run / "best" / "1" / "_CHECKPOINT_METADATA", outside),
    "a folder": lambda run, outside: lead(run / "best" / "1" / "params", outside),
    "the manifest": lambda run, outside: lead(run / "best" / "1" / "MANIFEST.json", outside),
    "one more": lambda run, outside: (run / "best" / "1" / "more").symlink_to(outside),
    "a pipe": lambda run, outside: os.mkfifo(run / "best" / "1" / "more"),
    "a pipe for the manifest": lambda run, outside: piped(run / "best" / "1" / "MANIFEST.json"),
    "a pipe for the notes": lambda run, outside: piped(run / "best" / "1" / "_CHECKPOINT_METADATA"),
}


def lead(path: Path, outside: Path) -> None:
    """What was here lies elsewhere, and a link leads there."""
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", LEADING)
def test_a_checkpoint_that_leads_elsewhere_is_not_exported(name: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", notes_of_a_run())
    (tmp_path / "outside").mkdir()
    LEADING[name](run, tmp_path / "outside")
    with in_time(), audited() as opened, pytest.raises(DataError, match="is a link, a pipe or a device"):
        export_run(run, tmp_path / "model")
    assert all(path.startswith(str(run)) for path in opened), opened
