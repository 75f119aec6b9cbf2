"""Takes: they begin where they should, differ as performances, and faults are heard but not louder."""

import numpy as np
import pytest

from editjax.composition import compose
from editjax.excerpts import likeness, spectral_features
from editjax.instruments import RANGES
from editjax.performance import (
    FAULTS,
    LEAD_IN_S,
    Room,
    SynthMaterial,
    Take,
    TakePlan,
    block_power,
    loudness,
)

RATE_HZ = 22050
DRY = Room(np.zeros(64, np.float32), 0.0)
CLEAN = TakePlan()


def material(seed: int) -> SynthMaterial:
    return SynthMaterial(compose([9.0, 11.0], np.random.default_rng(seed)), RATE_HZ, seed)


def play(piece: SynthMaterial, plan: TakePlan = CLEAN, seed: int = 0, section: int = 0) -> Take:
    return piece.play(section, plan, DRY, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(6))
def test_takes_begin_with_the_lead_in_and_end_when_the_sound_has_decayed(seed: int) -> None:
    take = play(material(seed))
    power = block_power(take.samples_S, RATE_HZ // 100)
    loud = loudness(take.samples_S, RATE_HZ) ** 2
    assert np.flatnonzero(power > 1e-3 * loud)[0] in range(3, 12)
    assert power[:4].max() < 1e-3 * loud
    assert power[-2:].max() < 1e-3 * loud
    assert power[-25:].max() > 1e-6 * loud


def test_a_take_is_a_function_of_its_generator() -> None:
    np.testing.assert_array_equal(play(material(1)).samples_S, play(material(1)).samples_S)


@pytest.mark.parametrize("seed", range(4))
def test_takes_differ_as_performances_but_play_the_same_music(seed: int) -> None:
    piece = material(seed)
    one, other = play(piece, seed=1), play(piece, seed=2)
    overlap = min(len(one.samples_S), len(other.samples_S))
    correlation = np.fft.irfft(
        np.fft.rfft(one.samples_S, 2 * overlap) * np.conj(np.fft.rfft(other.samples_S, 2 * overlap))
    )
    norm = np.linalg.norm(one.samples_S) * np.linalg.norm(other.samples_S)
    assert np.abs(correlation).max() / norm < 0.7  # no shift makes one the other
    same = likeness(spectral_features(one.samples_S, RATE_HZ), spectral_features(other.samples_S, RATE_HZ))
    elsewhere = play(piece, seed=3, section=1)
    different = likeness(
        spectral_features(one.samples_S, RATE_HZ), spectral_features(elsewhere.samples_S, RATE_HZ)
    )
    assert same > different


def test_tempo_stays_within_a_few_per_cent_and_bars_follow_it() -> None:
    piece = material(2)
    bar_s = piece.piece.sections[0].beats_per_bar * 60.0 / piece.tempo_bpm
    steps = np.concatenate([np.diff(play(piece, seed=seed).bars[:-1]) for seed in range(8)]) / RATE_HZ
    assert np.median(steps) == pytest.approx(bar_s, rel=0.04)
    assert np.abs(steps / bar_s - 1.0).max() < 0.15
    assert steps.std() > 0.002 * bar_s


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_takes_are_as_loud_as_good_ones_and_say_where_they_fail(name: str) -> None:
    piece = material(3)
    good_db = 20 * np.log10(loudness(play(piece).samples_S, RATE_HZ))
    take = play(piece, TakePlan(((name, 0.3), (name, 0.6))))
    assert 20 * np.log10(loudness(take.samples_S, RATE_HZ)) == pytest.approx(good_db, abs=4.0)
    assert [fault for _, fault in take.faults] == [name, name]
    assert 0 < take.faults[0][0] < take.faults[1][0] < len(take.samples_S)


def test_a_stumble_goes_back_and_repeats() -> None:
    piece = material(4)
    plain, stumbled = play(piece), play(piece, TakePlan((("stumble", 0.5),)))
    longer_s = (len(stumbled.samples_S) - len(plain.samples_S)) / RATE_HZ
    assert 0.3 < longer_s < 5.0


def test_a_dropout_is_silent_where_it_says() -> None:
    take = play(material(5), TakePlan((("dropout", 0.5),)))
    at = take.faults[0][0]
    inside = take.samples_S[at + RATE_HZ // 100 : at + RATE_HZ // 10]
    assert loudness(inside, RATE_HZ) < 1e-3 * loudness(take.samples_S, RATE_HZ)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
def test_a_broken_take_stops_near_its_share(share: float) -> None:
    piece = material(6)
    length_s = piece.section_lengths_s[0]
    take = play(piece, TakePlan((), share))
    played_s = len(take.samples_S) / RATE_HZ - LEAD_IN_S
    assert 0.9 * share * length_s - 0.2 < played_s < 1.1 * share * length_s + 2.0


def test_compositions_stay_in_range_and_sections_differ() -> None:
    for seed in range(20):
        piece = compose([8.0, 10.0, 12.0], np.random.default_rng(seed))
        for section in piece.sections:
            for note in section.notes:
                timbre = piece.parts[note.part].timbre
                assert 0.0 <= note.beat < section.beats + 0.5
                if timbre:
                    assert RANGES[timbre.family][0] <= note.pitch <= RANGES[timbre.family][1]
        melodies = [[n.pitch for n in section.notes if n.part == 0] for section in piece.sections]
        assert melodies[0] != melodies[1] != melodies[2] != melodies[0]
