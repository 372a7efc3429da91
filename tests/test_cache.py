"The cache of embeddings: killed writers, two at once, damage, and never a row that is not the asked one."
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ccd.cache import BOX, Cache, cache_contents, content, open_cache, prune_cache, view_keys
from ccd.core import CCDError
from ccd.data import Views, list_photos
from ccd.scorer import cached_views
from conftest import ROOT

class Projection:
    "A teacher of a random projection that counts what it is shown."
    stride, precision = 8, "auto"

    def __init__(self, fingerprint="a"*64, size=8, seed=0):
        self.name, self.fingerprint, self.size, self.shown = "projection", fingerprint, size, []
        self.w = torch.randn(3*size*size, 16, generator=torch.Generator().manual_seed(seed))

    def embed_pixels(self, x):
        self.shown.append(len(x))
        x = torch.nn.functional.interpolate(x.float(), (self.size, self.size))
        return torch.nn.functional.normalize(x.flatten(1) @ self.w, dim=-1)


def noise(path, seed): Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def few(tmp_path):
    (tmp_path/"photos").mkdir()
    for i in range(5): noise(tmp_path/"photos"/f"{i}.png", i)
    return list_photos(tmp_path/"photos")


@pytest.fixture
def views():
    g = torch.Generator().manual_seed(0)
    start = torch.rand(15, 2, generator=g)*.4
    end = .6 + torch.rand(15, 2, generator=g)*.4
    return Views(torch.arange(5).repeat_interleave(3), torch.cat([start, end], 1))


@pytest.fixture
def cache(tmp_path): return Cache(tmp_path/"cache")


# A process that adds shards of 2,000 rows whose embedding is the number of the shard, forks once per way to die,
# and prints how each child ended.
WRITERS = '''
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from ccd.cache import Cache

class T: name, fingerprint, size = "t", "b"*64, 8

cache, whole, rename = Cache(sys.argv[1]), Path.write_bytes, os.replace

def die(): os.kill(os.getpid(), signal.SIGKILL)

def add(who, k):
    "Row r of shard k of writer `who`."
    box = np.zeros((2000, 4), np.float32)
    box[:, 0] = np.arange(2000)/2000
    box[:, 1] = k
    cache.add(T, 'squash', np.full(2000, f"{who:032x}", dtype="S32"), box, np.full((2000, 64), who + k/16, np.float16))

def half_written(path, data):
    whole(path, bytes(data)[:len(data)//2])
    die()

def just_renamed(*a):
    rename(*a)
    die()

def child(who):
    if who == 0: Path.write_bytes = half_written
    if who == 1: os.replace = lambda *a: die()  # all written, not yet renamed
    if who == 2: os.replace = just_renamed
    for k in range(3 if who > 5 else 10**6): add(who, k % 1000)

pids = []
for who in range(8):
    pid = os.fork()
    if not pid:
        try: child(who)
        finally: os._exit(0)
    pids.append(pid)
for who in (3, 4, 5):
    time.sleep(.07*who)
    os.kill(pids[who], signal.SIGKILL)  # wherever they are
print([os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids])
'''


