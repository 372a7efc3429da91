"Cells that `nbdev_test` skips (slow, gpu, data) still parse, import what exists, and call it with arguments it takes."
import ast
import configparser
import copy
import importlib
import inspect
import json
from collections import ChainMap

import nbformat
import pytest
from nbdev.process import extract_directives
from nbformat.v4 import new_code_cell, new_notebook

from conftest import ROOT

config = configparser.ConfigParser()
config.read(ROOT/"settings.ini")
FLAGS = set(config["DEFAULT"]["tst_flags"].split())
NOTEBOOKS = sorted((ROOT/"nbs").rglob("*.ipynb"))


def of_def(args):
    "The signature of a function of the notebook; its defaults and annotations are not evaluated."
    bare, none = copy.deepcopy(args), ast.Constant(None)
    bare.defaults = [none for _ in bare.defaults]
    bare.kw_defaults = [d and none for d in bare.kw_defaults]
    for a in ast.walk(bare):
        if isinstance(a, ast.arg): a.annotation = None
    return inspect.signature(eval(f"lambda {ast.unparse(bare)}: None"))


def of_object(x):
    try: return inspect.signature(x)
    except (TypeError, ValueError): return None


class Reader(ast.NodeVisitor):
    """Reads cells in order. `names` holds the signature of each name in scope, None where it is not known.

    Calls are bound where `strict`: in skipped cells, and in every function, since perhaps only a skipped cell calls it."""

    def __init__(self): self.names, self.faults, self.strict = ChainMap(), [], False

    def inside(self, nodes):
        outer, self.names = self.names, self.names.new_child()
        for node in nodes: self.visit(node)
        self.names = outer

    def function(self, node):
        for x in node.decorator_list: self.visit(x)
        outer, self.strict = self.strict, True
        self.inside([node.args, *node.body])
        self.strict = outer

    def visit_FunctionDef(self, node):
        self.names[node.name] = None if node.decorator_list else of_def(node.args)
        self.function(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        self.names[node.name] = None
        for x in (*node.decorator_list, *node.bases): self.visit(x)
        methods = [x for x in node.body if isinstance(x, (ast.FunctionDef, ast.AsyncFunctionDef))]
        self.inside([x for x in node.body if x not in methods])
        for x in methods: self.function(x)

    def visit_arguments(self, node):
        for x in (*node.defaults, *filter(None, node.kw_defaults)): self.visit(x)
        for x in (*node.posonlyargs, *node.args, *node.kwonlyargs, node.vararg, node.kwarg):
            if x: self.names[x.arg] = None

    def visit_Lambda(self, node): self.inside([node.args, node.body])
    def visit_ListComp(self, node): self.inside([*node.generators, node.elt])
    def visit_DictComp(self, node): self.inside([*node.generators, node.key, node.value])
    visit_SetComp = visit_GeneratorExp = visit_ListComp

    def visit_Assign(self, node):
        self.visit(node.value)
        for x in node.targets: self.visit(x)
        first = node.targets[0]
        if isinstance(node.value, ast.Lambda) and isinstance(first, ast.Name): self.names[first.id] = of_def(node.value.args)

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Store): self.names[node.id] = None

    def visit_ExceptHandler(self, node):
        self.names[node.name] = None
        self.generic_visit(node)

    def visit_Import(self, node):
        for a in node.names:
            self.names[(a.asname or a.name).split(".")[0]] = None
            if a.name.split(".")[0] == "ccd": self.module(a.name)

    def visit_ImportFrom(self, node):
        module = self.module(node.module) if (node.module or "").split(".")[0] == "ccd" and not node.level else None
        for a in node.names:
            self.names[a.asname or a.name] = of_object(getattr(module, a.name, None))
            if module and a.name != "*" and not hasattr(module, a.name):
                self.module(f"{node.module}.{a.name}", f"{node.module} has no {a.name}")

    def module(self, name, fault=None):
        try: return importlib.import_module(name)
        except ImportError as e: self.faults.append(fault or f"{name} does not import ({e})")

    def visit_Call(self, node):
        self.generic_visit(node)
        known = self.names.get(node.func.id) if isinstance(node.func, ast.Name) else None
        if not known or not self.strict: return
        given, named = [a for a in node.args if not isinstance(a, ast.Starred)], {k.arg: None for k in node.keywords if k.arg}
        hidden = len(given) < len(node.args) or len(named) < len(node.keywords)
        try: (known.bind_partial if hidden else known.bind)(*given, **named)
        except TypeError as e: self.faults.append(f"{ast.unparse(node)[:80]}: {e}; it is {node.func.id}{known}")


