"""Editing styles: a space in which names, examples and draws are points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editjax.data import Batch
from editjax.edits import PAD, STOP, UNALIGNED
from editjax.errors import UsageError
from editjax.events import UNKNOWN
from editjax.losses import LossSettings, infer_style, pointer_loss, targets
from editjax.models import pointer, style
from editjax.models.encoder import encode
from editjax.models.match import refine
from editjax.models.pointer import JUMP, PointerSettings
from editjax.network import PointerNetwork, _joins
from editjax.styles import STYLES

SMALL = PointerSettings(
    n_mels=32, width=16, frame_width=8, landmark_layers=1, landmark_window=6, frame_window=5, style_width=8
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: pointer.init(SMALL, jax.random.key(3)))()


@pytest.fixture(scope="module")
def network(params):
    return PointerNetwork(SMALL, params, styles=("final", "tight"))


def mel_of(frames, seed=0):
    return np.random.default_rng(seed).uniform(0.3, 0.7, (frames, SMALL.n_mels)).astype(np.float32)


def gaussian(seed):
    mean, log_std = np.random.default_rng(seed).normal(size=(2, 1, 3)).astype(np.float32)
    return style.Gaussian(jnp.asarray(mean), jnp.asarray(0.5 * log_std))


def test_the_divergence_is_the_mean_of_the_log_ratio():
    """Against the definition, by integration over a fine grid."""
    q, p = gaussian(0), gaussian(1)
    x = np.linspace(-30, 30, 200_001)[:, None]

    def log_density(g):
        std = np.exp(np.asarray(g.log_std_BZ, np.float64))
        return -0.5 * ((x - np.asarray(g.mean_BZ)) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))

    expected = (np.exp(log_density(q)) * (log_density(q) - log_density(p))).sum(0) * (x[1, 0] - x[0, 0])
    np.testing.assert_allclose(style.divergence(q, p)[0], expected, rtol=1e-4)
    np.testing.assert_allclose(style.divergence(q, q), 0.0, atol=1e-6)


def test_draws_have_the_mean_and_the_spread_they_should():
    g = gaussian(2)
    drawn = jax.vmap(g.draw)(jax.random.split(jax.random.key(0), 20_000))[:, 0]
    np.testing.assert_allclose(drawn.mean(0), g.mean_BZ[0], atol=0.03)
    np.testing.assert_allclose(drawn.std(0), jnp.exp(g.log_std_BZ[0]), rtol=0.03)


def example(frames, length, fill, seed=0):
    mel = np.full((1, length, SMALL.n_mels), fill, np.float32)
    mel[0, :frames] = mel_of(frames, seed)
    joins = np.full((1, length, 2), fill, np.float32)
    joins[0, :frames] = np.arange(frames)[:, None] % 50 == 7
    return style.Example(mel, jnp.array([frames]), jnp.asarray(joins), jnp.array([400]))


def test_padding_says_nothing_of_the_style(params):
    infer = jax.jit(lambda e: style.posterior(SMALL, params, e))
    plain, poisoned = infer(example(150, 150, 0.0)), infer(example(150, 200, np.nan))
    for one, other in zip(plain, poisoned, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    another = infer(example(150, 150, 0.0, seed=1))
    assert np.abs(np.asarray(plain.mean_BZ - another.mean_BZ)).max() > 1e-3


def batch_of(rows, frames=200):
    n_steps = max(map(len, rows))
    pointers = np.array([row + [PAD] * (n_steps - len(row)) for row in rows])
    structure = np.stack([np.isin(np.arange(frames), row) for row in pointers]).astype(np.int32)
    count = len(rows)
    return Batch(
        np.stack([mel_of(frames, k) for k in range(count)]), np.full(count, frames),
        np.zeros((count, frames, 3), np.float32), pointers, (pointers != PAD).sum(1), structure,
        np.full_like(structure, UNKNOWN), np.zeros(count, np.float32), np.arange(count) % len(STYLES),
        np.arange(count), np.zeros((count, 0, 25, 128), np.float32), np.zeros((count, 0), bool),
        np.zeros((count, 0, 128), np.float32), *(np.zeros((count, 0), np.int32) for _ in range(2)),
    )  # fmt: skip


ROWS = [[*range(10 * k, 10 * k + 20), *range(150, 170), STOP] for k in range(6)]


def inferred(params, **changes):
    batch = batch_of(ROWS)
    t = targets(batch.pointers_BN, batch.steps_B, batch.target_B, 200)
    infer = jax.jit(lambda p, k: infer_style(SMALL, p, batch, t, LossSettings(**changes), k))
    return infer(params, jax.random.key(0))


def test_a_named_style_is_drawn_from_its_prior_and_an_inferred_one_is_not(params):
    """Names lie so far apart that a draw tells its name; an untrained posterior knows none."""
    names = np.arange(len(ROWS))
    named = np.asarray(inferred(params, named_style=1.0).style_BZ)
    np.testing.assert_array_equal(named.argmax(1), names)
    np.testing.assert_allclose(named, style.prior(SMALL, names).mean_BZ, atol=4.0)
    assert named.std() > 1.0
    from_edits = np.asarray(inferred(params, named_style=0.0).style_BZ)
    assert (from_edits.argmax(1) != names).any()


@pytest.fixture
def infer_planted(monkeypatch):
    """The styles of edits whose posterior, by how far it is from their names', is given."""
    batch = batch_of(ROWS)
    t = targets(batch.pointers_BN, batch.steps_B, batch.target_B, 200)

    def infer(away: style.Gaussian, **changes):
        known = style.prior(SMALL, batch.style_B)
        found = style.Gaussian(known.mean_BZ + away.mean_BZ, known.log_std_BZ + away.log_std_BZ)
        monkeypatch.setattr(style, "posterior", lambda *_: found)
        return infer_style(SMALL, {}, batch, t, LossSettings(**changes), jax.random.key(0))

    return infer


