"""The pointer network: exact distribution, decoding equals teacher forcing, padding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pointer_cases import (
    SHORT_BARS,
    TINY,
    batch_of,
    biased,
    decoded,
    encoded,
    fresh_params,
    padded,
    params,
    recording,
    short_params,
    teacher_forced_log_p,
    with_loops,
)
from scipy.special import softmax
from scipy.stats import chisquare

from editjax import decode as decoding
from editjax.chunks import encode_in_chunks
from editjax.edits import PAD, STOP, UNALIGNED
from editjax.losses import (
    LossSettings,
    infer_style,
    nll_of_states,
    pointer_loss,
    sequence_nll,
    structure_loss,
    targets,
)
from editjax.models import pointer
from editjax.models.coverage import was_played
from editjax.models.encoder import ALIGN_FRAMES, encode
from editjax.models.pointer import JUMP, PointerSettings, Step, decoder_call
from editjax.models.scales import target_features
from editjax.models.style import Asked

assert params and short_params  # the fixtures


@jax.jit
def loss_of(params, batch):
    return pointer_loss(params, batch, TINY, LossSettings(), jax.random.key(0))[0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoding_step_by_step_equals_teacher_forcing(params, temperature):
    recordings = [recording(75, 1), recording(50, 2)]
    target = [40.0, 30.0]
    keys, out = decoded(params, recordings, 75, temperature=temperature, target=target)
    forced = teacher_forced_log_p(params, keys, out.pointers_BN, jnp.array(target))
    assert (np.asarray(out.steps_B) > 8).all(), "too short to have left the cache window"
    assert any(len(set(row)) < len(row) for row in np.asarray(out.pointers_BN)[:, :30]), "nothing again"
    np.testing.assert_allclose(out.log_p_BN, forced, atol=2e-4)


@pytest.mark.parametrize("bias", [[1.0, 1.0, -6.0], [5.0, 0.0, -3.0], [-1.0, 2.0, -4.0]])
def test_drafts_change_nothing(params, bias):
    """Neither where most of them are taken nor where most are refused, whatever else is in the batch."""
    chosen_so = biased(params, bias)
    recordings = [recording(frames, frames) for frames in (75, 50, 64, 33)]
    for temperature, looped in ((0.0, False), (0.0, True), (1.0, False), (1.0, True)):
        options = {"temperature": temperature, "looped": looped}
        _, plain = decoded(chosen_so, recordings, 75, draft=0, **options)
        assert int(plain.passes) == int((plain.pointers_BN != PAD).sum(1).max())
        for draft in (1, 5, 12):
            _, out = decoded(chosen_so, recordings, 75, draft=draft, **options)
            np.testing.assert_array_equal(out.pointers_BN, plain.pointers_BN)
            np.testing.assert_allclose(out.log_p_BN, plain.log_p_BN, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(out.stop_p_BN, plain.stop_p_BN, atol=1e-5)
            assert int(out.passes) <= int(plain.passes)


def test_drafts_leave_a_pass_for_every_jump_and_every_draft_taken_whole(params):
    draft, advancing = 12, biased(params, [5.0, 0.0, -3.0])
    for seed in range(4):
        _, out = decoded(advancing, [recording(75, seed)], 75, target=[70.0], draft=draft)
        pointers_N = np.asarray(out.pointers_BN[0])
        pointers_N = pointers_N[pointers_N != PAD]
        jumps = int((np.diff(pointers_N, prepend=-1) != 1).sum())
        assert int(out.passes) <= jumps + len(pointers_N) / draft


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_are_distributed_as_the_network_says(short_params, temperature):
    """All edits of two steps of two bars, enumerated, and how often each is drawn with drafts."""
    frames, draws, target = 6, 4096, 4.0
    drawing = biased(short_params, [1.0, 1.0, 0.0])
    keys = with_loops(encoded(drawing, [recording(frames)], 16, [target], settings=SHORT_BARS)[1], True)
    edits = [[first, second] for first in range(frames) for second in (*range(frames), STOP)]
    edits.append([STOP, PAD])

    def repeated(times):
        return jax.tree.map(lambda a: jnp.repeat(a, times, axis=0), keys)

    asked = jnp.full((len(edits),), target)
    ready = drawing, repeated(len(edits)), jnp.array(edits), asked, temperature
    log_p = teacher_forced_log_p(*ready, settings=SHORT_BARS)
    expected = np.exp(np.asarray(log_p.sum(1), np.float64))
    assert expected.sum() == pytest.approx(1.0, abs=1e-4)
    expected = expected / expected.sum() * draws
    ready = (
        SHORT_BARS,
        drawing,
        repeated(draws),
        jnp.full((draws,), target),
        2,
        temperature,
        jax.random.key(0),
    )
    drawn = np.asarray(decoding.decode(*ready, draft=1).pointers_BN)
    counts = [(drawn == np.array(edit)).all(1).sum() for edit in edits]
    rare = expected < 5
    assert sum(counts) == draws and rare.mean() < 0.5
    cells = np.where(rare, 0, np.arange(1, len(edits) + 1))  # the rare ones together
    found, wanted = (np.bincount(cells, weights=numbers) for numbers in (counts, expected))
    assert chisquare(found[wanted > 0], wanted[wanted > 0]).pvalue > 0.01


def test_a_pass_plays_nothing_again_of_what_it_has_drafted(params):
    jumping = biased(params, [3.0, 0.0, -9.0])
    keys = with_loops(encoded(jumping, [recording(75)], 75)[1], False)
    keys = jax.tree.map(lambda a: jnp.repeat(a, 64, axis=0), keys)
    for seed in range(40):
        ready = TINY, jumping, keys, jnp.zeros(64), 60, 1.0, jax.random.key(seed)
        for row_N in np.asarray(decoding.decode(*ready, draft=12).pointers_BN):
            played = row_N[row_N >= 0]
            assert len(played) == len(set(played))


def test_nothing_is_played_twice_but_what_is_looped(params):
    replayed = {}
    recordings = [recording(75, seed) for seed in range(4)]
    for looped, temperature in ((False, 0.0), (False, 1.0), (True, 1.0)):
        keys, out = decoded(params, recordings, 75, temperature=temperature, looped=looped)
        played = [pointers_N[pointers_N >= 0] for pointers_N in np.asarray(out.pointers_BN)]
        replayed[looped, temperature] = sum(len(pointers_N) - len(set(pointers_N)) for pointers_N in played)
        if (looped, temperature) == (False, 0.0):
            forced = teacher_forced_log_p(params, keys, out.pointers_BN, jnp.zeros(4))
            np.testing.assert_allclose(out.log_p_BN, forced, atol=2e-4)
    assert replayed[False, 0.0] == replayed[False, 1.0] == 0 < replayed[True, 1.0]


def test_only_the_looped_frames_are_played_again(params):
    keys = encoded(params, [recording(75)], 75)[1]
    some_BT = (jnp.arange(75) // 20 % 2 == 1)[None]
    keys = keys._replace(hints=keys.hints._replace(looped_BT=some_BT))
    replayed = set()
    for seed in range(30):
        ready = TINY, params, keys, jnp.zeros(1), 90, 1.0, jax.random.key(seed)
        row_N = np.asarray(decoding.decode(*ready, draft=5).pointers_BN[0])
        frames, counts = np.unique(row_N[row_N >= 0], return_counts=True)
        replayed |= set(frames[counts > 1])
    assert replayed and replayed <= set(np.flatnonzero(some_BT[0]))


@pytest.mark.parametrize(
    ("frame", "n_frames", "played"),
    [
        (28, 80, True),  # the stretch that began late in its bar, again
        (16, 80, False),  # that bar from its beginning
        (48, 80, False),  # half of a bar is not more than half
        (60, 80, False),  # its end, and the bar after it
        (60, 64, True),  # its end, and nothing after it
    ],
)
def test_what_was_played_counts_from_anywhere_in_a_bar(frame, n_frames, played):
    played_BJV = jnp.array([[[0.0, 0.25, 1.0, 0.5, 0.0]]])  # frames 28 to 55
    found = was_played(jnp.array([[frame]]), played_BJV, jnp.array([n_frames]), 16)
    assert bool(found[0, 0]) is played


def test_a_jump_forward_in_a_played_bar_is_taken(params):
    keys = with_loops(encoded(params, [recording(75)], 75)[1], False)
    mode = {"kernel": jnp.zeros((TINY.width, 3)), "bias": jnp.array([-50.0, 50.0, 0.0])}
    jumping = {**params, "decoder": {**params["decoder"], "mode": mode}}

    @jax.jit
    def chosen(h, before, share):
        played_BV = jnp.full((1, keys.bars_BVD.shape[1]), share)
        before_11, zero_11 = jnp.full((1, 1), before), jnp.zeros((1, 1), jnp.int32)
        step = Step(before_11, zero_11, zero_11, jnp.zeros(1), jnp.zeros((1, 1, 2)))
        fixed = decoding.Fixed(TINY, jumping, keys, jnp.zeros(1), 1, 0)
        turn = decoding.Turn(step, h[None, None], played_BV, jax.random.key(0)[None, None])
        mode_logits = fixed.ask("mode_logits", turn.h_B1D, before_11, keys)
        return decoding.choose(fixed, turn, mode_logits, lambda frame: jnp.zeros_like(frame, bool))[0][0]

    rng, kinds = np.random.default_rng(0), set()
    for before in range(75):
        h = jnp.asarray(rng.normal(size=TINY.width), jnp.float32)
        free, again = (int(chosen(h, before, share)) for share in (0.0, 0.6))
        onwards = free // 16 == before // 16 and free > before
        assert free >= 0 and again == (free if onwards else STOP)
        kinds.add(onwards)
    assert kinds == {True, False}


def test_next_step_probabilities_sum_to_one_over_every_raw_frame(params):
    frames = 37
    _, keys = encoded(params, [recording(frames)], 40)
    for before in (-1, 5, 15, 35, 36):
        following = [*range(frames), STOP]
        total = 0.0
        for choice in following:
            prefix = [] if before < 0 else [before]
            sequence = jnp.array([[*prefix, choice]])
            log_p = teacher_forced_log_p(params, keys, sequence, jnp.zeros(1))[0, len(prefix)]
            total += float(jnp.exp(log_p))
        assert total == pytest.approx(1.0, abs=1e-4), before


def test_padding_and_batch_composition_change_nothing(params):
    first, second = recording(75, 1), recording(50, 2)
    _, alone = decoded(params, [second], 50, target=[30.0])
    _, together = decoded(params, [first, second], 96, target=[40.0, 30.0])
    n = int(alone.steps_B[0])
    assert int(together.steps_B[1]) == n > 20
    np.testing.assert_array_equal(together.pointers_BN[1, :n], alone.pointers_BN[0, :n])
    np.testing.assert_allclose(together.log_p_BN[1, :n], alone.log_p_BN[0, :n], atol=2e-4)
    np.testing.assert_allclose(together.stop_p_BN[1, :n], alone.stop_p_BN[0, :n], atol=1e-4)


def test_nan_in_the_padding_does_not_reach_the_encoding(params):
    plain, _ = encoded(params, [recording(50)], 80)
    poisoned, _ = encoded(params, [recording(50)], 80, fill=np.nan)
    np.testing.assert_array_equal(poisoned.frames_BTD, plain.frames_BTD)
    np.testing.assert_array_equal(poisoned.bars_BVD, plain.bars_BVD)
    assert np.isfinite(np.asarray(poisoned.log_length_B)).all()


def test_encoding_in_chunks_equals_the_whole():
    settings = PointerSettings(
        n_mels=32, width=16, frame_width=8, landmark_layers=1, landmark_window=6, frame_window=5, matches=1
    )
    params = jax.jit(lambda: pointer.init(settings, jax.random.key(2)))()
    rng = np.random.default_rng(5)
    mel = rng.uniform(0.3, 0.7, (5100, 32)).astype(np.float32)
    phase = rng.uniform(size=(5100, 3)).astype(np.float32)
    total = 16 * ALIGN_FRAMES
    asked = Asked(np.zeros(1), np.ones((1, settings.style_width)))
    whole = jax.jit(encode, static_argnums=0)(
        settings,
        params["encoder"],
        padded([mel], total),
        np.array([5100]),
        padded([phase], total),
        asked,
    )
    parts = encode_in_chunks(
        settings, params["encoder"], mel, phase, asked, total, chunk_frames=4 * ALIGN_FRAMES
    )
    for name, one, other in zip(whole._fields, whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, err_msg=name)


def test_gain_of_20_db_changes_nothing(params):
    mel, phase = recording(200)
    mel = 0.45 + 0.2 * (mel - 0.5)
    step = 20.0 / (TINY.ceiling_db - TINY.floor_db)
    quiet, _ = encoded(params, [(mel - step, phase)], 200)
    loud, _ = encoded(params, [(mel + step, phase)], 200)
    np.testing.assert_allclose(quiet.frames_BTD, loud.frames_BTD, atol=2e-3)


def forced_targets(batch):
    return targets(batch.pointers_BN, batch.steps_B, batch.target_B, batch.mel_BTF.shape[1])


def test_loss_ignores_padding_steps(params):
    real = [3, 4, 5, 40, 41, STOP]
    short = loss_of(params, batch_of(real))
    long = loss_of(params, batch_of([*real, PAD, PAD, PAD]))
    np.testing.assert_allclose(short, long, rtol=1e-5)


def test_structure_at_a_boundary_counts_more():
    structure = np.array([[0] * 10 + [1] * 10 + [-1] * 5])
    logits = np.zeros((1, 25, 3), np.float32)
    gradient = jax.grad(structure_loss)(jnp.asarray(logits), structure)
    weight_T = np.abs(gradient[0]).sum(-1)
    assert (weight_T[7:13] == weight_T[8]).all() and (weight_T[:7] == weight_T[0]).all()
    assert weight_T[8] == pytest.approx(10 * weight_T[0]) and weight_T[13] == weight_T[19] == weight_T[0]
    assert not weight_T[20:].any()


def test_likelihood_counts_targets_at_jumps_only(params):
    batch = batch_of([3, 4, 5, 40, 41, 7, STOP])
    _, keys = encoded(params, [recording(60)], 64)
    t = forced_targets(batch)
    nll = jax.jit(lambda p, k, t, n: sequence_nll(TINY, p, k, t, n, 8))(params, keys, t, batch.steps_B)
    total = float((nll.mode_B + nll.bar_B + nll.beat_B + nll.frame_B)[0])
    forced = teacher_forced_log_p(params, keys, batch.pointers_BN, jnp.zeros(1))
    assert int(nll.jumps_B[0]) == 3
    assert total == pytest.approx(-float(forced.sum()), abs=1e-3)


def test_the_loss_is_the_weighted_sum_of_its_parts(params):
    pointers = [3, 4, 5, 40, 41, 7, STOP]
    batch = batch_of(pointers)._replace(target_B=jnp.array([5.0]))
    weights = LossSettings(structure=3.0, order=5.0, length=7.0, style=11.0, smoothness=1e4, free_nats=0.0)
    loss, parts = jax.jit(lambda p, b: pointer_loss(p, b, TINY, weights, jax.random.key(0)))(params, batch)
    names = ("sequence", "structure", "order", "length", "smoothness")
    assert {
        name for name in (*names, "style_nats") if float(parts[name]) * getattr(weights, name, 1.0) < 1e-3
    } == set()
    total = sum(getattr(weights, name) * float(parts[name]) for name in names)
    total += weights.style * float(parts["style_nats"]) / 4
    assert float(loss) == pytest.approx(total, rel=1e-5)
    drawn = infer_style(TINY, params, batch, forced_targets(batch), weights, jax.random.key(0)).style_BZ
    found, keys = encoded(params, [recording(60)], 64, [5.0], style_BZ=drawn)
    forced = teacher_forced_log_p(params, keys, batch.pointers_BN, batch.target_B)
    assert float(parts["sequence"]) * 4 == pytest.approx(-float(forced.sum()), rel=1e-4)  # 3 jumps, a stop
    log_p = np.asarray(jax.nn.log_softmax(found.structure_BTS[0, :60]))
    kept_T = np.asarray(batch.structure_BT)[0, :60]
    weight_T = np.ones(60)
    for change in np.flatnonzero(np.diff(kept_T)) + 1:
        weight_T[max(change - 3, 0) : change + 3] = 10.0
    nll = -np.average(log_p[np.arange(60), kept_T], weights=weight_T)
    assert float(parts["structure"]) == pytest.approx(nll, rel=1e-4)
    error = (float(found.log_length_B[0]) - np.log(len(pointers) - 1)) ** 2
    assert float(parts["length"]) == pytest.approx(error, rel=1e-3)
    joins = jump_p(params, keys, forced_targets(batch), batch.steps_B)[0].sum()
    assert float(parts["smoothness"]) * 4 == pytest.approx(float(joins), rel=1e-4)


@jax.jit
def jump_p(params, keys, t, steps_B):
    """The probability of every step to jump."""
    h = decoder_call(TINY, params, "states", keys, t.step, steps_B)
    return jax.nn.softmax(decoder_call(TINY, params, "mode_logits", h, t.step.pointer_BN, keys))[..., JUMP]


def test_expected_joins_are_those_of_the_counted_steps(params):
    """In value and gradient, p(1 − p) a step; what is not aligned, and padding, adds nothing to either."""
    batch = batch_of([3, 4, UNALIGNED, 5, 40, 7, STOP, PAD, PAD])
    counted_N = np.array([1, 1, 0, 1, 1, 1, 1, 0, 0], bool)
    t, keys = forced_targets(batch), encoded(params, [recording(60)], 64)[1]
    # The first channel of a state is its logit to jump.
    mode = {"kernel": jnp.zeros((TINY.width, 3)).at[0, JUMP].set(1.0), "bias": jnp.array([1.0, 0.5, -1.0])}
    reads = {**params, "decoder": {**params["decoder"], "mode": mode}}
    h_BND = jax.random.normal(jax.random.key(0), (1, len(counted_N), TINY.width))

    @jax.jit
    def joins(h_BND):
        return nll_of_states(TINY, reads, keys, t, h_BND, 8).joins_B[0]

    logits_N3 = decoder_call(TINY, reads, "mode_logits", h_BND, t.step.pointer_BN, keys)[0]
    p_N = softmax(np.asarray(logits_N3, np.float64), axis=-1)[:, JUMP]
    total, gradient = jax.value_and_grad(joins)(h_BND)
    assert float(total) == pytest.approx(p_N[counted_N].sum(), rel=1e-5)
    np.testing.assert_allclose(gradient[0, counted_N, 0], (p_N * (1 - p_N))[counted_N], rtol=1e-4)
    assert not gradient[0, ~counted_N].any() and not gradient[..., 1:].any()


def test_what_a_step_is_told_of_the_length_that_is_asked_for():
    at, never = (jnp.array([[5, 5]]), jnp.array([[2, 2]]), jnp.array([[10, 50]])), jnp.zeros((1, 2, 2))
    asked = pointer.step_features(Step(*at, jnp.array([40.0]), never))
    flag, share, log_left, passed = np.asarray(asked)[0, :, 3:].T
    np.testing.assert_allclose(flag, 1.0)
    np.testing.assert_allclose(share, [0.75, -0.25])
    np.testing.assert_allclose(log_left, np.array([np.log(31), -np.log(11)]) / 5, rtol=1e-5)
    np.testing.assert_allclose(passed, [0.0, 1.0])
    unasked = pointer.step_features(Step(*at, jnp.zeros(1), never))
    np.testing.assert_array_equal(unasked[..., 3:], 0.0)
    asked = target_features(jnp.array([50.0, 0.0]), jnp.array([100, 100]))
    np.testing.assert_allclose(asked, [[1.0, np.log(0.5), 0.5], [0.0, 0.0, 0.0]], rtol=1e-5)


def test_distances_have_a_sign_and_grow_coarser():
    away = jnp.array([-40, -9, -5, -3, 0, 3, 4, 5, 9, 40])
    buckets = np.asarray(pointer.distance_bucket(away)).tolist()
    assert len(set(buckets)) == 9 and buckets[6] == buckets[7]


def test_unaligned_frames_leave_the_loss():
    pointers = jnp.array([[3, 4, UNALIGNED, UNALIGNED, 5, 9, STOP]])
    t = targets(pointers, jnp.array([7]), jnp.zeros(1), 20)
    np.testing.assert_array_equal(t.counted_BN[0], [True, True, False, False, True, True, True])
    np.testing.assert_array_equal(t.step.pointer_BN[0], [-1, 3, 4, 4, 4, 5, 9])
    modes = np.asarray(t.mode_BN[0])[[0, 1, 4, 5, 6]]
    np.testing.assert_array_equal(modes, [1, 0, 0, 1, 2])


def test_a_step_knows_what_was_played_before():
    pointers = jnp.array([[3, 4, 5, 4, 5, 6, UNALIGNED, 3, STOP, PAD]])
    t = targets(pointers, jnp.array([9]), jnp.zeros(1), 7)
    np.testing.assert_array_equal(t.again_BN[0], [0, 0, 0, 1, 1, 0, 0, 1, 0, 0])
    was, follower = np.asarray(t.step.replay_BN2[0]).T
    np.testing.assert_array_equal(was[:9], [0, 0, 0, 0, 1, 1, 0, 0, 1])  # 6 goes on being the last played
    np.testing.assert_array_equal(follower[:9], [0, 0, 0, 0, 1, 0, 0, 0, 1])


@pytest.mark.slow
def test_a_few_steps_of_gradient_descent_learn_one_edit(params):
    batch = batch_of([*range(10, 25), *range(40, 50), STOP])
    fresh = fresh_params(1)

    @jax.jit
    def descend(p):
        loss, g = jax.value_and_grad(loss_of)(p, batch)
        norm = jnp.sqrt(sum(jnp.sum(a * a) for a in jax.tree.leaves(g)))
        return jax.tree.map(lambda a, b: a - 0.3 / jnp.maximum(norm, 1.0) * b, p, g), loss

    losses = []
    for _ in range(60):
        fresh, loss = descend(fresh)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("size", ["matches", "decoder_window", "heads", "landmark_frames"])
def test_settings_no_model_has_are_refused(size):
    with pytest.raises(ValueError, match=f"{size} 0: give at least 1"):
        PointerSettings(**{size: 0})
