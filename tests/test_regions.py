"`labels.source` reaches the labels of `fit` and `label`, and nothing that is called the teacher's."
import pyarrow.parquet as pq
import pytest
import torch

from ccd.benchmarks import read_benchmark
from ccd.bias import calibrate
from ccd.core import read_json
from ccd.discriminant import RegionScorer, region_views
from ccd.distill import train_on_updated, warm_up
from ccd.load_teacher import load_teacher
from ccd.methods import compare
from ccd.pseudo_labels import label_rule
from ccd.run import fit, label
from ccd.scorer import Scorer

@pytest.fixture(scope="module")
def train(toy_root): return read_benchmark("toy", toy_root, "train")


def columns(path, kind, classes):
    t = pq.read_table(path)
    return torch.stack([torch.tensor(t[f"{kind}.{c}"].to_numpy()) for c in classes], 1)


def scorers(train, s, source):
    texts = Scorer(load_teacher(s.teacher), train.classes, s)
    whole = texts.probabilities(train.photos)
    return whole, RegionScorer(texts, train.photos, whole, source)


@pytest.mark.parametrize("source", ["regions", "both"])
def test_labels_are_those_of_the_regions(train, tmp_path, small, source):
    s = small(labels__source=source)
    label(train, out=tmp_path/"labels.parquet", s=s, grid=True)
    whole, regions = scorers(train, s, source)
    want = label_rule(regions.learned, s.labels).initial(regions.learned)
    got = columns(tmp_path/"labels.parquet", "initial", train.classes)
    assert torch.allclose(got, want, atol=1e-6)
    assert not torch.allclose(got, label_rule(whole, s.labels).initial(whole), atol=.05)


def test_both_stages_of_ccd_ask_the_regions(train, small):
    s = small(labels__source="both", train__epochs=2)
    w = warm_up(train.photos, train.classes, s)
    whole, regions = scorers(train, s, "both")
    assert torch.allclose(w.teacher, whole, atol=1e-6)
    assert torch.allclose(w.initial, w.rule.initial(regions.learned), atol=1e-6)
    d = train_on_updated(w, s)
    p = regions.probabilities(train.photos, d.views)
    assert torch.allclose(d.local, w.rule.local(p, d.views.image, len(train)), atol=1e-6)


def test_what_is_called_the_teacher_is_zero_shot(train, toy_root, tmp_path, small):
    test = read_benchmark("toy", toy_root, "test")
    runs = {k: fit(train, out=tmp_path/k, s=small(labels__source=k), evaluation=test) for k in ("text", "both")}
    m = {k: read_json(run/"metrics.json") for k, run in runs.items()}
    assert m["both"]["teacher"] == m["text"]["teacher"]
    assert m["both"]["labels"]["initial"] != m["text"]["labels"]["initial"]


def test_a_teacher_without_a_map_is_refused_before_any_work(ccd, clip_folder, photos, tmp_path):
    (tmp_path/"broken").mkdir()
    (tmp_path/"broken"/"a.jpg").write_text("no photograph")

    def run(folder):
        return ccd("label", folder, "--classes", "star, moon", "--teacher", f"local-dir:{clip_folder}", "--out", tmp_path/"labels.csv",
                   "--set", "labels.source=both", "--set", "teacher.size=64", "--set", "views.roi_size=64")
    if "vit" in clip_folder.name:
        code, _, said = run(tmp_path/"broken")  # not even decoded
        assert code == 2 and len(said) == 1 and not (tmp_path/"labels.csv").exists()
        assert said[0].startswith("ccd: labels.source: teacher") and said[0].endswith("take text")
    else: assert run(photos)[0] == 0 and (tmp_path/"labels.csv").exists()


def test_a_photograph_is_its_whole_and_its_best_region_of_both_sides(train, small):
    s = small(labels__source="both")
    whole, regions = scorers(train, s, "both")
    views = region_views(1)
    for i in (0, 7):
        f = regions.features(train.photos.take([i]), views)
        said, seen = regions.read(f), regions.discriminant(f)
        for c in range(14):
            text = (calibrate(whole[i:i + 1], regions.calibration)[0, c] + max(said[:, c]))/2
            own = (seen[38, c] + max(seen[:, c]))/2 if regions.discriminant.found[c] else text
            assert abs(regions.learned[i, c] - (text + own)/2) < 1e-5


def test_rows_of_the_comparison(train, toy_root, tmp_path, small):
    names = ("ccd", "discriminant", "student_discriminant", "ccd_discriminant")
    rows = compare(train, read_benchmark("toy", toy_root, "test"), small(train__epochs=2), [0], tmp_path/"rows.json", names)
    row = {r["method"]: r for r in rows}
    n, views = len(train), row["ccd"]["teacher_passes"] - len(train)
    labels = {m: r["labels_train_mean_ap"] for m, r in row.items()}
    assert labels["discriminant"] == labels["student_discriminant"] != labels["ccd"] != labels["ccd_discriminant"]
    assert [row[m]["teacher_passes"] for m in names[1:3]] == [2*(n + 10), 2*n]
    assert abs(row["ccd_discriminant"]["teacher_passes"] - (3*n + views)) <= n
