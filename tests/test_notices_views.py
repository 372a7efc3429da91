"Where photographs are cut and what maps point at: places off the diagonal, maps that are not square, rows in another order."
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ccd import data, views
from ccd.benchmarks import Benchmark
from ccd.boxes import (
    box_quality,
    box_summary,
    class_boxes,
    coverage,
    dependence_summary,
    false_claims,
    misplaced,
    pointing,
    shown_classes,
    view_dependence,
)
from ccd.cam import around_peak, cam_boxes, normalise, relative_cams
from ccd.data import Photos, Views, first, list_photos, quarantine, read_views, strong, view_batches, view_shape, weak, whole
from ccd.discriminant import region_views
from ccd.settings import ViewSettings
from ccd.teacher import crops_of_squashed, embed_views, region_features, roi_side, rois_of

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)


@pytest.fixture(scope="module")
def quarters(tmp_path_factory):
    "Three photographs 80 × 40, 40 × 80 and 60 × 60, in files whose order is another; each has four colours in another turn."
    folder, colours = tmp_path_factory.mktemp("quarters"), [RED, GREEN, BLUE, GREY]
    for k, (name, w, h) in enumerate((("c.png", 80, 40), ("a.png", 40, 80), ("b.png", 60, 60))):
        img = Image.new("RGB", (w, h))
        turn = colours[k:] + colours[:k]
        for q, at in enumerate(((0, 0), (w//2, 0), (0, h//2), (w//2, h//2))): img.paste(turn[q], (*at, at[0] + w//2, at[1] + h//2))
        img.save(folder/name)
    return Photos(folder, ["c.png", "a.png", "b.png"])


QUARTERS = torch.tensor([[0, 0, .5, .5], [.5, 0, 1, .5], [0, .5, .5, 1], [.5, .5, 1, 1]])

INSIDE = QUARTERS + torch.tensor([.125, .125, -.125, -.125])


def colour(x): return tuple(x.reshape(-1, 3).astype(int).mean(0).round().astype(int).tolist())


# --- photographs and their order

def test_what_is_taken_keeps_its_truth_and_boxes():
    truth = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=bool)
    objects = [[(i, 0., 0., .1*i, .2, False)] for i in range(4)]
    b = Benchmark("four", "train", Photos(Path("."), ["a", "b", "c", "d"]), ["x", "y"], truth, objects).take(i for i in (2, 0, 3))
    assert (b.name, b.split, b.photos.names, b.classes, len(b)) == ("four", "train", ["c", "a", "d"], ["x", "y"], 3)
    assert b.truth.tolist() == [[True, True], [True, False], [False, False]] and b.objects == [objects[2], objects[0], objects[3]]
    assert first(b, 2).photos.names == ["c", "a"] and first(b, 9).photos.names == ["c", "a", "d"] and first(b, None) is b


def test_photographs_are_listed_by_name_and_the_broken_left_out(tmp_path):
    for name in ("b/2.PNG", "a.webp", "b/10.jpg", ".hidden.png"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path/name)
    (tmp_path/"notes.txt").write_text("x")
    (tmp_path/"b"/"1.jpg").write_text("x")
    photos = list_photos(tmp_path)
    assert photos.names == ["a.webp", "b/1.jpg", "b/10.jpg", "b/2.PNG"]
    sound, bad = quarantine(photos)
    assert sound.names == ["a.webp", "b/10.jpg", "b/2.PNG"] and list(bad) == [".hidden.png", "b/1.jpg"] and "not an image" in bad["b/1.jpg"]
    assert quarantine(photos, np.array([False, True, False, False]))[1] == {".hidden.png": "hidden"}, "known to be sound: not decoded"


def test_a_photograph_turned_by_its_camera_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    img = Image.new("RGB", (40, 20), RED)
    img.paste(BLUE, (20, 0, 40, 20))
    img.save(tmp_path/"a.png", exif=exif)
    up = list_photos(tmp_path).open(0)
    assert up.size == (20, 40) and up.getpixel((10, 5)) == RED and up.getpixel((10, 35)) == BLUE


def test_a_photograph_over_the_limit_is_broken(tmp_path, monkeypatch):
    for w in (10, 11): Image.new("RGB", (w, 5)).save(tmp_path/f"{w}.png")
    monkeypatch.setattr(data, "MAX_PIXELS", 50)
    assert list(quarantine(list_photos(tmp_path))[1]) == ["11.png"]


def test_sides_of_a_view():
    for w, h, shape in ((80, 40, (64, 32)), (40, 80, (32, 64)), (50, 50, (64, 64)), (80, 31, (64, 32)), (99, 1, (64, 16))):
        assert view_shape(w, h, 64, 16) == shape and view_shape(w, h, 64) == (64, 64)


def test_views_are_cut_where_they_should(quarters):
    for i, turn in enumerate(([RED, GREEN, BLUE, GREY], [GREEN, BLUE, GREY, RED], [BLUE, GREY, RED, GREEN])):
        assert [colour(c) for c in read_views(quarters.open(i), INSIDE, 16)] == turn
    wide, = read_views(quarters.open(0), torch.tensor([[0, 0, 1., 1]]), 32, 8)
    assert wide.shape == (16, 32, 3)


def test_batches_name_the_views_they_hold(quarters):
    box = torch.tensor([[.1, .1, .4, .4], [.6, .1, .9, .4], [0, 0, 1, .25], [.1, .6, .4, .9]])
    v = Views(torch.tensor([0, 1, 1, 2]), box)
    squashed = list(view_batches(quarters, v, 16, 3))
    assert [at.tolist() for at, _ in squashed] == [[0, 1, 2], [3]]
    assert [tuple(x.shape) for _, x in squashed] == [(3, 3, 16, 16), (1, 3, 16, 16)]
    assert colour(squashed[0][1][1].permute(1, 2, 0).numpy()) == BLUE and colour(squashed[1][1][0].permute(1, 2, 0).numpy()) == RED
    kept = {tuple(at.tolist()): tuple(x.shape[2:]) for at, x in view_batches(quarters, v, 16, 2, stride=4)}
    assert kept == {(0, 2): (8, 16), (1,): (16, 8), (3,): (16, 16)}
    w = whole(3)
    assert w.image.tolist() == [0, 1, 2] and w.box.tolist() == [[0, 0, 1, 1]]*3


def test_square_pixels_come_with_their_number(quarters):
    for memory in (0, 1 << 20):
        p = data.SquarePixels(quarters, 8, memory)
        for _ in range(2):
            x, i = p[1]
            assert i == 1 and x.shape == (3, 8, 8) and x[:, 0, 0].tolist() == [0, 255, 0] and x[:, 0, 7].tolist() == [0, 0, 255]
        assert len(p) == 3 and (p.kept is None) == (memory == 0)


def test_augmentation_turns_what_it_is_told_to(monkeypatch):
    x = torch.arange(2*3*2*4).view(2, 3, 2, 4)
    assert torch.equal(weak(x, torch.tensor([False, True])), torch.stack([x[0], x[1].flip(-1)]))
    torch.manual_seed(0)
    turned = sum(int(not torch.equal(weak(x[:1]), x[:1])) for _ in range(200))
    assert 70 < turned < 130
    asked = []
    monkeypatch.setattr(v2, "ColorJitter", lambda *a: asked.append(a) or (lambda i: i + 1))
    assert torch.equal(strong(x, .3), x + 1) and asked == [(.5, .5, .5, .3)]


# --- which views

def test_who_proposes():
    p = torch.tensor([[.9, .8, .1], [.2, .3, .4], [.7, .05, .6], [.15, .01, .02]])
    def at(*a, **kw): return views.propose(p, *a, **kw).int().tolist()
    assert at(1.5) == [[1, 1, 0], [0, 0, 1], [1, 0, 1], [1, 0, 0]], "six: each one's best, and .8 and .6"
    assert at(1.5, at_least_one=False) == [[1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0]]
    assert at(1.) == [[1, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]] == at(.5)
    assert at(9.) == [[1]*3]*4
    assert at(2., .4) == [[1, 1, 0], [0, 0, 1], [1, 0, 1], [1, 0, 0]], "from the threshold on"
    assert at(2., .41, at_least_one=False) == [[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]]


def test_the_authors_search_by_a_plain_loop():
    p = torch.rand(950, 6, generator=torch.Generator().manual_seed(0))**3
    start, k = .05, 0
    while k + 100 <= 950:
        mean = sum((row >= start).sum().item() for row in p[k:k + 100])/100
        if 1 < mean < 3: break
        start, k = start + .04, k + 100
    assert .1 < start < .4 and views.search_threshold(p, 2., step=.04) == pytest.approx(start)
    assert views.search_threshold(p[:250], 0., step=.04) == pytest.approx(.13), "two looks, and too few are left for a third"


def test_views_of_a_grid_go_row_by_row():
    v = views.grid_views(2)
    a, b = 1/3, 2/3
    row = [[0, 0, a, a], [a, 0, b, a], [b, 0, 1, a], [0, a, a, b], [a, a, b, b], [b, a, 1, b], [0, b, a, 1], [a, b, b, 1], [b, b, 1, 1]]
    assert torch.allclose(v.box, torch.tensor(row*2)) and v.image.tolist() == [0]*9 + [1]*9
    s = views.sliding_views(.4, 3)
    assert torch.allclose(s.box[:4], torch.tensor([[0, 0, .4, .4], [.3, 0, .7, .4], [.6, 0, 1, .4], [0, .3, .4, .7]]))
    assert len(s) == 9 and s.image.tolist() == [0]*9


def test_regions_of_a_photograph():
    v = region_views(2)
    assert len(v) == 78 and v.image.tolist() == [0]*39 + [1]*39
    side = (v.box[:39, 2:] - v.box[:39, :2]).round(decimals=3)
    assert torch.equal(side[:, 0], side[:, 1]) and side[:, 0].unique(return_counts=True)[1].tolist() == [25, 9, 4, 1]
    assert torch.allclose(v.box[:3], torch.tensor([[0, 0, .25, .25], [.1875, 0, .4375, .25], [.375, 0, .625, .25]]))
    assert v.box[38].tolist() == [0, 0, 1, 1]


def test_random_views_have_the_areas_and_aspects_they_should():
    v = views.random_views(400, 5, 1)
    w, h = (v.box[:, 2:] - v.box[:, :2]).T
    assert v.image.tolist() == [i for i in range(400) for _ in range(5)] and (v.box >= 0).all() and (v.box <= 1 + 1e-6).all()
    free = (w < .999) & (h < .999)
    assert .08 <= (w*h).min() < .1 and (w*h).max() > .95 and abs((w*h).mean() - .53) < .02
    assert .75 <= (w/h)[free].min() < .77 and 1.30 < (w/h)[free].max() <= 4/3 + 1e-4 and abs((w/h)[free].log().mean()) < .02
    assert v.box[:, 0].max() > .6 and v.box[:, 1].max() > .6
    assert not torch.equal(v.box, views.random_views(400, 5, 2).box)


def test_views_on_and_around_objects():
    boxes = [[(.1, .2, .3, .6), (.5, .4, .9, .5)], []]
    on = views.object_views(boxes, 3)
    want = [[.1, .2, .3, .6], [.5, .4, .9, .5], [.1, .2, .3, .6], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert torch.allclose(on.box, torch.tensor(want)) and on.image.tolist() == [0, 0, 0, 1, 1, 1]
    out = (views.object_views([boxes[0]]*50, 2, .5).box - torch.tensor(boxes[0]*50))*torch.tensor([-1., -1, 1, 1])
    share = out.view(50, 2, 4)/torch.tensor([[.2, .4, .2, .4], [.4, .1, .4, .1]])
    assert (share >= -1e-5).all() and (share.amax((0)) <= .5 + 1e-5).all() and share[:, :, 1:].mean() > .2


class FixedStudent(torch.nn.Module):
    "Maps that say where a photograph is red, green and blue."
    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(1))

    def cams(self, x): return x.float().unfold(2, 16, 16).unfold(3, 16, 16).mean((-2, -1))/255 - .3*self.training


def test_maps_are_drawn_photograph_by_photograph(quarters):
    student = FixedStudent()
    student.train()
    maps, p = views.draw_cams(student, quarters, ViewSettings(size=32), batch=2)
    q, near = 90/255, dict(atol=.02)  # colours bleed a little where they are resized
    assert maps.dtype == torch.float16 and torch.allclose(maps[0, 0].float(), torch.tensor([[1, 0], [0, q]]), **near)
    assert torch.allclose(maps[1, 2].float(), torch.tensor([[0, 1], [q, 0]]), **near)
    assert torch.allclose(maps[2, 2].float(), torch.tensor([[1, q], [0, 0]]), **near)
    assert torch.allclose(p, torch.full((3, 3), (1 + q)/4).sigmoid(), **near) and not student.training
    relative, same = views.draw_cams(student, quarters, ViewSettings(size=32, relative=True))
    assert torch.allclose(relative[0, 0].float(), torch.tensor([[2/3, -1/3], [-1/3, 0]]), **near) and torch.equal(p, same)


def test_a_view_is_of_the_class_that_proposes_it():
    maps = torch.zeros(2, 3, 4, 8)
    maps[0, 1, 0, 6:] = 1   # top right
    maps[1, 2, 2:, 0] = 1   # bottom left
    maps[1, 0, 1, 3:5] = 1  # between
    p = torch.tensor([[.1, .8, .2], [.6, .3, .7]])
    s = ViewSettings(class_threshold=.5, cam_threshold=.5, offset=0, cam_size=32)
    v = views.cam_views(maps, p, s)
    assert (v.image.tolist(), v.proposer.tolist()) == ([0, 1, 1], [1, 0, 2]) and v.score.tolist() == pytest.approx([.8, .6, .7])
    want = torch.tensor([[.75, 0, 1, .25], [3/8, .25, 5/8, .5], [0, .5, .125, 1]])
    assert torch.allclose(v.box, want, atol=1/32 + 1e-4)
    wide = views.cam_views(maps, p, ViewSettings(class_threshold=.5, cam_threshold=.5, offset=.125, cam_size=32)).box
    assert torch.allclose(wide, (v.box + torch.tensor([-.125, -.125, .125, .125])).clamp(0, 1))


def plain_box(active, rule):
    "By a loop over the active positions of a map [h, w]."
    h, w = active.shape
    at = [(y, x) for y in range(h) for x in range(w) if active[y, x]]
    if rule == "raster": at = [at[0], at[-1]]
    x, y = [p[1] for p in at], [p[0] for p in at]
    rows = [p[0] for p in ([at[0], at[-1]] if rule == "raster" else at)]
    return [min(x)/w, min(rows)/h, (max(x) + 1)/w, (max(y) + 1)/h]


@pytest.mark.parametrize("rule", ["extent", "raster"])
def test_boxes_of_maps_by_a_plain_loop(rule):
    maps = torch.randn(20, 5, 9, generator=torch.Generator().manual_seed(0))
    up = normalise(torch.nn.functional.interpolate(maps[:, None], (24, 24), mode="bilinear", align_corners=False)[:, 0])
    got = cam_boxes(maps, .9, 0, enlarge=24, rule=rule)
    for k in range(20): assert got[k].tolist() == pytest.approx(plain_box(up[k] >= .9, rule)), k
    edge = torch.zeros(1, 4, 4)
    edge[0, 0, 3], edge[0, 1, 2] = 1., .5
    assert cam_boxes(edge, .5, 0, enlarge=4)[0].tolist() == [.5, 0, 1, .5], "a position at the threshold is active"


def test_maps_by_hand():
    m = torch.tensor([[[1., 3, 5], [2, 2, 1]], [[4, 4, 4], [4, 4, 4]]])
    assert torch.allclose(normalise(m), torch.tensor([[[0, .5, 1], [.25, .25, 0]], [[1, 1, 1], [1, 1, 1]]]))
    assert torch.allclose(relative_cams(m[None]), torch.tensor([[[[-1.5, -.5, .5], [-1, -1, -1.5]], [[1.5, .5, -.5], [1, 1, 1.5]]]]))
    active = torch.tensor([[[1, 0, 0, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]]).bool()
    assert around_peak(active, torch.tensor([4]))[0].int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0]*5]
    assert around_peak(active, torch.tensor([6]))[0].int().tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0]*5], "corners touch"


