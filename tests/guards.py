"""Is every guard watched? In a throwaway copy of the clone each line that refuses or leaves out is taken away, and what comes by it is
run: `python tests/guards.py --module benchmarks`. First the tests run once and tell which guards they come by; then each guard is taken
away and a dozen of its tests run again, one of which must fail. A guard that no test comes by is tried on its notebook."""
import argparse
import ast
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from mutate import SLOW, Copy, put, tested

WATCH = '''import atexit, json, os, threading
hits, lock = {}, threading.Lock()
def hit(k):
    with lock: hits.setdefault(k, []).append(os.environ.get("PYTEST_CURRENT_TEST", "").rsplit(" (", 1)[0])
@atexit.register
def say():
    with open(__file__ + ".jsonl", "a") as f: f.write(json.dumps(hits) + "\\n")
'''
HEAVY = ("torch", "torchvision", "timm", "open_clip", "transformers", "sklearn.metrics", "pyarrow.parquet", "pydantic", "typer", "pytest")


def reason(node):
    "Whether a value is, or may be, words of why something is left out."
    if isinstance(node, ast.IfExp): return reason(node.body) or reason(node.orelse)
    return isinstance(node, ast.Constant) and isinstance(node.value, str) or isinstance(node, ast.Attribute) and node.attr == "strerror"


def without(node):
    "What stands in the place of a guard that is taken away; None where the statement is none."
    if isinstance(node, ast.Raise): return "pass" if isinstance(node.exc, ast.Call) else None
    value = getattr(node, "value", None)
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        return "pass" if "left" in ast.unparse(node.targets[0]) else None
    if isinstance(node, ast.Expr) and isinstance(value, ast.Yield): value = value.value
    elif not isinstance(node, ast.Return): return None
    if not (isinstance(value, ast.Tuple) and len(value.elts) == 2 and reason(value.elts[1])): return None
    return "pass" if isinstance(node, ast.Expr) else f"return {ast.unparse(value.elts[0])}, None"


def guards(source):
    "(statement, text in its place) of each guard, in their order."
    found = [(n, without(n)) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.stmt)]
    return sorted(((n, text) for n, text in found if text), key=lambda g: (g[0].lineno, g[0].col_offset))


def watched(source, first):
    "`source` in which each guard tells its number, counted from `first`, before it acts."
    for k, (node, _) in reversed(list(enumerate(guards(source), first))):
        node_text = ast.get_source_segment(source, node)
        source = put(source, node, f"__import__('_watch').hit({k}); {node_text}")
    return source


def spread(names, most=12):
    "Some of `names`, from all over the list."
    return names[::-(-len(names)//most)] if names else []


class Guards:
    "The guards of the chosen modules, in a copy."
    def __init__(self, copy, only, chosen):
        self.copy, self.chosen, self.found = copy, chosen, []  # of `found`: path, source, statement, text in its place
        for path in sorted((copy.folder/"ccd").glob("*.py")):
            if path.stem[0] == "_" or only and path.stem not in only: continue
            source = path.read_text(encoding="utf-8")
            self.found += [(path, source, *g) for g in guards(source)]

    def files(self):
        "The test files that may come by them; those that take a minute for their own modules alone."
        modules = {path.stem for path, *_ in self.found}
        for file in sorted((self.copy.folder/"tests").glob("test_*.py")):
            if self.chosen and file.name not in self.chosen: continue
            if tested(file) & modules and (file.name not in SLOW or SLOW[file.name] & modules): yield f"tests/{file.name}"

    def tests(self):
        "Which tests come by each guard."
        sources = {path: source for path, source, *_ in self.found}
        first = 0
        (self.copy.folder/"_watch.py").write_text(WATCH)
        for path, source in sources.items():
            path.write_text(watched(source, first), encoding="utf-8")
            first += len(guards(source))
        passed, out = self.copy.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *self.files()])
        if passed is None: raise SystemExit("the tests take too long: give --seconds, --module or --tests")
        broken = set(re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", out, re.M))
        if broken: print(f"left out, since they fail with every guard in its place: {', '.join(sorted(broken))}")
        for path, source in sources.items(): path.write_text(source, encoding="utf-8")
        by = {}
        for line in (self.copy.folder/"_watch.py.jsonl").read_text().splitlines():
            for k, names in json.loads(line).items(): by.setdefault(int(k), []).extend(n for n in names if n and n not in broken)
        return {k: spread(list(dict.fromkeys(names))) for k, names in by.items()}

    def noticed(self, k, tests):
        "Whether one of `tests` fails without guard `k`; each runs in a child of this process, which has the libraries but not ccd."
        path, source, node, text = self.found[k]
        path.write_text(put(source, node, text), encoding="utf-8")
        try:
            child = os.fork()
            if not child: self.child(tests)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        finally: path.write_text(source, encoding="utf-8")

    def child(self, tests):
        import pytest
        with open(os.devnull, "w") as sink:
            for stream in (1, 2): os.dup2(sink.fileno(), stream)
        os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests])))

    def in_notebook(self, k):
        "Whether the module's own notebook fails without it."
        path, _, node, text = self.found[k]
        line = path.read_text(encoding="utf-8").splitlines()[node.lineno - 1]
        notebook = next((self.copy.folder/"nbs").glob(f"[0-9][0-9]_{path.stem}.ipynb"))
        nb = nbformat.read(notebook, as_version=4)
        cell = next(c for c in nb.cells if c.cell_type == "code" and "#| export" in c.source and line in c.source.splitlines())
        old = next(n for n, _ in guards(cell.source) if cell.source.splitlines()[n.lineno - 1] == line and n.col_offset == node.col_offset)
        kept, cell.source = notebook.read_bytes(), put(cell.source, old, text)
        nbformat.write(nb, notebook)
        command = [Path(sys.executable).with_name("nbdev_test"), "--n_workers", "0", "--path", f"nbs/{notebook.name}"]
        try: return self.copy.run(command)[0] is False
        finally: notebook.write_bytes(kept)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--module", action="append", help="only the guards of this one; may be given more than once")
    p.add_argument("--tests", action="append", metavar="FILE", help="only this file of tests; may be given more than once")
    p.add_argument("--seconds", type=float, default=1200, help="the longest that the tests may take")
    p.add_argument("--no-notebooks", action="store_true", help="what no test comes by is not tried on its notebook")
    p.add_argument("--list", action="store_true", help="only show them")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy, start = Copy(Path(folder).resolve(), a.seconds), time.monotonic()
        g, seen = Guards(copy, a.module, a.tests), 0
        by = {} if a.list else g.tests()
        os.environ |= copy.env
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.chdir(copy.folder)
        sys.path[:0] = [str(copy.folder), str(copy.folder/"tests")]
        for name in () if a.list else HEAVY: __import__(name)
        for k, (path, source, node, _) in enumerate(g.found):
            tests = by.get(k, [])
            good = not a.list and (bool(tests) and g.noticed(k, tests) or not a.no_notebooks and g.in_notebook(k))
            seen += good
            where = "" if good else f"  {path.name}:{node.lineno}: {source.splitlines()[node.lineno - 1].strip()[:110]}"
            if where: print(f"{'' if a.list else 'not noticed'}{where}{'' if tests or a.list else ' (no test comes by)'}", flush=True)
        print(f"{seen} of {len(g.found)} noticed, {time.monotonic() - start:.0f} s")


if __name__ == "__main__": main()
