"""Fast against official evaluation, on conversations that go right and on ones that go wrong in every way we know.

`make parity` plays every base task of every domain in every kind and prints the table of docs/performance.md; the test
suite plays a seeded sample. Each conversation runs through the official orchestrator, on the environment of an episode.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from rollout_service.config import Evaluation, Script, User
from rollout_service.record.trajectory import TaskRef
from rollout_service.tau2 import compat, domain, evaluation, gold, scripted_user, tasks
from rollout_service.tau2 import fast_evaluation as played
from rollout_service.tau2.deadline import Deadline

DOMAINS = ("mock", "retail", "airline", "telecom", "telecom-workflow")

Actions = list[compat.Action]
Perturb = Callable[[Actions, Actions, random.Random], Actions]
"""The task's actions and those of all tasks of its domain; what is played instead."""


def _dropped(actions: Actions, _: Actions, rng: random.Random) -> Actions:
    gone = rng.randrange(len(actions)) if actions else 0
    return [action for index, action in enumerate(actions) if index != gone and rng.random() > 0.2]


def _repeated(actions: Actions, _: Actions, rng: random.Random) -> Actions:
    again = rng.randrange(len(actions)) if actions else 0
    times = [2 if index == again else rng.choice((1, 1, 2)) for index in range(len(actions))]
    return [copy for action, count in zip(actions, times, strict=True) for copy in [action] * count]


def _reordered(actions: Actions, _: Actions, rng: random.Random) -> Actions:
    return rng.sample(actions, len(actions))


def _altered_by(who: str) -> Perturb:
    def altered(actions: Actions, _: Actions, rng: random.Random) -> Actions:
        own = [index for index, action in enumerate(actions) if action.requestor == who and action.arguments]
        chosen = {*rng.sample(own, min(len(own), rng.choice((1, 1, 2))))}
        always = Script(wrong_argument=1.0)
        return [
            _with(action, arguments=gold.imperfect(action.arguments, always, rng)) if index in chosen else action
            for index, action in enumerate(actions)
        ]

    return altered


def _user_altered(actions: Actions, others: Actions, rng: random.Random) -> Actions:
    """The user does something else than it should: less, other things, or the right ones with other arguments."""
    played = _altered_by("user")(actions, others, rng)
    strange = [action for action in others if action.requestor == "user"]
    played = [action for action in played if action.requestor != "user" or rng.random() > 0.4]
    extra = rng.sample(strange, min(len(strange), 2))
    return _inserted(played, extra, rng)


def _extra_writes(actions: Actions, others: Actions, rng: random.Random) -> Actions:
    strange = [action for action in others if action.requestor == "assistant"]
    return _inserted(actions, rng.sample(strange, min(len(strange), 3)), rng)


def _premature_stop(actions: Actions, _: Actions, rng: random.Random) -> Actions:
    return actions[: rng.randrange(len(actions))] if actions else []


def _malformed(actions: Actions, others: Actions, rng: random.Random) -> Actions:
    """Calls that no tool takes: an unknown name, an argument that does not exist, is missing or is of a wrong type."""
    some = rng.choice(actions or others)
    arguments = dict(some.arguments)
    first = min(arguments, default="x")
    broken = [
        _with(some, name="no_such_tool"),
        _with(some, arguments={**arguments, "no_such_argument": 1}),
        _with(some, arguments={key: value for key, value in arguments.items() if key != first}),
        _with(some, arguments={**arguments, first: rng.choice([None, 7, [], {"a": []}, "", [{"b": 1}]])}),
    ]
    return _inserted(actions, rng.sample(broken, rng.choice((1, 2, 3))), rng)


def _too_many_errors(actions: Actions, others: Actions, rng: random.Random) -> Actions:
    failing = _with(rng.choice(actions or others), name="no_such_tool", requestor="assistant")
    return _inserted(actions, [failing] * 12, rng)


def _inserted(actions: Actions, extra: Actions, rng: random.Random) -> Actions:
    played = list(actions)
    for action in extra:
        played.insert(rng.randint(0, len(played)), action)
    return played


def _with(action: compat.Action, **changes: Any) -> compat.Action:
    return action.model_copy(update=changes)


KINDS: dict[str, Perturb] = {
    "gold": lambda actions, _, __: actions,
    "dropped": _dropped,
    "repeated": _repeated,
    "reordered": _reordered,
    "altered": _altered_by("assistant"),
    "extra writes": _extra_writes,
    "premature stop": _premature_stop,
    "user altered": _user_altered,
    "not communicated": lambda actions, _, __: actions,
    "malformed": _malformed,
    "too many errors": _too_many_errors,
}


