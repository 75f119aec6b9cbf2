"""Files that appear together: named twice, in the way at the end, replaced, interrupted."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from editjax.cli import main
from editjax.cli.outputs import recordings
from editjax.errors import CannotCreateError, UsageError
from editjax.outputs import Outputs

RATE_HZ = 22050


@pytest.fixture
def take(tmp_path: Path) -> Path:
    """Two tones with silence between them."""
    time_s = np.arange(2 * RATE_HZ) / RATE_HZ
    tone_S = 0.3 * np.sin(2 * np.pi * 220 * time_s)
    soundfile.write(tmp_path / "take.wav", np.concatenate([tone_S, np.zeros(3 * RATE_HZ), tone_S]), RATE_HZ)
    return tmp_path / "take.wav"


def edit(*words: str | Path) -> int:
    return main(["edit", *map(str, words), "--editor", "silence", "-q"])


def test_one_file_under_two_spellings_is_named_twice(take: Path, monkeypatch) -> None:
    monkeypatch.chdir(take.parent)
    for words in ([], ["--overwrite"]):
        assert edit("take.wav", "-o", "out.wav", "--save-removed", take.with_name("out.wav"), *words) == 73
    assert os.listdir(take.parent) == ["take.wav"]


def test_a_name_taken_meanwhile_keeps_all_outputs_away(tmp_path: Path) -> None:
    with pytest.raises(CannotCreateError, match="exists already"), Outputs(False, []) as outputs:
        for name in ("z.wav", "z.json"):
            outputs.add(tmp_path / name).write_text("new")
        (tmp_path / "z.wav").write_text("somebody else's")
    assert os.listdir(tmp_path) == ["z.wav"] and (tmp_path / "z.wav").read_text() == "somebody else's"


def test_outdated_files_go_only_when_the_new_ones_come(tmp_path: Path) -> None:
    for name in ("old", "same"):
        (tmp_path / name).write_text("old")
    for fails in (True, False):
        with pytest.raises(KeyError) if fails else contextlib.nullcontext(), Outputs(True, []) as outputs:
            for name in ("old", "same"):
                outputs.outdate(tmp_path / name)
            outputs.add(tmp_path / "same").write_text("new")
            if fails:
                raise KeyError
        left = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert left == ({"old": "old", "same": "old"} if fails else {"same": "new"})


def test_joins_of_an_earlier_edit_do_not_stay(take: Path) -> None:
    joins = take.with_name("joins")
    assert edit(take, "--preview-joins", joins) == 0
    first = {path.name for path in joins.iterdir()}
    assert edit(take, "--preview-joins", joins, "--overwrite", "--margin", "0.5") == 0
    second = {path.name for path in joins.iterdir()}
    assert len(first) == len(second) == 1 and first != second


def test_joins_that_cannot_be_written_are_refused_before_the_work(take: Path, monkeypatch, capsys) -> None:
    import tempfile

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    def work(*_):
        raise AssertionError("worked before all outputs were known to be possible")

    monkeypatch.setattr("editjax.editor.listen", work)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    assert edit(take, "--preview-joins", take.with_name("joins")) == 73
    assert "joins: cannot be written" in capsys.readouterr().err
    assert os.listdir(take.parent) == ["take.wav"]


def test_an_empty_name_is_not_the_current_folder(take: Path, monkeypatch) -> None:
    monkeypatch.chdir(take.parent)
    assert edit("") == 2
    with pytest.raises(UsageError, match="empty"):
        recordings([""])
    assert os.listdir(take.parent) == ["take.wav"]


def test_an_edit_list_beside_its_own_recording_does_not_hide_it(take: Path) -> None:
    assert edit(take, "--edits", take.with_name("take.edits.json"), "-o", take.with_name("out.wav")) == 0
    take.with_name("out.edits.json").write_text(take.with_name("take.edits.json").read_text())
    assert recordings([str(take.parent)]) == [take]


def test_one_internal_error_does_not_end_a_batch(take: Path, monkeypatch, capsys) -> None:
    import editjax.cli.edit

    good, original = take.with_name("good.wav"), editjax.cli.edit.edit_file
    good.write_bytes(take.read_bytes())

    def stumble(source, *rest, **more):
        if source == take:
            raise ZeroDivisionError("a bug")
        original(source, *rest, **more)

    monkeypatch.setattr(editjax.cli.edit, "edit_file", stumble)
    assert edit(take, good) == 70
    assert "a bug" in capsys.readouterr().err and take.with_name("good_edited.wav").exists()
    assert edit(take, good, "--overwrite", "--debug") == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_ends_a_batch(take: Path, monkeypatch) -> None:
    import editjax.cli.edit

    def close(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(editjax.cli.edit, "edit_file", close)
    codes: list[int] = []
    with pytest.raises(BrokenPipeError), editjax.cli.edit.complaining(codes):
        editjax.cli.edit.edit_file(take)
    assert not codes


def test_termination_leaves_nothing(take: Path) -> None:
    """SIGTERM while the outputs are open: the process ends in order, without its temporary files."""
    program = (
        "import os, signal, sys, editjax.editor as e\n"
        "e.fulfil = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "from editjax.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["edit", str(take), "--editor", "silence", "--plot", str(take.with_name("p.png"))]
    done = subprocess.run([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 75 and done.stderr.decode().count("\n") == 1
    assert os.listdir(take.parent) == ["take.wav"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_full_disk_behind_our_own_output_is_no_internal_error(take: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "editjax", "edit", str(take), "--editor", "silence", "--dry-run"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 74 and b"internal" not in done.stderr
