"""A pretrained model that learns retail: imitation of scripted episodes, then asynchronous GRPO on a GPU beside
SGLang.

    python -m deploy.examples.retail --output learned --model HuggingFaceTB/SmolLM2-135M-Instruct

The model first imitates scripted episodes of the train split, and of practice tasks that are made up from the domain's
own orders (`deploy.examples.practice`). In them the user words every task differently, the agent looks up what it names
(`deploy.examples.lookups`), sometimes chats, and sometimes writes a call that nobody can read and then the right one.
Each time an episode is imitated its ids have other digits (`deploy.examples.renaming`), so the model has to copy them.
After that it plays the tasks itself and improves by GRPO on groups whose rewards differ, with episodes whose weights
are at most one version old. The weights go to the replicas through a process group. Before, between and after it plays
both splits: pass^1 with a 95% interval over the tasks. Only τ²'s official reward scores anything. With
`--trainer trl`, TRL's GRPOTrainer does the GRPO, and episodes and training take turns; see `deploy.examples.grpo_trl`.

Invariant: the test split is played, and never learned from. All three evaluations play the same tasks with the same
seeds. There the policy writes the likeliest token; in GRPO it samples.

Ray gives a replica the machine's first GPUs; the trainer takes the one that `--device` names, and the imitation also
those of `--imitate-also-on`. Everything also runs on a CPU, with `--engine transformers --device cpu --transfer
tensors`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import ray
import torch
import transformers
import typer
from torch.utils.data import DataLoader

from deploy.examples import lookups, practice, results
from deploy.examples.grpo import Rates, Trainer, own_weights
from deploy.examples.renaming import Digits
from deploy.examples.results import mean_reward, show
from deploy.examples.retail_report import PHASES, SPLITS, report
from rollout_service import RolloutClient, RolloutConfig
from rollout_service.adapters.torch import TrajectoryDataset
from rollout_service.errors import BudgetReached, TaskError, TooFewKept
from rollout_service.policy.weight_group import WeightGroup
from rollout_service.record.trajectory import Trajectory

WITH_DIGIT = re.compile(r"#?\w*\d[\w.]*\w|\d")
"""An id or a number."""

SCRIPT = {"chatter": 0.1, "malformed_call": 0.05}
"""Probabilities in the demonstrations, per action; see `policy.script`."""

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 256}
RATES = Rates(imitation=5e-4, grpo=2e-5)
DEMONSTRATIONS_PER_STEP = 8
STEPS_SORTED = 8
"""With 1, 44% of what a step's rows hold after the opening prompt is padding, and 12% with 8."""

EVALUATION_SEED = 12345
GREEDY = {**SAMPLING, "temperature": 0.0}
"""How the policy is evaluated; τ²-bench's own default."""

MAX_TURNS = 30


def lengthened(config: Any, context: int) -> Any:
    """The model's configuration for a context of so many tokens: where the model has a shorter one, its rotary
    embeddings are scaled by YaRN (arXiv 2309.00071). A third of retail's train tasks does not fit into 8,192 tokens."""
    longest = config.max_position_embeddings
    if context > longest:
        scaling = {"rope_type": "yarn", "factor": context / longest, "original_max_position_embeddings": longest}
        config.rope_parameters = {**config.rope_parameters, **scaling}
        config.max_position_embeddings = context
    return config


