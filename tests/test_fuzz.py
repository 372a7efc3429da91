"""Whatever comes in: labels stay in [0, 1], boxes inside and non-empty, orders change nothing but the order, and no reader ends in a
traceback. Half a minute in all; HYPOTHESIS_PROFILE=soak (`make soak`) draws other examples each time, for ten."""
import copy
import csv
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import settings as hyp
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from ccd.benchmarks import read_annotation, read_benchmark
from ccd.cam import cam_boxes
from ccd.classes import ClassName, prompts, read_classes
from ccd.clip import parse_teacher
from ccd.core import CCDError, read_json, unseen, visible
from ccd.data import Photos, decode, view_shape
from ccd.load_teacher import load_teacher
from ccd.models import _Bundle as RegionBundle
from ccd.options import Choices
from ccd.pseudo_labels import label_rule, max_over_views, tag_thresholds, update
from ccd.settings import LabelSettings, TeacherSettings, flat, settings
from ccd.student import _Bundle, load_model, read_bundle
from ccd.tables import write_table
from ccd.views import grid_views, object_views, propose, random_views, search_threshold
from corpus import make_common
from test_benchmarks import small_coco, small_nuswide, small_voc

sizes, shares, seeds = st.integers(1, 7), st.floats(0, 1, width=32), st.integers(0, 2**32 - 1)


few = hyp(max_examples=max(5, hyp().max_examples//40))  # where each is a model


@pytest.fixture(scope="module", autouse=True)
def small_numbers():
    "Runs of other tests have made numbers too small to be normal 0 in this process, which hypothesis takes for a broken machine."
    torch.set_flush_denormal(False)


def of_one_line(e):
    assert "\n" not in str(e) and not any(map(unseen, str(e))) and len(str(e)) < 6000, str(e)


# --- labels

@st.composite
def probabilities(draw, rows=sizes):
    "Rows of a softmax, from even to one-sided, without a tie."
    n, c = draw(rows), draw(st.integers(2, 6))
    logits = draw(arrays(np.float32, (n, c), elements=st.floats(-40, 40, width=16)))
    rng = np.random.default_rng(n*10 + c)
    return torch.from_numpy(logits + rng.permutation(n*c).reshape(n, c).astype(np.float32)/100).softmax(-1)


rules = st.builds(
    LabelSettings, max_entropy=st.floats(.01, 20), debias=st.booleans(), floor=st.floats(0, .99), floor_first=st.booleans(),
    clamp_local=st.booleans(), alpha=shares, calibrate=st.booleans(), neighbours=st.integers(0, 3), weigh=st.booleans(),
    source=st.sampled_from(["text", "regions"]))


def made(p, views, s):
    "Initial, local and final labels of photographs that have `views` each, whose probabilities are those of the next photographs."
    n = len(p)
    image = torch.arange(n).repeat_interleave(views)
    rule = label_rule(p, s)
    initial = rule.initial(p)
    local = rule.local(torch.cat([p.roll(k, 1) for k in range(views)]).view(views, n, -1).transpose(0, 1).flatten(0, 1), image, n)
    return initial, local, rule.final(initial, local)


@given(probabilities(), st.integers(1, 3), rules)
def test_labels_are_probabilities(p, views, s):
    initial, local, final = made(p, views, s)
    for label in (initial, local, final):
        assert label.isfinite().all() and (label >= 0).all() and label.shape == p.shape
    assert (initial <= 1).all() and (final <= 1).all() and (not s.clamp_local or (local <= 1).all())


@given(probabilities(), rules, seeds)
def test_orders_of_photographs_and_classes_change_only_the_order(p, s, seed):
    s.neighbours, s.calibrate = 0, False  # among photographs just as alike, and at the last step of a search, an order decides
    g = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(len(p), generator=g), torch.randperm(p.shape[1], generator=g)
    label = made(p, 1, s)[2]
    assert torch.allclose(made(p[rows], 1, s)[2], label[rows], atol=1e-5)
    assert torch.allclose(made(p[:, columns], 1, s)[0], made(p, 1, s)[0][:, columns], atol=1e-5)


@given(probabilities(), seeds)
def test_thresholds_lie_between_the_scores(p, seed):
    t = tag_thresholds(p)
    assert ((p.amin(0) <= t + 1e-6) & (t <= p.amax(0) + 1e-6)).all()
    g = torch.Generator().manual_seed(seed)
    assert torch.equal(tag_thresholds(p[torch.randperm(len(p), generator=g)]), t)
    columns = torch.randperm(p.shape[1], generator=g)
    assert torch.equal(tag_thresholds(p[:, columns]), t[columns])


@given(probabilities(), probabilities(), shares)
def test_mixtures_lie_between_what_is_mixed(p, q, alpha):
    n, c = min(len(p), len(q)), min(p.shape[1], q.shape[1])
    a, b = p[:n, :c], q[:n, :c]
    mixed = update(a, b, alpha)
    assert (torch.minimum(a, b) - 1e-6 <= mixed).all() and (mixed <= torch.maximum(a, b) + 1e-6).all()


@given(probabilities(), st.data())
def test_the_highest_view_decides_in_any_order(p, data):
    image = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(p), max_size=len(p))))
    found, order = max_over_views(p, image, 4), torch.tensor(data.draw(st.permutations(range(len(p)))))
    assert torch.equal(found, max_over_views(p[order], image[order], 4))
    for i in range(4): assert torch.equal(found[i], p[image == i].amax(0) if (image == i).any() else torch.zeros(p.shape[1]))


