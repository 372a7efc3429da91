"What stands where: maps of every kind of tower against plain loops, small and with random weights; and labels that come of them."
import copy
import json
import math

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from test_teachers import attention_pool, normalised, pixels, positions, unit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from ccd.benchmarks import read_benchmark
from ccd.clip import OpenClipTeacher, dense_map, map_kind
from ccd.core import CCDError
from ccd.data import Views, list_photos
from ccd.discriminant import region_views
from ccd.models import load
from ccd.regions import fit_regions
from ccd.run import fit
from ccd.scorer import Scorer
from ccd.teacher import embed_views

TEXT = dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=1)
PRE = dict(mean=[.48, .46, .41], std=[.27, .26, .28], size=64)
SMALL = dict(img_size=64, patch_size=16, embed_dim=64, depth=3, num_heads=4)


def register(name, kind, **how):
    "A small transformer that timm, and so open_clip, can make by name."
    def make(pretrained=False, **kw):
        trunk = kind(**SMALL, **how, **{k: v for k, v in kw.items() if k in ("num_classes", "global_pool")})
        trunk.default_cfg = {}
        return trunk
    make.__name__ = name
    timm.models.register_model(make)


register("tiny_siglip", VisionTransformer, class_token=False)
register("tiny_average", VisionTransformer, reg_tokens=2)
register("tiny_eva", Eva, use_rot_pos_emb=True, swiglu_mlp=True, scale_mlp=True)
register("tiny_pe", Eva, use_rot_pos_emb=True, use_pre_transformer_norm=True, attn_pool_num_heads=4)


OWN = dict(image_size=64, layers=3, width=64, head_width=16, patch_size=16)
CUSTOM = dict(block_type="custom", qk_norm=True, scale_heads=True, scale_attn_inner=True, scale_attn=True, scale_fc=True)
MAP = dict(image_size=64, timm_pool="map", timm_proj="none")
TOWERS = dict(  # kind: vision_cfg
    vit=("block", OWN | dict(ls_init_value=.5, patch_dropout=.5)),
    quick=("block", OWN | dict(quick_gelu=True, no_ln_pre=True, pool_type="avg", final_ln_after_pool=True)),
    custom=("block", OWN | CUSTOM),
    coca=("pool", OWN | dict(attentional_pool=True, attn_pooler_heads=4, attn_pooler_queries=5)),
    siglip=("pool", MAP | dict(timm_model_name="tiny_siglip")),
    average=("block", dict(image_size=64, timm_model_name="tiny_average", timm_pool="avg", timm_proj=None)),
    eva=("block", dict(image_size=64, timm_model_name="tiny_eva", timm_pool="token", timm_proj="linear")),
    pe=("pool", MAP | dict(timm_model_name="tiny_pe")),
    convnext=("convnext", dict(image_size=64, timm_model_name="test_convnext", timm_pool="", timm_proj="mlp")),
    resnet=("resnet", dict(image_size=64, layers=[1, 1, 1, 1], width=16, head_width=32)))
SHAPES = [(64, 64), (48, 112), (96, 32), (128, 128)]  # of training, landscape, portrait, larger
BOXES = torch.tensor([[0, 0, 1, 1], [0, 0, .5, 1], [.13, .41, .58, .77],  # and at the border, narrower than a position
                      [0, 0, .07, .05], [.93, .9, 1, 1], [0, .3, 1, .33], [.6, 0, 1, .4]])