def test_free_bits_cost_nothing_more(infer_planted):
    """A dimension below the free nats costs these and is not moved, one above costs what it is."""
    rng, size = np.random.default_rng(0), (len(ROWS), SMALL.style_width)
    mean_BZ, log_std_BZ = (jnp.asarray(rng.normal(0.0, 0.3, size), jnp.float32) for _ in range(2))
    nats_Z = 0.5 * (np.exp(2.0 * log_std_BZ) + mean_BZ**2 - 1.0).mean(0) - log_std_BZ.mean(0)
    free = float(np.median(nats_Z))
    below_Z = np.asarray(nats_Z) < free
    assert below_Z.sum() == SMALL.style_width / 2

    @jax.jit
    def cost(away):
        found = infer_planted(away, free_nats=free)
        return found.cost, found.nats

    (total, nats), gradient = jax.value_and_grad(cost, has_aux=True)(style.Gaussian(mean_BZ, log_std_BZ))
    assert float(nats) == pytest.approx(float(nats_Z.sum()), rel=1e-5)
    assert float(total) == pytest.approx(float(np.maximum(nats_Z, free).sum()), rel=1e-5)
    for part_BZ in gradient:
        assert not part_BZ[:, below_Z].any() and part_BZ[:, ~below_Z].all()


def test_dimensions_in_which_edits_differ_beyond_their_names_are_active(infer_planted):
    away_BZ = np.zeros((len(ROWS), SMALL.style_width), np.float32)
    away_BZ[:, 1] = 5.0  # from all names alike
    away_BZ[:, 2] = [0.3, -0.3] * 3
    away_BZ[:, 5] = [0.15, -0.15] * 3
    away_BZ[:, 6] = [0.05, -0.05] * 3
    away = style.Gaussian(jnp.asarray(away_BZ), jnp.zeros(away_BZ.shape))
    assert int(infer_planted(away).active) == 2


@pytest.mark.slow
def test_the_posterior_learns_from_the_edit(params):
    batch = batch_of(ROWS)

    def loss(p):
        return pointer_loss(p, batch, SMALL, LossSettings(style=0.0), jax.random.key(1))[0]

    gradient = jax.jit(jax.grad(loss))(params)["style"]["posterior"]
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) > 1e-6


def test_every_style_needs_a_direction_of_its_own():
    with pytest.raises(ValueError, match="style_width must be 0 or at least 6, the number"):
        PointerSettings(style_width=4)


def test_a_model_without_styles_trains_and_edits():
    plain = PointerSettings(**{**SMALL.__dict__, "style_width": 0})
    params = jax.jit(lambda: pointer.init(plain, jax.random.key(3)))()
    assert params["style"] == {}
    batch = batch_of(ROWS)
    loss, parts = jax.jit(lambda p: pointer_loss(p, batch, plain, LossSettings(), jax.random.key(1)))(params)
    assert np.isfinite(loss) and float(parts["style_nats"]) == 0.0
    network = PointerNetwork(plain, params)
    assert network.point_of("final").shape == (0,)
    with pytest.raises(UsageError, match="'tight' is unknown to this model"):
        network.point_of("tight")
    with pytest.raises(UsageError, match="style_width"):
        network.style_of(mel_of(50))


def test_a_style_changes_what_the_structure_head_hears(network):
    mel = mel_of(300)
    keeps = [network.edit_pointers(mel, style=name).keep_T for name in ("final", "tight")]
    again = network.edit_pointers(mel, style=network.point_of("tight")).keep_T
    assert np.abs(keeps[0] - keeps[1]).max() > 1e-4
    np.testing.assert_array_equal(keeps[1], again)


