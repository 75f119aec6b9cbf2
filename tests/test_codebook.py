"""The codebook finds planted clusters, revives dead codes and counts no padding."""

import jax
import jax.numpy as jnp
import numpy as np

from editjax.models.codebook import Codebook, init_codebook, learned, quantise, straight_through, usage


def planted(count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around four centres."""
    rng = np.random.default_rng(0)
    centres = np.array([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0], [0.0, -4.0]])
    return (centres[rng.integers(4, size=count)] + 0.1 * rng.standard_normal((count, 2))), centres


def trained(vectors: np.ndarray, steps: int = 600, codes: int = 4) -> Codebook:
    z_NZ, every = jnp.asarray(vectors, jnp.float32), jnp.ones(len(vectors), bool)

    def step(book, key):
        return learned(book, z_NZ, quantise(book, z_NZ).chosen_N, every, key), None

    book = Codebook(**init_codebook(codes, 2, jax.random.key(1)))
    return jax.jit(lambda: jax.lax.scan(step, book, jax.random.split(jax.random.key(2), steps))[0])()


def test_codes_move_to_planted_centres():
    vectors, centres = planted()
    found = np.asarray(trained(vectors).code_KZ)
    away = np.linalg.norm(centres[:, None] - found[None], axis=-1)
    assert away.min(1).max() < 0.05 and sorted(away.argmin(1)) == [0, 1, 2, 3]


def test_nearest_is_nearest():
    rng = np.random.default_rng(3)
    z_NZ, code_KZ = rng.standard_normal((50, 5)), rng.standard_normal((7, 5))
    book = Codebook(jnp.asarray(code_KZ, jnp.float32), jnp.ones(7), jnp.asarray(code_KZ, jnp.float32))
    found = quantise(book, jnp.asarray(z_NZ, jnp.float32))
    square = ((z_NZ[:, None] - code_KZ[None]) ** 2).mean(-1)
    np.testing.assert_array_equal(found.chosen_N, square.argmin(1))
    np.testing.assert_array_equal(found.code_NZ, book.code_KZ[square.argmin(1)])


def test_dead_codes_begin_again_at_what_is_there():
    vectors, _ = planted()
    far = Codebook(**init_codebook(4, 2, jax.random.key(1)))._replace(code_KZ=jnp.full((4, 2), 100.0))
    z_NZ, every = jnp.asarray(vectors, jnp.float32), jnp.ones(len(vectors), bool)
    book = far
    for step in range(400):  # all vectors choose one code, until the others have starved
        book = learned(book, z_NZ, quantise(book, z_NZ).chosen_N, every, jax.random.key(step))
    alive, perplexity = usage(book.count_K)
    assert float(alive) == 1.0 and float(perplexity) > 3.0
    assert np.abs(np.asarray(book.code_KZ)).max() < 6.0


def test_padding_is_not_counted_and_nothing_changes_nothing():
    vectors, _ = planted(40)
    book = Codebook(**init_codebook(4, 2, jax.random.key(1)))
    padded = jnp.concatenate([jnp.asarray(vectors, jnp.float32), jnp.full((5, 2), 1e3)])
    counted = jnp.arange(45) < 40
    alone = learned(book, padded[:40], quantise(book, padded[:40]).chosen_N, counted[:40], jax.random.key(0))
    beside = learned(book, padded, quantise(book, padded).chosen_N, counted, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), alone, beside)
    nothing = learned(book, padded, quantise(book, padded).chosen_N, counted & False, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, nothing, book)


def test_the_gradient_passes_straight_through():
    code = jnp.array([1.0, 2.0])
    value, gradient = jax.value_and_grad(lambda z: (straight_through(z, code) * code).sum())(jnp.zeros(2))
    assert float(value) == 5.0
    np.testing.assert_array_equal(gradient, code)


def test_perplexity_counts_codes_in_use():
    assert float(usage(jnp.array([1.0, 1.0, 1.0, 1.0]))[1]) == np.float32(4.0)
    alive, perplexity = usage(jnp.array([1.0, 0.0, 0.0, 0.0]))
    assert float(alive) == 0.25 and abs(float(perplexity) - 1.0) < 1e-6
