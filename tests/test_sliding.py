"""What lies in windows that slide is combined."""

import jax.numpy as jnp
import numpy as np
import pytest

from editjax.sliding import over_window


@pytest.mark.parametrize("before, after", [(0, 0), (3, 0), (0, 6), (2, 2), (128, 128), (6, 7), (40, 3)])
def test_what_lies_in_a_window_is_combined(before, after):
    x_BTD = np.random.default_rng(0).normal(size=(2, 50, 3)).astype(np.float32)
    for combine, outside, of in ((jnp.add, 0.0, np.sum), (jnp.maximum, -jnp.inf, np.max)):
        padded = np.pad(x_BTD, ((0, 0), (before, after), (0, 0)), constant_values=outside)
        wanted = [of(padded[:, at : at + before + 1 + after], axis=1) for at in range(50)]
        found = over_window(combine, jnp.asarray(x_BTD), before, after, outside)
        np.testing.assert_allclose(found, np.stack(wanted, 1), atol=1e-5)
