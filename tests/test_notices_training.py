"What the student is trained on, how fast, and what is kept and tagged: numbers worked out by hand, in which nothing is symmetric."
import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ccd import baselines, cdul, distill, losses, methods, predict, training
from ccd import student as student_module
from ccd.benchmarks import Benchmark
from ccd.cdul import CDULSettings
from ccd.classes import TOY14
from ccd.core import CCDError
from ccd.data import WHOLE, list_photos, read_views
from ccd.losses import LargeLoss
from ccd.settings import StudentSettings, TrainSettings, settings
from ccd.student import boostlu, create_student, save_model
from ccd.training import Trainer, frozen_features, pseudo_mean_ap

CLASSES = ["dog", "cat", "owl"]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    "Five photographs of which no two are alike."
    folder = tmp_path_factory.mktemp("few")
    for i in range(5):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 60, (24, 32, 3)) + np.array([30*i, 0, 120 - 30*i]) + 60*(np.arange(32)[None, :, None] > 20 + i)
        Image.fromarray(pixels.astype(np.uint8)).save(folder/f"{i}.png")
    return list_photos(folder)


MEAN, STD = (.5, .4, .3), (.2, .25, .3)


def tiny(name):
    "A backbone of four stages that costs nothing, in place of `make_backbone`."
    wide = (3, 4, 6, 8, 10)
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, 2 if k < 2 else 1, 1), nn.BatchNorm2d(b), nn.LeakyReLU(.1))
              for k, (a, b) in enumerate(zip(wide, wide[1:]))]
    for stage in stages: nn.init.kaiming_normal_(stage[0].weight)
    return nn.Sequential(*stages), MEAN, STD


@pytest.fixture(autouse=True)
def small_backbone(request, monkeypatch):
    if "toy_root" not in request.fixturenames: monkeypatch.setattr(student_module, "make_backbone", tiny)


def new_student(freeze=2):
    torch.manual_seed(0)
    s = create_student(StudentSettings("tiny", "random", 32, freeze), CLASSES)
    with torch.no_grad(): s.head.weight.mul_(60)
    return s


def tiny_settings(**kw):
    return settings("toy", student__backbone="tiny", student__weights="random", student__size=32, student__freeze=0, **kw)


def pixels(photos):
    views = [read_views(photos.open(i), WHOLE, 32)[0] for i in range(len(photos))]
    return torch.tensor(np.stack(views)).permute(0, 3, 1, 2)


def plain(student, x):
    "Probabilities, one photograph after the other, by a copy of the student."
    student = copy.deepcopy(student).eval()
    with torch.no_grad(): return torch.cat([student(row[None]).sigmoid() for row in x])


@pytest.fixture
def spied(monkeypatch):
    "What `Trainer.epoch` is given, epoch by epoch; it trains on nothing and answers with `spied.running`."
    said = SimpleNamespace(given=[], running=lambda done, target: torch.zeros_like(target))

    def epoch(self, target, beta=0., desc="train"):
        said.given.append(SimpleNamespace(target=target.clone(), beta=beta, desc=desc, loss=self.loss))
        self.done += 1
        with torch.no_grad(): self.student.head.bias.fill_(self.done)
        return float(self.done), said.running(self.done, target)
    monkeypatch.setattr(Trainer, "epoch", epoch)
    return said


# --- what each epoch trains on

def test_warm_up_learns_the_initial_labels_and_training_the_final_ones(photos, small, spied):
    s = small(train__epochs=5, train__warmup=2, train__consistency=.7, train__early_stop=False)
    d = distill.distill(list_photos(photos), TOY14, s, cache="none")
    assert [g.beta for g in spied.given] == [0, 0, .7, .7, .7] and [g.desc for g in spied.given] == ["warm-up"]*2 + ["training"]*3
    for g in spied.given[:2]: assert torch.equal(g.target, d.initial)
    for g in spied.given[2:]: assert torch.equal(g.target, d.final)
    assert torch.allclose(d.final, .4*d.initial + .6*d.local) and not torch.allclose(d.initial, d.local, atol=.1)
    assert [r["loss"] for r in d.epochs] == [1, 2, 3, 4, 5] and (d.kept_epoch, d.stopped) == (5, False)


