"""What training, export and loading must know of a model family; the one place that lists the families."""

from collections.abc import Callable
from typing import Any, NamedTuple

from editjax.errors import DataError, UsageError, shown
from editjax.mesh import WIDTHS, Rules


class Family(NamedTuple):
    """A model to train.

    `init(settings, key) → params`, a nested dict of arrays; `loss(params, batch, key, settings, weights)
    → (scalar, metrics)`, with the config's loss settings as `weights`; `rules` for the mesh. Parameters that
    move without a gradient are in params["running"], and their new values in metrics["running"].

    Where a batch means more than one step against a gradient, `learn(learner, batch, key, config, frozen) →
    (learner, metrics)` takes the loss's place, with a `ppo.Learner` and at least `loss` and `gradient_norm`
    among the metrics; `frozen(config)` names the trained model that it needs besides, a `ppo.Frozen`.
    Without a `learn` the frozen model, where there is one, is what the loss is given as `frozen`.
    One that `goes_on` keeps a part of the model it begins from as it is, and cannot begin from nothing.
    """

    name: str
    init: Callable[..., Any]
    loss: Callable[..., tuple[Any, dict[str, Any]]]
    rules: Rules = WIDTHS
    learn: Callable[..., tuple[Any, dict[str, Any]]] | None = None
    frozen: Callable[[Any], str] | None = None
    goes_on: bool = False


def family_of(settings: Any, loss: Any = None) -> Family:
    """The family whose settings these are; the loss's settings say how it learns, where there are ways."""
    from editjax.models.autoencoder import ScorerSettings
    from editjax.models.codec import CodecSettings
    from editjax.models.hifigan import HifiGanSettings
    from editjax.models.mixer import MixerSettings
    from editjax.models.pointer import PointerSettings
    from editjax.models.policy import PolicySettings
    from editjax.models.reconstruct import ReconstructSettings
    from editjax.models.window import WindowSettings
    from editjax.tune import TuneSettings

    match settings:
        case PointerSettings() if isinstance(loss, TuneSettings):
            return _tuned()
        case PointerSettings():
            return _pointer()
        case ScorerSettings():
            return _scorer()
        case ReconstructSettings():
            return _reconstruct()
        case PolicySettings():
            return _policy(loss)
        case MixerSettings():
            return _mixer()
        case HifiGanSettings():
            return _hifigan()
        case CodecSettings():
            return _codec()
        case WindowSettings():
            return _window()
    raise TypeError(f"no model family has settings of type {type(settings).__name__}")


def settings_type(name: str) -> type:
    """The settings' type of the family a model file names; DataError for one this version does not know."""
    from editjax.models.autoencoder import ScorerSettings
    from editjax.models.codec import CodecSettings
    from editjax.models.hifigan import HifiGanSettings
    from editjax.models.mixer import MixerSettings
    from editjax.models.pointer import PointerSettings
    from editjax.models.policy import PolicySettings
    from editjax.models.reconstruct import ReconstructSettings
    from editjax.models.window import WindowSettings

    match name:
        case "pointer":
            return PointerSettings
        case "scorer":
            return ScorerSettings
        case "reconstruct":
            return ReconstructSettings
        case "policy":
            return PolicySettings
        case "mixer":
            return MixerSettings
        case "hifigan":
            return HifiGanSettings
        case "codec":
            return CodecSettings
        case "window":
            return WindowSettings
    raise DataError(f"model family {shown(name)} is unknown to this version of editjax: upgrade it")


def _pointer() -> Family:
    from editjax.losses import pointer_loss
    from editjax.models.pointer import init

    def loss(params, batch, key, settings, weights):
        return pointer_loss(params, batch, settings, weights, key)

    return Family("pointer", init, loss)


def _tuned() -> Family:
    from editjax.tune import learn

    return _pointer()._replace(learn=learn, frozen=lambda config: config.loss.reference, goes_on=True)


def _scorer() -> Family:
    from editjax.models.autoencoder import init
    from editjax.scorer_loss import scorer_loss

    def loss(params, batch, key, settings, weights):
        return scorer_loss(params, batch, settings, weights, key)

    return Family("scorer", init, loss)


def _reconstruct() -> Family:
    from editjax.models.reconstruct import init
    from editjax.reconstruct_loss import reconstruct_loss

    def loss(params, batch, key, settings, weights):
        return reconstruct_loss(params, batch, settings, weights, key)

    return Family("reconstruct", init, loss)


def _policy(weights: Any) -> Family:
    from editjax import policy_loss
    from editjax.models.policy import init

    def loss(params, batch, key, settings, weights):
        return policy_loss.policy_loss(params, batch, settings, weights, key)

    family = Family("policy", init, loss, goes_on=True)
    if isinstance(weights, policy_loss.PolicyPpoSettings):
        learn = policy_loss.learn_from_rewards
        return family._replace(learn=learn, frozen=lambda config: config.loss.reconstruction)
    return family


def _mixer() -> Family:
    from editjax.mixer_loss import mixer_loss
    from editjax.models.mixer import init

    def loss(params, batch, key, settings, weights):
        return mixer_loss(params, batch, settings, weights, key)

    return Family("mixer", init, loss)


def _hifigan() -> Family:
    from editjax.models.hifigan import init

    def loss(*_):
        raise UsageError(
            "a vocoder is not trained here; editjax convert-vocoder makes one of trained weights"
        )

    return Family("hifigan", init, loss)


def _codec() -> Family:
    from editjax.codec_loss import codec_loss
    from editjax.models.codec import init

    def loss(params, batch, key, settings, weights):
        return codec_loss(params, batch, settings, weights, key)

    return Family("codec", init, loss)


def _window() -> Family:
    from editjax.models.window import init
    from editjax.window_loss import sound_loss

    def loss(params, batch, key, settings, weights, frozen):
        return sound_loss(params, batch, settings, weights, key, frozen)

    return Family("window", init, loss, frozen=lambda config: config.loss.codec)
