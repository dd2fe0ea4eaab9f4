"""Starts a service in the cluster that this process is connected to, and stops it.

Invariant: the one module of the library that imports `deploy`, and it makes sure first that `deploy` and `actors` are
the packages that belong to the library, here and in Ray's workers.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

import rollout_service.cluster as cluster
import rollout_service.preflight as preflight
from rollout_service.collecting.coordinator import Service
from rollout_service.config import RolloutConfig
from rollout_service.errors import ServiceError
from rollout_service.phases import Phases

_PACKAGES = ("actors", "deploy")
_HOME = Path(__file__).resolve().parents[1]
"""The folder that holds all three packages."""


def prepared(config: RolloutConfig, *, here: bool = False) -> RolloutConfig:
    """Check everything that can be checked before a process is started, see `preflight.check`.

    Args:
        here: whether all of the service will run on this machine.

    Returns:
        The configuration that `start` takes.

    Raises:
        RolloutError: the configuration cannot be used, or another module hides one of our packages.
    """
    check_packages()
    prepared = preflight.check(config, here=here)
    if config.policy.engine != "http":
        threading.Thread(target=_import_serve, name="rollout-import-serve", daemon=True).start()
    return prepared


def _import_serve() -> None:
    """Import Ray Serve while Ray starts: the import takes most of a second, and starting Ray is mostly waiting."""
    import deploy.application  # noqa: F401


def start(config: RolloutConfig, owner: str | None, phases: Phases | None = None) -> Service:
    """Start coordinator, fleet, policy replicas and environment actors; see `deploy.service.start`.

    Args:
        config: as `prepared` gives it.
        owner: id of the client with which the service ends; None: it runs until it is stopped.
        phases: what was timed before.

    Raises:
        RolloutError: something did not start.
    """
    from deploy import service

    return service.start(config, owner, phases)


def stop(config: RolloutConfig, started: Service) -> None:
    """Stop what `start` started."""
    from deploy import service

    service.stop(config, started)


def check_packages() -> None:
    """Check that `import actors` and `import deploy` find our packages, in this process and in the workers that Ray
    starts for it.

    Raises:
        ServiceError: a module of the same name hides one of them, or they are not installed.
    """
    for package in _PACKAGES:
        ours = _HOME / package / "__init__.py"
        found = _found_here(package)
        if found is None:
            raise ServiceError(
                f"The package {package} is missing beside {_HOME / 'rollout_service'}.",
                "Install tau2-rollout-service again: its wheel brings the packages rollout_service, actors and deploy.",
            )
        if not _is_ours(found):
            raise _hidden(package, found, ours, "`import {package}` finds {found}")
        found = hiding(package, _searched_first_by_workers())
        if found is not None:
            said = "Ray's workers search {found.parent} first, so their `import {package}` would find {found}"
            raise _hidden(package, found, ours, said)


def hiding(package: str, folders: Sequence[str]) -> Path | None:
    """The file that `import` would take for the package if it searched these folders first; None: it takes ours."""
    spec = PathFinder.find_spec(package, list(folders))
    if spec is None or spec.origin is None or _is_ours(Path(spec.origin)):
        return None  # without an origin it is a folder without __init__.py, which hides no package
    return Path(spec.origin)


def _found_here(package: str) -> Path | None:
    """The file that `import` takes for the package in this process."""
    module = sys.modules.get(package)
    spec = importlib.util.find_spec(package) if module is None else None
    origin = spec.origin if spec is not None else getattr(module, "__file__", None)
    return None if origin is None else Path(origin)


def _searched_first_by_workers() -> list[str]:
    """Folders that Ray puts in front of its workers' module path: those of the script and of this process. Where the
    job has a working_dir, that is in front instead, and in a job this process searches it as well."""
    if cluster.has_working_dir():
        return []
    script = os.path.dirname(os.path.realpath(sys.argv[0])) if sys.argv else ""
    return [os.getcwd(), *([script] if script in sys.path else [])]


def _is_ours(found: Path) -> bool:
    """Whether the file is of the package beside this library, or beside another copy of it: whoever starts an installed
    service inside a checkout has Ray's workers import all three packages from there."""
    beside = found.parents[1] / "rollout_service" / Path(__file__).name
    return found.name == "__init__.py" and beside.exists()


def _hidden(package: str, found: Path, ours: Path, said: str) -> ServiceError:
    where = found.parent if found.name == "__init__.py" else found
    return ServiceError(
        f"{said.format(package=package, found=found)}, which hides rollout_service's own package {ours.parent}.",
        f"Rename {where}, or start from another folder.",
    )
