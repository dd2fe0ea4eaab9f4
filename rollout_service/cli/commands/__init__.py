"""The commands of `rollout-service`, a file each. Heavy imports are inside the functions, so that `--help` is fast."""
