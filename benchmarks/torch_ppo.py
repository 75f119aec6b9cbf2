"""PPO in PyTorch as CleanRL's `ppo.py` writes it, one eager loop, and CartPole-v1 in NumPy.

`Carts` has the dynamics of Gymnasium's, which is no dependency, for all copies in a few NumPy calls: that is
faster than its loop over the copies. As in CleanRL, time that is up counts as an end. The standard deviation
of the advantages is that of the population, as in ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from cart_pole import (
    ACTIONS,
    CLIP_NORM,
    EPSILON,
    FARTHEST,
    FORCE,
    GRAVITY,
    HALF_LENGTH,
    LONGEST,
    POLE_MASS,
    SEEN,
    STEEPEST,
    STEP_S,
    WHOLE_MASS,
)
from torch import Tensor, nn
from torch.distributions import Categorical

from editjax.ppo import PpoSettings

torch.set_num_threads(1)


class Carts:
    """Copies of CartPole-v1; states in float64, what is seen of them in float32."""

    def __init__(self, copies: int, seed: int) -> None:
        self.rng, self.taken = np.random.default_rng(seed), np.zeros(copies, np.int64)
        self.x_BC, self.score_B = self.fresh(copies), np.zeros(copies)
        self.scores: list[float] = []

    def fresh(self, copies: int) -> np.ndarray:
        return self.rng.uniform(-0.05, 0.05, (copies, SEEN))

    def step(self, action_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is seen then, of the new copies where the old ones ended; rewards; which ended."""
        self.x_BC, over_B = dynamics(self.x_BC, action_B)
        self.taken += 1
        self.score_B += 1
        done_B = over_B | (self.taken >= LONGEST)
        if done_B.any():
            self.scores += self.score_B[done_B].tolist()
            self.x_BC[done_B] = self.fresh(int(done_B.sum()))
            self.taken[done_B] = self.score_B[done_B] = 0
        return self.x_BC.astype(np.float32), np.ones(len(done_B), np.float32), done_B.astype(np.float32)