# --- how the teacher looks

def test_regions_are_where_boxes_are_on_maps_that_are_not_square():
    x = torch.arange(2*1*4*8).float().view(2, 1, 4, 8)
    boxes, index = torch.tensor([[.5, .25, 1, .75], [0, 0, .25, 1]]), torch.tensor([1, 0])
    assert rois_of(x, boxes, index).tolist() == [[1, 4, 1, 8, 3], [0, 0, 0, 2, 4]]
    pool = torch.nn.AvgPool2d(2)
    pixels = torch.nn.functional.interpolate(x, scale_factor=2.)  # 8 × 16, so that the first stage gives x again
    got = region_features([pool, torch.nn.AdaptiveAvgPool2d(1)], 1, pixels, boxes, index, 8)
    want = [x[1, 0, 1:3, 4:8].mean(), x[0, 0, :, 0:2].mean()]
    assert got.flatten().tolist() == pytest.approx([float(v) for v in want], abs=.1)
    assert rois_of(x, boxes, index).dtype == torch.float32
    shape = region_features([pool, torch.nn.Identity()], 1, pixels, boxes, index, 7).shape
    assert shape == (2, 1, 4, 4), "half of seven, rounded up"


def test_the_side_of_a_photograph_with_a_map():
    teacher = SimpleNamespace(stride=32, size=224)
    assert [roi_side(teacher, s) for s in (None, 300, 500, 10)] == [320, 288, 512, 32]


