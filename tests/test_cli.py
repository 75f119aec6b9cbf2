"""The command line: what it prints, where it writes, how it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

import editjax.editor
import editjax.render
from editjax.cli import COMMANDS, main
from editjax.cli.edit import EditOptions, settings_of
from editjax.cli.options import InputOptions, parse
from editjax.cli.report import clock
from editjax.decision import EditSettings
from editjax.edits import read_edits
from editjax.events import UNKNOWN
from editjax.formats import AudioLimits
from editjax.mel import MelSettings
from editjax.network import EditedPointers
from editjax.render import RenderSettings

RATE_HZ = 22050


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process: exit code, stdout, stderr. Silence edits, where no editor is named."""

    def call(*words: str | Path) -> SimpleNamespace:
        by_silence = ["--editor", "silence"] if words[:1] == ("edit",) and "--editor" not in words else []
        code = main([str(word) for word in words] + by_silence)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


def recording(path: Path, gap_s: float = 1.5, channels: int = 1, subtype: str = "PCM_16") -> Path:
    """Two tones of a second each with near silence between them."""
    time_s = np.arange(RATE_HZ) / RATE_HZ
    tone_S = 0.3 * np.sin(2 * np.pi * 220 * time_s)
    gap_S = 1e-4 * np.random.default_rng(0).standard_normal(int(gap_s * RATE_HZ))
    samples_S = np.concatenate([tone_S, gap_S, tone_S])
    soundfile.write(path, np.repeat(samples_S[:, None], channels, axis=1), RATE_HZ, subtype)
    return path


@pytest.fixture
def take(tmp_path: Path) -> Path:
    return recording(tmp_path / "take.wav")


def test_edit_writes_beside_the_input(run, take: Path) -> None:
    done = run("edit", take)
    assert done.code == 0 and not done.err
    edited, edits = take.with_name("take_edited.wav"), take.with_name("take_edited.edits.json")
    assert {path.name for path in take.parent.iterdir()} == {take.name, edited.name, edits.name}
    edit_list = read_edits(edits)
    expected = sum(segment.stop - segment.start for segment in edit_list.segments)
    assert soundfile.info(edited).frames == expected < soundfile.info(take).frames
    assert edit_list.source.path == str(take)


def test_format_rate_channels_and_depth_stay(run, tmp_path: Path) -> None:
    source = recording(tmp_path / "a.flac", channels=2, subtype="PCM_24")
    assert run("edit", source).code == 0
    info = soundfile.info(tmp_path / "a_edited.flac")
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_24", RATE_HZ, 2)


def test_the_report_is_in_minutes_and_seconds(run, take: Path) -> None:
    out = run("edit", take, "--dry-run").out
    assert "0:03.5 → 0:02.5" in out and "kept 0:02.5, cut 0:01.0, looped 0:00.0" in out
    assert "2 clips" in out and "1 cut of" in out


def test_json_says_the_same(run, take: Path) -> None:
    done = run("edit", take, "--json")
    tree = json.loads(done.out)
    assert tree["output"].endswith("take_edited.wav") and tree["edits"].endswith(".edits.json")
    assert tree["clips"] == 2 and tree["cuts"] == 1
    assert tree["difference_s"] == pytest.approx(tree["output_s"] - tree["input_s"])
    assert {"read", "mel", "decide", "place", "render"} <= set(tree["timings_s"])


def test_an_edit_can_be_told_as_operations(run, take: Path) -> None:
    out = run("edit", take, "--dry-run", "--as-ops").out
    rows = [line.split() for line in out.splitlines() if line.split()[1:2] in (["COPY"], ["CUT"])]
    assert [row[1] for row in rows] == ["COPY", "CUT", "COPY"]
    ends = [float(row[3]) for row in rows]
    assert ends == sorted(ends) and [int(row[6]) / RATE_HZ for row in rows] == pytest.approx(ends, abs=1e-3)
    assert "keep " not in out


