"From scores to labels, rows and files: numbers worked out by hand, in which nothing is symmetric and rows come in another order."
import csv
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ccd import losses, run
from ccd.benchmarks import Benchmark
from ccd.bias import Bias, Calibration, calibrate, debias, entropy, estimate_bias, estimate_calibration, match_sharpness
from ccd.cache import Cache, cache_contents, content, open_cache, prune_cache, view_keys, view_mode
from ccd.classes import parse_class, prompts, read_classes
from ccd.core import CCDError, Clock, atomic, read_json, write_json
from ccd.data import Photos, Views, list_photos
from ccd.discriminant import SHRINKAGE, Gaussians, bank, bank_size, fit_discriminant
from ccd.distill import DistillResult
from ccd.metrics import ap_by_class, average_precision, mean_ap, micro_f1
from ccd.options import show_run
from ccd.predict import evaluate
from ccd.pseudo_labels import LabelRule, confidence, max_over_views, smooth, update
from ccd.results import Rows, differences, mean_sd, settings_changes, spread, summary, tidy_columns
from ccd.scorer import Scorer, cached_views, class_probabilities
from ccd.settings import LabelSettings, StudentSettings, flat, settings
from ccd.student import create_student, load_model, save_model
from ccd.tables import markdown, write_table
from ccd.teacher import embed_classes

def near(x, want, **kw): return torch.allclose(torch.as_tensor(x).double(), torch.as_tensor(want).double(), **dict(atol=1e-5) | kw)


# --- bias and calibration

def test_entropy_by_hand():
    want = [-.5*math.log(.5) - .3*math.log(.3) - .2*math.log(.2), 0, math.log(2)]
    assert near(entropy(torch.tensor([[.5, .3, .2], [0, 1, 0], [.4, 0, .4]])), want)
    assert near(confidence(torch.tensor([[.5, .3, .2], [0, 1, 0]])), [1 - want[0]/math.log(3), 1])


def test_bias_by_hand():
    p = torch.tensor([[.9, .1, 0]]*3 + [[.7, .2, .1]]*3 + [[.1, .85, .05]]*4 + [[.35, .3, .35]]*9 + [[.05, .05, .9]]*5)
    b = estimate_bias(p, .9)  # of .9 .1: .325; of .7 .2 .1: .802; of .1 .85 .05: .518; of .05 .05 .9: .394
    assert b.votes.tolist() == [6, 4, 5]
    assert near(b.value, [.8, (4*.85 + .3)/5, .9]), "four votes are too few: the five highest of the class"
    assert near(estimate_bias(p, .5).value, [(3*.9 + 2*.7)/5, (4*.85 + .3)/5, .9]), "of whom all that is known is above"
    low = torch.tensor([[.6, .2, .2]]*6 + [[.1, .8, .1]]*4)
    assert near(estimate_bias(low, 2.).value, [.6, .6, .2]), "a stand-in is at most the lowest that is known"


def test_many_photographs_lend_more_to_a_stand_in():
    p = torch.zeros(700, 2)
    p[:, 0] = 1 - torch.arange(700)/7000
    p[:, 1] = 1 - p[:, 0]
    assert near(estimate_bias(p, 2.).value[1], np.mean([.1 - (k + 1)/7000 for k in range(7)])), "one in a hundred"


def test_labels_by_hand():
    p, b = torch.tensor([[.1, .02], [.5, .3]]), torch.tensor([.4, .8])
    assert near(debias(p, b, .05), [[.25, .0625], [1, .375]])
    assert near(debias(p, b, .05, clamp=False), [[.25, .0625], [1.25, .375]])
    assert near(debias(p, b, .05, floor_first=False), [[.25, .05], [1, .375]])
    assert near(debias(p, None, .05), [[.1, .05], [.5, .3]])
    assert near(update(torch.tensor([[.2, .9]]), torch.tensor([[.7, .4]]), .3), [[.55, .55]])
    assert near(update(torch.tensor([[.2, .9]]), torch.tensor([[1.9, .4]]), .1), [[1, .45]])


def rule(**kw):
    return LabelRule(LabelSettings(**kw), Bias(torch.tensor([.4, .8, .5]), torch.tensor([5, 5, 5])), None)


