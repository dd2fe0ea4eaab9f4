"""What do the metrics cost? The starvation benchmark's turns per second with their export and without, in turns."""

from __future__ import annotations

import statistics

from tests.benchmarks.measure import Row, show
from tests.benchmarks.starvation import steady_state

_ROUNDS = 3
_EPISODES = {"retail": 400, "telecom": 500}


def run() -> bool:
    """Measure all domains."""
    rows = []
    for name, episodes in _EPISODES.items():
        rates: dict[bool, list[float]] = {False: [], True: []}
        for number in range(_ROUNDS):
            for on in (True, False) if number % 2 else (False, True):  # neither is always the first
                rates[on].append(steady_state(name, episodes, service__metrics=on).rate)
        with_them, without = statistics.median(rates[True]), statistics.median(rates[False])
        share = with_them / without
        what = f"{name}: turns per second with metrics, median of {_ROUNDS}"
        without_text = f"{without:.2f} without ({', '.join(f'{rate:.2f}' for rate in rates[False])})"
        rows.append(Row(what, f"{with_them:.2f}", without_text, f"{share:.3f}", "≥ 0.98", share >= 0.98))
    return show("metrics exported through Ray", rows)