# --- boxes

def check_boxes(box):
    assert box.isfinite().all() and ((box >= 0) & (box <= 1)).all() and (box[:, :2] < box[:, 2:]).all(), box


maps = arrays(np.float32, st.tuples(sizes, sizes, sizes), elements=st.floats(-60_000, 60_000, width=16))


@given(maps, st.floats(0, .99), st.floats(0, .5), st.booleans(), st.integers(8, 48), st.sampled_from(["extent", "raster"]))
def test_boxes_are_inside_and_have_a_size(maps, threshold, offset, connected, enlarge, rule):
    check_boxes(cam_boxes(torch.from_numpy(maps), threshold, offset, connected, enlarge, rule))


@given(sizes, sizes, seeds, shares, st.data())
def test_other_boxes_too(n, side, seed, around, data):
    check_boxes(grid_views(n, side).box)
    check_boxes(random_views(n, side, seed).box)
    corners = st.tuples(st.floats(0, .9), st.floats(0, .9), st.floats(.01, .1), st.floats(.01, .1))
    known = data.draw(st.lists(st.lists(corners, max_size=3), min_size=1, max_size=4))
    check_boxes(object_views([[(x, y, x + w, y + h) for x, y, w, h in boxes] for boxes in known], side, around, seed).box)


@given(st.floats(.001, 1e4), st.floats(.001, 1e4), st.integers(32, 4096), st.sampled_from([None, 1, 14, 16, 32]))
def test_a_view_has_at_least_a_pixel_and_at_most_its_size(w, h, size, stride):
    shape = view_shape(w, h, size, stride)
    assert 1 <= min(shape) and max(shape) == size


@given(probabilities(), st.floats(.01, 10), st.one_of(st.none(), shares), st.booleans(), shares, sizes)
def test_views_are_as_many_as_asked_for(p, per_image, threshold, at_least_one, start, every):
    found, (n, c) = propose(p, per_image, threshold, at_least_one), p.shape
    if at_least_one: assert found.any(1).all()
    if threshold is not None: assert (found | (p < threshold)).all()
    else: assert found.sum() == max(min(round(n*per_image), n*c), n if at_least_one else 0)
    assert start <= search_threshold(p, per_image, start, every=every) <= start + .001*(n + 1) + 1e-9


# --- what is typed

names = st.text(st.one_of(st.characters(), st.sampled_from(" ,:|;#\n\t\r\u200b\u0301\ufeff=@")), max_size=30)


@given(st.one_of(names, st.lists(names, max_size=5)))
@example("a: b | c, d")
def test_class_lists_are_read_or_refused(given):
    try: found = read_classes(given)
    except CCDError as e: return of_one_line(e)
    assert len(set(found)) == len(found) >= 2 and all(found) and not any(unseen(x) for c in found for x in c)
    assert [c.phrases for c in found] == [c.phrases for c in read_classes(found[::-1])][::-1]
    assert all(isinstance(c, ClassName) and len(p) == len(c.phrases) for c, p in zip(found, prompts(found, "a {}")))


@given(st.binary(max_size=60))
def test_class_files_are_read_or_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/"classes.txt"
        path.write_bytes(data)
        try: assert len(read_classes(path)) >= 2
        except CCDError as e: of_one_line(e)


