"""What is kept of an episode: the trajectory and its parts, how it grows token by token, batches, files, statistics.

Nothing here plays an episode or talks to a service. Reading old files and writing new ones belongs here; checking them
against templates and τ²-bench belongs in `rollout_service.audit`.
"""
