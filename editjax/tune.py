"""A trained pointer network learns by what its own edits earn, and stays near what it was.

    batch → encoded once → several edits of each recording, drawn → rewards → PPO over their decisions

Only the decoder learns: the encoder, whose word on what to keep decides about rewards and hints, stays as it
is, so a network cannot please itself by hearing otherwise. Edits are drawn without the rules of decoding,
from the likelihood itself; nothing but the draw is random, so that the ratio of a policy to itself is 1.

There is no network of values: the value of a state is what the other edits of the same recording went on to
earn from the same frame ("leave one out", Kool et al. 2019). It owes nothing to the edit's own choices, and
a tuned network has the parameters of any other.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editjax import ppo
from editjax.decode import decode
from editjax.edits import PAD, STOP
from editjax.errors import DataError, UsageError
from editjax.join_reward import Rewards, RewardSettings, heard_of, rewards
from editjax.losses import Targets, jumps_of, targets
from editjax.models.encoder import Encoded, encode
from editjax.models.pointer import ADVANCE, JUMP, PointerSettings, decoder_call, init
from editjax.models.stems import Stems
from editjax.models.style import Asked, prior
from editjax.optim import make_optimizer
from editjax.ppo import Evaluated, Learner, PpoSettings, Rollout


def _ppo() -> PpoSettings:
    """Recordings end, so nothing is discounted; no values are learnt, so there is no loss of theirs."""
    return PpoSettings(
        discount=1.0, trace=1.0, value=0.0, clip_value=False, entropy=0.0, final_entropy=0.0, tether=0.1,
        target_kl=0.05, epochs=2, minibatches=2,
    )  # fmt: skip


@dataclass(frozen=True)
class TuneSettings:
    """How a pointer network is tuned.

    Of every recording `samples` edits are drawn at `temperature`, which divides all logits in learning too.
    `reference` is the model that a tether holds on to and whose kept IoU must not be lost: a bundled name or
    a folder. Steps that were surer than `sure` to advance, and did, are not counted; nor is what follows the
    first `max_jumps` jumps of an edit.
    """

    ppo: PpoSettings = field(default_factory=_ppo)
    reward: RewardSettings = field(default_factory=RewardSettings)
    reference: str = "final"
    samples: int = 8
    temperature: float = 1.0
    sure: float = 0.999
    max_jumps: int = 64

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UsageError(f"samples {self.samples}: give 2 or more, for each is judged by the others")
        if not self.temperature > 0:
            raise UsageError(f"temperature {self.temperature}: give more than 0, or all edits are alike")
        if self.max_jumps < 1:
            raise UsageError(f"max_jumps {self.max_jumps}: give 1 or more")


class Seen(NamedTuple):
    """What the decoder looks at, a row for every edit."""

    encoded: Encoded
    target_B: jax.Array
    steps_B: jax.Array


class Said(NamedTuple):
    """What the decoder says of edits, (B, N) each: log-probability of each choice, entropy of its mode, the
    probability to advance."""

    log_p_BN: jax.Array
    entropy_BN: jax.Array
    advance_BN: jax.Array


class Drawn(NamedTuple):
    """Edits of every recording, side by side in rows (samples of one recording follow each other), and what
    they earned."""

    seen: Seen
    pointers_BN: jax.Array
    earned: Rewards


def learn(
    learner: Learner, batch: Any, key: jax.Array, config: Any, frozen: ppo.Frozen
) -> tuple[Learner, dict[str, jax.Array]]:
    """One iteration: draws edits of a `data.Batch`, and learns from them. `frozen` is the reference."""
    tune, model, reference = config.loss, config.model, reference_of(config, frozen)
    draw_key, learn_key = jax.random.split(key)
    drawn = draw(tune, model, learner.params, batch, draw_key)
    found = rollout_of(tune, model, learner.params, drawn, reference)
    evaluate = partial(evaluated, tune, model)
    optimizer = make_optimizer(ppo.per_update(config.optim, tune.ppo))
    rate = ppo.rate_of(config.optim, tune.ppo, learner)
    settings = ppo.over(tune.ppo, config.optim)
    learnt, metrics = ppo.learn(settings, evaluate, optimizer, learner, found, learn_key)
    params = {**learner.params, "decoder": learnt.params["decoder"]}  # weight decay is not for the others
    return learnt._replace(params=params), {**metrics, **figures(tune, drawn, found), "learning_rate": rate}


def draw(tune: TuneSettings, model: PointerSettings, params: Any, batch: Any, key: jax.Array) -> Drawn:
    """`samples` edits of every recording, drawn from the decoder's likelihood, and what they earn."""
    asked = Asked(batch.target_B, prior(model, batch.style_B).mean_BZ)
    recording = batch.mel_BTF, batch.frames_B, batch.phase_BT3
    encoded = encode(model, params["encoder"], *recording, asked, Stems(batch.stems_BIMF, batch.present_BI))
    rows, target_B = jax.tree.map(lambda x: jnp.repeat(x, tune.samples, 0), (encoded, batch.target_B))
    keys = decoder_call(model, params, "keys", rows)
    max_steps, temperature = batch.pointers_BN.shape[1], jnp.float32(tune.temperature)
    pointers_BN = decode(model, params, keys, target_B, max_steps, temperature, key, rules=False).pointers_BN
    seen = Seen(rows, target_B, (pointers_BN != PAD).sum(1, dtype=jnp.int32))
    t = targets(pointers_BN, seen.steps_B, target_B, batch.mel_BTF.shape[1])
    looped_BT = keys.hints.looped_BT[:: tune.samples]
    heard = heard_of(model, batch.mel_BTF, batch.phase_BT3, batch.target_B, encoded, looped_BT)
    by_recording = jax.tree.map(lambda x: grouped(x, tune.samples), (t, seen.steps_B))
    earned = jax.vmap(rewards, (None, 1, 1), 1)(heard, *by_recording)
    return Drawn(seen, pointers_BN, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), earned))


