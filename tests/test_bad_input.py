"""Bad input: one clear line, the exit code of sysexits, nothing half-written, the input untouched."""

import contextlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from editjax.cli import main

RATE_HZ = 22050
Edit = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def edit(folder: Path, capsys: pytest.CaptureFixture[str]) -> Edit:
    """Runs `editjax edit` on what it is given; returns the exit code and the one line on stderr.

    On an error nothing in the folder may have changed.
    """

    def run(*words: str | Path) -> tuple[int, str]:
        before = contents(folder)
        by_silence = [] if "--editor" in words else ["--editor", "silence"]
        code = main(["edit", *map(str, words), *by_silence])
        said = capsys.readouterr().err
        if code:
            assert said.startswith("editjax: ") and said.count("\n") == 1, said
            assert "Traceback" not in said and "internal error" not in said
            assert contents(folder) == before
        return code, said

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones and links included."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def music(length_s: float = 2.0, channels: int = 1) -> np.ndarray:
    """A tone with a gap in the middle, so that the silence editor has something to cut."""
    time_s = np.arange(int(length_s * RATE_HZ)) / RATE_HZ
    samples_S = 0.3 * np.sin(2 * np.pi * 220 * time_s)
    samples_S[int(0.3 * len(time_s)) : int(0.8 * len(time_s))] *= 1e-4
    return np.repeat(samples_S[:, None], channels, axis=1)


def recording(path: Path, samples_SC: np.ndarray | None = None, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, music() if samples_SC is None else samples_SC, RATE_HZ, subtype)
    return path


def test_missing_file(edit: Edit, folder: Path) -> None:
    code, said = edit(folder / "nothing.wav")
    assert code == 66 and "nothing.wav" in said


def test_empty_file(edit: Edit, folder: Path) -> None:
    (folder / "empty.wav").touch()
    code, said = edit(folder / "empty.wav")
    assert code == 65 and "empty.wav" in said


def test_header_without_samples(edit: Edit, folder: Path) -> None:
    code, said = edit(recording(folder / "none.wav", np.zeros((0, 1))))
    assert code == 65 and "none.wav" in said


def test_one_sample_stays_as_it_is(edit: Edit, folder: Path) -> None:
    """Nothing can be cut from one sample: the edit is the recording."""
    source = recording(folder / "one.wav", np.full((1, 1), 0.5))
    assert edit(source)[0] == 0
    assert soundfile.read(folder / "one_edited.wav")[0].tolist() == [0.5]


def test_text_renamed_to_wav(edit: Edit, folder: Path) -> None:
    (folder / "notes.wav").write_text("take 3 is the good one\n" * 100)
    code, said = edit(folder / "notes.wav")
    assert code == 65 and "notes.wav" in said


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_truncated_file(edit: Edit, folder: Path, suffix: str) -> None:
    source = recording(folder / f"cut{suffix}", 0.1 * np.random.default_rng(0).standard_normal((RATE_HZ, 1)))
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    code, said = edit(source)
    assert code == 65 and "truncated" in said and "--allow-truncated" in said
    code, _ = edit(source, "--allow-truncated")
    assert code == 0 and 0.2 < soundfile.info(folder / f"cut_edited{suffix}").duration < 0.8


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_numbers(edit: Edit, folder: Path, bad: float) -> None:
    samples_SC = music()
    samples_SC[1000] = bad
    code, said = edit(recording(folder / "float.wav", samples_SC, "FLOAT"))
    assert code == 65 and ("NaN" in said or "Inf" in said or "finite" in said)


