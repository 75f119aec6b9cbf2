"""CartPole-v1 as a world of `editjax.ppo`, and the policy and optimizer that CleanRL's `ppo.py` gives it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from editjax.ppo import Evaluated, Policy, World, categorical

LONGEST = 500  # steps; then time is up
ACTIONS, SEEN = 2, 4
GRAVITY, FORCE, STEP_S = 9.8, 10.0, 0.02
POLE_MASS, WHOLE_MASS, HALF_LENGTH = 0.1, 1.1, 0.5
FARTHEST, STEEPEST = 2.4, 12 * 2 * 3.141592653589793 / 360
CLIP_NORM, EPSILON = 0.5, 1e-5

Params = dict[str, list[dict[str, jax.Array]]]


class Cart(NamedTuple):
    """Place, speed, angle and its speed; steps taken."""

    x_4: jax.Array
    taken: jax.Array


def reset(key: jax.Array) -> Cart:
    return Cart(jax.random.uniform(key, (SEEN,), minval=-0.05, maxval=0.05), jnp.zeros((), jnp.int32))


def step(key: jax.Array, cart: Cart, action: jax.Array) -> tuple[Cart, jax.Array, jax.Array, jax.Array]:
    """Barto, Sutton and Anderson 1983, as in Gymnasium: Euler's method, 1 for every step."""
    _, speed, angle, turning = cart.x_4
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    pushed = jnp.where(action == 1, FORCE, -FORCE) + POLE_MASS * HALF_LENGTH * turning**2 * sine
    pushed = pushed / WHOLE_MASS
    inertia = HALF_LENGTH * (4 / 3 - POLE_MASS * cosine**2 / WHOLE_MASS)
    falling = (GRAVITY * sine - cosine * pushed) / inertia
    faster = pushed - POLE_MASS * HALF_LENGTH * falling * cosine / WHOLE_MASS
    change_4 = jnp.stack([speed, faster, turning, falling])
    cart = Cart(cart.x_4 + STEP_S * change_4, cart.taken + 1)
    over = (jnp.abs(cart.x_4[0]) > FARTHEST) | (jnp.abs(cart.x_4[2]) > STEEPEST)
    return cart, jnp.ones(()), over, cart.taken >= LONGEST


WORLD = World(reset, lambda cart: cart.x_4, step)


def init(key: jax.Array, width: int) -> Params:
    """An actor and a critic, of two hidden layers each."""

    def network(key: jax.Array, sizes: tuple[int, ...], scales: tuple[float, ...]) -> Any:
        keys = jax.random.split(key, len(scales))
        layers = zip(keys, sizes[:-1], sizes[1:], scales, strict=True)
        return [
            {"kernel": jax.nn.initializers.orthogonal(scale)(key, (fan_in, out)), "bias": jnp.zeros(out)}
            for key, fan_in, out, scale in layers
        ]

    actor_key, critic_key = jax.random.split(key)
    hidden, root = (SEEN, width, width), 2**0.5
    actor = network(actor_key, (*hidden, ACTIONS), (root, root, 0.01))
    return {"actor": actor, "critic": network(critic_key, (*hidden, 1), (root, root, 1.0))}


def run(layers: Any, x_BC: jax.Array) -> jax.Array:
    *hidden, last = layers
    for layer in hidden:
        x_BC = jnp.tanh(x_BC @ layer["kernel"] + layer["bias"])
    return x_BC @ last["kernel"] + last["bias"]


def noise(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.random.gumbel(key, (*shape, ACTIONS))


def act(params: Params, seen_BC: jax.Array, noise_BC: jax.Array) -> jax.Array:
    return jnp.argmax(run(params["actor"], seen_BC) + noise_BC, axis=-1)


def evaluate(params: Params, seen_BTC: jax.Array, action_BT: jax.Array) -> Evaluated:
    """Steps one below the other: XLA for CPUs takes twice the time for products of three axes."""
    seen_NC = seen_BTC.reshape(-1, SEEN)
    log_p_N, entropy_N = categorical(run(params["actor"], seen_NC), action_BT.reshape(-1))
    found = log_p_N, entropy_N, run(params["critic"], seen_NC)
    return Evaluated(*(x_N.reshape(action_BT.shape) for x_N in found))


POLICY = Policy(noise, act, evaluate)


def make_optimizer(rate: float, updates: int, iterations: int) -> optax.GradientTransformation:
    """Adam, the rate falling in a line from iteration to iteration, of so many updates each; on one vector,
    for otherwise most of its time goes into a dozen small arrays."""

    def schedule(count: jax.Array) -> jax.Array:
        return rate * (1 - count // updates / iterations)

    adam = optax.adam(schedule, eps=EPSILON)
    return optax.flatten(optax.chain(optax.clip_by_global_norm(CLIP_NORM), adam))
