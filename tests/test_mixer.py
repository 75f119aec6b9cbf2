"""Regressors of mixes: what they can say, what they hear, and what they learn from."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixer_cases import FRAMES, KINDS, KNOBS, PICTURE, batch, fill_in, fresh, predict, tiny

import editjax.mixer as ours
from editjax.bundle import flatten
from editjax.console.heard import FIGURES, SHOWN, PictureSettings
from editjax.console.knobs import IDENTIFIABLE, NAMES
from editjax.errors import DataError, UsageError
from editjax.mixer import Mixer, load_mixer, mixer_figures, scales_in
from editjax.mixer_loss import MixerLossSettings, _heard, mixer_loss
from editjax.models.mixer import GROUPS, MixerSettings, Transformer, _dropped, n_patches

LOSS = jax.jit(mixer_loss, static_argnums=(2, 3))
MASKED = MixerLossSettings(masked=0.5)
PLAIN = {"dropout": 0.0}


@pytest.mark.parametrize("kind", KINDS)
def test_knobs_lie_between_their_ends_whatever_is_heard(kind):
    settings = tiny(kind)
    rows, shape = batch(8), (FRAMES, PICTURE.n_mels, 2 * SHOWN)
    picture, figures = np.array(rows.picture_BTFC, np.float32), np.array(rows.figures_BK)
    picture[0], picture[1], picture[2] = 0.0, 2.0, 4.0  # silence, full scale, 100 dB above it
    picture[3], picture[4] = np.random.default_rng(1).normal(0.0, 30.0, (2, *shape))
    figures[5], figures[6] = 100.0, -100.0
    params = fresh(settings)
    knobs_BP = np.asarray(predict(settings, params, picture, figures).knobs_BP)
    assert knobs_BP.shape == (8, KNOBS)
    assert ((knobs_BP[[0, 1, 2, 7]] > 0) & (knobs_BP[[0, 1, 2, 7]] < 1)).all()
    assert ((knobs_BP >= 0) & (knobs_BP <= 1)).all()
    wild = jax.tree.map(lambda leaf: 30.0 * leaf, params)
    knobs_BP = np.asarray(predict(settings, wild, picture, figures).knobs_BP)
    assert ((knobs_BP >= 0) & (knobs_BP <= 1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    settings = tiny(kind, classes=2)
    found = partial(LOSS, settings=settings, weights=MixerLossSettings(), key=jax.random.key(0))
    gradient = jax.grad(lambda params: found(params, batch(labels=[0, 1, -1]))[0])(fresh(settings))
    dead = {name for name, leaf in flatten(gradient).items() if not leaf.any()}
    assert dead == ({"guess/bias", "guess/kernel", "hidden"} if kind == "ast" else set())


def test_filling_in_reaches_what_it_hears_with():
    """Not the heads of knobs and labels, nor the figures, of which nothing is told."""
    settings = tiny("ast", classes=2)
    of = partial(LOSS, settings=settings, weights=MASKED, key=jax.random.key(0))
    gradient = flatten(jax.grad(lambda params: of(params, batch())[0])(fresh(settings)))
    dead = {name for name, leaf in gradient.items() if not leaf.any()}
    heads = {f"{head}/{part}" for head in ("answer", "label") for part in ("bias", "kernel")}
    told = {name for name in gradient if name.startswith("told/")}  # figures would tell what is hidden
    assert dead == heads | told
    assert gradient["hidden"].any() and gradient["guess/kernel"].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_blind_do_not_hear_the_stem(kind):
    rows, other = batch(), batch(seed=1)
    picture = np.concatenate([other.picture_BTFC[..., :SHOWN], rows.picture_BTFC[..., SHOWN:]], -1)
    mix_BK = rows.figures_BK[:, FIGURES : 2 * FIGURES]
    figures = np.concatenate([other.figures_BK[:, :FIGURES], mix_BK, other.figures_BK[:, 2 * FIGURES :]], -1)
    for blind in (True, False):
        settings = tiny(kind, blind=blind)
        one = predict(settings, fresh(settings), rows.picture_BTFC, rows.figures_BK).knobs_BP
        two = predict(settings, fresh(settings), picture, figures).knobs_BP
        assert np.array_equal(one, two) is blind
    settings = tiny("ast", blind=True)
    hidden = np.arange(n_patches(settings, FRAMES))[None].repeat(3, 0) % 2 == 0
    both = [
        fill_in(settings, fresh(settings), x, y, hidden)
        for x, y in ((rows.picture_BTFC, rows.figures_BK), (picture, figures))
    ]
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize("kind", KINDS)
def test_chance_has_a_say_with_a_key_alone(kind):
    settings, rows = tiny(kind, dropout=0.3), batch()
    say = partial(predict, settings, fresh(settings), rows.picture_BTFC, rows.figures_BK)
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    same, again, other = (np.asarray(say(key).knobs_BP) for key in keys)
    np.testing.assert_array_equal(say().knobs_BP, say().knobs_BP)
    np.testing.assert_array_equal(same, again)
    assert np.abs(same - other).max() > 1e-6 < np.abs(same - np.asarray(say().knobs_BP)).max()
    sure = replace(settings, **PLAIN)
    with_key = predict(sure, fresh(settings), rows.picture_BTFC, rows.figures_BK, keys[0]).knobs_BP
    np.testing.assert_allclose(with_key, say().knobs_BP, atol=1e-6)


def test_what_dropout_leaves_is_larger_so_that_the_mean_stays():
    dropped = np.asarray(_dropped(jnp.ones(20_000), 0.3, jax.random.key(0)))
    assert set(np.round(dropped, 5)) == {0.0, np.float32(1.42857)}
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_sounds_of_other_lengths_are_heard(kind):
    settings = tiny(kind)
    for frames in (1, 25) if kind == "ast" else (1, 13, 90):
        rows = batch(2, frames)
        knobs_BP = np.asarray(predict(settings, fresh(settings), rows.picture_BTFC, rows.figures_BK).knobs_BP)
        assert knobs_BP.shape == (2, KNOBS) and ((knobs_BP > 0) & (knobs_BP < 1)).all()
        assert (knobs_BP[0] != knobs_BP[1]).all()


def test_places_of_other_lengths_lie_between_those_that_were_learned():
    settings = tiny("ast", patches_time=6)
    params, bands = fresh(settings), PICTURE.n_mels // 8
    rng = np.random.default_rng(0)
    params = {**params, "time": jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)}

    def places(times: int) -> np.ndarray:
        """What is added to a patch at every time and band."""
        nothing = jnp.zeros((1, times * bands, 4 * 8 * 3 * SHOWN))
        tokens = Transformer(settings).apply({"params": params}, nothing, method="tokens")
        return np.asarray(tokens[0] - params["embed"]["bias"][None]).reshape(times, bands, 8)

    time, band = np.asarray(params["time"]), np.asarray(params["band"])
    np.testing.assert_allclose(places(6), time[:, None] + band[None], atol=1e-6)
    for times in (7, 12, 41):
        at = (np.arange(times) + 0.5) * 6 / times - 0.5
        wanted = np.stack([np.interp(at, np.arange(6), time[:, k]) for k in range(8)], -1)
        np.testing.assert_allclose(places(times), wanted[:, None] + band[None], atol=1e-5)
    for times in (1, 3):  # several learned ones are averaged
        found = places(times) - band[None]
        assert (found <= time.max(0) + 1e-5).all() and (found >= time.min(0) - 1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_heard_where_they_are_wanted(kind):
    rows, other = batch(), batch(seed=1)
    for wanted in (True, False):
        settings = tiny(kind) if wanted else tiny(kind, figures=False)
        one, two = (
            predict(settings, fresh(settings), rows.picture_BTFC, figures).knobs_BP
            for figures in (rows.figures_BK, other.figures_BK)
        )
        assert np.array_equal(one, two) is not wanted


@pytest.mark.parametrize("kind", KINDS)
def test_labels_have_a_head_of_their_own(kind):
    rows = batch()
    for classes in (0, 2):
        settings = tiny(kind, classes=classes) if classes else tiny(kind)
        found = predict(settings, fresh(settings), rows.picture_BTFC, rows.figures_BK)
        assert found.class_BK.shape == (3, classes) and found.knobs_BP.shape == (3, KNOBS)
    assert np.std(found.class_BK, 0).min() > 0


def test_every_knob_has_one_head():
    assert sorted(sum(GROUPS.values(), ())) == sorted(NAMES)


def test_knobs_of_groups_are_in_the_order_of_all():
    """A head whose biases are large moves its own knobs, and no other."""
    settings, rows = tiny("enhanced"), batch()
    for group, names in GROUPS.items():
        params = {**fresh(settings)}
        params[f"{group}_out"] = {**params[f"{group}_out"], "bias": 20.0 + params[f"{group}_out"]["bias"]}
        knobs_BP = np.asarray(predict(settings, params, rows.picture_BTFC, rows.figures_BK).knobs_BP)
        assert {name for k, name in enumerate(NAMES) if (knobs_BP[:, k] > 0.99).all()} == set(names)


def test_patches_are_counted_and_none_is_lost():
    settings = tiny("ast")
    for frames in (1, 4, 5, FRAMES):
        rows = batch(1, frames)
        shown = jnp.asarray(rows.picture_BTFC, jnp.float32)
        module = Transformer(settings)
        patches_BNP = module.apply({"params": fresh(settings)}, shown, method="patches")
        assert patches_BNP.shape == (1, n_patches(settings, frames), 4 * 8 * 3 * SHOWN)
        times = -(-frames // 4)
        back = np.asarray(patches_BNP).reshape(times, 3, 4, 8, 9).swapaxes(1, 2).reshape(-1, 24, 9)
        np.testing.assert_allclose(back[:frames, :, :3], shown[0, ..., :3] - 1.0, atol=1e-6)
        np.testing.assert_array_equal(back[frames:], np.repeat(back[frames - 1 : frames], -frames % 4, 0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 6, "heads": 3}, "multiple of 4"),
        ({"width": 12, "heads": 5}, "its 5 heads"),
        ({"patch": (4, 7)}, "do not divide"),
        ({"patch": (1, 8)}, "16 to"),
        ({"patch": (1 << 12, 8)}, "to 16384 levels"),
        ({"dropout": 1.0}, "share"),
        ({"dropout": float("nan")}, "dropout nan"),
        ({"kind": "enhanced", "n_layers": 40}, "doubled 19 times"),
        ({"width": 1 << 14}, "no layer is wider"),
        ({"classes": -1}, "classes -1"),
        ({"dtype": "object"}, "dtype"),
    ],
)
def test_regressors_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        tiny(changes.pop("kind", "ast"), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"rate_hz": 0},
        {"rate_hz": 22_050},  # an octave of contrast would lie above half of it
        {"rate_hz": 10**9},
        {"n_fft": 0},
        {"n_fft": 2049},
        {"n_fft": 10**9},
        {"hop": 0},
        {"hop": -1},
        {"hop": 2049},
        {"hop": 8},
        {"n_mels": 0},
        {"n_mels": 10**30},
        {"n_mels": 19},
        {"low_hz": -1.0},
        {"low_hz": 20_000.0},
        {"low_hz": float("nan")},
        {"high_hz": float("nan")},
    ],
)
def test_pictures_that_show_nothing_are_refused(changes):
    with pytest.raises(UsageError, match="pictures"):
        replace(PICTURE, **changes)


# --- what they learn from ---------------------------------------------------------------------------------


def test_the_error_of_knobs_is_their_mean_distance():
    settings, rows = tiny("baseline", **PLAIN), batch()
    loss, metrics = LOSS(fresh(settings), rows, settings, MixerLossSettings(knobs=2.0), jax.random.key(0))
    knobs_BP = np.asarray(predict(settings, fresh(settings), rows.picture_BTFC, rows.figures_BK).knobs_BP)
    error_BP = np.abs(knobs_BP - rows.knobs_BP)
    assert float(loss) == pytest.approx(2 * error_BP.mean(), rel=1e-5)
    for k, name in enumerate(NAMES):
        assert float(metrics[f"error_{name}"]) == pytest.approx(error_BP[:, k].mean(), rel=1e-4)


def test_examples_without_a_label_do_not_count():
    settings, weights = tiny("baseline", classes=2, **PLAIN), MixerLossSettings(labels=1.0)
    key, rows = jax.random.key(0), batch(labels=[0, -1, 1])

    def nats(labels):
        given = rows._replace(label_B=np.array(labels, np.int32))
        return float(LOSS(fresh(settings), given, settings, weights, key)[1]["labels"])

    first, last = nats([0, -1, -1]), nats([-1, -1, 1])
    assert nats([0, -1, 1]) == pytest.approx((first + last) / 2, rel=1e-5)
    assert nats([-1, -1, -1]) == 0.0 < first
    gradient = jax.grad(lambda p: LOSS(p, batch(), settings, weights, key)[0])(fresh(settings))
    assert not gradient["label"]["kernel"].any() and gradient["shared"]["kernel"].any()


def hidden_in(settings, size: int = 3) -> np.ndarray:
    return np.random.default_rng(2).random((size, n_patches(settings, FRAMES))) < 0.5


def test_what_is_hidden_cannot_be_seen():
    """Other levels in hidden patches change nothing that is said; the same in one that is shown does."""
    settings, rows = tiny("ast"), batch()
    hidden_BN = hidden_in(settings)
    at_BTF = np.repeat(np.repeat(hidden_BN.reshape(3, FRAMES // 4, 3), 4, 1), 8, 2)[..., None]
    other = np.where(at_BTF, batch(seed=1).picture_BTFC, rows.picture_BTFC)
    say = partial(fill_in, settings, fresh(settings))
    one, true = say(rows.picture_BTFC, rows.figures_BK, hidden_BN)
    two, changed = say(other, batch(seed=1).figures_BK, hidden_BN)  # figures would tell
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal((np.asarray(true) != np.asarray(changed)).any(-1), hidden_BN)
    shown = hidden_BN.copy()
    shown[:, np.flatnonzero(hidden_BN[0])[0]] = False
    three, _ = say(rows.picture_BTFC, rows.figures_BK, shown)
    four, _ = say(other, rows.figures_BK, shown)
    assert np.abs(np.asarray(three) - np.asarray(four))[0].max() > 1e-5


def test_only_hidden_patches_count():
    settings, rows, key = tiny("ast"), batch(), jax.random.key(3)
    loss, metrics = LOSS(fresh(settings), rows, settings, MASKED, key)
    hidden_BN = np.asarray(jax.random.bernoulli(key, 0.5, (3, n_patches(settings, FRAMES))))
    assert 0.2 < hidden_BN.mean() < 0.8
    guess, true = (
        np.asarray(x)
        for x in fill_in(settings, fresh(settings), rows.picture_BTFC, rows.figures_BK, hidden_BN)
    )
    wanted = (true - true.mean(-1, keepdims=True)) / (true.std(-1, keepdims=True) + 0.01)
    square_BN = ((guess - wanted) ** 2).mean(-1)
    assert float(loss) == float(metrics["filled_in"]) == pytest.approx(square_BN[hidden_BN].mean(), rel=1e-4)
    silent = rows._replace(picture_BTFC=np.zeros_like(rows.picture_BTFC))  # patches without any spread
    found = jax.value_and_grad(lambda p: LOSS(p, silent, settings, MASKED, key)[0])(fresh(settings))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@lru_cache
def noise_2S(seed: int = 0, level: float = 0.2) -> np.ndarray:
    """Half a second of two noises that are a little alike, with beats in them."""
    rng = np.random.default_rng(seed)
    x_2S = rng.standard_normal((2, PICTURE.rate_hz // 2)) + rng.standard_normal((1, PICTURE.rate_hz // 2))
    beats_S = 0.2 + (np.arange(x_2S.shape[1]) % 5000 < 500)
    return (level * x_2S * beats_S[None]).clip(-1.0, 1.0).astype(np.float32)


def heard(knobs_BP, sound_BCS, true_BP):
    rows = batch(len(true_BP))._replace(sound_BCS=sound_BCS.astype(np.float16), knobs_BP=true_BP)
    return _heard(rows, knobs_BP, tiny("ast"), MixerLossSettings(spectral=1.0, loudness=1.0, heard=1))


HEARD = jax.jit(heard)


@partial(jax.jit)
def slopes(knobs_BP, sound_BCS, true_BP):
    return jax.jacrev(heard)(knobs_BP, sound_BCS, true_BP)


def test_true_knobs_sound_as_the_mix_and_others_do_not():
    rng = np.random.default_rng(0)
    true_BP, other_BP = rng.random((2, 2, KNOBS)).astype(np.float32)
    sound_BCS = np.stack([noise_2S(), noise_2S(1)])
    same = HEARD(true_BP, sound_BCS, true_BP)
    assert abs(float(same["spectral"])) < 1e-5 and float(same["loudness"]) == 0.0
    apart = HEARD(other_BP, sound_BCS, true_BP)
    assert float(apart["spectral"]) > 0.1 and float(apart["loudness"]) > 0.01
    second = np.array([true_BP[0], other_BP[1]])  # `heard` is 1: the second example is not
    assert HEARD(second, sound_BCS, true_BP) == same
    louder_BP = true_BP.copy()
    louder_BP[0, 0] = true_BP[0, 0] + 0.1  # 2.4 dB
    assert 10 * float(HEARD(louder_BP, sound_BCS, true_BP)["loudness"]) == pytest.approx(2.4, abs=0.7)
    gradient = slopes(other_BP, sound_BCS, true_BP)
    assert np.isfinite(jax.tree.leaves(gradient)).all()
    assert (np.abs(gradient["spectral"][0]) > 1e-4).all() and not gradient["spectral"][1].any()
    assert (gradient["loudness"][0] != 0).sum() > KNOBS - 3
    silent = slopes(other_BP, np.zeros_like(sound_BCS), true_BP)
    assert np.isfinite(jax.tree.leaves(silent)).all()


def test_the_sound_that_is_not_there_is_asked_for():
    settings = tiny("baseline")
    for weights in (MixerLossSettings(spectral=1.0), MixerLossSettings(loudness=1.0)):
        with pytest.raises(ValueError, match="hold no sound"):
            jax.eval_shape(
                partial(mixer_loss, settings=settings, weights=weights, key=None), fresh(settings), batch()
            )


@pytest.mark.parametrize(
    "bad", [{"masked": 1.0}, {"masked": -0.1}, {"heard": 0}, {"knobs": -1.0}, {"spectral": float("nan")}]
)
def test_losses_that_cannot_be_are_refused(bad):
    with pytest.raises(UsageError, match="give"):
        MixerLossSettings(**bad)


# --- regressors to call -----------------------------------------------------------------------------------


def test_figures_are_mean_errors_beside_who_always_says_the_middle():
    true_NP = np.array([[0.0] * KNOBS, [0.5] * KNOBS])
    found = mixer_figures(true_NP + np.linspace(0.0, 0.2, KNOBS)[None] * [[1], [-1]], true_NP)
    assert found["constant"] == 0.25 and found["error"] == pytest.approx(0.1)
    known = [k for k, name in enumerate(NAMES) if name in IDENTIFIABLE]
    assert found["identifiable"] == pytest.approx(np.linspace(0.0, 0.2, KNOBS)[known].mean())
    assert [found[f"error_{name}"] for name in NAMES] == pytest.approx(np.linspace(0.0, 0.2, KNOBS))


def test_scales_are_those_shorter_than_a_sound_and_its_own():
    hz = 100
    wanted = {0.5: [0.5], 4: [4], 5: [4, 5], 15: [4, 15], 60: [4, 15, 60], 61: [4, 15, 60], 300: [4, 15, 60]}
    for seconds, scales in wanted.items():
        assert scales_in(round(seconds * hz), hz) == [round(s * hz) for s in scales]


def test_what_members_say_of_excerpts_is_averaged(monkeypatch):
    calls = []

    def say(settings, params, stem_2S, mix_2S):
        calls.append((params, int(mix_2S[0, 0]), mix_2S.shape[1]))
        np.testing.assert_array_equal(stem_2S, -mix_2S)
        return np.full(KNOBS, params * mix_2S[0, 0], np.float32)

    monkeypatch.setattr(ours, "_knobs", say)
    hz = 25_600
    settings = tiny("ast", picture=replace(PICTURE, rate_hz=hz))
    mix_2S = np.tile(np.arange(9 * hz) // hz, (2, 1))  # the second that it is
    found = Mixer([(settings, 1.0), (settings, 3.0)]).knobs(-mix_2S, mix_2S)
    heard = [(0, 4 * hz), (4, 4 * hz), (0, 9 * hz)]
    assert calls == [(weight, *one) for weight in (1.0, 3.0) for one in heard]
    np.testing.assert_allclose(found, (0 + 4 + 0) / 3 * 2.0)


def test_sounds_are_heard_however_short_or_silent():
    settings = tiny("ast"), tiny("baseline", blind=True)
    rate_hz, stem_2S = PICTURE.rate_hz, noise_2S()
    both, blind = Mixer([(s, fresh(s)) for s in settings]), Mixer([(settings[1], fresh(settings[1]))])
    for x_2S in (stem_2S, stem_2S[:, :10], stem_2S[:, :0], np.zeros((2, rate_hz), np.float32)):
        knobs_P = both.knobs(x_2S, 0.5 * x_2S)
        assert knobs_P.shape == (KNOBS,) and ((knobs_P > 0) & (knobs_P < 1)).all()
    np.testing.assert_array_equal(blind.knobs(stem_2S, stem_2S), blind.knobs(stem_2S[::-1], stem_2S))
    assert np.abs(both.knobs(stem_2S, stem_2S) - both.knobs(2 * stem_2S, stem_2S)).max() > 1e-5


def test_only_regressors_of_one_rate_make_an_ensemble(tmp_path):
    from test_remix import write_model

    from editjax.models import mixer

    settings = tiny("baseline")
    write_model(tmp_path / "mixer", mixer, settings)
    (tmp_path / "mixer").rename(tmp_path / "one")
    write_model(tmp_path / "mixer", mixer, replace(settings, picture=replace(PICTURE, rate_hz=48_000)))
    both = load_mixer(tmp_path / "one", tmp_path / "one")
    assert both.rate_hz == PICTURE.rate_hz and [member[0] for member in both.members] == [settings] * 2
    with pytest.raises(DataError, match="different sample rates"):
        load_mixer(tmp_path / "one", tmp_path / "mixer")
    with pytest.raises(DataError, match="'scorer', not a regressor"):
        load_mixer("scorer")
    with pytest.raises(UsageError, match="name a model"):
        load_mixer()


def test_the_config_that_ships_fits_its_pictures():
    from editjax.config import from_json, load_config, to_json

    config = load_config("configs/mixer_ast.py")
    assert config.model.picture == PictureSettings()
    assert from_json(MixerSettings, to_json(config.model)) == config.model
