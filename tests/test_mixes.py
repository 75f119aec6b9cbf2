"""Knobs and what is heard of them; mixes whose settings are known; regressors that learn from them."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from editjax import mixes, sounds
from editjax.array_records import pack, unpack
from editjax.cli import main
from editjax.console.compared import HEARD
from editjax.console.heard import FIGURES, PictureSettings, figures, picture
from editjax.console.knobs import KNOBS, NAMES, strip_of, turned, values
from editjax.errors import DataError, UsageError
from editjax.layouts import find
from editjax.mixes import MakeSettings, Mixes, MixSettings, varied

RATE_HZ = 44_100
SMALL = PictureSettings()
TIME_S = np.arange(RATE_HZ, dtype=np.float32) / RATE_HZ


def sine(hz: float, amplitude: float) -> np.ndarray:
    return np.tile(amplitude * np.sin(2 * np.pi * np.float32(hz) * TIME_S), (2, 1)).astype(np.float32)


def knobs(**given: float) -> jnp.ndarray:
    """Those that change nothing that is heard, but for what is given."""
    still = dict.fromkeys(NAMES, 0.5) | {"gain_db": 0.75, "low_cut_hz": -2.0, "squeeze_db": -1.0}
    return jnp.array([{**still, "room_db": -3.0, "echo_db": -3.0, **given}[name] for name in NAMES])


def test_knobs_reach_their_ends_and_octaves_are_spread_evenly():
    for k, knob in enumerate(KNOBS):
        low, middle, high = (float(values(jnp.full(len(KNOBS), p))[k]) for p in (0.0, 0.5, 1.0))
        assert (low, high) == pytest.approx((knob.low, knob.high), rel=1e-6)
        wanted = (knob.low * knob.high) ** 0.5 if knob.octaves else (knob.low + knob.high) / 2
        assert middle == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_compression_begins_as_far_below_the_peaks_however_loud_the_stem_is():
    for peak_db in (-30.0, -3.0):
        strip = strip_of(knobs(squeeze_db=0.5, gain_db=0.5), peak_db)
        assert float(strip.threshold_db) == pytest.approx(peak_db - 6.0 - 12.0, abs=1e-4)


def test_knobs_that_change_nothing_leave_the_stem():
    x_2S = sine(500, 0.3)
    found = np.asarray(jax.jit(turned, static_argnums=2)(x_2S, knobs(), RATE_HZ))
    inside = slice(RATE_HZ // 10, -RATE_HZ // 10)
    np.testing.assert_allclose(found[:, inside], x_2S[:, inside], atol=3e-4)


def test_a_picture_has_the_level_of_a_sine_in_its_band_and_nothing_in_the_side():
    shown = np.asarray(jax.jit(picture, static_argnums=0)(SMALL, sine(1000, 0.5)))
    assert shown.shape == (21, SMALL.n_mels, 3)
    power_T = (10 ** ((50 * shown[5:-5, :, 0] - 100) / 10)).sum(1)
    np.testing.assert_allclose(10 * np.log10(power_T), -9.03, atol=0.3)  # half a square of 0.5
    assert shown[5:-5, :, 2].max() == 0.0
    quieter = np.asarray(jax.jit(picture, static_argnums=0)(SMALL, sine(1000, 0.05)))
    np.testing.assert_allclose(shown[5:-5, :, 0].max(1) - quieter[5:-5, :, 0].max(1), 20 / 50, atol=1e-3)


def test_figures_tell_levels_sides_steps_and_chords_apart():
    of = jax.jit(figures, static_argnums=0)
    loud, soft = np.asarray(of(SMALL, sine(440, 0.5))), np.asarray(of(SMALL, sine(440, 0.05)))
    assert loud.shape == (FIGURES,) and np.isfinite(loud).all()
    np.testing.assert_allclose((loud - soft)[:2] * 50, [20.0, 20.0], atol=0.1)
    chroma = loud[7:19]
    assert chroma.argmax() == 9 and chroma[9] > 0.6  # A
    apart = sine(440, 0.5) * np.array([[1.0], [-0.5]], np.float32)
    assert np.asarray(of(SMALL, apart))[4] > loud[4] + 1.0
    clicks = np.zeros((2, RATE_HZ), np.float32)
    clicks[:, :: RATE_HZ // 4] = 0.9
    assert np.asarray(of(SMALL, clicks))[6] > 0.8 > 0.3 > loud[6]  # percussive
    assert np.isfinite(np.asarray(of(SMALL, np.zeros((2, RATE_HZ), np.float32)))).all()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Sound shards of short pieces of several families, and mixes of them."""
    raw, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"):
        x_S2 = (
            0.2
            * rng.standard_normal((2 * RATE_HZ, 2))
            * (1 + np.sin(20 * np.arange(2 * RATE_HZ) / RATE_HZ))[:, None]
        )
        soundfile.write(raw / f"{name}.wav", x_S2.clip(-1, 1), RATE_HZ)
    sounds.write(folder / "sounds", find(raw))
    mixes.write(folder / "sounds", folder / "mixes", MakeSettings(count=12, seconds=1.0, sound=True))
    return folder


