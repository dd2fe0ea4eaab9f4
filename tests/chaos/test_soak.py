"""The soak run's slope, and what it reads of allocators."""

from __future__ import annotations

import numpy as np
import pytest

from tests.chaos.heap import Heap
from tests.chaos.soak import slope


def test_the_slope_is_that_of_the_trend_whatever_a_few_samples_do():
    seconds = np.arange(0.0, 600.0, 10.0)
    sizes = (1e8 + 2e3 * seconds).astype(int)
    sizes[::7] += 30_000_000  # garbage that waits to be collected
    assert slope(seconds.tolist(), sizes.tolist()) == pytest.approx(2e3 * 3600, rel=0.05)
    assert slope([1.0], [5]) == slope([], []) == 0.0
    assert slope([0.0, 10.0, 20.0], [7, 7, 7]) == 0.0


def test_what_is_kept_is_told_from_what_is_free():
    before = Heap.of(None)
    large, small = [bytes(100_000) for _ in range(100)], [object() for _ in range(50_000)]
    kept = Heap.of(None)
    assert kept.used - before.used > 5_000_000, "half of it, since other threads free things as well"
    assert kept.blocks - before.blocks > 25_000
    del large, small
    after = Heap.of(None)
    assert kept.used - after.used > 5_000_000
    assert kept.blocks - after.blocks > 25_000
