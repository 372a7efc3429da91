"""Which faults do the tests notice? Draws one-line faults by lot, puts each into a throwaway copy of the clone, and runs what tests its
module: `python tests/mutate.py --faults 10 --seed 1`. A fault that survives wants a test, or changes nothing that anybody could see."""
import argparse
import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
COMPARE = {ast.Lt: "<= >=", ast.LtE: "< >", ast.Gt: ">= <=", ast.GtE: "> <", ast.Eq: "!=", ast.NotEq: "==",
           ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
              ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult}
PAIRS = [("argmax", "argmin"), ("amax", "amin"), ("max", "min"), ("maximum", "minimum"), ("any", "all"), ("clamp_min", "clamp_max"),
         ("ceil", "floor"), ("sum", "mean")]
OTHER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
# what only people see, or only speed and memory depend on
QUIET = {"desc", "unit", "total", "show", "encoding", "newline", "indent", "ensure_ascii", "memory_format", "num_workers", "memory",
         "batch", "batch_size", "description", "title", "help", "compression", "use_dictionary"}
PICTURES = {"plots"}
# tests that take a minute or more, and the modules that they are run for
SLOW = {"test_teachers.py": {"teacher", "clip", "load_teacher", "offline"}, "test_presets.py": {"settings"}, "test_cache.py": {"cache"},
        "test_cli.py": {"options", "cli", "demo"}}
SAID = {"log", "bar", "progress", "print", "warnings"}


def spoken(call):
    "Whether a call only tells people something."
    f = call.func
    name = f.value if isinstance(f, ast.Attribute) else f
    return isinstance(name, ast.Name) and name.id in SAID


def silent(node):
    "Texts, messages, imports, strokes of a drawing, and what is for other devices: no test here could notice a fault."
    if isinstance(node, ast.FunctionDef) and "pen" in [a.arg for a in node.args.args]: return True
    if isinstance(node, (ast.If, ast.IfExp)): return bool(re.search("cuda|mps", ast.unparse(node.test)))
    return isinstance(node, (ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom, ast.arg))


def seen(node):
    "The parts of a node in which a fault could be noticed: no annotations, and nothing that only people, speed or memory depend on."
    if isinstance(node, ast.arguments):
        names = [*[a.arg for a in node.args][len(node.args) - len(node.defaults):], *[a.arg for a in node.kwonlyargs]]
        return [default for name, default in zip(names, [*node.defaults, *node.kw_defaults]) if default and name not in QUIET]
    if isinstance(node, ast.Call) and spoken(node): return node.args[:1] if getattr(node.func, "id", "") == "progress" else []
    hidden = [*getattr(node, "decorator_list", []), getattr(node, "annotation", None), getattr(node, "returns", None)]
    hidden += [k for k in getattr(node, "keywords", []) if k.arg in QUIET]
    return [p for p in ast.iter_child_nodes(node) if not any(p is h for h in hidden)]


def words(node):
    "Whether there is text in it."
    return any(isinstance(n, ast.JoinedStr) or isinstance(getattr(n, "value", None), str) for n in ast.walk(node))


def moved(value):
    "Another constant."
    if isinstance(value, bool): return not value
    if isinstance(value, int): return value + 1 if abs(value) < 1e6 else None
    if isinstance(value, float): return (1.5*value or .5) if value == 0 or 1e-6 < abs(value) < 1e6 else None


def changed(node, **kw):
    "The text of `node` with other fields."
    return f"({ast.unparse(type(node)(**dict(ast.iter_fields(node)) | kw))})"


