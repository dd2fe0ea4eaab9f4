"""Connecting: SGLang's processes connect to the trainer when they join its process group.

Invariant: a process that cannot connect has not joined, and says why.

SGLang leaves this to the first weights that it receives. Turns stand still then, and NCCL takes a second to connect
(see `rollout_service.policy.process_group.connect`). SGLang's code was read in release 0.5.23.
"""

from __future__ import annotations

import functools
from typing import Any

from rollout_service.errors import first_line
from rollout_service.policy import process_group


def connect_when_joining() -> None:
    """Make this process's SGLang connect when it joins a group, if it `can_connect`."""
    updater = _updater()
    if updater is None:
        return
    join = updater.init_weights_update_group

    @functools.wraps(join)
    def init_weights_update_group(self: Any, *args: Any, **kwargs: Any) -> tuple[bool, str]:
        groups = self._model_update_group
        before = {*groups}
        success, message = join(self, *args, **kwargs)
        for name in {*groups} - before:
            try:
                process_group.connect(groups[name], self.device)
            except RuntimeError as error:
                self.destroy_weights_update_group(name)
                return False, f"The ranks did not connect: {first_line(error)}"
        return success, message

    updater.init_weights_update_group = init_weights_update_group


def can_connect() -> bool:
    """Whether this release of SGLang has the class that `connect_when_joining` changes."""
    return _updater() is not None


def _updater() -> Any:
    """SGLang's class that joins groups; None: there is no such class that is known here."""
    try:
        from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater
    except ImportError:
        return None
    known = {"_model_update_group", "device"} <= {*getattr(WeightUpdater, "__dataclass_fields__", ())}
    return WeightUpdater if known and hasattr(WeightUpdater, "destroy_weights_update_group") else None