class ColourTeacher:
    "The unit vector of a view's mean colour; says what it was shown."
    name, size, stride, rois = "colours", 16, 4, True

    def __init__(self): self.shown = []

    def embed_pixels(self, x):
        self.shown.append(tuple(x.shape))
        return torch.nn.functional.normalize(x.float().mean((2, 3)), dim=-1)

    def embed_rois(self, x, boxes, index):
        self.shown.append(tuple(x.shape))
        cuts = []
        for (x0, y0, x1, y1), i in zip(boxes.tolist(), index.tolist()):
            h, w = x.shape[2:]
            cuts.append(x[i, :, round(y0*h):round(y1*h), round(x0*w):round(x1*w)].float().mean((1, 2)))
        return torch.nn.functional.normalize(torch.stack(cuts), dim=-1)

    embed_regions = embed_rois


@pytest.mark.parametrize("mode", ["squash", "crop", "enlarge", "roi", "region"])
def test_every_way_of_looking_gives_its_rows_in_the_order_of_the_views(quarters, mode):
    box = torch.cat([INSIDE[[2, 0]], torch.tensor([[.6, .1, .9, .2]]), INSIDE[[3, 1, 0]]])
    v = Views(torch.tensor([0, 0, 1, 1, 2, 2]), box)
    want = [BLUE, RED, BLUE, RED, GREY, BLUE]
    kept, teacher = {}, ColourTeacher()
    e = embed_views(teacher, quarters, v, batch=4, mode=mode, roi_size=32, keep=lambda at, f: kept.update(zip(at.tolist(), f)))
    assert torch.allclose(e, torch.nn.functional.normalize(torch.tensor(want).float(), dim=-1), atol=.08)
    assert sorted(kept) == list(range(6)) and all(torch.equal(kept[i], e[i]) for i in range(6))
    sides = {s[2:] for s in teacher.shown}
    crops, maps = {(8, 16), (16, 8), (12, 16), (16, 16)}, {(16, 32), (32, 16), (32, 32)}
    assert sides == dict(squash={(16, 16)}, crop=crops, enlarge={(16, 16), (4, 16)}, roi=maps, region=maps)[mode]


