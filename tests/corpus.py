"""Bad input, and what is stated to come of it. A case is a row: what it is, how it is made in the empty folder `m.tmp`, and the
outcome: words of the one line that refuses it, of the reason that it is left out for, or the value that it has all the same. The calls
are those that the commands make; a teacher is a small random CLIP, or none."""
import io
import json
import math
import os
import pickle
import shutil
import sys
from collections import namedtuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ccd.benchmarks import read_benchmark
from ccd.cache import BOX, Cache, _digest, cache_contents, view_keys
from ccd.classes import read_classes
from ccd.core import read_json
from ccd.data import list_photos, quarantine
from ccd.load_teacher import load_teacher
from ccd.run import read_source
from ccd.scorer import Scorer, cached_views
from ccd.settings import StudentSettings, TeacherSettings, TrainSettings, settings
from ccd.student import create_student, load_model, save_model
from ccd.teacher import embed_classes
from ccd.training import Trainer
from conftest import save_clip
from test_benchmarks import JSON, LABELS, NAMES, NOTE, SETS, SMALL, array, cut, empty, lose, swap

Case = namedtuple("Case", "kind what run outcome")  # the call in `run` gets a `Made`
LeftOut = namedtuple("LeftOut", "name words")       # the call gives reasons by name
Used = namedtuple("Used", "value")                  # the call gives this


class Made:
    "A folder for a case, what several cases start from, and a file that is there when somebody else's code has run."
    def __init__(self, tmp, common):
        self.tmp, self.common, self.ran = tmp, common, tmp/"RAN"

    def copy(self, name):
        "A copy of a folder of `common`."
        return shutil.copytree(self.common/name, self.tmp/name)

    def evil(self):
        "An object whose pickle runs a command."
        where = str(self.ran)
        class Evil:
            def __reduce__(self): return os.mkdir, (where,)
        return Evil()


def make_common(folder):
    "A sound teacher, model, and folder of five photographs."
    (folder/"clip").mkdir()
    save_clip(folder/"clip", "resnet", 64)
    save_model(create_student(StudentSettings("torchvision/resnet18", "random", 32), ["dog", "cat"]), folder/"model")
    (folder/"photos").mkdir()
    for i in range(5): picture(folder/"photos"/f"{i}.png", i)
    return folder


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path)


# --- teachers: a folder of open_clip's, a checkpoint, Python code that comes with them

def teach(name): return load_teacher(settings(teacher__name=str(name)).teacher)


def of_folder(harm):
    def run(m):
        folder = m.copy("clip")
        harm(m, folder)
        sys.stdin = io.StringIO("y\ny\n")  # whoever asks is told yes
        try: return teach(f"local-dir:{folder}").size
        finally: sys.stdin = sys.__stdin__
    return run


def config(change, part="model_cfg"):
    def harm(m, folder):
        file = folder/"open_clip_config.json"
        about = json.loads(file.read_text())
        change(about[part], folder)
        file.write_text(json.dumps(about))
    return of_folder(harm)


def text_of(**kw): return config(lambda c, folder: c["text_cfg"].update(kw))
def vision(**kw): return config(lambda c, folder: c["vision_cfg"].update(kw))
def words(text): return of_folder(lambda m, folder: (folder/"open_clip_config.json").write_bytes(text))
def weights(harm): return of_folder(lambda m, folder: harm(m, folder/"open_clip_model.safetensors"))


def tensors(change):
    def harm(m, file):
        state = load_file(file)
        change(state)
        save_file(state, file)
    return weights(harm)


