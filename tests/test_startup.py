"Start-up time is imports: what a command does not use, it does not load."
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nbdev.config import update_version

import ccd
from ccd.settings import settings
from ccd.student import create_student, save_model

HEAVY = "torch torchvision timm transformers open_clip sklearn scipy matplotlib IPython jinja2 rich pyarrow pydantic"
SAY = f"print('loaded', *sorted({HEAVY.split()} & sys.modules.keys()))"


def loaded(code, **env):
    "The heavy packages that a new process has loaded after `code`."
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}\n{SAY}"], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def command(*args):
    "Code that runs a command to its good end."
    return (f"sys.argv = {['ccd', *map(str, args)]}\nfrom ccd.cli import main\n"
            "try: main()\nexcept SystemExit as e: assert not e.code, e.code")


@pytest.mark.parametrize("code, may", [
    ("import ccd; assert {'fit', 'label', 'load'} <= {*dir(ccd)}", ""),
    ("import ccd.cli", ""),
    (command("--help"), "rich"),
    (command("settings"), "pydantic"),
    ("import ccd.run", "torch pyarrow pydantic"),
])
def test_what_is_not_used_is_not_loaded(code, may):
    assert loaded(code) <= set(may.split())


def test_fit_label_and_load_are_read_when_they_are_asked_for():
    assert "torch" in loaded("from ccd import fit, label, load\nimport ccd.run, ccd.predict\n"
                             "assert (fit, label, load) == (ccd.run.fit, ccd.run.label, ccd.predict.load)")
    with pytest.raises(AttributeError, match="module 'ccd' has no attribute 'fits'"): ccd.fits


def test_an_export_leaves_them(tmp_path):
    "nbdev writes the line of the version there, and no other."
    ours = Path(ccd.__file__).read_text(encoding="utf-8")
    (tmp_path/"__init__.py").write_text(ours.replace(f'"{ccd.__version__}"', '"0.0.0"'))
    update_version(tmp_path)
    assert (tmp_path/"__init__.py").read_text() == ours and "def __getattr__" in ours


def test_a_second_list_of_labels_asks_no_model(photos, tmp_path):
    "With every view and prompt in the cache neither the classifier nor the sentence encoder is read."
    def label(out): return loaded(command("label", photos, "--classes", "star, moon", "--limit", 2, "--out", tmp_path/out),
                                  CCD_CACHE=str(tmp_path/"cache"))
    assert "transformers" in label("a.csv")
    assert label("b.csv") <= {"torch", "pyarrow", "pydantic"}
    assert (tmp_path/"a.csv").read_bytes() == (tmp_path/"b.csv").read_bytes()


def test_a_student_at_work_needs_no_teacher(photos, tmp_path):
    torch.manual_seed(0)
    save_model(create_student(settings("toy", student__size=64).student, ["star", "moon"]), tmp_path/"model")
    seen = loaded(command("predict", tmp_path/"model", photos, "--out", tmp_path/"tags.csv"))
    assert seen.isdisjoint("transformers open_clip sklearn matplotlib IPython jinja2 rich".split())