@pytest.mark.parametrize("rule, epochs, kept", [("minimum", 6, 5), ("rise", 8, 6)])
def test_the_epoch_that_the_stop_rule_keeps(photos, small, spied, monkeypatch, rule, epochs, kept):
    curve = iter([40, 50, 60, 66, 67, 69, 70, 70])  # gains 10, 10, 6, 1, 2
    monkeypatch.setattr(distill, "pseudo_mean_ap", lambda *a: next(curve))
    s = small(train__epochs=8, train__warmup=1, train__early_stop=True, train__stop_rule=rule)
    d = distill.distill(list_photos(photos), TOY14, s, cache="none")
    assert len(spied.given) == epochs and (d.kept_epoch, d.stopped) == (kept, True)
    assert d.student.head.bias.tolist() == [kept]*14, "the weights are those of the kept epoch"


def test_pseudo_positives_are_those_of_the_setting():
    label, p = torch.tensor([[.6, .2], [.3, .9], [.4, .1]]), torch.tensor([[.5, .1], [.9, .2], [.1, .3]])
    assert pseudo_mean_ap(label, p) == pytest.approx(50)             # both second of three
    assert pseudo_mean_ap(label, p, .4) == pytest.approx((100*(1/2 + 2/3)/2 + 50)/2)
    assert pseudo_mean_ap(label, p, .9) == pytest.approx(50)         # of the second class alone


def test_cdul_moves_its_labels_after_the_warm_up(few, spied):
    p = torch.tensor([[.9, .2, .6]]*5)
    spied.running = lambda done, target: p
    labels, c = torch.tensor([[.3, .8, .5]]*5), CDULSettings(sigma=.4, c1=.2)
    s = tiny_settings(train__epochs=4, train__warmup=2)
    found = cdul.cdul(few, CLASSES, labels, s, c)
    logit = lambda v: math.log(v/(1 - v))
    bell = lambda v: .2/(.4*math.sqrt(2*math.pi))*math.exp(-((v - .5)/.4)**2/2)
    z, want = [logit(v) for v in (.3, .8, .5)], [[.3, .8, .5]]*2
    for _ in range(2):
        y = [1/(1 + math.exp(-v)) for v in z]
        z = [v - (bell(q) - bell(0))*(v - logit(r)) for v, q, r in zip(z, y, (.9, .2, .6))]
        want.append([1/(1 + math.exp(-v)) for v in z])
    for g, row in zip(spied.given, want): assert torch.allclose(g.target, torch.tensor([row]*5), atol=1e-5)
    assert torch.allclose(found.final, torch.tensor([want[-1]]*5), atol=1e-5) and torch.equal(found.initial, labels)
    assert [r["moved"] for r in found.epochs] == [0, 0, 15, 10]
    steps = [np.mean([abs(a - b) for a, b in zip(*pair)]) for pair in zip([want[0], *want], want)]
    assert [r["mean_move"] for r in found.epochs] == pytest.approx(steps, abs=1e-6)


def test_cduls_labels_by_hand():
    p = torch.tensor([[.1, .7], [.3, .2], [.2, .4], [.6, .1]])  # two snippets of two photographs
    assert torch.equal(cdul.aggregate(p, 2, .5), torch.tensor([[.1, .7], [.6, .1]]))
    assert torch.equal(cdul.aggregate(p, 2, .6), torch.tensor([[.1, .7], [.6, .1]])), "at ζ it is there"
    whole, local = torch.tensor([[.2, .8]]), torch.tensor([[.6, .1]])
    assert torch.allclose(cdul.combine(whole, local, 0.), torch.tensor([[.4, .45]]))
    assert torch.allclose(cdul.combine(whole, local, 1.), torch.tensor([[.6, .8]]))
    moves = cdul.label_moves(torch.tensor([[.5, .5, .5]]), torch.tensor([[.6, .6, .505]]), np.array([[True, False, True]]))
    assert moves == dict(moved=2, towards=.5)


@pytest.mark.parametrize("name, hard", [("bce", False), ("asl", False), ("an", True), ("ll_r", True)])
def test_a_baseline_trains_on_its_kind_of_labels(few, spied, name, hard):
    y = torch.tensor([[.9, .2, .4], [.6, .1, .7], [.4, .5, .3], [.3, .9, .2], [.1, .1, .8]])
    s = tiny_settings(train__epochs=2, train__warmup=1)
    baselines.train_baseline(few, CLASSES, baselines.BASELINES[name], s, y=y)
    z = torch.tensor([[1., -1, 0], [1, -1, 1], [0, 1, -1], [-1, 1, -1], [-1, -1, 1]])  # from ½; up to ⅓
    assert len(spied.given) == 2 and all(torch.equal(g.target, z if hard else y) for g in spied.given)
    baselines.train_baseline(few, CLASSES, baselines.BASELINES[name], s, z=z)
    assert torch.equal(spied.given[2].target, z if hard else (z > 0).float())


