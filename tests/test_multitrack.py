"""`editjax edit STEMS --multitrack` and `editjax.edit_tracks`: one edit for all tracks, written or not."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

import editjax
import editjax.multitrack
from editjax.audio import Reader, Writer
from editjax.cli import main
from editjax.edits import EditList, duration_samples, read_edits
from editjax.errors import CannotCreateError, DataError, UsageError
from editjax.formats import to_float
from editjax.render import render
from editjax.tracks import Mix

RATE_HZ = 22_050


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process: exit code, stdout, stderr. Silence edits."""

    def call(*words: str | Path) -> SimpleNamespace:
        editor = ["--editor", "silence"] if words[0] == "edit" else []
        code = main([str(word) for word in words] + editor)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture
def stems(tmp_path: Path) -> Path:
    """Two tracks of tones with a gap, in different formats; the shorter one ends with the second tone."""
    folder = tmp_path / "stems"
    folder.mkdir()
    write_track(folder / "bass.wav", 110, 3.2, 1, "PCM_16")
    write_track(folder / "keys.flac", 440, 4.5, 2, "PCM_24")
    return folder


def write_track(path: Path, frequency_hz: float, length_s: float, channels: int, subtype: str) -> None:
    """Tones until 1.1 s and from 2 s to 3 s, quiet noise else."""
    time_s = np.arange(int(length_s * RATE_HZ)) / RATE_HZ
    loud_S = (time_s < 1.1) | ((time_s > 2) & (time_s < 3))
    noise_SC = 1e-4 * np.random.default_rng(int(frequency_hz)).standard_normal((len(time_s), channels))
    samples_SC = (0.3 * loud_S * np.sin(2 * np.pi * frequency_hz * time_s))[:, None] + noise_SC
    soundfile.write(path, samples_SC, RATE_HZ, subtype)


def sum_of(paths: list[Path]) -> np.ndarray:
    """Files added up, float64 (S, 2)."""
    tracks = [soundfile.read(path, always_2d=True)[0] for path in paths]
    return sum(np.broadcast_to(track_SC, (len(track_SC), 2)) for track_SC in tracks)


def test_tracks_are_cut_alike_and_add_up_to_the_edited_sum(run, stems: Path) -> None:
    done = run("edit", stems, "--multitrack")
    assert done.code == 0 and not done.err and "2 tracks" in done.out
    out = stems.with_name("stems_edited")
    edited = [out / "bass_edited.wav", out / "keys_edited.flac"]
    assert {path.name for path in out.iterdir()} == {*(p.name for p in edited), "stems_edited.edits.json"}
    assert {path.name for path in stems.iterdir()} == {"bass.wav", "keys.flac"}
    edit_list = read_edits(out / "stems_edited.edits.json")
    assert edit_list.source.path == str(stems)
    names = [Path(track.path).name for track in edit_list.source.tracks]
    assert names == ["bass.wav", "keys.flac"]
    kinds = [(info.format, info.subtype, info.channels) for info in map(soundfile.info, edited)]
    assert kinds == [("WAV", "PCM_16", 1), ("FLAC", "PCM_24", 2)]
    assert {soundfile.info(path).frames for path in edited} == {duration_samples(edit_list)}
    with Mix([Reader(stems / "bass.wav"), Reader(stems / "keys.flac")], stems) as mix:
        wanted_SC = render(edit_list, mix)
    assert len(wanted_SC) < mix.frames - 0.5 * RATE_HZ
    assert np.abs(sum_of(edited) - wanted_SC).max() <= (2.0**-16 + 2.0**-24) * (1 + 1e-9)


def test_everything_that_can_be_asked_for_is_of_the_sum(run, stems: Path, tmp_path: Path) -> None:
    done = run(
        "edit", stems, "--multitrack", "-o", tmp_path / "out", "--plot", tmp_path / "p.png", "--json",
        "--export", "rpp,otio", "--preview-joins", tmp_path / "joins", "--save-removed", tmp_path / "cut.wav",
        "--keep", "1.2,1.4", "--edits", tmp_path / "list.json",
    )  # fmt: skip
    assert done.code == 0
    assert soundfile.info(tmp_path / "cut.wav").subtype == "FLOAT"
    assert soundfile.info(tmp_path / "cut.wav").channels == 2
    assert list((tmp_path / "joins").iterdir()) and (tmp_path / "p.png").exists()
    tree = json.loads(done.out)
    assert tree["output"] == str(tmp_path / "out") and len(tree["outputs"]) == len(tree["timelines"]) == 2
    assert all(Path(path).exists() for path in [*tree["outputs"], *tree["timelines"], tree["edits"]])


