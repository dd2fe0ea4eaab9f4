"""A model that learns: a tiny Qwen3 gets better at τ²-bench by GRPO, on a laptop's CPU, in minutes.

    python -m deploy.examples.learn --output learned

The whole loop of a trainer, in plain torch. First, a random model imitates scripted episodes that are full of mistakes
(supervised, with the trajectories' own loss masks). After that it is mediocre. Then the service samples with it while
this process trains: each step takes the next groups, makes a few optimizer steps and gives the new weights to the
service. Meanwhile episodes go on, with weights that are at most one version old. Only τ²'s official reward scores them.
The evaluations before and after draw the same tasks.

Invariant: before each step, the log-probs of tokens that the newest weights sampled are computed again here and
compared with the trajectory's (`logprob_error`).

With `--engine sglang --device cuda` SGLang samples; with `--transfer disk` new weights are checkpoints.
"""

from __future__ import annotations

import json
import os
import time
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
from deploy.examples.grpo import Groups, Rates, Trainer
from deploy.examples.results import mean_reward, show
from rollout_service import RolloutClient, RolloutConfig
from rollout_service.adapters.torch import TrajectoryDataset
from rollout_service.chat.codec import EMBEDDED_TOKENIZER

TASKS = {
    "mock": ["create_task_1", "create_task_1_nl_eval", "update_task_1", "impossible_task_1"]
    + [f"update_task_with_initialization_{kind}" for kind in ("data", "actions")]
}
"""Tasks that are played, by domain; of any other domain, all. Three of mock's nine tasks are left out: two begin in the
middle of a conversation, and in one the evaluator raises, instead of scoring 0, when the policy fails."""

DEMONSTRATIONS = 240
DEMONSTRATIONS_PER_STEP = 16
MISTAKES = {"wrong_argument": 0.4, "early_stop": 0.4}
"""Probabilities of mistakes in the demonstrations, per action; see `policy.script`."""

EVALUATION_EPISODES, EVALUATION_SEED = 64, 12345
RATES = Rates(imitation=5e-3, grpo=2e-4)
SGLANG = {"dtype": "bfloat16", "attention_backend": "triton", "mem_fraction_static": 0.4}  # its kernels refuse float32


# The model -----------------------------------------------------------------------------------------------------------


def random_model(hidden: int, layers: int, folder: Path) -> Any:
    """A Qwen3 with random weights, for the service's small tokenizer, which is saved in the folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)
    tokenizer.save_pretrained(folder)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=None,
        dtype="float32",
    )
    return transformers.Qwen3ForCausalLM(config)


# The service ---------------------------------------------------------------------------------------------------------


def start(domain: str, **policy: Any) -> RolloutClient:
    """Start a service with the scripted user, in the Ray cluster that this process is connected to."""
    overrides = {
        "tasks": {"domain": domain, "ids": TASKS.get(domain)},
        "policy": {"sampling": {"temperature": 1.0, "max_new_tokens": 128}, "context_length": 4096, **policy},
        "user": {"kind": "scripted"},
        "limits": {"max_turns": 6},
        "service": {"name": f"learn-{policy['engine']}", "actors": 1, "slots": 48, "max_staleness": 1},
    }
    return RolloutClient(config=RolloutConfig.load(overrides=overrides))


def evaluate(client: RolloutClient, trainer: Trainer) -> dict[str, Any]:
    """Mean reward at temperature 1 with the served weights, on the same tasks each time."""
    batch = client.collect(EVALUATION_EPISODES, seed=EVALUATION_SEED, progress=False)
    return {"reward": mean_reward(batch), "logprob_error": trainer.logprob_error(batch, client.weight_version())}


def update(client: RolloutClient, trainer: Trainer, groups: Groups, disk: Path | None) -> dict[str, Any]:
    """Make one step of GRPO and give the service the new weights, through the folder if there is one. Returns the
    step's figures."""
    version = client.weight_version()
    batch = [trajectory for group in groups for trajectory in group]
    error = trainer.logprob_error(batch, version)
    learned = trainer.improve(groups)
    if disk:
        trainer.model.save_pretrained(disk)
    client.update_weights(disk or trainer.model.state_dict(), mode="abort_and_resume")
    oldest = min(t.oldest_version for t in batch if t.oldest_version is not None)
    return {
        "version": version,
        "staleness": version - oldest,
        "reward": mean_reward(batch),
        **learned,
        "logprob_error": error,
    }


