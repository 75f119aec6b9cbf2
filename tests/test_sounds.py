"""Sound shards: excerpts are the recordings', batches a function of their number, splits kept apart."""

import numpy as np
import pytest
import soundfile

from editjax import sounds
from editjax.cli import main
from editjax.cli.shards import run as run_shards
from editjax.errors import DataError, NoInputError, UsageError
from editjax.layouts import find
from editjax.sounds import Sounds, SoundSettings, batches, chosen, fold_of, watched, weights

RATE_HZ = 8000


def noise(seconds: float, channels: int, seed: int) -> np.ndarray:
    shape = round(seconds * RATE_HZ), channels
    return (0.3 * np.random.default_rng(seed).standard_normal(shape)).clip(-1, 1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for k, (seconds, channels) in enumerate([(25, 2), (12, 1), (0.5, 2), (10, 2), (8, 1), (11, 1)]):
        name = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")[k]
        soundfile.write(folder / f"{name}.wav", noise(seconds, channels, k), RATE_HZ, "PCM_16")
    (folder / "broken.wav").write_bytes(b"RIFF nothing")
    soundfile.write(folder / "mute.wav", np.zeros((RATE_HZ, 1)), RATE_HZ)
    return folder


@pytest.fixture(scope="module")
def folder(recordings, tmp_path_factory):
    out = tmp_path_factory.mktemp("sounds")
    _, skipped = sounds.write(out, find(recordings), rate_hz=RATE_HZ)
    assert [name for name, _ in skipped] == ["broken.wav", "mute.wav"]
    return out


def all_of(kept: str) -> SoundSettings:
    return SoundSettings(seconds=1.0, batch_size=4, channels=2, split=kept)


def test_every_excerpt_is_the_recordings_samples(folder, recordings):
    rng = np.random.default_rng(0)
    with Sounds(folder) as read:
        for k, sound in enumerate(read.entries):
            whole_SC = soundfile.read(recordings / sound.id, always_2d=True)[0]
            assert (sound.samples, sound.channels) == whole_SC.shape
            np.testing.assert_allclose(read.read(k), whole_SC.T, atol=4e-5)
            for _ in range(5):
                start = int(rng.integers(sound.samples))
                stop = int(rng.integers(start + 1, sound.samples + 1))
                np.testing.assert_array_equal(read.read(k, start, stop), read.read(k)[:, start:stop])


def test_after_the_end_is_silence_and_channels_are_as_asked(folder):
    with Sounds(folder) as read:
        short = next(k for k, sound in enumerate(read.entries) if sound.id == "gamma.wav")
        found_CS = read.read(short, 0, RATE_HZ, channels=1)
        assert found_CS.shape == (1, RATE_HZ) and not found_CS[:, RATE_HZ // 2 :].any()
        np.testing.assert_allclose(found_CS[0, : RATE_HZ // 2], read.read(short).mean(0), atol=1e-7)
        mono = next(k for k, sound in enumerate(read.entries) if sound.channels == 1)
        np.testing.assert_array_equal(read.read(mono, channels=2), np.repeat(read.read(mono), 2, 0))
        assert not read.read(short, RATE_HZ, 2 * RATE_HZ).any()


def test_the_same_recordings_give_the_same_bytes_whoever_works(recordings, tmp_path):
    for name, workers in ("one", 1), ("two", 2):
        sounds.write(tmp_path / name, find(recordings), rate_hz=RATE_HZ, workers=workers)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_batches_depend_on_their_number_alone_and_go_on_where_they_were(folder):
    settings = SoundSettings(seconds=1.0, batch_size=4, folds=2, fold=0)
    first, other = (batches(folder, settings) for _ in range(2))
    seen = [next(first) for _ in range(3)]
    state = first.get_state()
    wanted = next(first)
    other.set_state(state)
    found = next(other)
    np.testing.assert_array_equal(found.sound_BCS, wanted.sound_BCS)
    assert found.sound_BCS.shape == (4, 1, RATE_HZ) and found.sound_BCS.dtype == np.float32
    assert not np.array_equal(seen[0].sound_BCS, seen[1].sound_BCS)
    halves = [next(batches(folder, settings, process_index=k, process_count=2)) for k in range(2)]
    joined = np.concatenate([half.sound_BCS for half in halves])
    np.testing.assert_array_equal(joined, seen[0].sound_BCS)


def test_no_group_is_trained_on_and_held_out(folder):
    with Sounds(folder) as read:
        for fold in range(3):
            settings = SoundSettings(folds=3, fold=fold)
            ours, theirs = (
                {read.entries[k].group for k in chosen(read.entries, settings, held_out)}
                for held_out in (False, True)
            )
            assert not ours & theirs
            assert all(fold_of(group, 3) == fold for group in theirs)
            held = {sound.group for sound in read.entries if sound.split == "test"}
            assert not held & (ours | theirs)
            assert ours | theirs == {sound.group for sound in read.entries} - held


def test_a_recording_is_drawn_as_often_as_it_is_long_or_its_label_asks(folder):
    with Sounds(folder) as read:
        samples = np.array([sound.samples for sound in read.entries])
        np.testing.assert_allclose(weights(read.entries, samples, ""), samples / samples.sum())
        for k, sound in enumerate(read.entries):
            sound.labels["genre"] = "rare" if k == 0 else "common"
        weight_K = weights(read.entries, samples, "genre")
        assert weight_K[0] == pytest.approx(0.5) and weight_K.sum() == pytest.approx(1.0)


def test_what_training_is_watched_on_never_changes(folder):
    settings = SoundSettings(seconds=1.0, folds=2, fold=1, channels=2)
    once, again = (list(watched(folder, settings, 5)) for _ in range(2))
    assert len(once) == 5
    for (k, a_CS), (number, b_CS) in zip(once, again, strict=True):
        assert k == number
        np.testing.assert_array_equal(a_CS, b_CS)


def test_bad_settings_and_folders_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="choose from 0 to 1"):
        SoundSettings(folds=2, fold=2)
    with pytest.raises(UsageError, match="balance 'colour'"):
        SoundSettings(balance="colour")
    with pytest.raises(DataError, match="none of its 6 recordings"):
        batches(folder, SoundSettings(split="nothing"))
    with pytest.raises(NoInputError, match="editjax sounds FOLDER SOUNDS"):
        Sounds(tmp_path)


def test_the_command_says_what_it_did_and_overwrites_nothing(recordings, tmp_path, capsys):
    words = ["sounds", str(recordings), str(tmp_path / "out"), "--rate", str(RATE_HZ), "--workers", "1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "6 recordings, 1.1 minutes" in said and "skipped broken.wav" in said
    assert main(words) == 73 and "holds shards" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--channels", "3"]) == 2
    assert main([*words, "--overwrite", "--layout", "gtzan"]) == 66


def test_shards_of_sounds_are_verified_too(recordings, tmp_path, capsys):
    sounds.write(tmp_path, find(recordings), rate_hz=RATE_HZ)
    assert run_shards(["verify", str(tmp_path)]) == 0
    assert "intact" in capsys.readouterr().out
    path = next(tmp_path.glob("sound-*.array_record"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="SHA-256 differs"):
        run_shards(["verify", str(tmp_path)])
