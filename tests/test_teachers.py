"Genuine open_clip architectures with random weights: open_clip's own embeddings, and at other input sizes those of a plain reference."
import copy
import json
import math
import socket
import time

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from ccd import clip
from ccd.classes import read_classes
from ccd.clip import OpenClipTeacher, resize_positions, resize_tower
from ccd.core import CCDError
from ccd.data import list_photos, read_views
from ccd.scorer import Scorer
from ccd.settings import settings
from ccd.teacher import embed_classes, region_features

TEXT = dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=1)
# Real image towers; text towers are cut to a layer. RN50x64 keeps its width, its 4096-wide attention pool and its 14×14 grid, but has one
# block a stage in place of 3, 15, 36, 10: its keys and shapes are checked at full depth on the meta device below.
CUT = {"RN50x64": dict(layers=[1, 1, 1, 1])}


def save_real(name, folder):
    "The model `name`, random, as a folder that local-dir: reads."
    cfg = copy.deepcopy(open_clip.get_model_config(name))
    cfg["vision_cfg"].update(CUT.get(name, {}))
    cfg["text_cfg"] = TEXT | {k: v for k, v in cfg["text_cfg"].items() if k in ("pool_type", "no_causal_mask", "proj_bias")}
    if name == "ViT-B-16-SigLIP": cfg["custom_text"] = True
    torch.manual_seed(0)
    make = open_clip.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.CLIP
    model = make(**cfg).eval()
    for k, w in model.visual.named_parameters():  # open_clip starts some weights at zero, which would hide mistakes
        if k.endswith("bn3.weight"): torch.nn.init.normal_(w, .5, .1)
    if name.startswith("RN"):  # positions as large as the features, and attention not all on one of them: a wrong position shows
        v, x = model.visual, torch.rand(1, 3, 64, 64)
        with torch.no_grad(): size = v.layer4(v.layer3(v.layer2(v.layer1(v.stem(x))))).std()
        v.attnpool.positional_embedding.data.normal_(0, size)
        v.attnpool.q_proj.weight.data *= 4/size**2
    save_file(model.state_dict(), folder/"open_clip_model.safetensors")
    custom = dict(custom_text=True) if make is open_clip.CustomTextCLIP else {}
    pre = dict(mean=[.48, .46, .41], std=[.27, .26, .28], size=cfg["vision_cfg"]["image_size"])
    (folder/"open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg | custom, preprocess_cfg=pre)))
    return model, pre


@pytest.fixture(scope="module", params=["RN50", "RN50x4", "RN50x64", "ViT-B-32", "ViT-B-16-SigLIP"])
def real(request, tmp_path_factory):
    "Name, open_clip's model, its preprocessing, and our teacher at the size it was trained at."
    folder = tmp_path_factory.mktemp("real")
    model, pre = save_real(request.param, folder)
    teacher = OpenClipTeacher(f"local-dir:{folder}", precision="fp32")
    (folder/"open_clip_model.safetensors").unlink()
    return request.param, model, pre, teacher


def pixels(h, w=None, n=1): return torch.randint(0, 256, (n, 3, h, w or h), dtype=torch.uint8, generator=torch.Generator().manual_seed(h))
def normalised(x, pre): return (x/255 - torch.tensor(pre["mean"])[:, None, None])/torch.tensor(pre["std"])[:, None, None]
def unit(x): return x/x.norm(dim=-1, keepdim=True)


# --- the reference: plain loops, written from the definitions


def cubic(d):
    d = abs(d)
    if d <= 1: return 1.5*d**3 - 2.5*d**2 + 1
    return -.5*d**3 + 2.5*d**2 - 4*d + 2 if d < 2 else 0.


def interpolate(old, new):
    "Weights [new, old] of a bicubic interpolation between the centres of `old` and `new` cells, widened where it shrinks."
    scale, rows = old/new, torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        for j in range(old): rows[i, j] = cubic(((i + .5)*scale - (j + .5))/max(1., scale))
    return rows/rows.sum(1, keepdim=True)


def positions(pos, h, w):
    g = math.isqrt(len(pos) - 1)
    spatial = pos[1:].double().view(g, g, -1)
    return torch.cat([pos[:1].double(), torch.einsum("ai,bj,ijd->abd", interpolate(g, h), interpolate(g, w), spatial).reshape(h*w, -1)])


def attention_pool(pool, x):
    "One query, the mean position, over all positions: head by head, in float64."
    lin = lambda m, v: v @ m.weight.double().T + m.bias.double()
    out = []
    for f in x.double():
        t = f.flatten(1).T
        t = torch.cat([t.mean(0, keepdim=True), t]) + positions(pool.positional_embedding, *f.shape[1:])
        q, k, v = lin(pool.q_proj, t[:1])[0], lin(pool.k_proj, t), lin(pool.v_proj, t)
        d, heads = len(q)//pool.num_heads, []
        for n in range(pool.num_heads):
            s = slice(n*d, n*d + d)
            heads.append((k[:, s] @ q[s]/math.sqrt(d)).softmax(0) @ v[:, s])
        out.append(lin(pool.c_proj, torch.cat(heads)))
    return torch.stack(out)


@torch.no_grad()
def resnet(visual, x):
    for stage in (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4): x = stage(x)
    right = unit(attention_pool(visual.attnpool, x))
    wrong = copy.deepcopy(visual.attnpool)
    wrong.positional_embedding[1:] = wrong.positional_embedding[1:].flip(0)
    assert (unit(attention_pool(wrong, x)) - right).abs().max() > 1e-4, "this check could not tell a wrong position"
    return right


@torch.no_grad()
def transformer(visual, x):
    "open_clip's own ViT after the reference has set its positional embedding."
    visual = copy.deepcopy(visual)
    p = visual.patch_size[0]
    visual.positional_embedding = torch.nn.Parameter(positions(visual.positional_embedding, x.shape[2]//p, x.shape[3]//p).float())
    return unit(visual(x))


@torch.no_grad()
def siglip(visual, x):
    "timm's ViT, with patches and positions put together here; it has no class position."
    t = copy.deepcopy(visual.trunk)
    p, g = 16, math.isqrt(t.pos_embed.shape[1])
    patches = torch.nn.functional.conv2d(x, t.patch_embed.proj.weight, t.patch_embed.proj.bias, stride=p)
    h, w = patches.shape[2:]
    pos = torch.einsum("ai,bj,ijd->abd", interpolate(g, h), interpolate(g, w), t.pos_embed[0].double().view(g, g, -1))
    y = patches.flatten(2).transpose(1, 2) + pos.reshape(h*w, -1).float()
    for block in t.blocks: y = block(y)
    return unit(t.forward_head(t.norm(y)))


@torch.no_grad()
def values(name, visual, x):
    "[positions, D] of a transformer's map: what enters its last attention, and from there the value path by its definition."
    seen, block = [], visual.trunk.attn_pool if "SigLIP" in name else visual.transformer.resblocks[-1]
    hook = block.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double()))
    visual(x)
    hook.remove()
    block, y = copy.deepcopy(block).double(), seen[0]
    if "SigLIP" in name:
        y = block.proj(block.kv(y).chunk(2, -1)[1])
        return y + block.mlp(block.norm(y))
    weight, bias = (w.chunk(3)[2] for w in (block.attn.in_proj_weight, block.attn.in_proj_bias))
    y = y[1:] + block.attn.out_proj(block.ln_1(y[1:]) @ weight.T + bias)
    return copy.deepcopy(visual.ln_post).double()(y + block.mlp(block.ln_2(y))) @ visual.proj.double()


def reference(name, visual, x):
    if name.startswith("RN"): return resnet(visual, x)
    return siglip(visual, x) if "SigLIP" in name else transformer(visual, x)


def shapes(name, native):  # the third is a crop that keeps its aspect
    if name == "RN50x64": return [(640, 640), (256, 640)]
    if name.startswith("RN"): return [(640, 640), (224, 384)]
    return [(native + 96, native + 96), (native - 64, native)]


def test_at_the_native_size_embeddings_are_open_clips_own(real):
    name, model, pre, teacher = real
    x = pixels(pre["size"])
    with torch.no_grad(): want = model.encode_image(normalised(x, pre), normalize=True)
    assert teacher.size == pre["size"] and (teacher.embed_pixels(x) - want).abs().max() <= 1e-5
    tokens = open_clip.SimpleTokenizer()(["a photo of the dog", "a photo of the cat"])
    with torch.no_grad(): want = model.encode_text(tokens, normalize=True)
    assert (teacher.embed_text(["a photo of the dog", "a photo of the cat"]) - want).abs().max() <= 1e-5
    assert teacher.temperature == pytest.approx(1/model.logit_scale.exp().item(), rel=1e-6)
    assert teacher.logit_bias == (-10 if "SigLIP" in name else None)


def test_at_other_sizes_and_aspects_they_are_the_references(real):
    name, model, pre, teacher = real
    for h, w in shapes(name, pre["size"]):
        x = pixels(h, w)
        got, want = teacher.embed_pixels(x), reference(name, model.visual, normalised(x, pre))
        assert (got - want).abs().max() <= 1e-5, (h, w)


def test_positions_of_every_input_start_from_the_trained_ones(real):
    name, model, pre, teacher = real
    x = pixels(pre["size"])
    before = teacher.embed_pixels(x)
    for h, w in shapes(name, pre["size"])[-1:]: teacher.embed_pixels(pixels(h, w))
    assert torch.equal(teacher.embed_pixels(x), before)


def test_a_view_cut_from_the_feature_map(real):
    name, model, pre, teacher = real
    size, whole = pre["size"], torch.tensor([[0., 0., 1., 1.]])
    x = pixels(size)
    if not name.startswith("RN"):
        got, y = teacher.embed_rois(x, whole, torch.tensor([0])), values(name, model.visual, normalised(x, pre))
        assert (got - unit(y.mean(0).float())).abs().max() <= 1e-5
        return
    teacher.split = 5  # all stages but the pool: RoIAlign of the whole map, two samples a cell, blurs a little and moves nothing
    got, want = teacher.embed_rois(x, whole, torch.tensor([0])), teacher.embed_pixels(x)
    del teacher.split
    assert (got*want).sum() > .99
    two = teacher.embed_rois(pixels(size, size + 64), torch.tensor([[0., 0., .5, 1.], [.1, .2, .9, .4]]), torch.tensor([0, 0]))
    assert two.shape == (2, got.shape[1])


# --- every other name: keys, shapes and grids on the meta device


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"])
def test_towers_of_any_shape_share_their_weights(name):
    cfg = open_clip.get_model_config(name)
    with torch.device("meta"): visual = open_clip.CLIP(**cfg | dict(text_cfg=TEXT)).visual
    for h, w in ((640, 640), (320, 640), (cfg["vision_cfg"]["image_size"],)*2):
        tower = resize_tower(visual, h, w)
        theirs, ours = dict(visual.named_parameters()), dict(tower.named_parameters())
        assert theirs.keys() == ours.keys() and [k for k in ours if ours[k] is not theirs[k]] == ["attnpool.positional_embedding"]
        assert ours["attnpool.positional_embedding"].shape == (1 + h//32*(w//32), visual.attnpool.c_proj.in_features)
        assert tower(torch.zeros(1, 3, h, w, device="meta")).shape == (1, cfg["embed_dim"])


OTHERS = ["ViT-L-14", "ViT-B-16-SigLIP2", "ViT-B-16-SigLIP-384", "ViT-L-14-CLIPA", "coca_ViT-B-32", "convnext_base_w", "EVA02-B-16"]


@pytest.mark.parametrize("name", OTHERS)
def test_towers_of_transformers_and_convnext_take_any_shape(name):
    cfg = open_clip.get_model_config(name)
    if "timm_model_name" not in cfg["vision_cfg"]: cfg["vision_cfg"]["layers"] = 1
    torch.manual_seed(0)
    visual = open_clip.model._build_vision_tower(cfg["embed_dim"], cfg["vision_cfg"]).eval()
    if hasattr(visual, "trunk"):
        for part in ("blocks", "stages"):
            if hasattr(visual.trunk, part) and "convnext" not in name: setattr(visual.trunk, part, getattr(visual.trunk, part)[:1])
    for h, w in ((224, 224), (112, 224)):
        with torch.no_grad(): y = resize_tower(visual, h, w)(torch.rand(1, 3, h, w))
        assert (y[0] if isinstance(y, tuple) else y).shape == (1, cfg["embed_dim"])


def test_positions_of_the_trained_grid_are_untouched():
    pos = torch.randn(1 + 49, 8)
    assert torch.equal(resize_positions(pos, (7, 7)), pos)
    assert (resize_positions(pos, (20, 9)) - positions(pos, 20, 9)).abs().max() < 1e-5
    assert (resize_positions(pos, (3, 5)) - positions(pos, 3, 5)).abs().max() < 1e-5


# --- scores and settings


def test_a_fingerprint_knows_the_weights_and_nothing_else(tmp_path):
    cfg = dict(embed_dim=32, vision_cfg=dict(image_size=64, layers=[1, 1, 1, 1], width=8, head_width=32), text_cfg=TEXT)

    def save(folder, seed):
        torch.manual_seed(seed)
        folder.mkdir()
        save_file(open_clip.CLIP(**cfg).state_dict(), folder/"open_clip_model.safetensors")
        (folder/"open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg=dict(size=64))))
        return f"local-dir:{folder}"
    a, moved, other = save(tmp_path/"a", 0), save(tmp_path/"b", 0), save(tmp_path/"c", 1)
    of = lambda name, **kw: OpenClipTeacher(name, **kw).fingerprint
    assert of(a) == of(moved) == of(a, size=96) == of(a, precision="bf16") != of(other)


def test_sigmoid_is_refused_where_the_teacher_has_no_bias(clip_folder):
    teacher, s = OpenClipTeacher(f"local-dir:{clip_folder}"), settings("paper", teacher__score="sigmoid")
    with pytest.raises(CCDError, match="teacher.score sigmoid"): Scorer(teacher, ["dog", "cat"], s)


@torch.no_grad()
def test_siglips_scores_are_its_own(real, photos):
    name, model, pre, teacher = real
    if "SigLIP" not in name: return
    p, classes = list_photos(photos).take(range(2)), ["dog", "cat", "person"]
    whole = torch.tensor([[0., 0., 1., 1.]])
    x = torch.stack([torch.from_numpy(read_views(p.open(i), whole, pre["size"])[0]).permute(2, 0, 1) for i in range(2)])
    tokens = open_clip.SimpleTokenizer()([f"a photo of the {c}" for c in classes])
    want = model.get_logits(normalised(x, pre), tokens)[0]
    for score, f in (("sigmoid", torch.sigmoid), ("softmax", lambda z: z.softmax(-1))):
        got = Scorer(teacher, classes, settings("paper", teacher__score=score)).probabilities(p)
        assert torch.allclose(got, f(want), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_changes_little(clip_folder, precision):
    x = pixels(64, n=4)
    full, half = (OpenClipTeacher(f"local-dir:{clip_folder}", precision=p).embed_pixels(x) for p in ("fp32", precision))
    assert 0 < (full - half).abs().max() < 5e-2 and half.dtype == torch.float32


def test_an_ensemble_is_the_normalised_mean_of_its_prompts(clip_folder):
    teacher = OpenClipTeacher(f"local-dir:{clip_folder}")
    got = embed_classes(teacher, read_classes("dog, tvmonitor: tv monitor | television"), "a photo of the {} | a {}")
    for row, phrases in zip(got, (["dog"], ["tv monitor", "television"])):
        each = [unit(teacher.embed_text([t.format(p)]))[0] for p in phrases for t in ("a photo of the {}", "a {}")]
        assert torch.allclose(row, unit(sum(each)/len(each)), atol=1e-6)


def test_regions_are_sampled_where_their_boxes_are():
    "A map that holds its own coordinates: each region's mean is its centre."
    h, w = 12, 18
    y, x = torch.meshgrid((torch.arange(h) + .5)/h, (torch.arange(w) + .5)/w, indexing="ij")
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    boxes = torch.tensor([[.2, .1, .6, .9], [.5, .5, .9, .7], [.1, .1, .3, .3]])
    got = region_features([pool], 0, torch.stack([x, y])[None], boxes, torch.zeros(3), size=8)
    assert torch.allclose(got, (boxes[:, :2] + boxes[:, 2:])/2, atol=1e-3)


@pytest.mark.parametrize("name", ["hf-hub:org/none", "RN50/openai", "ViT-B-16-SigLIP/webli"])
@pytest.mark.parametrize("network", ["refuses", "is silent"])
def test_a_hub_that_is_silent_is_said_soon(monkeypatch, name, network):
    def connect(self, address):
        if network == "is silent": time.sleep(60)
        raise OSError("no network")
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **kw: connect(None, a))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(CCDError, match="is not on this machine, and the hub does not give it"): OpenClipTeacher(name)
    assert time.monotonic() - start < 5


def test_a_size_that_a_tower_cannot_take_is_said(monkeypatch, clip_folder):
    "Whatever the reason: no text of a library, but the size and what to set."
    teacher = OpenClipTeacher(f"local-dir:{clip_folder}")
    def cannot(*a): raise RuntimeError("weight of size [64, 64]")
    monkeypatch.setattr(clip, "resize_tower", cannot)
    with pytest.raises(CCDError, match="cannot take 96×64 px .RuntimeError.: try views.mode squash, or another teacher.size"):
        teacher.embed_pixels(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