def test_a_mix_is_what_the_console_makes_of_its_stem(folders):
    with_sound = Mixes(folders / "mixes")
    render = jax.jit(turned, static_argnums=2)
    seen = jax.jit(picture, static_argnums=0)
    for k in range(3):
        row = with_sound[k]
        stem_2S = row["sound"].astype(np.float32)
        for half, x_2S in (slice(0, 3), stem_2S), (slice(3, 6), render(stem_2S, row["knobs"], RATE_HZ)):
            np.testing.assert_allclose(row["picture"][..., half], seen(SMALL, x_2S), atol=0.02)
    entry = with_sound.entries[0]
    with sounds.Sounds(folders / "sounds") as read:
        of = {sound.id: sound for sound in read.entries}[entry.id]
        assert (of.group, of.split) == (entry.group, entry.split)


def test_examples_are_a_function_of_their_number(folders, tmp_path):
    mixes.write(folders / "sounds", tmp_path / "more", MakeSettings(count=17, seconds=1.0, sound=True))
    fewer, more = Mixes(folders / "mixes"), Mixes(tmp_path / "more")
    for k in range(12):
        for name, array in fewer[k].items():
            np.testing.assert_allclose(array, more[k][name], atol=1e-3)


def test_knobs_are_spread_evenly():
    drawn = np.stack([np.random.default_rng([0, 1, row]).random(11) for row in range(2000)])
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.03  # as `_records` draws them


def test_varied_stems_keep_their_length():
    x_2S = sine(300, 0.3)
    x_2S[0] *= 0.5
    found = [varied(x_2S, np.random.default_rng(seed)) for seed in range(8)]
    assert {x.shape for x in found} == {x_2S.shape} and {x.dtype for x in found} == {np.dtype(np.float32)}
    left = [np.abs(x[0]).max() < np.abs(x[1]).max() for x in found]
    assert any(left) and not all(left)  # channels exchanged or not


def test_batches_and_labels(folders):
    settings = MixSettings(batch_size=4, folds=3, fold=1, label="kind")
    stream = mixes.batches(folders / "mixes", settings)
    batch = next(stream)
    stream.close()
    assert batch.picture_BTFC.shape == (4, 21, 96, 6) and batch.figures_BK.shape == (4, HEARD)
    assert batch.knobs_BP.shape == (4, len(NAMES)) and batch.sound_BCS.shape == (4, 2, RATE_HZ)
    assert set(batch.label_B) == {0}  # all are music
    held = sounds.chosen(Mixes(folders / "mixes").entries, settings, held_out=True)
    assert not set(batch.ids_B) & set(held)


def test_what_is_wrong_is_said(folders, tmp_path):
    with pytest.raises(UsageError, match="--rate 48000"):
        picture_48 = replace(SMALL, rate_hz=48_000)
        mixes.write(folders / "sounds", tmp_path, MakeSettings(count=1, picture=picture_48))
    with pytest.raises(DataError, match="of the wanted split"):
        mixes.batches(folders / "mixes", MixSettings(split="nothing"))
    with pytest.raises(ValueError, match="no record"):
        unpack(b"\x04\x00\x00\x00[]xx")
    facts, arrays = unpack(pack({"a": 1}, x=np.arange(3, dtype=np.int16), y=np.ones((2, 1), np.float32)))
    assert facts == {"a": 1} and arrays["x"].tolist() == [0, 1, 2] and arrays["y"].shape == (2, 1)


def test_the_command(folders, tmp_path, capsys):
    words = ["mixes", str(folders / "sounds"), str(tmp_path / "m"), "--count", "2", "--seconds", "1"]
    assert main(words) == 0 and "2 mixes" in capsys.readouterr().out
    assert main(words) == 73 and "holds shards" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--count", "0"]) == 2
    assert main(["mixes", str(tmp_path), str(tmp_path / "n")]) == 66


def test_shards_of_mixes_are_verified_too(folders, tmp_path, capsys):
    copy = shutil.copytree(folders / "mixes", tmp_path / "mixes")
    assert main(["shards", "verify", str(copy)]) == 0 and "mixes" in capsys.readouterr().out
    path = next(copy.glob("mix-*.array_record"))
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["shards", "verify", str(copy)]) == 65 and "SHA-256 differs" in capsys.readouterr().err
