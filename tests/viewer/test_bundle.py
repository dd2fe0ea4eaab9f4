"""The page's script, made of modules."""

from __future__ import annotations

import re

from rollout_service.viewer import bundle

MODULES = {path.stem: path.read_text() for path in bundle.APP.glob("*.js")}
IMPORTS = {
    name: [
        (module, words.replace(" ", "").split(","))
        for words, module in re.findall(r'^import \{ ([^}]*) \} from "\./(\w+)\.js";$', text, re.MULTILINE)
    ]
    for name, text in MODULES.items()
}


def test_each_module_is_in_the_script_once_and_after_those_that_it_imports():
    script = bundle.script()
    starts = {name: script.index(f"const {name}Module = ") for name in MODULES}
    assert all(script.count(f"const {name}Module = ") == 1 for name in MODULES)
    assert [(a, b) for a, found in IMPORTS.items() for b, _ in found if starts[b] > starts[a]] == []
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)


def test_a_module_imports_only_what_another_exports_and_uses_it():
    exports = {
        name: set(re.findall(r"^export (?:async )?(?:function|const) (\w+)", text, re.MULTILINE))
        for name, text in MODULES.items()
    }
    wanted = [(name, module, word) for name, found in IMPORTS.items() for module, words in found for word in words]
    assert [found for found in wanted if found[2] not in exports[found[1]]] == []
    assert [found for found in wanted if len(re.findall(rf"\b{found[2]}\b", MODULES[found[0]])) < 2] == []
    assert {
        name: "import" in text for name, text in MODULES.items() if text.count("import ") != len(IMPORTS[name])
    } == {}


def test_modules_and_style_sheets_are_short_and_never_write_markup():
    files = [*bundle.APP.glob("*.js"), *bundle.STYLE.glob("*.css")]
    assert [path.name for path in files if len(path.read_text().splitlines()) > 400] == []
    assert [path.name for path in files if max(map(len, path.read_text().splitlines())) > 120] == []
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://|fetch\("
    assert [path.name for path in files if re.search(forbidden, path.read_text())] == []
    assert "</script" not in bundle.script().lower()
