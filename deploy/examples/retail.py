"""A pretrained model that learns retail: imitation of scripted episodes, then asynchronous GRPO on a GPU beside SGLang.

    python -m deploy.examples.retail --output learned --model HuggingFaceTB/SmolLM2-135M-Instruct

The model first imitates scripted episodes of the train split, in which the user words every task differently, the agent
sometimes chats, and sometimes writes a call that nobody can read and then the right one. After that it plays the tasks
itself and improves by GRPO on the train split, with episodes whose weights are at most one version old. The weights go
to the replicas through a process group. Before, between and after it plays the test split: pass^1 with a 95% interval
over the tasks. Only τ²'s official reward scores anything. With `--trainer trl`, TRL's GRPOTrainer does the GRPO, and
episodes and training take turns; see `deploy.examples.grpo_trl`.

Invariant: the test split is played, and never learned from. All three evaluations play the same tasks with the same
seeds.

Ray gives a replica the machine's first GPUs; the trainer takes the one that `--device` names. Everything also runs on a
CPU, with `--engine transformers --device cpu --transfer tensors`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import ray
import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from deploy.examples import results
from deploy.examples.grpo import Rates, Trainer, own_weights
from deploy.examples.results import mean_reward, show
from rollout_service import RolloutClient, RolloutConfig
from rollout_service.adapters.torch import TrajectoryDataset
from rollout_service.collecting.judging import informative
from rollout_service.policy.weight_group import WeightGroup
from rollout_service.record.trajectory import Trajectory

SCRIPT = {"chatter": 0.1, "malformed_call": 0.05}
"""Probabilities in the demonstrations, per action; see `policy.script`."""

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 256}
RATES = Rates(imitation=2e-4, grpo=1e-5)
EVALUATION_SEED = 12345
MAX_TURNS = 30
PHASES = ("before", "imitation", "grpo")


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


def start(domain: str, slots: int, context: int, **policy: Any) -> RolloutClient:
    """Start a service with a scripted user who speaks in its own words."""
    overrides = {
        "tasks": {"domain": domain, "split": "train"},
        "policy": {"sampling": SAMPLING, "context_length": context, **policy},
        "user": {"kind": "scripted", "script": {"own_words": True}},
        "limits": {"max_turns": MAX_TURNS},
        "service": {"name": f"learn-{domain}-{policy['engine']}", "actors": 1, "slots": slots, "max_staleness": 1},
    }
    return RolloutClient(config=RolloutConfig.load(overrides=overrides))


def demonstrated(client: RolloutClient, number: int, seed: int) -> list[Trajectory]:
    """Play so many scripted episodes of each task. Returns those that solved theirs."""
    played = client.collect(seed=seed, group_size=number, progress=False)
    good = [trajectory for trajectory in played if trajectory.reward == 1.0]
    tokens = sum(len(segment.token_ids) for trajectory in good for segment in trajectory.segments)
    show({"demonstrations": len(played), "solved": len(good), "tokens": tokens})
    return good


class Run:
    """A run's model, settings and results. The results are written after every step."""

    def __init__(self, output: Path, seed: int, trainer: Trainer, domain: str, trials: int, tasks: int | None) -> None:
        self.trainer = trainer
        self._path = output / f"{domain}-{seed}.json"
        self._began = time.monotonic()
        self._test: dict[str, Any] = {
            "domain": domain,
            "split": "test",
            "trials": trials,
            "tasks": tasks,
            "seed": EVALUATION_SEED,
        }
        self._result: dict[str, Any] = {"seed": seed, "domain": domain, "evaluations": {}, "steps": []}

    def evaluate(self, client: RolloutClient, phase: str) -> None:
        """Play the test split with the weights that are served."""
        report = client.evaluate(**self._test, max_turns=MAX_TURNS, progress=False)
        rate = report.pass_rates[0]
        self._result["evaluations"][phase] = {"pass_1": rate.value, "interval": rate.interval, "tasks": rate.tasks}
        show({"evaluation": phase, "pass^1": rate.value, "interval": rate.interval, "tasks": rate.tasks})
        self._write()

    def step(self, client: RolloutClient, groups: list[Any], group: WeightGroup | None) -> None:
        """One step of GRPO; its weights go to the service."""
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
            "reward": mean_reward(batch),
            "informative": sum(map(informative, groups)),
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
        self._path.write_text(json.dumps(self._result, indent=1))


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
    demonstrations: Annotated[int, typer.Option(help="scripted episodes of each train task")] = 8,
    epochs: Annotated[int, typer.Option(help="over the demonstrations")] = 3,
    steps: Annotated[int, typer.Option(help="weight updates")] = 60,
    groups: Annotated[int, typer.Option(help="of each step")] = 8,
    group_size: Annotated[int, typer.Option(help="episodes of a group: of one task")] = 8,
    trials: Annotated[int, typer.Option(help="episodes of each test task in an evaluation")] = 4,
    tasks: Annotated[int | None, typer.Option(help="only so many test tasks; all of them without it")] = None,
    seed: Annotated[int, typer.Option(help="of the demonstrations and of the tasks' order")] = 0,
    trainer: Annotated[Literal["plain", "trl"], typer.Option(help="whose GRPO: ours, or TRL's")] = "plain",
    engine: Annotated[Literal["sglang", "transformers"], typer.Option(help="who samples")] = "sglang",
    engine_arguments: Annotated[str, typer.Option(help="more of the engine's, as JSON")] = "{}",
    transfer: Annotated[Literal["nccl", "gloo", "tensors"], typer.Option(help="of new weights")] = "nccl",
    device: Annotated[str, typer.Option(help="the trainer's")] = "cuda:1",
    rows: Annotated[int, typer.Option(help="episodes that the trainer's model takes at a time")] = 8,
    context: Annotated[int, typer.Option(help="most tokens of an episode")] = 16384,
    slots: Annotated[int, typer.Option(help="episodes at a time")] = 96,
) -> None:
    """Teach a pretrained model a domain by imitation, then by GRPO; writes DOMAIN-SEED.json and DOMAIN.png."""
    torch.manual_seed(seed)
    output.mkdir(parents=True, exist_ok=True)
    folder = (output / f"model-{domain}-{seed}").resolve()
    if trainer == "trl":
        from deploy.examples import grpo_trl  # TRL is not needed otherwise, and takes seconds to import

        same = {"temperature": SAMPLING["temperature"], "top_p": SAMPLING["top_p"], "learning_rate": RATES.grpo}
        settings = grpo_trl.settings(folder, device, steps, groups, group_size, rows, **same, seed=seed)
    pretrained, tokenizer = prepared(model, folder, context, torch.bfloat16 if engine == "sglang" else torch.float32)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    run = Run(output, seed, Trainer(pretrained, device, RATES, rows), domain, trials, tasks)
    if not ray.is_initialized():
        ray.init(os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False, log_to_driver=False)

    with start(domain, slots, context, engine="scripted", tokenizer=str(folder), script=SCRIPT) as client:
        good = demonstrated(client, demonstrations, seed)

    policy = {"engine": engine, "model": str(folder), "engine_arguments": json.loads(engine_arguments)}
    asked = {"n": steps * groups * group_size, "group_size": group_size, "groups_per_update": groups, "seed": seed}
    with start(domain, slots, context, **policy) as client, weights_through(client, transfer) as group:
        run.evaluate(client, PHASES[0])
        run.trainer.imitate(good, epochs, show)
        client.update_weights(own_weights(run.trainer.model), group=group)
        run.evaluate(client, PHASES[1])
        if trainer == "trl":
            grpo_trl.improve(run.trainer.model, tokenizer, settings, client, domain, group, run.record)
        else:
            for taken in DataLoader(TrajectoryDataset(client, **asked), groups, collate_fn=list):
                run.step(client, taken, group)
        run.evaluate(client, PHASES[2])
    run.trainer.model.save_pretrained(folder)
    report(output, domain)