def test_local_labels_by_hand():
    p, image = torch.tensor([[.1, .2, .3], [.3, .1, .05], [.2, .4, .4]]), torch.tensor([0, 0, 2])
    want = [[.75, .25, .6], [.0025, .00125, .002], [.5, .5, .8]]
    assert near(rule(floor=.001).local(p, image, 3), want), "no view: the floor over the bias"
    assert near(max_over_views(p, image, 3), [[.3, .2, .3], [0, 0, 0], [.2, .4, .4]])
    high = torch.tensor([[.6, .2, .2]])
    assert near(rule(floor=.001, clamp_local=False).local(high, torch.tensor([0]), 1), [[1.5, .25, .4]])
    assert near(rule(floor=.001).local(high, torch.tensor([0]), 1), [[1, .25, .4]])
    assert near(rule(floor=.001, debias=False).initial(high), high)
    assert near(rule(floor=.001, weigh=True).initial(high), torch.tensor([[1, .25, .4]])*confidence(high))
    assert near(rule(floor=0, alpha=.9).final(high, p[:1]), .9*high + .1*p[:1])


def test_calibration_by_hand():
    p = torch.tensor([[.5, .3, .2], [.1, .6, .3]])
    c = Calibration(torch.tensor([-1., -2, -.5]), 2.)
    z = np.exp(2*(np.log(p.numpy()) - np.array([-1, -2, -.5])))
    assert near(calibrate(p, c), z/z.sum(1, keepdims=True))
    assert near(estimate_calibration(p).offset, np.log(p.numpy()).mean(0))
    sharp = match_sharpness(torch.tensor([[1., 0, -2], [3, 2.5, 0]]), .7)
    assert near(entropy((sharp*torch.tensor([[1., 0, -2], [3, 2.5, 0]])).softmax(-1)).mean(), .7, atol=1e-4)


def test_the_nearest_photographs_are_asked():
    label = torch.tensor([[.9, .1], [.5, .3], [.2, .6], [.1, .8]])
    want = [[.7, .2], [.7, .2], [.15, .7], [.15, .7]]
    assert near(smooth(label, label, neighbours=1), want)
    assert near(smooth(label, label, neighbours=9), (label + (label.sum(0) - label)/3)/2)


# --- scores

def test_probabilities_by_hand():
    image, text = torch.tensor([[.6, .8], [1, 0]]), torch.tensor([[1., 0], [0, 1], [.8, -.6]])
    z = np.array([[.6, .8, 0], [1, 0, .8]])/.25
    assert near(class_probabilities(image, text, .25), np.exp(z)/np.exp(z).sum(1, keepdims=True))
    assert near(class_probabilities(image, text, .25, -2.), 1/(1 + np.exp(2 - z)))


class Words:
    "Texts by the sum of their letters' places, photographs by their colour; a teacher that can be worked out by hand."
    name, size, stride, temperature, logit_bias, fingerprint, precision, rois = "words", 8, 4, .5, -1., "a"*64, "auto", False

    def __init__(self): self.texts, self.seen = [], 0

    def embed_text(self, texts):
        self.texts += texts
        f = torch.tensor([[len(t), t.count("a"), 1.] for t in texts])
        return torch.nn.functional.normalize(f, dim=-1)

    def embed_pixels(self, x):
        self.seen += len(x)
        return torch.nn.functional.normalize(x.float().mean((2, 3)) + torch.tensor([1., 2, 3]), dim=-1)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coloured")
    for i in range(4): Image.new("RGB", (10 + i, 12), (40*i, 200 - 30*i, 90)).save(folder/f"{i}.png")
    return list_photos(folder)


