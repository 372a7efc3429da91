"`labels.source` reaches the labels of `fit` and `label`, and nothing that is called the teacher's."

import pyarrow.parquet as pq
import pytest
import torch

from ccd.benchmarks import read_benchmark
from ccd.core import read_json
from ccd.discriminant import region_views
from ccd.distill import train_on_updated, warm_up
from ccd.load_teacher import load_teacher
from ccd.methods import METHODS, Comparison, compare
from ccd.metrics import mean_ap
from ccd.models import load
from ccd.predict import evaluate, tag
from ccd.pseudo_labels import label_rule, tag_thresholds
from ccd.regions import fit_regions
from ccd.run import fit, label
from ccd.scorer import Scorer
from conftest import save_clip

@pytest.fixture(scope="module")
def train(toy_root): return read_benchmark("toy", toy_root, "train")


def columns(path, kind, classes):
    t = pq.read_table(path)
    return torch.stack([torch.tensor(t[f"{kind}.{c}"].to_numpy()) for c in classes], 1)


def scorers(train, s, source):
    texts = Scorer(load_teacher(s.teacher), train.classes, s)
    e = texts.embed(train.photos)
    return texts.read(e), *fit_regions(texts, train.photos, e, source)


@pytest.mark.parametrize("source", ["regions", "both"])
def test_labels_are_those_of_the_regions(train, tmp_path, small, source):
    s = small(labels__source=source)
    label(train, out=tmp_path/"labels.parquet", s=s, grid=True)
    whole, _, learned = scorers(train, s, source)
    want = label_rule(learned, s.labels).initial(learned)
    got = columns(tmp_path/"labels.parquet", "initial", train.classes)
    assert torch.allclose(got, want, atol=1e-6)
    assert not torch.allclose(got, label_rule(whole, s.labels).initial(whole), atol=.05)


def test_both_stages_of_ccd_ask_the_regions(train, small):
    s = small(labels__source="both", train__epochs=2)
    w = warm_up(train.photos, train.classes, s)
    whole, regions, learned = scorers(train, s, "both")
    assert torch.allclose(w.teacher, whole, atol=1e-6)
    assert torch.allclose(w.initial, w.rule.initial(learned), atol=1e-6)
    d = train_on_updated(w, s)
    p = regions.probabilities(train.photos, d.views)
    assert torch.allclose(d.local, w.rule.local(p, d.views.image, len(train)), atol=1e-6)


def test_what_is_called_the_teacher_is_zero_shot(train, toy_root, tmp_path, small):
    test = read_benchmark("toy", toy_root, "test")
    runs = {k: fit(train, out=tmp_path/k, s=small(labels__source=k), evaluation=test) for k in ("text", "both")}
    m = {k: read_json(run/"metrics.json") for k, run in runs.items()}
    assert m["both"]["teacher"] == m["text"]["teacher"]
    assert m["both"]["labels"]["initial"] != m["text"]["labels"]["initial"]


def label_with(ccd, teacher, photos, out):
    return ccd("label", photos, "--classes", "star, moon", "--teacher", f"local-dir:{teacher}", "--out", out,
               "--set", "labels.source=both", "--set", "teacher.size=64", "--set", "views.roi_size=64")


def test_a_teacher_without_a_map_is_refused_before_any_work(ccd, tmp_path):
    for folder in ("teacher", "photos"): (tmp_path/folder).mkdir()
    save_clip(tmp_path/"teacher", "efficientnet", 64)
    (tmp_path/"photos"/"a.jpg").write_text("no photograph")  # not even decoded
    code, _, said = label_with(ccd, tmp_path/"teacher", tmp_path/"photos", tmp_path/"labels.csv")
    assert code == 2 and len(said) == 1 and not (tmp_path/"labels.csv").exists()
    assert said[0].startswith("ccd: labels.source: teacher") and said[0].endswith("take text")


def test_any_clip_with_a_map_is_a_source(ccd, clip_folder, photos, tmp_path):
    assert label_with(ccd, clip_folder, photos, tmp_path/"labels.csv")[0] == 0 and (tmp_path/"labels.csv").exists()


