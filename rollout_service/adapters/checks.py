"""The checks that every trajectory passes before an adapter gives it to a trainer.

Invariant: a check changes nothing. It passes, or raises with the trajectory, the field, its value and the remedy. What
it refuses would train without any error, but wrongly: on wrong token ids, a wrong baseline, or probabilities that no
policy had.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

import rollout_service.config.arguments as arguments
from rollout_service.chat.codec import ChatCodec
from rollout_service.errors import ConfigError, RolloutError
from rollout_service.record.batch import TrajectoryBatch
from rollout_service.record.trajectory import TokenSegment, Trajectory

Unscored = Literal["refuse", "mask"]
"""What happens to a trajectory without a score (`Trajectory.is_scored`). `refuse`: an error. `mask`: it keeps its place
in its group, but its loss mask and its advantage are 0, and the group's mean leaves it out."""

_MOST_MEMBERS = 1_000_000
"""Largest group. A collection has no more episodes."""


class TrainingDataError(RolloutError):
    """Trajectories that cannot be trained on as they are."""


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """The `provenance.tokenizer_fingerprint` of trajectories made with this fast tokenizer. Takes up to a second.

    Raises:
        CodecError: the service cannot use the tokenizer.
    """
    return ChatCodec(copy.deepcopy(tokenizer)).tokenizer_fingerprint  # the codec switches padding off in its tokenizer


def check_tokenizers(trajectories: Sequence[Trajectory], expected: str | None = None) -> None:
    """Check that all tokens come from one tokenizer, the trainer's. An episode that never began has no tokens.

    Args:
        expected: `tokenizer_fingerprint` of the trainer's tokenizer. None: any, but the same for all.

    Raises:
        TrainingDataError: names the first trajectory with another tokenizer.
    """
    arguments.optional(arguments.text, "tokenizer_fingerprint", expected, "checks.tokenizer_fingerprint(tokenizer)")
    for trajectory in filter(lambda trajectory: trajectory.segments, trajectories):
        found = trajectory.provenance.tokenizer_fingerprint
        if expected is None:
            expected = found
        if found != expected:
            raise TrainingDataError(
                f"{_named(trajectory)}: provenance.tokenizer_fingerprint is {found!r} (tokenizer "
                f"{trajectory.provenance.tokenizer!r}), not {expected!r}: its token ids mean something else here.",
                "Train with the tokenizer that sampled, one per batch; batch.filter(...) takes them apart.",
            )


def check_template_arguments(ours: Mapping[str, Any], theirs: Mapping[str, Any] | None, where: str) -> None:
    """Check that a trainer that has arguments for the chat template has those of the service.

    Args:
        ours: `policy.template_arguments`.
        theirs: the trainer's; None or empty: it has none of its own.
        where: what the trainer calls them.

    Raises:
        ConfigError: they differ.
    """
    if theirs and dict(theirs) != dict(ours):
        raise ConfigError(
            f"policy.template_arguments is {dict(ours)}, and the trainer's {where} is {dict(theirs)}: its prompts "
            "would be others than those that the policy was sampled with.",
            f"Give both the same, or leave out {where}: episodes are not rendered by the trainer.",
        )


def check_vocabulary(trajectories: Sequence[Trajectory], vocabulary_size: int | None = None) -> None:
    """Check that the trainer's model has a row for every token id. A model that was padded to a round number of rows
    can sample an id that its tokenizer does not have.

    Args:
        vocabulary_size: rows of the trainer's embedding. None: as many as the tokenizer has ids. A record that does not
            say how many these are then passes, unless an id is negative.

    Raises:
        TrainingDataError: names the first id that is too large.
    """
    for trajectory in trajectories:
        made = trajectory.provenance
        rows = vocabulary_size if vocabulary_size is not None else made.tokenizer_size
        for number, segment in enumerate(trajectory.segments):
            ids = segment.token_ids
            outside = (ids < 0) if rows is None else (ids < 0) | (ids >= rows)
            if not outside.any():
                continue
            at = int(outside.argmax())
            whose = "the tokenizer has" if vocabulary_size is None else "vocabulary_size says there are"
            raise TrainingDataError(
                f"{_named(trajectory)}: segments[{number}].token_ids[{at}] is {ids[at]}, and {whose} {rows} ids; the "
                f"model that sampled has {made.model_vocabulary_size or 'an unknown number of'} rows.",
                "Pass vocabulary_size=model.config.vocab_size if the trained model has that row, or leave its group "
                "out with batch.filter(...).",
            )


def check_logprobs(trajectories: Sequence[Trajectory]) -> None:
    """Check that every sampled token has a log-prob.

    Raises:
        TrainingDataError: names the first segment in which one is missing.
    """
    for trajectory in trajectories:
        for number, segment in enumerate(trajectory.segments):
            sampled = segment.loss_mask == 1
            if len(segment.logprobs) != len(sampled):
                lacking = f"has {len(segment.logprobs)} values for {len(sampled)} tokens"
            elif not np.isfinite(segment.logprobs[sampled]).all():
                count = int((~np.isfinite(segment.logprobs[sampled])).sum())
                lacking = f"has no finite value for {count} of {int(sampled.sum())} sampled tokens"
            else:
                continue
            raise TrainingDataError(
                f"{_named(trajectory)}: segments[{number}].logprobs {lacking}.",
                "Importance ratios need the sampling policy's: collect with an engine that returns them, or drop it.",
            )


