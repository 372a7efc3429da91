"The readers on miniatures of our own drawing and on the literature's own label lists, each in its data set's real format."
import hashlib
import json
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ccd import benchmarks
from ccd.benchmarks import BENCHMARKS, CCDError, fetch_benchmark, read_benchmark
from ccd.classes import COCO80, NUS81, VOC20
from conftest import ROOT

LISTS = ROOT.parent/"shared"/"data"/"lists"
NUMBERS = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # COCO's category numbers
COLOURS = [(230, 30, 30), (30, 200, 60), (40, 60, 230)]


def draw(path, size, boxes):
    "A grey JPEG with a rectangle for each box: x0 y0 x1 y1 in px from 0, the end left out."
    img = Image.new("RGB", size, (128, 128, 128))
    for (x0, y0, x1, y1), colour in zip(boxes, COLOURS): ImageDraw.Draw(img).rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    img.save(path, quality=95, subsampling=0)


def drawn(img, colour):
    "Where a rectangle is, as `draw` takes it."
    y, x = (np.abs(np.array(img, dtype=int) - colour).sum(-1) < 60).nonzero()
    return x.min(), y.min(), x.max() + 1, y.max() + 1


VOC_XML = """<annotation>
	<folder>VOC{year}</folder>
	<filename>{name}.jpg</filename>
	<source><database>The VOC{year} Database</database><annotation>PASCAL VOC{year}</annotation><image>flickr</image></source>
	<size><width>{w}</width><height>{h}</height><depth>3</depth></size>
	<segmented>0</segmented>{objects}
</annotation>
"""
VOC_OBJECT = """
	<object>
		<name>{}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>{:d}</difficult>
		<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
		<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
	</object>"""


def write_voc(root, year, split, scenes):
    "`scenes`: id to size and objects (class, xmin ymin xmax ymax as VOC counts, difficult)."
    base = root/"VOCdevkit"/f"VOC{year}"
    for d in ("Annotations", "ImageSets/Main"): (base/d).mkdir(parents=True, exist_ok=True)
    (base/"ImageSets"/"Main"/f"{split}.txt").write_text("".join(f"{i}\n" for i in scenes))
    (base/"ImageSets"/"Main"/f"dog_{split}.txt").write_text("".join(f"{i} -1\n" for i in scenes))
    for i, ((w, h), objects) in scenes.items():
        found = "".join(VOC_OBJECT.format(c.replace(" ", ""), hard, *box) for c, box, hard in objects)
        (base/"Annotations"/f"{i}.xml").write_text(VOC_XML.format(year=year, name=i, w=w, h=h, objects=found))
    return base


def write_coco(root, split, scenes):
    "`scenes`: file name, which ends in the photograph's number, to size and objects (class, x y width height, crowd)."
    number = {name: int(name[-16:-4]) for name in scenes}
    notes = [dict(id=k, image_id=number[name], category_id=NUMBERS[COCO80.index(c)], bbox=box, area=box[2]*box[3], iscrowd=int(crowd),
                  segmentation=dict(counts=[0], size=size[::-1]) if crowd else [[1, 1, 2, 1, 2, 2]])
             for k, (name, size, c, box, crowd) in enumerate((n, size, *o) for n, (size, objects) in scenes.items() for o in objects)]
    file = root/"coco"/"annotations"/f"instances_{split}2014.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(
        info=dict(year=2014), licenses=[], annotations=notes,
        images=[dict(id=number[name], file_name=name, width=w, height=h, license=3) for name, ((w, h), _) in scenes.items()],
        categories=[dict(id=n, name=c, supercategory="thing") for n, c in zip(NUMBERS, COCO80)][::-1])))
    return root/"coco"/f"{split}2014"


def write_nuswide(root, split, names, truth):
    base = root/"nuswide"
    base.mkdir(exist_ok=True)
    np.save(base/f"formatted_{split}_images.npy", np.array(names))
    np.save(base/f"formatted_{split}_labels.npy", truth.astype(float))
    return base/"Flickr"


