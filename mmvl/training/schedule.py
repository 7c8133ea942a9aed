"""The learning rate as a function of steps and of the share of the stage's budget that is spent."""

from __future__ import annotations

import math

from mmvl.training.recipe import Budget, OptimizerSpec


def progress(tokens: int, seconds: float, budget: Budget) -> float:
    """Share of the budget that is spent, by tokens or by time, whichever is further along; 1 ends the stage."""
    by_time = seconds / (60 * budget.minutes) if budget.minutes else 0.0
    return min(1.0, max(tokens / budget.tokens, by_time))


def lr_factor(step: int, spent: float, spec: OptimizerSpec) -> float:
    """Multiplier of the peak rate: linear warm-up over `warmup_steps`, constant, then `decay` over the last part.

    Args:
        step: optimizer steps done before this one.
        spent: share of the budget that is spent, 0 to 1.
    """
    warm = min(1.0, (step + 1) / (spec.warmup_steps + 1))
    start = 1.0 - spec.decay_fraction
    if spent <= start:
        return warm
    x, low = min(1.0, (spent - start) / spec.decay_fraction), spec.final_lr_ratio
    if spec.decay == "exponential":
        return warm * low**x
    fallen = x if spec.decay == "linear" else 0.5 * (1 - math.cos(math.pi * x))
    return warm * (1 - (1 - low) * fallen)