def faults(name, nb):
    "What is wrong in a notebook: a line each, with the id of its cell."
    reader, found = Reader(), []
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        reader.faults, reader.strict = [], bool(FLAGS & set(extract_directives(cell, remove=False)))
        try: reader.visit(ast.parse(cell.source))
        except SyntaxError as e: reader.faults.append(f"not Python: line {e.lineno}: {(e.text or '').strip()} ({e.msg})")
        found += [f"{name}, cell {cell.id}: {fault}" for fault in reader.faults]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_skipped_cells_still_fit_the_library(path):
    found = faults(path.relative_to(ROOT), nbformat.read(path, as_version=4))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_cell_has_a_name_of_its_own(path):
    ids = [cell["id"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert sorted(set(ids)) == sorted(ids)


START = """from ccd.benchmarks import read_benchmark as read
def own(a, b=1, *, c: int = nowhere): return a
short = lambda a: a"""


def look(source, flag="#| data\n"):
    return faults("made-up", new_notebook(cells=[new_code_cell(START, id="start"), new_code_cell(flag + source, id="here")]))


@pytest.mark.parametrize("source, words", [
    ("x = (1", "not Python: line 2: x = (1"),
    ("!ls", "not Python: line 2: !ls"),
    ("%time read()", "not Python: line 2: %time"),
    ("import ccd.nowhere", "ccd.nowhere does not import"),
    ("from ccd.nowhere import a", "ccd.nowhere does not import"),
    ("from ccd import nowhere", "ccd has no nowhere"),
    ("from ccd.data import Photos, Photo", "ccd.data has no Photo"),
    ("def f():\n    from ccd.data import Photo", "ccd.data has no Photo"),
    ("if x:\n    from ccd.data import Photo", "ccd.data has no Photo"),
    ("read('voc07', '.', 'train', dificult=True)", "unexpected keyword argument 'dificult'"),
    ("read('voc07', '.', 'train', False, 1)", "too many positional arguments"),
    ("read('voc07', '.')", "missing a required argument: 'split'"),
    ("read('voc07', '.', 'train', name='voc12')", "multiple values for argument 'name'"),
    ("read(*x, dificult=True)", "'dificult'"),
    ("read(**x, dificult=True)", "'dificult'"),
    ("read(1, 2, 3, 4, 5, *x)", "too many"),
    ("from ccd.data import Photos\nPhotos(1, 2, 3, 4, 5)", "too many"),
    ("own()", "missing a required argument: 'a'"),
    ("own(1, 2, 3)", "too many"),
    ("own(1, d=2)", "'d'"),
    ("short(1, 2)", "too many"),
    ("def late(a): pass\nlate(1, 2)", "too many"),
    ("def f(x): return own(x, d=1)", "'d'"),
    ("def f(x=own(1, d=1)): return x", "'d'"),
    ("y = lambda x: own(x, d=1)", "'d'"),
    ("[own(x, d=1) for x in y]", "'d'"),
    ("z.f(g=own(1, d=1))", "'d'"),
    ("class C:\n    def f(self): own(1, d=1)", "'d'")])
def test_a_broken_cell_is_named(source, words):
    fault, = look(source)
    assert fault.startswith("made-up, cell here: ") and words in fault


@pytest.mark.parametrize("source", [
    "own(1); own(1, 2, c=3); own(a=1); short(1)",
    "read('voc07', '.', split='train', difficult=True)",
    "read(*x); own(**x); own(*x, c=1); own(1, *x)",
    "x.own(1, 2, 3)",
    "own = 1\nown(1, 2, 3)",
    "for own in x: own(1, 2, 3)",
    "with x as own: own(1, 2, 3)",
    "[own(1, 2, 3) for own in x]",
    "(lambda own: own(1, 2, 3))(x)",
    "def f(own): return own(1, 2, 3)",
    "def own(a, b, c): pass\nown(1, 2, 3)",
    "def f():\n    from os import path as own\n    own(1, 2, 3)",
    "class C:\n    def short(self, a, b): return short(a)",
    "@x\ndef own(a): pass\nown(1, 2, 3)"])
def test_a_sound_cell_is_let_be(source): assert look(source) == []


def test_what_runs_anyway_is_not_bound_but_its_functions_are():
    assert look("test_fail(lambda: own(1, 2, 3)); own(1, d=2)", flag="") == []
    assert len(look("def f(): own(1, 2, 3)", flag="")) == len(look("from ccd.data import Photo", flag="#| hide\n")) == 1
