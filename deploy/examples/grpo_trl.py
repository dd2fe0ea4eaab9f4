"""GRPO by TRL's own trainer: its loss, its optimizer and its metrics, on the service's episodes.

Invariant: one optimizer step follows each batch of episodes, and the next batch is sampled with its weights, so no
episode is ever stale.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
import trl
import typer
from datasets import Dataset

from deploy.examples.grpo import own_weights
from rollout_service import RolloutClient
from rollout_service.adapters.trl import prompts, rollout_func, tau2_reward
from rollout_service.policy.weight_group import WeightGroup

Record = Callable[[dict[str, Any]], None]


class Recorder(transformers.TrainerCallback):  # type: ignore[misc]  # mypy does not read transformers
    """Records TRL's metrics of each step, and the version of the weights that sampled its episodes. Ends the training
    when its time is over."""

    def __init__(self, client: RolloutClient, record: Record, ends: float) -> None:
        self._client = client
        self._record = record
        self._ends = ends

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        """Called by TRL after each step, and once at the end."""
        if "reward" in logs:  # the summary after the last step has none
            self._record({"version": self._client.weight_version(), **logs})

    def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
        """Called by TRL after each step."""
        control.should_training_stop |= time.monotonic() >= self._ends


def settings(
    folder: Path, device: str, steps: int, groups: int, group_size: int, rows: int, **given: Any
) -> trl.GRPOConfig:
    """GRPOConfig of this many steps, each over all the groups, with nothing written or reported. On a GPU it trains in
    bfloat16 with gradient checkpointing.

    Args:
        rows: most episodes that go through the model at a time. TRL takes a divisor of a step's episodes.
        given: more of GRPOConfig's own values.

    Raises:
        typer.BadParameter: TRL would not train on `device` alone.
        ValueError: a value that TRL refuses.
    """
    episodes = groups * group_size
    rows = next(divisor for divisor in range(min(rows, episodes), 0, -1) if episodes % divisor == 0)
    cuda = device.startswith("cuda")
    made = trl.GRPOConfig(
        **given,
        output_dir=str(folder),
        max_steps=steps,
        num_generations=group_size,
        generation_batch_size=episodes,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=episodes // rows,
        lr_scheduler_type="constant",
        use_cpu=not cuda,
        bf16=cuda,
        gradient_checkpointing=cuda,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
    )
    if cuda and (made.n_gpu != 1 or device != "cuda:0"):
        raise typer.BadParameter(
            f"--device is {device}, and {made.n_gpu} GPUs are visible. TRL takes all that are visible: start Ray by "
            "itself, then this program with RAY_ADDRESS=auto, CUDA_VISIBLE_DEVICES=1 and --device cuda:0."
        )
    return made


def improve(
    model: Any,
    tokenizer: Any,
    args: trl.GRPOConfig,
    client: RolloutClient,
    domain: str,
    group: WeightGroup | None,
    record: Record,
    ends: float,
) -> None:
    """Train on the domain's train split. The service has the last step's weights at the end.

    Args:
        args: see `settings`.
        group: process group that weights go through; None: Ray's object store.
        record: called with the figures of each step.
        ends: no step begins after this time, of `time.monotonic`.
    """
    model.set_attn_implementation("sdpa")  # TRL pads on both sides, and gives masks
    trainer = trl.GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=tau2_reward,
        rollout_func=rollout_func(client, unscored="mask", weights=own_weights, group=group),
        train_dataset=Dataset.from_list(prompts(domain, "train", config=client.config)),
        args=args,
        callbacks=[Recorder(client, record, ends)],
    )
    trainer.remove_callback(transformers.PrinterCallback)  # `record` prints
    trainer.train()
    client.update_weights(own_weights(model), group=group)
