"""Output: the file that a collection is stored in, and what it says about what is still to be collected.

Invariant: a file is changed only after the service has accepted the collection, so a refusal costs nothing. Resumed to
its end, it holds each episode of its collection once, as if nothing had interrupted it. Aborted episodes are played
again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import rollout_service.attaching as attaching
import rollout_service.config.arguments as arguments
from rollout_service.collecting.continuation import Continuation
from rollout_service.collecting.request import CollectionRequest
from rollout_service.collecting.stream import GroupStream
from rollout_service.config import RolloutConfig, task_file
from rollout_service.config.shaping import UNKNOWN_UNTIL_STARTED, shaping
from rollout_service.errors import StorageError, TaskError
from rollout_service.record.identities import Identity, identities
from rollout_service.record.manifest import Asked, Manifest, manifest_path, read_manifest
from rollout_service.record.parquet import unfinished_part
from rollout_service.record.removal import remove_aborted
from rollout_service.record.storage import TrajectoryWriter, check_can_grow, check_path, check_place, finish_replacement
from rollout_service.record.trajectory import Outcome, Trajectory
from rollout_service.redaction import shown

Mode = Literal["new", "append", "resume", "overwrite"]

_SELECTION = ("domain", "split", "ids", "shuffle", "seed", "sampler")
"""Settings of `tasks`, which are fields of a request too."""

_CONTENTS = "tasks.contents"
"""Beside the settings: hash of each task of `tasks.path`, by id. It is left out where that file cannot be read."""

_MOST_SHOWN = 5
"""Differences that an error names."""


class Output:
    """One file, and the collection that goes into it next."""

    def __init__(self, path: str | Path, mode: Mode = "new") -> None:
        """Look at the file. Changes nothing, but finishes the replacement of a Parquet folder that was cut off.

        Args:
            path: ends in `.jsonl` or `.parquet`.
            mode: `new`: the file must not exist. `append`: add a collection of other tasks and seeds than those in the
                file. `resume`: complete the file's last collection. `overwrite`: replace the file by the collection
                once its first group is there. A file that does not exist is begun in each of them.

        Raises:
            StorageError: the ending is unknown, the file exists and should be new, cannot be written, or is damaged. Or
                it is to be resumed and nothing says what was asked for when it was collected.
        """
        self.path = arguments.path("path", path, StorageError)
        self.mode = arguments.choice("mode", mode, get_args(Mode), StorageError)
        finish_replacement(self.path)
        check_path(self.path, may_exist=mode != "new")
        check_place(self.path)
        self._stored: list[Identity] = []
        self._manifest = Manifest([])
        if mode in ("append", "resume") and self.path.exists():
            check_can_grow(self.path)
            self._stored = list(identities(self.path))
            self._manifest = self._known()
        self._last = self._manifest.collections[-1] if mode == "resume" and self._manifest.collections else None
        self._settings: dict[str, Any] = {}

    def _known(self) -> Manifest:
        """The manifest, with the file's collections of which it does not know."""
        found = read_manifest(self.path) or Manifest([])
        unknown = sorted({episode.collection_id for episode in self._stored} - found.known)
        if unknown and self.mode == "resume":
            what = "does not name" if found.collections else "is not there to say what was asked for in"
            raise StorageError(
                f"{self.path} cannot be resumed: {manifest_path(self.path)} {what} the file's collection "
                f"{', '.join(unknown)}.",
                "Put it back if it was left behind. Otherwise append to the file, or choose another one.",
            )
        return dataclasses.replace(found, others=[*found.others, *unknown])

    @property
    def stored(self) -> int:
        """Episodes in the file that belong to the collection that is resumed, without the aborted ones."""
        return len(self._done())

    @property
    def aborted(self) -> int:
        """Episodes of that collection in the file that a fault ended. They are played again."""
        return sum(episode.aborted for episode in self._of_last())

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to resume."""
        return self._last is not None and self.stored == self._last.episodes

    @property
    def collection_id(self) -> str | None:
        """Id of the collection that is resumed; None: none is. A service with a journal may have it open still, see
        `RolloutClient.reopen`: then what is finished need not be played again."""
        return None if self._last is None else self._last.collection_id

    @property
    def left(self) -> int:
        """Episodes of the collection that is resumed which the file lacks, the aborted ones among them."""
        return 0 if self._last is None else self._last.episodes - self.stored

    def lacking(self, group: Iterable[Trajectory]) -> list[Trajectory]:
        """Those of a reopened collection's trajectories that belong in the file: it lacks them, and they are not
        aborted. The others were written before they could be acknowledged, or are to be played again."""
        stored = {(episode.group_id, episode.sample_index) for episode in self._of_last() if not episode.aborted}
        came = [each for each in group if each.outcome is not Outcome.ABORTED]
        return [each for each in came if (each.group_id, each.sample_index) not in stored]

    def dated(self, own: RolloutConfig) -> RolloutConfig:
        """The settings for a service that is started to resume the file: with the date that the file's prompts have,
        unless `own` sets one. Without it, a file could be resumed only on the day on which it was begun."""
        date = None if self._last is None else self._last.settings.get("policy.date")
        if date is None or own.policy.date is not None:
            return own
        return own.model_copy(update={"policy": own.policy.model_copy(update={"date": date})})

    def ask(
        self,
        own: RolloutConfig,
        running: RolloutConfig,
        *,
        n: int | None = None,
        group_size: int | None = None,
        **selection: Any,
    ) -> dict[str, Any]:
        """The arguments of `RolloutClient.stream` for the collection that goes into the file next.

        Args:
            own: the settings that the client was given.
            running: those of the service, `client.config`; before a service is started for this client, `own`.
            n, group_size, selection: as for `RolloutClient.stream`. Where the file is resumed, what is left out, or
                None, is as the file's collection had it; so are the settings of `tasks`.

        Raises:
            StorageError: the file is resumed, and was collected with other settings. Names them.
            RolloutError: as `RolloutClient.stream` raises it.
        """
        size = 1 if group_size is None else group_size
        request = attaching.collection_request(own, running, selection, n=n, group_size=size)
        if request.endless:
            raise StorageError("endless is True, but what a file lacks must have an end.", "Give n.")
        if request.keep is not None:
            text = f"keep is {shown(request.keep)}: nobody could say later which tasks such a file lacks."
            raise StorageError(text, "Write the groups of client.stream with a TrajectoryWriter.")
        self._settings = _settings(running, request)
        asked = {"n": n, "group_size": size, **selection}
        if self._last is not None:
            counts = {"n": n, "group_size": group_size}
            given = {name for name in _SELECTION if getattr(request, name) is not None}
            given |= {"seed"} if "tasks.seed" in own.explicit() else set()
            self._check(self._last, {k: v for k, v in counts.items() if v is not None}, given, running)
            chosen = {name: _with_defaults(self._last)[f"tasks.{name}"] for name in _SELECTION}
            continues = Continuation(self._last.first_draw, self._last.collection_id, self._done())
            return asked | chosen | {"n": self._last.n, "group_size": self._last.group_size, "continues": continues}
        if first_draw := self._next_draw():
            asked |= {"seed": self._settings["tasks.seed"], "continues": Continuation(first_draw)}
        return asked

    def _check(self, last: Asked, counts: dict[str, int], given: set[str], running: RolloutConfig) -> None:
        """Check that the file's last collection goes on with the settings that it was begun with."""
        pairs = [(name, getattr(last, name), value) for name, value in counts.items()]
        earlier = _with_defaults(last)
        for dotted, now in self._settings.items():
            if dotted == _CONTENTS:
                continue
            section, _, name = dotted.partition(".")
            then = earlier[dotted]
            unsaid = dotted in UNKNOWN_UNTIL_STARTED and None in (then, now)
            chosen = name in _SELECTION and name not in given
            inherited = section == "tasks" and chosen and not (name == "ids" and running.tasks.ids)
            if not unsaid and not inherited:
                pairs.append((dotted, then, now))
        differences = [_difference(*pair) for pair in pairs if pair[1] != pair[2]]
        differences += _changed_tasks(last.settings.get(_CONTENTS), self._settings.get(_CONTENTS))
        if differences:
            more = f" and {len(differences) - _MOST_SHOWN} more" if len(differences) > _MOST_SHOWN else ""
            raise StorageError(
                f"{self.path} was collected with other settings: {'; '.join(differences[:_MOST_SHOWN])}{more}.",
                "Resume it with its own settings, or append a collection with these, or choose another file.",
            )

    def _make_room(self) -> None:
        """Drop a last part that breaks off, and the aborted episodes of the collection that is resumed."""
        try:
            if (torn := unfinished_part(self.path)) is not None:
                torn.unlink()
            if self._last is not None and self.aborted:
                remove_aborted(self.path, self._last.collection_id)
        except OSError as error:
            raise _written(self.path, error) from error

    def _of_last(self) -> Iterator[Identity]:
        last = None if self._last is None else self._last.collection_id
        return (episode for episode in self._stored if episode.collection_id == last)

    def _done(self) -> tuple[tuple[int, int, int], ...]:
        """Group number, sample index and seed of the stored episodes of the collection that is resumed."""
        ended = (episode for episode in self._of_last() if not episode.aborted)
        places = {(episode.group, episode.sample_index): episode.seed for episode in ended}
        return tuple((group, sample, seed) for (group, sample), seed in places.items() if group is not None)

    def _next_draw(self) -> int:
        """Number of tasks of the selection's sequence that the file's collections drew.

        Of a collection without a manifest, which an older release wrote, the number of its groups is known. It began at
        the first draw unless others had drawn from its service before.
        """
        tasks = {name: value for name, value in self._settings.items() if name.startswith("tasks.")}
        same = [asked for asked in self._manifest.collections if tasks.items() <= _with_defaults(asked).items()]
        draws = [asked.next_draw for asked in same]
        others = set(self._manifest.others)
        draws += [(e.group or 0) + 1 for e in self._stored if e.collection_id in others]
        return max(draws, default=0)

    @contextmanager
    def writing(self, stream: GroupStream, asked: dict[str, Any]) -> Iterator[TrajectoryWriter]:
        """Open the file for the groups of `stream`, which is open, and note there what was asked for. Aborted episodes
        that are played again are taken out of it.

        Args:
            asked: what `ask` returned and `stream` was made with.

        Raises:
            StorageError: the file cannot be written.
        """
        goes_on = self.mode in ("append", "resume")
        if goes_on:
            self._make_room()
        assert stream.episodes is not None, "`ask` refuses what is endless"
        with TrajectoryWriter(self.path, append=goes_on, overwrite=self.mode == "overwrite") as writer:
            if self._last is None:
                this = Asked(
                    stream.collection_id,
                    asked["n"],
                    asked["group_size"],
                    stream.first_draw,
                    stream.episodes,
                    self._settings,
                )
                _write(dataclasses.replace(self._manifest, collections=[*self._manifest.collections, this]), writer)
            yield writer


