"""Effects change their spans to sound like a mel, and not a bit elsewhere."""

import numpy as np
import pytest
import soundfile

from editjax.audio import ArrayReader, Reader
from editjax.effects import Change, Changed, with_effects
from editjax.mel import MelSettings, mel_of

MEL = MelSettings()


def tones(seconds: float = 3.0, rate_hz: int = 44100, channels: int = 2) -> np.ndarray:
    """A chord whose channels differ, float32 (S, C)."""
    time_S = np.arange(round(seconds * rate_hz)) / rate_hz
    chord_S = sum(np.sin(2 * np.pi * hz * time_S) for hz in (220.0, 277.2, 329.6, 880.0)) / 20
    return np.stack([chord_S * (1.0 - 0.5 * c) for c in range(channels)], 1).astype(np.float32)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_what_is_added_is_added_in_the_files_own_numbers_and_nowhere_else(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tones(0.5), 44100, subtype=subtype)
    added_S = np.linspace(-0.25, 0.25, 1000).astype(np.float32)
    with Reader(tmp_path / "a.wav") as reader:
        plain_SC = reader.read(0, reader.frames)
        changed = Changed(reader, [Change(5000, added_S)])
        read_SC = changed.read(0, changed.frames)
        parts = [changed.read(a, b) for a, b in ((0, 5500), (5500, 5501), (5501, changed.frames))]
        blocks = list(changed.blocks(777))
    assert read_SC.dtype == plain_SC.dtype
    np.testing.assert_array_equal(read_SC, np.concatenate(parts))
    np.testing.assert_array_equal(read_SC, np.concatenate(blocks))
    outside_S = np.r_[0:5000, 6000 : len(plain_SC)]
    np.testing.assert_array_equal(read_SC[outside_S], plain_SC[outside_S])
    full_scale = 1.0 if plain_SC.dtype.kind == "f" else 2.0 ** (8 * plain_SC.dtype.itemsize - 1)
    step = {"PCM_16": 2.0**-15, "PCM_24": 2.0**-23, "FLOAT": 1e-6}[subtype]
    difference_SC = (read_SC.astype(np.float64) - plain_SC)[5000:6000] / full_scale
    np.testing.assert_allclose(difference_SC, np.repeat(added_S[:, None], 2, 1), atol=0.51 * step + 1e-9)


def test_integers_saturate():
    reader = ArrayReader(np.full((100, 1), 30_000, np.int16), 22050)
    changed = Changed(reader, [Change(10, np.full(20, 0.5, np.float32))])
    assert changed.read(0, 100).max() == 32_767


@pytest.mark.parametrize("rate_hz", [22050, 32000, 44056, 44100, 48000, 96000])
def test_what_is_taken_away_leaves_silence_at_any_rate(rate_hz, monkeypatch):
    """The difference lies where the recording does, to a small part of a sample: high tones cancel too."""

    def nothing(mono_S, wanted_TF, spans, mel, vocoder):
        gone_S = np.array(mono_S, np.float32)
        for start, stop in spans:
            gone_S[start * mel.hop : stop * mel.hop] = 0.0
        return gone_S

    monkeypatch.setattr("editjax.effects.fill", nothing)
    time_S, spans = np.arange(3 * rate_hz) / rate_hz, [(1, 7), (37, 61), (77, 129)]
    samples_SC = 0.25 * sum(np.sin(2 * np.pi * hz * time_S) for hz in (2000.0, 8000.0))[:, None]
    reader = ArrayReader(samples_SC, rate_hz)
    changed = with_effects(reader, np.zeros((130, MEL.n_mels), np.float32), spans, MEL)
    found_SC, grid = changed.read(0, changed.frames), MEL.grid(rate_hz)
    for span in spans:
        start, stop = (min(int(grid.sample_of_frame(frame)), len(samples_SC)) for frame in span)
        inside = slice(start + rate_hz // 50, stop - rate_hz // 50)  # at its ends the cut itself is heard
        assert np.abs(found_SC[inside]).max() < 5e-5


def test_a_span_comes_to_sound_like_the_mel_and_the_rest_stays():
    samples_SC, span = tones(), (40, 80)
    reader = ArrayReader(samples_SC, 44100)
    mel_TF, _ = mel_of(reader, MEL)
    wanted_TF = mel_TF.copy()
    wanted_TF[span[0] : span[1]] -= 12.0 / (MEL.ceiling_db - MEL.floor_db)  # 12 dB softer
    changed = with_effects(reader, wanted_TF, [span], MEL)
    found_SC, hop = changed.read(0, changed.frames), 1024
    inside = slice(span[0] * hop, span[1] * hop)
    outside_S = np.r_[0 : inside.start, inside.stop : len(samples_SC)]
    np.testing.assert_array_equal(found_SC[outside_S], samples_SC[outside_S])
    found_TF, _ = mel_of(ArrayReader(found_SC, 44100), MEL)
    middle = slice(span[0] + 4, span[1] - 4)
    loud_F = mel_TF[middle].mean(0) > 0.5
    off = np.abs(found_TF[middle] - wanted_TF[middle])[:, loud_F].mean()
    assert off < np.abs(mel_TF[middle] - wanted_TF[middle])[:, loud_F].mean() / 5
    edge = np.abs(np.diff(found_SC[inside.start - 200 : inside.start + 200, 0])).max()
    assert edge < 2 * np.abs(np.diff(samples_SC[:, 0])).max()  # no click
    sides_S, sides_before_S = (a[inside, 0] - a[inside, 1] for a in (found_SC, samples_SC))
    np.testing.assert_allclose(sides_S, sides_before_S, atol=1e-6)


def test_no_span_changes_nothing_and_one_at_the_end_of_the_file_fits():
    samples_SC = tones(1.0, 22050, 1)
    reader = ArrayReader(samples_SC, 22050)
    mel_TF, _ = mel_of(reader, MEL)
    np.testing.assert_array_equal(with_effects(reader, mel_TF, [], MEL).read(0, len(samples_SC)), samples_SC)
    whole = with_effects(reader, mel_TF, [(0, len(mel_TF))], MEL)
    assert whole.read(0, len(samples_SC)).shape == samples_SC.shape
