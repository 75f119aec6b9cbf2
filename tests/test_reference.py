"""Styles by example: an edited track, a pair or an edit list is heard as the edit it is."""

import shutil

import numpy as np
import pytest
import soundfile

from editjax.cli import main
from editjax.decision import EditSettings
from editjax.edit_list import EditList, Segment, Source, read_edits, write_edits
from editjax.editor import edit
from editjax.errors import DataError, NoInputError, UsageError
from editjax.formats import DEFAULT_LIMITS
from editjax.network import PointerNetwork, load_model
from editjax.reference import style_of_example

RATE_HZ = 22050
CUTS = ((43 * 512, 172 * 512), (215 * 512, 517 * 512))  # on frames: pointers are the same, aligned or listed


@pytest.fixture(scope="module")
def network():
    return load_model("styles")


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


def test_a_pair_and_its_edit_list_are_one_example_and_an_edit_alone_another(network, folder, tmp_path):
    """Aligned, the frame at the join may be taken for its neighbour."""
    shutil.copy(folder / "take_edit.wav", tmp_path / "somebodys.wav")
    examples = folder / "take_edit.wav", folder / "take.edits.json", tmp_path / "somebodys.wav"
    pair, listed, alone = (style_of_example(path, network, DEFAULT_LIMITS) for path in examples)
    assert pair.shape == (network.settings.style_width,)
    assert np.abs(pair - listed).max() < 0.2 * np.abs(alone - pair).max() and np.abs(alone - pair).max() > 0.1


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


def test_the_style_asked_for_is_what_the_network_is_given_and_the_edit_list_says(
    network, folder, tmp_path, monkeypatch
):
    given, edit_pointers = [], PointerNetwork.edit_pointers

    def watched(self, *inputs, style, **named):
        given.append(style)
        return edit_pointers(self, *inputs, style=style, **named)

    monkeypatch.setattr(PointerNetwork, "edit_pointers", watched)
    example = str(folder / "take_edit.wav")
    heard = style_of_example(example, network, DEFAULT_LIMITS)
    asked = (
        ({}, "final", {"style": "final"}, network.point_of("final")),
        (
            {"style": "final", "temperature": 0.5, "seed": 4},
            "final",
            {"style": "final"},
            network.some_style("final", 4),
        ),
        ({"style": "loose"}, "styles", {"style": "loose"}, network.point_of("loose")),
        ({"style": "final", "model": "styles"}, "styles", {"style": "final"}, network.point_of("final")),
        ({"style_from": example}, "styles", {"style_from": example}, heard),
        ({"style": "any", "seed": 3}, "styles", {"style_drawn": 3}, network.some_style("any", 3)),
    )
    for number, (named, model, said, style) in enumerate(asked):
        settings = EditSettings(keep=["0,1"], **named)
        edited = edit(folder / "take_raw.wav", out=tmp_path / f"{number}.wav", settings=settings)
        editor = edited.edit_list.editor
        assert editor["model"] == model
        assert {name: value for name, value in editor.items() if name.startswith("style")} == said
        assert editor.get("seed") == named.get("seed")
        np.testing.assert_array_equal(given.pop(), style)
    assert not given


def test_an_edit_that_editjax_made_is_an_example_too(folder, tmp_path, network):
    """Whatever its list says of the style it was made in."""
    raw = shutil.copy(folder / "take_raw.wav", tmp_path)
    words = [
        "--style",
        "any",
        "--seed",
        "3",
        "--keep",
        "0,1",
        "-q",
        "--edits",
        str(tmp_path / "take.edits.json"),
    ]
    assert main(["edit", str(raw), "-o", str(tmp_path / "take_edit.wav"), *words]) == 0
    assert np.isfinite(style_of_example(tmp_path / "take_edit.wav", network, DEFAULT_LIMITS)).all()


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
    assert read_edits(tmp_path / "x.edits.json").editor["style_from"].endswith("take.edits.json")