def learn(
    output: Annotated[Path, typer.Option(help="folder of the results; those of other seeds stay there")],
    steps: Annotated[int, typer.Option(help="weight updates")] = 60,
    groups: Annotated[int, typer.Option(help="of each step")] = 8,
    group_size: Annotated[int, typer.Option(help="episodes of a group: of one task")] = 8,
    epochs: Annotated[int, typer.Option(help="over the demonstrations")] = 12,
    seed: Annotated[int, typer.Option(help="of the model, and of the tasks' order")] = 0,
    hidden: Annotated[int, typer.Option(help="the model's width")] = 128,
    layers: Annotated[int, typer.Option(help="the model's depth")] = 2,
    engine: Annotated[Literal["transformers", "sglang"], typer.Option(help="who samples")] = "transformers",
    engine_arguments: Annotated[str, typer.Option(help="more of the engine's, as JSON")] = "{}",
    transfer: Annotated[Literal["tensors", "disk"], typer.Option(help="of new weights")] = "tensors",
    device: Annotated[str, typer.Option(help="the trainer's, and that of the transformers engine")] = "cpu",
    domain: Annotated[str, typer.Option(help="of τ²-bench")] = "mock",
) -> None:
    """Teach a tiny model by imitation, then by GRPO; writes seed-N.json and reward.png."""
    began = time.monotonic()
    torch.manual_seed(seed)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # the replica samples with the other half
    folder = (output / f"model-{seed}").resolve()
    trainer = Trainer(random_model(hidden, layers, folder), device, RATES)
    if not ray.is_initialized():
        ray.init(os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False, log_to_driver=False)

    with start(domain, engine="scripted", script=MISTAKES) as client:
        demonstrations = client.collect(DEMONSTRATIONS, seed=seed, progress=False)
    show({"demonstrations": len(demonstrations), "reward": mean_reward(demonstrations)})
    trainer.imitate(demonstrations, epochs, DEMONSTRATIONS_PER_STEP, show)
    trainer.model.save_pretrained(folder)

    arguments = ({"device": device} if engine == "transformers" else SGLANG) | json.loads(engine_arguments)
    policy = {"engine": engine, "model": str(folder), "engine_arguments": arguments}
    asked = {"n": steps * groups * group_size, "group_size": group_size, "groups_per_update": groups, "seed": seed}
    history = []
    with start(domain, **policy) as client:
        before = evaluate(client, trainer)
        show({"evaluation": "before", **before})
        for step, taken in enumerate(DataLoader(TrajectoryDataset(client, **asked), groups, collate_fn=list), 1):
            disk = folder / f"step-{step}" if transfer == "disk" else None
            history.append({"step": step, **update(client, trainer, taken, disk), "seconds": time.monotonic() - began})
            show(history[-1])
        after = evaluate(client, trainer)

    result = {"seed": seed, "seconds": time.monotonic() - began, "before": before, "after": after, "steps": history}
    (output / f"seed-{seed}.json").write_text(json.dumps(result, indent=1))
    report(output)


# The report ----------------------------------------------------------------------------------------------------------


def report(output: Path) -> None:
    """Print a row for each seed in the folder, and draw reward.png with the evaluations as points."""
    runs = results.read(output, "seed-*.json")
    table = Table("seed", "reward before", "after", "updates", "staleness", "log-prob error", "seconds")
    for run in runs:
        lines = [run["before"], *run["steps"], run["after"]]
        table.add_row(
            str(run["seed"]),
            f"{run['before']['reward']:.2f}",
            f"{run['after']['reward']:.2f}",
            str(len(run["steps"])),
            f"at most {max(step['staleness'] for step in run['steps'])}",
            f"{max(line['logprob_error'] or 0.0 for line in lines):.0e}",
            f"{run['seconds']:.0f}",
        )
    Console().print(table)
    axes = results.axes(6, 3.5)
    if axes is None:
        return
    for run in runs:
        (drawn,) = axes.plot(range(1, len(run["steps"]) + 1), [step["reward"] for step in run["steps"]])
        ends = [0, len(run["steps"]) + 1], [run["before"]["reward"], run["after"]["reward"]]
        axes.plot(*ends, "o", color=drawn.get_color(), label=f"seed {run['seed']}")
    axes.set(xlabel="weight update", ylabel="mean reward", ylim=(0, 1.02))
    axes.legend(loc="lower right")
    axes.figure.savefig(output / "reward.png", dpi=80)


if __name__ == "__main__":
    typer.run(learn)
