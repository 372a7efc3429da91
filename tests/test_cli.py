"What a user types, and what is said back."
import csv
import json
import shutil

import pytest

from ccd.benchmarks import read_benchmark

FAST = ["--epochs", 2, "--set", "train.warmup=1", "--set", "student.size=64", "--set", "views.size=64", "--set", "views.per_image=2"]


def test_folder_to_model_to_tags(ccd, photos, tmp_path):
    folder = tmp_path/"photos"
    shutil.copytree(photos, folder/"deep"/"er")
    (folder/"text.jpg").write_text("not an image")
    (tmp_path/"classes.txt").write_text("star\nheart\nhouse\n")
    code, out, _ = ccd("fit", folder, "--classes", tmp_path/"classes.txt", "--preset", "toy", "--out", tmp_path/"run", *FAST)
    assert code == 0 and "left out 1, of other kinds 0 (reasons: " in out
    assert "text.jpg" in (tmp_path/"run"/"quarantine.csv").read_text()
    assert "teacher" not in json.loads((tmp_path/"run"/"metrics.json").read_text())

    code, out, err = ccd("predict", tmp_path/"run", folder, "--out", tmp_path/"tags.csv")
    assert code == 0 and "30 photographs" in out and any("text.jpg" in line for line in err)
    rows = list(csv.DictReader(open(tmp_path/"tags.csv")))
    assert len(rows) == 30 and list(rows[0]) == ["image", "tags", "star", "heart", "house"]
    assert all(0 <= float(r["star"]) <= 1 for r in rows)
    assert ccd("predict", tmp_path/"run", folder, "--out", tmp_path/"tags.csv")[0] == 2


def test_benchmark_with_any_open_clip_teacher(ccd, toy_root, clip_folder, tmp_path):
    code, out, _ = ccd("fit", "--benchmark", "toy", "--root", toy_root, "--eval-split", "test", "--teacher", f"local-dir:{clip_folder}",
                       "--out", tmp_path/"run", "--limit", 8, "--backbone", "torchvision/resnet18", "--weights", "random",
                       "--set", "student.freeze=0", "--per-class", *FAST)
    assert code == 0 and "student" in out and "umbrella" in out
    m = json.loads((tmp_path/"run"/"metrics.json").read_text())
    assert set(m["teacher"]) >= {"train_mean_ap", "eval_mean_ap"} and set(m["labels"]) == {"initial", "local", "final"}
    b = read_benchmark("toy", toy_root, "test")
    assert list(m["student"]["eval_ap"]) == [c for c, there in zip(b.classes, b.truth[:8].any(0)) if there]
    assert m["views_per_image"] == 2 and m["device"] == "cpu"
    assert json.loads((tmp_path/"run"/"config.json").read_text())["settings"]["teacher"]["name"].startswith("local-dir:")
    code, out, _ = ccd("evaluate", tmp_path/"run", "--benchmark", "toy", "--root", toy_root, "--split", "test", "--limit", 8)
    assert code == 0 and f"mAP {m['student']['eval_mean_ap']:.2f}" in out


def sets(*pairs): return [x for p in pairs for x in ("--set", p)]


def test_compare_picks_its_rows(ccd, toy_root, tmp_path):
    code, out, _ = ccd("compare", "--benchmark", "toy", "--root", toy_root, "--eval-split", "test", "--preset", "toy", "--seeds", 1,
                       "--limit", 8, "--methods", "an, an@single", "--table", tmp_path/"table.csv", "--out", tmp_path/"rows.json",
                       *sets("train.epochs=1", "train.warmup=1", "student.size=64"))
    assert code == 0 and "an@single" in out
    rows = json.loads((tmp_path/"rows.json").read_text())["rows"]
    assert [(r["method"], r["supervision"], r["teacher_passes"]) for r in rows] == [("an", "none", 8), ("an@single", "single", 0)]
    tidy = list(csv.DictReader(open(tmp_path/"table.csv")))
    assert [(r["method"], r["eval_mean_ap"]) for r in tidy] == [(r["method"], f"{r['eval_mean_ap']:.4f}") for r in rows]