def test_the_authors_crop_by_hand(quarters):
    v = Views(torch.tensor([0, 1]), torch.tensor([[.5, 0, 1, .25], [0, 0, 0, 0]]))
    got = {tuple(at.tolist()): x for at, x in crops_of_squashed(quarters, v, 16, 4, stride=8)}
    assert {k: tuple(x.shape) for k, x in got.items()} == {(0,): (1, 3, 8, 16), (1,): (1, 3, 16, 16)}, "8 × 4 px, and one px"
    assert got[0,].mean((0, 2, 3)).tolist() == pytest.approx([0, 255, 0], abs=20)


# --- what views show

OBJECTS = [[(0, .6, 0., .9, .2, False), (1, 0., .5, .2, 1., False), (1, .5, .5, .6, .6, True)], [(1, .1, .7, .3, .8, False)]]
TWO = Benchmark("two", "train", Photos(Path("."), ["a", "b"]), ["dog", "cat", "owl"], np.array([[1, 1, 0], [0, 1, 0]], bool), OBJECTS)


def test_pointing_off_the_diagonal():
    maps = torch.zeros(2, 3, 3, 5)
    maps[0, 0, 0, 3] = maps[0, 1, 2, 0] = 1  # at .7, .17 and .1, .83: both inside
    maps[1, 1, 0, 4] = 1                     # at .9, .17: outside
    assert pointing(TWO, maps) == pytest.approx(2/3)
    maps[1, 1, 2, 1] = 2                     # at .3, .83: just below the box
    assert pointing(TWO, maps) == pytest.approx(2/3)
    assert pointing(TWO) == 0
    assert pointing(Benchmark("one", "train", TWO.photos, TWO.classes, TWO.truth, [[(0, .4, .3, .6, .5, False)], []])) == 1


