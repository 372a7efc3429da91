"What ccd imports is what it declares, and nothing else; the version stands once, or agrees."
import ast
import re
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions

from conftest import ROOT

CFG = ConfigParser(delimiters=["="])
CFG.read(ROOT/"settings.ini", encoding="utf-8")
CFG = CFG["DEFAULT"]


def plain(name):
    "A distribution's name as pip compares it."
    return re.sub(r"[-_.]+", "-", name).lower()


def names(key):
    "The distributions that settings.ini lists under `key`."
    return {plain(re.split(r"[<>=\[]", r)[0]) for r in CFG[key].split()}


def imported():
    "The first names of all modules that ccd/*.py import, without Python's own and ccd."
    found = set()
    for path in (ROOT/"ccd").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import): found |= {a.name.split(".")[0] for a in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"ccd"}


def test_what_is_imported_is_declared_and_nothing_else():
    made_by = packages_distributions()
    used = {module: {plain(d) for d in made_by.get(module, [module])} for module in imported()}  # an extra need not be installed
    declared = names("requirements") | names("heif_requirements")
    assert not {module for module, by in used.items() if not by & declared}, "imported and not declared in settings.ini"
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT/"ccd").glob("*.py"))
    weights = {d for d in declared if d.replace("-", "_") in source}  # packages that hold files only are found by name
    assert not declared - set().union(*used.values()) - weights, "declared in settings.ini and not imported"


def test_setup_installs_what_the_house_is_built_of():
    every = names("requirements") | names("dev_requirements")
    fixed = "jupyterlab nbdev torch torchvision open-clip-torch matplotlib numpy scikit-learn pillow pytest"
    assert every >= set(fixed.split())
    assert not names("requirements") & {"jupyterlab", "nbdev", "fastcore", "pytest"}


def test_citation_names_this_version():
    assert f"\nversion: {CFG['version']}\n" in (ROOT/"CITATION.cff").read_text(encoding="utf-8")