def test_operations_as_json_are_rendered_like_the_edit_list(run, take: Path) -> None:
    written = json.loads(run("edit", take, "--as-ops", "--json").out)
    assert "segments" not in written and written["output"].endswith("take_edited.wav")
    first = written["operations"][0]
    assert first["kind"] == "COPY" and first["stop_s"] == pytest.approx(first["stop"] / RATE_HZ, abs=1e-6)
    (ops := take.with_name("ops.json")).write_text(json.dumps(written))
    again = run("render", take, ops, "-o", take.with_name("again.wav"), "--as-ops", "--json")
    assert again.code == 0 and json.loads(again.out)["operations"] == written["operations"]
    edited = take.with_name("take_edited.wav")
    assert take.with_name("again.wav").read_bytes() == edited.read_bytes()


def test_dry_run_writes_nothing(run, take: Path) -> None:
    done = run("edit", take, "--dry-run", "--plot", take.with_name("p.png"))
    assert done.code == 0 and "nothing written" in done.out
    assert list(take.parent.iterdir()) == [take]


def test_quiet_says_nothing(run, take: Path) -> None:
    done = run("edit", take, "-q")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_no_progress_where_stderr_is_no_terminal(run, take: Path) -> None:
    assert "\r" not in run("edit", take).err


def test_existing_outputs_are_refused_before_the_work(run, take: Path, monkeypatch) -> None:
    take.with_name("p.png").write_text("mine")
    monkeypatch.setattr(editjax.editor, "listen", lambda *_: pytest.fail("worked before refusing"))
    done = run("edit", take, "--plot", take.with_name("p.png"))
    assert done.code == 73 and "p.png" in done.err and take.with_name("p.png").read_text() == "mine"
    assert not take.with_name("take_edited.wav").exists()


@pytest.mark.parametrize("command", ["edit", "render"])
def test_what_cannot_be_written_is_refused_before_the_work(run, take: Path, monkeypatch, command) -> None:
    run("edit", take, "-q")
    words = (
        ["edit", take] if command == "edit" else ["render", take, take.with_name("take_edited.edits.json")]
    )
    monkeypatch.setattr(editjax.editor, "listen", lambda *_: pytest.fail("worked before refusing"))
    monkeypatch.setattr(editjax.render, "render", lambda *_: pytest.fail("worked before refusing"))
    done = run(*words, "-o", take.with_name("o.wav"), "--save-removed", take.with_name("cut.xyz"))
    assert done.code == 73 and "cut.xyz" in done.err
    done = run(*words, "-o", take.with_name("o.wav"), "--plot", take.with_name("p.xyz"))
    assert done.code == 2 and "p.xyz" in done.err


def test_pictures_may_be_named_in_capitals(run, take: Path) -> None:
    assert run("edit", take, "--plot", take.with_name("P.PNG")).code == 0
    assert take.with_name("P.PNG").read_bytes().startswith(b"\x89PNG")


def test_overwrite_replaces_outputs(run, take: Path) -> None:
    edited = take.with_name("take_edited.wav")
    edited.write_text("old")
    assert run("edit", take).code == 73 and edited.read_text() == "old"
    assert run("edit", take, "--overwrite").code == 0 and soundfile.info(edited).frames


def test_everything_that_can_be_asked_for_is_written(run, take: Path) -> None:
    folder = take.parent / "out"
    folder.mkdir()
    words = ["--export", "otio,edl,audacity,csv,rpp,fcpxml,auto-editor", "--plot", folder / "p.png"]
    words += ["--save-removed", folder / "removed.wav", "--preview-joins", folder / "joins"]
    done = run("edit", take, "-o", folder / "e.wav", "--edits", folder / "list.edits.json", *words)
    assert done.code == 0, done.err
    names = {path.name for path in folder.iterdir()}
    assert {"e.wav", "list.edits.json", "p.png", "removed.wav", "joins"} <= names
    assert {"e.otio", "e.edl", "e.labels.txt", "e.csv", "e.rpp", "e.fcpxml", "e.v1.json"} <= names
    assert len(list((folder / "joins").iterdir())) == 1
    whole = soundfile.info(take).frames
    assert soundfile.info(folder / "removed.wav").frames + soundfile.info(folder / "e.wav").frames == whole
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_where_nothing_was_cut_there_is_no_file_of_it(run, take: Path) -> None:
    removed = take.with_name("removed.flac")
    done = run("edit", take, "--keep", "start,end", "--save-removed", removed, "--json")
    assert done.code == 0 and not removed.exists() and "removed" not in json.loads(done.out)
    assert not [path for path in take.parent.iterdir() if path.name.startswith(".")]


