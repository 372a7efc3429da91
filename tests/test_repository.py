"The repository keeps its own rules: notebooks are the source of truth, clean, in layers, and short."
import re
import sys

import nbformat
import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT/"tests"))
NOTEBOOKS = sorted((ROOT/"nbs").rglob("*.ipynb"))
MODULES = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name) and p.parent.name == "nbs"]
NUMBER = {p.stem[3:]: int(p.stem[:2]) for p in MODULES}
CELL, MODULE, COLUMNS = 40, 250, 140


def code(path):
    "Lines of each code cell, and whether it is exported; directives left out."
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code": continue
        lines = cell.source.splitlines()
        yield [s for s in lines if not s.startswith("#|")], any(re.match(r"#\| export\b", s) for s in lines)


def test_readme_is_built_from_the_index():
    from readme import build
    text = build()
    assert (ROOT/"README.md").read_text() == text, "run: make prep"
    assert text.count("\n") <= 100, "one screen"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean_and_short(path):
    assert path.stat().st_size <= 500_000
    nb = nbformat.read(path, as_version=4)
    assert "widgets" not in nb.metadata
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        assert cell.execution_count is None and not cell.metadata
        for out in cell.outputs:
            assert out.get("name") != "stderr", f"cell {cell.id} alarms"
            shown = str(out.get("text", "")) + str(out.get("data", {}).get("text/plain", ""))
            assert not re.search(r"\d\.\d{12}", shown), f"cell {cell.id} shows all digits"
    for lines, _ in code(path):
        assert len(lines) <= CELL, f"a cell of {len(lines)} lines begins {lines[0]!r}"
        for s in lines: assert len(s) <= COLUMNS, f"a line of {len(s)} columns: {s[:60]}…"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_module_is_short_and_imports_only_from_lower_numbers(path):
    module = ROOT/"ccd"/f"{path.stem[3:]}.py"
    assert module.is_file()
    exported = sum(len(lines) for lines, is_exported in code(path) if is_exported)
    assert exported <= MODULE, f"{exported} exported lines"
    text = module.read_text()
    for name in re.findall(r"^\s*from (?:ccd)?\.(\w+) import", text, re.M):
        assert NUMBER[name] < int(path.stem[:2]), f"{path.stem} imports {name}"
    if path.stem != "07_plots": assert "matplotlib" not in text


def test_every_number_is_taken_once(): assert len(set(NUMBER.values())) == len(NUMBER)


def test_floors_keep_known_holes_out():
    import PIL
    import pyarrow
    import torch
    v = lambda s: tuple(int(x) for x in re.findall(r"\d+", s)[:3])
    assert v(torch.__version__) >= (2, 10) and v(PIL.__version__) >= (12, 3) and v(pyarrow.__version__) >= (14, 0, 1)
