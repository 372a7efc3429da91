"Faults drawn by lot are faults: each changes what the code does, none what it only says, and what notices none is not counted."
import ast
import sys

import nbformat
import pytest

from conftest import ROOT
from guards import guards, watched
from mutate import Copy, drawn, faults, mutant, put

def made(source): return {mutant(source, *fault) for fault in faults(ast.parse(source))} - {None}


@pytest.mark.parametrize("source, some", [
    ("a = b < c", {"a = ((b) <= (c))", "a = ((b) >= (c))"}), ("a = b in c", {"a = ((b) not in (c))"}), ("a = b + c", {"a = (b - c)"}),
    ("a = b and c", {"a = (b or c)"}), ("a = not b", {"a = (b)"}), ("a = 2", {"a = 3"}), ("a = .5", {"a = 0.75"}),
    ("a = True", {"a = False"}), ("a, b = [], []", set()),
    ("if b: c()", {"if True: c()", "if False: c()", "if b: pass"}), ("b.eval()", {"pass"}), ("a = b.argmax(c)", {"a = b.argmin(c)"}),
    ("a = b.sum(1)", {"a = b.mean(1)", "a = b.sum(0)", "a = b.sum(2)"}), ("a = sorted(b)", {"a = list(b)"}),
    ("a = b(c, d=e)", {"a = (b(c))"}), ("a = b, c", {"a = ((c, b))"}), ("a = [b for b in c if d]", {"a = [b for b in c if True]"}),
    ("á = 'é', (1, b)", {"á = (((1, b), 'é'))", "á = 'é', (2, b)"})])
def test_the_faults_of_a_line(source, some): assert made(source) == some


@pytest.mark.parametrize("source", [
    '"text"', "a = 'text'", "def f(a: 1) -> 2: 'text'", "a: 'x' = b", "raise E(1 + 2)", "log.info(f(1))", "a = f'{b + 1}'", "import a",
    "def f(pen): pen.disc(.5, .2)", "a = f(desc=1)", "def f(batch=64): return batch", "if x == 'cuda': a = 1", "a = 1e-12", "a = 'b' + c"])
def test_what_nobody_could_notice_is_left_alone(source): assert made(source) == set()


def test_every_fault_is_python_and_changes_something(tmp_path):
    (tmp_path/"nbs").symlink_to(ROOT/"nbs")
    found = drawn(tmp_path, 200, 0, None)
    assert len({(path, k, source) for path, k, source, _ in found}) > 190 and len({path for path, *_ in found}) > 30
    for path, k, source, what in found:
        old = nbformat.read(path, as_version=4).cells[k].source
        assert ast.dump(ast.parse(source)) != ast.dump(ast.parse(old)), what
    assert found[:9] == drawn(tmp_path, 9, 0, None) != drawn(tmp_path, 9, 1, None)
    assert {path.stem for path, *_ in drawn(tmp_path, 9, 0, ["metrics"])} == {"06_metrics"}


def test_a_fault_is_put_into_notebook_and_module_and_taken_out_again(tmp_path):
    copy = Copy(tmp_path, 60)
    path, module = tmp_path/"nbs"/"06_metrics.ipynb", tmp_path/"ccd"/"metrics.py"
    before, k = (path.read_bytes(), module.read_bytes()), 0
    cells = nbformat.read(path, as_version=4).cells
    k = next(i for i, c in enumerate(cells) if "def micro_f1" in c.source)

    def verdict(test, new, seconds=60):
        copy.seconds, copy.commands = seconds, lambda path: [[sys.executable, "-c", f"from ccd.metrics import micro_f1; {test}"]]
        found = copy.verdict(path, k, cells[k].source.replace("200.", new))
        assert (path.read_bytes(), module.read_bytes()) == before
        return found[0]
    assert verdict("assert micro_f1([1], [1]) == 100", "100.") == "killed"
    assert verdict("assert micro_f1([1], [1]) > 10", "100.") == "survived"
    with pytest.raises(SystemExit, match="fails without any fault"): verdict("assert False", "100.")


@pytest.mark.parametrize("source, left", [
    ("if a: raise E('b')", "if a: pass"), ("try: a()\nexcept E: raise F(1) from None", "try: a()\nexcept E: pass"),
    ("left[a] = b", "pass"),
    ("def f(): return a, 'b' if c else None", "def f(): return a, None"), ("def f(): yield a, 'b'", "def f(): pass")])
def test_a_guard_is_taken_away(source, left):
    (node, text), = guards(source)
    assert put(source, node, text) == left


@pytest.mark.parametrize("source", ["raise", "a[b] = c", "def f(): return a, b", "def f(): yield a, b", "return_ = 'a', 'b'"])
def test_what_is_no_guard(source): assert guards(source) == []


def test_every_guard_can_be_watched_and_taken_away():
    for path in (ROOT/"ccd").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        ast.parse(watched(source, 0))
        for node, text in guards(source): assert ast.dump(ast.parse(put(source, node, text))) != ast.dump(ast.parse(source))
