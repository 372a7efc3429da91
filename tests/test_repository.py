"The repository keeps its own rules: notebooks are the source of truth, clean, and in layers."
import re
import sys

import nbformat
import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT/"tests"))
NOTEBOOKS = sorted((ROOT/"nbs").rglob("*.ipynb"))
MODULES = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name) and p.parent.name == "nbs"]


def test_readme_is_built_from_the_index():
    from readme import build
    assert (ROOT/"README.md").read_text() == build(), "run: make prep"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean(path):
    assert path.stat().st_size <= 500_000
    nb = nbformat.read(path, as_version=4)
    assert "widgets" not in nb.metadata
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        assert cell.execution_count is None and not cell.metadata
        lines = [s for s in cell.source.splitlines() if s.strip() and not s.startswith("#")]
        if "#| export" in cell.source: assert len(lines) <= 60, f"an exported cell of {len(lines)} lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_module_imports_only_from_lower_numbers(path):
    number = {p.stem[3:]: int(p.stem[:2]) for p in MODULES}
    module = ROOT/"ccd"/f"{path.stem[3:]}.py"
    assert module.is_file()
    text = module.read_text()
    assert text.count("\n") <= 300
    for name in re.findall(r"^\s*from (?:ccd)?\.(\w+) import", text, re.M): assert number[name] < int(path.stem[:2]), f"{path.stem} imports {name}"
    if path.stem != "06_plots": assert "matplotlib" not in text


def test_floors_keep_known_holes_out():
    import PIL, pyarrow, torch
    v = lambda s: tuple(int(x) for x in re.findall(r"\d+", s)[:3])
    assert v(torch.__version__) >= (2, 10) and v(PIL.__version__) >= (12, 3) and v(pyarrow.__version__) >= (14, 0, 1)
