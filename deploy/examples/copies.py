"""Copies: a model on several devices, each of which computes the gradients of a share of a step.

Invariant: after `gradients`, the model has the sum of all shares' gradients, up to rounding those that it would have
computed itself. After `follow`, all copies have the model's weights. An optimizer needs to know the model alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Share = TypeVar("Share")


class Copies:
    """A model and its copies on other devices. Its length counts the model too."""

    def __init__(self, model: Any, devices: Sequence[str]) -> None:
        self._models = [model, *(copy.deepcopy(model).to(device) for device in devices)]
        # Threads are enough, because Python's lock is free while one of them waits for its device.
        self._threads = ThreadPoolExecutor(len(self._models))

    def __len__(self) -> int:
        return len(self._models)

    def gradients(self, backward: Callable[[Any, Share], float], shares: Sequence[Share]) -> float:
        """Compute all shares' gradients at the same time, and add them to the model's.

        Args:
            backward: given a model and a share, adds the gradients to the model's and returns the loss.
            shares: as many as `len(self)`; the first is the model's own, which this thread computes.

        Returns:
            The sum of the losses.
        """
        own, *pairs = zip(self._models, shares, strict=True)
        pending = [self._threads.submit(backward, *pair) for pair in pairs]
        losses = [backward(*own), *(each.result() for each in pending)]
        first, *others = (list(model.parameters()) for model in self._models)
        for weights in others:
            for weight, other in zip(first, weights, strict=True):
                if other.grad is not None:
                    gradient = other.grad.to(weight.device)
                    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
                    other.grad = None
        return sum(losses)

    def follow(self) -> None:
        """Give all copies the model's weights."""
        first, *others = (list(model.parameters()) for model in self._models)
        with torch.no_grad():
            for weights in others:
                for weight, other in zip(first, weights, strict=True):
                    other.copy_(weight)
