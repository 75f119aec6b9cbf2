"""Stems to a mix: loudness and true peaks as others measure them, sheets that are performed as they stand."""

import json

import numpy as np
import pyloudnorm
import pytest
import rpp
import scipy.signal
import soundfile

from editjax import sounds
from editjax.audio import ArrayReader
from editjax.cli import main
from editjax.console.desk import Strip
from editjax.errors import DataError, UsageError
from editjax.genres import genre_reference
from editjax.layouts import find
from editjax.mixing import MixingSettings, blocks_of, decide, goal_of, listen, measure, plain, released
from editjax.sheet import read, to_json

RATE_HZ = 44_100
TIME_S = np.arange(4 * RATE_HZ) / RATE_HZ


def stems() -> dict[str, np.ndarray]:
    """A bass, drums, a mono pad that is too loud, and a wide shimmer; (S, C) each."""
    rng = np.random.default_rng(0)
    pulse = np.exp(-20 * (TIME_S % 0.5))
    shimmer = scipy.signal.sosfilt(
        scipy.signal.butter(2, 5000, "high", fs=RATE_HZ, output="sos"),
        rng.standard_normal((len(TIME_S), 2)),
        axis=0,
    )
    pad = sum(np.sin(2 * np.pi * hz * TIME_S) for hz in (440, 554, 659))
    return {
        "bass": 0.3 * np.sin(2 * np.pi * 55 * TIME_S)[:, None],
        "drums": 0.8 * (pulse * rng.standard_normal(len(TIME_S)) * 0.4)[:, None].repeat(2, 1),
        "pad": 0.25 * pad[:, None],
        "shimmer": 0.02 * shimmer,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stems")
    for name, sound_SC in stems().items():
        soundfile.write(path / f"{name}.wav", sound_SC, RATE_HZ, "PCM_24")
    return path


@pytest.fixture(scope="module")
def mixed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("mix") / "song.wav"
    assert main(["mix", str(folder), "-o", str(out), "--loudness", "-16"]) == 0
    return out


def true_peak_db(x_SC: np.ndarray) -> float:
    return 20 * np.log10(np.abs(scipy.signal.resample_poly(x_SC, 8, 1, axis=0)).max())


def test_the_mix_is_as_loud_as_asked_and_no_true_peak_is_above(mixed):
    x_SC, rate_hz = soundfile.read(mixed)
    assert rate_hz == RATE_HZ and x_SC.shape == (len(TIME_S), 2)
    assert pyloudnorm.Meter(rate_hz).integrated_loudness(x_SC) == pytest.approx(-16, abs=0.5)
    assert true_peak_db(x_SC) <= -1.0
    assert soundfile.info(mixed).subtype == "PCM_24"


def test_loud_mixes_are_limited_and_still_as_loud_as_asked(folder, tmp_path):
    out = tmp_path / "loud.flac"
    assert main(["mix", str(folder), "-o", str(out), "--loudness", "-8"]) == 0
    x_SC, rate_hz = soundfile.read(out)
    assert pyloudnorm.Meter(rate_hz).integrated_loudness(x_SC) == pytest.approx(-8, abs=0.5)
    assert true_peak_db(x_SC) <= -1.0


def test_beside_the_mix_lie_its_sheet_a_project_and_a_picture(mixed, folder):
    sheet = json.loads(mixed.with_suffix(".mix.json").read_text())
    assert [stem["file"] for stem in sheet["stems"]] == ["bass.wav", "drums.wav", "pad.wav", "shimmer.wav"]
    assert sheet["measured"]["loudness_lufs"] == pytest.approx(-16, abs=0.1)
    project = rpp.loads(mixed.with_suffix(".rpp").read_text())
    tracks = project.findall("TRACK")
    assert len(tracks) == 4
    for track, stem in zip(tracks, sheet["stems"], strict=True):
        volume, pan = (float(text) for text in track.find("VOLPAN")[1:3])
        assert 20 * np.log10(volume) == pytest.approx(stem["gain_db"] + stem["makeup_db"], abs=1e-3)
        assert pan == pytest.approx(stem["pan"], abs=1e-4)
        assert str(folder / stem["file"]) in track.find("ITEM").find("SOURCE").find("FILE")[1]
        notes = "\n".join(
            " ".join(map(str, line)) if isinstance(line, list) else line for line in track.find("NOTES")
        )
        assert "low_mid_db" in notes and "threshold_db" in notes
    assert mixed.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_sheet_is_performed_as_it_stands(mixed, folder, tmp_path):
    sheet = mixed.with_suffix(".mix.json")
    again = tmp_path / "again.wav"
    assert main(["mix", str(folder), "-o", str(again), "--params", str(sheet)]) == 0
    np.testing.assert_allclose(soundfile.read(again)[0], soundfile.read(mixed)[0], atol=2e-3)
    tree = json.loads(sheet.read_text())
    for stem in tree["stems"]:
        stem["gain_db"] = stem["gain_db"] if stem["file"] == "bass.wav" else -120.0
    alone = tmp_path / "alone.mix.json"
    alone.write_text(json.dumps(tree))
    assert main(["mix", str(folder), "-o", str(tmp_path / "solo.wav"), "--params", str(alone)]) == 0
    x_SC = soundfile.read(tmp_path / "solo.wav")[0]
    power_F = np.abs(np.fft.rfft(x_SC[:, 0])) ** 2
    hz_F = np.fft.rfftfreq(len(x_SC), 1 / RATE_HZ)
    assert power_F[hz_F < 200].sum() > 0.999 * power_F.sum()


def heard_of(x_SC: np.ndarray):
    return listen(blocks_of(ArrayReader(x_SC.astype(np.float32), RATE_HZ)), RATE_HZ)


def test_nothing_moves_further_than_it_may_and_the_loud_pad_goes_down():
    names, sounds = zip(*stems().items(), strict=True)
    sheet = decide(names, [heard_of(x) for x in sounds], RATE_HZ)
    gains = dict(zip(names, (strip.gain_db for strip in sheet.strips), strict=True))
    assert gains["pad"] < -1.0 and all(abs(gain) <= 6.0 for gain in gains.values())
    for strip in sheet.strips:
        assert all(
            abs(strip[Strip._fields.index(f"{band}_db")]) <= 4.0 for band in ("low", "low_mid", "high_mid")
        )
        assert strip.width == 1.0 and strip.room_db == -120.0
    cuts = dict(zip(names, (strip.low_cut_hz for strip in sheet.strips), strict=True))
    assert cuts["bass"] < 45 < 100 < cuts["pad"]
    assert [strip.pan for strip in sheet.strips] == [0.0] * 4  # only one mono stem is free to move


def test_mono_stems_without_a_place_go_left_and_right():
    high = 0.1 * np.sin(2 * np.pi * 1000 * TIME_S)[:, None]
    sheet = decide(("guitar", "piano", "lead vox"), [heard_of(high)] * 3, RATE_HZ)
    pans = [strip.pan for strip in sheet.strips]
    assert sorted(np.sign(pans)) == [-1, 0, 1] and pans[2] == 0.0 and max(map(abs, pans)) <= 0.3


def test_with_a_reference_the_sum_comes_nearer_to_its_spectrum():
    names, sounds = zip(*stems().items(), strict=True)
    heard = [heard_of(x) for x in sounds]
    bright = heard_of(sum(x * (4.0 if name == "shimmer" else 0.5) for (name, x) in stems().items()))
    neutral = decide(names, heard, RATE_HZ, MixingSettings(still=1000.0), bright)
    near = decide(names, heard, RATE_HZ, MixingSettings(still=0.1), bright)
    gains = [dict(zip(names, (s.gain_db for s in sheet.strips), strict=True)) for sheet in (neutral, near)]
    assert max(abs(gain) for gain in gains[0].values()) < 0.3
    assert gains[1]["shimmer"] - gains[1]["bass"] > 6.0


def test_the_goal_of_music_falls_by_five_db_an_octave():
    per_band_F, _ = released(48_000)
    assert per_band_F.argmax() in range(4, 9)
    level_F, side_F = goal_of(heard_of(stems()["shimmer"]))
    assert level_F.argmax() > 20 and side_F[-3:].mean() == pytest.approx(0.5, abs=0.05)


def test_the_meter_of_the_plain_sum_is_the_sums():
    x_2S = sum(x.T * np.ones((2, 1)) for x in stems().values()).astype(np.float32)
    found = measure([x_2S], RATE_HZ)
    assert found.loudness_lufs == pytest.approx(
        pyloudnorm.Meter(RATE_HZ).integrated_loudness(x_2S.T), abs=0.1
    )
    assert plain(("a",), RATE_HZ, -14.0).strips == (Strip(),)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda tree: tree.pop("format"), "not a mix sheet"),
        (lambda tree: tree.update(version=9), "version 9"),
        (lambda tree: tree.update(stems=[]), "stems are missing"),
        (lambda tree: tree["stems"][0].update(gain_db=1e9), "gain_db 1000000000.0: give a number from"),
        (lambda tree: tree["stems"][0].update(gain_db=10**400), "gain_db 1000"),
        (lambda tree: tree["stems"][0].update(colour=1), "unknown setting 'colour'"),
        (lambda tree: tree["stems"][0].update(pan="left"), "pan 'left'"),
        (lambda tree: tree["stems"][1].update(file=tree["stems"][0]["file"]), "name of its own"),
        (lambda tree: tree["master"].update(ceiling_db=True), "ceiling_db True"),
        (lambda tree: tree.update(loudness_lufs=5), "must be numbers"),
    ],
)
def test_sheets_that_cannot_be_are_refused_by_name(change, said, tmp_path):
    tree = to_json(plain(("a.wav", "b.wav"), RATE_HZ, -14.0))
    change(tree)
    path = tmp_path / "bad.mix.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"bad\.mix\.json") as error:
        read(path)
    assert said in str(error.value)


