"Grids, tables, commands, drawn scenes and the ground they stand on: each number, order and choice against one worked out by hand."
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from ccd import ablations, bench, cli, demo, diagnostics, methods, options, results, toy
from ccd.ablations import ABLATIONS, ablation_columns, check_grid, override
from ccd.cdul import CDULSettings
from ccd.core import CCDError, autocast, check_output, pick_device, progress, read_json, seed_everything, write_json
from ccd.data import Photos, Views, list_photos
from ccd.load_teacher import load_teacher
from ccd.results import provenance
from ccd.settings import PRESETS, SOURCES, settings
from ccd.student import create_student
from ccd.toy_clip import NOTHING, caption, frame, phrase
from ccd.weights import IMAGENET_MEAN, IMAGENET_STD, LITE_MEAN, LITE_STD

# --- the ground

@pytest.mark.parametrize("text, words", [("[1]", "holds no JSON object"), ("7", "holds no JSON object"), ("{", "is not valid JSON")])
def test_what_is_no_object_is_said_to_be_none(tmp_path, text, words):
    (tmp_path/"x.json").write_text(text)
    with pytest.raises(CCDError, match=f"x.json {words}"): read_json(tmp_path/"x.json")
    with pytest.raises(CCDError, match="is missing"): read_json(tmp_path/"y.json")
    write_json(tmp_path/"x.json", dict(é=[1, 2]))
    assert (tmp_path/"x.json").read_text(encoding="utf-8") == '{\n "é": [\n  1,\n  2\n ]\n}\n'
    assert read_json(tmp_path/"x.json") == dict(é=[1, 2])


def test_places_of_files(tmp_path):
    (tmp_path/"there.csv").write_text("")
    assert check_output(tmp_path/"there.csv", ".md", ".csv") == tmp_path/"there.csv" == check_output(str(tmp_path/"there.csv"), ".csv")
    for name, words in (("a.txt", "end it in .md or .csv"), ("there.csv", "exists already"), ("no/a.csv", "is not a folder")):
        with pytest.raises(CCDError, match=words): check_output(tmp_path/name, ".md", ".csv", new=True)
    assert check_output(tmp_path/"new.csv", ".csv", new=True)


def test_a_seed_is_a_seed_of_everything():
    import random
    def drawn(seed):
        seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(1))
    a, b, again = drawn(1), drawn(2), drawn(1)
    assert a == again and all(x != y for x, y in zip(a, b))


def test_arithmetic_and_device():
    device = torch.device("cpu")
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast(device, precision): assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert pick_device("cpu") == device and pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(CCDError, match="device 'cuda:99' is not available"): pick_device("cuda:99")
    assert list(progress([3, 1, 2])) == [3, 1, 2]


