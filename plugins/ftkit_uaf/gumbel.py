"""Choices among the branches of a block that are hard and yet have a gradient: the Gumbel-softmax.

Jang, Gu, Poole, *Categorical Reparameterization with Gumbel-Softmax*, ICLR 2017, https://arxiv.org/abs/1611.01144.
With π the policy's probabilities of a block's actions and g ~ Gumbel(0, 1):

    z   = one_hot(argmax_i [g_i + log π_i])                                 (forward)
    α_i = exp((log π_i + g_i)/τ) / Σ_j exp((log π_j + g_j)/τ)               (backward)

Actions are ordered by what they cost: 0 is the fine-tuned branch, 1 the frozen one, 2, where there is one, neither.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from finetune_kit.data.batch import Batch
from finetune_kit.seeding import uniform_per_user
from finetune_kit.strategy import Strategy
from ftkit_uaf.collapse import LearnedPolicyOptions


class GumbelOptions(LearnedPolicyOptions):
    """Options of every strategy whose policy learns through Gumbel-softmax; each has a temperature of its own."""

    temperature: float = Field(10.0, gt=0)
    """τ: the larger, the more even the gradient between the actions."""
    final_temperature: float | None = Field(None, gt=0)
    """τ after annealing_epochs, approached by the same factor each epoch; none keeps temperature (the paper)."""
    annealing_epochs: int = Field(20, ge=1)
    """Epochs from temperature to final_temperature, where that is set."""
    evaluation: Literal["greedy", "sample", "expected"] = "greedy"
    """At evaluation: the likelier action, an action drawn once per user, or the probability itself as a soft gate."""


def idle_gumbel_options(options: GumbelOptions) -> dict[str, str]:
    """Return which of the options have no effect, and why."""
    if options.final_temperature is None:
        return {"annealing_epochs": "the temperature stays, as strategy.final_temperature is not set"}
    return {}


def temperature_of(options: GumbelOptions, epoch: int) -> float:
    """Return τ in an epoch, counted from 1: a function of the epoch alone, so that an interrupted run goes on alike."""
    first, last = options.temperature, options.final_temperature
    progress = min((epoch - 1) / options.annealing_epochs, 1.0)
    return first if last is None else first * (last / first) ** progress


def choose_actions(strategy: Strategy, batch: Batch, log_probabilities: Tensor, temperature: float) -> Tensor:
    """Return each user's action in each block, ``(users, blocks, actions)``: one-hot, but for ``evaluation=expected``.

    In training it is drawn anew, with the gradient of its relaxation; at evaluation the options say how it is chosen.

    Args:
        strategy: Whose options, a `GumbelOptions`, noise and seed to use.
        batch: Whose users the choice is for.
        log_probabilities: log π, ``(users, blocks, actions)``.
        temperature: τ > 0.
    """
    if strategy.training:
        uniform = strategy.draw(batch, *log_probabilities.shape[1:])
        return gumbel_softmax(log_probabilities, uniform, temperature)
    if strategy.options.evaluation == "expected":
        return log_probabilities.softmax(dim=-1)
    if strategy.options.evaluation == "sample":
        draws = uniform_per_user(batch.user, log_probabilities[0].numel(), strategy.seed)
        return gumbel_softmax(log_probabilities, draws.view_as(log_probabilities), temperature)
    return likeliest(log_probabilities)


def gumbel_softmax(log_probabilities: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Return one-hot actions with the gradient of their relaxation (straight-through).

    Args:
        log_probabilities: log π, ``(…, actions)``.
        uniform: Draws from [0, 1), the same shape.
        temperature: τ > 0.
    """
    tiny = torch.finfo(uniform.dtype).tiny
    exponential = -uniform.clamp(min=tiny).log()
    gumbel = -exponential.clamp(min=tiny).log()  # g = −log(−log u)
    noisy = log_probabilities + gumbel
    relaxed = (noisy / temperature).softmax(dim=-1)  # α
    chosen = F.one_hot(noisy.argmax(dim=-1), noisy.shape[-1]).to(noisy.dtype)  # z
    return chosen + (relaxed - relaxed.detach())


def likeliest(log_probabilities: Tensor) -> Tensor:
    """Return the likeliest action, one-hot, of log π ``(…, actions)``; of equal ones the last, which costs least."""
    num_actions = log_probabilities.shape[-1]
    is_likeliest = log_probabilities == log_probabilities.amax(dim=-1, keepdim=True)
    place = is_likeliest * torch.arange(1, num_actions + 1, device=log_probabilities.device)
    return F.one_hot(place.argmax(dim=-1), num_actions).to(log_probabilities.dtype)
