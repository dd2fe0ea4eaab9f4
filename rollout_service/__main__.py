"""`python -m rollout_service` is `rollout-service`."""

from rollout_service.cli import main

main()