def test_a_class_is_the_mean_of_its_phrases():
    t = Words()
    e = embed_classes(t, [parse_class("cat: cat | big cat"), "owl"], "a {} | the {}")
    assert t.texts == ["a cat", "the cat", "a big cat", "the big cat", "a owl", "the owl"]
    unit = lambda *v: np.array(v)/np.linalg.norm(v)
    cat, owl = (np.mean(v, 0) for v in ([unit(5, 2, 1), unit(7, 1, 1), unit(9, 2, 1), unit(11, 1, 1)], [unit(5, 1, 1), unit(7, 0, 1)]))
    assert near(e, np.stack([unit(*cat), unit(*owl)]))
    assert prompts(["dog"], "nus-wide") == [["a photo of a dog"]]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_rows_of_scores_follow_the_views(coloured, tmp_path, score):
    v = Views(torch.tensor([0, 1, 1, 3]), torch.tensor([[0, 0, .5, 1], [.1, 0, 1, 1], [.1, 0, 1, 1], [0, .2, 1, .9]]))
    t, s = Words(), settings("toy", teacher__score=score, views__mode="squash")
    colour = np.array([[40*i, 200 - 30*i, 90] for i in (0, 1, 1, 3)]) + [1, 2, 3]
    image = colour/np.linalg.norm(colour, axis=1, keepdims=True)
    text = embed_classes(Words(), ["cat", "owl", "an ape"], s.teacher.prompt).numpy()
    z = image @ text.T/.5
    want = np.exp(z)/np.exp(z).sum(1, keepdims=True) if score == "softmax" else 1/(1 + np.exp(1 - z))
    for cache in ("none", tmp_path/"cache", tmp_path/"cache"):
        assert near(Scorer(t, ["cat", "owl", "an ape"], s, cache).probabilities(coloured, v), want, atol=2e-3)
    assert t.seen == 4 + 3, "each view once, equal ones too where they are kept"
    whole = Scorer(t, ["cat", "owl", "an ape"], s, "none").probabilities(coloured.take([3, 0]))
    assert near(whole, want[[3, 0]], atol=2e-3)