def report(output: Path, domain: str) -> None:
    """Print a row for each seed in the folder, and draw DOMAIN.png: the train tasks' mean reward at each step, and
    pass^1 on the test tasks with its interval."""
    runs = results.read(output, f"{domain}-*.json")
    title = "pass^1 on the test split; the train tasks' mean reward in the first and the last quarter"
    table = Table("seed", *PHASES, "train reward", "updates", "seconds", title=title)
    for run in runs:
        rewards = [step["reward"] for step in run["steps"]]
        quarter = max(1, len(rewards) // 4)
        first, last = (sum(part) / quarter for part in (rewards[:quarter], rewards[-quarter:]))
        table.add_row(
            str(run["seed"]),
            *(_rate(run["evaluations"].get(phase)) for phase in PHASES),
            f"{first:.2f} → {last:.2f}" if rewards else "–",
            str(len(rewards)),
            f"{run['seconds']:.0f}",
        )
    Console().print(table)
    axes = results.axes(7, 4)
    if axes is None:
        return
    for run in runs:
        numbers = range(1, len(run["steps"]) + 1)
        (drawn,) = axes.plot(numbers, [step["reward"] for step in run["steps"]], alpha=0.6)
        for place, phase in zip((-1, 0, len(run["steps"]) + 1), PHASES, strict=True):
            if (found := run["evaluations"].get(phase)) is not None:
                value, (low, high) = found["pass_1"], found["interval"]
                label = f"seed {run['seed']}" if place == 0 else None
                bars = [[value - low], [high - value]]
                axes.errorbar([place], [value], bars, fmt="o", capsize=3, color=drawn.get_color(), label=label)
    axes.set(xlabel="weight update", ylabel="train reward (line), test pass^1 (points)", ylim=(-0.02, 1.02))
    axes.legend(loc="upper left")
    axes.figure.savefig(output / f"{domain}.png", dpi=80)


def _rate(found: dict[str, Any] | None) -> str:
    return "–" if found is None else "{:.2f}\n{:.2f}–{:.2f}".format(found["pass_1"], *found["interval"])


if __name__ == "__main__":
    typer.run(learn)