def small_voc(root, year="2007", split="trainval"):
    scenes = {"000012": ((40, 60), [("person", (6, 11, 20, 45), True)]),
              "000005": ((50, 40), [("dog", (1, 1, 20, 40), False), ("cat", (31, 11, 50, 20), True), ("dog", (31, 31, 35, 40), True)]),
              "000009": ((50, 40), [("tv monitor", (26.0, 1.0, 50.0, 40.0), False)])}
    write_voc(root, year, "val", {"000099": ((50, 40), [("bird", (1, 1, 50, 40), False)])})
    base = write_voc(root, year, split, scenes)
    for i, (size, objects) in scenes.items():
        draw(base/"JPEGImages"/f"{i}.jpg", size, [(int(x0) - 1, int(y0) - 1, int(x1), int(y1)) for _, (x0, y0, x1, y1), _ in objects])


def small_coco(root):
    name = "COCO_val2014_{:012}.jpg".format
    scenes = {name(139): ((64, 48), [("toothbrush", (8, 6, 16, 24), False), ("person", (32, 12, 32, 36), False)]),
              name(42): ((40, 50), [("person", (0, 0, 40, 25), True)]),
              name(73): ((40, 50), []),
              name(581929): ((48, 64), [("stop sign", (12, 16, 12, 16), False)])}
    folder = write_coco(root, "val", scenes)
    for n, (size, objects) in scenes.items(): draw(folder/n, size, [(x, y, x + w, y + h) for _, (x, y, w, h), _ in objects])


def small_nuswide(root):
    names, truth = ["sky/0001_2124494179.jpg", "cat/0002_174174086.jpg", "map/0003_500.jpg"], np.zeros((3, 81))
    truth[0, [NUS81.index("sky"), NUS81.index("clouds")]] = truth[2, NUS81.index("map")] = 1
    folder = write_nuswide(root, "val", names, truth)
    for n in names: draw(folder/n, (30, 20), [])


def tags(b): return [{b.classes[c] for c in row.nonzero()[0]} for row in b.truth]


def check_photographs(b, sizes):
    "Each opens, and its boxes are where its rectangles are."
    assert [b.photos.open(i).size for i in range(len(b))] == sizes
    for i, objects in enumerate(b.objects):
        for (_, *box, _), colour in zip(objects, COLOURS):
            assert np.allclose(np.array(box)*(sizes[i]*2), drawn(b.photos.open(i), colour))


@pytest.mark.parametrize("name, year, split", [("voc07", "2007", "trainval"), ("voc12", "2012", "train")])
def test_small_voc(tmp_path, name, year, split):
    small_voc(tmp_path, year, split)
    b, every = (read_benchmark(name, tmp_path, split, difficult=d) for d in (False, True))
    assert (b.name, b.split, b.classes) == (name, split, VOC20) and b.photos.names == ["000012.jpg", "000005.jpg", "000009.jpg"]
    assert tags(b) == [set(), {"dog"}, {"tv monitor"}] and tags(every) == [{"person"}, {"dog", "cat"}, {"tv monitor"}]
    assert b.objects == every.objects == [
        [(14, 5/40, 10/60, 20/40, 45/60, True)],
        [(11, 0., 0., .4, 1., False), (7, .6, .25, 1., .5, True), (11, .6, .75, .7, 1., True)],
        [(19, .5, 0., 1., 1., False)]], "VOC counts pixels from 1, the last one included"
    check_photographs(b, [(40, 60), (50, 40), (50, 40)])
    assert tags(read_benchmark(name, tmp_path, "val")) == [{"bird"}]
    with pytest.raises(CCDError, match=f"VOC{year} here has the splits {split}, val$"): read_benchmark(name, tmp_path, "test")


def test_small_coco(tmp_path):
    small_coco(tmp_path)
    b = read_benchmark("coco14", tmp_path, "val")
    assert (b.name, b.split, b.classes) == ("coco14", "val", COCO80)
    assert b.photos.names == [f"COCO_val2014_{n:012}.jpg" for n in (42, 139, 581929)], "by number, without the one that has no annotation"
    assert tags(b) == [{"person"}, {"toothbrush", "person"}, {"stop sign"}], "a crowd counts"
    assert b.objects == [
        [(0, 0., 0., 1., .5, True)],
        [(79, .125, .125, .375, .625, False), (0, .5, .25, 1., 1., False)],
        [(11, .25, .25, .5, .5, False)]]
    assert np.array_equal(read_benchmark("coco14", tmp_path, "val", difficult=True).truth, b.truth)
    check_photographs(b, [(40, 50), (64, 48), (48, 64)])