def test_a_cache_tells_views_and_ways_apart(coloured, tmp_path):
    t, cache = Words(), Cache(tmp_path/"cache")
    box = torch.tensor([[0, 0, .5, 1], [0, 0, 1, .5]])
    a = cached_views(t, coloured, Views(torch.tensor([0, 2]), box), cache)
    b = cached_views(t, coloured, Views(torch.tensor([0, 2]), box.flip(0)), cache)
    assert t.seen == 4 and near(a, b, atol=1e-2) and not near(a[0], a[1], atol=1e-2)
    cached_views(t, coloured, Views(torch.tensor([0, 2]), box), cache, mode="crop")
    assert t.seen == 6
    assert near(cached_views(t, coloured, Views(torch.tensor([0, 0, 2]), box[[1, 0, 1]]), cache), a[[0, 0, 1]], atol=1e-2) and t.seen == 6
    row, = cache_contents(cache)
    assert (row["name"], row["rows"], row["shards"]) == ("words", 6, 3)
    assert row["bytes"] == sum(p.stat().st_size for p in cache.shards())
    assert Scorer(t, ["cat", "owl"], settings("toy"), cache.folder).seen(coloured).tolist() == [True, False, True, False]
    old = sorted(cache.shards())[1]
    os.utime(old, (0, old.stat().st_mtime - 10*86400))
    assert prune_cache(cache, days=11) == 0 and prune_cache(cache, days=9) == 1 and not old.exists()
    assert prune_cache(cache) == 3  # and the prompts


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("CCD_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert [str(open_cache(x).folder) for x in (None, "/c", tmp_path)] == ["/a", "/c", str(tmp_path)] and open_cache("none") is None
    monkeypatch.delenv("CCD_CACHE")
    assert str(open_cache().folder) == "/b/ccd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert open_cache().folder == Path.home()/".cache"/"ccd"
    (tmp_path/"file").write_text("")
    with pytest.raises(CCDError, match="is not a folder"): open_cache(tmp_path/"file")


def test_what_makes_a_view_another_one(coloured):
    image, box = content(coloured), np.array([[0, .25, .5, 1]]*4, np.float32)
    assert len(set(view_keys(image, box))) == 4 and view_keys(image, box)[2] == view_keys(image[2:3], box[:1])[0]
    assert view_keys(image[:1], np.array([[-0., .25, .5, 1]], np.float32))[0] == view_keys(image, box)[0]
    teacher = SimpleNamespace(stride=32, size=224, precision="fp32")
    assert view_mode(teacher, "crop") == "crop fp32" and view_mode(teacher, "roi", 250) == "roi 256 fp32"
    assert view_mode(Words(), "crop") == "crop"


# --- the discriminant

def test_the_bank_by_hand():
    p = torch.tensor([[.6, .3, .1], [.9, .1, 0], [.2, .7, .1], [.1, .1, .8], [.8, .1, .1], [.3, .6, .1], [.7, .2, .1], [0, .1, .9]])
    image = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    rows, y = bank(p, image, 2)
    assert (rows.tolist(), y.tolist()) == ([1, 4, 2, 5, 7, 3], [0, 0, 1, 1, 2, 2]), "of the first photograph only its surest dog"
    assert bank(p, image, 1)[0].tolist() == [1, 2, 7] and bank(p, image, 9)[0].tolist() == [1, 4, 6, 2, 5, 7, 3]
    assert [bank_size(n, c) for n, c in ((30, 3), (31, 3), (600, 20), (40, 10), (99_999, 20))] == [5, 5, 15, 5, 512]


def test_a_linear_classifier_by_numpy():
    g = torch.Generator().manual_seed(0)
    y = torch.tensor([0]*9 + [1]*5 + [3]*7)
    f = torch.randn(21, 3, generator=g)*torch.tensor([1., .4, 2]) + torch.tensor([[0., 2, 1], [3, 0, 1], [9, 9, 9], [1, 1, -4]])[y]
    x = f.double().numpy()
    mean = np.stack([x[y == c].mean(0) if (y == c).any() else np.zeros(3) for c in range(4)])
    around = x - mean[y]
    cov = around.T @ around/21
    for r in (.1, .7):
        inverse = np.linalg.inv((1 - r)*cov + r*np.trace(cov)/3*np.eye(3))
        weight, bias = Gaussians(f, y, 4).linear(r)
        assert near(weight, mean @ inverse, atol=1e-4) and near(bias[[0, 1, 3]], -.5*(mean @ inverse*mean).sum(1)[[0, 1, 3]], atol=1e-3)
        assert bias[2] == -math.inf


def test_the_discriminant_learns_what_texts_are_sure_of_and_mends_the_rest():
    g = torch.Generator().manual_seed(0)
    y, image = torch.randint(0, 3, (400,), generator=g), torch.arange(100).repeat_interleave(4)
    f = torch.randn(400, 5, generator=g) + 4*torch.eye(3, 5)[y]
    p = (2*torch.eye(3)[y] + 1.2*torch.randn(400, 3, generator=g)).softmax(-1)
    d = fit_discriminant(f, p, image)
    q = d(f)
    assert (q.argmax(1) == y).float().mean() > .97 > .93 > (p.argmax(1) == y).float().mean()
    assert near(entropy(q).mean(), entropy(p).mean(), atol=1e-3) and d.found.tolist() == [16]*3
    assert near(q.sum(1), torch.ones(400)) and d.rows.tolist() == bank(p, image, 16)[0].tolist()


# --- losses

def test_losses_by_plain_loops():
    p, z = [[.8, .3, .6], [.1, .45, .9]], [[1, 0, -1], [-1, -1, 1]]
    logits, zz, y = torch.tensor(p).logit(), torch.tensor(z).float(), torch.tensor([[.9, .2, .4], [.3, .7, .6]])
    at = [(i, j) for i in range(2) for j in range(3)]
    pos, neg = (lambda i, j: -math.log(p[i][j])), (lambda i, j: -math.log(1 - p[i][j]))
    an = sum(pos(*k) if z[k[0]][k[1]] > 0 else neg(*k) for k in at)/6
    wan = sum(pos(*k) if z[k[0]][k[1]] > 0 else neg(*k)/2 for k in at)/6
    soft = lambda y: sum(float(y[k])*pos(*k) + (1 - float(y[k]))*neg(*k) for k in at)/6
    assert near(losses.assume_negative(logits, zz), an) and near(losses.assume_negative(logits, zz, weak=True), wan)
    assert near(losses.soft_bce(logits, y), soft(y)) and near(losses.label_smoothing(logits, y, .2), soft(y*.8 + (1 - y)*.2))
    assert near(losses.consistency(logits, y.logit()), soft(y))
    known = an*6 - neg(0, 1)
    assert near(losses.entropy_maximization(logits, zz, .3), (known - .3*(.3*pos(0, 1) + .7*neg(0, 1)))/6)
    positive = (pos(0, 0) + pos(1, 2))/6
    assert near(losses.expected_positive(logits, zz, 1.2), positive + ((1.7 + 1.45)/2 - 1.2)**2/9)
    g = lambda r: -2*r**3 + 3
    rows = g(2/3)*(pos(0, 0) + neg(0, 2))/3, g(1)*(neg(1, 0) + neg(1, 1) + pos(1, 2))/3
    assert near(losses.partial_bce(logits, zz, -2, 3, 3), sum(rows)/2)
    total = 0
    for i, j in at:
        v, q = float(y[i, j]), max(p[i][j] - .2, 0)
        total += v*(1 - p[i][j])**2*pos(i, j) - (1 - v)*q**3*math.log(1 - q)
    assert near(losses.asl(logits, y, 2, 3, .2), total/6)
    assert losses.harden(torch.tensor([[.5, .34, .33, .1], [.25, .26, .9, .49]])).tolist() == [[1, 0, 0, -1], [-1, 0, 1, 0]]


def test_role_by_hand():
    z, start = torch.tensor([[1., 0, -1], [0, 1, 0]]), torch.tensor([[.9, .3, .2], [.4, .8, .6]])
    r = losses.Role(z, 1.5, .1, y=start)
    p = torch.tensor([[.2, .7, .1]])
    want = .5*(losses.expected_positive(p.logit(), z[[1]], 1.5) + losses.soft_bce(p.logit(), start[[1]]))
    assert near(r(p.logit(), z[[1]], torch.tensor([1])), want)
    moved = r.theta.detach() - start.logit()
    assert near(moved[0], [0, 0, 0]) and near(moved[1].abs(), [.1]*3, atol=1e-3), "Adam's first step, of the photograph seen alone"
    torch.manual_seed(0)
    drawn = losses.Role(z.repeat(200, 1), 1.5, .1).theta.detach().sigmoid()
    assert near(drawn[0, [0, 2]], [.995, .005]) and .4 <= drawn[z.repeat(200, 1) == 0].min() < .41 and .59 < drawn[1::2, 2].max() <= .6


# --- figures and rows

def test_average_precision_by_hand():
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=bool)
    scores = np.array([[.3, .9, .1], [.8, .2, .5], [.6, .4, .2], [.1, .3, .4]])
    ap = [100*(1/2 + 2/3)/2, 100*(1/2 + 2/4)/2, 0]
    assert average_precision(truth, scores).tolist() == pytest.approx(ap) and mean_ap(truth, scores) == pytest.approx(sum(ap)/2)
    assert mean_ap(truth, scores, every=True) == pytest.approx(sum(ap)/3) and mean_ap(truth, truth) == 100
    assert list(ap_by_class(truth, scores, ["a", "b", "c"]).items()) == [("a", ap[0]), ("b", ap[1])]
    assert micro_f1(truth, scores >= .4) == pytest.approx(200*2/(4 + 6)) and micro_f1(truth*False, truth*False) == 0


