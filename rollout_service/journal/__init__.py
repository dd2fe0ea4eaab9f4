"""The journal: what a coordinator must know to go on after its death, in a SQLite database on a local disk.

Belongs here: the database, its one writer, and where it may lie. Metadata only: trajectories are parts, see
`rollout_service.record.part`. Does not belong here: what is decided from it (`rollout_service.collecting`) and Ray."""
