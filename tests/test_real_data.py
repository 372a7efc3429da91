"Real photographs' annotations and real CLIP scores, where the data folder stands beside the project."
import csv

import numpy as np
import pytest
import torch

from ccd.benchmarks import read_voc
from ccd.bias import calibrate, debias, estimate_bias, estimate_calibration
from ccd.classes import VOC20
from ccd.metrics import average_precision, mean_ap
from ccd.pseudo_labels import smooth, update
from conftest import ROOT

DATA = ROOT.parent/"shared"/"data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no data folder beside the project")


@pytest.mark.parametrize("split, n", [("train", 2000), ("val", 1000)])
def test_voc07_truth_is_the_published_one(split, n):
    b = read_voc(DATA, split)
    with open(DATA/"VOCdevkit"/"VOC2007"/"labels.csv") as f: published = {r["id"]: r for r in csv.DictReader(f) if r["split"] == split}
    assert len(b) == n == len(published)
    value = np.array([[int(published[name[:-4]][c.replace(" ", "")]) for c in VOC20] for name in b.photos.names])
    assert np.array_equal(b.truth, value == 1)
    assert np.array_equal(read_voc(DATA, split, difficult=True).truth, value >= 0)
    listed = {line.split()[0]: {int(c) for c in line.split()[1:]} for line in open(DATA/"lists"/"voc07train.txt")}
    assert all(set(row.nonzero()[0]) == listed[name[:-4]] for name, row in zip(b.photos.names, b.truth))
    assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for objects in b.objects for _, x0, y0, x1, y1, _ in objects)


def test_real_clip_scores_have_the_papers_map_and_bias():
    z = np.load(DATA/"scores"/"voc12_train_clip_rn50x64.npz")
    p = torch.tensor(100*z["global_cosine"], dtype=torch.float32).softmax(-1)
    assert mean_ap(z["labels"] == 1, p) == pytest.approx(85.34, abs=.01)
    bias = estimate_bias(p, max_entropy=.5)
    assert torch.isfinite(bias.value).all()
    lowest = {VOC20[i] for i in estimate_bias(p, max_entropy=3.).value.argsort()[:7].tolist()}
    assert lowest == {"person", "tv monitor", "dining table", "sofa", "chair", "bottle", "potted plant"}
    unclamped = (p/bias.value).numpy()
    assert np.allclose(average_precision(z["labels"] == 1, unclamped), average_precision(z["labels"] == 1, p), atol=.01)
    assert (debias(p, bias.value, 1e-4) <= 1).all()


def test_calibration_mends_the_labels_of_real_clip_scores():
    z = np.load(DATA/"scores"/"voc12_train_clip_rn50x64.npz")
    p, local = (torch.tensor(100*z[k], dtype=torch.float32).softmax(-1) for k in ("global_cosine", "local_max_cosine"))
    c = estimate_calibration(p)
    soft = [calibrate(x, c) for x in (p, local)]
    final = smooth(update(*soft, .4), *soft, neighbours=10)
    assert mean_ap(z["labels"] == 1, update(p, local, .4)) == pytest.approx(88.63, abs=.02)
    assert mean_ap(z["labels"] == 1, final) >= 90.2