def test_every_method_takes_its_labels_from_the_same_source(train, toy_root, small):
    few = train.take(range(10))
    test, rows = read_benchmark("toy", toy_root, "test"), {}
    for source in ("text", "both"):
        c = Comparison(few, test, small(labels__source=source, train__epochs=2))
        names = "student_global", "student_discriminant", "student_grid", "cdul", "an", "zero_shot"
        rows[source] = {m: METHODS[m].run(c, c.s) for m in names}
    text, both = rows["text"], rows["both"]
    assert torch.equal(both["student_global"].labels, both["student_discriminant"].labels)
    assert torch.equal(both["student_global"].prediction, both["student_discriminant"].prediction)
    assert torch.equal(both["an"].labels, both["student_global"].labels) and torch.equal(text["an"].labels, text["zero_shot"].labels)
    assert torch.equal(text["student_discriminant"].labels, both["student_discriminant"].labels)
    assert torch.equal(text["zero_shot"].prediction, both["zero_shot"].prediction)
    for m in ("student_grid", "cdul"): assert not torch.allclose(text[m].labels, both[m].labels, atol=.05)
    assert [both[m].passes - text[m].passes for m in ("student_global", "student_grid", "cdul", "an")] == [10, 20, 20, 10]


def test_a_photograph_is_its_whole_and_its_best_region_of_both_sides(train, small):
    s = small(labels__source="both")
    _, regions, learned = scorers(train, s, "both")
    texts, head, views = Scorer(regions.teacher, train.classes, s), regions.head, region_views(1)
    for i in (0, 7):
        one = train.photos.take([i])
        f = regions.features(one, views)
        whole, said, seen = head.read(texts.embed(one))[0], head.read(regions.teacher.read_regions(f)), head.discriminant(f)
        for c in range(14):
            text = (whole[c] + max(said[:, c]))/2
            own = (seen[38, c] + max(seen[:, c]))/2 if head.discriminant.found[c] else text
            assert abs(learned[i, c] - (text + own)/2) < 1e-5


def test_names_compete_where_most_photographs_show_something_else(train, small):
    few, others = ["star", "moon", "boat"], ["heart", "tree", "sun", "flower", "fish"]
    asked = {}
    for names in (", ".join(others), None, "heart, tree"):
        texts = Scorer(load_teacher(small().teacher), few, small(labels__others=names))
        asked[names] = texts, *fit_regions(texts, train.photos, texts.embed(train.photos))
    texts, regions, learned = asked[", ".join(others)]
    first = regions.head.read(texts.embed(train.photos)).argmax(1)
    assert regions.share == sum(c >= 3 for c in first.tolist())/len(train) > .5
    assert 3 < len(regions.head.text) <= 8 and learned.shape == (len(train), 3)
    assert len(asked[None][1].head.text) == 3 and asked[None][1].share == 0
    closed = asked["heart, tree"][1]  # two more names are not most of what is there
    assert 0 < closed.share <= .5 and len(closed.head.text) == 3
    assert torch.equal(asked["heart, tree"][2], asked[None][2]) and not torch.allclose(learned, asked[None][2], atol=.05)


def test_a_struck_region_is_no_example_of_that_class(train, small):
    texts = Scorer(load_teacher(small().teacher), train.classes, small())
    e = texts.embed(train.photos)
    before, _ = fit_regions(texts, train.photos, e)
    d = before.head.discriminant
    struck = [(r, c) for r, c in zip(d.rows.tolist(), d.classes.tolist()) if c in (3, 7)][:4]
    after, _ = fit_regions(texts, train.photos, e, struck=struck)
    banks = [set(zip(x.head.discriminant.rows.tolist(), x.head.discriminant.classes.tolist())) for x in (before, after)]
    assert len(struck) == 4 and set(struck) <= banks[0] and not set(struck) & banks[1]