def test_a_failure_at_the_end_leaves_nothing(run, take: Path, monkeypatch) -> None:
    """All outputs appear together: here the last one, the picture, fails."""
    import editjax.picture

    def fail(*_, **__):
        raise editjax.errors.InputOutputError("p.png: no")

    monkeypatch.setattr(editjax.picture, "draw_edit", fail)
    done = run("edit", take, "--plot", take.with_name("p.png"), "--preview-joins", take.with_name("joins"))
    assert done.code == 74 and list(take.parent.iterdir()) == [take]


def test_interrupt_leaves_nothing(run, take: Path, monkeypatch) -> None:
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(editjax.editor, "fulfil", interrupt)
    done = run("edit", take)
    assert done.code == 130 and done.err.count("\n") == 1 and list(take.parent.iterdir()) == [take]


def test_internal_errors_show_their_traceback_only_when_debugging(run, take: Path, monkeypatch) -> None:
    def break_down(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(editjax.editor, "fulfil", break_down)
    done = run("edit", take)
    assert done.code == 70 and done.err.count("\n") == 1 and "a bug" in done.err
    done = run("edit", take, "--debug")
    assert done.code == 70 and "Traceback" in done.err
    assert list(take.parent.iterdir()) == [take]


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["--target-length", "2:30"], {"target_s": 150.0}),
        (["--temperature", "0.5", "--seed", "7"], {"temperature": 0.5, "seed": 7}),
        (["--margin", "0.1,0.2"], {"margin_s": (0.1, 0.2)}),
        (["--min-clip", "3"], {"min_clip_s": 3.0}),
        (["--max-pause", "1.5s"], {"max_pause_s": 1.5}),
        (["--snap", "bar"], {"snap": "bar"}),
        (["--keep", "1,2", "--keep", "4,5", "--cut", "3,4"], {"keep": ("1,2", "4,5"), "cut": ("3,4",)}),
        (["--crossfade-ms", "25"], {"render": RenderSettings(crossfade_ms=25.0)}),
        (["--editor", "silence"], {"editor": "silence"}),
        (["--model", "other"], {"model": "other"}),
        (["--style", "tight"], {"style": "tight"}),
        (["--style-from", "b_edit.wav"], {"style_from": "b_edit.wav"}),
        (["--max-channels", "2"], {"limits": AudioLimits(max_channels=2)}),
        (["--max-duration", "2:00:00"], {"limits": AudioLimits(max_duration_s=7200.0)}),
        (["--max-rate", "96000"], {"limits": AudioLimits(max_sample_rate_hz=96_000)}),
        (["--allow-truncated"], {"allow_truncated": True}),
    ],
)
def test_every_option_reaches_the_editor(words: list[str], changed: dict[str, Any]) -> None:
    options = parse(EditOptions, ["a.wav", *words], "editjax edit", spread="inputs")
    assert settings_of(options) == EditSettings(**changed)


def test_keep_and_cut_have_the_last_word(run, take: Path) -> None:
    run("edit", take, "-q", "--keep", "1.2,1.4", "--cut", "0:00,0:00.5", "--cut", "-0.2,end")
    spans = [
        (s.start / RATE_HZ, s.stop / RATE_HZ) for s in read_edits(take.with_name("take_edited.edits.json"))[1]
    ]
    assert spans[0][0] == pytest.approx(0.5, abs=0.005) and spans[-1][1] == pytest.approx(3.3, abs=0.005)
    assert any(start <= 1.2 and stop >= 1.4 for start, stop in spans)