def test_ten_hour_header_on_a_small_file(edit: Edit, folder: Path) -> None:
    source = recording(folder / "long.wav", music(0.02))
    data = bytearray(source.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = (10 * 3600 * RATE_HZ * 2).to_bytes(4, "little")
    data[4:8] = (10 * 3600 * RATE_HZ * 2 + 36).to_bytes(4, "little")
    source.write_bytes(data)
    code, said = edit(source)
    assert code == 65 and "long.wav" in said


def test_longer_than_allowed(edit: Edit, folder: Path) -> None:
    code, said = edit(recording(folder / "a.wav"), "--max-duration", "1.5")
    assert code == 65 and "a.wav" in said


def test_folder_that_cannot_be_written(edit: Edit, folder: Path) -> None:
    """A path below a regular file: refused for root too."""
    source = recording(folder / "a.wav")
    code, said = edit(source, "-o", source / "b.wav")
    assert code == 73 and "b.wav" in said
    code, said = edit(source, "-o", folder / "no such folder" / "b.wav")
    assert code == 73 and "no such folder" in said


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 20 kB; not even pytest's own output, so only while the command runs."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_full_disk(folder: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    noise_SC = 0.3 * np.random.default_rng(0).standard_normal((2 * RATE_HZ, 1))
    source = recording(folder / f"a{suffix}", noise_SC)
    before = contents(folder)
    with small_disk():
        code = main(["edit", str(source), "--editor", "silence"])
    said = capsys.readouterr().err
    assert code == 74 and f"a_edited{suffix}" in said and said.count("\n") == 1
    assert contents(folder) == before


def test_full_disk_while_aligning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = recording(folder / "a.wav", 0.3 * np.random.default_rng(0).standard_normal((2 * RATE_HZ, 1)))
    with small_disk():
        code = main(["align", str(source), str(source), "-o", str(folder / "found")])
    said = capsys.readouterr().err
    assert code == 74 and "TMPDIR" in said and said.count("\n") == 1
    assert list(folder.iterdir()) == [source]


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
def test_output_is_the_input(edit: Edit, folder: Path, link: str | None) -> None:
    source = recording(folder / "a.wav")
    out = folder / "b.wav" if link else source
    if link == "symbolic":
        out.symlink_to(source)
    elif link == "hard":
        os.link(source, out)
    for words in ([], ["--overwrite"]):
        code, said = edit(source, "-o", out, *words)
        assert code == 73 and out.name in said


@pytest.mark.parametrize("name", ["Übung", "音楽 🎵", 'a\'b "c" $d', "nä\u0308me"])
def test_any_name_works(edit: Edit, folder: Path, name: str) -> None:
    source = recording(folder / f"{name}.wav")
    code, _ = edit(source)
    assert code == 0
    assert (folder / f"{name}_edited.wav").exists() and (folder / f"{name}_edited.edits.json").exists()


def test_name_that_is_no_text(edit: Edit, folder: Path) -> None:
    source = recording(folder / "a.wav").rename(folder / "\udcff\udcfe.wav")
    code, said = edit(source)
    assert code == 66 and "rename" in said
    code, said = edit(recording(folder / "a.wav"), "-o", folder / "\udcff.wav")
    assert code == 73
    for words in (["align", source, source], ["render", source, folder / "a.edits.json"]):
        assert main([*map(str, words)]) == 66


@pytest.mark.parametrize("words", [["--temperature", "nan"], ["--temperature", "1", "--seed", "-1"]])
def test_numbers_that_make_no_sense(edit: Edit, folder: Path, words: list[str]) -> None:
    assert edit(recording(folder / "a.wav"), "--editor", "pointer", *words)[0] == 2


def test_edit_list_that_plays_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = recording(folder / "a.wav")
    assert main(["edit", str(source), "--editor", "silence", "-q"]) == 0
    edits = folder / "a_edited.edits.json"
    edits.write_text(json.dumps({**json.loads(edits.read_text()), "segments": []}))
    assert main(["render", str(source), str(edits), "-o", str(folder / "b.wav")]) == 65
    assert "plays nothing" in capsys.readouterr().err and not (folder / "b.wav").exists()


def test_unknown_model(edit: Edit, folder: Path) -> None:
    code, said = edit(recording(folder / "a.wav"), "--editor", "pointer", "--model", "finl")
    assert code == 66 and "finl" in said


def test_folder_that_is_no_model(edit: Edit, folder: Path) -> None:
    code, said = edit(recording(folder / "a.wav"), "--editor", "pointer", "--model", folder)
    assert code == 66 and "model" in said


def test_folder_without_recordings(edit: Edit, folder: Path) -> None:
    (folder / "readme.txt").write_text("no audio here")
    code, said = edit(folder)
    assert code == 66 and "no recordings" in said


def test_an_edit_list_of_brackets_beside_a_recording_is_one_of_another(edit: Edit, folder: Path) -> None:
    recording(folder / "a.wav")
    (folder / "a.edits.json").write_text("[" * 200_000)
    code, said = edit(folder)
    assert code == 66 and "no recordings" in said


def test_names_that_are_too_long(edit: Edit, folder: Path) -> None:
    code, said = edit(folder / f"{'x' * 300}.wav")
    assert code == 66 and "xxx" in said
    source = recording(folder / "a.wav")
    for words in (["-o", folder / f"{'y' * 300}.wav"], ["--preview-joins", folder / ("y" * 300)]):
        code, said = edit(source, *words)
        assert code == 73 and "yyy" in said


def test_name_whose_edit_would_be_too_long(edit: Edit, folder: Path) -> None:
    source = recording(folder / f"{'x' * 250}.wav")
    assert edit(source)[0] == edit(folder)[0] == 73


def test_folder_that_cannot_be_read(edit: Edit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        code, said = edit(folder)
    assert code == 66 and "Permission denied" in said