def test_the_number_of_positives_of_a_baseline(few, spied):
    z = torch.tensor([[1., -1, 0], [1, -1, -1], [0, 1, -1], [-1, 1, 1], [-1, -1, 1]])
    made, s = [], tiny_settings()
    b = baselines.Baseline("counts", lambda z, y, k, s: made.append(k))
    for k in (None, 2.5): baselines.train_baseline(few, CLASSES, b, s, z=z, k=k)
    assert made == [pytest.approx(8/5), 2.5], "those not ruled out: 2, 1, 2, 2, 1"


def test_every_baseline_is_its_loss():
    g = torch.Generator().manual_seed(0)
    logits, y, z = torch.randn(4, 3, generator=g), torch.rand(4, 3, generator=g), torch.randint(-1, 2, (4, 3), generator=g).float()
    hard, s, index = (z > 0).float(), tiny_settings(train__lr=.02), torch.arange(4)
    def value(name, target): return float(baselines.BASELINES[name].make(z, y, 1.3, s)(logits, target, index))
    soft = dict(bce=losses.soft_bce(logits, y), bce_ls=losses.label_smoothing(logits, y), asl=losses.asl(logits, y))
    known = dict(
        an=losses.assume_negative(logits, z), an_ls=losses.label_smoothing(logits, hard), wan=losses.assume_negative(logits, z, weak=True),
        epr=losses.expected_positive(logits, z, 1.3), partial_bce=losses.partial_bce(logits, z), em=losses.entropy_maximization(logits, z),
        role=losses.Role(z, 1.3, .2, y)(logits, z, index))
    for found, target in ((soft, y), (known, z)):
        for name, want in found.items(): assert value(name, target) == pytest.approx(float(want)), name
    assert len({round(float(v), 5) for v in (soft | known).values()}) == 10
    assert {n for n, b in baselines.BASELINES.items() if b.soft} == set(soft)
    modes = {n: baselines.BASELINES[n].make(z, y, 1., s).mode for n in set(baselines.BASELINES) - set(soft | known)}
    assert modes == dict(ll_r="reject", ll_ct="correct", ll_cp="permanent", boostlu="reject")
    assert {n: b.boost for n, b in baselines.BASELINES.items() if b.boost} == dict(boostlu=5)
    assert baselines.BASELINES["role"].make(z, y, 1.3, s).optimizer.param_groups[0]["lr"] == pytest.approx(.2)


def test_drawn_labels():
    truth = np.array([[1, 0, 1, 0]]*300 + [[0, 0, 0, 0]]*100 + [[0, 1, 0, 0]]*200, dtype=bool)
    full, partial, single = (baselines.draw_labels(truth, level, 3) for level in baselines.LEVELS)
    assert torch.equal(full, torch.tensor(truth*2. - 1))
    assert .08 < (partial != 0).float().mean() < .12 and torch.equal(partial[partial != 0], full[partial != 0])
    assert (single >= 0).all() and single.sum(1).tolist() == [1]*300 + [0]*100 + [1]*200
    assert single[:300].sum(0)[[0, 2]].min() > 100 and single[:300].sum(0)[[1, 3]].sum() == 0
    assert not torch.equal(single, baselines.draw_labels(truth, "single", 4))


def fixed_comparison(b):
    "Scores of two photographs and their grids, of which no two are alike."
    snippets = torch.arange(54).view(18, 3)/100 + torch.tensor([0, .1, .3])
    whole = torch.tensor([[.7, .2, .1], [.1, .3, .6]])
    return SimpleNamespace(
        train=b, test=b.take([1]), whole=whole, snippets=snippets, test_snippets=snippets[9:], labels=whole, parts=snippets,
        source=(None, whole, lambda p: p), maps=lambda looks=1: 0,
        test_whole=torch.tensor([[.2, .3, .5]]), features=("train's", "test's"), outcome=methods.Outcome)