def test_killed_and_simultaneous_writers_leave_only_whole_shards(tmp_path, capsys):
    got = subprocess.run([sys.executable, "-c", WRITERS, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert json.loads(got.stdout) == [-9]*6 + [0]*2, got.stderr
    cache = Cache(tmp_path)

    class T: name, fingerprint, size = "t", "b"*64, 8
    writers, keys, want = {}, [], []
    for path in cache.shards():
        t = cache.read(path).read()
        who, k = {int(i, 16) for i in t["image"].to_pylist()}, set(t["y0"].to_pylist())
        assert len(t) == 2000 and len(who) == len(k) == 1
        who, k = who.pop(), k.pop()
        writers.setdefault(who, set()).add(k)
        keys.append(view_keys(t["image"].to_numpy().astype("S32"), np.stack([t[c].to_numpy() for c in BOX], 1)))
        want.append(np.full(2000, who + k/16, np.float16))
    keys, first = np.unique(np.concatenate(keys), return_index=True)
    known, e = cache.find(T, 'squash', keys)
    assert known.all() and (e == np.concatenate(want)[first, None]).all()
    assert not {0, 1} & set(writers) and writers[2] == {0} and writers[6] == writers[7] == {0, 1, 2}
    assert all(s == set(range(len(s))) for s in writers.values()), "what was written before the kill is there"
    assert capsys.readouterr().err == "", "nothing was damaged"
    left = list(tmp_path.rglob("*.tmp"))
    assert left
    for p in left: os.utime(p, (0, 0))
    prune_cache(cache)
    assert not list(tmp_path.rglob("*.*"))


def test_first_run_second_run_and_no_cache_agree_to_the_bit(few, views, cache):
    t = Projection()
    first, shown = cached_views(t, few, views, cache, batch=4), list(t.shown)
    assert shown == [4, 4, 4, 3]
    assert torch.equal(first, cached_views(t, few, views, cache)) and t.shown == shown
    assert torch.equal(first, cached_views(Projection(), few, views))
    assert first.dtype == torch.float32 and torch.allclose(first.norm(dim=-1), torch.ones(15), atol=1e-6)


@pytest.mark.parametrize("change, shown", [("bytes", 3), ("box", 1), ("size", 15), ("weights", 15), ("precision", 15), ("mode", 15)])
def test_nothing_stale_is_returned(few, views, cache, change, shown):
    cached_views(Projection(), few, views, cache)
    t = dict(size=Projection(size=9), weights=Projection("c"*64, seed=1)).get(change, Projection())
    if change == "bytes":
        stat = os.stat(few.root/"2.png")
        noise(few.root/"2.png", 77)
        os.utime(few.root/"2.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a date says nothing
    if change == "box": views.box[4, 0] = torch.nextafter(views.box[4, 0], torch.tensor(1.))
    if change == "precision": t.precision = "fp32"
    mode = "crop" if change == "mode" else "squash"
    got = cached_views(t, few, views, cache, mode=mode)
    assert sum(t.shown) == shown
    assert torch.equal(got, cached_views(t, few, views, mode=mode))


def test_rows_survive_renames_and_serve_any_order(few, views, cache):
    first = cached_views(Projection(), few, views, cache)
    for i in range(5): (few.root/f"{i}.png").rename(few.root/f"z{4 - i}.png")
    t, turned = Projection(), torch.arange(15).view(5, 3).flip(0).flatten()
    got = cached_views(t, list_photos(few.root), Views(views.image, views.box[turned]), cache)
    assert t.shown == [] and torch.equal(got, first[turned])


def test_a_full_cache_decodes_nothing(few, views, cache, monkeypatch):
    cached_views(Projection(), few, views, cache)
    monkeypatch.setattr(type(few), "open", lambda *a: pytest.fail("decoded"))
    assert len(cached_views(Projection(), few, views, cache)) == 15


def test_what_was_embedded_before_a_failure_is_kept(few, views, cache):
    t = Projection()
    (few.root/"4.png").write_bytes((few.root/"4.png").read_bytes()[:60])
    with pytest.raises(Exception): cached_views(t, few, views, cache, batch=3)
    assert sum(r["rows"] for r in cache_contents(cache)) == sum(t.shown) == 12


DAMAGE = {
    "cut short": lambda b: b[:-100],
    "empty": lambda b: b"",
    "one bit": lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:],
    "longer": lambda b: b + b" ",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_said_once_and_its_views_are_embedded_again(few, views, cache, capsys, damage):
    first = cached_views(Projection(), few, views, cache)
    shard, = cache.shards()
    shard.write_bytes(damage(shard.read_bytes()))
    t = Projection()
    assert torch.equal(cached_views(t, few, views, cache), first) and sum(t.shown) == 15
    assert capsys.readouterr().err == f"ccd: {shard} was damaged and is removed; its views will be embedded again\n"
    assert torch.equal(cached_views(t, few, views, cache), first) and capsys.readouterr().err == ""


def test_other_files_in_the_folder_are_left_alone(few, views, cache):
    cached_views(Projection(), few, views, cache)
    mine = cache.folder/("a"*64)/"labels.parquet"
    mine.write_text("mine")
    assert cache_contents(cache)[0]["rows"] == 15
    prune_cache(cache)
    assert mine.read_text() == "mine" and cache.shards() == []


def test_a_listing_deletes_nothing(few, views, cache):
    cached_views(Projection(), few, views, cache)
    for folder in (cache.folder/("a"*64), cache.folder/"documents"):
        folder.mkdir(exist_ok=True)
        (folder/("0"*32 + ".parquet")).write_text("mine")
    before = sorted(cache.folder.rglob("*"))
    assert cache_contents(cache)[0]["rows"] == 15 and sorted(cache.folder.rglob("*")) == before
    prune_cache(cache)
    assert (cache.folder/"documents"/("0"*32 + ".parquet")).read_text() == "mine"


def test_prune_by_teacher_and_by_age(few, views, cache):
    for f, seed in (("a"*64, 0), ("b"*64, 1)): cached_views(Projection(f, seed=seed), few, views, cache)
    assert prune_cache(cache, "b"*8) == 1 and [r["teacher"] for r in cache_contents(cache)] == ["a"*64]
    with pytest.raises(CCDError, match="it has projection"): prune_cache(cache, "bbbb")
    assert prune_cache(cache, days=1) == 0
    os.utime(cache.shards()[0], (0, 0))
    assert prune_cache(cache, days=1) == 1 and cache_contents(cache) == []


def test_pandas_and_pyarrow_read_it(few, views, cache):
    got = cached_views(Projection(), few, views, cache)
    cached_views(Projection("b"*64, size=10), few, views, cache)
    t = ds.dataset(cache.folder).to_table()
    assert t.column_names == ["teacher", "name", "size", "mode", "image", "x0", "y0", "x1", "y1", "embedding"] and len(t) == 30
    pd = pytest.importorskip("pandas")
    frame = pd.read_parquet(cache.folder)
    mine = frame[(frame["size"] == 8) & (frame["image"] == content(few)[2].decode())].sort_values("x0")
    e = np.stack(mine["embedding"]).astype(np.float32)
    want = got[6:9][views.box[6:9, 0].argsort()].numpy()
    assert np.allclose(e/np.linalg.norm(e, axis=1, keepdims=True), want, atol=1e-6)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("CCD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_cache().folder == tmp_path/"ccd"
    monkeypatch.setenv("CCD_CACHE", "none")
    assert open_cache() is None and open_cache(tmp_path).folder == tmp_path
    (tmp_path/"file").touch()
    with pytest.raises(CCDError, match="is not a folder"): open_cache(tmp_path/"file")


def test_another_class_list_costs_no_look_at_the_photographs(ccd, photos, tmp_path, monkeypatch):
    from ccd.offline import OfflineTeacher
    folder, shown = tmp_path/"photos", []
    folder.mkdir()
    for p in sorted(photos.iterdir())[:6]: shutil.copy(p, folder)
    (folder/"text.jpg").write_text("not an image")
    embed = OfflineTeacher.embed_pixels

    def counted(self, x):
        shown.append(len(x))
        return embed(self, x)

    def run(classes, name, *more):
        return ccd("label", folder, "--classes", classes, "--out", tmp_path/name, "--cache", tmp_path/"cache", "--grid",
                   "--set", "labels.source=text", *more)

    monkeypatch.setattr(OfflineTeacher, "embed_pixels", counted)
    code, out, err = run("star, heart", "a.parquet")
    assert code == 0 and out.startswith("6 photographs") and len(err) == 2 and all("text.jpg" in line for line in err)
    assert sum(shown) == 6 + 54
    run("moon, house, car", "b.parquet", "--set", "labels.debias=false", "--set", "labels.alpha=0.1", "--set", "teacher.prompt=art of a {}")
    run("star, heart", "c.parquet")
    assert sum(shown) == 6 + 54, "no image pass"
    assert pq.read_table(tmp_path/"b.parquet").column_names[3:6] == ["initial.moon", "initial.house", "initial.car"]
    assert (tmp_path/"a.parquet").read_bytes() == (tmp_path/"c.parquet").read_bytes()
    assert run("star, heart", "a.parquet")[0] == 2

    code, out, _ = ccd("cache", "--cache", tmp_path/"cache")
    assert code == 0 and "offline" in out and "65 views and prompts" in out
    code, _, err = ccd("cache", "--cache", tmp_path/"cache", "--older-than", 0)
    assert code == 2 and len(err) == 1 and "--older-than deletes nothing by itself" in err[0] and open_cache(tmp_path/"cache").shards()
    code, _, err = ccd("cache", "--cache", tmp_path/"cache", "--prune", "RN50")
    assert code == 2 and len(err) == 1 and "it has offline" in err[0]
    code, out, _ = ccd("cache", "--cache", tmp_path/"cache", "--prune", "offline")
    assert code == 0 and ": 0 views" in out
    assert ccd("cache", "--cache", "none")[0] == 2


def test_a_shard_that_cannot_be_read_is_named(tmp_path):
    cache = Cache(tmp_path)
    shard = tmp_path/("a"*64)/("b"*32 + ".parquet")
    shard.mkdir(parents=True)
    with pytest.raises(CCDError, match=f"{shard} in the cache cannot be read or removed .Is a directory.: give another --cache"):
        cache_contents(cache)