def test_regions_come_in_parts_and_are_seen_once(train, small, monkeypatch):
    from ccd import regions as module
    texts = Scorer(load_teacher(small().teacher), train.classes, small(), "none")
    e, seen, embed = texts.embed(train.photos), [], texts.teacher.embed_regions
    monkeypatch.setattr(texts.teacher, "embed_regions", lambda x, boxes, index: seen.append(len(x)) or embed(x, boxes, index))
    whole, learned = fit_regions(texts, train.photos, e)
    assert sum(seen) == len(train)
    parts = module.RegionScorer.regions
    def few(self, photos):
        for part in torch.arange(len(photos)).split(7):
            for _, f in parts(self, photos.take(part.tolist())): yield part, f
    monkeypatch.setattr(module.RegionScorer, "regions", few)
    again, p = fit_regions(texts, train.photos, e)
    assert torch.equal(again.head.discriminant.rows, whole.head.discriminant.rows) and torch.allclose(p, learned, atol=1e-5)


def test_a_model_folder_without_a_student(train, toy_root, tmp_path, small, ccd):
    test = read_benchmark("toy", toy_root, "test")
    run = fit(train, out=tmp_path/"run", s=small(), evaluation=test, method="discriminant")
    _, regions, learned = scorers(train, small(labels__source="both"), "both")
    assert torch.allclose(columns(run/"labels.parquet", "final", train.classes), learned, atol=1e-6)
    model = load(run)
    assert model.threshold.tolist() == tag_thresholds(learned).tolist()
    rows, _ = tag(run, test.photos)
    p = regions.probabilities(test.photos)
    for row, q in zip(rows, p):
        assert torch.allclose(torch.tensor(list(row["scores"].values())), q, atol=1e-5)
        assert set(row["tags"]) == {c for c, v, t in zip(train.classes, q, model.threshold) if v >= t}
    e = evaluate(run, test)
    assert abs(e["mean_ap"] - read_json(run/"metrics.json")["discriminant"]["eval_mean_ap"]) < 1e-6
    code, out, said = ccd("predict", run, test.photos.root, "--out", tmp_path/"tags.csv")
    assert code == 0 and (tmp_path/"tags.csv").exists()


def test_an_unknown_method_is_refused_in_one_line(train, photos, tmp_path, ccd):
    code, _, said = ccd("fit", photos, "--classes", "star, moon", "--method", "magic", "--out", tmp_path/"run")
    assert code == 2 and said == ["ccd: --method magic: choose from ccd, discriminant"] and not (tmp_path/"run").exists()


def test_rows_of_the_comparison(train, toy_root, tmp_path, small):
    names = ("ccd", "discriminant", "student_discriminant", "ccd_discriminant")
    rows = compare(train, read_benchmark("toy", toy_root, "test"), small(train__epochs=2), [0], tmp_path/"rows.json", names)
    row = {r["method"]: r for r in rows}
    n, views = len(train), row["ccd"]["teacher_passes"] - len(train)
    labels = {m: r["labels_train_mean_ap"] for m, r in row.items()}
    s = small(labels__source="both")
    _, _, learned = scorers(train, s, "both")
    assert labels["discriminant"] == mean_ap(train.truth, learned) != labels["ccd"] != labels["ccd_discriminant"]
    assert labels["student_discriminant"] == mean_ap(train.truth, label_rule(learned, s.labels).initial(learned))
    assert [row[m]["teacher_passes"] for m in names[1:3]] == [2*(n + 10), 2*n]
    assert abs(row["ccd_discriminant"]["teacher_passes"] - (3*n + views)) <= n


@pytest.mark.parametrize("others, said", [
    ("none", None), ("heart, tree, sun", None), ("nowhere.txt", "ccd: labels.others nowhere.txt: no such file"),
    ("tree, tree", "ccd: labels.others: class 'tree' is there twice")])
def test_names_that_compete_are_given_like_a_class_list(ccd, photos, tmp_path, others, said):
    code, _, err = ccd("label", photos, "--classes", "star, moon, boat", "--preset", "toy", "--limit", 12, "--out", tmp_path/"labels.csv",
                       "--set", "labels.source=both", "--set", f"labels.others={others}")
    if said: assert code == 2 and err[-1].startswith(said)
    else: assert code == 0 and (tmp_path/"labels.csv").exists()