def bringing_code(**kw):
    "A teacher whose folder is a transformers model with code of its own."
    def harm(m, folder):
        code = dict(AutoConfig="own.Own", AutoModel="own.Own", AutoTokenizer=["own.Own", None])
        (folder/"config.json").write_text(json.dumps(dict(model_type="own", auto_map=code)))
        (folder/"tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="Own", auto_map=code)))
        (folder/"own.py").write_text(f"import os\nos.mkdir({str(m.ran)!r})\nclass Own: pass\n")
        about = json.loads((folder/"open_clip_config.json").read_text())
        about["model_cfg"]["text_cfg"] |= {k: str(folder) if v is ... else v for k, v in kw.items()}
        (folder/"open_clip_config.json").write_text(json.dumps(about))
    return of_folder(harm)


def pickled(m, file):
    file.unlink()
    file.with_name("open_clip_pytorch_model.bin").write_bytes(pickle.dumps(m.evil()))


def put(state, **kw): state.update(kw)


CODE, WHOLE_ONE, NO_JSON = "code of its own, which is never run", "give a whole one, as open_clip saves it", "is not valid JSON"
TEACHER = {
    "a folder without a description": (of_folder(lambda m, folder: (folder/"open_clip_config.json").unlink()), "no open_clip_config.json"),
    "a model that brings code": (bringing_code(hf_model_name=..., hf_tokenizer_name=...), CODE),
    "a tokenizer that brings code": (bringing_code(hf_tokenizer_name=...), CODE),
    "a tokenizer that says it is trusted": (bringing_code(hf_tokenizer_name=..., tokenizer_kwargs=dict(trust_remote_code=True)), CODE),
    "text for a description": (words(b"text"), NO_JSON), "an empty description": (words(b""), NO_JSON),
    "brackets without end": (words(b"["*100_000), NO_JSON), "bytes for a description": (words(bytes(range(256))), NO_JSON),
    "null": (words(b"null"), "holds no JSON object"), "a list": (words(b"[]"), "holds no JSON object"),
    "no model": (words(b"{}"), "has no model_cfg"), "a number for a model": (words(b'{"model_cfg": 7}'), "has no model_cfg"),
    "no text tower": (config(lambda c, f: c.pop("text_cfg")), WHOLE_ONE), "no width": (config(lambda c, f: c.pop("embed_dim")), WHOLE_ONE),
    "a width that is text": (config(lambda c, f: c.update(embed_dim="a")), WHOLE_ONE),
    "a width below zero": (vision(width=-8), WHOLE_ONE), "another width": (config(lambda c, f: c.update(embed_dim=16)), WHOLE_ONE),
    "an unknown network": (vision(timm_model_name="resnet999"), WHOLE_ONE),
    "a network in a folder": (config(lambda c, f: c["vision_cfg"].update(timm_model_name=f"local-dir:{f}")), WHOLE_ONE),
    "a text model that is not here": (text_of(hf_model_name="org/none", hf_tokenizer_name="org/none"), "is not on this machine"),
    "a mean of two": (config(lambda c, f: c.update(mean=[.5, .5]), "preprocess_cfg"), "preprocess_cfg mean"),
    "a mean that is text": (config(lambda c, f: c.update(mean="a"), "preprocess_cfg"), "preprocess_cfg mean = 'a'"),
    "no spread": (config(lambda c, f: c.update(std=[0, 0, 0]), "preprocess_cfg"), "preprocess_cfg std = 0"),
    "a spread of NaN": (config(lambda c, f: c.update(std=[math.nan]*3), "preprocess_cfg"), "preprocess_cfg std = nan"),
    "weights cut short": (weights(lambda m, p: cut(p)), WHOLE_ONE), "empty weights": (weights(lambda m, p: empty(p)), WHOLE_ONE),
    "no weights": (weights(lambda m, p: p.unlink()), WHOLE_ONE), "a pickle for weights": (weights(pickled), WHOLE_ONE),
    "weights of another": (weights(lambda m, p: save_file({"a": torch.zeros(1)}, p)), WHOLE_ONE),
    "an infinite temperature": (tensors(lambda s: put(s, logit_scale=torch.tensor(-math.inf))), "logit_scale or logit_bias is not finite"),
    "no temperature": (tensors(lambda s: put(s, logit_scale=torch.tensor(math.inf))), "logit_scale or logit_bias is not finite"),
    "sound": (of_folder(lambda m, folder: None), Used(64)),
}


def checkpoint(data, name="a.pt"):
    def run(m):
        file = m.tmp/name
        if callable(data): data(m, file)
        else: file.write_bytes(data)
        return teach(f"RN50:{file}")
    return run


CHECKPOINT = {
    "text": (checkpoint(b"hello"), WHOLE_ONE), "nothing": (checkpoint(b""), WHOLE_ONE),
    "text as .safetensors": (checkpoint(b"hello", "a.safetensors"), WHOLE_ONE),
    "a pickle as .npz": (checkpoint(pickle.dumps({"a": 1}), "a.npz"), WHOLE_ONE),
    "a pickle that runs": (checkpoint(lambda m, p: p.write_bytes(pickle.dumps(m.evil()))), WHOLE_ONE),
    "a zip that runs": (checkpoint(lambda m, p: torch.save(m.evil(), p)), WHOLE_ONE),
    "no tensor": (checkpoint(lambda m, p: torch.save({}, p)), WHOLE_ONE),
    "a tensor": (checkpoint(lambda m, p: torch.save(torch.zeros(1), p)), WHOLE_ONE),
    "tensors of another": (checkpoint(lambda m, p: torch.save({"a": torch.zeros(1)}, p)), WHOLE_ONE),
    "a folder": (lambda m: teach(f"RN50:{m.tmp}"), "no checkpoint at"),
    "no such file": (lambda m: teach("RN50:nowhere.pt"), "no checkpoint at nowhere.pt"),
    "of the hub": (lambda m: teach("hf-hub:org/none"), "is not on this machine"),
    "of the hub, by its tag": (lambda m: teach("RN50/openai"), "is not on this machine"),
}


class Numbers:
    "A teacher whose embeddings are given."
    name, size, stride, temperature, logit_bias, fingerprint, precision, rois = "numbers", 8, 8, 1., None, "e"*64, "auto", False

    def __init__(self, value=1., text=1.): self.value, self.text = value, text
    def embed_text(self, prompts): return torch.eye(len(prompts), 16)*self.text
    def embed_pixels(self, x): return torch.nn.functional.normalize(x.flatten(1).float()[:, :16] + 1, dim=-1)*self.value


def scored(**kw):
    def run(m): return cached_views(Numbers(**kw), list_photos(m.copy("photos")), cache=Cache(m.tmp/"cache", 0)).isfinite().all()
    return run


NUMBERS = {
    "a teacher of NaN": (scored(value=math.nan), "teacher numbers gives embeddings that are not finite"),
    "a teacher of infinities": (scored(value=math.inf), "teacher numbers gives embeddings that are not finite"),
    "texts of NaN": (lambda m: embed_classes(Numbers(text=math.nan), ["a", "b"]), "teacher numbers gives embeddings that are not finite"),
    "a sound one": (scored(), Used(True)),
}


# --- the cache: a shard that is valid under its own hash

def shard(harm):
    "Whether a sound teacher finds its own embeddings, and how many rows are listed then."
    def run(m):
        photos, cache = list_photos(m.copy("photos")), Cache(m.tmp/"cache")
        first = cached_views(Numbers(), photos, cache=cache)
        file, = cache.shards()
        table, out = harm(pq.read_table(file, partitioning=None)), io.BytesIO()
        if not isinstance(table, bytes): pq.write_table(table, out)
        data = table if isinstance(table, bytes) else out.getvalue()
        file.unlink()
        (file.parent/f"{_digest(data)}.parquet").write_bytes(data)
        return torch.equal(cached_views(Numbers(), photos, cache=cache), first), sum(r["rows"] for r in cache_contents(cache))
    return run


def column(name, values):
    return shard(lambda t: t.set_column(t.column_names.index(name), name, values(t) if callable(values) else values))


def embedding(change):
    def values(t): return pa.array(list(change(np.stack(t["embedding"].to_pylist()).astype(np.float16))))
    return column("embedding", values)


def lists(rows): return pa.array(rows, type=pa.list_(pa.float16()))


def narrow(m):
    shard(lambda t: t)(m)
    cache = Cache(m.tmp/"cache")
    cache.add(Numbers(), "squash", np.array([b"0"*32]), np.array([[0, 0, 1, 1.]]), np.ones((1, 8), np.float16))
    tables = [cache.read(p).read() for p in cache.shards()]
    keys = [view_keys(t["image"].to_numpy().astype("S32"), np.stack([t[c].to_numpy() for c in BOX], 1)) for t in tables]
    cache.find(Numbers(), "squash", np.unique(np.concatenate(keys)))


def narrow_alone(m):
    photos, cache = list_photos(m.copy("photos")), Cache(m.tmp/"cache")
    narrower = Numbers()
    narrower.embed_pixels = lambda x: Numbers().embed_pixels(x)[:, :8]
    cached_views(narrower, photos, cache=cache)
    return Scorer(Numbers(), ["a", "b"], settings("toy"), m.tmp/"cache").probabilities(photos)


AGAIN = Used((True, 5))
SHARDS = {
    "no embedding": (shard(lambda t: t.drop_columns(["embedding"])), AGAIN),
    "no photograph": (shard(lambda t: t.drop_columns(["image"])), AGAIN),
    "no name": (shard(lambda t: t.drop_columns(["name"])), AGAIN), "no rows": (shard(lambda t: t.slice(0, 0)), AGAIN),
    "more columns": (shard(lambda t: t.append_column("more", pa.array([1]*5))), AGAIN), "text": (shard(lambda t: b"text"), AGAIN),
    "nothing": (shard(lambda t: b""), AGAIN), "NaN": (embedding(lambda e: e*np.float16(math.nan)), AGAIN),
    "infinities": (embedding(lambda e: e*np.float16(math.inf)), AGAIN), "zeros": (embedding(lambda e: e*0), AGAIN),
    "64 bits": (embedding(lambda e: e.astype(float)), AGAIN), "words for embeddings": (column("embedding", pa.array(["a"]*5)), AGAIN),
    "rows that are missing": (column("embedding", lists([None]*5)), AGAIN),
    "rows of several widths": (column("embedding", lists([[np.float16(1)]*k for k in (16, 15, 17, 16, 16)])), AGAIN),
    "words for a size": (column("size", pa.array(["a"]*5)), AGAIN),
    "bytes for photographs": (column("image", pa.array([b"\xff"]*5)), AGAIN),
    "a sound one": (shard(lambda t: t), AGAIN), "another width beside": (narrow, "embeddings of another width than numbers gives"),
    "another width alone": (narrow_alone, "embeddings of 8 numbers beside texts of 16"),
}


# --- the student: its weights, its network, its model folder

def student(weights="random", backbone="torchvision/resnet18", size=32):
    return create_student(StudentSettings(backbone, str(weights), size), ["a", "b"])


def state(make):
    def run(m):
        torch.save(make(m), m.tmp/"w.pth")
        return student(m.tmp/"w.pth").size
    return run


def resnet(m, **kw): return {f"{k.partition('.')[2]}": v for k, v in student().stages.state_dict().items()} | kw


def trained(backbone, size, batch):
    def run(m):
        photos = list_photos(m.copy("photos"))
        Trainer(student(backbone=backbone, size=size), photos, TrainSettings(batch=batch)).epoch(torch.zeros(5, 2))
        return True
    return run


NO_MAP, ALONE = "draws no map that grows with the photograph", "a last batch of one photograph"
STUDENT = {
    "numbers for weights": (state(lambda m: {"conv1.weight": 1}), "holds more than names and tensors"),
    "a list for weights": (state(lambda m: [1]), "holds more than names and tensors"),
    "tensors without names": (state(lambda m: {1: torch.zeros(1)}), "holds more than names and tensors"),
    "no weights": (state(lambda m: {}), "do not fit torchvision/resnet18"),
    "code for weights": (state(lambda m: m.evil()), "cannot be read"),
    "weights of NaN": (state(lambda m: resnet(m, **{"conv1.weight": torch.full((64, 3, 7, 7), math.nan)})), "not finite (conv1_weight)"),
    "sound weights": (state(resnet), Used(32)), "a folder for weights": (lambda m: student(m.tmp), "is no file"),
    "a photograph for weights": (lambda m: student(m.common/"photos"/"0.png"), "cannot be read"),
    "an unknown network": (lambda m: student(backbone="resnet999"), "neither torchvision/NAME nor a timm model"),
    "a network of the hub": (lambda m: student(backbone="hf-hub:org/name"), "neither torchvision/NAME nor a timm model"),
    "a network in a folder": (lambda m: student(backbone=f"local-dir:{m.tmp}"), "neither torchvision/NAME nor a timm model"),
    "another of torchvision": (lambda m: student(backbone="torchvision/vit_b_16"), "torchvision has the ResNets"),
    "tokens for a map": (lambda m: student(backbone="test_vit"), NO_MAP),
    "one size of input": (lambda m: student(backbone="vit_tiny_patch16_224"), NO_MAP),
    "channels at the end": (lambda m: student(backbone="swin_tiny_patch4_window7_224", size=224), NO_MAP),
    "too small for it": (lambda m: student(backbone="inception_v3", size=64), NO_MAP),
    "large enough for it": (lambda m: student(backbone="inception_v3", size=96).size, Used(96)),
    "a photograph alone in a batch": (trained("torchvision/resnet18", 32, 4), ALONE),
    "each alone": (trained("torchvision/resnet18", 32, 1), ALONE),
    "none alone": (trained("torchvision/resnet18", 32, 3), Used(True)),
    "alone with a larger map": (trained("torchvision/resnet18", 64, 4), Used(True)),
}


def model(harm):
    def run(m):
        folder = m.copy("model")
        harm(folder/"config.json")
        return load_model(folder).classes
    return run


def says(field, value): return model(lambda p: p.write_text(json.dumps(read_json(p) | {field: value})))


def holds(name, value):
    def harm(p):
        weights = load_file(p.with_name("model.safetensors"))
        weights[name].flatten()[0] = value
        save_file(weights, p.with_name("model.safetensors"))
    return model(harm)


FIELDS = [
    *(("size", v) for v in (0, -5, "64", None, 60000, 64.5, True)), *(("frozen", v) for v in (-1, "2", None)),
    *(("classes", v) for v in ("dog", [1, 2], None, [], [["dog"]], ["dog", "Dog"], ["dog", ""], {"dog": 1})),
    *(("boost", v) for v in (0, -1, math.nan, math.inf, "3")), ("format", 99), ("backbone", None), ("backbone", ""), ("more", 1)]
MODEL = {
    **{f"{field} is {value!r}": (says(field, value), field) for field, value in FIELDS},
    **{f"config is {text[:9]!r}": (model(lambda p, text=text: p.write_bytes(text.encode("latin-1"))), "config.json")
       for text in ("null", "7", "[1]", "", "{", "["*100_000, "\xff")},
    "config is a folder": (model(lambda p: (p.unlink(), p.mkdir())), "cannot be read"),
    "no config": (model(lambda p: p.unlink()), "is missing"),
    **{f"{name} is {value}": (holds(name, value), f"not finite ({name})")
       for name in ("threshold", "head.weight", "stages.0.bn1.running_var") for value in (math.nan, math.inf)},
    "more classes than weights": (says("classes", ["a", "b", "c"]), "cannot be loaded"),
    "weights cut short": (model(lambda p: cut(p.with_name("model.safetensors"))), "cannot be loaded"),
    "a pickle for weights": (model(lambda p: p.with_name("model.safetensors").write_bytes(pickle.dumps({"a": 1}))), "cannot be loaded"),
    "a network without a map": (says("backbone", "test_vit"), NO_MAP), "a network of the hub": (says("backbone", "hf-hub:a/b"), "neither"),
    "all stages frozen": (says("frozen", 5), "student.freeze = 5"), "sound": (model(lambda p: None), Used(["dog", "cat"])),
}


# --- benchmarks

def read(name, file, harm, split=None, what=len):
    def run(m):
        write, own = SMALL[name]
        write(m.tmp)
        harm(m.tmp/file)
        return what(read_benchmark(name, m.tmp, own if split is None else split))
    return run


def voc(*a, file=NOTE, **kw): return read("voc07", file, *a, **kw)
def coco(change, **kw):
    def harm(p):
        d = json.loads(p.read_text())
        change(d)
        p.write_text(json.dumps(d))
    return read("coco14", JSON, harm, **kw)


def nus(file, harm): return read("nuswide", file, harm)
def image(**kw): return coco(lambda d: d["images"][0].update(kw))
def note(**kw): return coco(lambda d: d["annotations"][0].update(kw))
def replaced(old, new): return lambda p: p.write_text(p.read_text().replace(old, new))


def claims(shape, kind="<f8"):
    "An array file of no numbers whose head claims `shape`."
    def harm(p):
        with open(p, "wb") as f: np.lib.format.write_array_header_1_0(f, dict(descr=kind, fortran_order=False, shape=shape))
    return harm


def counted(b): return b.truth.sum(), sum(map(len, b.objects))
def asked(name, split): return read(name, ".", lambda p: None, split)


NO_NOTE, NO_COCO, NO_ARRAY = "not a VOC annotation", "not COCO's instances file", "not a plain NumPy array"
BENCHMARK = {
    "note cut": (voc(cut), NO_NOTE), "note empty": (voc(empty), NO_NOTE), "no note": (voc(lose), "is missing"),
    "an unknown class": (voc(swap("dog", "unicorn")), "unicorn"), "a side in words": (voc(swap("<ymax>40", "<ymax>forty")), "forty"),
    "a document type": (voc(swap("<annotation>", "<!DOCTYPE annotation><annotation>")), NO_NOTE),
    "a file of the machine": (voc(lambda p: p.write_text('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>')), NO_NOTE),
    "tags without end": (voc(lambda p: p.write_text("<a>"*100_000)), NO_NOTE),
    "bytes": (voc(lambda p: p.write_bytes(bytes(range(256)))), NO_NOTE),
    "no width": (voc(swap("<width>50", "<width>0")), NO_NOTE), "width below zero": (voc(swap("<width>50", "<width>-50")), NO_NOTE),
    "width of NaN": (voc(swap("<width>50", "<width>nan")), NO_NOTE), "no size": (voc(replaced("size", "sized")), NO_NOTE),
    "an infinite side": (voc(swap("<ymax>40", "<ymax>inf")), "inf] of 50.0 × 40.0"),
    "a box upside down": (voc(swap("<ymax>20", "<ymax>5")), "ends before it begins"),
    "a box beside": (voc(lambda p: p.write_text(p.read_text().replace("<xmin>31</xmin><ymin>11</ymin><xmax>50",
                                                                     "<xmin>310</xmin><ymin>11</ymin><xmax>500"))), "is outside of"),
    "no box": (voc(replaced("bndbox", "box")), NO_NOTE), "no word of difficulty": (voc(swap("<difficult>0</difficult>", "")), Used(3)),
    "no such list": (voc(lose, file=SETS), "has the splits val"), "an empty list": (voc(empty, file=SETS), "lists no photograph"),
    "a list in UTF-16": (voc(lambda p: p.write_bytes(b"\xff\xfe\0"), file=SETS), "not a list of photographs"),
    "a way out": (voc(lambda p: p.write_text("../../secret\n"), file=SETS), "outside"),
    "a path from the root": (voc(lambda p: p.write_text("/etc/x\n"), file=SETS), "outside"),
    "a name that acts": (voc(lambda p: p.write_text("\x1b[2Jx\n"), file=SETS), "hidden characters: '\\x1b[2Jx.jpg'"),
    "a name with NUL": (voc(lambda p: p.write_text("a\0b\n"), file=SETS), "hidden character"),
    "listed twice": (voc(lambda p: p.write_text("000005\n000012\n000005\n"), file=SETS), "'000005.jpg' 2 times"),
    "no folder": (voc(lose, file="VOCdevkit/VOC2007"), "--root must be the folder that holds VOCdevkit/VOC2007"),
    **{f"split {s!r} of {name}": (asked(name, s), "is no name of a split") for s in ("../x", "a/b", "", "\0", "*", "\x1b[2J")
       for name in ("voc07", "coco14", "nuswide")},
    "JSON cut": (read("coco14", JSON, cut), "not valid JSON"), "JSON empty": (read("coco14", JSON, empty), "not valid JSON"),
    "no JSON": (read("coco14", JSON, lose), "is missing"),
    "a folder": (read("coco14", JSON, lambda p: (p.unlink(), p.mkdir())), "not valid JSON"),
    "brackets without end": (read("coco14", JSON, lambda p: p.write_text("["*100_000)), "not valid JSON"),
    "objects without end": (read("coco14", JSON, lambda p: p.write_text('{"a":'*100_000)), "not valid JSON"),
    "binary": (read("coco14", JSON, lambda p: p.write_bytes(bytes(range(256)))), "not valid JSON"),
    "a list of nothing": (read("coco14", JSON, lambda p: p.write_text("[]")), NO_COCO),
    "width 0": (image(width=0), "of 0 × 48"), "width -5": (image(width=-5), "of -5 × 48"), "width NaN": (image(width=math.nan), "nan"),
    "height without end": (image(height=math.inf), "× inf"), "width '40'": (image(width="40"), NO_COCO),
    **{f"file name {v!r}": (image(file_name=v), NO_COCO) for v in (None, 7, ["a"])},
    **{f"file name {v!r}": (image(file_name=v), "outside") for v in ("", "/etc/x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg")},
    "file name with NUL": (image(file_name="a\0b"), "hidden character"),
    "a photograph twice": (coco(lambda d: d["images"].append(d["images"][0])), "listed twice, or not at all"),
    "a file twice": (coco(lambda d: d["images"][1].update(file_name=d["images"][0]["file_name"])), "2 times"),
    "notes of no photograph": (note(image_id=424242), "listed twice, or not at all"), "an id in words": (note(image_id="42"), NO_COCO),
    "box inverted": (note(bbox=[10, 10, -5, -5]), "ends before it begins"), "box left of it": (note(bbox=[-50, 1, 5, 5]), "is outside of"),
    "box right of it": (note(bbox=[5000, 1, 5, 5]), "is outside of"), "box of NaN": (note(bbox=[1, 1, math.nan, 5]), "nan"),
    "box of three": (note(bbox=[1, 1, 5]), NO_COCO), "box in words": (note(bbox="abcd"), NO_COCO), "box null": (note(bbox=None), NO_COCO),
    "box of 400 digits": (note(bbox=[1, 1, 10**400, 5]), NO_COCO),
    "no box, but the class": (coco(lambda d: d["annotations"][0].pop("bbox"), what=counted), Used((4, 3))),
    "no word of crowds": (coco(lambda d: [a.pop("iscrowd") for a in d["annotations"]]), Used(3)),
    **{f"without {k}": (coco(lambda d, k=k: d.pop(k)), NO_COCO) for k in ("annotations", "images", "categories")},
    "no notes": (coco(lambda d: d["annotations"].clear()), "lists no photograph"),
    "numbers for notes": (coco(lambda d: d.update(annotations=[1])), NO_COCO),
    "another category": (note(category_id=91), "91"),
    "categories renamed": (read("coco14", JSON, swap('"toothbrush"', '"brush"')), "categories"),
    "labels cut": (nus(LABELS, cut), NO_ARRAY), "labels empty": (nus(LABELS, empty), NO_ARRAY),
    "no labels": (nus(LABELS, lose), "is missing"),
    "10^15 rows": (nus(LABELS, claims((10**15, 81))), NO_ARRAY), "10^15 names": (nus(NAMES, claims((10**15,), "<U60")), NO_ARRAY),
    "fewer than no rows": (nus(LABELS, claims((-1, 81))), NO_ARRAY),
    "objects": (nus(LABELS, array(np.array([{}]))), "(ValueError: cut short, or of objects)"),
    **{f"labels {v}": (nus(LABELS, array(np.full((3, 81), v))), "labels of val other than 0 and 1") for v in (math.nan, 2., .5, -1.)},
    **{f"labels of {s}": (nus(LABELS, array(np.zeros(s))), f"of shape {s}") for s in ((3, 80), (2, 81), (81,))},
    "labels in words": (nus(LABELS, array(np.full((3, 81), "1"))), NO_ARRAY),
    "a zip": (nus(LABELS, lambda p: p.write_bytes(b"PK\3\4 end")), NO_ARRAY),
    "labels yes and no": (nus(LABELS, array(np.ones((3, 81), bool))), Used(3)),
    "a name alone": (nus(NAMES, array(np.array("x"))), NO_ARRAY), "names cut": (nus(NAMES, cut), NO_ARRAY),
    "no names": (nus(NAMES, lose), "is missing"),
    "names out": (nus(NAMES, array(np.array(["a.jpg", "../b.jpg", "c.jpg"]))), "outside"),
    "names of bytes": (nus(NAMES, array(np.array([b"a", b"b", b"c"]))), NO_ARRAY),
    "names twice": (nus(NAMES, array(np.array(["a", "a", "b"]))), "2 times"),
    "names and none": (nus(NAMES, array(np.array(["a", None, 3], dtype=object))), NO_ARRAY),
}


# --- names, settings, photographs

def given(names): return lambda m: read_classes(names)


def listed(data):
    def run(m):
        (m.tmp/"classes.txt").write_bytes(data)
        return read_classes(m.tmp/"classes.txt")
    return run


CLASSES = {
    **{f"{names!r:.40}": (given(names), words) for names, words in [
        ("caf\u00e9, cafe\u0301", "is there twice (1 and 2)"), ("stra\u00dfe, STRASSE", "is there twice"), ("dog, DOG", "is there twice"),
        ("tv: tv | Television, television", "'tv' and 'television' share the phrase 'television'"),
        ("rat: rat | rodent, mouse: mouse | rodent", "share the phrase 'rodent'"),
        ("a;b, c", "'a;b' has a semicolon"), ("image, dog", "'image' is a column of every table"), ("dog, tags", "rename it"),
        ("# animals, dog", "begins with #: a class list has no comments"), ("a: |, b", "has an empty alias"),
        ("ratio 16:9, dog", "has a colon inside"), ("a: b: c, dog", "has a colon inside"), ("dog,, cat", "class 2 is empty"),
        *((f"do{x}g, cat", "a character that cannot be seen: remove it") for x in "\n\x00\x1b\x7f\u200b\u202e\u2028\udcff\ufeff"),
        ("dog", "--classes dog: no such file, and one class is too few"), *((x, "no such file") for x in ("", "x"*5000, "a\0b")),
        (["dog"], "1 class given"), ([], "0 classes given")]},
    **{f"a file of {data!r:.40}": (listed(data), words) for data, words in [
        (b"# animals\ndog\ncat\n", "begins with #"), (b"dog\x0ccat\nbird\n", "cannot be seen"),
        ("dog\u2028cat\nbird\n".encode(), "cannot be seen"),
        (b"", "class 1 is empty"), (b"dog\n\n\ncat\n", "class 2 is empty"),
        (b"\xff\xfed\0", "cannot be read as UTF-8"), (b"dog\n", "1 class given")]},
    "a folder of names": (lambda m: read_classes(m.tmp), "cannot be read as UTF-8"),
    "no names": (lambda m: read_source(m.common/"photos"), "--classes is missing"),
    "names that begin formulas": (given("-dog, =cat, @home"), Used(["-dog", "=cat", "@home"])),
    "markup": (given("[/x], [red]"), Used(["[/x]", "[red]"])),
}


def setting(**kw): return lambda m: settings(**kw)


SETTING = {
    "an unknown one": (setting(labels__alfa=.2), "unknown setting 'labels.alfa'"),
    "a group": (setting(labels=1), "unknown setting 'labels'"),
    "an unknown preset": (lambda m: settings("papper"), "unknown preset"), "a name that acts": (setting(**{"\x1b[2J": 1}), "'\\x1b[2J'"),
    "no number": (setting(labels__alpha="ten"), "setting labels.alpha"),
    "no choice": (setting(teacher__score="soft"), "setting teacher.score"),
    "NaN": (setting(train__lr=math.nan), "finite"), "infinite": (setting(train__consistency="inf"), "finite"),
    "too long": (setting(seed="9"*400), "setting seed"),
    "a warm-up beyond the end": (setting(train__epochs=2, train__warmup=3), "it is part of train.epochs"),
    "no batch": (setting(train__batch=0), "above 0"), "a list": (setting(seed=[1]), "setting seed"),
    "nothing": (setting(seed=None), "setting seed"),
    "a prompt without a place": (lambda m: embed_classes(Numbers(), ["a", "b"], "a photo"), "has no {}"),
    "a sigmoid of a softmax": (lambda m: Scorer(Numbers(), ["a", "b"], settings("toy", teacher__score="sigmoid")), "has no bias"),
    "regions of none": (lambda m: Scorer(Numbers(), ["a", "b"], settings(labels__source="regions")), "has no feature map"),
    "another norm": (lambda m: load_teacher(TeacherSettings("offline", norm="imagenet")), "knows only its own"),
}


def folder(harm):
    "Why what `harm` puts beside five photographs is not taken."
    def run(m):
        where = m.copy("photos")
        harm(where)
        photos = list_photos(where)
        sound, left = quarantine(photos)
        assert len(sound) + len(left) + photos.passed.total() == sum(len(files) for _, _, files in os.walk(where))
        return left
    return run


def beside(name, data): return folder(lambda f: (f/name).write_bytes(data) if isinstance(data, bytes) else data(f/name))


def bomb(path): Image.new("1", (20_000, 20_000)).save(path)
def large(path): Image.new("1", (11_000, 10_000)).save(path)
def deep(path): Image.fromarray(np.ones((9, 9), np.float32)).save(path)


PHOTOGRAPHS = {
    "text": (beside("a.jpg", b"text"), LeftOut("a.jpg", "not an image")),
    "nothing": (beside("a.jpg", b""), LeftOut("a.jpg", "the file is empty")),
    "cut short": (beside("a.png", lambda p: (picture(p), p.write_bytes(p.read_bytes()[:500]))), LeftOut("a.png", "")),
    "a bomb": (beside("a.png", bomb), LeftOut("a.png", "over the limit")),
    "a very large one": (beside("a.png", large), LeftOut("a.png", "11000 × 10000 px is over the limit")),
    "a program": (beside("a.gif", b"#!/bin/sh\nexit\n"), LeftOut("a.gif", "not an image")),
    "a script of PostScript": (beside("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), LeftOut("a.jpg", "not an image")),
    "levels of 32 bits": (beside("a.tif", deep), LeftOut("a.tif", "levels of 32 bits")),
    "a link again": (beside("a.png", lambda p: p.symlink_to("0.png")), LeftOut("a.png", "taken already, by another name")),
    "a link to nothing": (beside("a.png", lambda p: p.symlink_to("no.png")), LeftOut("a.png", "No such file")),
    "a link to itself": (beside("a.png", lambda p: p.symlink_to("a.png")), LeftOut("a.png", "symbolic links")),
    "a pipe": (beside("a.jpg", lambda p: os.mkfifo(p)), LeftOut("a.jpg", "not a regular file")),
    "hidden": (beside(".a.png", lambda p: picture(p)), LeftOut(".a.png", "hidden")), "another kind": (beside("a.txt", b"text"), Used({})),
    "a name that acts": (beside("\x1b[2J.png", lambda p: picture(p)), Used({})),
    "of two lines": (beside("a\nb.png", lambda p: picture(p)), Used({})),
    "no folder": (lambda m: list_photos(m.tmp/"\x1b[2J"), "\\x1b[2J is not a folder"),
    "no photographs": (lambda m: list_photos(m.tmp), "no images found below"),
    "none that is sound": (lambda m: ((m.tmp/"a.jpg").write_text("x"), quarantine(list_photos(m.tmp))), "none of the 1 images below"),
}

KINDS = dict(teacher=TEACHER, checkpoint=CHECKPOINT, numbers=NUMBERS, cache=SHARDS, student=STUDENT, model=MODEL, benchmark=BENCHMARK,
             classes=CLASSES, setting=SETTING, photographs=PHOTOGRAPHS)
CORPUS = [Case(kind, what, run, outcome) for kind, table in KINDS.items() for what, (run, outcome) in table.items()]