def test_what_the_rows_of_a_comparison_are_trained_on(few, monkeypatch):
    seen = []
    def train(photos, classes, b, s, y=None, z=None, k=None, features=None):
        seen.append(SimpleNamespace(b=b, y=y, z=z, k=k, features=features))
        return "student"
    monkeypatch.setattr(methods, "train_baseline", train)
    truth, s = np.array([[True, False, True], [False, True, False]]), settings("toy", labels__alpha=.3)
    c = fixed_comparison(Benchmark("two", "train", few.take([3, 1]), CLASSES, truth, [[], []]))
    high, low = c.snippets.view(2, 9, 3).amax(1), c.snippets.view(2, 9, 3).amin(1)
    assert (low < high).all()
    grid = .3*c.whole + .7*high
    want = dict(student_global=(c.whole, 2), asl=(c.whole, 2), student_grid=(grid, 20), supervised=(torch.tensor(truth*1.), 0))
    for name, (labels, passes) in want.items():
        o = methods.METHODS[name].run(c, s)
        assert torch.allclose(o.labels, labels.float()) and torch.allclose(seen[-1].y, labels.float()) and o.passes == passes, name
        assert o.prediction == "student" and seen[-1].features == "train's"
    zero = methods.METHODS["zero_shot"].run(c, s)
    assert torch.equal(zero.labels, c.whole) and torch.equal(zero.prediction, c.test_whole) and zero.passes == 1
    snippets = methods.METHODS["zero_shot_snippets"].run(c, s)
    assert torch.allclose(snippets.labels, (c.whole + high)/2) and torch.allclose(snippets.prediction, (c.test_whole + high[1:])/2)
    assert snippets.passes == 10
    weak = methods.METHODS["an@single"].run(c, s)
    assert seen[-1].k == 1.5 and torch.equal(seen[-1].z, weak.labels) and weak.labels.sum(1).tolist() == [1, 1] and weak.passes == 0


# --- how it trains

def test_learning_rates_step_by_step(few):
    student = new_student()
    for schedule, factors in (("cosine", [1, .9330, .75, .5, .25, .0670]), ("constant", [1]*6)):
        t = Trainer(student, few, TrainSettings(epochs=2, batch=2, lr=1e-4, head_lr=5e-4, schedule=schedule))
        rates = []
        t.optimizer.register_step_pre_hook(lambda optimizer, *a: rates.append([g["lr"] for g in optimizer.param_groups]))
        for _ in range(2): t.epoch(torch.full((5, 3), .2))
        assert np.allclose(rates, np.outer(factors, [1e-4, 5e-4]), rtol=1e-3), schedule
    stages, head = ({id(p) for p in g["params"]} for g in t.optimizer.param_groups)
    assert head == {id(p) for p in student.head.parameters()}
    assert stages == {id(p) for p in student.stages[2:].parameters()}, "frozen stages have no rate"


def test_an_epoch_gives_means_over_photographs_and_rows_in_their_order(few):
    student, x = new_student(), pixels(few)
    s = TrainSettings(epochs=1, batch=2, lr=1e-12, head_lr=1e-12, freeze_norm=True)
    t = Trainer(student, few, s, loss=lambda logits, y, i: (i.float()**2).mean() + 0*logits.sum())
    loss, running = t.epoch(torch.full((5, 3), .2))
    assert loss == pytest.approx((0 + 1 + 4 + 9 + 16)/5)
    either = torch.stack([plain(student, x), plain(student, x.flip(-1))])
    assert (running - either).abs().amax(-1).amin(0).max() < 1e-4
    assert (either[0][:, None] - either[0]).abs().amax(-1)[~torch.eye(5, dtype=bool)].min() > 1e-2, "no two photographs are alike"


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("flips", ["shared", "independent"])
def test_both_sides_of_the_consistency_see_the_photographs_they_should(few, monkeypatch, flips, cached):
    seen, turned = [], []
    def both(strong, weak):
        seen.append((strong.detach().clone(), weak.detach().clone()))
        return 3 + 0*strong.sum()
    monkeypatch.setattr(training, "consistency", both)
    monkeypatch.setattr(training, "strong", lambda x, hue: turned.append(hue) or x)
    student = new_student()
    s = TrainSettings(epochs=4, batch=2, lr=1e-12, head_lr=1e-12, freeze_norm=True, flips=flips, hue=.1)
    t = Trainer(student, few, s, loss=lambda logits, y, i: 1 + 0*logits.sum(), features=frozen_features(student, few) if cached else None)
    torch.manual_seed(0)
    losses = [t.epoch(torch.full((5, 3), .2), beta)[0] for beta in (0., .5, .5, .5)]
    assert losses == pytest.approx([1, 2.5, 2.5, 2.5]) and turned == [.1]*9
    same = torch.cat([((a - b).abs().amax(1) < 1e-4) for a, b in seen])
    assert same.all() if flips == "shared" else 0 < same.sum() < len(same)


