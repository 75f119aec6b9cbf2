"""Recorded material: splits are disjoint by song, sections differ, retakes are the same music again."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from editjax.composition import compose
from editjax.errors import NoInputError, UsageError
from editjax.excerpts import (
    MAX_LIKENESS,
    likeness,
    sections_from_phrases,
    sections_from_song,
    spectral_features,
)
from editjax.performance import Room, SynthMaterial, TakePlan, loudness
from editjax.recordings import SPLITS, RecordedSurroundings, family_of, load, scan, split_of
from editjax.retakes import draw_material, wsola

RATE_HZ = 22050
DRY = Room(np.zeros(64, np.float32), 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A song of 40 s, three phrases, speech and a noise, in folders that say what they are."""
    root = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    piece = SynthMaterial(compose([13.0] * 4, rng), RATE_HZ, 1)
    song_S = np.concatenate([piece.play(i, TakePlan(), DRY, rng).samples_S for i in range(4)])
    files = {
        "music/song.flac": np.repeat(song_S[:, None], 2, axis=1),
        **{f"music/lick_{i}.wav": song_S[i * 9 * RATE_HZ :][: 3 * RATE_HZ] for i in range(3)},
        "speech/words.wav": rng.normal(0.0, 0.1, 4 * RATE_HZ),
        "noise/hum.wav": rng.normal(0.0, 0.1, 9 * RATE_HZ),
    }
    for name, samples in files.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, samples, RATE_HZ)
    return root


def test_files_of_one_song_fall_into_one_split() -> None:
    assert family_of("stems/rubidium__drums_2.ogg") == family_of("rubidium__vox.wav") == "rubidium"
    assert family_of("a/album_01-02-piano-2.ogg") == family_of("b/album_01-09-fever.ogg") == "album"
    assert family_of("Lets_Go_Fishin.ogg") == "lets-go-fishin"
    assert family_of("0001.wav") != ""
    assert split_of("solo/trio_1.wav") == split_of("elsewhere/trio_2.flac")


def test_split_shares_are_seventy_ten_twenty() -> None:
    names = [
        f"{word}{letter}.wav" for word in map(chr, range(97, 123)) for letter in map(chr, range(192, 255))
    ]
    counts = [sum(split_of(name) == split for name in names) / len(names) for split in SPLITS]
    assert counts == pytest.approx([0.7, 0.1, 0.2], abs=0.035)


def test_scan_sorts_by_folder_and_splits_are_a_partition(folder: Path) -> None:
    library = scan(folder)
    assert [recording.name for song in library.songs for recording in song] == ["music/song.flac"]
    assert [len(group) for group in library.phrases] == [3]
    assert [recording.name for recording in library.speech] == ["speech/words.wav"]
    assert [recording.name for recording in library.noises] == ["noise/hum.wav"]
    parts = [scan(folder, split) for split in SPLITS]
    for kind in ("songs", "phrases", "speech", "noises"):
        assert sorted(r for part in parts for r in getattr(part, kind)) == sorted(getattr(library, kind))


def test_a_manifest_overrules_folders(folder: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(RATE_HZ), RATE_HZ)
    (tmp_path / "manifest.csv").write_text("file,kind\nx.wav,speech\n")
    assert [recording.name for recording in scan(tmp_path).speech] == ["x.wav"]


def test_missing_and_empty_folders_and_unknown_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="nowhere: no such folder"):
        scan(tmp_path / "nowhere")
    with pytest.raises(NoInputError, match="holds no audio file"):
        scan(tmp_path)
    with pytest.raises(UsageError, match="split 'validation' is unknown: choose from train, valid, test"):
        scan(tmp_path, "validation")


