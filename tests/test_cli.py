"What a user types, and what is said back."
import csv
import json
import shutil
import subprocess
import sys

import pytest

FAST = ["--epochs", 2, "--set", "train.warmup=1", "--set", "student.size=64", "--set", "views.size=64", "--set", "views.per_image=2"]


def test_folder_to_model_to_tags(ccd, photos, tmp_path):
    folder = tmp_path/"photos"; shutil.copytree(photos, folder/"deep"/"er")
    (folder/"text.jpg").write_text("not an image")
    (tmp_path/"classes.txt").write_text("star\nheart\nhouse\n")
    code, out, _ = ccd("fit", folder, "--classes", tmp_path/"classes.txt", "--preset", "toy", "--out", tmp_path/"run", *FAST)
    assert code == 0 and "cannot be decoded: 1 (" in out
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
                       "--out", tmp_path/"run", "--limit", 8, "--backbone", "torchvision/resnet18", "--weights", "random", "--set", "student.freeze=0", "--per-class", *FAST)
    assert code == 0 and "student" in out and "umbrella" in out
    m = json.loads((tmp_path/"run"/"metrics.json").read_text())
    assert set(m["teacher"]) >= {"train_map", "eval_map"} and set(m["labels"]) == {"initial", "local", "final"}
    assert len(m["student"]["eval_ap"]) == 14 and m["views_per_image"] == 2 and m["device"] == "cpu"
    assert json.loads((tmp_path/"run"/"config.json").read_text())["settings"]["teacher"]["name"].startswith("local-dir:")
    code, out, _ = ccd("evaluate", tmp_path/"run", "--benchmark", "toy", "--root", toy_root, "--split", "test", "--limit", 8)
    assert code == 0 and f"mAP {m['student']['eval_map']:.2f}" in out


def test_compare_picks_its_rows(ccd, toy_root, tmp_path):
    code, out, _ = ccd("compare", "--benchmark", "toy", "--root", toy_root, "--eval-split", "test", "--preset", "toy", "--seeds", 1, "--limit", 8, "--methods", "an, an@single",
                       "--table", tmp_path/"table.csv", "--out", tmp_path/"rows.json", "--set", "train.epochs=1", "--set", "student.size=64")
    assert code == 0 and "an@single" in out
    rows = json.loads((tmp_path/"rows.json").read_text())["rows"]
    assert [(r["method"], r["supervision"], r["teacher_passes"]) for r in rows] == [("an", "none", 8), ("an@single", "single", 0)]
    assert [r["supervision"] for r in csv.DictReader(open(tmp_path/"table.csv"))] == ["single", "none"]


def test_ablate_makes_a_grid(ccd, toy_root, tmp_path):
    args = ["ablate", "debias", "--benchmark", "toy", "--root", toy_root, "--eval-split", "test", "--preset", "toy", "--seeds", 1, "--limit", 8, "--table", tmp_path/"rows.csv",
            "--figure", tmp_path/"rows.svg", "--out", tmp_path/"rows.json", *(x for v in ("train.epochs=2", "train.warmup=1", "student.size=64", "views.size=64", "views.per_image=1") for x in ("--set", v))]
    code, out, _ = ccd(*args)
    assert code == 0 and "with: " in out and "not clear" in out
    rows = list(csv.DictReader(open(tmp_path/"rows.csv")))
    assert [r["method"] for r in rows] == ["without", "with"] and all(0 <= float(r["ap.star"]) <= 100 for r in rows)
    assert "</svg>" in (tmp_path/"rows.svg").read_text()
    made = (tmp_path/"rows.json").read_text()
    assert ccd(*args)[0] == 0 and (tmp_path/"rows.json").read_text() == made, "nothing is made twice"


def test_demo_draws_compares_and_reports(ccd, tmp_path):
    (tmp_path/"mine").mkdir(); (tmp_path/"mine"/"metrics.json").write_text("of a run")
    code, out, err = ccd("demo", "--out", tmp_path/"mine", "--train", 60, "--test", 30, *FAST[2:])
    assert code == 2 and "not from a demo" in err[-1] and [(p.name, p.read_text()) for p in (tmp_path/"mine").iterdir()] == [("metrics.json", "of a run")]
    code, out, _ = ccd("demo", "--out", tmp_path/"demo", "--train", 60, "--test", 30, "--set", "train.epochs=2", *FAST[2:])
    rows = json.loads((tmp_path/"demo"/"metrics.json").read_text())["rows"]
    assert code == 0 and [r["method"] for r in rows] == ["zero_shot", "global", "grid", "ccd", "ceiling"]
    assert all(f"{r['eval_map']:.1f}" in out for r in rows) and str(tmp_path/"demo"/"report.html") in out
    page = (tmp_path/"demo"/"report.html").read_text()
    assert page.count("data:image/png") == 5 and "http" not in page and "</html>" in page


def bad_classes(tmp_path, text):
    path = tmp_path/f"classes{len(text)}.txt"
    path.write_bytes(text)
    return path