def prepared(name: str, folder: Path, context: int, dtype: torch.dtype) -> tuple[Any, Any]:
    """The pretrained model in float32 and its tokenizer. The folder gets both for the service, the model in `dtype`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    config = lengthened(transformers.AutoConfig.from_pretrained(name), context)
    # It is read twice: a cast to `dtype` and back would leave the trainer's rotary frequencies rounded.
    transformers.AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32), tokenizer


def start_ray() -> None:
    """Connect to the cluster that `RAY_ADDRESS` names, or start one on this machine."""
    if not ray.is_initialized():
        ray.init(os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False, log_to_driver=False)


def start(
    domain: str, actors: int, slots: int, context: int, tasks: Path | None = None, **policy: Any
) -> RolloutClient:
    """Start a service with a scripted user who speaks in its own words.

    Args:
        tasks: a file of tasks to play; None: the train split.
    """
    overrides = {
        "tasks": {"domain": domain, **({"path": str(tasks)} if tasks else {"split": "train"})},
        "policy": {"sampling": SAMPLING, "context_length": context, **policy},
        "user": {"kind": "scripted", "script": {"own_words": True}},
        "limits": {"max_turns": MAX_TURNS},
        "service": {
            "name": f"learn-{domain}-{policy['engine']}",
            "actors": actors,
            "slots": slots,
            "max_staleness": 1,
        },
    }
    return RolloutClient(config=RolloutConfig.load(overrides=overrides))


def demonstrated(
    domain: str, folder: Path, number: int, practiced: int, seed: int, service: tuple[int, int, int]
) -> list[Trajectory]:
    """Play so many scripted episodes of each train task, and one of each practice task, retail's with look-ups. Returns
    those that solved theirs without a guess.

    Args:
        folder: of the tokenizer; gets retail's tasks with look-ups.
        practiced: practice tasks; other domains have none.
        service: actors, slots and context, as `start` takes them.
    """
    path, given, made = None, [], []
    if domain == "retail":
        given, made = lookups.of_split("train"), practice.made_up(practiced, seed)
        path = lookups.write(folder / "tasks.json", [*given, *made])
    scripted: dict[str, Any] = {"engine": "scripted", "tokenizer": str(folder), "script": SCRIPT}
    with start(domain, *service, path, **scripted) as client:
        asked: dict[str, Any] = {"seed": seed, "progress": False}
        played = [*client.collect(ids=[task["id"] for task in given] or None, group_size=number, **asked)]
        if made:
            played.extend(client.collect(ids=[task["id"] for task in made], group_size=1, **asked))
    good = [trajectory for trajectory in played if trajectory.reward == 1.0 and grounded(trajectory)]
    tokens = sum(len(segment.token_ids) for trajectory in good for segment in trajectory.segments)
    show({"demonstrations": len(played), "imitated": len(good), "tokens": tokens})
    if not good:
        raise TaskError(f"None of {len(played)} demonstrations of {domain} solved its task.", "Play more of them.")
    return good


def grounded(trajectory: Trajectory) -> bool:
    """Whether each id and number in the agent's calls was read before. Who imitates other calls learns to guess."""
    read = ""
    for message in trajectory.messages:
        called = [call["arguments"] for call in message.get("tool_calls") or [] if call["requestor"] == "assistant"]
        if any(word not in read for word in WITH_DIGIT.findall(json.dumps(called))):
            return False
        read += f" {message.get('content')}"
    return True