def test_ablate_makes_a_grid(ccd, toy_root, tmp_path):
    args = ["ablate", "debias", "--benchmark", "toy", "--root", toy_root, "--eval-split", "test", "--preset", "toy", "--seeds", 1,
            "--limit", 8, "--table", tmp_path/"rows.csv", "--figure", tmp_path/"rows.svg", "--out", tmp_path/"rows.json",
            *sets("train.epochs=2", "train.warmup=1", "student.size=64", "views.size=64", "views.per_image=1")]
    code, out, _ = ccd(*args)
    assert code == 0 and "debiasing" in out and "1 seed" in out
    rows = list(csv.DictReader(open(tmp_path/"rows.csv")))
    assert [r["method"] for r in rows] == ["without", "with"] and all(0 <= float(r["ap.star"]) <= 100 for r in rows)
    assert "</svg>" in (tmp_path/"rows.svg").read_text()
    made = (tmp_path/"rows.json").read_text()
    assert ccd(*args)[0] == 0 and (tmp_path/"rows.json").read_text() == made, "nothing is made twice"


def test_demo_draws_compares_and_reports(ccd, tmp_path):
    mine = tmp_path/"mine"
    mine.mkdir()
    (mine/"metrics.json").write_text("of a run")
    code, out, err = ccd("demo", "--out", mine, "--train", 60, "--test", 30, *FAST[2:])
    assert code == 2 and "not from a demo" in err[-1]
    assert [(p.name, p.read_text()) for p in mine.iterdir()] == [("metrics.json", "of a run")]
    code, out, _ = ccd("demo", "--out", tmp_path/"demo", "--train", 60, "--test", 30, "--set", "train.epochs=2", *FAST[2:])
    rows = json.loads((tmp_path/"demo"/"metrics.json").read_text())["rows"]
    assert code == 0 and [r["method"] for r in rows] == ["zero_shot", "student_global", "student_grid", "ccd", "supervised"]
    assert all(f"{r['eval_mean_ap']:.1f}" in out for r in rows) and str(tmp_path/"demo"/"report.html") in out
    page = (tmp_path/"demo"/"report.html").read_text()
    assert page.count("data:image/png") == 5 and "://" not in page and "</html>" in page


class Mistakes:
    "Commands that are wrong in one thing, by what is wrong, with words that the line must have."
    def __init__(self, tmp, photos, toy_root):
        for name in ("empty", "broken", "full"): (tmp/name).mkdir()
        (tmp/"broken"/"a.jpg").write_text("x")
        (tmp/"full"/"x").touch()
        self.tmp, self.photos = tmp, photos
        self.benchmark = ["--benchmark", "toy", "--root", toy_root]
        self.measured = [*self.benchmark, "--eval-split", "test"]

    def fit(self, *more, classes="dog, cat", photos=None): return ["fit", photos or self.photos, "--classes", classes, *more]

    def listed(self, text):
        "`fit` with a class file of these bytes."
        path = self.tmp/f"classes{len(text)}.txt"
        path.write_bytes(text)
        return self.fit(classes=path)


