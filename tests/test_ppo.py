"""PPO: every claim."""

import ppo_claims as claims
import pytest

from editjax import ppo
from editjax.errors import UsageError


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.__name__)
def test_claim(claim):
    claim(ppo)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"discount": 1.1}, r"discount 1\.1, trace 0\.95: give shares"),
        ({"trace": -0.1}, r"trace -0\.1: give shares"),
        ({"clip": 0.0}, r"clip 0\.0: give more than 0"),
        ({"entropy": -1.0}, r"entropy -1\.0: give 0 or more"),
        ({"target_kl": -0.1}, r"target_kl -0\.1: give 0 or more"),
        ({"minibatches": 0}, "must be 1 or more"),
    ],
)
def test_settings_without_sense_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        ppo.PpoSettings(**wrong)
