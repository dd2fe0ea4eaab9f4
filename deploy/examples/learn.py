"""A model that learns: a tiny Qwen3 gets better at τ²-bench by GRPO, on a laptop's CPU, in minutes.

    python -m deploy.examples.learn --output learned

The whole loop of a trainer, in plain torch. First, a random model imitates scripted episodes that are full of mistakes
(supervised, with the trajectories' own loss masks). After that it is mediocre. Then the service samples with it while
this process trains: each step takes the next groups, makes a few optimizer steps and gives the new weights to the
service. Meanwhile episodes go on, with weights that are at most one version old. Only τ²'s official reward scores them.
The evaluations before and after draw the same tasks.

Invariant: a probability ratio is relative to the policy that sampled the token. Before each step, the log-probs of
tokens that the newest weights sampled are computed again here and compared with the trajectory's (`logprob_error`).

With `--engine sglang --device cuda` SGLang samples; with `--transfer disk` new weights are checkpoints.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import ray
import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from torch.utils.data import DataLoader

from rollout_service import RolloutClient, RolloutConfig
from rollout_service.adapters.torch import TrajectoryDataset, collate_padded
from rollout_service.chat.codec import EMBEDDED_TOKENIZER
from rollout_service.record.trajectory import Trajectory

Tensors = dict[str, torch.Tensor]
Groups = Sequence[list[Trajectory]]

TASKS = {
    "mock": ["create_task_1", "create_task_1_nl_eval", "update_task_1", "impossible_task_1"]
    + [f"update_task_with_initialization_{kind}" for kind in ("data", "actions")]
}
"""Tasks that are played, by domain; of any other domain, all. Three of mock's nine tasks are left out: two begin in the
middle of a conversation, and in one the evaluator raises, instead of scoring 0, when the policy fails."""

DEMONSTRATIONS = 240
MISTAKES = {"wrong_argument": 0.4, "early_stop": 0.4}
"""Probabilities of mistakes in the demonstrations, per action; see `policy.script`."""

EVALUATION_EPISODES, EVALUATION_SEED = 64, 12345
CLIP = 0.2  # a token no longer counts if its ratio differs from 1 by more than this
SUPERVISED_RATE, GRPO_RATE = 5e-3, 2e-4
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


def token_logprobs(model: Any, tensors: Tensors) -> torch.Tensor:
    """float32[sampled tokens]: the model's log-prob of each sampled token.

    What all rows begin with (the domain's policy, its tools) goes through the model once; the rest of each row reads
    its keys and values, and gradients flow back through them. Rows are padded on the right and the model is causal, so
    there is no attention mask to make. The vocabulary is looked at only where a token was sampled.
    """
    ids, mask = tensors["input_ids"], tensors["loss_mask"]
    shared = int(((ids != ids[0]) | mask).any(0).int().argmax())  # first position at which rows differ or are sampled
    cache = transformers.DynamicCache(config=model.config)
    model.model(input_ids=ids[:1, :shared], past_key_values=cache)
    cache.batch_repeat_interleave(len(ids))
    hidden = model.model(input_ids=ids[:, shared:], past_key_values=cache).last_hidden_state
    logits = model.lm_head(hidden[mask[:, shared:]]).float()
    return -functional.cross_entropy(logits, tensors["target_ids"][mask], reduction="none")


class Trainer:
    """The model and its optimizer."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model.to(device)
        self.device = device

    def imitate(self, demonstrations: Iterable[Trajectory], epochs: int) -> None:
        """Imitate the demonstrations, good and bad ones alike."""
        batches: Any = DataLoader(list(demonstrations), 16, shuffle=True, collate_fn=self._collate)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=SUPERVISED_RATE)
        decay = torch.optim.lr_scheduler.LinearLR(self._optimizer, 1.0, 0.05, total_iters=epochs * len(batches))
        for epoch in range(1, epochs + 1):
            losses = []
            for tensors in batches:
                loss = -token_logprobs(self.model, tensors).mean()
                losses.append(loss.item())
                loss.backward()
                self._descend()
                decay.step()
            _show({"imitation": epoch, "loss": float(np.mean(losses))})
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=GRPO_RATE)

    def improve(self, groups: Groups) -> dict[str, float]:
        """GRPO: one optimizer step for each half of the groups. Returns mean loss and share of clipped tokens."""
        losses, clipped = [], []
        for half in groups[::2], groups[1::2]:
            # A group with equal rewards has no advantages, so it would cost time and teach nothing.
            tensors = self._collate([group for group in half if len({t.reward for t in group}) > 1])
            mask = tensors["loss_mask"]
            if not mask.any():
                continue
            advantages = tensors["advantages"][:, None].expand(mask.shape)[mask]
            ratio = (token_logprobs(self.model, tensors) - tensors["old_logprobs"][mask]).exp()
            gain = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
            loss = -gain.mean()
            loss.backward()
            self._descend()
            losses.append(loss.item())
            clipped.append(float((gain < ratio * advantages).float().mean()))
        return {"loss": float(np.mean(losses or 0.0)), "clipped": float(np.mean(clipped or 0.0))}

    def logprob_error(self, trajectories: Iterable[Trajectory], version: int) -> float | None:
        """The largest difference between this model's log-probs and the trajectories', over tokens that were sampled
        with this model's weights, `version`. None: there is no such token."""
        tensors = self._collate(trajectories)
        mask = tensors["loss_mask"]
        newest = tensors["weight_versions"][mask] == version
        if not newest.any():
            return None
        with torch.no_grad():
            error = (token_logprobs(self.model, tensors) - tensors["old_logprobs"][mask]).abs()
        return float(error[newest].max())

    def _collate(self, items: Any) -> Tensors:
        tensors = collate_padded(items, pad_token_id=0, unscored="mask")
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def _descend(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


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
    return {"reward": _mean_reward(batch), "logprob_error": trainer.logprob_error(batch, client.weight_version())}


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
        "reward": _mean_reward(batch),
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
    trainer = Trainer(random_model(hidden, layers, folder), device)
    if not ray.is_initialized():
        ray.init(os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False, log_to_driver=False)

    with start(domain, engine="scripted", script=MISTAKES) as client:
        demonstrations = client.collect(DEMONSTRATIONS, seed=seed, progress=False)
    _show({"demonstrations": len(demonstrations), "reward": _mean_reward(demonstrations)})
    trainer.imitate(demonstrations, epochs)
    trainer.model.save_pretrained(folder)

    arguments = ({"device": device} if engine == "transformers" else SGLANG) | json.loads(engine_arguments)
    policy = {"engine": engine, "model": str(folder), "engine_arguments": arguments}
    asked = {"n": steps * groups * group_size, "group_size": group_size, "groups_per_update": groups, "seed": seed}
    history = []
    with start(domain, **policy) as client:
        before = evaluate(client, trainer)
        _show({"evaluation": "before", **before})
        for step, taken in enumerate(DataLoader(TrajectoryDataset(client, **asked), groups, collate_fn=list), 1):
            disk = folder / f"step-{step}" if transfer == "disk" else None
            history.append({"step": step, **update(client, trainer, taken, disk), "seconds": time.monotonic() - began})
            _show(history[-1])
        after = evaluate(client, trainer)

    result = {"seed": seed, "seconds": time.monotonic() - began, "before": before, "after": after, "steps": history}
    (output / f"seed-{seed}.json").write_text(json.dumps(result, indent=1))
    report(output)


# The report ----------------------------------------------------------------------------------------------------------


def report(output: Path) -> None:
    """Print a row for each seed in the folder, and draw reward.png with the evaluations as points."""
    runs = [json.loads(path.read_text()) for path in sorted(output.glob("seed-*.json"))]
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
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("For the plot: pip install -c constraints.txt '.[examples]'")
        return
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for run in runs:
        (drawn,) = axes.plot(range(1, len(run["steps"]) + 1), [step["reward"] for step in run["steps"]])
        ends = [0, len(run["steps"]) + 1], [run["before"]["reward"], run["after"]["reward"]]
        axes.plot(*ends, "o", color=drawn.get_color(), label=f"seed {run['seed']}")
    axes.set(xlabel="weight update", ylabel="mean reward", ylim=(0, 1.02))
    axes.legend(loc="lower right")
    figure.savefig(output / "reward.png", dpi=80)


def _mean_reward(trajectories: Iterable[Trajectory]) -> float:
    return float(np.mean([t.reward for t in trajectories if t.reward is not None]))


def _show(values: dict[str, Any]) -> None:
    texts = (f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
    print(", ".join(texts), flush=True)


if __name__ == "__main__":
    typer.run(learn)
