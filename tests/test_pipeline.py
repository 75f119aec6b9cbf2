"""Prepare on Apache Beam: the bytes of the local pool, whatever runs the jobs, interruptions included."""

import subprocess
import sys

import pytest
from test_prepare import fingerprints, write_pair

from editjax import pipeline
from editjax import prepare as module
from editjax.cli import main
from editjax.errors import CannotCreateError, InputOutputError, TryAgainError, UsageError
from editjax.prepare import PrepareSettings, prepare

PROCESSES = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
THREADS = ("--direct_num_workers=3", "--direct_running_mode=multi_threading")


@pytest.fixture
def pairs(tmp_path):
    """Three good recordings and a bad one, one of them with a bad edit."""
    folder = tmp_path / "pairs"
    for k in range(3):
        write_pair(folder, f"s{k}", seed=k)
    write_pair(folder, "s1", seed=1, style="radio")
    write_pair(folder, "s1", seed=1, style="loud")
    (folder / "broken_raw.wav").write_bytes(b"no audio at all")
    (folder / "broken_edit.wav").write_bytes(b"neither")
    return folder


def everything(folder):
    """The bytes of all that lies in a folder of shards."""
    return {path.name: path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "words",
    [(), pytest.param(PROCESSES, marks=pytest.mark.slow), THREADS],
    ids=["one", "processes", "threads"],
)
def test_beam_writes_the_bytes_of_the_pool(pairs, tmp_path, words):
    pytest.importorskip("apache_beam")
    report = prepare(pairs, tmp_path / "pool", workers=2)
    assert report["good"] == ["s0", "s1", "s1~radio", "s2"]
    assert [bad["pair"] for bad in report["skipped"]] == ["broken", "s1~loud"]
    prepare(pairs, tmp_path / "one", workers=1)
    assert prepare(pairs, tmp_path / "beam", runner="direct", runner_options=words) == report
    assert everything(tmp_path / "beam") == everything(tmp_path / "pool") == everything(tmp_path / "one")
    assert len(fingerprints(tmp_path / "beam")) == 1


def test_an_interrupted_run_on_beam_goes_on_there_or_in_the_pool(pairs, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam")
    prepare(pairs, tmp_path / "whole", workers=1)
    real, asked = module.prepare_recording, []

    def failing(files, settings):
        if len(asked) == 2:
            raise MemoryError("no memory left")
        asked.append(files.id)
        return real(files, settings)

    for runner in ("direct", None):
        out, words = tmp_path / f"out {runner}", {"runner": runner} if runner else {"workers": 1}
        asked.clear()
        monkeypatch.setattr(module, "prepare_recording", failing)
        with pytest.raises(TryAgainError, match=r"no memory left.*; finished recordings are kept, run again"):
            prepare(pairs, out, runner="direct")
        assert not (out / "manifest.json").exists()
        first, before = sorted(asked), len(asked)
        monkeypatch.setattr(module, "prepare_recording", lambda f, s: asked.append(f.id) or real(f, s))
        prepare(pairs, out, **words)
        whole = {name for name in first if name in ("s0", "s2")}  # with nothing to try again
        assert sorted(asked[before:]) == sorted({"broken", "s0", "s1", "s2"} - whole)
        assert everything(out) == everything(tmp_path / "whole")


def test_other_shards_are_not_overwritten_unasked_on_beam_either(pairs, tmp_path):
    pytest.importorskip("apache_beam")
    report = prepare(pairs, tmp_path / "out", runner="direct")
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert prepare(pairs, tmp_path / "out", runner="direct") == report
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    other = PrepareSettings(split="validation")
    with pytest.raises(CannotCreateError, match="--overwrite"):
        prepare(pairs, tmp_path / "out", other, runner="direct")
    prepare(pairs, tmp_path / "out", other, overwrite=True, runner="direct")


def test_the_command_hands_beam_what_follows_the_dashes(pairs, tmp_path, capfd):
    pytest.importorskip("apache_beam")
    words = [str(pairs), str(tmp_path / "out"), "--runner", "direct", "--", *THREADS]
    assert main(["prepare", *words]) == 0
    assert "4 pairs in" in capfd.readouterr().out
    assert (
        main(
            [
                "prepare",
                str(pairs),
                str(tmp_path / "no"),
                "--runner",
                "direct",
                "--",
                "--direct_num_workers=x",
            ]
        )
        == 2
    )
    assert "editjax: Beam's options after --: argument --direct_num_workers: invalid int value: 'x'" in (
        capfd.readouterr().err
    )
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("word", ["--direct_num_worker=2", "--direct_num_worker", "2", "-x"])
@pytest.mark.parametrize("runner", ["direct", "flink"])
def test_an_option_that_beam_does_not_know_is_refused_by_name(runner, word, caplog):
    pytest.importorskip("apache_beam")
    assert pipeline.start(runner, THREADS)
    with pytest.raises(
        UsageError, match=f"Beam's options after --: {word.partition('=')[0]} is none of them"
    ):
        pipeline.start(runner, [*THREADS, word, "3"])
    assert "Discarding" not in caplog.text  # one line says it


def test_without_beam_the_runner_is_refused_in_one_line_that_says_what_to_install(
    pairs, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UsageError, match=r"pip install 'editjax\[beam\]'"):
        prepare(pairs, tmp_path / "out", runner="spark")
    assert not (tmp_path / "out").exists()


def test_a_runner_that_lacks_something_is_refused_before_anything_is_written(pairs, tmp_path, capfd):
    pytest.importorskip("apache_beam")
    assert main(["prepare", str(pairs), str(tmp_path / "out"), "--runner", "dataflow"]) == 2
    assert "editjax: --runner dataflow: " in capfd.readouterr().err  # its package, or a project
    assert not (tmp_path / "out").exists()


def test_what_a_runner_says_of_its_options_is_one_line(monkeypatch):
    beam = pytest.importorskip("apache_beam")

    def refuse(**_):
        raise ValueError("no project\nand no region")

    monkeypatch.setattr(beam, "Pipeline", refuse)
    with pytest.raises(UsageError, match=r"^--runner dataflow: no project\Z"):
        pipeline.start("dataflow", [])


def test_options_of_the_one_way_are_refused_for_the_other(pairs, tmp_path, capsys):
    with pytest.raises(UsageError, match="--workers is of the local pool"):
        prepare(pairs, tmp_path / "out", workers=2, runner="direct")
    assert main(["prepare", str(pairs), str(tmp_path / "out"), "--", "--region=x"]) == 2
    assert "--region=x: what follows -- is for Apache Beam; name its --runner" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_workers_that_write_elsewhere_are_noticed(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "start", lambda runner, words: None)
    monkeypatch.setattr(pipeline, "run_each", lambda function, jobs, **_: None)
    with pytest.raises(InputOutputError, match="nothing came of 4 recordings such as broken; every worker"):
        prepare(pairs, tmp_path / "out", runner="flink")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_importing_the_command_imports_neither_beam_nor_fsspec():
    program = (
        "import sys, editjax.cli.prepare; "
        "print([name for name in ('apache_beam', 'fsspec', 'etils') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
