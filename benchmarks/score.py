"""Hours of audio scored a minute: our plain scorer against the same in PyTorch, and the one that ships.

Both score what was heard of whole recordings (level-normalised mel and context); ours also from the mel, with
the search for other takes, which PyTorch's has not. The one that ships has two decoders, a discriminator and
a classifier besides. CPU seconds of one core are the least of the rounds, the
cases taking turns.
"""

from functools import partial

from report import (
    clock,
    fastest_seconds,
    finish,
    growth_exponent,
    installed,
    options,
    require_agreement,
    use_one_core,
)

use_one_core()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from editjax.models.anomaly import score_heard, score_recordings  # noqa: E402
from editjax.models.autoencoder import ScorerSettings, init  # noqa: E402
from editjax.models.relations import heard  # noqa: E402

SETTINGS, SHIPPED = ScorerSettings(), ScorerSettings(dual=True, classifier=True)
FRAMES_A_MINUTE = 60 * 22050 / 512
TOLERANCE = 2e-4


def main() -> None:
    chosen = options(__doc__)
    minutes = (1, 2) if chosen.quick else (1, 10, 60)
    rounds = 2 if chosen.quick else 5
    params, shipped = (jax.jit(init, static_argnums=0)(s, jax.random.key(0)) for s in (SETTINGS, SHIPPED))
    rows, seconds = [], {}
    for length in minutes:
        seconds[length] = fastest_seconds(cases(params, shipped, length), rounds, clock())
        rows += [
            {"audio_min": length, "case": name, "cpu_s": taken, "hours_a_minute": length / taken}
            for name, taken in seconds[length].items()
        ]
    longest = seconds[minutes[-1]]
    ratios = {"growth exponent, ours": growth_exponent(minutes, [seconds[m]["ours"] for m in minutes])}
    if "torch" in longest:
        ratios["torch / ours"] = longest["torch"] / longest["ours"]
    packages = ["jax", "numpy", *(["torch"] if "torch" in longest else [])]
    finish("score", rows, ratios, packages, chosen.out)


def cases(params, shipped, minutes: int) -> dict:
    """What is timed, by name, on noise of so many minutes; agreement is proved first."""
    span = max(SETTINGS.scales) * SETTINGS.reduction
    n_frames = int(minutes * FRAMES_A_MINUTE) // span * span
    mel_BTF = np.random.default_rng(0).uniform(0.2, 0.8, (1, n_frames, SETTINGS.n_mels)).astype(np.float32)
    frames_B = np.array([n_frames], np.int32)
    x_BTF, context_BTC = jax.jit(partial(heard, SETTINGS))(mel_BTF, frames_B)
    from_heard = jax.jit(partial(score_heard, SETTINGS))
    from_mel = jax.jit(partial(score_recordings, SETTINGS))
    as_shipped = jax.jit(partial(score_recordings, SHIPPED))
    timed = {
        "ours": lambda: from_heard(params, x_BTF, context_BTC, frames_B).block_until_ready(),
        "ours, from the mel": lambda: from_mel(params, mel_BTF, frames_B).block_until_ready(),
        "the one that ships, from the mel": lambda: as_shipped(
            shipped, mel_BTF, frames_B
        ).block_until_ready(),
    }
    if installed("torch"):
        import torch
        from torch_scorer import TorchScorer, tensor

        torch.set_num_threads(1)
        twin, parts = TorchScorer(SETTINGS, params).eval(), (tensor(x_BTF), tensor(context_BTC))

        def theirs():
            with torch.inference_mode():
                return twin(*parts)

        difference = np.abs(
            theirs().numpy() - np.asarray(from_heard(params, x_BTF, context_BTC, frames_B))
        ).max()
        require_agreement("torch", float(difference), TOLERANCE)
        timed["torch"] = theirs
    return timed


if __name__ == "__main__":
    main()
