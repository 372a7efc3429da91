"A teacher, a method, a benchmark and a writer are each added in one place, and everything that takes one takes the new one."
import json

import pytest
import torch

from ccd.benchmarks import BENCHMARKS, BenchmarkSource, read_benchmark
from ccd.load_teacher import TEACHERS
from ccd.methods import METHODS, Method, Outcome
from ccd.tables import WRITERS

SHORT = [x for v in ("train.epochs=2", "train.warmup=1", "student.size=64", "views.size=64", "views.per_image=1") for x in ("--set", v)]


class Dummy:
    "A teacher that knows the first class by the red of the picture, and the others by nothing."
    name, size, stride, temperature, logit_bias, fingerprint, precision, rois = "dummy", 32, 32, 1., None, "d"*64, "auto", False

    def embed_text(self, prompts): return torch.eye(14)[:len(prompts)]

    def embed_pixels(self, x):
        return torch.nn.functional.normalize(torch.cat([x.float().mean((2, 3)), torch.ones(len(x), 11)], 1), dim=-1)


def as_json(columns, path): path.write_text(json.dumps({k: list(map(str, v)) for k, v in columns.items()}))


def half(c, s): return Outcome(c.whole, torch.full((len(c.test), len(c.test.classes)), .5), 0)


def drawn(root, split, difficult=False): return read_benchmark("toy", root, split)


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    "One row in each table."
    monkeypatch.setitem(TEACHERS, "dummy", lambda s, device: Dummy())
    monkeypatch.setitem(BENCHMARKS, "drawn", BenchmarkSource(drawn, by_hand="draw it"))
    monkeypatch.setitem(METHODS, "constant", Method("halves", half))
    monkeypatch.setitem(WRITERS, ".json", as_json)


def test_a_row_in_each_table_is_all_it_takes(ccd, toy_root, tmp_path):
    photos = toy_root/"VOCdevkit"/"VOCtoy"/"JPEGImages"
    common = ["--benchmark", "drawn", "--root", toy_root, "--eval-split", "test", "--teacher", "dummy", "--preset", "toy", "--limit", 8]
    common += SHORT

    code, out, err = ccd("fit", *common, "--out", tmp_path/"run")
    assert code == 0 and "teacher, zero-shot" in out, err
    code, out, err = ccd("compare", *common, "--methods", "zero_shot,constant", "--seeds", 1, "--out", tmp_path/"rows.json",
                         "--table", tmp_path/"table.json")
    assert code == 0 and "halves" in out, err
    assert json.loads((tmp_path/"table.json").read_text())["method"] == ["zero_shot", "constant"]
    code, _, err = ccd("label", photos, "--classes", "red, green", "--teacher", "dummy", "--set", "labels.source=text",
                       "--out", tmp_path/"labels.json")
    assert code == 0 and list(json.loads((tmp_path/"labels.json").read_text()))[:4] == ["image", "split", "views", "initial.red"], err
    assert ccd("predict", tmp_path/"run", photos, "--out", tmp_path/"tags.json")[0] == 0


def test_lists_and_messages_name_the_new_rows(ccd, photos, toy_root, tmp_path):
    assert "draw it" in ccd("data")[1]
    compare = ["compare", "--benchmark", "drawn", "--root", toy_root, "--out", tmp_path/"x.json", "--methods", "none"]
    assert "constant" in ccd(*compare)[2][-1]
    fit = ["fit", photos, "--classes", "a, b", "--out", tmp_path/"y"]
    assert "dummy" in ccd(*fit, "--teacher", "nobody")[2][-1]
    assert "drawn" in ccd("fit", "--benchmark", "nothing", "--out", tmp_path/"z")[2][-1]
    assert ".json" in ccd("label", photos, "--classes", "a, b", "--out", tmp_path/"labels.txt")[2][-1]