def test_what_is_asked_modulates_every_layer(params):
    """Feature-wise: with nothing but one layer's modulation learned, the style reaches what it should."""
    mel, rng = mel_of(300)[None], np.random.default_rng(4)
    recording = jnp.asarray(mel), jnp.array([300]), jnp.zeros((1, 300, 3))
    entry = params["encoder"]["entry"]
    frozen = {**entry, "asked": jax.tree.map(jnp.zeros_like, entry["asked"])}
    hear = jax.jit(lambda p, z: encode(SMALL, p, *recording, style.Asked(jnp.zeros(1), z)))
    one, other = (style.prior(SMALL, np.array([k])).mean_BZ for k in (0, 1))
    for stack, reached in (("landmark_layers", "landmarks_BLD"), ("frame_layers", "structure_BTS")):
        encoder = {**params["encoder"], "entry": frozen}
        np.testing.assert_array_equal(*(getattr(hear(encoder, z), reached) for z in (one, other)))
        layers = jax.tree.map(lambda a: a, encoder[stack])
        kernel = layers["mlp"]["asked"]["kernel"]
        layers["mlp"]["asked"]["kernel"] = jnp.asarray(0.1 * rng.normal(size=kernel.shape), kernel.dtype)
        heard = (getattr(hear({**encoder, stack: layers}, z), reached) for z in (one, other))
        assert float(jnp.abs(jnp.subtract(*heard)).max()) > 1e-3


def test_an_unknown_style_is_refused_with_the_known_ones(network):
    with pytest.raises(UsageError, match=r"'radio' is unknown.*final, tight"):
        network.edit_pointers(mel_of(100), style="radio")


def test_some_style_is_the_seed_s(network):
    one, same, other = (network.some_style("final", seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01


def test_any_style_is_one_of_those_it_knows(network):
    """Names lie so far apart that a draw tells its name."""
    drawn = [network.some_style("any", seed) for seed in range(12)]
    assert {STYLES[point.argmax()] for point in drawn} == {"final", "tight"}


def test_an_example_s_style_is_heard_with_and_without_its_recording(network):
    raw = mel_of(300)
    pointers = np.array([*range(10, 90), *range(40, 90), *range(200, 260)])
    pair = network.style_of(raw[pointers], pointers, len(raw))
    alone = network.style_of(raw[pointers])
    assert pair.shape == alone.shape == (8,) and np.abs(pair - alone).max() > 1e-4
    forwards = network.style_of(raw[pointers], np.arange(len(pointers)), len(raw))
    assert np.abs(pair - forwards).max() > 1e-4, "joins and replays are not heard"


def test_joins_of_an_example_are_those_of_training(network):
    """Through frames of unknown origin, too."""
    pointers = np.array([0, 1, UNALIGNED, UNALIGNED, 2, 3, 1, 2, UNALIGNED, 9])
    t = targets(np.append(pointers, STOP)[None], np.array([11]), np.zeros(1, np.float32), 20)
    wanted = np.stack([t.mode_BN[0] == JUMP, t.again_BN[0]], -1)[:-1]
    np.testing.assert_array_equal(_joins(pointers), wanted)


def test_a_point_of_another_space_is_refused(network):
    with pytest.raises(ValueError, match=r"\(5,\), wanted \(8,\)"):
        network.point_of(np.zeros(5))


def test_a_model_asks_for_the_first_style_it_knows(params):
    network = PointerNetwork(SMALL, params, styles=("tight", "loose"))
    np.testing.assert_array_equal(network.point_of(None), network.point_of("tight"))
    assert network.generate(mel_of(60)).shape[0] == 1


def test_a_match_is_settled_to_the_landmark_and_says_what_is_louder():
    rng = np.random.default_rng(0)
    shape = rng.normal(size=(1, 60, 32)).astype(np.float32)
    away, off = 30, 2
    shape[0, 10 : 60 - away] = shape[0, 10 + away : 60]
    shape[0, 15, 4:8] += 3.0  # a foreign note, in the second of eight bands
    place = jnp.asarray(np.clip(np.arange(60) + away + off, 0, 59))[None, :, None]
    valid = jnp.asarray((np.arange(60) >= 10) & (np.arange(60) < 25))[None, :, None]
    settled, details = refine(jnp.asarray(shape), jnp.array([60]), jnp.where(valid, place, 0), valid, 3)
    np.testing.assert_array_equal(settled[0, 10:25, 0], np.arange(10, 25) + away)
    alike, way, louder = details[0, 10:25, 0, 0], details[0, 10:25, 0, 1], details[0, 10:25, 0, 2:]
    np.testing.assert_allclose(way, -off / 3, rtol=1e-6)
    expected = np.zeros((15, 8))
    expected[5, 1] = 3.0
    np.testing.assert_allclose(louder, expected, atol=1e-6)
    assert alike[5] < 0.9 < float(jnp.delete(alike, 5).min())
    np.testing.assert_array_equal(np.asarray(details)[0, :10], 0.0)
