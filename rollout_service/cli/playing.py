"""Playing: a collection from the command line, from the settings to the last group.

Invariant: what can be refused is refused before a service is started. An existing output file is changed only once the
service has accepted the collection, and what was written stays, whatever ends the command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rollout_service.cli.stderr import say
from rollout_service.config import RolloutConfig
from rollout_service.errors import BudgetReached, ConfigError, ServiceError

if TYPE_CHECKING:
    from rollout_service.record.statistics import Summary


class Place(NamedTuple):
    """Which service plays."""

    address: str | None
    """None: one that is started for this command alone."""
    token_var: str | None
    start: bool
    """Whether to start it at the address, if it does not run."""


class Played(NamedTuple):
    """How a collection ended."""

    progress: Any
    """`CollectionProgress`. None: the output file had everything, so nothing was played."""
    limit: str
    """The budget's limit that ended it early; empty: none did."""
    config: RolloutConfig
    """The service's settings."""


@contextmanager
def opened(output: Path | None, how: Any) -> Iterator[Any]:
    """Give the `Output` with its lock held; None: there is no file.

    Args:
        how: as `mode` gives it.

    Raises:
        StorageError: the file cannot be used so, or another process writes to it.
    """
    from rollout_service.output import Output
    from rollout_service.record.writing_lock import writing_lock

    if output is None:
        yield None
    else:
        with writing_lock(output):
            yield Output(output, how)


def play(
    place: Place,
    file: Any,
    loaded: RolloutConfig,
    chosen: Mapping[str, Any],
    count: Callable[[list[Any]], None] = lambda group: None,
) -> Played:
    """Play a collection, into the file if there is one.

    Args:
        file: an `Output`, whose lock is held; None: trajectories are not kept.
        loaded: the settings that the command was given.
        chosen: fields of the collection: `n`, `group_size`, and others by name. None sets nothing.
        count: called with each group.

    Raises:
        RolloutError: the settings or the file cannot be used, or the service was lost.
    """
    from rollout_service.client import RolloutClient
    from rollout_service.collecting.request import CollectionRequest

    address, token_var, start = place
    if file is not None and (address is None or start):
        loaded = file.dated(loaded)
    if address is None:
        _asked(file, loaded, loaded, chosen)  # refused here, before a service is started
    else:  # that service's settings are not known yet
        size = 1 if chosen["group_size"] is None else chosen["group_size"]
        CollectionRequest(n=chosen["n"], group_size=size, seed=chosen["seed"], weight=chosen["weight"])
    if file is not None and file.is_complete:
        say(f"{file.path} has all {file.stored} episodes of its collection already.")
        return Played(None, "", loaded)
    say("Starting the service …" if address is None or start else f"Connecting to {address} …")
    begin = None if address is None else start
    with RolloutClient(address, config=loaded, start=begin, token_var=token_var) as client:
        progress, limit = play_with(client, file, loaded, chosen, count)
    return Played(progress, limit, client.config)


def play_with(
    client: Any,
    file: Any,
    own: RolloutConfig,
    chosen: Mapping[str, Any],
    count: Callable[[list[Any]], None] = lambda group: None,
) -> tuple[Any, str]:
    """The same with a client. Returns the progress, and the budget's limit that ended it early, if one did."""
    from rollout_service.output import Output

    asked, earlier = _asked(file, own, client.config, chosen), None
    if file is not None and (stream := _reopened(client, file, chosen)) is not None:
        # Without the first collection's budget it goes on.
        earlier, _ = _read(stream, file, asked, count, is_reopened=True)
        file = Output(file.path, "resume")
        if file.is_complete:
            return earlier, ""
        asked = _asked(file, own, client.config, chosen)
    return _read(client.stream(**asked), file, asked, count, earlier)


def _reopened(client: Any, file: Any, chosen: Mapping[str, Any]) -> Any:
    """A stream of the file's last collection where the service's journal has it open, so that what is finished is not
    played again; None: it has not, or the rest is to have a budget or a weight of its own."""
    own = chosen["budget"] or chosen["weight"] is not None
    if file.collection_id is None or client.config.service.journal is None or own:
        return None
    try:
        return client.reopen(file.collection_id)
    except ServiceError:
        return None


def _read(
    stream: Any, file: Any, asked: dict[str, Any], count: Any, earlier: Any = None, *, is_reopened: bool = False
) -> tuple[Any, str]:
    """Read the stream, into the file if there is one. Returns as `play_with`.

    Args:
        earlier: progress of what was read before.
        is_reopened: whether it may give what the file has already.
    """
    from rollout_service.collecting.progress import CollectionProgress

    with (
        contextlib.closing(stream),
        contextlib.nullcontext() if file is None else file.writing(stream, asked) as writer,
        CollectionProgress(file.left if is_reopened else stream.episodes, earlier=earlier) as progress,
    ):
        stream.tell, stream.withheld = progress.waits, progress.withhold
        if file is not None and (file.stored or file.aborted):
            say(f"{file.path} has {file.stored} episodes of {file.stored + file.left}.{_lost(file.aborted)}")
        try:
            for group in stream:
                came = file.lacking(group) if is_reopened else group
                if writer is not None and came:
                    writer.append(came)
                progress.add(came)
                count(came)
        except BudgetReached as error:
            return progress, error.problem
        except (KeyboardInterrupt, ServiceError):
            if writer is not None:
                is_old = writer.written != file.path  # the file that was to be overwritten still has its place
                say(f"{file.path} is as it was." if is_old else f"{writer.count} trajectories are in {file.path}.")
            raise
    return progress, ""


def _lost(aborted: int) -> str:
    return f" {aborted} that were aborted are played again." if aborted else ""


def exit_code(summary: Summary, limit: str, withheld: int = 0) -> int:
    """The command's: 1 if an episode was aborted or withheld, or a budget's limit ended the collection early."""
    return 1 if limit or withheld or any(each.outcomes["aborted"] for each in summary.domains.values()) else 0


def mode(output: Path | None, **flags: bool) -> Any:
    """The mode of the output file, of which at most one flag is set.

    Raises:
        ConfigError: several are, or one is without an output.
    """
    given = [name for name, flag in flags.items() if flag]
    names = " and ".join(f"--{name}" for name in given)
    if len(given) > 1:
        raise ConfigError(f"{names} exclude each other.", "Give one of them.")
    if given and output is None:
        raise ConfigError(f"{names} is given, but no --output.", "Name the file, or leave it out.")
    return given[0] if given else "new"


def _asked(file: Any, own: RolloutConfig, running: RolloutConfig, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `RolloutClient.stream`."""
    import rollout_service.attaching as attaching
    import rollout_service.preflight as preflight

    asked = {**chosen, "group_size": 1 if chosen["group_size"] is None else chosen["group_size"]}
    selection = {name: value for name, value in asked.items() if name not in ("n", "group_size")}
    request = attaching.collection_request(own, running, selection, n=asked["n"], group_size=asked["group_size"])
    if request.budget is not None:
        preflight.check_price(running, request.budget)
    return asked if file is None else file.ask(own, running, **chosen)