def test_what_cannot_be_mixed_is_said_in_one_line(folder, mixed, tmp_path, capsys):
    def fails(code, said, *words):
        assert main(["mix", *map(str, words)]) == code
        assert said in capsys.readouterr().err
        assert not list(tmp_path.glob("out*"))

    out = tmp_path / "out.wav"
    fails(73, "exists", folder, "-o", mixed)
    fails(2, ".wav or .flac", folder, "-o", tmp_path / "out.mp3")
    fails(2, "--loudness", folder, "-o", out, "--loudness", "3")
    fails(66, "nothing", tmp_path / "nothing", "-o", out)
    fails(2, "name the stems", "-o", out)
    soundfile.write(tmp_path / "mute.wav", np.zeros(RATE_HZ), RATE_HZ)
    fails(65, "mute.wav: it is silent", folder / "bass.wav", tmp_path / "mute.wav", "-o", out)
    soundfile.write(tmp_path / "slow.wav", np.ones(100), 22_050)
    fails(
        65, "sample rate is 22050", folder / "bass.wav", folder / "pad.wav", tmp_path / "slow.wav", "-o", out
    )
    sheet = mixed.with_suffix(".mix.json")
    fails(65, "is a sheet of other stems", folder / "bass.wav", "-o", out, "--params", sheet)


def test_a_genre_is_a_reference(tmp_path):
    rng = np.random.default_rng(0)
    bright_S, level = rng.standard_normal(44_100), (0.3, 0.003)
    for genre, sound_S in (("dark", np.cumsum(bright_S) / 200.0), ("bright", bright_S / 10.0)):
        (tmp_path / "genres" / genre).mkdir(parents=True)
        for number in range(2):
            path = tmp_path / "genres" / genre / f"{genre}.{number:05d}.wav"
            soundfile.write(path, (level[number] * sound_S).astype(np.float32), 44_100, "FLOAT")
    folder = tmp_path / "sounds"
    sounds.write(folder, find(tmp_path / "genres", "gtzan"))
    dark_F, bright_F = (goal_of(genre_reference(folder, genre))[0] for genre in ("dark", "bright"))
    assert (bright_F[-3:] - dark_F[-3:]).min() > 15.0 and (bright_F[:3] - dark_F[:3]).max() < -10.0
    with pytest.raises(UsageError, match="no recording is of the genre 'loud'; there are bright, dark"):
        genre_reference(folder, "loud")