def test_coverage_and_quality_off_the_diagonal():
    box = torch.tensor([[.5, 0, .75, .4], [0, .6, .4, 1], [.2, .6, .4, 1], [.5, .5, 1, 1]])
    objects = torch.cat([class_boxes(TWO, 0, 0), class_boxes(TWO, 0, 1)])
    assert torch.allclose(objects, torch.tensor([[.6, 0, .9, .2], [0, .5, .2, 1]])), "difficult ones left out"
    assert torch.allclose(coverage(box, objects), torch.tensor([[.5, 0], [0, .8], [0, 0], [0, 0]]), atol=1e-6)
    v = Views(torch.tensor([0, 0, 1, 1]), torch.cat([box[:3], box[:1]]), torch.tensor([0, 1, 1, 0]))
    q, s = box_quality(TWO, v), box_summary(TWO, v)
    assert q["present"].tolist() == [True, True, True, False] == q["boxed"].tolist()
    assert q["coverage"].tolist() == pytest.approx([.5, .8, .5, 0])
    iou = [.03/(.1 + .06 - .03), .08/(.16 + .1 - .08), .01/(.08 + .02 - .01), 0]
    assert q["iou"].tolist() == pytest.approx(iou, abs=1e-6)
    want = dict(views=4, per_image=2, absent=.25, half=1, coverage=.6, iou=sum(iou)/3, area=(.1 + .16 + .08 + .1)/4, whole=0)
    assert s == pytest.approx(want, abs=1e-6)