def test_a_rate_that_differs_is_one_line_and_leaves_nothing(run, stems: Path) -> None:
    soundfile.write(stems / "odd.wav", np.zeros(4_000), 16_000)
    done = run("edit", stems, "--multitrack")
    assert done.code == 65 and "odd.wav" in done.err and "16000" in done.err and done.err.count("\n") == 1
    assert [path.name for path in stems.parent.iterdir()] == ["stems"]


@pytest.mark.parametrize("late", ["editjax.audio.Writer.write", "editjax.edits.write_edits"])
def test_a_failure_at_the_last_track_or_after_it_leaves_nothing(run, stems: Path, monkeypatch, late) -> None:
    write = Writer.write

    def fails(target: Writer | EditList, *rest: Any, **named: Any) -> None:
        if isinstance(target, Writer) and target.path.suffix == ".wav":
            write(target, *rest, **named)
        else:
            raise DataError("too late")

    monkeypatch.setattr(late, fails)
    done = run("edit", stems, "--multitrack")
    assert done.code == 65 and "too late" in done.err
    assert [path.name for path in stems.parent.iterdir()] == ["stems"]


def test_existing_tracks_are_refused_before_the_work(run, stems: Path, monkeypatch) -> None:
    assert run("edit", stems, "--multitrack", "-q").code == 0
    monkeypatch.setattr("editjax.editor.listen", lambda *_: pytest.fail("worked before refusing"))
    done = run("edit", stems, "--multitrack")
    assert done.code == 73 and "bass_edited.wav" in done.err


def test_edits_in_the_folder_of_their_tracks_are_passed_over(run, stems: Path) -> None:
    for _ in range(2):
        assert run("edit", stems, "--multitrack", "-o", stems, "--overwrite").code == 0
    assert len(list(stems.iterdir())) == 5
    assert len(read_edits(stems / "stems_edited.edits.json").source.tracks) == 2


def test_a_track_is_never_written_over(run, stems: Path) -> None:
    other = stems / "bass_edited.wav"
    other.write_bytes((stems / "bass.wav").read_bytes())
    done = run("edit", stems / "bass.wav", other, "--multitrack", "-o", stems, "--overwrite")
    assert done.code == 73 and "is the input" in done.err
    assert other.read_bytes() == (stems / "bass.wav").read_bytes()


@pytest.mark.parametrize(("words", "hint"), [
    (["-o", "x.wav"], "names a folder"), (["--export", "edl"], "otio, rpp"), (["."], "one folder of tracks"),
])  # fmt: skip
def test_usage_errors_are_one_line(run, stems: Path, words: list[str], hint: str) -> None:
    done = run("edit", stems, "--multitrack", *words)
    assert done.code == 2 and hint in done.err and done.err.count("\n") == 1


def test_tracks_may_be_named_one_by_one(run, stems: Path, tmp_path: Path) -> None:
    run("edit", stems, "--multitrack", "-o", tmp_path / "a")
    run("edit", stems / "bass.wav", stems / "keys.flac", "--multitrack", "-o", tmp_path / "b")
    texts = [(tmp_path / k / "stems_edited.edits.json").read_bytes() for k in "ab"]
    assert texts[0] == texts[1]


# Rendering again


def test_a_changed_list_is_rendered_for_all_tracks(run, stems: Path, tmp_path: Path) -> None:
    run("edit", stems, "--multitrack")
    edits = stems.with_name("stems_edited") / "stems_edited.edits.json"
    again = run("render", stems, edits, "--multitrack", "-o", tmp_path / "again")
    assert again.code == 0
    for name in ("bass_edited.wav", "keys_edited.flac"):
        assert (tmp_path / "again" / name).read_bytes() == (edits.parent / name).read_bytes()
    tree = json.loads(edits.read_text())
    del tree["segments"][0]
    edits.write_text(json.dumps(tree))
    assert run("render", stems, edits, "--multitrack", "-o", tmp_path / "fewer", "--export", "rpp").code == 0
    fewer = [tmp_path / "fewer" / name for name in ("bass_edited.wav", "keys_edited.flac")]
    lengths = {soundfile.info(path).frames for path in fewer}
    assert lengths == {duration_samples(read_edits(edits))}
    assert "keys.flac" in (tmp_path / "fewer" / "stems_edited.rpp").read_text()