def test_load_is_mono_at_the_rate_asked_for(folder: Path) -> None:
    song = scan(folder).songs[0][0]
    half = load(song, RATE_HZ // 2)
    assert half.dtype == np.float32
    assert len(half) == pytest.approx(song.seconds * RATE_HZ / 2, abs=2)
    np.testing.assert_allclose(
        load(song, RATE_HZ), soundfile.read(song.path, dtype="float32")[0][:, 0], atol=1e-4
    )


def test_sections_of_a_song_are_stretches_in_order_that_do_not_sound_alike(folder: Path) -> None:
    song = scan(folder).songs[0]
    sections = sections_from_song(song, [7.0, 8.0, 7.0], RATE_HZ, np.random.default_rng(0))
    song_S = load(song[0], RATE_HZ)
    windows = np.lib.stride_tricks.sliding_window_view(song_S, 32)
    starts = []
    for section in sections:
        probe = section.samples_S[RATE_HZ : RATE_HZ + 32]
        starts.append(int(np.abs(windows - probe).sum(axis=1).argmin()) - RATE_HZ)
        stop = starts[-1] + 2 * RATE_HZ
        np.testing.assert_array_equal(
            section.samples_S[RATE_HZ : 2 * RATE_HZ], song_S[starts[-1] + RATE_HZ : stop]
        )
    assert starts == sorted(starts)
    assert all(b - a >= len(s.samples_S) for (a, b), s in zip(pairwise(starts), sections, strict=False))
    features = [spectral_features(section.samples_S, RATE_HZ) for section in sections]
    assert max(likeness(a, b) for a, b in pairwise(features)) < 0.75


def test_phrases_make_sections_that_do_not_sound_alike(folder: Path) -> None:
    sections = sections_from_phrases(
        scan(folder).phrases[0], [8.0, 8.0, 8.0], RATE_HZ, np.random.default_rng(1)
    )
    features = [spectral_features(section.samples_S, RATE_HZ) for section in sections]
    assert len(sections) >= 2
    assert max(likeness(a, b) for a, b in pairwise(features)) <= MAX_LIKENESS
    assert all(len(section.samples_S) > 5 * RATE_HZ for section in sections)


@pytest.mark.parametrize("speed", [1.0, 0.96, 1.04])
def test_wsola_changes_the_length_and_keeps_the_pitch(speed: float) -> None:
    time_S = np.arange(2 * RATE_HZ) / RATE_HZ
    tone_S = np.sin(2 * np.pi * 440.0 * time_S).astype(np.float32)
    hop = 1014
    played_S = wsola(tone_S, np.arange(0.0, len(tone_S), hop * speed), hop, 265)
    middle_S = played_S[RATE_HZ // 2 : 3 * RATE_HZ // 2]
    spectrum = np.abs(np.fft.rfft(middle_S * np.hanning(len(middle_S))))
    assert spectrum.argmax() == 440
    assert np.abs(middle_S).max() < 1.02
    assert len(played_S) == pytest.approx(len(tone_S) / speed, abs=2 * hop)


def test_wsola_at_unit_speed_returns_its_input() -> None:
    noise_S = np.random.default_rng(0).normal(0.0, 0.1, RATE_HZ).astype(np.float32)
    played_S = wsola(noise_S, np.arange(0.0, RATE_HZ, 1000), 1000, 264)
    np.testing.assert_allclose(played_S[: RATE_HZ - 1000], noise_S[: RATE_HZ - 1000], atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_retakes_are_the_same_music_and_never_the_same_samples(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    material = draw_material(scan(folder), [8.0, 9.0], RATE_HZ, rng)
    assert material is not None
    one, other = (material.play(0, TakePlan(), DRY, rng).samples_S for _ in range(2))
    alike = likeness(spectral_features(one, RATE_HZ), spectral_features(other, RATE_HZ))
    assert alike > 0.6
    assert len(one) != len(other)


@pytest.mark.parametrize("name", ["wrong_notes", "missing_notes", "timing", "stumble", "dropout"])
def test_faults_of_retakes_change_the_sound_where_they_say(folder: Path, name: str) -> None:
    material = draw_material(scan(folder), [8.0, 9.0], RATE_HZ, np.random.default_rng(0))
    assert material is not None
    take = material.play(0, TakePlan(((name, 0.4),)), DRY, np.random.default_rng(1))
    good = material.play(0, TakePlan(), DRY, np.random.default_rng(2))
    assert [fault for _, fault in take.faults] == [name]
    assert take.faults[0][0] == pytest.approx(0.4 * len(good.samples_S), rel=0.2)
    ratio = loudness(take.samples_S, RATE_HZ) / loudness(good.samples_S, RATE_HZ)
    assert abs(20 * np.log10(ratio)) < 4.0


def test_surroundings_name_the_files_they_play(folder: Path) -> None:
    surroundings = RecordedSurroundings(scan(folder), RATE_HZ)
    rng = np.random.default_rng(0)
    for _ in range(12):
        assert 0 < len(surroundings.talk(1.0, rng)) < 3 * RATE_HZ
        assert np.abs(surroundings.noise(rng)).max() <= 0.81
    assert len(surroundings.room_tone(RATE_HZ, rng)) == RATE_HZ
    assert set(surroundings.used) == {"speech/words.wav", "noise/hum.wav"}
