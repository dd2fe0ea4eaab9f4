"""The trainer process of the benchmark `updates`: it reads cases, a line each, and answers each with a line of JSON.

Every version's weights are the same but for the final norm, which is multiplied by a number that follows from the
version. So logits are multiplied by it, keys and values stay right for every version, and one forward pass gives a
token's log-prob under any version. The log-probs of finished episodes must be those of each token's own version.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import psutil
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rollout_service import RolloutClient, RolloutConfig
from rollout_service.collecting.stream import GroupStream
from rollout_service.errors import WeightError, first_line
from rollout_service.record.trajectory import Outcome, TokenSegment, Trajectory
from tests.support import tiny_model

SERVICE, NAMESPACE = "updates", "rollout_service"
REFUSED, KILLED, STORE, DISK = "NCCL_CUMEM_ENABLE=1", "replica killed", "object store", "checkpoint"
UPDATES = {"abort_and_resume": 20, "in_place": 20, "drain": 20, STORE: 8, DISK: 8, "afterwards": 3}
"""Numbers of updates on a GPU. Those of a mode go through a process group, as those after the kill do."""
CASES = (REFUSED, "abort_and_resume", "in_place", "drain", STORE, DISK, KILLED, "afterwards")

_NORM = "model.norm.weight"
_FACTORS = (1.0, 1.5, 0.5, 2.0)
"""Of a version's logits; exact in bfloat16. Versions that follow one another differ by 0.5 or more."""
_SEGMENT_TOKENS, _VERSION_TOKENS = 32, 64
"""Most tokens of a version that are looked at: in one segment, and in all."""
_SEEN_SECONDS = 30.0
"""Until an episode that began to sample with new weights has ended."""
_GROUP_SECONDS = 60.0
"""Longest wait in a process group."""


def factor(version: int) -> float:
    """What the logits of the model on disk are multiplied by in this version."""
    return _FACTORS[version % len(_FACTORS)]


def folder_of(models: list[str], version: int) -> str:
    """The folder of `make_models` that holds this version's weights."""
    return models[version % len(_FACTORS)]


