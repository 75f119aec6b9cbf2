"""The creative agent in the training loop: through a frozen codec, resumed; what does not fit is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from test_remix import AGENT, CODEC, write_model

from editjax.errors import UsageError
from editjax.family import family_of
from editjax.models import codec
from editjax.optim import OptimSettings
from editjax.ppo import Frozen
from editjax.sounds import SoundBatch, SoundSettings
from editjax.step import TrainConfig
from editjax.train import train
from editjax.window_loss import WindowLossSettings, sound_loss


class Noise:
    """Batches of four sounds, a function of their number."""

    def __init__(self):
        self.number = 0

    def __next__(self):
        rng = np.random.default_rng(self.number)
        self.number += 1
        return SoundBatch(rng.normal(size=(4, 1, 24 * 4000)).astype(np.float32), np.arange(4, dtype=np.int32))

    def get_state(self):
        return {"next": self.number}

    def set_state(self, state):
        self.number = state["next"]


def config(folder, steps=3):
    loss = WindowLossSettings(codec=str(folder / "codec"), heard_s=1.0)
    data, optim = SoundSettings(seconds=24.0, batch_size=4), OptimSettings(steps=steps, warmup_steps=1)
    return TrainConfig(model=AGENT, loss=loss, data=data, optim=optim, validate_every=0, checkpoint_every=1)


@pytest.mark.slow
def test_it_learns_through_a_codec_that_stays_as_it_is_and_goes_on(tmp_path):
    write_model(tmp_path / "codec", codec, CODEC)
    whole = train(config(tmp_path), Noise(), tmp_path / "whole")
    assert int(whole.step) == 3 and int(whole.total_skipped) == 0
    log = next((tmp_path / "whole").glob("*.jsonl")).read_text()
    assert '"pair2_start_target_mean"' in log and '"spectral"' in log
    begun, stopped = config(tmp_path), Noise()
    halves = tmp_path / "halves"

    class Stop(Exception):
        pass

    class Ends(Noise):
        def __next__(self):
            if self.number == 2:
                raise Stop
            return super().__next__()

    with pytest.raises(Stop):
        train(begun, Ends(), halves)
    again = train(begun, stopped, halves)
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_does_not_fit_is_refused():
    settings, weights, key = AGENT, WindowLossSettings(), jax.random.key(0)
    batch = next(Noise())
    other = Frozen(replace(CODEC, dimension=5), None)
    with pytest.raises(UsageError, match="a codec of"):
        sound_loss(None, batch, settings, weights, key, other)
    with pytest.raises(UsageError, match="not a codec"):
        sound_loss(None, batch, settings, weights, key, Frozen(AGENT, None))
    for wrong in (batch.sound_BCS[:3], batch.sound_BCS[..., :4000]):
        with pytest.raises(UsageError, match="hears pairs"):
            sound_loss(None, SoundBatch(wrong, batch.ids_B), settings, weights, key, Frozen(CODEC, None))


def test_the_family_has_the_config_s_codec():
    family = family_of(AGENT)
    assert family.name == "window" and family.frozen
    assert family.frozen(replace(TrainConfig(), loss=WindowLossSettings(codec="one"))) == "one"