def test_small_nuswide(tmp_path):
    small_nuswide(tmp_path)
    b = read_benchmark("nuswide", tmp_path, "val")
    assert (b.name, b.split, b.classes) == ("nuswide", "val", NUS81)
    assert b.photos.names == ["sky/0001_2124494179.jpg", "cat/0002_174174086.jpg", "map/0003_500.jpg"]
    assert tags(b) == [{"sky", "clouds"}, set(), {"map"}] and b.objects == [[], [], []]
    assert np.array_equal(read_benchmark("nuswide", tmp_path, "val", difficult=True).truth, b.truth)
    check_photographs(b, [(30, 20)]*3)


def cut(p): p.write_bytes(p.read_bytes()[:p.stat().st_size//2])
def empty(p): p.write_bytes(b"")
def lose(p): p.rename(p.with_name("elsewhere"))
def swap(old, new): return lambda p: p.write_text(p.read_text().replace(old, new, 1))
def array(x): return lambda p: np.save(p, x)


SMALL = dict(voc07=(small_voc, "trainval"), coco14=(small_coco, "val"), nuswide=(small_nuswide, "val"))
NOTE, SETS = "VOCdevkit/VOC2007/Annotations/000005.xml", "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt"
JSON, LABELS, NAMES = "coco/annotations/instances_val2014.json", "nuswide/formatted_val_labels.npy", "nuswide/formatted_val_images.npy"


def member(name, kind=tarfile.REGTYPE, target=""):
    m = tarfile.TarInfo(name)
    m.type, m.linkname = kind, target
    return m


SYM, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
HOSTILE = {
    "up": [member("../x")], "up again": [member("a/../../x")], "from the root": [member("/tmp/ccd-was-here")],
    "hidden": [member("a\x1b[2J")], "through a link": [member("out", SYM, ".."), member("out/x")],
    "a link out": [member("out", SYM, "/etc")],
    "a hard link out": [member("out", HARD, "../../x")], "a link within": [member("a"), member("b", SYM, "a")],
    "a device": [member("null", tarfile.CHRTYPE)], "a pipe": [member("pipe", tarfile.FIFOTYPE)],
    "a zip": "../x", "a zip from the root": "/tmp/ccd-was-here", "a zip of another drive": "C:\\x"}


def on_mirror(tmp_path, monkeypatch, md5=None):
    "VOC12 as the archive mirror/VOCtrainval.tar, which is all there is of it."
    file = tmp_path/"mirror"/"VOCtrainval.tar"
    file.parent.mkdir(exist_ok=True)
    md5 = md5 or hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setitem(BENCHMARKS, "voc12", replace(BENCHMARKS["voc12"], servers=(), archives=((file.name, md5),)))
    return file


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
def test_an_archive_cannot_leave_its_folder(tmp_path, monkeypatch, members):
    (tmp_path/"mirror").mkdir()
    if isinstance(members, str):
        with zipfile.ZipFile(tmp_path/"mirror"/"VOCtrainval.tar", "w") as archive: archive.writestr(members, "x")
    else:
        with tarfile.open(tmp_path/"mirror"/"VOCtrainval.tar", "w") as archive:
            for m in members: archive.addfile(m)
    file = on_mirror(tmp_path, monkeypatch)
    with pytest.raises(CCDError) as e: fetch_benchmark("voc12", tmp_path/"in"/"got", file.parent.as_uri())
    assert "not a sound archive" in str(e.value) and file.name in str(e.value) and "\n" not in str(e.value)
    assert [p.name for p in (tmp_path/"in"/"got").iterdir()] == ["archives"], "nothing is unpacked before all of it is looked at"


def test_an_archive_that_is_altered_or_cut_is_refused(tmp_path, monkeypatch):
    file = on_mirror(tmp_path, monkeypatch, "0"*32)
    for data in (None, b"altered", b""):
        if data is not None: file.write_bytes(data)
        with pytest.raises(CCDError, match="could not be fetched") as e:
            fetch_benchmark("voc12", tmp_path/"got", file.parent.as_uri())
        assert ("wrong checksum" in str(e.value)) == (data is not None) and not list((tmp_path/"got"/"archives").iterdir())
    with pytest.raises(CCDError, match="cannot be fetched: put the lists"): fetch_benchmark("nuswide", tmp_path)


@pytest.mark.parametrize("name, folder", [
    ("voc07", "VOCdevkit/VOC2007"), ("voc12", "VOCdevkit/VOC2012"), ("coco14", "coco"), ("nuswide", "nuswide")])
def test_a_missing_folder_is_named(tmp_path, name, folder):
    with pytest.raises(CCDError) as e: read_benchmark(name, tmp_path, "val")
    assert str(tmp_path/folder) in str(e.value) and "is missing" in str(e.value) and "\n" not in str(e.value)


def rows(name):
    if not LISTS.is_dir(): pytest.skip("no data folder beside the project")
    return [(line.split()[0], [int(c) for c in line.split()[1:]]) for line in open(LISTS/f"{name}.txt")]


def matrix(listed, classes):
    truth = np.zeros((len(listed), len(classes)), dtype=bool)
    for n, (_, present) in enumerate(listed): truth[n, present] = True
    return truth


VOC_LISTS = [("voc07train", "voc07", "trainval", 2007), ("voc07val", "voc07", "test", 2007),
             ("voc12train", "voc12", "train", 2012), ("voc12val", "voc12", "val", 2012)]


@pytest.mark.parametrize("file, name, split, year", VOC_LISTS)
def test_published_voc(tmp_path, file, name, split, year):
    listed = rows(file)
    assert len(listed) == BENCHMARKS[name].published[split]
    listed = listed[::25]
    write_voc(tmp_path, year, split, {i: ((10, 10), [(VOC20[c], (1, 1, 9, 9), False) for c in present]) for i, present in listed})
    b = read_benchmark(name, tmp_path, split)
    assert b.photos.names == [f"{i}.jpg" for i, _ in listed] and np.array_equal(b.truth, matrix(listed, VOC20))


def test_published_coco(tmp_path):
    listed = sorted(rows("cocoval"), key=lambda r: int(r[0][-12:]))
    assert len(listed) == BENCHMARKS["coco14"].published["val"]
    scenes = {f"{i}.jpg": ((10, 10), [(COCO80[c], (0, 0, 5, 5), False) for c in present]) for i, present in listed[::-1]}
    write_coco(tmp_path, "val", scenes | {f"COCO_val2014_{10**9:012}.jpg": ((10, 10), [])})
    b = read_benchmark("coco14", tmp_path, "val")
    assert b.photos.names == [f"{i}.jpg" for i, _ in listed] and np.array_equal(b.truth, matrix(listed, COCO80))


def test_published_nuswide(tmp_path):
    listed = rows("nuswide_val_first2000")
    assert NUS81 == (LISTS/"nuswide_concepts81.txt").read_text().split()
    write_nuswide(tmp_path, "val", [f"{i}.jpg" for i, _ in listed], matrix(listed, NUS81))
    b = read_benchmark("nuswide", tmp_path, "val")
    assert b.photos.names[0] == "restaurant/0346_1766455331.jpg" and np.array_equal(b.truth, matrix(listed, NUS81))
    assert {NUS81[c] for c in b.truth.sum(0).argsort()[-3:]} == {"sky", "clouds", "person"}, "the order of columns that makes sense"
    assert .2 < (~b.truth.any(1)).mean() < .25, "photographs without a label stay in"


def test_a_benchmark_that_is_not_whole_is_not_what_was_published(monkeypatch, ccd, toy_root):
    monkeypatch.setattr(benchmarks, "fetch_benchmark", lambda name, root, mirror: None)
    for n, code in ((20, 0), (21, 2)):
        monkeypatch.setitem(benchmarks.BENCHMARKS, "drawn", benchmarks.BenchmarkSource(
            lambda root, split, difficult: read_benchmark("toy", root, split), published=dict(train=n)))
        got = ccd("data", "drawn", "--root", toy_root)
        assert got[0] == code and ("drawn train: 20 photographs" in got[1] or "has 20 photographs where 21 are published" in got[2][0])