def save_small(name, folder, seed=0):
    "A model with the tower `name`, as a folder that local-dir: reads; no weight begins at zero or one, or too small to tell."
    vision = TOWERS[name][1]
    quick = vision.get("quick_gelu", False)
    cfg = dict(embed_dim=64, vision_cfg={k: v for k, v in vision.items() if k != "quick_gelu"}, text_cfg=TEXT, quick_gelu=quick)
    if name in ("siglip", "pe"): cfg |= dict(init_logit_bias=-10)
    torch.manual_seed(seed)
    model = (open_clip.CustomTextCLIP if "init_logit_bias" in cfg else open_clip.CLIP)(**cfg).eval()
    for p in model.visual.parameters():
        if p.ndim == 1: p.data += .2*torch.randn_like(p)
        elif p.std() < .1: torch.nn.init.normal_(p, std=.15)
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder/"open_clip_model.safetensors")
    custom = dict(custom_text=True) if "init_logit_bias" in cfg else {}
    (folder/"open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg | custom, preprocess_cfg=PRE)))
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {k: save_small(k, root/k) for k in TOWERS}


@pytest.fixture(params=TOWERS)
def teacher(request, folders): return OpenClipTeacher(folders[request.param], precision="fp32")


@pytest.fixture(params=[k for k in TOWERS if TOWERS[k][0] in ("block", "pool")])
def transformer(request, folders): return request.param, OpenClipTeacher(folders[request.param], precision="fp32")


# --- the reference, from the definitions


def sample(m, y, x):
    "The map [D, h, w] at a place between its positions; beyond the outermost it stays as it is."
    out, (h, w) = 0, m.shape[1:]
    y, x = min(max(y, 0.), h - 1.), min(max(x, 0.), w - 1.)
    for i in (math.floor(y), math.ceil(y)) if y % 1 else (int(y),):
        for j in (math.floor(x), math.ceil(x)) if x % 1 else (int(x),): out = out + m[:, i, j]*(1 - abs(y - i))*(1 - abs(x - j))
    return out


def region(m, box, grid=1, samples=None):
    "[D, grid, grid]: the mean of the samples in each cell of a box of the map; by default one a position."
    (h, w), out = m.shape[1:], m.new_zeros(len(m), grid, grid)
    x0, y0, x1, y1 = (float(v*n) for v, n in zip(box, (w, h, w, h)))
    rows, columns = (samples or math.ceil((b - a)/grid) for a, b in ((y0, y1), (x0, x1)))
    for i in range(grid):
        for j in range(grid):
            for r in range(rows):
                for c in range(columns):
                    y, x = y0 + (y1 - y0)*(i + (r + .5)/rows)/grid, x0 + (x1 - x0)*(j + (c + .5)/columns)/grid
                    out[:, i, j] += sample(m, y - .5, x - .5)/(rows*columns)
    return out


def normed(m, t): return (t - t.mean())/(t.var(correction=0) + m.eps).sqrt()*m.weight + m.bias


def attention(tokens, weight, bias, heads, out, alone):
    "Head by head, token by token; `alone` = each sees itself only."
    q, k, v = (torch.stack([w @ t + b for t in tokens]) for w, b in zip(weight.chunk(3), bias.chunk(3)))
    d, got = q.shape[1]//heads, []
    for i in range(len(tokens)):
        parts = []
        for n in range(heads):
            s = slice(n*d, n*d + d)
            parts.append(v[i, s] if alone else (k[:, s] @ q[i, s]/math.sqrt(d)).softmax(0) @ v[:, s])
        got.append(out(torch.cat(parts)))
    return got


def vit_map(v, x):
    "CLIP's own vision transformer: patches, class token, positions, blocks; the last block by its value path."
    v, x = copy.deepcopy(v).double(), x.double()
    p, (h, w) = v.patch_size[0], (n//v.patch_size[0] for n in x.shape[1:])
    patches = [(v.conv1.weight*x[:, i*p:i*p+p, j*p:j*p+p]).sum((1, 2, 3)) for i in range(h) for j in range(w)]
    tokens = [t + place for t, place in zip([v.class_embedding, *patches], positions(v.positional_embedding, h, w))]
    if not isinstance(v.ln_pre, torch.nn.Identity): tokens = [normed(v.ln_pre, t) for t in tokens]
    for block in v.transformer.resblocks:
        last, a = block is v.transformer.resblocks[-1], block.attn
        seen = attention([normed(block.ln_1, t) for t in tokens], a.in_proj_weight, a.in_proj_bias, a.num_heads, a.out_proj, last)
        tokens = [t + block.ls_1(y) for t, y in zip(tokens, seen)]
        tokens = [t + block.ls_2(block.mlp(normed(block.ln_2, t))) for t in tokens]
    return torch.stack([normed(v.ln_post, t) @ v.proj for t in tokens[1:]], 1).view(-1, h, w)


def siglip_map(v, x):
    "SigLIP's: no class token, ordinary blocks, and the value path of its attention pool."
    t, x = copy.deepcopy(v.trunk).double(), x.double()
    p, (h, w) = 16, (n//16 for n in x.shape[1:])
    conv, around = t.patch_embed.proj, torch.cat([torch.zeros(1, 64), t.pos_embed[0]])  # `positions` wants a class token
    patches = [(conv.weight*x[:, i*p:i*p+p, j*p:j*p+p]).sum((1, 2, 3)) + conv.bias for i in range(h) for j in range(w)]
    tokens = [a + b for a, b in zip(patches, positions(around, h, w)[1:])]
    for block in t.blocks:
        a = block.attn
        seen = attention([normed(block.norm1, y) for y in tokens], a.qkv.weight, a.qkv.bias, a.num_heads, a.proj, False)
        tokens = [y + s for y, s in zip(tokens, seen)]
        tokens = [y + block.mlp(normed(block.norm2, y)) for y in tokens]
    value = slice(64, 128)  # after the key
    out = []
    for y in tokens:
        y = t.attn_pool.proj(t.attn_pool.kv.weight[value] @ normed(t.norm, y) + t.attn_pool.kv.bias[value])
        out.append(y + t.attn_pool.mlp(normed(t.attn_pool.norm, y)))
    return torch.stack(out, 1).view(-1, h, w)


LOOPS = dict(vit=vit_map, quick=vit_map, siglip=siglip_map)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOOPS)
def test_regions_of_transformers_are_those_of_plain_loops(folders, name, shape):
    teacher, x = OpenClipTeacher(folders[name], precision="fp32"), pixels(*shape, n=2)
    index = torch.arange(2).repeat_interleave(len(BOXES))
    got = teacher.embed_regions(x, BOXES.repeat(2, 1), index)
    maps = [LOOPS[name](teacher.native, one) for one in normalised(x, PRE)]
    for f, box, i in zip(got, BOXES.repeat(2, 1), index): assert (f - unit(region(maps[i], box)[:, 0, 0])).abs().max() < 2e-5, box
    assert unit(maps[0].flatten(1)).std(1).mean() > 1e-3  # places differ, or this could not tell them apart
    assert torch.equal(teacher.embed_rois(x, BOXES, index[:len(BOXES)]), got[:len(BOXES)])


@torch.no_grad()
@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (160, 96)])
def test_regions_of_a_resnet_go_through_its_attention_pool(folders, shape):
    teacher, x = OpenClipTeacher(folders["resnet"], precision="fp32"), pixels(*shape, n=2)
    v, y = teacher.native, normalised(x, PRE)
    for stage in (v.stem, v.layer1, v.layer2, v.layer3, v.layer4): y = stage(y)
    for i, m in enumerate(y.double()):
        got = teacher.embed_regions(x, BOXES, torch.full((len(BOXES),), i))
        want = torch.stack([region(m, box, grid=2, samples=2) for box in BOXES])  # 64 px are two positions of 32
        assert (got - unit(attention_pool(v.attnpool, want))).abs().max() < 2e-5