known = st.sampled_from(sorted(flat(settings())))
words = st.one_of(names, st.integers().map(str), st.floats().map(str), st.sampled_from(["none", "true", "1e3", "auto", "0x10", "1_000"]))


pairs = st.one_of(names, st.tuples(st.one_of(known, names), words).map("=".join))
teachers = st.tuples(st.sampled_from(["RN50", "local-dir", "C", "ViT-B-32"]), st.sampled_from([":", "/"]), names).map("".join)


@given(st.sampled_from(["cpu", "paper", "toy", "x"]), st.lists(pairs, max_size=3))
def test_settings_are_taken_or_refused(preset, pairs):
    try: s = Choices(preset, set_=pairs).settings()
    except CCDError as e: return of_one_line(e)
    assert all(np.isfinite(v) for v in flat(s).values() if isinstance(v, (int, float)))
    assert settings(preset, **{k.replace(".", "__"): v for k, v in flat(s).items()}) == s


@given(st.one_of(names, teachers))
def test_names_of_teachers_are_taken_or_refused(name):
    try: assert set(parse_teacher(name)) <= {"model_name", "pretrained", "force_quick_gelu"}
    except CCDError as e: of_one_line(e)


@given(st.text())
def test_what_is_shown_acts_on_nothing(text):
    shown = visible(text)
    assert not any(map(unseen, shown)) and visible(shown) == shown and len(shown.encode()) >= len(text)


letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
cells = st.text(st.one_of(letters, st.sampled_from("=+-@\t\r\n,\"';")), max_size=12)


@given(st.lists(cells, min_size=1, max_size=5))
def test_no_cell_is_a_formula(column):
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder)/"t.csv", {"a": column, "b": list(range(len(column)))})
        with open(Path(folder)/"t.csv", newline="", encoding="utf-8") as f: rows = list(csv.reader(f))[1:]
    for text, (cell, _) in zip(column, rows):
        assert cell in (text, "'" + text)
        if cell[:1] in set("=+-@\t\r"): float(cell)


# --- files

junk = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=5), st.sampled_from([[], {}, [[]], "../x"]))


def places(tree, path=()):
    yield path
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for k, v in parts: yield from places(v, (*path, k))


@st.composite
def changed(draw, tree):
    "`tree` with a few of its parts gone, or something else."
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(tree))))
        if not path: return draw(junk)
        node = tree
        for k in path[:-1]: node = node[k]
        if draw(st.booleans()): node[path[-1]] = copy.deepcopy(draw(junk))
        else: del node[path[-1]]
    return tree


@st.composite
def flipped(draw, data):
    "`data` with a few bytes changed, cut or put in."
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["set", "cut", "insert"]))
        if how == "set" and data: data[at] = draw(st.integers(0, 255))
        elif how == "cut": del data[at:at + draw(st.integers(1, 40))]
        else: data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    "A folder with every kind of file that is read, all of them sound."
    root = tmp_path_factory.mktemp("sound")
    for make in (small_voc, small_coco, small_nuswide): make(root)
    return make_common(root)


def check_benchmark(b, root):
    assert len(b) and b.truth.shape == (len(b), len(b.classes)) and len(b.objects) == len(set(b.photos.names)) == len(b)
    assert all((b.photos.root/n).resolve().is_relative_to(root) for n in b.photos.names)
    for objects in b.objects:
        for c, x0, y0, x1, y1, _ in objects: assert 0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1 and 0 <= c < len(b.classes)


def with_file(sound, file, data, call):
    "`call()` while `file` holds `data`: what it gives, or None where it is refused."
    path = sound/file
    was = path.read_bytes()
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode(errors="replace"))
    try: return call()
    except CCDError as e: of_one_line(e)
    finally: path.write_bytes(was)


COCO, NOTE = "coco/annotations/instances_val2014.json", "VOCdevkit/VOC2007/Annotations/000005.xml"


@given(st.data())
def test_coco_is_read_or_refused(sound, data):
    tree = json.loads((sound/COCO).read_text())
    tree["categories"].sort(key=lambda c: c["id"])
    new = data.draw(st.one_of(changed(tree), flipped((sound/COCO).read_bytes())))
    b = with_file(sound, COCO, new, lambda: read_benchmark("coco14", sound, "val"))
    if b: check_benchmark(b, sound)


