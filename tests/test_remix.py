"""`editjax remix`: two recordings, a creative agent and its codec, both small and untrained → a new piece."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import soundfile
from window_cases import TINY

from editjax.bundle import flatten
from editjax.cli import main
from editjax.config import to_json
from editjax.export import write_bundle
from editjax.mel import MelSettings
from editjax.models import codec, window

RATE_HZ = 4000
AGENT = replace(
    TINY, sample_rate_hz=RATE_HZ, frames_per_second=8.0, ratios=4, channels=6, match_width=4, selector_width=8
)
CODEC = codec.CodecSettings(
    sample_rate_hz=RATE_HZ, n_filters=2, ratios=(20, 25), dimension=6, residual_layers=0, lstm_layers=0,
    codebooks=1, codes=4, bandwidths_kbps=(0.1,),
)  # fmt: skip


def write_model(folder, module, settings):
    """A model of fresh parameters."""
    params = jax.jit(module.init, static_argnums=0)(settings, jax.random.key(1))
    training = {"step": 0, "checkpoint": "last", "export_command": "", "scores": None}
    facts = {"family": folder.name, "model": to_json(settings), "mel": to_json(MelSettings())}
    write_bundle(folder, flatten(params), facts | {"training": training, "licence": ""})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folders of an agent and a codec with fresh parameters."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "window", window, AGENT)
    write_model(folder / "codec", codec, CODEC)
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """One longer than the agent hears, in stereo, and one shorter, at another rate."""
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    soundfile.write(folder / "long.wav", 0.2 * rng.normal(size=(30 * 8000, 2)), 8000)
    soundfile.write(folder / "short.wav", 0.2 * rng.normal(size=5 * 6000), 6000)
    return folder


def remixed(models, recordings, out, *words):
    both = [str(recordings / name) for name in ("long.wav", "short.wav")]
    given = ["--model", str(models / "window"), "--codec", str(models / "codec")]
    return main(["remix", *both, "-o", str(out), *given, *words])


def test_a_remix_is_a_window_long_and_says_what_was_chosen(models, recordings, tmp_path, capsys):
    out, plot = tmp_path / "new.wav", tmp_path / "new.png"
    words = "--pick", "2", "--json", "--plot", str(plot), "--input-start", "3"
    assert remixed(models, recordings, out, *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["heard"] == 2 and len(found["pairs"]) == 3
    assert [pair["start_input_s"] for pair in found["pairs"]] == [3.0, 7.0, 11.0]  # of fresh windows
    assert [pair["start_target_s"] for pair in found["pairs"]] == [0.0, 4.0, 8.0]
    assert all(pair["ratio_input"] == 1.0 and pair["tonality_strength"] == 0.5 for pair in found["pairs"])
    samples, rate_hz = soundfile.read(out)
    assert (len(samples), rate_hz) == (16 * RATE_HZ, RATE_HZ)
    assert np.abs(samples).max() <= 1.0 and samples.std() > 0 and plot.stat().st_size > 10_000


def test_best_ensemble_and_single_pairs(models, recordings, tmp_path, capsys):
    sounds = {}
    for pick in ("best", "ensemble", "1", "2", "3"):
        assert remixed(models, recordings, tmp_path / f"{pick}.wav", "--pick", pick, "--json") == 0
        sounds[pick] = soundfile.read(tmp_path / f"{pick}.wav")[0]
        found = json.loads(capsys.readouterr().out)
    losses = [pair["loss"] for pair in found["pairs"]]
    np.testing.assert_array_equal(sounds["best"], sounds[str(int(np.argmin(losses)) + 1)])
    for one, other in (("1", "2"), ("1", "3"), ("2", "3"), ("ensemble", "1")):
        assert np.abs(sounds[one] - sounds[other]).max() > 0
    assert remixed(models, recordings, tmp_path / "two.wav", "--pairs", "2") == 0
    told = capsys.readouterr().out
    assert "two.wav: 16.0 s" in told and len(told.splitlines()) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pick", "4"), "choose one of"),
        (("--pairs", "9"), "makes 1 to 3"),
        (("--target-start", "4.5"), "0.5 s are left"),
        (("--input-start", "nan"), "cannot begin"),
        (("--plot", "a.xyz"), "pictures are written as"),
        (("--codec", "WINDOW"), "not a codec"),
        (("--model", "CODEC"), "not a creative agent"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(models, recordings, tmp_path, capsys, words, said):
    words = [str(models / word.lower()) if word.isupper() else word for word in words]
    assert remixed(models, recordings, tmp_path / "new.wav", *words) != 0
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(models, recordings, tmp_path, capsys):
    out = tmp_path / "new.wav"
    out.write_bytes(b"mine")
    assert remixed(models, recordings, out) != 0
    assert out.read_bytes() == b"mine" and "exists" in capsys.readouterr().err


def test_a_codec_of_other_latents_is_refused(models, recordings, tmp_path, capsys):
    write_model(tmp_path / "codec", codec, replace(CODEC, dimension=5))
    assert remixed(models, recordings, tmp_path / "new.wav", "--codec", str(tmp_path / "codec")) != 0
    assert "8 frames of 6 numbers" in capsys.readouterr().err