def row(method, seed, labels, found): return dict(
    method=method, seed=seed, labels_train_mean_ap=labels, eval_mean_ap=found, seconds=1., commit="x")


def test_summaries_and_differences_by_hand():
    rows = [row("a", 0, 50., 60.), row("b", 0, 52., 63.), row("a", 1, 51., 62.), row("b", 1, 52., 69.), row("a", 2, 55., 61.),
            row("b", 2, 52., 62.), row("c", 2, 9., 70.)]
    a, b, c = summary(rows)
    assert (a["method"], a["seeds"], a["labels"], a["eval"]) == ("a", 3, 52, 61) and c["eval_sd"] == 0
    assert a["labels_sd"] == pytest.approx(math.sqrt(7)) and a["eval_sd"] == pytest.approx(1) and b["labels_sd"] == 0
    d = {x["method"]: x for x in differences(rows, "b")}
    assert (d["a"]["difference"], d["a"]["seeds"], d["a"]["against"], d["a"]["clear"]) == (pytest.approx(-11/3), 3, "b", True)
    assert d["a"]["sd"] == pytest.approx(math.sqrt(((2/3)**2 + (10/3)**2 + (8/3)**2)/2)) and d["c"]["difference"] == 8
    assert not d["c"]["clear"] and not d["b"]["clear"] and differences(rows, "none")[0]["against"] == "a"
    assert differences(rows, "a", "labels_train_mean_ap")[1]["difference"] == 0
    assert mean_sd([1., 2, 4]) == "2.3 ± 1.5" and mean_sd([5.]) == "5.0" and spread([2.]) == 0
    flat_rows = tidy_columns([dict(method="a", ap=dict(dog=1.)), dict(method="b", extra=[1], more=2)])
    assert flat_rows == {"method": ["a", "b"], "ap.dog": [1., None], "more": [None, 2]}
    assert markdown(dict(a=[1, 2.25], b=["x", True])) == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2.2 | True |"