def grouped(x_B, samples: int):
    """Rows (B · K, …) as (B, K, …)."""
    return x_B.reshape(-1, samples, *x_B.shape[1:])


def rollout_of(
    tune: TuneSettings, model: PointerSettings, params: Any, drawn: Drawn, reference: Any
) -> ppo.Batch:
    """Edits as PPO learns from them: with their advantages, what the decoder and the reference say of them,
    and which of their steps are counted."""
    seen, pointers_BN, n_frames = drawn.seen, drawn.pointers_BN, drawn.seen.encoded.frames_BTD.shape[1]
    say = partial(_said_in_parts, tune, model, seen, pointers_BN)
    said, of_reference = say(params), say(reference)
    reward_BN = drawn.earned.weighed(tune.reward)
    t = targets(pointers_BN, seen.steps_B, seen.target_B, n_frames)
    value_BN = values_of_others(reward_BN, t, n_frames, tune.samples)
    done_BN = t.step.index_BN == seen.steps_B[:, None] - 1
    counted_BN, last_value_B = t.counted_BN, jnp.zeros(len(pointers_BN))
    known = said.log_p_BN, value_BN, reward_BN, done_BN, counted_BN, last_value_B, of_reference.log_p_BN
    found = ppo.batch_of(tune.ppo, Rollout(seen, pointers_BN, *known))
    return found._replace(counted_BT=counted_BN & decides(tune, t, said))


def decides(tune: TuneSettings, t: Targets, said: Said):
    """Steps that matter, (B, N): jumps, the stop, and advances that were not sure."""
    jumps_BN = jnp.cumsum(t.mode_BN == JUMP, axis=1)
    unsure_BN = (t.mode_BN != ADVANCE) | (said.advance_BN < tune.sure)
    return unsure_BN & (jumps_BN <= tune.max_jumps)


def values_of_others(reward_BN, t: Targets, n_frames: int, samples: int):
    """What the other edits of the same recording earned on average after they had played the same frame.

    Of an edit that never played it, after the next later one that it did: after it had come past it. (B, N).
    """
    to_go_BN = jnp.cumsum(reward_BN[:, ::-1], axis=1)[:, ::-1]
    at_BN = jnp.where(t.counted_BN, t.step.pointer_BN + 1, n_frames + 1)  # the start is before all frames
    n_steps = reward_BN.shape[1]
    never_T = jnp.full(n_frames + 1, n_steps)
    first = jax.vmap(
        lambda at_N, step_N: never_T.at[at_N].min(step_N, mode="drop")
    )  # see losses._first_played
    first_BT = first(at_BN, t.step.index_BN)
    place_T = jnp.arange(n_frames + 1)[None, :]
    later_BT = jax.lax.cummin(jnp.where(first_BT < n_steps, place_T, n_frames + 1), axis=1, reverse=True)
    step_BT = jnp.take_along_axis(first_BT, jnp.minimum(later_BT, n_frames), axis=1)
    padded_BN = jnp.pad(to_go_BN, ((0, 0), (0, 1)))  # past the last frame that it played: nothing
    worth_BT = jnp.take_along_axis(padded_BN, step_BT, axis=1)
    worth_BKT = grouped(worth_BT, samples)
    others_BKT = (worth_BKT.sum(1, keepdims=True) - worth_BKT) / float(samples - 1)
    others_BT = others_BKT.reshape(worth_BT.shape)
    return jnp.where(t.counted_BN, jnp.take_along_axis(others_BT, t.step.pointer_BN + 1, axis=1), 0.0)


