"""Drafts of every length, on hundreds of recordings and with decoders that refuse nearly all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pointer_cases import decoded, fresh_params, recording

from editjax.edits import PAD

DRAFTS = (1, 3, 64, 200)  # shorter and longer than the cache and the recordings
BATCH = 64


@pytest.fixture(scope="module")
def erratic():
    """Parameters by seed: the modes say something else at every step, so that drafts are mostly wrong."""
    fresh = fresh_params(0)

    def of_seed(seed):
        kernel = 6.0 * jax.random.normal(jax.random.key(seed), fresh["decoder"]["mode"]["kernel"].shape)
        mode = {"kernel": kernel, "bias": jnp.array([float(seed // 2), 0.0, -12.0])}
        return {**fresh, "decoder": {**fresh["decoder"], "mode": mode}}

    return of_seed


@pytest.mark.parametrize("seed", range(8))
def test_wrong_drafts_of_any_length_change_nothing(erratic, seed):
    """512 recordings in all, each of them greedy and sampled; every draft with and without loops."""
    rng, draft = np.random.default_rng(seed), DRAFTS[seed % len(DRAFTS)]
    recordings = [recording(int(rng.integers(20, 76)), int(rng.integers(1 << 30))) for _ in range(BATCH)]
    for temperature in (0.0, 1.0):
        options = {"temperature": temperature, "looped": seed < len(DRAFTS), "seed": seed, "steps": 40}
        _, plain = decoded(erratic(seed), recordings, 75, draft=0, **options)
        _, out = decoded(erratic(seed), recordings, 75, draft=draft, **options)
        np.testing.assert_array_equal(out.pointers_BN, plain.pointers_BN)
        np.testing.assert_allclose(out.log_p_BN, plain.log_p_BN, rtol=1e-4, atol=1e-4)
        pointers_BN = np.asarray(plain.pointers_BN)
        taken = (np.diff(pointers_BN, axis=1, prepend=-1) == 1)[pointers_BN != PAD]
        assert taken.mean() < 0.7, "hardly a draft was wrong"
        assert int(out.passes) <= int(plain.passes) == int((pointers_BN != PAD).sum(1).max())
