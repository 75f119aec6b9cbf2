"""Tuning: rewards are what they say, the learner knows the odds it drew with, what earns more is learned."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pointer_cases import TINY, biased, encoded, fresh_params, recording

from editjax import decode as decoding
from editjax import ppo, tune
from editjax.bundle import flatten
from editjax.config import to_json
from editjax.data import Batch
from editjax.edits import PAD, STOP
from editjax.errors import DataError, UsageError
from editjax.export import export_run, load_bundle, write_bundle
from editjax.family import family_of
from editjax.join_reward import Heard, RewardSettings, off_the_beat, rewards, roughness
from editjax.losses import targets
from editjax.mel import MelSettings
from editjax.models.autoencoder import ScorerSettings
from editjax.network import load_model
from editjax.optim import OptimSettings
from editjax.step import TrainConfig, init_state, update
from editjax.train import train
from editjax.tune import Seen, TuneSettings, say, values_of_others
from editjax.tune_quality import ALLOWED_LOSS, beside_reference, refuse_stranger

FRAMES, STEPS, WANTED = 48, 96, 72
RECORDINGS, SAMPLES = 4, 8
ITERATIONS, HELD = 30, 8


class Sounds(NamedTuple):
    """A recording of two sounds that take turns every `turn` frames, in time with its beats."""

    level_TF: np.ndarray
    phase_T3: np.ndarray


def two_sounds(contrast: float = 1.0, turn: int = 16, frames: int = 64) -> Sounds:
    frame_T = np.arange(frames)
    level_TF = np.tile(contrast * (frame_T // turn % 2)[:, None], (1, 8)).astype(np.float32)
    phase_T3 = np.stack([frame_T / size % 1 for size in (4, 16, 64)], -1).astype(np.float32)
    return Sounds(level_TF, phase_T3)


def heard(sounds: Sounds, keep_T: Any = None, length: float = 32.0, padding: int = 0) -> Heard:
    level_TF, phase_T3 = (np.pad(a, [(0, padding), (0, 0)]) for a in sounds)
    keep_T = np.ones(len(sounds.level_TF)) if keep_T is None else keep_T
    keep_T = np.pad(keep_T, (0, padding)).astype(np.float32)
    looped_T = np.zeros(len(keep_T), bool)
    arrays = (jnp.asarray(a)[None] for a in (level_TF, phase_T3, keep_T, looped_T))
    return Heard(*arrays, jnp.array([len(sounds.level_TF)]), jnp.array([length]))


def earned(known: Heard, pointers_N: Any, steps: int = 96):
    """The rewards of an edit, summed, by name, and of each step."""
    pointers_BN = np.full((1, steps), PAD, np.int32)
    pointers_BN[0, : len(pointers_N) + 1] = np.append(pointers_N, STOP)
    steps_B = jnp.array([len(pointers_N) + 1])
    t = targets(jnp.asarray(pointers_BN), steps_B, jnp.zeros(1), known.keep_BT.shape[1])
    found = rewards(known, t, steps_B)
    return {name.removesuffix("_BN"): float(x_BN.sum()) for name, x_BN in found._asdict().items()}, found


def spans(*bounds: tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.arange(*bound) for bound in bounds])


def test_a_join_between_the_same_sounds_in_time_costs_nothing_and_others_the_more_the_farther():
    known = heard(two_sounds())
    perfect, _ = earned(known, spans((0, 8), (40, 48)))
    assert perfect["continuity"] == 0 and perfect["beats"] == pytest.approx(0, abs=1e-6)
    other, at = earned(known, spans((0, 8), (24, 32)))  # the other sound, half a phrase of four bars away
    assert other["continuity"] == pytest.approx(-1) and other["beats"] == pytest.approx(0, abs=1e-6)
    assert np.flatnonzero(at.continuity_BN[0]).tolist() == [8], "a join earns at the step that makes it"
    costs = [earned(heard(two_sounds(c)), spans((0, 8), (24, 32)))[0]["continuity"] for c in (0.2, 0.5, 1.5)]
    assert costs == sorted(costs, reverse=True) and costs[0] < 0
    late = [earned(known, spans((0, 8), (40 + late, 48)))[0]["beats"] for late in range(3)]
    assert late[0] > late[1] > late[2]


def test_what_the_recording_steps_itself_is_no_roughness_of_a_join():
    level_BTF = jnp.asarray(two_sounds().level_TF)[None]
    left_BN, landed_BN = jnp.array([[7, 7, 15]]), jnp.array([[16, 20, 32]])
    # Where the other sound begins; inside it; from the end of a sound to where the same one begins.
    found = roughness(level_BTF, jnp.array([64]), left_BN, landed_BN)
    np.testing.assert_allclose(found, [[0.5, 1.0, 0.0]], atol=1e-6)


def test_half_a_beat_is_as_far_off_as_can_be():
    phase_BT3 = jnp.asarray(two_sounds().phase_T3)[None]
    found = off_the_beat(phase_BT3, jnp.array([[7, 7, 7]]), jnp.array([[24, 8 + 2, 8 + 8]]))
    np.testing.assert_allclose(found, [[0.0, (1 + (1 - np.cos(np.pi / 4)) / 2) / 2, 0.5]], atol=1e-6)


def test_the_wanted_length_costs_nothing_and_half_as_much_as_twice():
    known = heard(two_sounds(), length=24.0)
    duration = [earned(known, np.arange(length))[0]["duration"] for length in (24, 12, 48)]
    np.testing.assert_allclose(duration, [0, -np.log(2), -np.log(2)], atol=1e-6)


def test_what_should_be_kept_is_played_once_and_nothing_else():
    keep_T = np.arange(64) < 32
    known = heard(two_sounds(), keep_T=keep_T)
    edits = spans((0, 32)), spans((0, 16)), spans((0, 40)), spans((0, 32), (0, 8))
    covered = [earned(known, edit)[0]["coverage"] for edit in edits]
    np.testing.assert_allclose(covered, [1, 0.5, 0.75, 0.75], atol=1e-6)
    looped = known._replace(looped_BT=jnp.ones_like(known.looped_BT))
    assert earned(looped, edits[3])[0]["coverage"] == pytest.approx(1), "a loop may be played again"


def test_the_padding_of_a_recording_and_of_an_edit_earns_nothing():
    edit, sounds = spans((0, 20), (40, 64), (8, 12)), two_sounds()  # also left from its last frame
    alone, _ = earned(heard(sounds), edit, steps=64)
    padded = heard(sounds, padding=32)
    poison_T = jnp.arange(64 + 32) >= 64
    level_BTF = jnp.where(poison_T[None, :, None], jnp.nan, padded.level_BTF)
    assert earned(padded._replace(level_BTF=level_BTF), edit)[0] == pytest.approx(alone)


def test_rewards_refuse_negative_weights():
    with pytest.raises(UsageError, match="beats -1"):
        RewardSettings(beats=-1)


@pytest.mark.slow
def test_the_learner_knows_the_odds_that_edits_were_drawn_with():
    rows, params = 8, biased(fresh_params(0), [1.0, 0.0, -6.0])
    recordings = [recording(30 + 3 * row, row) for row in range(rows)]
    heard, keys = encoded(params, recordings, 60)
    ready = TINY, params, keys, jnp.zeros(rows), STEPS, 1.0, jax.random.key(3)
    out = decoding.decode(*ready, rules=False)
    counted_BN = np.asarray(out.pointers_BN != PAD)
    seen = Seen(heard, jnp.zeros(rows), counted_BN.sum(1))
    said = say(TuneSettings(max_jumps=STEPS), TINY, params, seen, out.pointers_BN)
    jumps = (np.diff(out.pointers_BN, axis=1) != 1)[counted_BN[:, 1:]]
    assert jumps.mean() > 0.1, "hardly anything to know"
    played = [row[row >= 0] for row in np.asarray(out.pointers_BN)]
    assert max(len(row) - len(np.unique(row)) for row in played) > 3, "no rule would have ended anything"
    np.testing.assert_allclose(said.log_p_BN[counted_BN], out.log_p_BN[counted_BN], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_edits_drawn_at_another_temperature_have_the_odds_of_logits_divided_by_it():
    """The first choice of a thousand edits of one recording, against what the learner says of it."""
    rows, temperature, params = 1000, 0.5, biased(fresh_params(0), [0.0, 1.0, 0.0])
    heard, keys = encoded(params, [recording(10)], 10)
    many = jax.tree.map(lambda x: jnp.repeat(x, rows, 0), keys)
    ready = TINY, params, many, jnp.zeros(rows), 1, temperature, jax.random.key(0)
    drawn_B1 = np.asarray(decoding.decode(*ready, draft=0, rules=False).pointers_BN)
    choice_C, counts_C = np.unique(drawn_B1, return_counts=True)
    each = jax.tree.map(lambda x: jnp.repeat(x, len(choice_C), 0), heard)
    seen = Seen(each, jnp.zeros(len(choice_C)), jnp.ones(len(choice_C), jnp.int32))
    said = say(TuneSettings(temperature=temperature), TINY, params, seen, jnp.asarray(choice_C)[:, None])
    p_C = np.exp(said.log_p_BN[:, 0])
    assert len(choice_C) > 4 and p_C.sum() == pytest.approx(1, abs=0.02)
    assert (np.abs(counts_C / rows - p_C) < 4 * np.sqrt(p_C / rows)).all()


def test_a_state_is_worth_what_the_others_went_on_to_earn_from_there():
    """Two edits of one recording of six frames, one of which leaves frames 2 and 3 out."""
    pointers_BN = jnp.array([[0, 1, 2, 3, STOP], [0, 1, 4, 5, STOP]])
    reward_BN = jnp.array([[1.0, 2, 3, 4, 5], [10.0, 20, 30, 40, 50]])
    t = targets(pointers_BN, jnp.array([5, 5]), jnp.zeros(2), 6)
    value_BN = values_of_others(reward_BN, t, 6, 2)
    # Before frame 4 the first edit has stopped; after frames 2 and 3 the second goes on from frame 4.
    np.testing.assert_allclose(value_BN, [[150, 140, 120, 90, 90], [15, 14, 12, 0, 0]])
    other_BN = values_of_others(reward_BN.at[0].set(-1.0), t, 6, 2)
    np.testing.assert_allclose(other_BN[0], value_BN[0], err_msg="an edit's own rewards are in its values")


def batch_of(seed: int = 0, recordings: int = RECORDINGS) -> Batch:
    """Recordings of a sound, another, and the first again; the true edits are of no account."""
    rng = np.random.default_rng(seed)
    sounds = two_sounds(frames=FRAMES)
    mel_TF = np.where(sounds.level_TF[:, :1] > 0, np.linspace(0.2, 0.9, 32), np.linspace(0.9, 0.2, 32))
    mel_BTF = mel_TF + 0.02 * rng.standard_normal((recordings, FRAMES, 32))
    pointers_BN = np.full((recordings, STEPS), PAD, np.int32)
    pointers_BN[:, 0] = STOP
    frames_B = np.full(recordings, FRAMES, np.int32)
    zero_B, nothing_BT = np.zeros(recordings, np.int32), np.zeros((recordings, FRAMES), np.int32)
    return Batch(
        mel_BTF=mel_BTF.astype(np.float32),
        frames_B=frames_B,
        phase_BT3=np.tile(sounds.phase_T3, (recordings, 1, 1)),
        pointers_BN=pointers_BN,
        steps_B=zero_B + 1,
        structure_BT=nothing_BT,
        kind_BT=nothing_BT,
        target_B=np.full(recordings, WANTED, np.float32),
        style_B=zero_B,
        ids_B=zero_B,
        stems_BIMF=np.zeros((recordings, 0, 2, 32), np.float32),
        present_BI=np.zeros((recordings, 0), bool),
        edited_BTF=np.zeros((recordings, 0, 32), np.float32),
        label_BT=nothing_BT[:, :0],
        beat_BT=nothing_BT[:, :0],
    )


class Batches:
    """Batch n is a pure function of n."""

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> Batch:
        self.position += 1
        return batch_of(self.position)

    def get_state(self) -> dict[str, int]:
        return {"next": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["next"]


REWARD = RewardSettings(continuity=1.0, beats=0.0, duration=2.0, coverage=0.0)
"""Joins between the two sounds cost, and without a join no edit is long enough."""


def tuned_config(
    steps: int = ITERATIONS, rate: float = 3e-3, tether: float = 1e-6, **changes: Any
) -> TrainConfig:
    """Single updates of all edits, so that every iteration begins and ends with the ratio of 1."""
    learning = replace(TuneSettings().ppo, tether=tether, target_kl=0.0, epochs=1, minibatches=1)
    optim = OptimSettings(learning_rate=rate, warmup_steps=0, steps=steps, final_fraction=1.0, b2=0.95)
    tuning = TuneSettings(learning, REWARD, **{"samples": SAMPLES, "max_jumps": 24} | changes)
    return TrainConfig(model=TINY, loss=tuning, optim=optim, validate_every=0, checkpoint_every=1)


def begun() -> Any:
    """An editor that jumps every few frames."""
    return biased(fresh_params(0), [2.0, 0.0, -3.0])


advance = jax.jit(update, static_argnames=("config", "family", "frozen_settings"))


def tuned(config: TrainConfig, params: Any, steps: int) -> tuple[Any, list[dict[str, float]]]:
    """The parameters after some iterations on the same recordings, and the figures of each."""
    family, key, batch = family_of(config.model, config.loss), jax.random.key(0), batch_of()
    state, rows = init_state(config, family, key, params), []
    for _ in range(steps):
        how = {"config": config, "family": family, "frozen_settings": config.model}
        state, found = advance(state, batch, key, params, **how)
        rows.append({name: float(x) for name, x in found.items()})
    return state.params, rows


def mean_of(name: str, rows: list[dict[str, float]]) -> float:
    return float(np.mean([row[name] for row in rows]))


@pytest.fixture(scope="module")
def free():
    """What becomes of an editor that hardly anything holds."""
    return tuned(tuned_config(), begun(), ITERATIONS)


@pytest.mark.slow
def test_what_earns_more_is_learned_and_only_by_the_decoder(free):
    first, (last, rows) = begun(), free
    assert mean_of("reward", rows[-8:]) > mean_of("reward", rows[:8]) + 0.5
    assert mean_of("joins", rows[-8:]) > 0.5, "it gave up joining"
    assert rows[-1]["total_skipped"] == 0 and jax.tree.structure(last) == jax.tree.structure(first)
    for part in ("encoder", "style"):
        jax.tree.map(np.testing.assert_array_equal, last[part], first[part])


@pytest.mark.slow
def test_the_ratio_of_a_policy_to_itself_is_one(free):
    for row in free[1]:
        assert row["kl"] < 1e-9 and row["clipped"] == 0 and row["gradient_norm"] > 0 and row["decisions"] > 1


@pytest.mark.slow
def test_a_tether_holds(free):
    _, held = tuned(tuned_config(tether=1e3), begun(), HELD)
    assert held[-1]["tether_kl"] < 0.2 * free[1][HELD - 1]["tether_kl"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    training = {"step": 0, "checkpoint": "last", "export_command": ""}
    facts = {"family": "pointer", "model": to_json(TINY), "mel": to_json(MelSettings(n_mels=32))}
    facts |= {"training": training, "licence": ""}
    return write_bundle(tmp_path_factory.mktemp("models") / "begun", flatten(begun()), facts)


@pytest.mark.slow
def test_an_interrupted_run_ends_like_one_that_never_was_and_its_model_edits(reference, tmp_path):
    config = tuned_config(2, tether=0.1, reference=str(reference))
    whole = train(config, Batches(), tmp_path / "whole", first_params=begun())

    class Breaking(Batches):
        def __next__(self):
            if self.position == 1:
                raise InterruptedError
            return super().__next__()

    with pytest.raises(InterruptedError):
        train(config, Breaking(), tmp_path / "broken", first_params=begun())
    resumed = train(config, Batches(), tmp_path / "broken", first_params=begun())
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    model = export_run(tmp_path / "whole", tmp_path / "model", which="last")
    network = load_model(model)
    mel_TF, phase_T3 = recording(FRAMES)
    assert len(network.edit_pointers(mel_TF, phase_T3).pointers_N) > 0
    jax.tree.map(np.testing.assert_array_equal, network.params, whole.params)


def test_a_reference_must_be_a_pointer_network_with_the_same_decoder(reference):
    loss, bundle = TuneSettings(reference=str(reference)), load_bundle(reference)
    with pytest.raises(DataError, match="begun: not a pointer network"):
        tune.reference_of(TrainConfig(loss=loss), ppo.Frozen(ScorerSettings(), {}))
    wider, frozen = replace(TINY, look_ahead=TINY.look_ahead + 1), ppo.Frozen(bundle.settings, bundle.params)
    with pytest.raises(DataError, match="begun: has another decoder than the model to tune"):
        tune.reference_of(TrainConfig(model=wider, loss=loss), frozen)


def test_what_is_tuned_hears_as_its_reference_does(reference, tmp_path):
    tuning = TuneSettings(reference=str(reference))
    params = begun()
    decoder = jax.tree.map(lambda a: a + 1, params["decoder"])
    refuse_stranger("mine", {**params, "decoder": decoder}, tuning)
    encoder = jax.tree.map(lambda a: a + 1, params["encoder"])
    with pytest.raises(UsageError, match=r"mine: hears otherwise than .*add --loss\.reference mine"):
        refuse_stranger("mine", {**params, "encoder": encoder}, tuning)


def test_a_reward_counts_in_full_only_where_no_kept_iou_is_lost(reference):
    config = TrainConfig(model=TINY, loss=TuneSettings(reference=str(reference)))
    iou = iter([0.9, 0.9 - ALLOWED_LOSS + 1e-6, 0.9 - ALLOWED_LOSS - 1e-3])
    validate = beside_reference(config, lambda params: {"reward": 2.0, "kept_iou": next(iou)})
    assert validate(None)["score"] == 2.0 and validate(None)["score"] == -np.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 1}, "samples 1"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"max_jumps": 0}, "max_jumps 0"),
    ],
)
def test_settings_that_cannot_teach_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        TuneSettings(**changes)
