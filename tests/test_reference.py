"""Styles by example: an edited track, a pair or an edit list is heard as the edit it is."""

import shutil

import numpy as np
import pytest
import soundfile

from editjax.cli import main
from editjax.edit_list import EditList, Segment, Source, read_edits, write_edits
from editjax.editor import EditSettings, edit
from editjax.errors import DataError, NoInputError, UsageError
from editjax.formats import DEFAULT_LIMITS
from editjax.network import load_model
from editjax.reference import style_of_example

RATE_HZ = 22050
CUTS = ((22050, 88200), (110250, 264600))


@pytest.fixture(scope="module")
def network():
    return load_model("final")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recording of noise bursts, an edit of it and its edit list."""
    folder = tmp_path_factory.mktemp("example")
    rng = np.random.default_rng(0)
    envelope = np.interp(np.arange(14 * RATE_HZ), np.arange(141) * RATE_HZ // 10, rng.uniform(0, 0.5, 141))
    raw = (envelope * rng.normal(size=14 * RATE_HZ)).clip(-0.9, 0.9).astype(np.float32)
    soundfile.write(folder / "take_raw.wav", raw, RATE_HZ)
    soundfile.write(folder / "take_edit.wav", np.concatenate([raw[a:b] for a, b in CUTS]), RATE_HZ)
    source = Source("take_raw.wav", "", RATE_HZ, 1, len(raw))
    segments = tuple(Segment(a, b, a, b) for a, b in CUTS)
    write_edits(EditList(source, segments, {}), folder / "take.edits.json")
    return folder


def test_a_pair_and_its_edit_list_are_one_example(network, folder):
    pair = style_of_example(folder / "take_edit.wav", network, DEFAULT_LIMITS)
    listed = style_of_example(folder / "take.edits.json", network, DEFAULT_LIMITS)
    np.testing.assert_allclose(pair, listed, atol=0.02)


def test_without_its_recording_an_edit_is_heard_alone(network, folder, tmp_path):
    shutil.copy(folder / "take_edit.wav", tmp_path / "somebodys.wav")
    alone = style_of_example(tmp_path / "somebodys.wav", network, DEFAULT_LIMITS)
    pair = style_of_example(folder / "take_edit.wav", network, DEFAULT_LIMITS)
    assert alone.shape == (network.settings.style_width,)
    assert np.abs(alone - pair).max() > 0.02


def test_what_is_no_example_is_refused(network, folder, tmp_path):
    with pytest.raises(NoInputError, match="no such file"):
        style_of_example(tmp_path / "nothing.wav", network, DEFAULT_LIMITS)
    shutil.copy(folder / "take.edits.json", tmp_path)
    with pytest.raises(DataError, match="needs its recording beside it"):
        style_of_example(tmp_path / "take.edits.json", network, DEFAULT_LIMITS)
    shutil.copy(folder / "take_edit.wav", tmp_path / "other_edit.wav")
    soundfile.write(tmp_path / "other_raw.wav", np.zeros(RATE_HZ), RATE_HZ)
    with pytest.raises(DataError, match="no example of a style"):
        style_of_example(tmp_path / "other_edit.wav", network, DEFAULT_LIMITS)
    soundfile.write(tmp_path / "other_raw.flac", np.zeros(RATE_HZ), RATE_HZ)
    with pytest.raises(DataError, match="several raw recordings"):
        style_of_example(tmp_path / "other_edit.wav", network, DEFAULT_LIMITS)


def test_the_edit_list_says_which_style_was_asked_for(folder, tmp_path):
    raw, example = folder / "take_raw.wav", str(folder / "take_edit.wav")
    keep = ("0,1",)
    named = edit(raw, out=tmp_path / "a.wav", settings=EditSettings(style="final", keep=keep))
    assert named.edit_list.editor["style"] == "final"
    by_example = edit(raw, out=tmp_path / "b.wav", settings=EditSettings(style_from=example, keep=keep))
    assert by_example.edit_list.editor["style"] == example
    drawn = edit(raw, out=tmp_path / "c.wav", settings=EditSettings(style="any", seed=3, keep=keep))
    assert (drawn.edit_list.editor["style"], drawn.edit_list.editor["seed"]) == ("any", 3)


def test_styles_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="--style or --style-from"):
        EditSettings(style="final", style_from="a.wav")
    with pytest.raises(UsageError, match="pointer editor"):
        EditSettings(editor="silence", style="final")


def test_the_command_refuses_them_before_the_work(folder, tmp_path, capsys):
    raw = str(folder / "take_raw.wav")
    assert main(["edit", raw, "-o", str(tmp_path / "x.wav"), "--style", "nonsense"]) == 2
    assert "'nonsense' is unknown to this model" in capsys.readouterr().err
    assert main(["edit", raw, "-o", str(tmp_path / "x.wav"), "--style-from", "nothing.wav"]) == 66
    assert list(tmp_path.iterdir()) == []
    arguments = ["--keep", "0,1", "--style-from", str(folder / "take.edits.json"), "-q"]
    assert main(["edit", raw, "-o", str(tmp_path / "x.wav"), *arguments]) == 0
    assert read_edits(tmp_path / "x.edits.json").editor["style"].endswith("take.edits.json")
