"""Sound where there are no original samples: it joins without a click, and what is original stays."""

from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import soxr

from editjax import vocoder as module
from editjax.crossfade import STEP_LIMIT
from editjax.errors import UsageError
from editjax.mel import MelSettings, mel_spectrogram
from editjax.models import griffin_lim
from editjax.models.griffin_lim import GriffinLimSettings
from editjax.models.hifigan import HifiGanSettings, VocoderMel, init, synthesise, vocoder_mel
from editjax.vocoder import Vocoder, fill, waveform

HOP = 512
RECORDINGS = Path(__file__).parent / "recordings"
FEW = GriffinLimSettings(iterations=4)
SPAN = (60, 90)
BESIDE = 1024


def tones(*hz: float) -> np.ndarray:
    seconds_S = np.arange(128 * HOP) / 22_050
    return sum(0.2 * np.sin(2 * np.pi * f * seconds_S) for f in hz).astype(np.float32)


def recording(name: str) -> np.ndarray:
    return soundfile.read(RECORDINGS / f"{name}.flac", dtype="float32")[0][: 128 * HOP]


def mel_of(samples_S: np.ndarray) -> np.ndarray:
    return mel_spectrogram(samples_S)[: -(-len(samples_S) // HOP)]


def changed(mel_TF: np.ndarray, how: str) -> np.ndarray:
    """The mel with its span as it is, 6 dB quieter, or fading by 30 dB."""
    mel_TF, (start, stop) = mel_TF.copy(), SPAN
    if how == "quieter":
        mel_TF[start:stop] -= 6 / 120
    if how == "fading":
        mel_TF[start:stop] -= np.linspace(0, 30 / 120, stop - start, dtype=np.float32)[:, None]
    return np.clip(mel_TF, 0.0, 1.0)


def steps(samples_S: np.ndarray, order: int) -> np.ndarray:
    return np.abs(np.diff(samples_S.astype(np.float64), order))


def click(samples_S: np.ndarray, at: int, order: int = 1) -> float:
    """The largest step at a join over the largest beside it; of `order` 2, the largest bend."""
    joint = steps(samples_S[at - 8 : at + 8], order).max()
    sides = (samples_S[at - BESIDE : at - 8], samples_S[at + 8 : at + BESIDE])
    return float(joint / max(steps(side_S, order).max() for side_S in sides))


SOUNDS = {"low": tones(110), "chord": tones(220, 330.5, 557), "high": tones(3000)} | {
    name: recording(name) for name in ("piano", "guitar", "band")
}


@pytest.mark.parametrize("how", ["as it is", "quieter", "fading"])
@pytest.mark.parametrize("name", SOUNDS)
def test_joins_do_not_click_and_the_rest_stays(name: str, how: str) -> None:
    samples_S = SOUNDS[name]
    mel_TF, (begin, end) = changed(mel_of(samples_S), how), (SPAN[0] * HOP, SPAN[1] * HOP)
    before_S = samples_S.copy()
    filled_S = fill(samples_S, mel_TF, [SPAN])
    np.testing.assert_array_equal(samples_S, before_S)
    assert filled_S.dtype == np.float32
    np.testing.assert_array_equal(filled_S[:begin], samples_S[:begin])
    np.testing.assert_array_equal(filled_S[end:], samples_S[end:])
    assert np.abs(filled_S[begin:end] - samples_S[begin:end]).max() > 0.01
    for at in (begin, end):
        assert click(filled_S, at) <= STEP_LIMIT and click(filled_S, at, order=2) <= 1.6
    inner = slice(SPAN[0] + 1, SPAN[1] - 1)
    wanted, found = (griffin_lim.band_power(m[inner], MelSettings()) for m in (mel_TF, mel_of(filled_S)))
    assert np.linalg.norm(np.sqrt(found) - np.sqrt(wanted)) < 0.1 * np.linalg.norm(np.sqrt(wanted))


@pytest.mark.parametrize("name", ["low", "chord", "band"])
def test_a_waveform_put_between_samples_would_click(name: str) -> None:
    """What the search is spared: the same mel inverted alone, pasted in."""
    pasted_S, (begin, end) = SOUNDS[name].copy(), (SPAN[0] * HOP, SPAN[1] * HOP)
    pasted_S[begin:end] = waveform(mel_of(pasted_S))[begin:end]
    assert max(click(pasted_S, at, order=2) for at in (begin, end)) > 2.0


def test_the_samples_before_a_span_lead_into_it() -> None:
    """What predicts tones is exact; noise fades away, and nothing comes of nothing."""
    samples_S = tones(220, 557)
    ahead_S = module._predicted(samples_S[:8192].astype(np.float64), 64)
    np.testing.assert_allclose(ahead_S, samples_S[8192 : 8192 + 64], atol=0.01)
    noise_S = np.random.default_rng(0).standard_normal(4096)
    assert np.abs(module._predicted(noise_S, 4096)[2048:]).max() < 0.1
    assert not module._predicted(np.zeros(4096), 64).any()


def test_what_is_in_a_span_is_not_heard() -> None:
    """Not even as a sample that is no number."""
    samples_S = recording("guitar")
    poisoned_S = samples_S.copy()
    poisoned_S[SPAN[0] * HOP : SPAN[1] * HOP] = np.nan
    mel_TF = mel_of(samples_S)
    np.testing.assert_array_equal(
        fill(poisoned_S, mel_TF, [SPAN], settings=FEW), fill(samples_S, mel_TF, [SPAN], settings=FEW)
    )


def test_spans_are_made_in_any_order_and_merged_where_they_meet() -> None:
    samples_S = recording("guitar")
    mel_TF = mel_of(samples_S)
    wanted_S = fill(samples_S, mel_TF, [(20, 40), (43, 45)], settings=FEW)
    spans = [(43, 45), (30, 40), (20, 32), (7, 7)]
    np.testing.assert_array_equal(fill(samples_S, mel_TF, spans, settings=FEW), wanted_S)
    made = np.flatnonzero(wanted_S != samples_S)
    assert {*np.unique(made // HOP)} == {*range(20, 40), 43, 44}
    np.testing.assert_array_equal(fill(samples_S, mel_TF, []), samples_S)


@pytest.mark.parametrize("extra", [-700, 0, 5000])
def test_a_recording_may_end_before_or_after_its_last_frame(extra: int) -> None:
    samples_S = recording("guitar")
    mel_TF, samples_S = mel_of(samples_S), np.pad(samples_S, (0, 5000))[: 128 * HOP + extra]
    filled_S = fill(samples_S, mel_TF, [(0, 3), (120, 128)], settings=FEW)
    assert filled_S.shape == samples_S.shape and np.isfinite(filled_S).all()
    np.testing.assert_array_equal(filled_S[3 * HOP : 120 * HOP], samples_S[3 * HOP : 120 * HOP])
    np.testing.assert_array_equal(filled_S[128 * HOP :], samples_S[128 * HOP :])


def test_long_mels_are_made_in_parts_that_join(monkeypatch: pytest.MonkeyPatch) -> None:
    samples_S = recording("guitar")
    mel_TF = mel_of(samples_S)
    whole_S = waveform(mel_TF)
    monkeypatch.setattr(module, "LONGEST_FRAMES", 64)
    parts_S = waveform(mel_TF)
    at_once = 64 - 2 * 8
    for at in (at_once * HOP, 2 * at_once * HOP):
        assert click(parts_S, at) <= STEP_LIMIT
    wanted = np.sqrt(griffin_lim.band_power(mel_TF, MelSettings()))
    for made_S in (whole_S, parts_S):
        found = np.sqrt(griffin_lim.band_power(mel_of(made_S), MelSettings()))
        assert np.linalg.norm(found - wanted) < 0.04 * np.linalg.norm(wanted)


def test_few_programs_serve_all_lengths() -> None:
    before = griffin_lim.mel_to_samples._cache_size()
    settings = GriffinLimSettings(iterations=1)
    for n_frames in (*range(1, 30, 5), 31, 32, 33, 50, 64, 90):
        assert waveform(np.full((n_frames, 128), 0.5), settings=settings).shape == (n_frames * HOP,)
    assert griffin_lim.mel_to_samples._cache_size() - before == 4  # 16, 32, 64 and 128 frames


def test_no_frames_make_no_sound_and_the_seed_decides() -> None:
    assert waveform(np.zeros((0, 128))).shape == (0,)
    assert not waveform(np.zeros((5, 128))).any()
    mel_TF = mel_of(recording("guitar"))[:20]
    first_S, again_S, other_S = (waveform(mel_TF, settings=FEW, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first_S, again_S)
    assert np.abs(first_S - other_S).max() > 0.01


@pytest.mark.parametrize("span", [(-1, 5), (5, 3), (100, 129)])
def test_a_span_that_is_not_of_the_mel_is_refused(span: tuple[int, int]) -> None:
    samples_S = tones(440)
    with pytest.raises(UsageError, match=rf"frames {span[0]} to {span[1]} are not a span"):
        fill(samples_S, mel_of(samples_S), [span])


def test_other_layouts_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(128, 20\), wanted \(time, 128\)"):
        waveform(np.zeros((128, 20)))
    with pytest.raises(UsageError, match="not numbers"):
        waveform(np.full((20, 128), np.nan))
    with pytest.raises(UsageError, match=r"\(2, 100\)"):
        fill(np.zeros((2, 100)), np.zeros((20, 128)), [])


def small_vocoder(rate_hz: int = 22_050) -> Vocoder:
    """Random weights; loud enough to be heard."""
    mel = VocoderMel(sample_rate_hz=rate_hz, n_fft=512, window=512, hop=64, high_hz=None)
    settings = HifiGanSettings(
        mel, channels=8, upsample_rates=(8, 8), upsample_kernels=(16, 16), block=2, block_kernels=(3,),
        block_dilations=((1, 3),),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: init(settings, key), jax.random.key(0))
    params = jax.tree.map(lambda a: (0.2 * rng.standard_normal(a.shape)).astype(np.float32), shapes)
    return Vocoder(settings, params)


@pytest.mark.parametrize("rate_hz", [22_050, 16_000, 44_100])
def test_a_vocoder_of_any_rate_speaks_at_the_mel_rate(rate_hz: int) -> None:
    mel_TF = mel_of(recording("guitar"))[:21]
    vocoder = small_vocoder(rate_hz)
    spoken_S = waveform(mel_TF, vocoder=vocoder, settings=FEW)
    assert spoken_S.shape == (21 * HOP,) and spoken_S.std() > 1e-3
    heard_S = soxr.resample(waveform(mel_TF, settings=FEW), 22_050, rate_hz, "HQ")
    heard_TF = vocoder_mel(heard_S, vocoder.settings.mel)
    wanted_S = soxr.resample(synthesise(vocoder.settings, vocoder.params, heard_TF), rate_hz, 22_050, "HQ")
    np.testing.assert_allclose(spoken_S, wanted_S[: 21 * HOP], atol=1e-4)
    assert waveform(np.zeros((0, 128)), vocoder=vocoder).shape == (0,)


@pytest.mark.parametrize("name", ["piano", "guitar", "band"])
def test_a_vocoder_hears_nearly_the_mel_that_it_knows(name: str) -> None:
    """The usual one: 80 bands to 8 kHz, 256 samples apart; decibels of amplitude, where it is not silent."""
    samples_S, mel = recording(name), VocoderMel()
    wanted_TF = vocoder_mel(samples_S, mel)
    heard_TF = vocoder_mel(waveform(mel_of(samples_S)), mel)
    assert heard_TF.shape == wanted_TF.shape == (256, 80)
    off_db = (20 / np.log(10)) * (heard_TF - wanted_TF)[wanted_TF > np.log(2e-5)]
    assert np.abs(off_db).mean() < 2.2 and abs(off_db.mean()) < 0.6


def test_a_vocoder_fills_a_span_without_a_click() -> None:
    samples_S = recording("guitar")
    vocoder, (begin, end) = small_vocoder(), (SPAN[0] * HOP, SPAN[1] * HOP)
    filled_S = fill(samples_S, mel_of(samples_S), [SPAN], vocoder=vocoder)
    np.testing.assert_array_equal(filled_S[:begin], samples_S[:begin])
    np.testing.assert_array_equal(filled_S[end:], samples_S[end:])
    assert max(click(filled_S, at) for at in (begin, end)) <= STEP_LIMIT
    assert np.abs(filled_S - fill(samples_S, mel_of(samples_S), [SPAN])).max() > 0.01
