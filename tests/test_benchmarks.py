"The readers against the literature's own label lists, each in its data set's real format."
import json

import numpy as np
import pytest

from ccd.benchmarks import PUBLISHED, read_benchmark
from ccd.classes import COCO80, NUS81, VOC20
from conftest import ROOT

LISTS = ROOT.parent/"shared"/"data"/"lists"
pytestmark = pytest.mark.skipif(not LISTS.is_dir(), reason="no data folder beside the project")
NUMBERS = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # COCO's category numbers


def rows(name):
    return [(line.split()[0], [int(c) for c in line.split()[1:]]) for line in open(LISTS/f"{name}.txt")]


def matrix(listed, classes):
    truth = np.zeros((len(listed), len(classes)), dtype=bool)
    for n, (_, present) in enumerate(listed): truth[n, present] = True
    return truth


@pytest.mark.parametrize("file, name, split, year", [("voc07train", "voc07", "trainval", 2007), ("voc07val", "voc07", "test", 2007), ("voc12train", "voc12", "train", 2012), ("voc12val", "voc12", "val", 2012)])
def test_voc(tmp_path, file, name, split, year):
    listed = rows(file)
    assert len(listed) == PUBLISHED[name][split]
    listed = listed[::25]
    base = tmp_path/"VOCdevkit"/f"VOC{year}"
    for d in ("Annotations", "ImageSets/Main"): (base/d).mkdir(parents=True)
    (base/"ImageSets"/"Main"/f"{split}.txt").write_text("".join(f"{i}\n" for i, _ in listed))
    one = "<object><name>{}</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    for i, present in listed: (base/"Annotations"/f"{i}.xml").write_text("<annotation><size><width>10</width><height>10</height></size>" + "".join(one.format(VOC20[c].replace(" ", "")) for c in present) + "</annotation>")
    b = read_benchmark(name, tmp_path, split)
    assert b.photos.names == [f"{i}.jpg" for i, _ in listed] and np.array_equal(b.truth, matrix(listed, VOC20))


def test_coco(tmp_path):
    listed = sorted(rows("cocoval"), key=lambda r: int(r[0][-12:]))
    assert len(listed) == PUBLISHED["coco14"]["val"]
    notes = tmp_path/"coco"/"annotations"; notes.mkdir(parents=True)
    (notes/"instances_val2014.json").write_text(json.dumps(dict(
        categories=[dict(id=n, name=c) for n, c in zip(NUMBERS, COCO80)][::-1],
        images=[dict(id=int(i[-12:]), file_name=f"{i}.jpg", width=10, height=10) for i, _ in listed[::-1]] + [dict(id=10**9, file_name="no annotation.jpg", width=10, height=10)],
        annotations=[dict(image_id=int(i[-12:]), category_id=NUMBERS[c], bbox=[0, 0, 5, 5], iscrowd=0) for i, present in listed for c in present])))
    b = read_benchmark("coco14", tmp_path, "val")
    assert b.photos.names == [f"{i}.jpg" for i, _ in listed] and np.array_equal(b.truth, matrix(listed, COCO80))


def test_nuswide(tmp_path):
    assert NUS81 == (LISTS/"nuswide_concepts81.txt").read_text().split()
    listed, base = rows("nuswide_val_first2000"), tmp_path/"nuswide"
    base.mkdir()
    np.save(base/"formatted_val_images.npy", np.array([f"{i}.jpg" for i, _ in listed]))
    np.save(base/"formatted_val_labels.npy", matrix(listed, NUS81).astype(float))
    b = read_benchmark("nuswide", tmp_path, "val")
    assert b.photos.names[0] == "restaurant/0346_1766455331.jpg" and np.array_equal(b.truth, matrix(listed, NUS81))
    assert {NUS81[c] for c in b.truth.sum(0).argsort()[-3:]} == {"sky", "clouds", "person"}, "the order of columns that makes sense"
    assert .2 < (~b.truth.any(1)).mean() < .25, "photographs without a label stay in"