class Run:
    """A run's model, settings and results. The results are written after every step."""

    def __init__(self, output: Path, seed: int, trainer: Trainer, domain: str, trials: int, tasks: int | None) -> None:
        self.trainer = trainer
        self._path = output / f"{domain}-{seed}.json"
        self._began = time.monotonic()
        self._played: dict[str, Any] = {
            "domain": domain,
            "trials": trials,
            "tasks": tasks,
            "seed": EVALUATION_SEED,
            "sampling": GREEDY,
            "max_turns": MAX_TURNS,
        }
        self._result: dict[str, Any] = {"seed": seed, "domain": domain, "evaluations": {}, "steps": []}

    def evaluate(self, client: RolloutClient, phase: str) -> None:
        """Play both splits with the weights that are served."""
        for split in SPLITS:
            rate = client.evaluate(**self._played, split=split, progress=False).pass_rates[0]
            found = {"pass_1": rate.value, "interval": rate.interval, "tasks": rate.tasks}
            self._result["evaluations"].setdefault(phase, {})[split] = found
            show({"evaluation": phase, "split": split, **found})
            self._write()

    def imitate(
        self,
        demonstrations: list[Trajectory],
        epochs: int,
        digits: Digits | None,
        seconds: float,
        evaluating: Future[None],
    ) -> None:
        """Imitate, see `Trainer.imitate`, and wait for the evaluation that runs meanwhile. If that fails, its error is
        raised at the imitation's next line of figures."""

        def tell(figures: dict[str, Any]) -> None:
            show(figures)
            if evaluating.done():
                evaluating.result()

        self.trainer.imitate(demonstrations, epochs, DEMONSTRATIONS_PER_STEP, tell, digits, seconds, STEPS_SORTED)
        evaluating.result()

    def improve(self, client: RolloutClient, group: WeightGroup | None, ends: float, groups: int, **asked: Any) -> None:
        """Take steps of so many groups each, whose rewards differ, until all that is asked for was played. No group
        begins after `ends`, a time of `time.monotonic`, nor if too few groups teach anything."""
        if ends < math.inf:
            asked["budget"] = {"wall_seconds": max(1.0, ends - time.monotonic())}
        alike: list[Any] = []
        dataset = TrajectoryDataset(
            client, groups_per_update=groups, keep="informative", on_dropped=alike.append, **asked
        )
        try:
            for taken in DataLoader(dataset, groups, collate_fn=list):
                self.step(client, taken, alike, group)
                alike.clear()
        except (BudgetReached, TooFewKept) as reached:
            print(reached)

    def step(self, client: RolloutClient, groups: list[Any], alike: list[Any], group: WeightGroup | None) -> None:
        """One step of GRPO on these groups; its weights go to the service.

        Args:
            alike: groups that were played meanwhile, in which all rewards are the same. They only count.
        """
        version = client.weight_version()
        batch = list(itertools.chain.from_iterable(groups))
        error = self.trainer.logprob_error(groups[0], version)
        began = time.monotonic()
        learned = self.trainer.improve(groups)
        trained = time.monotonic()
        client.update_weights(own_weights(self.trainer.model), group=group)
        figures = {
            "version": version,
            "staleness": version - min(t.oldest_version for t in batch if t.oldest_version is not None),
            "reward": mean_reward(itertools.chain(batch, *alike)),
            "informative": len(groups) / (len(groups) + len(alike)),
            **learned,
            "logprob_error": error,
            "training_seconds": trained - began,
            "update_seconds": time.monotonic() - trained,
        }
        self.record(figures)

    def record(self, figures: dict[str, Any]) -> None:
        """Add a step's figures to the results. `reward` is among them: the mean of its episodes."""
        figures = {**figures, "seconds": time.monotonic() - self._began}
        self._result["steps"].append(figures)
        show({"step": len(self._result["steps"]), **figures})
        self._write()

    def _write(self) -> None:
        self._result["seconds"] = time.monotonic() - self._began
        results.write(self._path, self._result)


@contextlib.contextmanager
def weights_through(client: RolloutClient, transfer: str) -> Iterator[WeightGroup | None]:
    """The process group that weights go through, or None for Ray's object store."""
    if transfer == "tensors":
        yield None
        return
    with client.weight_group(backend=transfer) as group:  # type: ignore[arg-type]  # typer checked it
        yield group