def faults(node):
    "(node, text in its place) of each fault in the tree."
    if silent(node): return
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
        choices = COMPARE[type(node.ops[0])]
        for op in [choices] if choices[0] in "ni" else choices.split(): yield node, f"(({left}) {op} ({right}))"
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not words(node):
        yield node, changed(node, op=ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp): yield node, changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant): yield node, f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and moved(node.value) is not None: yield node, repr(moved(node.value))
    elif isinstance(node, (ast.If, ast.IfExp)):
        for always in ("True", "False"): yield node.test, always
    elif isinstance(node, ast.comprehension):
        for test in node.ifs: yield test, "True"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not spoken(node.value): yield node, "pass"
    elif isinstance(node, (ast.Return, ast.Assign)) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
        yield node.value, changed(node.value, elts=node.value.elts[::-1])
    elif isinstance(node, ast.Call): yield from of_call(node)
    for part in seen(node): yield from faults(part)


def of_call(node):
    "A name taken for its opposite, another axis, an order or an argument left out."
    f, name = node.func, getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in OTHER:
        other = ast.Attribute(f.value, OTHER[name]) if isinstance(f, ast.Attribute) else ast.Name(OTHER[name])
        yield f, ast.unparse(other)
    if name == "sorted": yield node, f"list({ast.unparse(node.args[0])})"
    if isinstance(f, ast.Attribute):
        for a in node.args:
            if isinstance(a, ast.Constant) and a.value is not True and a.value == 1: yield a, "0"
    for k in node.keywords:
        if k.arg and k.arg not in QUIET: yield node, changed(node, keywords=[x for x in node.keywords if x is not k])


def put(source, node, text):
    "`source` with `text` in the place of `node`, whose columns count bytes."
    lines = source.encode().splitlines(keepends=True)
    at = [sum(map(len, lines[:line - 1])) + column for line, column in (
        (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))]
    whole = b"".join(lines)
    return (whole[:at[0]] + text.encode() + whole[at[1]:]).decode()


def mutant(source, node, text):
    "`source` with the fault; None where the code is the same."
    new = put(source, node, text)
    return None if ast.dump(ast.parse(new)) == ast.dump(ast.parse(source)) else new


def difference(old, new, beside=30):
    "What was and what is, with no more around it than tells where."
    new = new[1:-1] if new[0] == "(" else new
    start, end = len(os.path.commonprefix([old, new])), len(os.path.commonprefix([old[::-1], new[::-1]]))
    if max(len(old), len(new)) < 100: start = end = 0
    def cut(text): return " ".join(text[max(0, start - beside):max(start, len(text) - end) + beside].split())
    return f"{cut(old)} → {cut(new)}"


def drawn(folder, n, seed, only):
    "`n` faults (notebook, cell from 0, its new source, what changed): a module by lot, then a fault in it by lot."
    rng, sites, chosen = random.Random(seed), {}, []
    for path in sorted((folder/"nbs").glob("[0-9][0-9]_*.ipynb")):
        module = path.stem[3:]
        if module in PICTURES or only and module not in only: continue
        sites[path] = []
        for k, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type != "code" or not re.match(r"#\| export\b", cell.source): continue
            sites[path] += [(k, cell.source, *fault) for fault in faults(ast.parse(cell.source))]
    while len(chosen) < n and any(sites.values()):
        path = rng.choice([p for p in sites if sites[p]])
        k, source, node, text = sites[path].pop(rng.randrange(len(sites[path])))
        new = mutant(source, node, text)
        if new is None: continue
        line = source.splitlines()[node.lineno - 1].strip()
        chosen.append((path, k, new, f"{path.stem}, cell {k}: {line}\n          {difference(ast.unparse(node), text)}"))
    return chosen


def tested(file):
    "The modules of ccd that a test file imports, by itself or through a file of cases beside it."
    text = file.read_text(encoding="utf-8")
    found = set(re.findall(r"^\s*from ccd\.(\w+) import", text, re.M))
    if re.search(r"\bccd\(", text): found |= {"run", "predict"}  # what most commands call
    for name in re.findall(r"^from (\w+) import", text, re.M):
        other = file.with_name(f"{name}.py")
        if name != "conftest" and other.is_file(): found |= tested(other)
    return found


