"""A history that is checked: faults are injected into running collections, and what was delivered is compared with a
calm run. `python -m tests.chaos` runs schedules, `python -m tests.chaos.soak` watches memory at full rate."""