def learn(
    output: Annotated[Path, typer.Option(help="folder of the results; those of other seeds stay there")],
    model: Annotated[str, typer.Option(help="folder or hub name")] = "HuggingFaceTB/SmolLM2-135M-Instruct",
    domain: Annotated[str, typer.Option(help="of τ²-bench")] = "retail",
    demonstrations: Annotated[int, typer.Option(min=1, help="scripted episodes of each train task")] = 16,
    practiced: Annotated[int, typer.Option(help="practice tasks, with one scripted episode of each")] = 2000,
    epochs: Annotated[int, typer.Option(help="over the demonstrations, at most")] = 8,
    imitation_minutes: Annotated[float, typer.Option(help="the imitation takes, at most")] = math.inf,
    steps: Annotated[int, typer.Option(help="weight updates, at most")] = 60,
    minutes: Annotated[float, typer.Option(help="after the start; later no group of GRPO begins")] = math.inf,
    groups: Annotated[int, typer.Option(help="of each step")] = 8,
    group_size: Annotated[int, typer.Option(help="episodes of a group: of one task")] = 8,
    trials: Annotated[int, typer.Option(help="episodes of each task in an evaluation")] = 4,
    tasks: Annotated[int | None, typer.Option(help="only so many tasks of each split; all without it")] = None,
    seed: Annotated[int, typer.Option(help="of the demonstrations and of the tasks' order")] = 0,
    trainer: Annotated[Literal["plain", "trl"], typer.Option(help="whose GRPO: ours, or TRL's")] = "plain",
    engine: Annotated[Literal["sglang", "transformers"], typer.Option(help="who samples")] = "sglang",
    engine_arguments: Annotated[str, typer.Option(help="more of the engine's, as JSON")] = "{}",
    transfer: Annotated[Literal["nccl", "gloo", "tensors"], typer.Option(help="of new weights")] = "nccl",
    device: Annotated[str, typer.Option(help="the trainer's")] = "cuda:1",
    imitate_also_on: Annotated[list[str] | None, typer.Option(help="another device that shares the imitation")] = None,
    tokens: Annotated[int, typer.Option(help="that the trainer's model takes at a time")] = 32768,
    context: Annotated[int, typer.Option(help="most tokens of an episode")] = 16384,
    actors: Annotated[int, typer.Option(help="that play episodes, with a CPU each; at first twice as many")] = 4,
    slots: Annotated[int, typer.Option(help="episodes at a time in each of them")] = 32,
) -> None:
    """Teach a pretrained model a domain by imitation, then by GRPO; writes DOMAIN-SEED.json and DOMAIN.png."""
    ends = time.monotonic() + 60 * minutes
    torch.manual_seed(seed)
    output.mkdir(parents=True, exist_ok=True)
    folder = (output / f"model-{domain}-{seed}").resolve()
    if trainer == "trl":
        from deploy.examples import grpo_trl  # TRL is not needed otherwise, and takes seconds to import

        rows = max(1, 2 * tokens // context)  # its passes keep less of each token: it checkpoints
        same = {"temperature": SAMPLING["temperature"], "top_p": SAMPLING["top_p"], "learning_rate": RATES.grpo}
        settings = grpo_trl.settings(folder, device, steps, groups, group_size, rows, **same, seed=seed)
    pretrained, tokenizer = prepared(model, folder, context, torch.bfloat16 if engine == "sglang" else torch.float32)
    run = Run(output, seed, Trainer(pretrained, device, RATES, tokens, imitate_also_on or ()), domain, trials, tasks)
    start_ray()
    service = actors, slots, context
    policy = {"engine": engine, "model": str(folder), "engine_arguments": json.loads(engine_arguments)}
    played = {"n": steps * groups * group_size, "group_size": group_size, "seed": seed}
    with ThreadPoolExecutor(1) as beside:
        # The demonstrations are played while the engine starts, and the model plays while its copy here imitates.
        demonstrating = beside.submit(demonstrated, domain, folder, demonstrations, practiced, seed, service)
        with start(domain, *service, **policy) as client, weights_through(client, transfer) as group:
            evaluating = beside.submit(run.evaluate, client, PHASES[0])
            good, digits = demonstrating.result(), Digits.of(tokenizer)
            run.imitate(good, epochs, digits, 60 * imitation_minutes, evaluating)
            client.update_weights(own_weights(run.trainer.model), group=group)
            run.evaluate(client, PHASES[1])
            if trainer == "trl":
                grpo_trl.improve(run.trainer.model, tokenizer, settings, client, domain, group, run.record, ends)
            else:
                run.improve(client, group, ends, groups, **played)
            run.evaluate(client, PHASES[2])
    run.trainer.model.save_pretrained(folder)
    report(output, domain)


if __name__ == "__main__":
    typer.run(learn)
