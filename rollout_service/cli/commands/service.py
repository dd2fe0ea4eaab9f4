"""`service`: a service of its own, which lives on a Ray cluster until it is stopped.

Invariant: `list`, `status` and `stop` also find what a dead service left behind, and touch only what belongs to the
service that they name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollout_service.cli.options import Config, Settings, Tokenizer, read_settings
from rollout_service.cli.service_table import at, ends, service_table, watched
from rollout_service.cli.stderr import say
from rollout_service.config.service import Service
from rollout_service.errors import ServiceError

if TYPE_CHECKING:
    from rollout_service.services import Parts

Address = Annotated[str, typer.Option(help="The Ray cluster: auto, or its address.")]
Name = Annotated[str, typer.Argument(help="Its service.name.")]
Namespace = Annotated[str, typer.Option(help="Its service.namespace.")]

_DEFAULTS = Service()

service = typer.Typer(no_args_is_help=True, help="A service that lives on a Ray cluster until it is stopped.")


@service.command()
def start(
    address: Address = "auto", config: Config = None, settings: Settings = None, tokenizer: Tokenizer = None
) -> None:
    """Start a service that any client can use, and that lives until `service stop`. Returns when it is ready."""
    import rollout_service.cluster as cluster
    import rollout_service.config.secrets as secrets
    import rollout_service.embedded as embedded

    loaded = read_settings(config, settings, tokenizer)
    secrets.know(loaded)
    prepared = embedded.prepared(loaded)
    name, namespace = prepared.service.name, prepared.service.namespace
    _connect(address)
    say(f"Starting service {name} …")
    status = cluster.call(embedded.start(prepared, owner=None).coordinator.status.remote())
    own = {"name": name, "namespace": namespace}
    chosen = "".join(f" --set service.{key}={value}" for key, value in own.items() if value != getattr(_DEFAULTS, key))
    there = at(address) + ("" if namespace == _DEFAULTS.namespace else f" --namespace {namespace}")
    print(f"Service {name} is ready; environment actors: {status['actors']}, slots: {status['slots']}.")
    print(f"Collect:  rollout-service collect --address {address}{chosen} …")
    print(f"Watch it: rollout-service service status {name}{there} --watch")
    print(f"Stop it:  rollout-service service stop {name}{there}")


@service.command()
def status(
    name: Name = _DEFAULTS.name,
    address: Address = "auto",
    namespace: Namespace = _DEFAULTS.namespace,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
) -> int:
    """Show what a service does. The exit code is 1 if it is not ready for collections."""
    from rich.console import Console

    import rollout_service.services as services

    def look() -> tuple[Parts, dict[str, Any]]:
        found = _found(name, address, namespace)
        return found, services.report(found)

    if watch:
        found, report = watched(look, address, Console())
    else:
        found, report = look()
        Console().print(service_table(found, report, address))
    return 0 if report["state"] == "running" else 1


@service.command()
def stop(name: Name, address: Address = "auto", namespace: Namespace = _DEFAULTS.namespace) -> None:
    """Stop a service: its collections end, and its actors and replicas go. Also removes what a dead one left."""
    import rollout_service.services as services

    found = _found(name, address, namespace)
    services.stop(found)
    print(f"Service {name} was stopped: {found}.")


@service.command("list")
def list_all(address: Address = "auto") -> None:
    """List every service on the cluster, and what dead ones left behind."""
    from rich.console import Console
    from rich.table import Table

    import rollout_service.services as services

    _connect(address)
    table = Table("service", "namespace", "state", "ends", "actors", "slots", "running", "collections", "clients")
    dead = []
    for parts in services.find_all():
        report = services.report(parts)
        counts = [str(report.get(key, "–")) for key in ("actors", "slots", "running")]
        sizes = [str(len(report[key])) if key in report else "–" for key in ("collections", "clients")]
        table.add_row(parts.name, parts.namespace or "–", report["state"], ends(report), *counts, *sizes)
        dead += [parts] if report["state"] == "dead" else []
    Console().print(table)
    for parts in dead:
        say(f"Service {parts.name} is dead and left {parts}. Remove it with: {parts.stop_command}{at(address)}")


def _connect(address: str) -> None:
    import rollout_service.cluster as cluster

    if not cluster.connected():
        cluster.connect(address, _DEFAULTS.namespace)


def _found(name: str, address: str, namespace: str) -> Parts:
    """What there is of the service on the cluster.

    Raises:
        ServiceError: nothing.
    """
    import rollout_service.services as services

    _connect(address)
    found = services.find(name, namespace)
    if found is None:
        raise ServiceError(
            f"There is no service named {name!r} in the namespace {namespace!r} on this cluster.",
            "See all with `rollout-service service list`.",
        )
    return found