def test_where_a_result_comes_from(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/ccd", "fit", "my photos"])
    said = dict(rev="0123456789ab", status="")
    monkeypatch.setattr(results, "_git", lambda *a: said["rev" if a[0] == "rev-parse" else "status"])
    p = provenance()
    assert p["command"] == "ccd fit 'my photos'" and p["commit"] == "0123456789ab" and {"torch", "numpy", "python"} <= set(p["versions"])
    said["status"] = " M x"
    assert provenance()["commit"] == "0123456789ab+changes"
    said.update(rev="", status="")
    assert provenance()["commit"] is None


def test_means_of_networks():
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((.485, .456, .406), (.229, .224, .225))
    assert LITE_MEAN == pytest.approx([127/255]*3) and LITE_STD == pytest.approx([128/255]*3)


def test_presets_are_as_published():
    s = settings("paper")
    assert (s.teacher.name, s.teacher.size, s.labels.max_entropy, s.labels.alpha, s.views.per_image) == ("RN50x64/openai", 640, .5, .4, 10)
    assert (s.views.cam_threshold, s.views.offset, s.student.backbone, s.student.size) == (.95, 80/640, "torchvision/resnet101", 448)
    assert (s.train.epochs, s.train.warmup, s.train.lr, s.train.head_lr, s.train.batch, s.train.consistency) == (10, 2, 1e-5, 1e-5, 16, 1)
    assert s.labels.debias and s.train.early_stop and s.train.stop_rule == "minimum" and not s.views.connected and s.views.at_least_one
    o = settings("official")
    assert (o.labels.alpha, o.labels.floor, o.labels.max_entropy, o.student.boost, o.train.stop_positive) == (.2, .05, 2, 3, 1)
    assert (o.views.box, o.views.mode, o.views.class_threshold) == ("raster", "enlarge", "search")
    assert (o.train.flips, o.train.hue) == ("independent", .5)
    assert SOURCES["paper"]["labels.alpha"] == "Eq. 7" and set(SOURCES["cpu"]) == set(PRESETS["cpu"])
    for kw in (dict(labels__alpha=1.01), dict(labels__alpha=-.01), dict(train__epochs=0), dict(views__cam_threshold=1), dict(seed=-1),
               dict(train__hue=.51), dict(student__freeze=-1), dict(teacher__batch=0), dict(labels__floor=1), dict(train__stop_positive=0)):
        with pytest.raises(CCDError, match="setting"): settings(**kw)
    for name in ("alpha", "labels.beta", "label.alpha"):
        with pytest.raises(CCDError, match=f"unknown setting '{name}'"): settings(**{name: 1})


# --- grids

def test_the_grids():
    off = dict(labels__alpha=1.), dict(labels__debias=False), dict(train__consistency=0.)
    assert ABLATIONS["table2"].rows == {
        "global labels": off[0] | off[1] | off[2], "consistency": off[0] | off[1], "debias": off[0] | off[2], "update": off[1] | off[2],
        "debias + consistency": off[0], "update + consistency": off[1], "update + debias": off[2], "update + debias + consistency": {}}
    assert list(ABLATIONS["table2"].rows)[::7] == ["global labels", "update + debias + consistency"]
    assert ABLATIONS["fig6b"].rows["0.8"] == dict(labels__alpha=.8) and ABLATIONS["fig6b"].reference == "0.4"
    assert [list(ABLATIONS[k].rows) for k in ("fig6a", "fig7")] == [["4", "6", "10", "14"], ["0.65", "0.8", "0.95"]]
    for name, grid in ABLATIONS.items():
        assert grid.reference in (None, *grid.rows)
        for values in grid.rows.values(): assert override(settings("paper"), **values) == settings("paper", **values), name
    assert check_grid("fig7") == ["0.65", "0.8", "0.95"] and check_grid("fig7", ["0.95"]) == ["0.95"]
    with pytest.raises(CCDError, match="unknown row '1' of fig7"): check_grid("fig7", ["0.95", "1"])
    with pytest.raises(CCDError, match="unknown ablation 'fig9'"): check_grid("fig9")


def test_rows_that_share_a_warm_up_go_together():
    s, made = settings("toy"), []
    groups = list(ablations._groups([(0, "with"), (1, "with"), (0, "without")], ABLATIONS["debias"].rows, s))
    assert [[(m, one.seed) for m, one in g] for g in groups] == [[("with", 0)], [("with", 1)], [("without", 0)]]
    shared = list(ablations._groups([(0, "0.0"), (0, "1.0"), (2, "0.0")], ABLATIONS["fig6b"].rows, s))
    assert [[(m, one.seed, one.labels.alpha) for m, one in g] for g in shared] == [[("0.0", 0, 0.), ("1.0", 0, 1.)], [("0.0", 2, 0.)]]
    last = ablations._Last(lambda about, *args: made.append(about) or len(made))
    assert [last(k) for k in "aabba"] == [1, 1, 2, 2, 3]


def ablation_row(m, seed, found): return dict(
    method=m, seed=seed, views_per_image=4. + seed, local_mean_ap=50., labels_train_mean_ap=60., eval_mean_ap=found)


def test_columns_of_a_grid():
    rows = [ablation_row(m, seed, v) for m, vs in (("without", (70., 71, 72)), ("with", (75., 74, 79))) for seed, v in enumerate(vs)]
    t = ablation_columns("debias", rows)
    assert list(t)[1:] == ["views per image", "local labels, mAP %", "final labels", "eval", "against without", " "]
    assert t["eval"] == ["71.0 ± 1.0", "76.0 ± 2.6"] and t["against without"] == ["", "+5.0 ± 2.0"] and t[" "] == ["", "clear"]
    assert t["views per image"] == ["5.0 ± 1.0"]*2 and t["local labels, mAP %"] == ["50.0"]*2 and t["final labels"] == ["60.0"]*2
    assert ablation_columns("debias", rows[:2] + rows[3:5])[" "] == ["", "2 seeds"]
    spread = [ablation_row(m, seed, v) for m, vs in (("with", (70., 71, 72)), ("without", (75., 60, 79))) for seed, v in enumerate(vs)]
    assert ablation_columns("debias", spread)[" "] == ["", "within its spread"]


def test_what_the_rows_of_cdul_and_the_losses_ask_for(monkeypatch):
    seen, truth = [], np.array([[True, False], [True, True]])
    final = torch.tensor([[.3, .7], [.6, .4]])
    def cdul(photos, classes, labels, s, c, on_epoch=None, features=None):
        on_epoch({}, final, final + torch.tensor([[.2, -.3], [.005, .1]]))
        seen.append((c, labels, features))
        return SimpleNamespace(final=final, student="student")
    monkeypatch.setattr(methods, "cdul", cdul)
    snippets = torch.arange(36).view(18, 2)/100
    c = SimpleNamespace(train=SimpleNamespace(photos="photos", classes=["a", "b"], truth=truth), whole=torch.tensor([[.4, .1], [.2, .9]]),
                        parts=snippets, maps=lambda looks: 0, features=("train's", "test's"), outcome=methods.Outcome)
    c.source = None, c.whole, None
    c.train = type("Train", (), dict(vars(c.train), __len__=lambda self: 2))()
    want = dict(cdul=CDULSettings(), cdul_maximum=CDULSettings(lam=1.), cdul_hard=CDULSettings(hard=True),
                cdul_flat=CDULSettings(gaussian=False))
    high = torch.tensor([[.16, .17], [.34, .35]])
    for name, cs in want.items():
        o = methods.METHODS[name].run(c, settings("toy"))
        assert seen[-1][0] == cs and seen[-1][2] == "train's" and o.passes == 20 and o.labels is final and o.prediction == "student"
        assert torch.allclose(seen[-1][1], torch.maximum(c.whole, high) if cs.lam else (c.whole + high)/2)
    move, = o.row["moves"]
    assert (move["moved"], move["towards"]) == (3, 1.) and move["labels_mean_ap"] == pytest.approx(100)
    levels = {m: methods.METHODS[m].supervision for m in ("ccd", "an", "supervised", "asl@full", "asl@partial", "role@single")}
    assert list(levels.values()) == ["none", "none", "full", "full", "partial", "single"] and "bce" not in methods.METHODS
    assert methods.SHOWN == ("zero_shot", "student_global", "student_grid", "ccd", "supervised")
    with pytest.raises(CCDError, match="unknown method 'bce'"): methods.check_methods(["an", "bce"])


def method_row(m, seed, labels, found, passes): return dict(
    method=m, seed=seed, labels_train_mean_ap=labels, eval_mean_ap=found, teacher_passes=passes)


def test_columns_of_a_comparison():
    rows = [method_row("ccd", 0, 50., 60., 10), method_row("ccd", 1, 52., 63., 13), method_row("supervised", 0, 100., 80., 0),
            method_row("an@single", 0, 20., 30., None)]
    t = methods.method_columns(rows)
    assert t["supervision"] == ["full", "single", "none"] and t["method"][2] == "CCD (`ccd`)"
    assert t["mAP, %"] == [80, 30, 61.5] and t["sd"] == ["–", "–", pytest.approx(3/2**.5)] and t["seeds"] == [1, 1, 2]
    assert t["labels, mAP %"] == [100, 20, 51] and t["teacher passes"] == [0, "–", 12]


# --- studies

def test_box_study_trains_on_each_kind_of_labels(monkeypatch, tmp_path):
    given, truth = [], np.array([[True, False], [False, True]])
    class Both(list):
        name, split, photos, classes, objects, truth = "two", "train", "photos", ["a", "b"], [[(0, .1, .2, .3, .4, False)], []], None
    train, test = Both([1, 1]), Both([1, 1])
    train.truth = test.truth = truth
    train.photos = test.photos = Photos(Path("."), ["a", "b"])
    monkeypatch.setattr(diagnostics, "load_teacher", lambda *a: "teacher")
    monkeypatch.setattr(diagnostics, "shared_features", lambda *a: ("train's", "test's"))
    def probabilities(photos, views=None, desc=""):
        if views is None: return torch.tensor([[.9, .1], [.2, .8]])
        return views.box[:, :2]
    monkeypatch.setattr(diagnostics, "Scorer", lambda *a: SimpleNamespace(probabilities=probabilities))
    def train_baseline(photos, classes, b, s, y, features):
        given.append((s.seed, y))
        return "student"
    monkeypatch.setattr(diagnostics, "train_baseline", train_baseline)
    monkeypatch.setattr(diagnostics, "predict", lambda student, photos, features: torch.tensor([[.1, .9], [.3, .2]]))
    drawn = []
    def object_views(boxes, per_image, around=0., seed=0, draw=diagnostics.object_views):
        drawn.append((around, seed))
        return draw(boxes, per_image, around, seed)
    monkeypatch.setattr(diagnostics, "object_views", object_views)
    rows = diagnostics.box_study(train, test, settings("toy"), [3, 5], tmp_path/"rows.json")
    assert drawn == [(.5, 0), (0, 0)]
    assert [(r["seed"], r["method"]) for r in rows] == [(k, m) for k in (3, 5) for m in ("whole", "grid", "random", "boxes", "around")]
    assert [k for k, _ in given] == [3]*5 + [5]*5 and all(r["eval_mean_ap"] == 50 for r in rows) and rows[0]["labels_train_mean_ap"] == 100
    whole, grid, _, boxes, around = [y for _, y in given[:5]]
    assert torch.allclose(whole, torch.tensor([[.9, .1], [.2, .8]])) and torch.allclose(grid, torch.full((2, 2), 2/3))
    assert torch.allclose(boxes, torch.tensor([[.1, .2], [0, 0]])) and (around[0] <= boxes[0]).all() and not torch.equal(around, boxes)


def test_the_epoch_that_would_be_kept():
    def curve(*v): return [dict(epoch=1, stage="warm-up", pseudo_mean_ap=1.)] + [
        dict(epoch=k + 2, stage="training", pseudo_mean_ap=x) for k, x in enumerate(v)]
    assert diagnostics.stopped(curve(50, 60, 66, 67, 69, 70)) == 5 and diagnostics.stopped(curve(50, 60, 66, 69)) == 5


def test_prompts_side_by_side():
    class Teacher:
        temperature = 1.
        def embed_text(self, texts): return torch.tensor([[1., 0] if "dog" in t else [.6, .8] if "big" in t else [0, 1] for t in texts])
    image, truth = torch.tensor([[.9, .44], [.8, .6], [.1, .99]]), np.array([[True, False], [False, True], [False, True]])
    rows = diagnostics.prompt_table(Teacher(), image, truth, {"a": (["dog", "cat"], "a {}"), "b": (["cat", "dog"], "a {}|big {}")})
    mean = 100*(1/3 + (1/2 + 2/3)/2)/2  # the cat third of three; the dogs second and third
    assert [r["mean_ap"] for r in rows] == pytest.approx([100, mean]) and [r["gain"] for r in rows] == pytest.approx([0, mean - 100])
    assert [(r["best"], r["worst"]) for r in rows] == [("–", "–"), ("dog -41.7", "cat -66.7")] and [r["texts"] for r in rows] == [1, 2]
    t = diagnostics.prompt_columns([dict(prompt="a|b", texts=2., mean_ap=50., gain=-1.26, best="x", worst="y")])
    assert [v[0] for v in t.values()] == ["aorb", "2", 50., "-1.3", "x", "y"]


def test_a_benchmark_of_labelling(monkeypatch):
    now, said = iter([1., 3, 10, 16, 20, 21]), []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(bench, "view_batches", lambda *a: [(None, "x"), (None, "y")])
    monkeypatch.setattr(bench, "label", lambda photos, classes, out, s, teacher, cache: said.append((classes, s.labels.source)))
    teacher = SimpleNamespace(size=8, embed_pixels=said.append, embed_text=lambda texts: None)
    label, again = bench.label_rows(["a", "b", "c"], settings("toy", labels__source="both"), teacher)
    assert label == dict(name="label_vs_pure", ratio=3, seconds=6, beside=2) and again == dict(
        name="relabel_vs_label", ratio=1/6, seconds=1, beside=6)
    (one, source), (two, _) = said[3:]
    assert said[:3] == ["x", "x", "y"] and len(one) == len(two) == 10 and not set(one) & set(two) and source == "text"


def test_the_plain_update_looks_as_often_as_ours(photos, small):
    "As many crops, each alone, each of the long side that the teacher takes."
    s, shapes = small(views__per_image=3), []
    teacher = SimpleNamespace(size=64, stride=16, embed_pixels=lambda x: shapes.append(tuple(x.shape)))
    student = create_student(s.student, ["a", "b", "c", "d"])
    assert bench.plain_update(student, list_photos(photos).take(range(2)), s, teacher) == 6 == len(shapes)
    assert all(n == 1 and max(h, w) == 64 for n, _, h, w in shapes)


def test_results_of_older_versions_read_as_new_ones(tmp_path):
    old = dict(views=dict(map_size=64, support=True), train=dict(stop_positive="one"), labels=dict(alpha=.1))
    write_json(tmp_path/"a.json", dict(provenance=dict(settings=old), rows=[dict(method="global", eval_map=1., labels_map=[dict(map=2)])]))
    r = results.read_results(tmp_path/"a.json")
    assert r["provenance"]["settings"] == dict(views=dict(cam_size=64, mode="squash"), train=dict(stop_positive=1.), labels=dict(alpha=.1))
    assert r["rows"] == [dict(method="student_global", eval_mean_ap=1., labels_mean_ap=[dict(mean_ap=2)])]
    new = dict(views=dict(mode="roi"), train=dict(stop_positive=.3))
    write_json(tmp_path/"b.json", dict(provenance=dict(settings=new, study="x"), rows=[dict(method="grid")]))
    r = results.read_results(tmp_path/"b.json")
    assert r["provenance"]["settings"] == new and r["rows"] == [dict(method="grid")], "a study's own names stay"


def test_a_table_says_where_it_comes_from(tmp_path):
    rows = [dict(method="a", seed=k, labels_train_mean_ap=50., eval_mean_ap=60. + k, commit=c) for k, c in ((0, "x"), (1, None), (2, "x"))]
    about = dict(settings=dict(teacher=dict(name="T")), data="D", machine="M", seconds=180, command="C")
    write_json(tmp_path/"a.json", dict(provenance=about, rows=rows))
    text = results.result_table(tmp_path/"a.json").splitlines()
    assert text[2] == "| `a` | 50.0 | 61.0 ± 1.0 | 3 |"
    assert text[4] == ("Teacher `T`; D; mean ± standard deviation over 3 seeds; M, 3 minutes in all; commit x and unknown. Made by `C`.")
    assert results.result_table(tmp_path/"b.json") == "*b.json: not run.*"
    assert results.result_table(tmp_path/"a.json", lambda rows: dict(n=[len(rows)])).startswith("| n |\n| --- |\n| 3 |\n\nTeacher")


def test_data_and_time_of_studies(tmp_path, monkeypatch, capsys):
    (tmp_path/"there").mkdir()
    monkeypatch.setenv("CCD_DATA", str(tmp_path))
    assert results.study_data("there") == tmp_path and not capsys.readouterr().out
    assert results.study_data("there", "gone") is None and capsys.readouterr().out.startswith("left out: gone is not below data/")
    (tmp_path/"home"/"nbs").mkdir(parents=True)
    (tmp_path/"home"/"settings.ini").write_text("")
    monkeypatch.delenv("CCD_DATA")
    monkeypatch.chdir(tmp_path/"home"/"nbs")
    assert results.study_data() == tmp_path/"home"/"data"
    assert results.study_data("VOCdevkit/VOC2007") is None and "`ccd data voc07 --root data` fetches" in capsys.readouterr().out
    monkeypatch.setenv("CCD_SLOW", "1")
    assert results.study_time(5)
    monkeypatch.delenv("CCD_SLOW")
    assert not results.study_time(5) and "takes 5 minutes" in capsys.readouterr().out


# --- the demo

def test_the_order_of_methods():
    mean = dict(zero_shot=50., student_global=51., student_grid=51.5, ccd=60.)
    found = demo.order_held([method_row(m, 0, 0., v, 0) for m, v in mean.items()])
    assert [(f["better"], f["worse"], f["gain"], f["held"]) for f in found] == [
        ("ccd", "student_grid", 8.5, True), ("student_grid", "student_global", .5, False), ("student_global", "zero_shot", 1, True)]


def test_sections_of_the_report(monkeypatch):
    drawn = []
    for kind in ("bar_chart", "line_chart", "show_images", "view_maps"): monkeypatch.setattr(demo, kind, lambda *a: drawn.append(a))
    monkeypatch.setattr(demo, "_section", lambda title, fig, text: text)
    truth = np.array([[True, False, False], [True, True, False], [True, True, True]])
    class Train(list): classes = ["a", "b", "c"]
    train = Train([1]*3)
    train.truth, train.photos = truth, SimpleNamespace(open=lambda i: i, take=lambda index: SimpleNamespace(open=lambda i: index[0]))
    initial = torch.tensor([[.9, .1, 0], [.7, .2, .1], [.3, .4, .1]])
    v = Views(torch.tensor([0, 1, 1, 1, 1, 1, 2]), torch.arange(28).view(7, 4)/28, torch.tensor([0, 1, 2, 0, 1, 2, 1]),
              torch.tensor([.9, .1, .5, .2, .8, .3, .4]))
    d = SimpleNamespace(initial=initial, bias=SimpleNamespace(value=torch.tensor([.5, .25, .75])), views=v)
    demo._bias(train, d)
    classes, bars, _ = drawn.pop()
    assert bars["before"] == [.5, .25, .75] and bars["after"] == pytest.approx([.8, .4, 0])
    said = demo._boxes(train, d)
    shown, _, boxes, _ = drawn.pop()
    assert shown == [1, 2] and "2.3 views" in said
    assert [b[4] for b in boxes[0]] == ["b", "c", "c", "a"] and [b[4] for b in boxes[1]] == ["b"]
    assert boxes[0][0][:4] == pytest.approx(v.box[4].tolist())
    def probabilities(photos, views=None):
        return torch.arange(3.)[None]/10 if views is None else torch.arange(3*len(views)).view(-1, 3)/1000
    demo._view_dependence(train, SimpleNamespace(probabilities=probabilities))
    photo, rows, _ = drawn.pop()
    assert photo == 2 and list(rows) == ["a\nwhole: 0.00", "b\nwhole: 0.10", "c\nwhole: 0.20"]
    assert rows["b\nwhole: 0.10"][0].shape == (13, 13) and rows["b\nwhole: 0.10"][0][0, :2].tolist() == pytest.approx([.001, .004])


def test_what_a_demo_may_write_over(tmp_path):
    (tmp_path/"made"/"scenes"/"VOCdevkit"/"VOCtoy").mkdir(parents=True)
    for name in ("empty", "full"): (tmp_path/name).mkdir()
    (tmp_path/"full"/"a").write_text("")
    assert [demo._ours(tmp_path/k) for k in ("made", "empty", "full", "none")] == [True, True, False, False]


# --- drawn scenes

def test_boxes_of_a_scene_hold_what_is_drawn_and_the_hidden_is_left_out(monkeypatch):
    sides = dict(red=(20, 10), lime=(6, 8), blue=(20, 8))
    tiles = iter([Image.new("RGBA", side, colour) for colour, side in sides.items()])
    places = iter([4, 30, 40, 2, 4, 31])
    monkeypatch.setattr(toy, "_names", lambda rng: ["sun", "fish", "star"])
    monkeypatch.setattr(toy, "_ground", lambda size, rng: Image.new("RGB", (size, size)))
    monkeypatch.setattr(toy, "draw_object", lambda name, side, rng: next(tiles))
    rng = SimpleNamespace(uniform=lambda a, b: a, integers=lambda a, b: next(places))
    img, objects = toy.draw_scene(rng, 64)
    assert objects == [(10, 40, 2, 46, 10), (0, 4, 31, 24, 39)], "of the sun one row in five is left"
    assert img.getpixel((5, 30)) == (255, 0, 0) and img.getpixel((40, 2)) == (0, 255, 0) and img.getpixel((23, 38)) == (0, 0, 255)


def test_scenes_are_many_and_their_files_say_what_is_drawn(tmp_path):
    names = [toy._names(np.random.default_rng(i)) for i in range(2000)]
    count = np.bincount([len(n) for n in names], minlength=7)/2000
    assert count == pytest.approx([.08, *(.92*v for v in (.28, .27, .2, .13, .08, .04))], abs=.025)
    after = [n[k + 1] == "tree" for n in names for k in range(len(n) - 1) if n[k] == "house"]
    assert .4 < np.mean(after) < .75
    made = toy.write_toy(tmp_path, dict(train=3, val=2), 40, 1)
    again = toy.write_toy(tmp_path/"again", dict(train=3, val=2), 40, 1)
    assert [len(b) for b in made.values()] == [3, 2] and made["val"].photos.names == ["val_00000.jpg", "val_00001.jpg"]
    for k, split in enumerate(("train", "val")):
        for i in range(len(made[split])):
            img, objects = toy.draw_scene(np.random.default_rng([1, k, i]), 40)
            assert [o[:5] for o in made[split].objects[i]] == [pytest.approx((c, *(v/40 for v in box))) for c, *box in objects]
            a, b = (np.asarray(m[split].photos.open(i)).astype(int) for m in (made, again))
            assert np.array_equal(a, b) and np.abs(a - np.asarray(img)).mean() < 12


def test_every_object_can_be_seen_and_fits_its_tile():
    for k, name in enumerate(toy.DRAW):
        tile = np.asarray(toy.draw_object(name, 60, np.random.default_rng(k)))
        ink = tile[..., 3] > 127
        assert 24 < min(ink.shape) and max(ink.shape) <= 60 and .25 < ink.mean() < .98, name
        assert tile[..., 3].any(0).all() and tile[..., 3].any(1).all(), "cut to what is visible"


def test_half_of_the_objects_are_turned_around():
    left = []
    for k in range(200):
        ink = np.asarray(toy.draw_object("fish", 40, np.random.default_rng(k)))[..., 3] > 127
        height = ink.sum(0)
        left.append(height[:6].sum() < height[-6:].sum())
    assert .4 < np.mean(left) < .6, "the tail is on the right of the one and on the left of the other"


class Dice:
    "Draws what it is told to."
    def __init__(self, random, uniform, integers): self.rolls = [iter(random), iter(uniform), iter(integers)]
    def random(self): return next(self.rolls[0])
    def uniform(self, a, b): return next(self.rolls[1])
    def integers(self, *a): return next(self.rolls[2])


def test_frames_and_captions_by_hand():
    img = np.arange(40*40*3, dtype=np.uint8).reshape(40, 40, 3)
    objects = [(3, 0, 0, 10, 10), (5, 20, 4, 32, 12), (7, 8, 30, 16, 40)]
    view, seen = frame(img, objects, 40, Dice([.9, .9], [1.], [0, 0]))
    assert np.array_equal(view, img) and seen == [(3, 100), (5, 96), (7, 80)], "all of it"
    view, seen = frame(img, objects, 20, Dice([.1, .1], [np.log(.5), 1.], [12, 2]))
    assert np.array_equal(view, img[2:22, 12:32][:, ::-1]) and seen == [(5, 96)]
    half = frame(img, [(1, 8, 2, 16, 10), (2, 7, 2, 16, 10)], 20, Dice([.1, .9], [np.log(.5), 1.], [12, 2]))[1]
    assert half == [(1, 32)], "half of it is enough, less is not"
    assert caption([], Dice([], [], [])) == NOTHING == 14
    assert caption([(0, 5), (1, 9), (0, 3)], Dice([], [], [])) == 1, "the largest"
    under = toy.TOY14.index("fish")
    assert [caption([(0, 5), (under, 9)], Dice([r], [], [])) for r in (.4, .6)] == [under, 0], "under-reported, every other time"
    assert caption([(under, 9)], Dice([.6], [], [11])) == 11
    assert phrase("fish", ["x", "y"], Dice([], [], [3, 2, 1, 0, 2, 1])) == "a x y fish"


# --- commands

def test_options_of_a_group_become_a_settings_object(monkeypatch):
    seen = []
    def run(where: str, choices: options.Choices, more: int = 3): seen.append((where, choices, more))
    command = options.grouped(run)
    names = [p.name for p in signature(command).parameters.values()]
    assert names == ["where", "preset", "teacher", "device", "set_", "more"]
    command(where="x", preset="toy", teacher="a/b", device="cpu", set_=["labels.alpha=.15", "teacher.size=none"], more=4)
    where, choices, more = seen.pop()
    s = choices.settings(seed=7, train__epochs=None)
    assert (where, more, s.seed, s.labels.alpha, s.teacher.name, s.device, s.teacher.size) == ("x", 4, 7, .15, "a/b", "cpu", None)
    assert s.train.epochs == settings("toy").train.epochs
    with pytest.raises(CCDError, match="NAME=VALUE"): options.Choices(set_=["labels.alpha"]).settings()


def test_a_source_is_a_folder_or_a_benchmark(monkeypatch):
    monkeypatch.setattr(options, "read_split", lambda *a: a)
    assert options.Source(photos=Path("p")).read("train") == Path("p")
    assert options.Source(benchmark="voc07", root=Path("r")).read("val") == ("voc07", Path("r"), "val")
    for kw in ({}, dict(photos=Path("p"), benchmark="voc07")):
        with pytest.raises(CCDError, match="one of the two"): options.Source(**kw).read("train")


def test_a_measurement_reads_both_splits_and_writes_its_table(monkeypatch, tmp_path, capsys):
    m = options.Measurement("toy", tmp_path/"r.json", Path("root"), "a", "b", limit=4, table=tmp_path/"t.csv")
    monkeypatch.setattr(options, "read_split", lambda *a: a)
    assert m.splits() == (("toy", Path("root"), "a", 4), ("toy", Path("root"), "b", 4)) and m.seeds == 3
    m.check()
    m.finish("title", [dict(method="x", eval=1.25)], dict(name=["left"], v=[2.25]), figure=None)
    assert (tmp_path/"t.csv").read_text().splitlines() == ["method,eval", "x,1.2500"]
    out = capsys.readouterr().out
    assert "title" in out and "left" in out and "2.2" in out and out.endswith(f"rows: {m.out}, table: {m.table}\n")
    replace(m, table=tmp_path/"t.md").finish("title", [dict(method="x")], dict(name=["left"], v=[2.25]))
    assert (tmp_path/"t.md").read_text().splitlines()[2] == "| left | 2.2 |"
    for bad in (replace(m, out=tmp_path/"r.txt"), replace(m, table=tmp_path/"t.txt")):
        with pytest.raises(CCDError, match="end it in"): bad.check()


def test_names_stand_on_the_left_and_figures_on_the_right(capsys):
    options.show_columns("title", dict(name=["a", "longer"], figure=["x", 2.25]))
    lines = capsys.readouterr().out.splitlines()
    a, longer = (next(line for line in lines if word in line) for word in (" a ", "longer"))
    assert a.index("a") == longer.index("longer") and a.rindex("x") == longer.rindex("2.2") + 2


def test_lists_of_names_and_values():
    assert cli._names("a, b ,c") == ["a", "b", "c"]
    v = options.setting_values("cpu")
    assert v["labels.alpha"] == .4 and v["teacher.size"] == "none"
    assert isinstance(cli.app, typer.Typer)


def test_names_of_teachers(monkeypatch):
    from ccd import load_teacher as table
    asked = []
    monkeypatch.setattr(table, "OpenClipTeacher", lambda *a: asked.append(a))
    monkeypatch.setattr(table, "OfflineTeacher", lambda *a: asked.append(a))
    s = settings("paper").teacher
    load_teacher(replace(s, name="RN50/openai", size=96, norm="imagenet", positions="bilinear", precision="fp16"), "cpu")
    load_teacher(replace(s, name="offline", size=130, precision="bf16"), "cpu")
    assert asked == [("RN50/openai", 96, "cpu", "fp16", "imagenet", "bilinear"), (130, "cpu", "bf16")]
    with pytest.raises(CCDError, match="unknown teacher 'nobody'"): load_teacher(replace(s, name="nobody"))
    with pytest.raises(CCDError, match="teacher.norm"): load_teacher(replace(s, name="offline", norm="imagenet"))