@torch.no_grad()
@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (160, 96)])
def test_regions_of_a_convnext_go_through_its_head(folders, shape):
    teacher, x = OpenClipTeacher(folders["convnext"], precision="fp32"), pixels(*shape)
    v, index = teacher.native, torch.zeros(len(BOXES), dtype=torch.long)
    m = v.trunk.forward_features(normalised(x, PRE))[0]
    got = teacher.embed_regions(x, BOXES, index)
    want = torch.cat([v.head(v.trunk.head(region(m, box)[None])) for box in BOXES])
    assert (got - unit(want)).abs().max() < 2e-5
    assert (got[:1] - teacher.embed_pixels(x)).abs().max() < 1e-5  # the whole is the whole


# --- without the loops


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_where_all_tokens_are_alike_every_place_is_the_whole(transformer, shape):
    "Attention has no choice then, whatever its weights; its own class token is made alike too."
    name, teacher = transformer
    v, colour = teacher.native, torch.tensor([90, 160, 40], dtype=torch.uint8)
    x = colour[:, None, None].expand(1, 3, 64, 64)
    if hasattr(v, "trunk"):
        t = v.trunk
        one = t.patch_embed(normalised(x, PRE)).flatten(1, -2)[0, 0]
        t.pos_embed.zero_()
        for extra in (t.cls_token, t.reg_token):
            if extra is not None: extra.copy_(one.expand_as(extra))
    else:
        v.positional_embedding.zero_()
        v.class_embedding.copy_(v.conv1(normalised(x, PRE))[0, :, 0, 0])
    x = colour[:, None, None].expand(1, 3, *shape)
    want = teacher.embed_pixels(x)
    got = teacher.embed_regions(x, BOXES, torch.zeros(len(BOXES), dtype=torch.long))
    assert (got - want).abs().max() < 2e-5
    assert (teacher.embed_pixels(pixels(*shape)) - want).abs().max() > .01