class Split(list):
    "As many photographs as it is long."
    name, split, photos, truth = "toy", "train", Photos(Path("nowhere"), []), []


def test_rows_are_kept_in_order_and_taken_up_again(tmp_path):
    out, s = tmp_path/"rows.json", settings("toy")
    rows = Rows(out, s, Split([1]*7), Split([1]*3), ["first", "second"])
    for m, seed in (("second", 1), ("first", 1), ("second", 0)): rows.add(row(m, seed, 1., 2.))
    again = Rows(out, s, Split([1]*7), Split([1]*3), ["first", "second"])
    assert [(r["seed"], r["method"]) for r in again] == [(0, "second"), (1, "first"), (1, "second")]
    assert again.missing([0, 1, 2], ["second", "first"]) == [(0, "first"), (2, "second"), (2, "first")]
    held = read_json(out)["provenance"]
    assert held["data"] == "toy: 7 train / 3 train photographs" and held["seconds"] == 3
    for other in (dict(s=settings("toy", labels__alpha=.5)), dict(n=8)):
        with pytest.raises(Exception, match="rows of other settings or data"):
            Rows(out, other.get("s", s), Split([1]*other.get("n", 7)), Split([1]*3), ["first"])
    kept = json.loads(json.dumps(held["settings"]))
    del kept["labels"]["weigh"]
    now = asdict(s)
    assert settings_changes(kept, now) == [] and settings_changes(kept | dict(odd=1), now) == ["odd 1 in place of None"]


# --- files

def writers(folder):
    columns, photos = dict(image=["a", "b"], p=[.25, .5]), Photos(folder, ["a.jpg"])
    student = create_student(StudentSettings("torchvision/resnet18", "random", 32), ["dog", "cat"])
    return {
        "x.json": lambda: write_json(folder/"x.json", dict(a=1)), "x.csv": lambda: write_table(folder/"x.csv", columns),
        "x.md": lambda: write_table(folder/"x.md", columns), "x.parquet": lambda: write_table(folder/"x.parquet", columns),
        "quarantine.csv": lambda: run.write_quarantine(folder/"quarantine.csv", dict(a="b"), {}),
        "model.safetensors": lambda: save_model(student, folder), "config.json": lambda: save_model(student, folder),
        "labels.csv": lambda: run.write_labels(folder/"labels.csv", photos, ["c"], Views(torch.tensor([0]), torch.zeros(1, 4)))}


def test_a_file_is_written_beside_its_place_and_renamed_when_whole(tmp_path, monkeypatch):
    for name, write in writers(tmp_path).items():
        file, moves, rename = tmp_path/name, [], os.replace
        def note(a, b):
            if Path(b) == file: moves.append((Path(a).parent, Path(a) != Path(b), Path(a).stat().st_size > 0, file.read_text()))
            rename(a, b)
        file.write_text("old")
        with monkeypatch.context() as m:
            m.setattr(os, "replace", note)
            write()
        assert moves == [(tmp_path, True, True, "old")], name
        assert file.read_bytes() != b"old" and not list(tmp_path.glob(".*.tmp"))


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    (tmp_path/"x").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(tmp_path/"x") as tmp:
        tmp.write_text("new")
        1/0
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path/"x").read_text() == "old"


