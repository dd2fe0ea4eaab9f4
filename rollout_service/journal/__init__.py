"""The journal: what a coordinator must know to go on after its death, in a SQLite database on a local disk, or in a log
on shared storage.

Belongs here: both forms, their one writer, and where they may lie. Metadata only: trajectories are parts, see
`rollout_service.record.part`. Does not belong here: what is decided from it (`rollout_service.collecting`) and Ray."""