def test_margin_replaces_the_editors_own(run, take: Path) -> None:
    def cut_s(*words: str) -> float:
        return json.loads(run("edit", take, "--dry-run", "--json", *words).out)["cut_s"]

    assert cut_s("--margin", "0") == pytest.approx(cut_s("--margin", "0.1,0.3") + 0.4, abs=0.03)


def test_the_whole_cut_away_is_an_error(run, take: Path) -> None:
    done = run("edit", take, "--cut", "start,end")
    assert done.code == 65 and "empty" in done.err and list(take.parent.iterdir()) == [take]


def edited(pointers_N: np.ndarray, n_frames: int, stopped: bool = True) -> EditedPointers:
    """What a stand-in network says: every frame is kept, and nothing is known of what it is."""
    kind_T = np.full(n_frames, UNKNOWN, np.int8)
    return EditedPointers(pointers_N, np.zeros(len(pointers_N)), np.ones(n_frames), kind_T, 50.0, stopped)


def test_variants_differ_and_are_numbered(run, take: Path, monkeypatch) -> None:
    """Each seed of a stand-in network keeps another stretch of the recording."""

    def edit_pointers(mel_TF, phase_T3, *, temperature, seed, style, stems_IMF):
        pointers_N = np.arange(10, 60 + 20 * seed)
        return edited(pointers_N, len(mel_TF))

    network = SimpleNamespace(
        mel=MelSettings(),
        phases=lambda mel_TF: np.zeros((len(mel_TF), 3)),
        some_style=lambda style, seed: np.zeros(4),
        edit_pointers=edit_pointers,
        style="final",
    )
    monkeypatch.setattr(editjax.decision, "_network", lambda model: network)
    words = [
        "--editor",
        "pointer",
        "--temperature",
        "1",
        "--variants",
        "3",
        "--plot",
        take.with_name("p.png"),
    ]
    done = run("edit", take, *words, "--json")
    assert done.code == 0, done.err
    outputs_s = [json.loads(line)["output_s"] for line in done.out.splitlines()]
    assert outputs_s[0] < outputs_s[1] < outputs_s[2]
    names = {path.name for path in take.parent.iterdir()}
    assert {f"take_edited{k}.wav" for k in ("", "_2", "_3")} | {f"p{k}.png" for k in ("", "_2", "_3")} < names


@pytest.mark.parametrize("there_are", [1, 2, 3])
def test_the_likeliest_variants_are_written_and_fewer_are_said(
    run, take: Path, monkeypatch, there_are
) -> None:
    """A stand-in network knows so many edits; nothing is left of the places of others."""

    def variants(mel_TF, phase_T3, count, style, stems_IMF):
        assert count == 3
        return [edited(np.arange(10, 40 + 20 * k), len(mel_TF)) for k in range(there_are)]

    network = SimpleNamespace(
        mel=MelSettings(),
        phases=lambda mel_TF: np.zeros((len(mel_TF), 3)),
        variants=variants,
        point_of=lambda style: np.zeros(1),
        style="final",
    )
    monkeypatch.setattr(editjax.decision, "_network", lambda model: network)
    words = ["--editor", "pointer", "--variants", "3", "--preview-joins", take.with_name("joins")]
    said = run("edit", take, "--dry-run", "--json", *words)
    assert len(said.out.splitlines()) == there_are and list(take.parent.iterdir()) == [take]
    done = run("edit", take, "--json", *words)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["editor"]["variant"] for line in lines] == [1, 2, 3][:there_are]
    endings = ["", "_2", "_3"][:there_are]
    names = {path.name for path in take.parent.iterdir()} - {"joins"}
    written = {f"take_edited{k}{suffix}" for k in endings for suffix in (".wav", ".edits.json")}
    assert names == {"take.wav"} | written
    for about in (said.err, done.err):
        assert about.count("\n") == (there_are < 3) and (f"only {there_are} variant" in about) == (
            there_are < 3
        )


