"Every setting in which the authors' code differs from their paper, against plain and slow loops, and both presets from end to end."
import colorsys
import json
import math
import os
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import ccd.core
import ccd.distill
import ccd.training
from ccd.bias import debias
from ccd.cam import cam_boxes
from ccd.clip import OpenClipTeacher, resize_positions
from ccd.core import read_json, write_json
from ccd.data import Views, list_photos, strong
from ccd.distill import distill
from ccd.load_teacher import load_teacher
from ccd.pseudo_labels import label_rule
from ccd.results import read_results, settings_changes
from ccd.settings import PRESETS, SOURCES, Settings, StudentSettings, TrainSettings, flat, settings
from ccd.student import create_student, load_model, save_model
from ccd.teacher import crops_of_squashed
from ccd.training import Trainer, first_gradient_minimum, first_gradient_rise, pseudo_mean_ap
from ccd.views import propose, search_threshold
from conftest import ROOT, save_clip

CLASSES = ["dog", "cat", "bird", "fish", "tree"]


def draw(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def small_student(**kw): return create_student(StudentSettings("torchvision/resnet18", "random", 64, **kw), CLASSES)


# --- presets


def test_every_value_has_its_source_and_fits():
    for name, values in PRESETS.items():
        s = flat(settings(name))
        for k, v in values.items(): assert s[k] == v and SOURCES[name][k].strip(), (name, k)
    assert settings("paper") == Settings() and set(SOURCES["paper"]) == {k for k in flat(Settings()) if "." in k}
    paper = flat(settings("paper"))
    differ = {k for k in PRESETS["official"] if PRESETS["official"][k] != paper[k]}
    assert differ == set(PRESETS["official"]) - {"labels.floor_first"}, "what does not differ needs no line"
    rows = {SOURCES["official"][k].split(",")[0].split(":")[0] for k in PRESETS["official"]}
    assert rows == {f"row {i}" for i in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 16, 17, 18, 19, 20, 21)}


def test_presets_are_set_side_by_side(ccd):
    code, out, _ = ccd("presets")
    assert code == 0 and all(k in out for k in PRESETS["official"] if k != "labels.floor_first") and "row 9" in out and "Fig. 6a" in out
    assert "train.batch" not in out and "train.batch" in ccd("presets", "--all")[1]


def test_kept_results_can_be_gone_on_with():
    kept = read_results(ROOT/"nbs"/"studies"/"results"/"compare_toy.json")["provenance"]["settings"]
    s = settings("toy", device=kept["device"], student__freeze=7)
    assert "boost" not in kept["student"], "the file is from before BoostLU"
    changes = lambda kept, **other: settings_changes(kept, asdict(replace(s, **other)))
    assert changes(kept) == [] and changes(kept, seed=1) == ["seed 0 in place of 1"]
    assert changes(kept, student=replace(s.student, boost=3.)) == ["student.boost 1.0 in place of 3.0"]
    assert changes(kept | dict(more=1)) == ["more 1 in place of None"]
    assert changes(kept | dict(labels=kept["labels"] | dict(more=1))) == ["labels.more 1 in place of None"]


# --- labels


@pytest.mark.parametrize("floor_first", [True, False])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_floor_and_clamp(floor_first, clamp, biased):
    p, bias, floor = draw(6, 5).pow(4), draw(5, seed=1).clamp_min(.2) if biased else None, .05
    want = torch.zeros(6, 5)
    for n in range(6):
        for c in range(5):
            v = p[n, c].item()
            if floor_first: v = max(v, floor)
            if biased: v = v/bias[c].item()
            if clamp: v = min(v, 1.)
            if not floor_first: v = max(v, floor)
            want[n, c] = v
    assert torch.allclose(debias(p, bias, floor, floor_first, clamp), want, atol=1e-6)