MISTAKES = {
    "no folder": ("is not a folder", lambda m: m.fit(photos=m.tmp/"nowhere")),
    "no images": ("no images found below", lambda m: m.fit(photos=m.tmp/"empty")),
    "all broken": ("none of the 1 images", lambda m: m.fit(photos=m.tmp/"broken")),
    "no classes": ("--classes is missing", lambda m: ["fit", m.photos]),
    "class file": ("no such file", lambda m: m.fit(classes="nowhere.txt")),
    "not text": ("cannot be read as UTF-8", lambda m: m.listed(b"dog\n\xff\xfe\n")),
    "duplicate": ("is there twice", lambda m: m.fit(classes="dog, cat, Dog")),
    "empty name": ("class 2 is empty", lambda m: m.listed(b"dog\n\ncat\n")),
    "one class": ("at least two", lambda m: m.listed(b"dog\n")),
    "benchmark": ("unknown benchmark", lambda m: ["fit", "--benchmark", "voc99"]),
    "no data": ("is missing: --root must be", lambda m: ["fit", "--benchmark", "voc07", "--root", m.tmp]),
    "split": ("has the splits test, train", lambda m: ["fit", *m.benchmark, "--train-split", "val"]),
    "out": ("exists already", lambda m: m.fit("--out", m.tmp/"full")),
    "teacher": ("unknown teacher", lambda m: m.fit("--teacher", "clip")),
    "teacher tag": ("open_clip knows", lambda m: m.fit("--teacher", "RN50/opnai")),
    "hub": ("the weights could not be loaded", lambda m: m.fit("--teacher", "hf-hub:org/name")),
    "backbone": ("neither torchvision/NAME", lambda m: m.fit("--backbone", "resnet17")),
    "weights": ("is no file", lambda m: m.fit("--weights", "nowhere.pth")),
    "setting": ("unknown setting 'labels.alfa'", lambda m: m.fit("--set", "labels.alfa=.2")),
    "value": ("labels.alpha = '7'", lambda m: m.fit("--set", "labels.alpha=7")),
    "preset": ("unknown preset", lambda m: m.fit("--preset", "papper")),
    "device": ("is not available here", lambda m: m.fit("--device", "cuda:99")),
    "pair": ("write it as NAME=VALUE", lambda m: m.fit("--set", "labels.alpha")),
    "both": ("one of the two", lambda m: m.fit(*m.benchmark)),
    "classes too": ("has its own", lambda m: ["fit", *m.benchmark, "--classes", "dog, cat"]),
    "nothing to measure": ("needs --benchmark", lambda m: m.fit("--eval-split", "val")),
    "fetch": ("cannot be fetched", lambda m: ["data", "nuswide", "--root", m.tmp]),
    "fetch what": ("unknown benchmark", lambda m: ["data", "voc99"]),
    "method": ("unknown method 'an@half'", lambda m: ["compare", *m.measured, "--methods", "ccd,an@half"]),
    "grid": ("unknown ablation 'table9'", lambda m: ["ablate", "table9", *m.measured]),
    "grid row": ("unknown row '0.5'", lambda m: ["ablate", "fig6b", *m.measured, "--rows", "0.4,0.5"]),
    "table": ("end it in .csv or .md or .parquet", lambda m: ["ablate", "debias", *m.measured, "--table", "rows.txt"]),
    "table folder": ("nowhere is not a folder", lambda m: ["compare", *m.measured, "--table", "nowhere/rows.csv"]),
    "figure": ("end it in .png or .pdf or .svg", lambda m: ["ablate", "debias", *m.measured, "--figure", "rows.gif"]),
    "tags": ("nowhere is not a folder", lambda m: ["predict", m.tmp, m.photos, "--out", "nowhere/tags.csv"]),
    "labels": ("end it in .csv or .md or .parquet", lambda m: ["label", m.photos, "--classes", "dog, cat", "--out", "labels.txt"]),
    "rows": ("end it in .json", lambda m: ["ablate", "debias", *m.measured, "--out", "rows.csv"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_line(ccd, photos, toy_root, tmp_path, case):
    words, make = MISTAKES[case]
    args = make(Mistakes(tmp_path, photos, toy_root))
    if "--out" not in args and args[0] != "data": args += ["--out", tmp_path/("run.json" if args[0] in ("compare", "ablate") else "run")]
    code, out, err = ccd(*args)
    assert code == 2 and out == ""
    assert len(err) == 1 and err[0].startswith("ccd: ") and words in err[0], err
    run = tmp_path/"run"
    assert not (tmp_path/"run.json").exists() and not (run.exists() and any(run.iterdir())), "the mended command must find its --out free"
