"""Stored trajectories in other programs' formats: τ²-bench's results, Inspect's logs, rows for supervised training, a
Hugging Face dataset. A file for each format.

What belongs here: what a format says of a trajectory, and which trajectories of a file go into it. What does not: how
trajectories themselves are stored (`rollout_service.record`), and trainers' own types (`rollout_service.adapters`).
"""