@given(st.data())
def test_voc_is_read_or_refused(sound, data):
    text = (sound/NOTE).read_bytes()
    number = data.draw(st.sampled_from([b"50", b"40", b"31", b"11", b"dog", b"<bndbox>"]))
    other = data.draw(st.one_of(st.floats().map(str), names)).encode(errors="replace")
    new = data.draw(st.one_of(flipped(text), st.just(text.replace(number, other, 1))))
    found = with_file(sound, NOTE, new, lambda: read_annotation(sound/NOTE, {"dog": 0, "cat": 1}))
    for _, x0, y0, x1, y1, *_ in found or (): assert 0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1
    listing = "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt"
    b = with_file(sound, listing, data.draw(flipped((sound/listing).read_bytes())), lambda: read_benchmark("voc07", sound, "trainval"))
    if b: check_benchmark(b, sound)


@given(st.sampled_from(["images", "labels"]), st.data())
def test_nuswide_is_read_or_refused(sound, which, data):
    file = f"nuswide/formatted_val_{which}.npy"
    was = (sound/file).read_bytes()
    new = data.draw(st.one_of(flipped(was[:128]).map(lambda head: head + was[128:]), flipped(was)))
    assume(not any(len(digits) > 5 for digits in new[:128].split(b"'shape'")[-1].replace(b",", b" ").split() if digits.isdigit()))
    b = with_file(sound, file, new, lambda: read_benchmark("nuswide", sound, "val"))
    if b: check_benchmark(b, sound)


REGIONS = dict(
    format=2, kind="regions", classes=["a", "b"], source="both", share=.5, temperature=1., sharpness=1., shrinkage=.5,
    teacher=vars(TeacherSettings("toy", size=64)), fingerprint="0", roi_size=None)


@given(st.data())
def test_descriptions_of_models_are_read_or_refused(sound, data):
    file = "model/config.json"
    tree = json.loads((sound/file).read_text())
    new = data.draw(st.one_of(changed(tree), flipped((sound/file).read_bytes())))
    b = with_file(sound, file, new, lambda: read_bundle(sound/file, _Bundle))
    assert b is None or 8 <= b.size <= 4096 and b.classes and b.boost > 0
    assert with_file(sound, file, REGIONS, lambda: read_bundle(sound/file, RegionBundle)).share == .5
    b = with_file(sound, file, data.draw(changed(REGIONS)), lambda: read_bundle(sound/file, RegionBundle))
    assert b is None or len(b.classes) >= 2 and 0 <= b.share <= 1


@few
@given(st.data())
def test_weights_of_models_are_read_or_refused(sound, data):
    file = "model/model.safetensors"
    was = (sound/file).read_bytes()
    at = data.draw(st.integers(0, 12_000))
    new = was[:at] + data.draw(flipped(was[at:at + 64])) + was[at + 64:]
    m = with_file(sound, file, new, lambda: load_model(sound/"model"))
    assert m is None or all(w.isfinite().all() for w in m.state_dict().values())


@few
@given(st.data())
def test_descriptions_of_teachers_are_read_or_refused(sound, data):
    file = "clip/open_clip_config.json"
    new = data.draw(st.one_of(changed(json.loads((sound/file).read_text())), flipped((sound/file).read_bytes())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccd.weights._answers", lambda: False)
        t = with_file(sound, file, new, lambda: load_teacher(TeacherSettings(f"local-dir:{sound/'clip'}", size=None)))
    assert t is None or t.temperature > 0 and t.embed_text(["a dog"]).shape[0] == 1


@given(st.binary(max_size=200))
def test_what_is_no_json_is_refused(sound, data):
    found = with_file(sound, "model/config.json", data, lambda: read_json(sound/"model"/"config.json"))
    assert found is None or isinstance(found, dict)


PICTURES = {}
for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(out, kind)
    PICTURES[kind] = out.getvalue()


@given(st.sampled_from(list(PICTURES)), st.data())
def test_photographs_are_decoded_or_refused(sound, kind, data):
    path = sound/"picture"
    path.write_bytes(data.draw(flipped(PICTURES[kind])))
    try: img = decode(path)
    except Exception: img = None
    assert img is None or img.mode == "RGB"
    try: Photos(sound, ["picture"]).open(0)
    except CCDError as e: of_one_line(e)