def check_sampling(trajectories: Sequence[Trajectory]) -> None:
    """Check that all tokens were sampled at one temperature and as their log-probs say, see `check_parameters`. What
    `provenance.sampling` leaves out has `Sampling`'s default. An episode that never began has no tokens.

    Raises:
        TrainingDataError: names the first trajectory that was sampled otherwise.
    """
    expected = None
    for trajectory in filter(lambda trajectory: trajectory.segments, trajectories):
        check_parameters(f"{_named(trajectory)}: provenance.sampling", trajectory.provenance.sampling)
        found = trajectory.provenance.sampling.get("temperature", 1.0)
        if expected is None:
            expected = found
        if found != expected:
            raise TrainingDataError(
                f"{_named(trajectory)}: provenance.sampling.temperature is {found}, and {expected} for others: no one "
                "temperature makes the trainer's log-probs comparable to theirs.",
                "Collect a batch at one temperature; batch.filter(...) takes them apart.",
            )


def check_parameters(name: str, sampling: Mapping[str, Any]) -> None:
    """Check that tokens sampled with these parameters fit their log-probs, which are those of softmax(logits /
    temperature) over all tokens. Greedy tokens have no such distribution, and top-p and top-k sample from another.

    Args:
        name: how the error names the parameters.

    Raises:
        TrainingDataError: names the parameter.
    """
    temperature = sampling.get("temperature", 1.0)
    if temperature <= 0:
        raise TrainingDataError(
            f"{name}.temperature is {temperature}: greedy tokens are no samples, so they have no importance ratio.",
            "Collect what is trained on with a temperature above 0.",
        )
    for parameter, whole in (("top_p", 1.0), ("top_k", -1)):
        if (found := sampling.get(parameter, whole)) != whole:
            raise TrainingDataError(
                f"{name}.{parameter} is {found}: the tokens come from a part of the distribution, and their log-probs "
                "are of the whole.",
                f"Collect what is trained on with {parameter} {whole:g}.",
            )


def check_groups(trajectories: Sequence[Trajectory], group_size: int | None = None) -> None:
    """Check that every group is whole. A baseline over only some of its members would be wrong.

    Args:
        group_size: number of members of each group. None: as its largest `sample_index` says.

    Raises:
        TrainingDataError: names the first group in which a member is missing or occurs twice.
    """
    arguments.optional(arguments.whole, "group_size", group_size, 1, _MOST_MEMBERS)
    for name, members in TrajectoryBatch(trajectories).groups().items():
        found = [member.sample_index for member in members]
        if found != list(range(group_size or max(found) + 1)):
            size = "" if group_size is None else f" and group_size is {group_size}"
            raise TrainingDataError(
                f"Group {name!r} is not whole: sample_index has {found}{size}.",
                "Hand over whole groups, as client.stream gives them; filter groups, not their members.",
            )


def check_rewards(trajectories: Sequence[Trajectory], unscored: Unscored) -> None:
    """Check that every trajectory has a reward that says something about the policy, or may be masked.

    Raises:
        TrainingDataError: names the first trajectory without one.
        ConfigError: `unscored` is unknown.
    """
    arguments.choice("unscored", unscored, get_args(Unscored))
    for trajectory in trajectories:
        if not trajectory.is_scored and unscored == "refuse":
            fault = "" if trajectory.fault is None else f"; {trajectory.fault.kind}: {trajectory.fault.message}"
            what = "which is not 0" if trajectory.reward is None else "but the policy never took a turn"
            raise TrainingDataError(
                f"{_named(trajectory)}: reward is {trajectory.reward}, {what} (it ended by "
                f"{trajectory.termination_reason!r}{fault}).",
                'Pass unscored="mask" to train without it, or drop its group.',
            )


def without_scores(group: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories of a group that is no data (`service.min_group_size`), none of them with a score: for trainers
    that need each sample in its place, which they then do not train on."""
    return [dataclasses.replace(trajectory, reward=None) for trajectory in group]


def only_segment(trajectory: Trajectory) -> TokenSegment:
    """The only segment, for trainers whose samples are one prompt and one response.

    Raises:
        TrainingDataError: there is none, or there are several.
    """
    if len(trajectory.segments) != 1:
        raise TrainingDataError(
            f"{_named(trajectory)}: it has {len(trajectory.segments)} segments; this trainer takes exactly one.",
            "Collect with policy.history: append, which keeps an episode in one; one without any was never sampled.",
        )
    return trajectory.segments[0]


def _named(trajectory: Trajectory) -> str:
    return f"Trajectory {trajectory.trajectory_id!r}"