class Copy:
    "A throwaway copy of the clone in which tests are run."
    def __init__(self, folder, seconds):
        self.folder, self.seconds, self.clean = folder, seconds, {}
        names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True).stdout
        for name in filter(None, names.split("\0")):
            if not (ROOT/name).is_file(): continue
            (folder/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT/name, folder/name)
        here = dict(PYTHONPATH=str(folder), CCD_CACHE="none", CCD_DATA=str(folder/"nowhere"))
        self.env = os.environ | here | dict(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")

    def run(self, command):
        "Whether it passed, None where it took too long; and what it printed."
        p = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             start_new_session=True)
        try: out, _ = p.communicate(timeout=self.seconds)
        except subprocess.TimeoutExpired: return None, ""
        finally:
            if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
        return p.returncode == 0, out

    def export(self, path):
        code = "import sys; from nbdev.export import nb_export; nb_export(sys.argv[1], 'ccd')"
        passed, out = self.run([sys.executable, "-c", code, path])
        if not passed: raise SystemExit(f"{path.name} cannot be exported:\n{out}")

    def commands(self, path):
        "What tests the module of a notebook: the files of numbers worked out by hand, its own notebook, the other files that name it."
        module, by_hand, others = path.stem[3:], [], []
        for file in sorted((self.folder/"tests").glob("test_*.py")):
            named = module in tested(file)
            if file.name.startswith("test_notices"): by_hand.append((not named, f"tests/{file.name}"))
            elif module in SLOW[file.name] if file.name in SLOW else named: others.append(f"tests/{file.name}")
        pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        notebook = [Path(sys.executable).with_name("nbdev_test"), "--n_workers", "0", "--path", f"nbs/{path.name}"]
        return [pytest + [name for _, name in sorted(by_hand)], notebook, *([pytest + others] if others else [])]

    def without(self, command, out):
        "Whether the test that failed passes without the fault: else it noticed nothing."
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", out, re.M)
        again = (*command[:3], "-q", "-p", "no:cacheprovider", failed[1]) if failed else tuple(command)
        if again not in self.clean: self.clean[again] = self.run(again)
        if not self.clean[again][0]: raise SystemExit(f"fails without any fault: {again[-1]}\n{self.clean[again][1][-2000:]}")
        return failed[1] if failed else command[-1]

    def verdict(self, path, k, source):
        "What became of a fault, and the test that noticed it."
        was = {p: p.read_bytes() for p in (path, self.folder/"ccd"/f"{path.stem[3:]}.py")}
        nb = nbformat.read(path, as_version=4)
        nb.cells[k].source = source
        found = "survived", ""
        try:
            nbformat.write(nb, path)
            self.export(path)
            for command in self.commands(path):
                passed, out = self.run(command)
                if passed: continue
                found = ("timed out", command[-1]) if passed is None else ("killed", (command, out))
                break
        finally:
            for p, data in was.items(): p.write_bytes(data)
        return (found[0], self.without(*found[1])) if found[0] == "killed" else found


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--faults", type=int, default=10, help="how many")
    p.add_argument("--seed", type=int, default=0, help="of the lot")
    p.add_argument("--skip", type=int, default=0, help="so many of them were tried before")
    p.add_argument("--seconds", type=float, default=600, help="the longest that a test may take")
    p.add_argument("--module", action="append", help="draw only from this one; may be given more than once")
    p.add_argument("--list", action="store_true", help="only show what would be tried")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy, counts, start = Copy(Path(folder).resolve(), a.seconds), {}, time.monotonic()
        for path, k, source, what in drawn(copy.folder, a.faults, a.seed, a.module)[a.skip:]:
            verdict, by = ("drawn", "") if a.list else copy.verdict(path, k, source)
            counts[verdict] = counts.get(verdict, 0) + 1
            print(f"{verdict:9} {what}" + (f"\n          {by}" if by else ""), flush=True)
        seconds = time.monotonic() - start
    print(f"seed {a.seed}: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())) + f", {seconds:.0f} s")


if __name__ == "__main__": main()