def dynamics(x_BC: np.ndarray, action_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The next states, and where it is over."""
    _, speed, angle, turning = x_BC.T
    cosine, sine = np.cos(angle), np.sin(angle)
    force = np.where(action_B == 1, FORCE, -FORCE)
    pushed = (force + POLE_MASS * HALF_LENGTH * turning**2 * sine) / WHOLE_MASS
    inertia = HALF_LENGTH * (4 / 3 - POLE_MASS * cosine**2 / WHOLE_MASS)
    falling = (GRAVITY * sine - cosine * pushed) / inertia
    faster = pushed - POLE_MASS * HALF_LENGTH * falling * cosine / WHOLE_MASS
    x_BC = x_BC + STEP_S * np.stack([speed, faster, turning, falling], 1)
    return x_BC, (np.abs(x_BC[:, 0]) > FARTHEST) | (np.abs(x_BC[:, 2]) > STEEPEST)


def layer(fan_in: int, out: int, scale: float = 2**0.5) -> nn.Linear:
    made = nn.Linear(fan_in, out)
    nn.init.orthogonal_(made.weight, scale)
    nn.init.constant_(made.bias, 0.0)
    return made


class Agent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()

        def network(out: int, scale: float) -> nn.Sequential:
            hidden = layer(SEEN, width), nn.Tanh(), layer(width, width), nn.Tanh()
            return nn.Sequential(*hidden, layer(width, out, scale))

        self.actor, self.critic = network(ACTIONS, 0.01), network(1, 1.0)

    def forward(self, seen: Tensor, action: Tensor | None = None) -> tuple[Tensor, ...]:
        """Action, its log-probability, entropy, value."""
        choice = Categorical(logits=self.actor(seen))
        action = choice.sample() if action is None else action
        return action, choice.log_prob(action), choice.entropy(), self.critic(seen).view(-1)

    def layers(self) -> dict[str, list[nn.Linear]]:
        """The layers by the names of our parameters."""
        return {
            name: [part for part in network if isinstance(part, nn.Linear)]
            for name, network in (("actor", self.actor), ("critic", self.critic))
        }

    @torch.no_grad()
    def load(self, params: Any) -> None:
        """Takes our parameters."""
        for name, layers in self.layers().items():
            for own, given in zip(layers, params[name], strict=True):
                own.weight.copy_(torch.tensor(np.asarray(given["kernel"]).T))
                own.bias.copy_(torch.tensor(np.asarray(given["bias"])))

    def ours(self, *, gradient: bool = False) -> dict[str, list[dict[str, np.ndarray]]]:
        """The parameters, or their gradients, as ours."""

        def array(x: Tensor) -> np.ndarray:
            return np.array((x.grad if gradient else x).detach())

        return {
            name: [{"kernel": array(one.weight).T, "bias": array(one.bias)} for one in layers]
            for name, layers in self.layers().items()
        }


class Steps(NamedTuple):
    """Steps to learn from, one below the other."""

    seen: Tensor
    action: Tensor
    log_p: Tensor
    value: Tensor
    advantage: Tensor
    returned: Tensor


class Loop:
    """An agent, its optimizer and its copies of the world."""

    def __init__(
        self, settings: PpoSettings, width: int, copies: int, steps: int, rate: float, seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.settings, self.steps, self.rate, self.iteration = settings, steps, rate, 0
        self.agent, self.carts = Agent(width), Carts(copies, seed)
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=rate, eps=EPSILON)
        self.rng = np.random.default_rng(seed)
        shape = steps, copies
        self.seen, self.action = torch.zeros((*shape, SEEN)), torch.zeros(shape)
        self.log_p, self.reward, self.done, self.value = (torch.zeros(shape) for _ in range(4))
        self.next_seen = torch.tensor(self.carts.x_BC.astype(np.float32))
        self.next_done = torch.zeros(copies)

    def iterate(self) -> None:
        """Acts and learns."""
        for t in range(self.steps):
            self.seen[t], self.done[t] = self.next_seen, self.next_done
            with torch.no_grad():
                action, log_p, _, value = self.agent(self.next_seen)
            self.action[t], self.log_p[t], self.value[t] = action, log_p, value
            seen, reward, done = self.carts.step(action.numpy())
            self.reward[t] = torch.tensor(reward)
            self.next_seen, self.next_done = torch.tensor(seen), torch.tensor(done)
        with torch.no_grad():
            last_value = self.agent.critic(self.next_seen).view(-1)
            done = torch.cat([self.done[1:], self.next_done[None]])  # after a step, as ours
            advantage = advantages(self.settings, self.reward, self.value, done, last_value)
        one_by_one = self.seen, self.action.long(), self.log_p, self.value, advantage, advantage + self.value
        self.learn(Steps(*(x.flatten(0, 1) for x in one_by_one)), self.shuffled())

    def shuffled(self) -> Iterable[np.ndarray]:
        """The steps of every minibatch."""
        order = np.arange(self.log_p.numel())
        for _ in range(self.settings.epochs):
            self.rng.shuffle(order)
            yield from np.split(order, self.settings.minibatches)

    def learn(self, steps: Steps, minibatches: Iterable[np.ndarray]) -> None:
        self.optimizer.param_groups[0]["lr"] = (1 - self.iteration / self.settings.iterations) * self.rate
        self.iteration += 1
        for order in minibatches:
            total = loss(self.agent, Steps(*(x[order] for x in steps)), self.settings)
            self.optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(self.agent.parameters(), CLIP_NORM)
            self.optimizer.step()


def advantages(
    settings: PpoSettings, reward: Tensor, value: Tensor, done: Tensor, last_value: Tensor
) -> Tensor:
    """Generalised advantage estimation, (steps, copies); `done` after a step."""
    advantage, after = torch.zeros_like(reward), torch.zeros_like(last_value)
    for t in reversed(range(len(reward))):
        following = last_value if t == len(reward) - 1 else value[t + 1]
        error = reward[t] + settings.discount * following * (1 - done[t]) - value[t]
        advantage[t] = after = error + settings.discount * settings.trace * (1 - done[t]) * after
    return advantage


def loss(agent: Agent, steps: Steps, settings: PpoSettings) -> Tensor:
    """The clipped losses, and what CleanRL logs of them."""
    _, log_p, entropy, value = agent(steps.seen, steps.action)
    log_ratio = log_p - steps.log_p
    ratio = log_ratio.exp()
    with torch.no_grad():
        _kl = ((ratio - 1) - log_ratio).mean()
        _clipped = ((ratio - 1).abs() > settings.clip).float().mean().item()
    advantage = steps.advantage
    advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
    clip = settings.clip
    policy = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip)).mean()
    near = steps.value + torch.clamp(value - steps.value, -clip, clip)
    error = torch.max((value - steps.returned) ** 2, (near - steps.returned) ** 2)
    return policy - settings.entropy * entropy.mean() + settings.value * 0.5 * error.mean()
