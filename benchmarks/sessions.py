"""Long recordings to measure on: simulated sessions one after another."""

from collections.abc import Iterator

import numpy as np

from editjax.session import SimulateSettings
from editjax.simulate import simulate_session


def sessions(seconds: int, rate_hz: int) -> Iterator[np.ndarray]:
    """Samples (S,) of one session after another, so many seconds in all; the same every time."""
    settings = SimulateSettings(sample_rate_hz=rate_hz, min_length_s=60.0, max_length_s=120.0)
    left, session = seconds * rate_hz, 0
    while left:
        samples_S = simulate_session((0, session), settings).raw_S[:left]
        yield samples_S
        left, session = left - len(samples_S), session + 1
