"""Random tool calls of a domain, for a policy that tries anything.

Invariant: a call follows from the seed alone. It names a tool of the agent and has every argument that the tool
requires. A value is taken from the domain's gold actions where they have one for an argument of that name, so that ids
exist in the database.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from rollout_service.tau2 import domain, gold, tasks
from rollout_service.tau2.once import once

_PLAIN: dict[str, list[Any]] = {
    "string": ["", "1", "none"],
    "integer": [0, 1, 2],
    "number": [0.0, 1.0, 2.5],
    "boolean": [True, False],
    "array": [[]],
    "object": [{}],
}
"""Values for an argument of which no gold action has one, by the schema's type."""


@once
def _known_values(name: str) -> Mapping[str, list[Any]]:
    """Values of the gold actions of all of the domain's tasks, by the argument's name, each value once."""
    found: dict[str, dict[str, Any]] = {}
    for reference in tasks.references(name, tasks.WHOLE_SET):
        for _, run in gold.blocks(tasks.get(reference)):
            for action in run:
                for argument, value in action.arguments.items():
                    found.setdefault(argument, {})[json.dumps(value, sort_keys=True)] = value
    return {argument: list(values.values()) for argument, values in found.items()}


def random_steps(shared: domain.Domain, count: int, seed: str) -> list[gold.Step]:
    """`count` turns with one call each, then a goodbye."""
    rng = random.Random(seed)
    schemas = [schema["function"] for schema in shared.tool_schemas(False)]
    known = _known_values(shared.name)
    steps = []
    for _ in range(count):
        function = rng.choice(schemas)
        parameters = function.get("parameters", {})
        properties = parameters.get("properties", {})
        arguments = {
            argument: rng.choice(known.get(argument) or _values(properties.get(argument, {})))
            for argument in parameters.get("required", [])
        }
        steps.append(gold.Step(gold.CALLS, calls=((function["name"], arguments),)))
    return [*steps, gold.Step(gold.SAY, gold.GOODBYE)]


def _values(schema: Mapping[str, Any]) -> list[Any]:
    return list(schema.get("enum") or _PLAIN.get(str(schema.get("type")), ["1"]))
