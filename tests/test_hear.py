"""Stems compared with their mixes: what least squares and gradients find, and `editjax hear`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from mixer_cases import fresh, tiny

from editjax.bundle import flatten
from editjax.cli import main
from editjax.config import to_json
from editjax.console.compared import BANDS, COMPARED, LIMIT, compared
from editjax.console.fit import fit
from editjax.console.heard import PictureSettings
from editjax.console.knobs import IDENTIFIABLE, NAMES, turned, values
from editjax.export import write_bundle
from editjax.mel import MelSettings
from editjax.sheet import read

RATE_HZ = 44_100
OF_SENDS = slice(10 * BANDS - 8 - 8, None)
mixed = jax.jit(turned, static_argnums=2)
compare = jax.jit(compared, static_argnums=2)


def stem_2S(seconds: float = 2.0) -> np.ndarray:
    """Noise of two ears, a little alike, that swells and bursts."""
    rng = np.random.default_rng(0)
    n_samples = round(seconds * RATE_HZ)
    x_2S = rng.standard_normal((2, n_samples)) + rng.standard_normal((1, n_samples))
    swell_S = 0.03 + np.sin(np.arange(n_samples) / 9000.0) ** 8
    return (0.1 * x_2S * swell_S[None]).astype(np.float32)


def knobs(**changes: float) -> np.ndarray:
    """Nothing is changed but these: flat, open, dry."""
    flat = dict.fromkeys(NAMES, 0.5) | {"gain_db": 0.75, "low_cut_hz": 0.0, "squeeze_db": 0.0}
    flat |= {"room_db": 0.0, "echo_db": 0.0} | changes
    return np.array([flat[name] for name in NAMES], np.float32)


def figures(knobs_P: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of a mix, by name."""
    row_K = np.asarray(compare(stem_2S(), mixed(stem_2S(), knobs_P, RATE_HZ), RATE_HZ))
    assert row_K.shape == (COMPARED,)
    ears, _, _, sends, whole, _, curve = np.split(row_K, np.cumsum([48, 48, 48, 96, 4, 4]))
    return {
        "ears": 20 * ears,
        "sends": 30 * (sends - 1),
        "whole": 15 * (whole - 1.5),
        "curve": 10 * curve[:9],
    } | {"squeeze": 12.0 * curve[-1:]}


def test_gains_bands_and_places_are_read_off():
    plain = figures(knobs())
    np.testing.assert_allclose(plain["ears"], 0.0, atol=1.0)
    np.testing.assert_allclose(figures(knobs(gain_db=0.5))["ears"], -6.0, atol=1.0)
    left, right = np.split(figures(knobs(pan=0.25))["ears"], 2)
    wanted_db = 20 * np.log10(np.cos(np.pi / 8) / np.sin(np.pi / 8))
    np.testing.assert_allclose(left - right, wanted_db, atol=0.5)
    bent = figures(knobs(low_mid_db=1.0, high_mid_db=0.2))["curve"]
    np.testing.assert_allclose(bent[1:3], [9.0, -5.4], atol=1.0)


def test_room_and_echoes_are_told_apart_far_below_the_sound():
    room_db, echo_db = figures(knobs(room_db=0.5, echo_db=0.25))["whole"].reshape(2, 2).T
    np.testing.assert_allclose(room_db, -21.0, atol=1.0)
    np.testing.assert_allclose(echo_db, -28.5, atol=1.5)


@pytest.mark.parametrize("squeeze", [0.25, 0.5, 0.75])
def test_compression_is_found_by_trying_thresholds(squeeze):
    # a mean over the thresholds that fit about as well, which leans to the middle of those that are tried
    assert figures(knobs(squeeze_db=squeeze))["squeeze"] == pytest.approx(24.0 * squeeze, abs=3.5)


@pytest.mark.parametrize("level", [0.0, 1e-9, 1.0, 1e3])
def test_whatever_is_compared_gives_numbers_within_bounds(level):
    mono_2S = np.broadcast_to(stem_2S()[:1], stem_2S().shape)
    for stem, mix in (
        (level * stem_2S(), stem_2S()),
        (stem_2S(), level * stem_2S()),
        (mono_2S, level * mono_2S),
    ):
        row_K = np.asarray(compare(np.float32(stem), np.float32(mix), RATE_HZ))
        assert np.isfinite(row_K).all() and np.abs(row_K).max() <= LIMIT


