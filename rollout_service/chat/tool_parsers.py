"""The tool-call parsers of the `renderers` package.

Invariant: nothing else of that package is imported. Its own `__init__` also imports an OpenAI client, which takes half
a second in each process that needs a codec.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from typing import Any


@functools.cache
def tool_parsers() -> dict[str, Any]:
    """`renderers.parsers.TOOL_PARSERS`: classes of tool-call parsers by name.

    Raises:
        ModuleNotFoundError: `renderers` is not installed.
    """
    if "renderers" in sys.modules:
        return dict(importlib.import_module("renderers.parsers").TOOL_PARSERS)
    spec = importlib.util.find_spec("renderers")
    if spec is None:
        raise ModuleNotFoundError("No module named 'renderers'", name="renderers")
    sys.modules["renderers"] = importlib.util.module_from_spec(spec)  # made, but its code does not run
    try:
        return dict(importlib.import_module("renderers.parsers").TOOL_PARSERS)
    finally:  # whoever imports the package later gets all of it
        for name in [name for name in sys.modules if name.partition(".")[0] == "renderers"]:
            del sys.modules[name]