def test_labels_and_views_in_their_files(tmp_path):
    photos, classes = Photos(tmp_path, ["b.jpg", "a.jpg", "c.jpg"]), ["dog", "cat"]
    v = Views(torch.tensor([0, 2, 2]), torch.tensor([[.1, .2, .3, .4], [.5, .6, .7, .8], [0, .1, .2, 1]]), torch.tensor([1, 0, 1]),
              torch.tensor([.9, .8, .7]))
    initial, final = torch.tensor([[.1, .2], [.3, .4], [.5, .6]]), torch.tensor([[.9, .8], [.7, .6], [.5, .4]])
    run.write_labels(tmp_path/"labels.parquet", photos, classes, v, initial=initial, final=final)
    t = pq.read_table(tmp_path/"labels.parquet").to_pydict()
    assert list(t) == ["image", "split", "views", "initial.dog", "initial.cat", "final.dog", "final.cat"]
    assert t["image"] == photos.names and t["views"] == [1, 0, 2] and t["split"] == ["train"]*3
    assert t["initial.cat"] == pytest.approx([.2, .4, .6]) and t["final.dog"] == pytest.approx([.9, .7, .5])
    run.write_views(tmp_path/"views.csv", photos, classes, v)
    with open(tmp_path/"views.csv", newline="") as f: rows = list(csv.DictReader(f))
    assert [(r["image"], r["class"]) for r in rows] == [("b.jpg", "cat"), ("c.jpg", "dog"), ("c.jpg", "cat")]
    assert [float(rows[1][k]) for k in ("x0", "y0", "x1", "y1", "score")] == pytest.approx([.5, .6, .7, .8, .8])


def test_the_figures_of_a_run_by_hand(monkeypatch):
    student = SimpleNamespace(threshold=torch.tensor([.7, .3]))
    truth = np.array([[True, False], [False, True], [True, True]])
    p = [torch.tensor(x) for x in ([[.9, .1], [.2, .8], [.6, .7]], [[.1, .9], [.2, .8], [.6, .7]], [[.9, .8], [.7, .1], [.1, .9]],
                                   [[.1, .9], [.2, .8], [.3, .1]])]
    v = Views(torch.tensor([0, 0, 1, 2, 2, 2]), torch.zeros(6, 4))
    d = DistillResult(student, *p, Bias(torch.tensor([.4, .5]), torch.tensor([7, 2])), v, [], 3, True, {})
    monkeypatch.setattr(run, "distill", lambda *a, **kw: d)
    made = run.WAYS["ccd"](None, ["dog", "cat"], *[None]*6)
    seen = torch.tensor([[.8, .2], [.75, .4], [.6, .9]])
    m = run.measure(made, ["dog", "cat"], truth, p[0], seen, truth)
    assert (m["views_per_image"], m["kept_epoch"], m["stopped"]) == (2, 3, True)
    assert m["bias"] == dict(dog=dict(value=pytest.approx(.4), votes=7), cat=dict(value=.5, votes=2))
    assert m["teacher"]["train_mean_ap"] == m["teacher"]["eval_mean_ap"] == 100
    assert m["labels"]["initial"]["train_mean_ap"] == pytest.approx((100*(1 + 2/3)/2 + 100*(1/2 + 2/3)/2)/2)
    assert m["labels"]["local"]["train_mean_ap"] == pytest.approx((100*(1 + 2/3)/2 + 100*(1 + 2/3)/2)/2)
    assert m["student"]["eval_mean_ap"] == pytest.approx((100*(1 + 2/3)/2 + 100)/2)
    assert (m["student"]["eval_f1"], m["student"]["eval_f1_macro"]) == (pytest.approx(200*3/(4 + 4)), 75.)


def test_a_model_comes_back_as_it_was(tmp_path):
    student = create_student(StudentSettings("torchvision/resnet18", "random", 40, 3, 2.5), ["dog", "cat", "owl"])
    student.threshold.copy_(torch.tensor([.2, .7, .4]))
    save_model(student, tmp_path/"run"/"model")
    for folder in (tmp_path/"run", tmp_path/"run"/"model"):
        back = load_model(folder)
        assert (back.classes, back.size, back.frozen, back.boostlu, back.training) == (["dog", "cat", "owl"], 40, 3, 2.5, False)
        for k, v in student.state_dict().items(): assert torch.equal(back.state_dict()[k], v), k