def test_the_console_is_inverted():
    true_P = np.random.default_rng(0).random(len(NAMES)).astype(np.float32)
    stem = stem_2S(1.0)
    mix = np.asarray(mixed(stem, true_P, RATE_HZ))
    found_P, left_db = fit(stem, mix, RATE_HZ, [np.full(len(NAMES), 0.5)])
    assert left_db < 0.05
    np.testing.assert_allclose(found_P, true_P, atol=0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A regressor that has learned nothing, a stem and a mix of it."""
    folder = tmp_path_factory.mktemp("hear")
    settings = tiny("ast", picture=PictureSettings())
    facts = {"family": "mixer", "model": to_json(settings), "mel": to_json(MelSettings()), "licence": "none"}
    training = {"command": "none", "step": 0, "checkpoint": "best", "export_command": "none", "scores": {}}
    tensors = {name: np.asarray(leaf) for name, leaf in flatten(fresh(settings)).items()}
    write_bundle(folder / "model", tensors, {**facts, "training": training})
    soundfile.write(folder / "stem.wav", stem_2S(1.5).T, RATE_HZ, "FLOAT")
    mix_2S = mixed(stem_2S(1.5), knobs(gain_db=0.6, pan=0.7, squeeze_db=0.4, room_db=0.6), RATE_HZ)
    soundfile.write(folder / "mix.wav", np.asarray(mix_2S).T, RATE_HZ, "FLOAT")
    return folder


def hear(folder, *more: str) -> int:
    paths = [str(folder / name) for name in ("stem.wav", "mix.wav")]
    return main(["hear", *paths, "--model", str(folder / "model"), *more])


def test_what_is_heard_is_said_and_refined(folder, capsys):
    assert hear(folder) == 0
    said = capsys.readouterr().out
    assert "squeeze" in said and "dB" in said and said.count("(uncertain)") == len(NAMES) - len(IDENTIFIABLE)
    sheet = folder / "found.mix.json"
    assert hear(folder, "--refine", "--json", "-o", str(sheet)) == 0
    facts = json.loads(capsys.readouterr().out)
    true = dict(
        zip(
            NAMES,
            np.asarray(values(jnp.asarray(knobs(gain_db=0.6, pan=0.7, squeeze_db=0.4, room_db=0.6)))),
            strict=True,
        )
    )
    for name, within in (("gain_db", 0.3), ("pan", 0.02), ("squeeze_db", 0.5), ("room_db", 0.6)):
        assert facts["settings"][name] == pytest.approx(true[name], abs=within)
    assert facts["apart_db"] < 0.3 < facts["before_db"]
    strip = read(sheet).strips[0]
    assert strip.ratio == 4.0 and strip.pan == pytest.approx(true["pan"], abs=0.02)
    assert hear(folder, "-o", str(sheet)) == 73


def test_what_cannot_be_heard_is_said(folder, tmp_path, capsys):
    soundfile.write(tmp_path / "silent.wav", np.zeros((RATE_HZ, 2)), RATE_HZ)
    soundfile.write(tmp_path / "short.wav", np.ones((99, 2)), RATE_HZ)
    soundfile.write(tmp_path / "long.wav", 0.1 * np.ones((13 * RATE_HZ, 2)), RATE_HZ)
    stem, model = str(folder / "stem.wav"), str(folder / "model")
    for name, code, said in (
        ("silent.wav", 65, "silent.wav: it is silent"),
        ("short.wav", 2, "short.wav: shorter than 1 s"),
        ("long.wav", 65, "long.wav: its length differs from that of"),
        ("none.wav", 66, "none.wav: cannot be opened"),
    ):
        assert main(["hear", stem, str(tmp_path / name), "--model", model]) == code
        assert said in capsys.readouterr().err
    assert main(["hear", stem, stem, "--model", "scorer"]) == 65
    assert "not a regressor" in capsys.readouterr().err