@pytest.mark.parametrize("clamp", [True, False])
def test_clamp_of_the_local_label_before_the_mix(clamp):
    s = settings("official", labels__clamp_local=clamp, labels__floor=.05)
    p, image = draw(40, 4).softmax(-1), torch.tensor([0, 0, 0, 2, 2])
    p[:20, 0] += 1
    p /= p.sum(1, keepdim=True)
    rule = label_rule(p, s.labels)
    initial = rule.initial(p)
    parts = draw(5, 4, seed=2).pow(.3)
    want = torch.zeros(3, 4)
    for n in range(3):
        for c in range(4):
            seen = [parts[k, c].item() for k in range(5) if image[k] == n]
            v = max([.05, *seen])/rule.bias.value[c].item()  # photograph 1 has no view: floor ÷ bias
            if clamp: v = min(v, 1.)
            want[n, c] = min(1., .2*initial[n, c].item() + .8*v)
    local = rule.local(parts, image, 3)
    assert torch.allclose(rule.final(initial[:3], local), want, atol=1e-6)
    assert (local > 1).any() != clamp


# --- views


def plain_raster(m, threshold):
    "First and last position of a map, read like a page."
    h, w = m.shape
    low, high, first, last = m.min(), m.max(), None, None
    for y in range(h):
        for x in range(w):
            if (m[y, x] - low)/(high - low) >= threshold:
                first = first or (y, x)
                last = y, x
    (y0, x0), (y1, x1) = first, last
    return [min(x0, x1)/w, y0/h, (max(x0, x1) + 1)/w, (y1 + 1)/h]


def test_raster_corners_of_an_ellipse():
    y, x = torch.meshgrid(torch.arange(640.), torch.arange(640.), indexing="ij")
    ellipse = (((x - 320)/119.5)**2 + ((y - 320)/50.8)**2 <= 1).float()
    box = {rule: cam_boxes(ellipse[None], .5, 0, enlarge=640, rule=rule)[0] for rule in ("extent", "raster")}
    width = {rule: (b[2] - b[0]).item()*640 for rule, b in box.items()}
    assert width == pytest.approx(dict(extent=239, raster=43))


@pytest.mark.parametrize("seed", range(4))
def test_raster_corners_against_loops(seed):
    m = draw(3, 12, 12, seed=seed)
    got = cam_boxes(m, .8, 0, enlarge=12, rule="raster")
    assert torch.allclose(got, torch.tensor([plain_raster(k, .8) for k in m]), atol=1e-6)
    wide = cam_boxes(m, .8, 0, enlarge=12)
    assert (wide[:, 0] <= got[:, 0]).all() and (got[:, 2] <= wide[:, 2]).all() and torch.equal(wide[:, [1, 3]], got[:, [1, 3]])
    assert torch.allclose(cam_boxes(m, .8, .1, enlarge=12, rule="raster"), (got + torch.tensor([-.1, -.1, .1, .1])).clamp(0, 1))


def plain_search(p, low, high):
    t, total = .05, 0
    for i, row in enumerate(p.tolist(), 1):
        total += sum(v >= t for v in row)
        if i % 100 == 0:
            if low < total/100 < high: return t
            t, total = t + .001, 0
    return t