def test_classes_of_a_file_and_settings_by_name(tmp_path):
    (tmp_path/"classes.txt").write_text("dog\ntv: tv monitor |  television set \nowl | barn owl\n")
    c = read_classes(str(tmp_path/"classes.txt"))
    assert c == ["dog", "tv", "owl"] and [x.phrases for x in c] == [("dog",), ("tv monitor", "television set"), ("owl", "barn owl")]
    assert [x.phrases for x in read_classes(c)] == [x.phrases for x in c] and read_classes("a,  b c ,d") == ["a", "b c", "d"]
    f = flat(settings("cpu", labels__alpha=.15, seed=4))
    assert (f["labels.alpha"], f["seed"], f["train.lr"], f["teacher.batch"]) == (.15, 4, 3e-4, 8) and list(f)[-2:] == ["seed", "device"]


def test_a_clock_adds_up(monkeypatch):
    now = iter([1., 3.5, 10., 11.25])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock(b=2)
    for _ in range(2):
        with clock("a"): pass
    assert clock == dict(a=3.75, b=2)


def test_a_run_without_losses_speaks_of_none(capsys):
    figures = dict(photos=12, views_per_image=6., quarantined=0, passed={}, seconds=dict(teacher=4.), device="cpu", student={})
    show_run(Path("run"), figures, False)
    assert "left out" not in capsys.readouterr().out
    show_run(Path("run"), figures | dict(passed={".txt": 2}), False)
    assert "left out 0, of other kinds 2 (reasons: run/quarantine.csv)" in capsys.readouterr().out


def test_views_are_looked_at_as_the_settings_say(coloured):
    "A view keeps its aspect where it is cropped; a whole photograph is squashed whatever views are."
    shapes = []
    class Seeing(Words):
        def embed_pixels(self, x):
            shapes.append(tuple(x.shape[2:]))
            return super().embed_pixels(x)
    views = Views(torch.tensor([0]), torch.tensor([[0, 0, .25, 1.]]))
    for mode in ("squash", "crop"):
        scorer = Scorer(Seeing(), ["cat", "owl"], settings("toy", views__mode=mode), "none")
        scorer.embed(coloured.take([0]), views)
        scorer.embed(coloured.take([0]))
    square = (Words.size, Words.size)
    assert shapes[0] == shapes[1] == shapes[3] == square and shapes[2] != square


def test_shrinkages_that_are_tried():
    "From nearly none to nearly all, evenly."
    assert np.allclose(np.diff(SHRINKAGE), .2) and np.isclose(np.mean(SHRINKAGE), .5)


def test_truth_and_scores_have_one_shape():
    for measure in (average_precision, mean_ap):
        with pytest.raises(ValueError, match=r"truth .2, 3. and scores .2, 2. differ in shape"): measure(np.eye(2, 3), np.eye(2))


def test_a_photograph_that_is_gone_is_named(coloured, tmp_path):
    gone = Photos(coloured.root, [*coloured.names, "gone.png"])
    with pytest.raises(CCDError, match="gone.png cannot be read: is it still there"): cached_views(Words(), gone, cache=Cache(tmp_path))


def test_a_teacher_that_changed_its_width_does_not_fill_up_old_rows(coloured, tmp_path):
    cache = Cache(tmp_path)
    cached_views(Words(), coloured.take([0]), cache=cache)
    class Narrow(Words):
        def embed_pixels(self, x): return super().embed_pixels(x)[:, :2]
    with pytest.raises(CCDError, match="embeddings of another width than words gives: remove them with `ccd cache --prune aaaaaaaaaaaa`"):
        cached_views(Narrow(), coloured.take([0, 1]), cache=cache)


def test_a_measured_split_is_whole_and_of_the_same_classes(coloured, tmp_path):
    (tmp_path/"a.png").write_text("x")
    student = create_student(StudentSettings(backbone="tf_efficientnet_lite0", weights="random", size=64), ["cat", "owl"])
    torn = Benchmark("torn", "val", Photos(tmp_path, ["a.png"]), ["cat", "owl"], np.eye(1, 2, dtype=bool), [[]])
    with pytest.raises(CCDError, match="a.png cannot be decoded .1 in all.: a measured split must be whole"): evaluate(student, torn)
    with pytest.raises(CCDError, match="the evaluation split torn has other classes than the training photographs"):
        run.fit(coloured, ["cat", "dog"], tmp_path/"run", evaluation=torn)
