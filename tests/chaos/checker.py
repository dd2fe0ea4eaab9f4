"""The checker: compares what a run delivered with a calm run of the same collection.

Invariant: it is pure, and finds each of these: an episode that was asked for and is lost, one that came twice, one that
nobody asked for, a reward or a length that is not the calm run's, and lengths that are distributed otherwise than in
the calm run, which is what a service that gives up long episodes shows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tests.chaos.history import Delivery

SIGNIFICANCE = 1e-3
"""Probability below which lengths are said to be distributed otherwise. What came is mostly the calm run's own
episodes, so a service without a bias stays far above it."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be."""

    kind: str
    """`lost`, `twice`, `unasked`, `reward`, `length`, `biased`; the runner adds `broken`, `stuck` and `given up`."""
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checker found in one run."""

    delivered: int
    """Trajectories that came, each counted once."""
    reported: int
    """Failures that were reported, each counted once."""
    probability: float
    """Of the Kolmogorov-Smirnov test between the lengths that came and those of the calm run."""
    violations: tuple[Violation, ...] = ()

    def count(self, kind: str) -> int:
        """Number of violations of that kind."""
        return sum(violation.kind == kind for violation in self.violations)


def check(calm: Sequence[Delivery], came: Sequence[Delivery]) -> Verdict:
    """Compare a run with its calm run.

    Args:
        calm: the calm run: every episode that is asked for, once, none of them a failure.

    Raises:
        ValueError: the calm run is not calm.
    """
    asked = {delivery.identity: delivery for delivery in calm}
    if len(asked) != len(calm) or any(delivery.reported for delivery in calm):
        raise ValueError("the calm run has failures, or an episode twice: nothing can be compared with it")
    counts = Counter(delivery.identity for delivery in came)
    known = [delivery for delivery in came if delivery.identity in asked]
    trajectories = [delivery for delivery in known if not delivery.reported]
    found = [Violation("lost", str(identity)) for identity in asked if not counts[identity]]
    found += [Violation("twice", f"{n} times {identity}") for identity, n in counts.items() if n > 1]
    found += [Violation("unasked", str(identity)) for identity in counts if identity not in asked]
    found += [Violation("unasked", f"in collection {name}") for name in _others(came)]
    for delivery in trajectories:
        expected = asked[delivery.identity]
        if delivery.reward != expected.reward:
            text = f"{delivery.reward} instead of {expected.reward}: {delivery.identity}"
            found.append(Violation("reward", text))
        if (delivery.turns, delivery.tokens) != (expected.turns, expected.tokens):
            text = f"{delivery.turns} turns, {delivery.tokens} tokens instead of {expected.turns}, {expected.tokens}"
            found.append(Violation("length", f"{text}: {delivery.identity}"))
    probability = same_distribution(lengths(trajectories), lengths(calm))
    if probability < SIGNIFICANCE:
        text = f"p={probability:.2g}: {_means(trajectories)} tokens on average instead of {_means(calm)}"
        found.append(Violation("biased", text))
    reported = {delivery.identity for delivery in known if delivery.reported}
    return Verdict(len({delivery.identity for delivery in trajectories}), len(reported), probability, tuple(found))


def lengths(deliveries: Iterable[Delivery]) -> npt.NDArray[np.int64]:
    """Tokens of each trajectory."""
    return np.array([delivery.tokens for delivery in deliveries if not delivery.reported], dtype=np.int64)


def same_distribution(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Two-sample Kolmogorov-Smirnov test: probability of a distance like this one, or a larger one, if both samples
    have the same distribution. Asymptotic, with Stephens' correction for small samples; 0 if one sample is empty."""
    if not len(first) or not len(second):
        return 0.0 if len(first) != len(second) else 1.0
    points = np.concatenate([first, second])
    below = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (first, second)]
    distance = float(np.abs(below[0] - below[1]).max())
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # where the series below converges slowly; the probability is 1 to twelve digits
        return 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, sum(terms)))


def _others(came: Sequence[Delivery]) -> list[str]:
    """Collections other than the first one: a run has one."""
    return sorted({delivery.collection for delivery in came} - {came[0].collection}) if came else []


def _means(deliveries: Sequence[Delivery]) -> str:
    return f"{lengths(deliveries).mean():.0f}" if deliveries else "no"