def entered(part, run):
    "What enters a module during `run`."
    seen = []
    hook = part.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run()
    hook.remove()
    return seen[-1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "custom", "average", "eva"])
def test_a_mask_that_shows_each_position_itself_gives_the_same(folders, name):
    teacher, x = OpenClipTeacher(folders[name], precision="fp32"), normalised(pixels(48, 112), PRE)
    v = teacher._tower(x)
    timms, block = hasattr(v, "trunk"), v.trunk.blocks[-1] if hasattr(v, "trunk") else v.transformer.resblocks[-1]
    tokens = entered(block, lambda: v(x))
    n = tokens.shape[1]
    y = block(tokens, attn_mask=torch.full((n, n), -torch.inf).fill_diagonal_(0))[:, n - 21:]  # of 3 × 7 patches, after the other tokens
    y = v.head(v.trunk.head(v.trunk.fc_norm(v.trunk.norm(y)))) if timms else v.ln_post(y) @ v.proj
    assert (dense_map(v, x).flatten(2)[0].T - y[0]).abs().max() < 1e-4*y.abs().max()


@torch.no_grad()
def test_cocas_pool_gives_each_positions_value(folders):
    v = OpenClipTeacher(folders["coca"], precision="fp32").native
    x = normalised(pixels(64), PRE)
    pool = v.attn_pool
    y = pool.ln_k(entered(pool, lambda: v(x))[0, 1:])
    y = pool.attn.out_proj(y @ pool.attn.in_proj_weight[128:].T + pool.attn.in_proj_bias[128:])
    assert (dense_map(v, x).flatten(2)[0].T - v.ln_post(y) @ v.proj).abs().max() < 1e-5


def test_a_painted_square_is_felt_where_it_is(transformer):
    name, teacher = transformer
    x = pixels(96, 64)
    painted = x.clone()
    painted[:, :, 64:80, 16:32] = 255  # row 4, column 1 of 6 × 4
    places = torch.tensor([[c/4, r/6, (c + 1)/4, (r + 1)/6] for r in range(6) for c in range(4)])
    a, b = (teacher.embed_regions(y, places, torch.zeros(24, dtype=torch.long)) for y in (x, painted))
    assert (a - b).norm(dim=1).argmax() == 4*4 + 1


def test_photographs_do_not_see_each_other(teacher):
    x, index = pixels(64, 96, n=3), torch.tensor([2, 0, 1, 0, 2, 1, 0])
    got = teacher.embed_regions(x, BOXES, index)
    for f, box, i in zip(got, BOXES, index.tolist()):
        alone = teacher.embed_regions(x[i:i+1], box[None], torch.tensor([0]))[0]
        assert (f - alone).abs().max() < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["vit", "siglip", "eva", "coca", "convnext"])
def test_half_precision_changes_little(folders, name, precision):
    x, index = pixels(64, 96), torch.zeros(len(BOXES), dtype=torch.long)
    full, half = (OpenClipTeacher(folders[name], precision=p).embed_regions(x, BOXES, index) for p in ("fp32", precision))
    assert half.dtype == torch.float32 and 0 < (full - half).abs().max() and (full*half).sum(1).min() > .995


# --- who has a map


def test_kinds_of_the_small_towers(folders):
    for name, (kind, _) in TOWERS.items():
        teacher = OpenClipTeacher(folders[name])
        assert (map_kind(teacher.native), teacher.rois) == (kind, True), name