@pytest.mark.parametrize("n, scale", [(3000, .3), (950, .3), (2000, .02), (40, .3)])
def test_threshold_search_against_loops(n, scale):
    p = draw(n, 20)*scale
    t = search_threshold(p, 5)
    assert t == pytest.approx(plain_search(p, 4, 6))
    if scale < .05: assert t == pytest.approx(.05 + .001*(n//100)), "below the window it goes on rising"
    if n == 40: assert t == .05


@pytest.mark.parametrize("threshold", [None, .5])
@pytest.mark.parametrize("at_least_one", [True, False])
def test_who_proposes_against_loops(threshold, at_least_one):
    p = draw(30, 6).pow(3)
    got = propose(p, 1.5, threshold, at_least_one)
    for n in range(30):
        for c in range(6):
            top = at_least_one and p[n, c] == p[n].max()
            if threshold is not None: assert got[n, c] == (top or p[n, c] >= threshold)
            elif top: assert got[n, c]
    if threshold is None: assert got.sum() == 45
    assert got.any(1).all() == at_least_one


def plain_bilinear(x, h, w):
    "x [3, H, W] to [3, h, w], sampled between the centres of its pixels."
    out = torch.zeros(3, h, w)
    for i in range(h):
        for j in range(w):
            y, z = (max(0., (k + .5)*a/b - .5) for k, a, b in ((i, x.shape[1], h), (j, x.shape[2], w)))
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, x.shape[1] - 1), min(z0 + 1, x.shape[2] - 1)
            upper, lower = ((1 - z + z0)*x[:, k, z0] + (z - z0)*x[:, k, z1] for k in (y0, y1))
            out[:, i, j] = (1 - y + y0)*upper + (y - y0)*lower
    return out


def test_views_enlarged_from_the_squashed_photograph(photos):
    from ccd.data import read_views
    p = list_photos(photos).take(range(3))
    views = Views(torch.tensor([0, 0, 2]), torch.tensor([[0, 0, 1, 1], [.25, .5, .75, 1], [.5, .125, .625, .5]]))
    got = {r: x for i, b in crops_of_squashed(p, views, 32, 2, stride=8) for r, x in zip(i.tolist(), b)}
    for r, shape in enumerate([(32, 32), (32, 32), (32, 8)]):  # the second is 16×16 px, the third 4×12
        whole = torch.from_numpy(read_views(p.open(int(views.image[r])), torch.tensor([[0., 0., 1., 1.]]), 32)[0]).permute(2, 0, 1).float()
        x0, y0, x1, y1 = (views.box[r]*32).int().tolist()
        assert torch.allclose(got[r], plain_bilinear(whole[:, y0:y1, x0:x1], *shape), atol=1e-3)


def test_positions_bilinear_against_loops():
    pos = draw(1 + 16, 3)
    grid = pos[1:].T.reshape(3, 4, 4)
    for h, w in ((6, 6), (6, 3)):
        got = resize_positions(pos, (h, w), "bilinear")
        assert torch.equal(got[0], pos[0]) and torch.allclose(got[1:].T.reshape(3, h, w), plain_bilinear(grid, h, w), atol=1e-6)
    assert torch.equal(resize_positions(pos, (4, 4), "bilinear"), pos)
    assert not torch.allclose(resize_positions(pos, (6, 6)), resize_positions(pos, (6, 6), "bilinear"))


def test_imagenets_mean_and_std_into_clip(clip_folder):
    own, other = (OpenClipTeacher(f"local-dir:{clip_folder}", precision="fp32", norm=n) for n in ("own", "imagenet"))
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for t, mean, std in ((own, (.5, .4, .3), (.2, .2, .3)), (other, (.485, .456, .406), (.229, .224, .225))):
        y = torch.stack([torch.stack([(photo[c]/255 - mean[c])/std[c] for c in range(3)]) for photo in x])
        with torch.no_grad(): want = t.model.encode_image(y, normalize=True)
        assert (t.embed_pixels(x) - want).abs().max() < 1e-5
    assert own.fingerprint != other.fingerprint, "embeddings of one must not be found for the other"
    assert own.fingerprint != OpenClipTeacher(f"local-dir:{clip_folder}", positions="bilinear").fingerprint


# --- student


def plain_boost(maps, alpha):
    out = maps.clone()
    for b in range(maps.shape[0]):
        for c in range(maps.shape[1]):
            for y in range(maps.shape[2]):
                for x in range(maps.shape[3]):
                    if maps[b, c, y, x] > 0: out[b, c, y, x] = alpha*maps[b, c, y, x]
    return out


def test_boostlu_in_training_at_test_and_after_loading(photos, tmp_path):
    torch.manual_seed(0)
    student, p = small_student(boost=3), list_photos(photos).take(range(6))
    torch.nn.init.normal_(student.head.weight, std=.3)
    raw, logits = [], []
    student.head.register_forward_hook(lambda head, x, maps: raw.append(maps.detach().clone()))
    Trainer(student, p, TrainSettings(epochs=1), loss=lambda z, y, i: logits.append(z.detach()) or z.sum()).epoch(torch.zeros(6, 5))
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        logits.append(student.eval()(x))
        cams = student.cams(x)
    assert len(raw) == 3 and all((r > 0).any() and (r < 0).any() for r in raw)
    for r, z in zip(raw, logits): assert torch.allclose(z, plain_boost(r, 3).mean((2, 3)), atol=1e-5)
    assert torch.allclose(cams, plain_boost(raw[1], 3), atol=1e-5), "the maps that choose the views are boosted too"
    save_model(student, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(x), logits[1])
        old = read_json(tmp_path/"config.json")
        assert old.pop("boost") == 3
        write_json(tmp_path/"config.json", old)
        assert torch.allclose(load_model(tmp_path)(x), raw[1].mean((2, 3)), atol=1e-5), "a bundle of before has none"


# --- training


def plain_ap(positive, score):
    order = sorted(range(len(score)), key=lambda i: -score[i])
    found, precision = 0, []
    for rank, i in enumerate(order, 1):
        if positive[i]:
            found += 1
            precision.append(found/rank)
    return 100*sum(precision)/len(precision) if precision else None


@pytest.mark.parametrize("least", [.5, 1.])
def test_pseudo_positives_against_loops(least):
    label, p = (draw(30, 5)*1.6).clamp(0, 1), draw(30, 5, seed=1)
    label[:, 4] *= .3  # a class without any pseudo-positive
    label[:, 3] *= .9  # one without any of exactly 1
    aps = [plain_ap([v >= least for v in label[:, c].tolist()], p[:, c].tolist()) for c in range(5)]
    assert aps[4] is None and (aps[3] is None) == (least == 1)
    want = [0. if a is None else a for a in aps] if least == 1 else [a for a in aps if a is not None]
    assert pseudo_mean_ap(label, p, least) == pytest.approx(sum(want)/len(want))


def plain_rise(curve, warmup):
    before = 100.
    for e in range(1, len(curve)):
        gain = curve[e] - curve[e - 1]
        if e >= warmup and gain > before: return e
        before = gain


@pytest.fixture(scope="module")
def toy_teacher(): return load_teacher(settings("toy").teacher)


RECORDED = [31., 46.2, 55., 60.1, 62.4, 65.3, 66., 66.8, 67., 67.1]


@pytest.mark.parametrize("curve, want", [
    (RECORDED, 5), (RECORDED[:5], None), ([10, 20, 25, 27, 28], None), ([10, 20, 5, 25], 3), ([10, 20, 60], 2), ([], None), ([5.], None)])
def test_first_rise_of_the_gradient(curve, want):
    assert first_gradient_rise(curve, 2) == plain_rise(curve, 2) == want
    for seed in range(20):
        random = draw(8, seed=seed).mul(100).tolist()
        assert first_gradient_rise(random, seed % 4) == plain_rise(random, seed % 4)
    if want == 5: assert first_gradient_minimum(curve) == 4, "one epoch before"


@pytest.mark.parametrize("rule, curve, epochs, kept, stopped", [
    ("rise", [30, 46, 55, 60, 66, 70], 6, 5, True), ("rise", [30, 46, 55, 60, 62, 63], 6, 6, False),
    ("minimum", [30, 46, 55, 60, 62, 66], 6, 5, True), ("minimum", [30, 46, 55, 60, 64, 67], 6, 6, False)])
def test_the_epoch_that_is_kept(photos, toy_teacher, small, monkeypatch, caplog, rule, curve, epochs, kept, stopped):
    kw = dict(student__backbone="torchvision/resnet18", student__weights="random", student__freeze=0, student__size=32,
              train__warmup=2, train__schedule="constant", train__epochs=epochs, train__stop_rule=rule)
    p = list_photos(photos).take(range(4))
    caplog.set_level("INFO", "ccd")
    monkeypatch.setattr(ccd.core.log, "propagate", True)  # a command that ran before has it off
    given = iter(curve)
    monkeypatch.setattr(ccd.distill, "pseudo_mean_ap", lambda *a: next(given))
    d = distill(p, CLASSES, small(train__early_stop=True, **kw), toy_teacher)
    assert (d.kept_epoch, d.stopped) == (kept, stopped) and len(d.epochs) == 6
    assert ("never fired" in caplog.text) == (not stopped)
    given = iter(curve)
    want = distill(p, CLASSES, small(**kw | dict(train__epochs=kept)), toy_teacher).student
    assert all(torch.equal(a, b) for (k, a), b in zip(d.student.state_dict().items(), want.state_dict().values()) if k != "threshold")


@pytest.mark.parametrize("flips", ["shared", "independent"])
def test_flips_of_weak_and_strong(photos, monkeypatch, flips):
    seen, hues = [], []
    monkeypatch.setattr(ccd.training, "strong", lambda x, hue: hues.append(hue) or x)
    p, student = list_photos(photos).take(range(16)), small_student()
    student.register_forward_hook(lambda m, x, z: seen.append(x[0]))
    torch.manual_seed(1)
    Trainer(student, p, TrainSettings(epochs=1, flips=flips, hue=.5)).epoch(torch.zeros(16, 5), beta=1.)
    same, turned = ([torch.equal(a, b if k == 0 else b.flip(-1)) for a, b in zip(*seen)] for k in (0, 1))
    assert len(seen) == 2 and all(a or b for a, b in zip(same, turned)) and all(same) == (flips == "shared") and hues == [.5]


@pytest.mark.parametrize("limit", [.2, .5])
def test_hue_turns_as_far_as_asked(limit):
    torch.manual_seed(0)
    red = torch.full((200, 3, 2, 2), 40, dtype=torch.uint8)
    red[:, 0] = 200
    turn = [colorsys.rgb_to_hsv(*(v/255 for v in x[:, 0, 0].tolist()))[0] for x in strong(red, limit)]
    most = max(min(t, 1 - t) for t in turn)
    assert .8*limit < most <= limit + .02


# --- both presets, from photographs to a model

FULL = bool(os.environ.get("CCD_FULL"))


@pytest.mark.timeout(7200 if FULL else 600)
@pytest.mark.parametrize("preset", ["paper", "official", *["best"]*FULL])
def test_presets_run_at_full_size(ccd, toy_root, tmp_path, preset):
    """`ccd fit --preset …` as on a GPU: teacher and maps at 640 px, the preset's own ResNet at 448 px. The teacher is a small CLIP with
    random weights whose attention pool has RN50x64's 14×14 positions, and the student starts from random weights. So that two cores need
    minutes and not hours, it sees 2 photographs for 3 epochs; all 20, and all epochs, and `best` too (the same networks as `paper`), with
    CCD_FULL=1: about half an hour, and 20 GB of memory."""
    save_clip(tmp_path, "resnet", 448)
    code, out, err = ccd("fit", "--benchmark", "toy", "--root", toy_root, "--preset", preset, "--teacher", f"local-dir:{tmp_path}",
                         "--weights", "random", "--out", tmp_path/"run", "--cache", "none",
                         *([] if FULL else ["--limit", 2, "--epochs", 3]))
    assert code == 0, err
    run, m = read_json(tmp_path/"run"/"config.json")["settings"], read_json(tmp_path/"run"/"metrics.json")
    want = settings(preset, teacher__name=run["teacher"]["name"], student__weights="random", train__epochs=10 if FULL else 3)
    assert run == asdict(want) and (run["teacher"]["size"], run["views"]["size"], run["student"]["size"]) == (640, 640, 448)
    assert m["kept_epoch"] >= 3 and math.isfinite(m["views_per_image"]) and m["views_per_image"] == (14 if preset == "official" else 10)
    model = load_model(tmp_path/"run")
    assert (model.name, model.size, model.boostlu) == (run["student"]["backbone"], 448, run["student"]["boost"])
    log = [json.loads(line) for line in open(tmp_path/"run"/"log.jsonl")]
    assert all(np.isfinite(r["loss"]) for r in log) and [r["stage"] for r in log[:3]] == ["warm-up", "warm-up", "training"]
    assert len(log) == m["kept_epoch"] or preset != "paper" or m["stopped"]