class Puppet(compat.LLMAgent):  # type: ignore[misc]
    """An official agent that plays a task's gold actions, without tokens."""

    def __init__(self, world: compat.Environment, task: compat.Task) -> None:
        super().__init__(tools=world.get_tools(), domain_policy=world.get_policy(), llm="puppet")
        self._steps = gold.policy_steps(task, "llm", Script(), random.Random(0))
        self._turn = 0

    def set_seed(self, seed: int) -> None:
        pass

    def generate_next_message(self, message: Any, state: Any) -> tuple[compat.AssistantMessage, Any]:
        step = self._steps[min(self._turn, len(self._steps) - 1)]
        calls = [
            compat.ToolCall(id=f"call_{self._turn}_{index}", name=name, arguments=arguments)
            for index, (name, arguments) in enumerate(step.calls)
        ]
        self._turn += 1
        return compat.AssistantMessage(role="assistant", content=step.text or None, tool_calls=calls or None), state


def play(world: compat.Environment, task: compat.Task, script: compat.Task) -> compat.Orchestrator:
    """The official orchestrator, after its run of `task` in `world`, both sides playing the actions of `script`."""
    user = scripted_user.ScriptedUser(script, compat.user_tools(world, None), User(), 0, Deadline(600.0))
    orchestrator = compat.Orchestrator(
        domain=world.get_domain_name(),
        agent=Puppet(world, script),
        user=user,
        environment=world,
        task=task,
        max_steps=200,
        seed=0,
    )
    orchestrator.run()
    return orchestrator


@dataclass(frozen=True)
class Comparison:
    """What the two evaluators made of one conversation."""

    task: TaskRef
    kind: str
    evaluator: str
    """`fast`, or `official` where fast evaluation did not trust itself."""
    reward: float
    difference: str
    """Empty: none."""


def compare(task_ref: TaskRef, kind: str, seed: int = 0) -> Comparison:
    """Play the task in that kind and score it both ways."""
    rng = random.Random(f"{seed}:{task_ref.domain}:{task_ref.task_id}:{kind}")
    task = tasks.get(task_ref)
    script = task.model_copy(deep=True)
    everything = [
        action
        for other in tasks.references(task_ref.domain)
        for action in tasks.get(other).evaluation_criteria.actions or []
    ]
    script.evaluation_criteria.actions = KINDS[kind](script.evaluation_criteria.actions or [], everything, rng)
    if kind == "not communicated":
        script.evaluation_criteria.communicate_info = []
    shared = domain.get(task_ref.domain)
    world = shared.environment()
    orchestrator = play(world, task, script)
    reason, messages = orchestrator.termination_reason.value, orchestrator.get_trajectory()
    end = shared.end_state(world)
    fast = evaluation.score(orchestrator, end, messages, task, shared, reason, Evaluation()).reward_info.model_dump()
    official = evaluation.evaluate(messages, task, task_ref.domain, reason).model_dump()
    by = "fast" if played.leads_to(messages, end, orchestrator.trajectory, solo=False) else "official"
    return Comparison(task_ref, kind, by, official["reward"], "" if fast == official else f"{fast} != {official}")


def _compare_all(domain_name: str, every: int, seed: int, part: int, parts: int) -> list[Comparison]:
    chosen = tasks.references(domain_name)[::every][part::parts]
    return [compare(task, kind, seed) for task in chosen for kind in KINDS]


def main() -> None:
    """Everything, in two processes; exit code 1 when anything differs."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth task")
    parser.add_argument("--domain", choices=DOMAINS, action="append")
    arguments = parser.parse_args()
    found: list[Comparison] = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        jobs = [
            processes.submit(_compare_all, name, arguments.every, arguments.seed, part, 8)
            for name in arguments.domain or DOMAINS
            for part in range(8)
        ]
        for job in jobs:
            found += job.result()
            print(f"{len(found)} trajectories", file=sys.stderr)
    table = Table(title=f"Fast against official evaluation, τ²-bench {compat.DISTRIBUTION} {compat.VERSION}")
    for column in ("domain", "kind", "trajectories", "scored fast", "reward 1", "differences"):
        table.add_column(column, justify="left" if column in ("domain", "kind") else "right")
    counts = Counter((c.task.domain, c.kind) for c in found)
    for (name, kind), count in sorted(counts.items(), key=lambda item: (item[0][0], list(KINDS).index(item[0][1]))):
        those = [c for c in found if (c.task.domain, c.kind) == (name, kind)]
        numbers = (
            count,
            sum(c.evaluator == "fast" for c in those),
            sum(c.reward == 1.0 for c in those),
            sum(bool(c.difference) for c in those),
        )
        table.add_row(name, kind, *map(str, numbers))
    Console(width=100).print(table)
    differing = [c for c in found if c.difference]
    print(f"{len(found)} trajectories, {len(differing)} differences")
    for comparison in differing:
        print(comparison)
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