def test_norms_are_frozen_where_asked_for(few):
    for frozen in (False, True):
        student, before = new_student(), None
        before = {k: v.clone() for k, v in student.state_dict().items() if "running" in k}
        Trainer(student, few, TrainSettings(epochs=1, batch=2, freeze_norm=frozen)).epoch(torch.full((5, 3), .2))
        moved = {k.split(".")[1] for k, v in before.items() if not torch.equal(student.state_dict()[k], v)}
        assert moved == (set() if frozen else {"2", "3"}), "stages 0 and 1 are frozen"


# --- what it says

def test_predict_looks_at_one_photograph_at_a_time_whatever_the_mode(few):
    student = new_student()
    want = plain(student, pixels(few))
    for mode in (True, False):
        student.train(mode)
        assert torch.allclose(training.predict(student, few, batch=2), want, atol=1e-4) and not student.training
    student.train()
    features = frozen_features(student, few)
    student.train()
    assert torch.allclose(training.predict(student, few, batch=2, features=features), want, atol=1e-4)
    assert torch.allclose(training.predict(student, few, features=features.flip(1)), plain(student, pixels(few).flip(-1)), atol=1e-4)
    assert (want - plain(student, pixels(few).flip(-1))).abs().max() > 1e-3


def test_features_are_kept_where_memory_allows(few):
    student = new_student()
    one = 4*2*6*8*8  # bytes of a photograph and its mirror image
    assert frozen_features(student, few, memory=5*one - 1) is None and frozen_features(student, few, memory=5*one).shape == (5, 2, 6, 8, 8)
    assert frozen_features(student, few, mirrored=False, memory=5*one//2).shape == (5, 1, 6, 8, 8)


def test_logits_are_means_of_maps_that_need_not_be_square():
    student = new_student().eval()
    x = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scaled = (x - torch.tensor(MEAN).view(3, 1, 1)*255)/(torch.tensor(STD).view(3, 1, 1)*255)
        maps = student.stages(scaled)
        want = torch.einsum("bqhw,cq->bchw", maps, student.head.weight[:, :, 0, 0]) + student.head.bias[:, None, None]
        assert want.shape[2:] == (16, 24) and torch.allclose(student.cams(x), want, atol=1e-3)
        assert torch.allclose(student(x), want.mean((2, 3)), atol=1e-3)
    assert boostlu(torch.tensor([-2., 0, 3]), 4.).tolist() == [-2, 0, 12]


def test_thresholds_split_the_scores_of_the_training_photographs(few, monkeypatch):
    p = torch.tensor([[.9, .3, .2], [.1, .8, .2], [.5, .75, .2], [.8, .2, .2], [.05, .25, .2]])
    monkeypatch.setattr(distill, "predict", lambda student, photos, desc, features: p)
    d = distill.distill(few, CLASSES, tiny_settings(train__epochs=1, train__warmup=1, views__size=32), cache="none")
    assert d.student.threshold.tolist() == pytest.approx([.3, .525, .2])


@pytest.fixture
def tagged(few, monkeypatch):
    "A student that says fixed probabilities, with a threshold for each class."
    student = new_student()
    student.threshold.copy_(torch.tensor([.7, .2, .55]))
    p = torch.tensor([[.9, .1, .6], [.1, .8, .9], [.5, .3, .2], [.7, .1, .3], [.2, .1, .5]])
    monkeypatch.setattr(predict, "classify", lambda model, photos: p)
    return student


def test_tags_are_those_from_their_own_threshold_on_surest_first(few, tagged, tmp_path):
    rows, bad = predict.tag(tagged, few)
    assert [r["tags"] for r in rows] == [["dog", "owl"], ["owl", "cat"], ["cat"], ["dog"], []] and not bad
    assert [r["image"] for r in rows] == [f"{i}.png" for i in range(5)] and rows[1]["scores"]["cat"] == pytest.approx(.8)
    assert [r["tags"] for r in predict.tag(tagged, few, threshold=.5)[0]] == [["dog", "owl"], ["owl", "cat"], ["dog"], ["dog"], ["owl"]]
    predict.write_tags(rows, tmp_path/"tags.csv")
    assert (tmp_path/"tags.csv").read_text().splitlines()[:3] == [
        "image,tags,dog,cat,owl", "0.png,dog;owl,0.9000,0.1000,0.6000", "1.png,owl;cat,0.1000,0.8000,0.9000"]


def test_evaluation_by_hand(few, tagged, tmp_path):
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]], dtype=bool)
    e = predict.evaluate(tagged, Benchmark("five", "test", few, CLASSES, truth, [[]]*5))
    ap = [100*(1 + 2/2 + 3/5)/3, 100, 100*(1/4 + 2/5)/2]  # dog: 0, 3, 2, 4, 1; owl: 1, 0, 4, 3, 2
    assert [e["ap"][c] for c in CLASSES] == pytest.approx(ap) and e["mean_ap"] == pytest.approx(sum(ap)/3)
    assert e["f1"] == pytest.approx(200*3/(6 + 6)) and e["photos"] == 5  # of six tags, three are right
    with pytest.raises(CCDError, match="not those of five in the same order: evaluate it on the benchmark"):
        predict.evaluate(tagged, Benchmark("five", "test", few, CLASSES[::-1], truth, [[]]*5))
    with pytest.raises(CCDError, match="not those of five .'owl' is in one only.: evaluate it on the benchmark"):
        predict.evaluate(tagged, Benchmark("five", "test", few, [*CLASSES[:2], "cow"], truth, [[]]*5))
    save_model(tagged, tmp_path)
    assert predict.evaluate(tmp_path, Benchmark("five", "test", few, CLASSES, truth, [[]]*5)) == e
    assert predict.tag(tmp_path, few) == predict.tag(tagged, few)


