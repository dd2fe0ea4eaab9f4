"""Metrics: what a running service counts and measures.

Here belong the table of all metrics, what is counted from an episode, and how numbers are kept and written down. All of
it is pure. What does not belong here: Ray, the actors that record (`actors/metering.py`), and the statistics of stored
trajectories, see `rollout_service.record`.
"""