def make_models(folder: Path, shape: dict[str, Any]) -> list[str]:
    """Write a checkpoint for each factor, the first one that of version 0. They share the files that are alike."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        first = tiny_model.make(folder / "0", max_shard_size="200MB", **shape)
    torch.cuda.empty_cache()
    for number, value in enumerate(_FACTORS[1:], 1):
        other = folder / str(number)
        other.mkdir()
        for path in first.iterdir():
            if path.suffix == ".safetensors" and _holds_norm(path):
                tensors = load_file(path)
                save_file(tensors | {_NORM: tensors[_NORM] * value}, other / path.name, {"format": "pt"})
            else:
                (other / path.name).symlink_to(path)
    return [str(folder / str(number)) for number in range(len(_FACTORS))]


def _holds_norm(path: Path) -> bool:
    with safe_open(path, framework="pt") as tensors:
        return _NORM in tensors.keys()  # noqa: SIM118


def kill_the_replica(starter: int) -> bool:
    """Kill the policy's replica among the processes that the process `starter` started, and theirs. Whether there was
    one."""
    killed = False
    for process in psutil.Process(starter).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith(f"ray::ServeReplica:{SERVICE}-policy:"):
                process.send_signal(signal.SIGKILL)
                killed = True
    return killed


class _Killing(dict[str, Any]):
    """Weights; the replica is killed when half of them are sent."""

    killed = 0.0
    """`time.monotonic()`; 0: not yet."""

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        for number, tensor in enumerate(super().values()):
            if number == len(self) // 2:
                time.sleep(2)  # the replica is receiving by now
                assert kill_the_replica(os.getppid()), "there is no replica"
                self.killed = time.monotonic()
            yield tensor


class _Reader:
    """Reads a stream in a thread, until it ends or has been read enough."""

    def __init__(self, stream: GroupStream) -> None:
        self.trajectories: list[Trajectory] = []
        self._stream = stream
        self._enough = False
        self._came = threading.Condition()
        self._newest = -1
        self._ended = concurrent.futures.ThreadPoolExecutor(1).submit(self._read)

    def _read(self) -> None:
        with contextlib.closing(self._stream):
            for group in self._stream:
                with self._came:
                    self.trajectories += group
                    versions = [int(s.weight_versions.max()) for each in group for s in each.segments]
                    self._newest = max([self._newest, *versions])
                    self._came.notify_all()
                if self._enough:
                    return

    def wait_for(self, version: int) -> None:
        """Wait until an episode has ended that has tokens of this version or a newer one, or for `_SEEN_SECONDS`."""
        with self._came:
            self._came.wait_for(lambda: self._newest >= version or self._ended.done(), _SEEN_SECONDS)

    def all(self) -> list[Trajectory]:
        """The stream's trajectories, to its end."""
        self._ended.result()
        return self.trajectories

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what has not come."""
        self._enough = True
        self._ended.result()


class Trainer:
    """Sends weights as a trainer would, and compares what was sampled with them."""

    def __init__(self, address: str, models: list[str], device: str, episodes: int) -> None:
        """
        Args:
            models: those of `make_models`.
            episodes: number that a killed replica must not lose.
        """
        self._models = models
        self._device = torch.device(device)
        self._on_gpu = self._device.type == "cuda"
        if self._on_gpu:
            torch.cuda.set_device(self._device)
        dtype = torch.bfloat16 if self._on_gpu else torch.float32
        model = transformers.AutoModelForCausalLM.from_pretrained(models[0], dtype=dtype)
        self._model = model.to(self._device).eval()
        self._weights = self._model.state_dict()
        self._address = address
        self._episodes = episodes

    def play(self, case: str) -> dict[str, Any]:
        """What the case of `CASES` gave."""
        if case == REFUSED:
            return self._refused()
        return self._killed() if case == KILLED else self._updated(case)

    @functools.cached_property
    def _client(self) -> RolloutClient:
        """Made for the first case: the model is loaded while the service starts."""
        config = RolloutConfig.load(overrides={"service.name": SERVICE}, environ={})
        return RolloutClient(self._address, config=config)

    def _refused(self) -> dict[str, Any]:
        try:
            self._group().close()
        except WeightError as error:
            return {"refusal": str(error)}
        return {"refusal": ""}

    def _group(self) -> Any:
        backend: Literal["nccl", "gloo"] = "nccl" if self._on_gpu else "gloo"
        return self._client.weight_group(backend, timeout_seconds=_GROUP_SECONDS)

    def _sent(self, version: int) -> dict[str, Any]:
        return self._weights | {_NORM: self._weights[_NORM] * factor(version)}

    def _updated(self, case: str) -> dict[str, Any]:
        """Updates one after the other, each when the one before shows in an episode."""
        client = self._client
        versions, whole, stopped = [client.weight_version()], [], []
        mode: Any = case if case in ("in_place", "drain") else "abort_and_resume"
        through_group = case not in (STORE, DISK)
        with (
            _Reader(client.stream(endless=True)) as reader,
            self._group() if through_group else contextlib.nullcontext() as group,
        ):
            reader.wait_for(versions[0])
            for _ in range(UPDATES[case] if self._on_gpu else 3):
                version = versions[-1] + 1
                sent = folder_of(self._models, version) if case == DISK else self._sent(version)
                begun = time.monotonic()
                report = client.update_weights(sent, version=version, group=group, mode=mode)
                whole.append(round(time.monotonic() - begun, 3))
                stopped.append(round(max(state.stopped_seconds for state in report.replicas), 3))
                versions.append(version)
                reader.wait_for(version)
        return {"whole": whole, "stopped": stopped} | self._compared(reader.trajectories, versions)

    def _killed(self) -> dict[str, Any]:
        """The replica is killed in mid-update. Its successor has the weights that came from a disk before."""
        version = self._client.weight_version() + 1
        self._client.update_weights(folder_of(self._models, version), version=version)
        with _Reader(self._client.stream(self._episodes)) as reader, self._group() as group:
            reader.wait_for(version)
            sent = _Killing(self._sent(version + 1))
            try:
                self._client.update_weights(sent, version=version + 1, group=group)
                error = ""
            except WeightError as raised:
                error = str(raised)
            until_error = time.monotonic() - sent.killed
            before = len(reader.trajectories)
            trajectories = reader.all()
        return {
            "error": error,
            "until_error": round(until_error, 2),
            "asked": self._episodes,
            "played": sum(each.outcome is not Outcome.ABORTED for each in trajectories),
            "after_the_error": len(trajectories) - before,
            "until_end": round(time.monotonic() - sent.killed, 1),
            "attempts": dict(Counter(str(each.attempt) for each in trajectories)),
        } | self._compared(trajectories, [version])

    def _compared(self, trajectories: list[Trajectory], versions: list[int]) -> dict[str, Any]:
        """Mean absolute differences of log-probs, of a sample of tokens of each version."""
        left = Counter(dict.fromkeys(versions, _VERSION_TOKENS))
        own: list[torch.Tensor] = []
        other: list[torch.Tensor] = []
        for segment in (segment for each in trajectories for segment in each.segments):
            places: list[int] = []
            for version in set(segment.weight_versions.tolist()) & set(left):
                found = np.flatnonzero(segment.weight_versions == version)[: min(left[version], _SEGMENT_TOKENS)]
                left[version] -= len(found)
                places += found.tolist()
            if places:
                differences = self._differences(segment, np.array(places))
                own.append(differences[0])
                other.append(differences[1])
        return {
            "versions": len(versions),
            "versions_seen": sum(left[version] < _VERSION_TOKENS for version in versions),
            "tokens": sum(map(len, own)),
            "own": float(torch.cat(own).mean()),
            "own_worst": float(torch.cat(own).max()),
            "other": float(torch.cat(other).mean()),
        }

    @torch.no_grad()
    def _differences(self, segment: TokenSegment, places: npt.NDArray[np.int64]) -> torch.Tensor:
        """float32[2, n]: of the tokens at these places, under their own version and under the next one."""
        ids = torch.as_tensor(segment.token_ids[: places.max() + 1].astype(np.int64), device=self._device)
        hidden = self._model.model(ids[None]).last_hidden_state[0, places - 1]
        logits = self._model.lm_head(hidden).float()
        chosen = ids[places][:, None]
        recorded = torch.as_tensor(segment.logprobs[places], device=self._device)

        def off(ahead: int) -> torch.Tensor:
            factors = [factor(int(version) + ahead) for version in segment.weight_versions[places]]
            scaled = logits * torch.tensor(factors, device=self._device)[:, None]
            return (torch.log_softmax(scaled, dim=-1).gather(1, chosen)[:, 0] - recorded).abs().cpu()

        return torch.stack([off(0), off(1)])


def main(told: str) -> None:
    """Answer the cases that come, to the end of the input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    trainer = Trainer(**json.loads(told))
    for line in sys.stdin:
        try:
            found = trainer.play(line.strip())
        except Exception as error:
            traceback.print_exc()
            found = {"failed": first_line(error)}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