def test_tracks_named_in_any_order_are_rendered_again(run, stems: Path, tmp_path: Path) -> None:
    run("edit", stems / "keys.flac", stems / "bass.wav", "--multitrack", "-o", tmp_path / "a")
    edits = tmp_path / "a" / "stems_edited.edits.json"
    assert run("render", stems, edits, "--multitrack", "-o", tmp_path / "b").code == 0
    for name in ("bass_edited.wav", "keys_edited.flac"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tracks_that_share_no_folder_need_a_place(run, stems: Path, monkeypatch) -> None:
    monkeypatch.setattr(editjax.cli.edit, "tracks_named", lambda words: ([stems / "bass.wav"], Path("/")))
    done = run("edit", stems, "--multitrack")
    assert done.code == 2 and "shares no folder" in done.err and done.err.count("\n") == 1


def test_other_tracks_are_named_and_refused_unless_forced(run, stems: Path, tmp_path: Path) -> None:
    run("edit", stems, "--multitrack")
    edits = stems.with_name("stems_edited") / "stems_edited.edits.json"
    words = ("render", stems, edits, "--multitrack", "-o", tmp_path / "again")
    write_track(stems / "new.wav", 220, 2.0, 1, "PCM_16")
    assert run(*words).code == 65 and "new.wav" in run(*words).err
    (stems / "new.wav").unlink()
    (stems / "bass.wav").unlink()
    assert run(*words).code == 65 and "bass.wav" in run(*words).err
    write_track(stems / "bass.wav", 220, 2.0, 1, "PCM_16")
    assert run(*words).code == 65 and "bass.wav" in run(*words).err
    assert not (tmp_path / "again").exists()
    assert run(*words, "--force").code == 0


def test_the_operations_of_an_edit_render_it_again(run, stems: Path, tmp_path: Path) -> None:
    written = run("edit", stems, "--multitrack", "--as-ops", "--json")
    (tmp_path / "ops.json").write_text(written.out)
    assert run("render", stems, tmp_path / "ops.json", "--multitrack", "-o", tmp_path / "again").code == 0
    for name in ("bass_edited.wav", "keys_edited.flac"):
        edited = stems.with_name("stems_edited") / name
        assert (tmp_path / "again" / name).read_bytes() == edited.read_bytes()


# In Python


def test_paths_and_samples_give_the_same_tracks(stems: Path, tmp_path: Path) -> None:
    paths = [stems / "bass.wav", stems / "keys.flac"]
    settings = editjax.EditSettings(editor="silence")
    written = editjax.edit_tracks(paths, out=tmp_path / "out", settings=settings)
    assert written.samples is None
    assert written.paths == (tmp_path / "out/bass_edited.wav", tmp_path / "out/keys_edited.flac")
    in_memory = editjax.edit_tracks([soundfile.read(path)[0] for path in paths], RATE_HZ, settings=settings)
    assert in_memory.paths is None and in_memory.edit_list.segments == written.edit_list.segments
    assert in_memory.summary == written.summary
    for path, samples_SC in zip(written.paths, in_memory.samples, strict=True):
        difference_SC = soundfile.read(path, always_2d=True)[0] - samples_SC
        assert np.abs(difference_SC).max() <= 2.0**-16
    assert {"read", "mel", "decide", "place", "render"} <= set(written.timings_s)


def test_what_cannot_be_done_is_refused(stems: Path, tmp_path: Path) -> None:
    paths = [stems / "bass.wav", stems / "keys.flac"]
    with pytest.raises(UsageError, match="no tracks"):
        editjax.edit_tracks([], editor="silence")
    with pytest.raises(UsageError, match="no names"):
        editjax.edit_tracks([np.zeros(99)], RATE_HZ, out=tmp_path / "out", editor="silence")
    with pytest.raises(CannotCreateError, match="named twice"):
        editjax.edit_tracks([paths[0], paths[0]], out=tmp_path / "out", editor="silence")
    with pytest.raises(DataError, match="would be empty"):
        editjax.edit_tracks(paths, out=tmp_path / "out", editor="silence", cut=["start,end"])
    assert not (tmp_path / "out").exists()


def test_one_track_is_edited_as_it_is_alone(stems: Path) -> None:
    settings = editjax.EditSettings(editor="silence")
    together = editjax.edit_tracks([stems / "keys.flac"], settings=settings)
    alone = editjax.edit(stems / "keys.flac", settings=settings)
    assert together.edit_list.segments == alone.edit_list.segments
    np.testing.assert_array_equal(together.samples[0], alone.samples_SC)
    assert to_float(alone.samples_SC).any()
