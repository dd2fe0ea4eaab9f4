"""Entry point of a cluster job: `ray job submit -- python -m deploy.job --n 256 --group-size 8 ...`.

Invariant: the main job on the cluster that the job runs on. It takes the arguments of `rollout-service collect`, with
the address set; progress goes to the job's log as lines, since nobody watches a bar there.
"""

from __future__ import annotations

import sys

from rollout_service.cli import main

if __name__ == "__main__":
    main(["collect", "--address", "auto", "--start", *sys.argv[1:]])