def test_no_variant_is_as_empty_as_an_empty_edit(run, take: Path, monkeypatch) -> None:
    network = SimpleNamespace(
        mel=MelSettings(),
        phases=lambda mel_TF: np.zeros((len(mel_TF), 3)),
        variants=lambda *_, **__: [],
        edit_pointers=lambda mel_TF, *_, **__: edited(np.arange(0), len(mel_TF)),
        point_of=lambda style: np.zeros(1),
        style="final",
    )
    monkeypatch.setattr(editjax.decision, "_network", lambda model: network)
    done = run("edit", take, "--editor", "pointer", "--variants", "2")
    assert done.code == 65 and "would be empty" in done.err and list(take.parent.iterdir()) == [take]


@pytest.mark.parametrize("stopped", [True, False])
def test_an_edit_without_an_end_is_doubted(run, take: Path, monkeypatch, stopped: bool) -> None:
    network = SimpleNamespace(
        mel=MelSettings(),
        phases=lambda mel_TF: np.zeros((len(mel_TF), 3)),
        edit_pointers=lambda mel_TF, *_, **__: edited(np.arange(50), len(mel_TF), stopped),
        point_of=lambda style: np.zeros(1),
        style="final",
    )
    monkeypatch.setattr(editjax.decision, "_network", lambda model: network)
    done = run("edit", take, "--editor", "pointer", "--dry-run")
    assert done.code == 0 and ("no end" in done.out) != stopped


def test_batch_goes_on_after_a_bad_file(run, tmp_path: Path) -> None:
    for name in ("a", "c"):
        recording(tmp_path / f"{name}.wav")
    (tmp_path / "b.wav").write_text("no audio")
    done = run("edit", tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "missing.wav", tmp_path / "c.wav")
    assert done.code == 65
    lines = done.err.splitlines()
    assert (
        len(lines) == 3
        and "b.wav" in lines[0]
        and "missing.wav" in lines[1]
        and "2 done, 2 failed" in lines[2]
    )
    assert (tmp_path / "a_edited.wav").exists() and (tmp_path / "c_edited.wav").exists()


def test_a_folder_is_all_its_recordings_but_not_their_edits(run, tmp_path: Path) -> None:
    recording(tmp_path / "a.wav")
    recording(tmp_path / "b.flac")
    recording(tmp_path / "c_edited.wav")  # of nothing that is here
    (tmp_path / ".hidden.wav").write_text("")
    for words in ([], ["--overwrite"]):
        assert run("edit", tmp_path, "--save-removed", tmp_path, *words).code == 0
    names = {path.name for path in tmp_path.iterdir() if path.suffix != ".json"}
    made = {f"{name}_edited{end}" for name in "ab" for end in ("", "_removed")}
    assert {name.partition(".")[0] for name in names} == {"", "a", "b", "c_edited", *made} | {
        "c_edited_edited", "c_edited_edited_removed"
    }  # fmt: skip


def test_several_inputs_into_one_new_folder(run, tmp_path: Path) -> None:
    sources = [recording(tmp_path / f"{name}.wav") for name in "ab"]
    out = tmp_path / "new" / "folder"
    done = run("edit", *sources, "-o", out, "--plot", out, "--preview-joins", out / "joins")
    assert done.code == 0, done.err
    assert {"a_edited.wav", "b_edited.wav", "a_edited.png", "b_edited.png"} <= {p.name for p in out.iterdir()}
    assert {path.name for path in (out / "joins").iterdir()} == {"a_edited", "b_edited"}


def test_one_name_for_several_outputs_is_refused(run, tmp_path: Path) -> None:
    sources = [recording(tmp_path / f"{name}.wav") for name in "ab"]
    done = run("edit", *sources, "-o", tmp_path / "both.wav")
    assert done.code == 2 and not (tmp_path / "both.wav").exists()


@pytest.mark.parametrize("names", [("in/a.wav", "in/a.flac"), ("in/01.wav", "in/2/01.wav")])
def test_inputs_that_would_write_the_same_file_are_refused(run, tmp_path: Path, names) -> None:
    (tmp_path / "in" / "2").mkdir(parents=True)
    sources = [recording(tmp_path / name) for name in names]
    done = run("edit", *sources, "-o", tmp_path / "out", "--overwrite")
    assert done.code == 2 and all(str(source) in done.err for source in sources)
    assert not (tmp_path / "out").exists()