@pytest.mark.parametrize("case, words", [
    ("no folder", "is not a folder"), ("no images", "no images found below"), ("all broken", "none of the 1 images"), ("no classes", "--classes is missing"),
    ("class file", "no such file"), ("not text", "cannot be read as UTF-8"), ("duplicate", "is there twice"), ("empty name", "class 2 is empty"), ("one class", "at least two"),
    ("benchmark", "unknown benchmark"), ("no data", "is missing: --root must be"), ("split", "has the splits test, train"), ("out", "exists already"),
    ("teacher", "unknown teacher"), ("teacher tag", "open_clip knows"), ("hub", "the weights could not be loaded"), ("backbone", "neither torchvision/NAME"),
    ("weights", "is no file"), ("setting", "unknown setting 'labels.alfa'"), ("value", "labels.alpha = '7'"), ("preset", "unknown preset"), ("device", "is not to be had here"),
    ("pair", "write it as NAME=VALUE"), ("both", "one of the two"),
    ("fetch", "cannot be fetched"), ("fetch what", "unknown benchmark"), ("method", "unknown method 'an@half'"), ("grid", "unknown ablation 'table9'"), ("grid row", "unknown row '0.5'"), ("table", "end it in .csv or .parquet"),
    ("table folder", "nowhere is not a folder"), ("figure", "end it in .png or .pdf or .svg"), ("tags", "nowhere is not a folder"), ("labels", "end it in .parquet"), ("rows", "end it in .json"),
    ("classes too", "has its own"), ("nothing to measure", "needs --benchmark")])
def test_a_mistake_is_one_clear_line(ccd, photos, toy_root, tmp_path, case, words):
    (tmp_path/"empty").mkdir(); (tmp_path/"broken").mkdir(); (tmp_path/"broken"/"a.jpg").write_text("x"); (tmp_path/"full").mkdir(); (tmp_path/"full"/"x").touch()
    ok, names, toy = ["fit", photos], ["--classes", "dog, cat"], ["fit", "--benchmark", "toy", "--root", toy_root]
    args = {
        "no folder": ["fit", tmp_path/"nowhere", *names], "no images": ["fit", tmp_path/"empty", *names], "all broken": ["fit", tmp_path/"broken", *names],
        "no classes": ok, "class file": [*ok, "--classes", "nowhere.txt"], "not text": [*ok, "--classes", bad_classes(tmp_path, b"dog\n\xff\xfe\n")],
        "duplicate": [*ok, "--classes", "dog, cat, Dog"], "empty name": [*ok, "--classes", bad_classes(tmp_path, b"dog\n\ncat\n")], "one class": [*ok, "--classes", bad_classes(tmp_path, b"dog\n")],
        "benchmark": ["fit", "--benchmark", "voc99"], "no data": ["fit", "--benchmark", "voc07", "--root", tmp_path], "split": [*toy, "--train-split", "val"],
        "out": [*ok, *names, "--out", tmp_path/"full"], "teacher": [*ok, *names, "--teacher", "clip"], "teacher tag": [*ok, *names, "--teacher", "RN50/opnai"],
        "hub": [*ok, *names, "--teacher", "hf-hub:org/name"], "backbone": [*ok, *names, "--backbone", "resnet17"], "weights": [*ok, *names, "--weights", "nowhere.pth"],
        "setting": [*ok, *names, "--set", "labels.alfa=.2"], "value": [*ok, *names, "--set", "labels.alpha=7"], "preset": [*ok, *names, "--preset", "papper"],
        "device": [*ok, *names, "--device", "cuda:99"], "pair": [*ok, *names, "--set", "labels.alpha"], "both": [*toy, photos, *names],
        "fetch": ["data", "nuswide", "--root", tmp_path], "fetch what": ["data", "voc99"],
        "method": ["compare", "--benchmark", "toy", "--root", toy_root, "--eval-split", "test", "--methods", "ccd,an@half"],
        "grid": ["ablate", "table9", *toy[1:], "--eval-split", "test"], "grid row": ["ablate", "fig6b", *toy[1:], "--eval-split", "test", "--rows", "0.4,0.5"], "table": ["ablate", "debias", *toy[1:], "--eval-split", "test", "--table", "rows.txt"],
        "table folder": ["compare", *toy[1:], "--eval-split", "test", "--table", "nowhere/rows.csv"], "figure": ["ablate", "debias", *toy[1:], "--eval-split", "test", "--figure", "rows.gif"],
        "tags": ["predict", tmp_path, photos, "--out", "nowhere/tags.csv"], "labels": ["label", photos, *names, "--out", "labels.csv"], "rows": ["ablate", "debias", *toy[1:], "--eval-split", "test", "--out", "rows.csv"],
        "classes too": [*toy, *names], "nothing to measure": [*ok, *names, "--eval-split", "val"],
    }[case]
    if "--out" not in args and args[0] != "data": args += ["--out", tmp_path/("run.json" if args[0] in ("compare", "ablate") else "run")]
    code, out, err = ccd(*args)
    assert code == 2 and out == ""
    assert len(err) == 1 and err[0].startswith("ccd: ") and words in err[0], err
    assert not (tmp_path/"run.json").exists() and not (tmp_path/"run").exists() or not any((tmp_path/"run").iterdir()), "the mended command must find its --out free"


def test_help_does_not_wait_for_torch():
    got = subprocess.run([sys.executable, "-X", "importtime", "-m", "ccd.cli"], capture_output=True, text=True)
    assert " torch" not in got.stderr and " open_clip" not in got.stderr