def evaluated(tune: TuneSettings, model: PointerSettings, params: Any, seen: Seen, pointers_BN) -> Evaluated:
    """What PPO asks of the decoder; it has no values."""
    said = say(tune, model, params, seen, pointers_BN)
    return Evaluated(said.log_p_BN, said.entropy_BN, jnp.zeros_like(said.log_p_BN))


def say(tune: TuneSettings, model: PointerSettings, params: Any, seen: Seen, pointers_BN) -> Said:
    """What the decoder says of every step of edits, all at once, at the temperature they are drawn with."""
    keys = decoder_call(model, params, "keys", seen.encoded)
    t = targets(pointers_BN, seen.steps_B, seen.target_B, keys.frames_BTD.shape[1])
    h_BND = decoder_call(model, params, "states", keys, t.step, seen.steps_B)
    logits_BN3 = decoder_call(model, params, "mode_logits", h_BND, t.step.pointer_BN, keys) / tune.temperature
    log_p_BN, entropy_BN = ppo.categorical(logits_BN3, t.mode_BN)
    jumps = jumps_of(model, params, keys, t, h_BND, tune.max_jumps)
    target_p_BJ = sum(ppo.categorical(logits / tune.temperature, at)[0] for logits, at in jumps.parts)
    target_p_BJ = jnp.where(jumps.real_BJ, target_p_BJ, 0.0)
    advance_BN = jax.nn.softmax(logits_BN3, axis=-1)[..., ADVANCE]
    log_p_BN = jax.vmap(lambda log_p_N, at_J, p_J: log_p_N.at[at_J].add(p_J))(
        log_p_BN, jumps.step_BJ, target_p_BJ
    )
    return Said(log_p_BN, entropy_BN, advance_BN)


def _said_in_parts(tune: TuneSettings, model: PointerSettings, seen: Seen, pointers_BN, params: Any) -> Said:
    """`say`, a minibatch after the other, which bounds the memory."""
    if len(pointers_BN) % tune.ppo.minibatches:
        raise UsageError(f"{len(pointers_BN)} edits do not divide into {tune.ppo.minibatches} minibatches")
    parts = jax.tree.map(lambda x: x.reshape(tune.ppo.minibatches, -1, *x.shape[1:]), (seen, pointers_BN))
    said = jax.lax.map(lambda part: say(tune, model, params, *part), parts)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), said)


def figures(tune: TuneSettings, drawn: Drawn, found: ppo.Batch) -> dict[str, jax.Array]:
    """What the edits earned, in all and part by part, and what they are like, on average."""
    plays_BN = drawn.pointers_BN >= 0
    t_BN = jnp.diff(drawn.pointers_BN, axis=1) != 1
    each = {name.removesuffix("_BN"): x_BN.sum(1).mean() for name, x_BN in drawn.earned._asdict().items()}
    return {
        "reward": drawn.earned.weighed(tune.reward).sum(1).mean(),
        **each,
        "joins": (t_BN & plays_BN[:, 1:]).sum(1).mean(dtype=jnp.float32),
        "stopped": (drawn.pointers_BN == STOP).any(1).mean(dtype=jnp.float32),
        "decisions": found.counted_BT.sum(1).mean(dtype=jnp.float32),
    }


def reference_of(config: Any, frozen: ppo.Frozen) -> dict[str, Any]:
    """The decoder of the reference; DataError where it is no pointer network with the tuned one's decoder."""
    name = config.loss.reference
    if not isinstance(frozen.settings, PointerSettings):
        raise DataError(f"{name}: not a pointer network")
    wanted = jax.eval_shape(partial(init, config.model), jax.random.key(0))["decoder"]
    decoder = frozen.params["decoder"]
    if jax.tree.map(np.shape, decoder) != jax.tree.map(np.shape, wanted):
        raise DataError(f"{name}: has another decoder than the model to tune; begin with the reference")
    return {"decoder": decoder}