def test_a_batch_never_writes_over_one_of_its_inputs(run, tmp_path: Path) -> None:
    sources = [recording(tmp_path / name) for name in ("a.wav", "a_edited.wav")]
    before = sources[1].read_bytes()
    assert run("edit", *sources, "--overwrite").code == 2 and sources[1].read_bytes() == before


def test_folders_that_were_made_go_again_after_an_error(run, tmp_path: Path) -> None:
    sources = [recording(tmp_path / f"{name}.wav") for name in "ab"]
    new = tmp_path / "new"
    done = run("edit", *sources, "-o", new, "--preview-joins", new / "joins", "--cut", "start,end")
    assert done.code == 65 and not new.exists()


def test_options_may_stand_between_inputs(run, tmp_path: Path) -> None:
    sources = [recording(tmp_path / f"{name}.wav") for name in "ab"]
    assert run("edit", sources[0], "-q", sources[1]).code == 0
    assert (tmp_path / "b_edited.wav").exists()


def test_render_plays_an_edit_list_again(run, take: Path) -> None:
    run("edit", take, "-q")
    edits = take.with_name("take_edited.edits.json")
    assert run("render", take, edits, "-o", take.with_name("again.wav")).code == 0
    assert take.with_name("again.wav").read_bytes() == take.with_name("take_edited.wav").read_bytes()


def test_render_follows_a_hand_changed_list(run, take: Path) -> None:
    run("edit", take, "-q")
    edits = take.with_name("take_edited.edits.json")
    tree = json.loads(edits.read_text())
    tree["segments"] = [{"start": 100, "stop": 5100}, {"start": 0, "stop": 4000}]
    edits.write_text(json.dumps(tree))
    done = run("render", take, edits, "--overwrite")
    assert done.code == 0 and soundfile.info(take.with_name("take_edited.wav")).frames == 9000


def test_render_refuses_another_recording_unless_forced(run, take: Path) -> None:
    run("edit", take, "-q")
    edits = take.with_name("take_edited.edits.json")
    other = recording(take.with_name("other.wav"), gap_s=2.0)
    out = take.with_name("o.wav")
    done = run("render", other, edits, "-o", out)
    assert done.code == 65 and "SHA-256" in done.err and not out.exists()
    assert run("render", other, edits, "-o", out, "--force").code == 0 and out.exists()


def test_a_render_is_named_after_its_list(run, take: Path) -> None:
    run("edit", take, "-q")
    edits = take.with_name("take_edited.edits.json").rename(take.with_name("plain.json"))
    assert run("render", take, edits).code == 0 and take.with_name("plain.wav").exists()


def test_render_never_writes_over_its_inputs(run, take: Path) -> None:
    run("edit", take, "-q")
    edits = take.with_name("take_edited.edits.json")
    before = take.read_bytes(), edits.read_bytes()
    assert run("render", take, edits, "-o", take, "--overwrite").code == 73
    assert run("render", take, edits, "--save-removed", edits, "--overwrite").code == 73
    assert (take.read_bytes(), edits.read_bytes()) == before


def test_align_recovers_an_edit_from_its_sound(run, take: Path) -> None:
    run("edit", take, "-q")
    edited, folder = take.with_name("take_edited.wav"), take.with_name("found")
    done = run("align", take, edited, "-o", folder)
    assert done.code == 0 and "100.0% of" in done.out and "2 clips" in done.out, done.err
    names = {
        "take_edited" + end
        for end in (".edits.json", "_pointers.npy", "_labels.npy", "_info.json", "_alignment.png")
    }
    assert {path.name for path in folder.iterdir()} == names
    true, found = (read_edits(path / "take_edited.edits.json").segments for path in (take.parent, folder))
    for a, b in zip(true, found, strict=True):
        assert abs(a.start - b.start) < 512 and abs(a.stop - b.stop) < 512
    ops = run("align", take, edited, "-o", take.with_name("ops"), "--as-ops").out
    assert "COPY" in ops and "CUT" in ops
    assert run("align", take, edited, "-o", folder).code == 73
    assert run("align", take, edited, "-o", folder, "--overwrite", "-q").out == ""