# --- losses

def large_loss(p, z, mode, epoch, share):
    "By a plain loop: AN, in which the largest losses of unknown labels are left out, or counted as positives."
    n, c = p.shape
    loss = [[-math.log(p[i, j] if z[i, j] > 0 else 1 - p[i, j]) for j in range(c)] for i in range(n)]
    unknown = sorted(((loss[i][j], i, j) for i in range(n) for j in range(c) if z[i, j] == 0), reverse=True)
    for _, i, j in unknown[:math.ceil(n*c*share*epoch)]: loss[i][j] = 0 if mode == "reject" else -math.log(p[i, j])
    return sum(map(sum, loss))/(n*c)


@pytest.mark.parametrize("mode, share, counts", [("reject", .005, [0, 1, 2, 3, 4]), ("correct", .002, [0, 1, 1, 2, 2])])
def test_the_share_of_large_losses_grows_with_the_epochs(mode, share, counts):
    g = torch.Generator().manual_seed(0)
    p = torch.rand(4, 47, generator=g, dtype=torch.double)*.9 + .05
    z = torch.randint(-1, 2, (4, 47), generator=g).double()
    ll = LargeLoss(4, mode)
    for epoch, count in enumerate(counts):
        assert math.ceil(188*share*epoch) == count
        got = float(ll(p.logit(), z, torch.arange(4)))
        assert got == pytest.approx(large_loss(p, z, mode, epoch, share), rel=1e-5), epoch


def test_an_epoch_of_large_losses_ends_when_every_photograph_was_seen():
    p, z = torch.tensor([[.2, .9, .4], [.7, .3, .6]]), torch.zeros(2, 3)
    ll, plain_loss = LargeLoss(2, "reject"), -torch.log(1 - p)
    for i in (0, 1): assert float(ll(p[[i]].logit(), z[[i]], torch.tensor([i]))) == pytest.approx(float(plain_loss[i].mean()), rel=1e-5)
    rest = float(plain_loss[0, [0, 2]].sum()/3)
    assert float(ll(p[[0]].logit(), z[[0]], torch.tensor([0]))) == pytest.approx(rest, rel=1e-5)


def test_permanent_corrections_stay_where_they_were_made():
    p = torch.tensor([[.2, .9, .4], [.7, .3, .6]])
    z, at, ll = torch.tensor([[0., 0, -1], [0, 1, 0]]), torch.tensor([5, 2]), LargeLoss(2, "permanent")
    for _ in range(3): last = float(ll(p.logit(), z, at))
    assert {i: v.tolist() for i, v in ll.flipped.items()} == {5: [False, True, False], 2: [True, False, False]}
    want = -torch.log(torch.tensor([[.8, .9, .6], [.7, .3, .4]]))
    assert last == pytest.approx(float(want.mean()), rel=1e-4)
