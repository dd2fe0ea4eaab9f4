"""EpisodeTape: the tape as one attempt at an episode sees it.

Invariant: a request gets each recorded answer at most once in an episode, in the order in which they were recorded. So
equal requests get the answers that they got then. An episode follows one recording as long as that has its requests. In
mode `replay` a request without an answer is a final fault.

Attempts that were not finished are replayed only where no finished one has the answer: then the policy or its engine
failed after them, and the attempt that followed is the one whose trajectory was delivered.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Literal

from rollout_service.errors import EpisodeFault, FaultKind, TapeError
from rollout_service.tape.difference import first_difference, nearest
from rollout_service.tape.folder import TapeFolder
from rollout_service.tape.recording import Entry, Recording, RecordingWriter, Take
from rollout_service.tape.request import ModelRequest

_MOST_COMPARED = 50
"""Most recordings of a task that are looked through for the request that is nearest to one without an answer."""

_KIND = FaultKind.SERVICE
"""The model is not to blame for what the tape lacks, and no pause brings it."""


class _Answers:
    """A recording's answers by request."""

    def __init__(self, recording: Recording) -> None:
        self.entries: dict[str, list[Entry]] = defaultdict(list)
        for entry in recording.entries:
            self.entries[entry.key].append(entry)

    def get(self, key: str, number: int) -> Entry | None:
        found = self.entries.get(key, ())
        return found[number] if number < len(found) else None


class EpisodeTape:
    """Finds recorded answers, and records new ones. One thread at a time may use it."""

    def __init__(
        self,
        folder: TapeFolder,
        mode: Literal["record", "replay", "replay_or_record"],
        take: Take,
        task: Callable[[], dict[str, Any]],
    ) -> None:
        """
        Args:
            task: gives the task's content, as JSON values.
        """
        self._folder = folder
        self._mode = mode
        self._take = take
        self._task = task
        self._recorded: list[_Answers] | None = None
        self._given: Counter[str] = Counter()
        """Answers so far, by the key of their request."""
        self._entries: list[Entry] = []
        """All answers so far, until a file is made for them."""
        self._writer: RecordingWriter | None = None

    @property
    def asks_nobody(self) -> bool:
        """Whether every answer comes from the tape."""
        return self._mode == "replay"

    @property
    def may_answer(self) -> bool:
        """Whether an answer can come from the tape."""
        return self._mode != "record"

    def find(self, asked: str, request: ModelRequest, key: str, more: int = 0) -> Entry | None:
        """The recorded answer to a request. None: it is to be asked.

        Args:
            asked: `user`, `judge` or `review`.
            key: the request's.
            more: equal requests that were answered and not yet passed to `note`.

        Raises:
            EpisodeFault: in mode `replay` the tape has no answer; says how the nearest request differs.
        """
        if self._mode == "record":
            return None
        try:
            if self._recorded is None:
                self._recorded = [_Answers(each) for each in self._folder.recordings(self._take)]
            number = self._given[key] + more
            for position, answers in enumerate(self._recorded):
                entry = answers.get(key, number)
                if entry is not None:
                    self._recorded.insert(0, self._recorded.pop(position))  # the one to follow from now on
                    return entry
            if self._mode == "replay":
                raise EpisodeFault(_KIND, self._miss(asked, request, number), error="NotOnTape", retryable=False)
        except TapeError as error:
            raise EpisodeFault(_KIND, str(error), error="TapeError", retryable=False) from None
        return None

    def _miss(self, asked: str, request: ModelRequest, number: int) -> str:
        take = self._take
        what = (
            f"the tape {self._folder.path} has no answer to this request (mode replay; {asked}, {take.domain} task "
            f"{take.task_id}, sample {take.sample_index}, seed {take.seed})"
        )
        recordings = self._folder.of_same_task(take, _MOST_COMPARED)
        entries = [entry for each in recordings for entry in each.entries if entry.asked == asked]
        if not recordings:
            return f"{what}: nothing is recorded of this task"
        closest = nearest(request, [entry.request for entry in entries])
        if closest is None:
            return f"{what}: nothing is recorded of the {asked}"
        found = first_difference(closest, request)
        if found is None and number:
            return f"{what}: it has {number}, and the episode asks once more"
        if found is None:
            return f"{what}: it is recorded for another sample of the task"
        return f"{what}. First difference from the nearest recorded one: {found}"

    def note(self, entry: Entry, *, is_replayed: bool) -> None:
        """Note that the episode took this answer, and record it.

        Raises:
            EpisodeFault: it cannot be recorded.
        """
        self._given[entry.key] += 1
        if self._mode == "replay":
            return
        self._entries.append(entry)
        if self._writer is None and is_replayed:
            return  # so far, the tape has all of this episode
        try:
            if self._writer is None:
                self._writer = RecordingWriter(self._folder.put_task(self._take, self._task()), self._take)
            while self._entries:
                self._writer.append(self._entries.pop(0))
        except OSError as error:
            raise _unwritten(self._folder, error) from None

    def finish(self, outcome: str) -> None:
        """Note how the episode ended. One that was not finished has no such note.

        Raises:
            EpisodeFault: it cannot be recorded.
        """
        if self._writer is not None:
            try:
                self._writer.finish(outcome)
            except OSError as error:
                raise _unwritten(self._folder, error) from None


def _unwritten(folder: TapeFolder, error: OSError) -> EpisodeFault:
    return EpisodeFault(
        _KIND, f"the tape {folder.path} cannot be written: {error.strerror}", error=type(error).__name__
    )