def _with_defaults(asked: Asked) -> dict[str, Any]:
    """A collection's settings. Those that its release did not have are at their defaults."""
    return shaping(RolloutConfig()) | asked.settings


def _difference(name: str, then: Any, now: Any) -> str:
    return f"{name} was {shown(then, name)} and is {shown(now, name)}"


def _changed_tasks(then: dict[str, str] | None, now: dict[str, str] | None) -> list[str]:
    """How the file of tasks changed. Nothing, where one of the two is not known."""
    words = task_file.difference(then, now) if then and now else ""
    return [f"tasks.path has other contents: {words}"] if words else []


def _written(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} could not be written: {error}.", "Make room, or choose another folder.")


def _write(manifest: Manifest, writer: TrajectoryWriter) -> None:
    try:
        manifest.write(writer.written)
    except OSError as error:
        raise _written(manifest_path(writer.path), error) from error


def _settings(running: RolloutConfig, request: CollectionRequest) -> dict[str, Any]:
    """The settings that shape the request's trajectories, its own over those of the service, as JSON values."""
    own: dict[str, Any] = {f"tasks.{name}": getattr(request, name) for name in _SELECTION}
    if request.domain not in (None, running.tasks.domain) and request.ids is None:
        own["tasks.ids"] = []  # the service's are those of its own domain
    if request.max_turns is not None:
        own["limits.max_turns"] = request.max_turns
    if request.sampling is not None:
        sampled = request.sampling.model_dump(mode="json")
        own |= {f"policy.sampling.{name}": value for name, value in sampled.items()}
    settings = shaping(running) | {name: value for name, value in own.items() if value is not None}
    if running.tasks.path is not None:
        with contextlib.suppress(TaskError):  # the file may be on the service's machines alone
            settings[_CONTENTS] = task_file.hashes(running.tasks.path)
    return settings | ({"tasks.ids": None} if settings["tasks.ids"] == [] else {})