KINDS = dict(resnet=["RN50", "RN50x64"], convnext=["convnext_base_w", "convnext_large_d"],
             block=["ViT-B-32", "ViT-L-14-quickgelu", "ViT-L-14-CLIPA", "EVA02-B-16", "EVA01-g-14", "vit_medium_patch16_gap_256"],
             pool=["ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256", "PE-Core-T-16-384", "coca_ViT-B-32"])
KINDS[None] = ["ViTamin-S", "MobileCLIP-S1", "MobileCLIP-B", "swin_base_patch4_window7_224", "vit_relpos_medium_patch16_cls_224"]


@pytest.mark.parametrize("kind, name", [(k, n) for k, names in KINDS.items() for n in names])
def test_kinds_of_open_clips_towers(kind, name):
    cfg = open_clip.get_model_config(name)
    with torch.device("meta"): visual = open_clip.model._build_vision_tower(cfg["embed_dim"], cfg["vision_cfg"])
    assert map_kind(visual) == kind


def test_transformers_that_are_not_known_to_be_right_have_none():
    for change in (dict(pool_type="none"), dict(layers=1), dict(attentional_pool="parallel"), dict(attentional_pool="cascade")):
        assert map_kind(open_clip.model._build_vision_tower(64, OWN | change)) is None, change


def test_timms_that_are_not_known_to_be_right_have_none():
    make = lambda **kw: open_clip.model._build_vision_tower(64, MAP | kw)
    visual = make(timm_model_name="tiny_siglip")
    visual.trunk.attn_pool.pos_embed = torch.nn.Parameter(torch.zeros(16, 64))
    assert map_kind(visual) is None
    visual = make(timm_model_name="tiny_average", timm_pool="avg", timm_proj=None)
    assert map_kind(visual) == "block"
    visual.trunk.blocks = visual.trunk.blocks[:1]
    assert map_kind(visual) is None
    assert map_kind(make(timm_model_name="test_convnext", timm_pool="max", timm_proj=None)) is None
    assert map_kind(make(timm_model_name="test_convnext", timm_pool="avg", timm_proj=None)) == "convnext"


# --- as a source of labels


@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_a_discriminant_of_a_transformers_regions(folders, toy_root, small, ccd, tmp_path, name):
    train, test = (read_benchmark("toy", toy_root, split) for split in ("train", "test"))
    s = small(teacher__name=folders[name], teacher__size=64, teacher__score="softmax", views__roi_size=96, labels__source="both")
    texts = Scorer(OpenClipTeacher(folders[name], 64), train.classes, s)
    regions, learned = fit_regions(texts, train.photos, texts.embed(train.photos))
    assert learned.shape == (len(train), 14) and torch.isfinite(learned).all() and 0 <= learned.min() and learned.max() <= 1
    assert regions.features(train.photos, region_views(len(train))).shape == (39*len(train), 64)
    run = fit(train, out=tmp_path/"run", s=s, method="discriminant")
    p = regions.probabilities(test.photos)
    assert (load(run).probabilities(test.photos) - p).abs().max() < 1e-5
    code, _, _ = ccd("predict", run, test.photos.root, "--out", tmp_path/"tags.csv")
    assert code == 0 and len((tmp_path/"tags.csv").read_text().splitlines()) == len(train) + len(test) + 1  # of one folder


def test_a_discriminant_knows_its_teachers_weights(toy_root, small, ccd, tmp_path):
    train = read_benchmark("toy", toy_root, "train")
    teacher = save_small("vit", tmp_path/"teacher")
    run = fit(train, out=tmp_path/"run", s=small(teacher__name=teacher, teacher__size=64), method="discriminant")
    save_small("vit", tmp_path/"teacher", seed=1)
    with pytest.raises(CCDError, match="other weights of teacher"): load(run)


def test_a_view_cut_from_a_transformers_map(folders, photos):
    teacher, p = OpenClipTeacher(folders["siglip"]), list_photos(photos).take(range(3))
    views = Views(torch.arange(3).repeat_interleave(len(BOXES)), BOXES.repeat(3, 1))
    f = embed_views(teacher, p, views, mode="roi", roi_size=96)
    assert f.shape == (3*len(BOXES), 64) and (f.norm(dim=1) - 1).abs().max() < 1e-5
