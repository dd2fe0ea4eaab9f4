"""Bundle: the viewer's JavaScript modules and style sheets as the one script and the one style of a page.

Invariant: the page may run this script and this style and nothing else, and may ask the network for nothing: its
content security policy names their hashes.

Each module becomes a function that runs once and returns what it exports, and each `import` reads from such results. So
names that a module does not export are its own, as they are in modules.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

_HERE = Path(__file__).parent
APP, STYLE = _HERE / "app", _HERE / "style"

_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:function|const) (\w+))", re.MULTILINE)


def script() -> str:
    """All modules that `main.js` needs, each after those that it imports."""
    bodies: dict[str, str] = {}
    _collect("main", bodies)
    return '"use strict";\n(() => {\n' + "\n".join(bodies.values()) + "\n})();\n"


def _collect(name: str, bodies: dict[str, str]) -> None:
    """Add what the module imports, then the module. There are no circles among them."""
    if name in bodies:
        return
    text = (APP / f"{name}.js").read_text(encoding="utf-8")
    for _, imported in _IMPORT.findall(text):
        _collect(imported, bodies)
    exported = ", ".join(found for _, found in _EXPORT.findall(text))
    body = _EXPORT.sub(r"\1", _IMPORT.sub(r"const \1 = \2Module;", text))
    bodies[name] = f"const {name}Module = (() => {{\n{body}return {{ {exported} }};\n}})();\n"


def style() -> str:
    """All style sheets, in the order of their names."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(STYLE.glob("*.css")))


def policy(script_text: str, style_text: str) -> str:
    """The content security policy of a page with this script and this style."""
    return (
        f"default-src 'none'; script-src '{_hash(script_text)}'; style-src '{_hash(style_text)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def before_blocks(index_block: str) -> str:
    """The page up to its blocks.

    Args:
        index_block: the element that holds the list of episodes. It stands before the script, so that the list is shown
            while the browser still reads the rest of the file.
    """
    script_text, style_text = script(), style()
    page = (_HERE / "template.html").read_text(encoding="utf-8")
    parts = {
        "POLICY": policy(script_text, style_text),
        "STYLE": style_text,
        "INDEX": index_block,
        "SCRIPT": script_text,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)


AFTER_BLOCKS = "</body>\n</html>\n"
