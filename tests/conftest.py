import json
import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported: no test waits for a network

from ccd import core
from ccd.settings import settings
from ccd.toy import write_toy

hypothesis.settings.register_profile("short", max_examples=25, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("soak", max_examples=4000, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))
ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(student__size=64, views__size=64, views__per_image=2, train__epochs=3, train__warmup=1, student__freeze=5)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    "No test reads or writes the user's cache."
    os.environ["CCD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory):
    "A folder with VOCdevkit/VOCtoy: 20 train and 10 test scenes."
    root = tmp_path_factory.mktemp("toy")
    write_toy(root, dict(train=20, test=10), size=64)
    return root


@pytest.fixture(scope="session")
def photos(toy_root):
    return toy_root/"VOCdevkit"/"VOCtoy"/"JPEGImages"


TOWERS = dict(
    resnet=dict(layers=[1, 1, 1, 1], width=8, head_width=32), vit=dict(layers=2, width=64, head_width=32, patch_size=16),
    efficientnet=dict(timm_model_name="test_efficientnet", timm_pool="avg", timm_proj="linear"))  # it has no map


def save_clip(folder, tower, size):
    "A genuine open_clip model, small and random, saved as open_clip saves models."
    import open_clip
    from safetensors.torch import save_file
    torch.manual_seed(0)
    text = dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=1)
    cfg = dict(embed_dim=32, vision_cfg=dict(image_size=size, **TOWERS[tower]), text_cfg=text)
    save_file(open_clip.CLIP(**cfg).state_dict(), folder/"open_clip_model.safetensors")
    preprocess = dict(mean=[.5, .4, .3], std=[.2, .2, .3], size=size)
    (folder/"open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg=preprocess)))


@pytest.fixture(scope="session", params=["resnet", "vit"])
def clip_folder(request, tmp_path_factory):
    "A folder that `local-dir:` reads, one of a ResNet tower and one of a ViT."
    folder = tmp_path_factory.mktemp(request.param)
    save_clip(folder, request.param, 64)
    return folder


@pytest.fixture
def small():
    return lambda **kw: settings("toy", **SMALL | kw)


@pytest.fixture
def ccd(monkeypatch, capsys):
    "Run the command line in this process: exit code, standard output, lines of standard error."
    from ccd.cli import main

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["ccd", *map(str, args)])
        monkeypatch.setattr(core._Bar, "told", core.time.monotonic())  # as in a process of its own, whose first minute is silent
        with pytest.raises(SystemExit) as e: main()
        got = capsys.readouterr()
        return e.value.code or 0, got.out, got.err.strip().splitlines()
    return run