def test_limits_and_truncated_files_are_for_every_command_that_reads(run, take: Path) -> None:
    run("edit", take, "-q")
    edits, edited = take.with_name("take_edited.edits.json"), take.with_name("take_edited.wav")
    commands = [("edit", take), ("render", take, edits), ("align", take, edited)]
    for number, command in enumerate(commands):
        words = [*command, "-o", take.with_name(f"{number}")]
        for limit in (["--max-duration", "1"], ["--max-channels", "0"], ["--max-rate", "8000"]):
            assert run(*words, *limit).code == 65
    edited.write_bytes(edited.read_bytes()[:-20_000])
    words = ["align", take, edited, "-o", take.with_name("found")]
    assert run(*words).code == 65 and run(*words, "--allow-truncated").code == 0
    assert InputOptions().limits() == AudioLimits()


def test_align_makes_no_folder_for_what_it_cannot_read(run, take: Path) -> None:
    assert run("align", take, take.with_name("none.wav"), "-o", take.with_name("found")).code == 66
    assert not take.with_name("found").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["edti", "a.wav"], "did you mean 'edit'"),
        (["edit", "a.wav", "--crosfade-ms", "5"], "did you mean --crossfade-ms"),
        (["edit", "a.wav", "--editor", "silnce"], "'silnce'"),
        (["edit", "a.wav", "--crossfade-ms", "long"], "--crossfade-ms"),
        (["edit", "a.wav", "--crossfade-ms", "-5"], "crossfade_ms"),
        (["edit", "a.wav", "--margin", "wide"], "'wide'"),
        (["edit", "a.wav", "--max-pause", "1:2:3:4"], "1:2:3:4"),
        (["edit", "a.wav", "--export", "reper"], "rpp"),
        (["edit"], "name a recording"),
        (["edit", "a.wav", "--temperature", "0.5", "--editor", "silence"], "pointer"),
        (["edit", "a.wav", "--editor", "silence", "--variants", "2"], "--editor pointer"),
        (["edit", "a.wav", "--variants", "0"], "--variants"),
        (["simulate"], "FOLDER"),
        (["simulate", "out", "--min-lenght-s", "30"], "did you mean --min-length-s"),
        (["train", "--fields"], "CONFIG"),
        (["render", "a.wav", "b.json", "c.json"], "c.json"),
    ],
)
def test_usage_errors_are_one_line_with_a_hint(run, words: list[str], hint: str) -> None:
    done = run(*words)
    assert done.code == 2 and not done.out
    assert done.err.count("\n") == 1 and done.err.startswith("editjax: ") and hint in done.err


def test_a_recording_in_place_of_a_command_is_understood(run, take: Path) -> None:
    assert f"did you mean: editjax edit {take}" in run(take).err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command: str) -> None:
    done = run(command, "--help")
    assert done.code == 0 and f"usage: editjax {command}" in done.out and not done.err


def test_the_help_of_render_speaks_of_its_own_inputs(run) -> None:
    text = " ".join(run("render", "--help").out.split())
    assert "beside EDITS.json" in text and "several inputs" not in text


def test_help_names_every_command(run) -> None:
    done = run("--help")
    assert done.code == 0 and all(f"\n  {command} " in done.out for command in COMMANDS)
    assert run().code == 2


def test_clock() -> None:
    assert [clock(s) for s in (0, 7.25, 59.96, 61.04, 3599.96, 3723.4, -70.7)] == [
        "0:00.0", "0:07.2", "1:00.0", "1:01.0", "1:00:00.0", "1:02:03.4", "−1:10.7",
    ]  # fmt: skip


def test_a_command_closes_pipes_quietly(take: Path) -> None:
    """In a process of its own: the exit code arrives, and a reader that goes away causes no traceback."""
    command = [sys.executable, "-m", "editjax", "edit", str(take), "--json", "--editor", "silence"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read() and process.wait() in (0, 74)
    process.stderr.close()
    assert take.with_name("take_edited.wav").exists()