def test_what_a_view_shows_and_who_claims_what():
    v = Views(torch.tensor([0, 0, 1]), torch.tensor([[.5, 0, .75, .4], [0, .5, .6, .7], [0, .6, 1, 1]]), torch.tensor([0, 2, 1]))
    assert shown_classes(v, TWO).int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]], "a difficult object is shown too"
    assert shown_classes(v, TWO, .6).int().tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0]]
    label = torch.tensor([[.9, .1, .2], [.1, .3, .8], [.7, .2, .6]])
    final = torch.tensor([[.9, .2, .5], [.55, .9, .49]])
    assert false_claims(label, final, v, TWO) == [
        dict(image=0, claim=2, view=1, proposer=2, shown=[1]), dict(image=1, claim=0, view=2, proposer=1, shown=[1])]


def test_dependence_on_the_view_by_hand():
    box = torch.tensor([[.5, 0, 1, .5], [.6, 0, .9, .2], [0, .5, .3, 1], [0, .6, .5, 1], [0, 0, 1, 1], [.1, .7, .3, .8]])
    v = Views(torch.tensor([0, 0, 0, 0, 1, 1]), box)
    p = torch.tensor([[.6, .3, .1], [.2, .7, .1], [.1, .8, .1], [.3, .3, .4], [.5, .2, .3], [.2, .6, .2]])
    rows = view_dependence(TWO, torch.tensor([[.4, .5, .1], [.1, .8, .1]]), v, p)
    assert [(r["image"], r["label"], r["views"], r["alone"]) for r in rows] == [(0, 0, 2, False), (1, 1, 2, True)]
    a, b = rows
    assert [a[k] for k in ("whole", "mean", "sd", "low", "high")] == pytest.approx([.4, .4, .2*math.sqrt(2), .2, .6])
    assert [b[k] for k in ("whole", "mean", "sd", "low", "high")] == pytest.approx([.8, .4, .2*math.sqrt(2), .2, .6])
    first = [[r[k] for k in ("firsts", "first_whole", "first_some", "first_all")] for r in rows]
    assert first == [[2, False, True, False], [2, True, True, False]]
    s = dependence_summary([a, b, b | dict(firsts=1, high=.3, views=5, first_all=True)])
    assert (s["pairs"], s["photographs"], s["views"], s["photographs_that_flip"]) == (3, 2, 3, 1)
    assert [s[k] for k in ("flips", "range", "whole", "high", "first_all")] == pytest.approx([2/3, .9/3, 2/3, .5, 1/3])


def test_misplaced_boxes_keep_their_sides():
    v = Views(torch.arange(300), torch.tensor([[.1, .2, .3, .9]]).repeat(300, 1), torch.arange(300) % 3, torch.rand(300))
    m = misplaced(v, 1)
    assert torch.allclose(m.box[:, 2:] - m.box[:, :2], torch.tensor([.2, .7]).expand(300, 2), atol=1e-6)
    assert 0 <= m.box[:, 0].min() < .02 and .78 < m.box[:, 0].max() <= .8 and 0 <= m.box[:, 1].min() < .02 and .28 < m.box[:, 1].max() <= .3
    assert torch.equal(m.image, v.image) and torch.equal(m.proposer, v.proposer) and torch.equal(m.score, v.score)
