"What broken files and numbers that mean nothing do: one line that names the cause, and nothing of them is kept."
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ccd import student as student_module
from ccd import weights
from ccd.cache import Cache, cache_contents
from ccd.core import CCDError, InUse, locked
from ccd.data import list_photos
from ccd.scorer import cached_views
from ccd.settings import StudentSettings, TrainSettings, settings
from ccd.student import create_student
from ccd.training import Trainer

CLASSES = ["dog", "cat"]


@pytest.fixture(scope="module")
def student(): return create_student(StudentSettings("torchvision/resnet18", "random", 32), CLASSES)


@pytest.fixture
def few(tmp_path):
    (tmp_path/"photos").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path/"photos"/f"{i}.png")
    return list_photos(tmp_path/"photos")


# --- the teacher and its cache

class Projection:
    "A random projection; broken, it gives NaN for every second view."
    name, fingerprint, size, stride, precision = "projection", "b"*64, 8, 8, "auto"

    def __init__(self, broken): self.broken, self.w = broken, torch.randn(192, 16, generator=torch.Generator().manual_seed(0))

    def embed_pixels(self, x):
        e = torch.nn.functional.normalize(x.flatten(1).float() @ self.w, dim=-1)
        if self.broken: e[1::2] = math.nan
        return e


@pytest.mark.parametrize("cached", [False, True])
def test_a_broken_teacher_is_named_and_leaves_nothing_behind(few, tmp_path, cached):
    cache = Cache(tmp_path/"cache", seconds=0) if cached else None
    with pytest.raises(CCDError, match="teacher projection gives embeddings that are not finite"):
        cached_views(Projection(True), few, cache=cache)
    if cached: assert cache_contents(cache) == []
    assert torch.isfinite(cached_views(Projection(False), few, cache=cache)).all()


# --- training

def trainer(student, few): return Trainer(student, few, TrainSettings(epochs=1, batch=4))


def test_labels_that_are_not_finite_are_said_to_be_it(student, few):
    with pytest.raises(CCDError, match="the labels are not finite in epoch 1"):
        trainer(student, few).epoch(torch.full((4, 2), math.nan))


def test_weights_that_explode_in_the_last_step_are_not_kept(few, monkeypatch):
    fresh = create_student(StudentSettings("torchvision/resnet18", "random", 32), CLASSES)
    t = trainer(fresh, few)
    monkeypatch.setattr(t.optimizer, "step", lambda: fresh.head.weight.data.fill_(math.inf))
    with pytest.raises(CCDError, match="head.weight is not finite after epoch 1: lower train.lr"): t.epoch(torch.zeros(4, 2))


@pytest.mark.parametrize("name", ["train__consistency", "train__lr", "views__per_image", "views__offset", "student__boost"])
@pytest.mark.parametrize("value", ["inf", "nan", math.inf])
def test_settings_are_finite(name, value):
    with pytest.raises(CCDError, match=f"setting {name.replace('__', '.')} = .*finite"): settings(**{name: value})


def test_a_path_has_one_writer(tmp_path):
    with locked(tmp_path/"rows.json"):
        with pytest.raises(InUse, match="rows.json is being written by another process: wait for it, or give another --out"):
            with locked(tmp_path/"rows.json"): pass
    with locked(tmp_path/"rows.json"): pass


def test_a_loss_that_is_not_finite_names_what_to_lower(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path/"a.png")
    student = create_student(StudentSettings(backbone="tf_efficientnet_lite0", weights="random", size=64), ["a", "b"])
    trainer = Trainer(student, list_photos(tmp_path), TrainSettings(freeze_norm=True), loss=lambda logits, y, index: logits.sum()*math.inf)
    with pytest.raises(CCDError, match=r"the loss is (inf|nan|-inf) in epoch 1: lower train.lr .1e-05. or train.head_lr .1e-05."):
        trainer.epoch(torch.zeros(1, 2))


def test_weights_of_another_version_do_not_fit(monkeypatch):
    monkeypatch.setattr(weights.torch, "load", lambda *a, **kw: {"a": torch.zeros(1)})
    with pytest.raises(CCDError, match="does not fit timm's tf_efficientnet_lite0: install the timm version"):
        weights.lite_state("tf_efficientnet_lite0")


def test_weights_that_cannot_be_fetched_are_said_with_the_mend(monkeypatch):
    def silent(load): raise OSError("no route")
    monkeypatch.setattr(student_module, "from_hub", silent)
    with pytest.raises(CCDError, match="the ImageNet weights of resnet18 could not be fetched .OSError.: "):
        student_module.backbone_weights("resnet18", "imagenet")
