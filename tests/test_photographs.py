"Whatever lies in a folder of photographs: each file is taken, named with the reason, or counted by its suffix; nothing hangs."
import csv
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, features
from torch.utils.data import DataLoader

from ccd import core, data, run
from ccd.core import CCDError, read_json
from ccd.data import SUFFIXES, SquarePixels, decode, list_photos, quarantine, view_batches, whole

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
RAMP = np.arange(256, dtype=np.uint16).repeat(4).reshape(32, 32)


def save(path, pixels=NOISE, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **kw)
    return path


@pytest.fixture
def root(tmp_path):
    "A folder of one sound photograph, a.png."
    save(tmp_path/"photos"/"a.png")
    return tmp_path/"photos"


def make(f, *args, **kw):
    "Call `f`; skip the test where the system cannot."
    try: return f(*args, **kw)
    except (OSError, NotImplementedError, AttributeError) as e: pytest.skip(f"cannot be made here: {e}")


# --- listing

def circle(root):
    make(os.symlink, ".", root/"here", True)
    (root/"sub").mkdir()
    make(os.symlink, "..", root/"sub"/"up", True)
    make(os.symlink, root, root/"sub"/"top", True)


def twice(root):
    save(root/"real"/"b.png")
    make(os.symlink, "real", root/"0", True)


def outside(root):
    save(root.parent/"disk"/"in"/"b.png")
    make(os.symlink, root.parent/"disk", root/"disk", True)
    make(os.symlink, root.parent/"disk"/"in", root/"in", True)


def endless(root): make(os.symlink, "b.png", root/"b.png")
def dangling(root): make(os.symlink, root.parent/"unmounted", root/"album", True)
def fifo(root): make(os.mkfifo, root/"b.jpg")


def at_socket(root):
    with make(socket.socket, socket.AF_UNIX) as s: make(s.bind, str(root/"b.jpg"))


def bytes_name(root): make(open, os.fsencode(root) + b"/caf\xe9.png", "wb").close()


def bytes_folder(root):
    make(os.mkdir, os.fsencode(root) + b"/caf\xe9")
    save(root/os.fsdecode(b"caf\xe9")/"b.png")


def hidden(root):
    for name in (".b.png", "._a.png", ".git/b.png", ".thumbnails/b.png"): save(root/name)


def tools(root):
    for name in ("@eaDir/a.png", "__MACOSX/a.png", "sub/#recycle/a.png", "$RECYCLE.BIN/a.png"): save(root/name)


def locked(root):
    save(root/"locked"/"b.png")
    make(os.chmod, root/"locked", 0)
    if os.access(root/"locked", os.R_OK): pytest.skip("this user may read everything")


LISTED = {  # how: names beside a.png, and what of the reasons for what is left out
    circle: ([], {"here/": "by another name", "sub/up/": "by another name", "sub/top/": "by another name"}),
    twice: (["real/b.png"], {"0/": "by another name"}),
    outside: (["disk/in/b.png"], {"in/": "by another name"}),
    endless: ([], {"b.png": "levels of symbolic links"}),
    dangling: ([], {"album": "No such file"}),
    fifo: ([], {"b.jpg": "not a regular file"}),
    at_socket: ([], {"b.jpg": "not a regular file"}),
    bytes_name: ([], {"caf\\udce9.png": "not UTF-8: rename it"}),
    bytes_folder: ([], {"caf\\udce9/": "not UTF-8: rename it"}),
    hidden: ([], {".b.png": "hidden", "._a.png": "hidden", ".git/": "a hidden folder", ".thumbnails/": "a hidden folder"}),
    tools: ([], {"@eaDir/": "tool", "__MACOSX/": "tool", "sub/#recycle/": "tool", "$RECYCLE.BIN/": "tool"}),
    locked: ([], {"locked/": "ermission denied"}),
}


@pytest.mark.parametrize("case", LISTED, ids=lambda f: f.__name__)
def test_a_folder_is_listed_once_and_in_full(root, monkeypatch, case):
    case(root)
    names, reasons = LISTED[case]
    monkeypatch.chdir(root.parent)
    for folder in (root, Path("photos")):
        photos = list_photos(folder)
        assert photos.names == sorted(["a.png", *names])
        left = photos.left_out
        assert left.keys() == reasons.keys() and all(words in left[name] for name, words in reasons.items()), left
        assert not photos.passed
        assert quarantine(photos)[1] == photos.left_out


def test_a_path_that_is_too_long_is_named(root):
    here = make(os.open, root, os.O_RDONLY)
    for _ in range(20):
        make(os.mkdir, "n"*250, dir_fd=here)
        outer, here = here, os.open("n"*250, os.O_RDONLY, dir_fd=here)
        os.close(outer)
    os.close(here)
    photos = list_photos(root)
    (name, why), = photos.left_out.items()
    assert photos.names == ["a.png"] and set(name) == {"n", "/"} and "too long" in why


def test_a_folder_that_cannot_be_read_is_named(root, monkeypatch):
    save(root/"locked"/"b.png")
    real = os.listdir

    def listdir(path):
        if str(path).endswith("locked"): raise PermissionError(13, "Permission denied")
        return real(path)
    monkeypatch.setattr(core.os, "listdir", listdir)
    assert (list_photos(root).names, list_photos(root).left_out) == (["a.png"], {"locked/": "Permission denied"})
    with pytest.raises(CCDError, match="no images found.*1 left out .*Permission denied"): list_photos(root/"locked")


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path):
    save(tmp_path/".cache"/"@eaDir"/"a.png")
    assert list_photos(tmp_path/".cache"/"@eaDir").names == ["a.png"]


def test_what_is_no_image_is_counted_by_suffix(root, caplog):
    other = [s for s in (".heic", ".HEIF") if s.lower() not in SUFFIXES]
    for i, suffix in enumerate([".txt", ".TXT", ".txt", ".mp4", "", *other]): (root/f"f{i}{suffix}").touch()
    (root/".DS_Store").touch()
    photos = list_photos(root)
    assert photos.passed == {".txt": 3, ".mp4": 1, "": 2} | {s.lower(): 1 for s in other} and photos.left_out == {}
    with caplog.at_level("INFO", "ccd"): quarantine(photos)
    assert len(caplog.messages) == 1 and f"1 photographs; {6 + len(other)} of other kinds passed over: 3 .txt" in caplog.text
    assert "2 without a suffix" in caplog.text and ("`pip install pillow-heif` reads HEIC" in caplog.text) == bool(other)
    (root/"a.png").unlink()
    with pytest.raises(CCDError, match="no images found below .*; .* of other kinds passed over: 3 .txt"): list_photos(root)


def test_the_ledger_adds_up(root):
    "Used, left out and passed over are all the files there are."
    hidden(root)
    for name in ("notes.txt", "film.mp4", "b.jpg", "sub/c.jpg"): (root/name).parent.mkdir(exist_ok=True) or (root/name).touch()
    taken, left_out = quarantine(list_photos(root))
    files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    within = {f for f in files for name in left_out if name.endswith("/") and f.startswith(name)}
    assert len(files) == len(taken) + sum(not name.endswith("/") for name in left_out) + len(within) + taken.passed.total()
    assert taken.names == ["a.png"] and left_out["b.jpg"] == left_out["sub/c.jpg"] == "the file is empty"


# --- decoding

@pytest.mark.parametrize("suffix", ".jpg .jpe .jfif .jpeg .mpo .png .apng .webp .bmp .gif .tif .jp2 .avif".split())
def test_every_kind_is_listed_and_read(root, suffix):
    if suffix == ".avif" and not features.check("avif"): pytest.skip("this Pillow has no AVIF")
    save(root/f"B{suffix}").rename(root/f"b{suffix.upper()}")
    photos, left_out = quarantine(list_photos(root))
    assert photos.names == ["a.png", f"b{suffix.upper()}"] and left_out == {} and not photos.passed
    assert photos.open(1).size == (32, 24)


def test_heic_is_read_where_its_reader_is(tmp_path):
    pytest.importorskip("pillow_heif")
    save(tmp_path/"a.heic")
    assert quarantine(list_photos(tmp_path))[0].open(0).size == (32, 24)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "RGBA", "LA"])
def test_a_sound_photograph_is_decoded_as_ever(tmp_path, mode):
    img = Image.fromarray(NOISE).convert(mode)
    img.save(tmp_path/"a.tif")
    assert decode(tmp_path/"a.tif").tobytes() == Image.open(tmp_path/"a.tif").convert("RGB").tobytes() == img.convert("RGB").tobytes()


def test_every_opaque_colour_stays_as_it_is(tmp_path):
    every = np.stack([*np.meshgrid(np.arange(256), np.arange(256)), np.full((256, 256), 7), np.full((256, 256), 255)], -1).astype(np.uint8)
    assert np.array_equal(np.array(decode(save(tmp_path/"a.png", every))), every[..., :3])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jp2"])
def test_deep_levels_keep_their_high_bits(tmp_path, suffix):
    got = np.array(decode(save(tmp_path/f"a{suffix}", RAMP*256 + 255)))
    assert np.array_equal(got, np.dstack([RAMP.astype(np.uint8)]*3))


def tiff(path, levels, bits):
    "Grey `levels` [H, W], 12 bits big end first or 16 bits little end first, as a TIFF that is turned to the right."
    h, w = levels.shape
    if bits == 12: data = np.packbits((levels[..., None] >> np.arange(11, -1, -1) & 1).astype(np.uint8))
    else: data = levels.astype("<u2")
    tags = {256: w, 257: h, 258: bits, 259: 1, 262: 1, 273: 8, 274: 6, 277: 1, 278: h, 279: data.nbytes}
    at = 8 + data.nbytes
    entries = b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in tags.items())
    path.write_bytes(b"II*\0" + struct.pack("<I", at) + data.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


@pytest.mark.parametrize("suffix", [".tif", ".png", ".webp"])
def test_a_photograph_stands_upright(tmp_path, suffix):
    pixels, exif = RAMP[:16].astype(np.uint8), Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path/f"a{suffix}", exif=exif, lossless=True)
    assert np.array_equal(np.array(decode(tmp_path/f"a{suffix}"))[..., 0], np.rot90(pixels, -1))


@pytest.mark.parametrize("bits", [12, 16])
def test_a_deep_tiff_is_upright_and_as_bright_as_it_was(tmp_path, bits):
    path = tiff(tmp_path/"a.tif", RAMP[:16] << bits - 8, bits)
    assert np.array_equal(np.array(decode(path))[..., 0], np.rot90(RAMP[:16], -1))


@pytest.mark.parametrize("pixels", [RAMP.astype(np.int32), RAMP.astype(np.float32)], ids=["whole", "float"])
def test_levels_without_a_white_are_named(root, pixels):
    save(root/"b.tif", pixels)
    assert "save it with 8 or 16 bits" in quarantine(list_photos(root))[1]["b.tif"]


def clear(mode):
    "A drawing whose left half is transparent noise and whose right half is black."
    rgba = np.dstack([NOISE, np.zeros((24, 32), np.uint8)])
    rgba[:, 16:] = 0, 0, 0, 255
    if mode != "P": return Image.fromarray(rgba).convert(mode)
    img = Image.fromarray(rgba[..., 3]//255).convert("P")
    img.putpalette([0, 255, 0, 0, 0, 0])
    img.info["transparency"] = 0
    return img


@pytest.mark.parametrize("mode, suffix", [
    ("RGBA", ".png"), ("RGBA", ".webp"), ("RGBA", ".tif"), ("LA", ".png"), ("P", ".png"), ("P", ".gif")])
def test_what_is_transparent_lies_on_white(tmp_path, mode, suffix):
    clear(mode).save(tmp_path/f"a{suffix}", **(dict(lossless=True, exact=True) if suffix == ".webp" else {}))
    got = np.array(decode(tmp_path/f"a{suffix}"))
    assert (got[:, :16] == 255).all() and (got[:, 16:] == 0).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_transparent_colour_lies_on_white(tmp_path, mode):
    key = (255, 0, 0) if mode == "RGB" else 9
    Image.new(mode, (8, 8), key).save(tmp_path/"a.png", transparency=key)
    assert set(decode(tmp_path/"a.png").tobytes()) == {255}


# --- a run

@pytest.mark.parametrize("make_it", [os.mkdir, os.mkfifo] if hasattr(os, "mkfifo") else [os.mkdir], ids=lambda f: f.__name__)
def test_what_is_no_file_is_not_waited_for(tmp_path, make_it):
    make(make_it, tmp_path/"a.jpg")
    with pytest.raises(CCDError, match="a.jpg cannot be decoded .not a regular file"): data.Photos(tmp_path, ["a.jpg"]).open(0)


def change(path, how):
    if how == "deleted": path.unlink()
    if how == "emptied": path.write_bytes(b"")
    if how == "cut": path.write_bytes(path.read_bytes()[:200])


GONE = {"deleted": "No such file or directory", "emptied": "the file is empty", "cut": "truncated"}


@pytest.fixture
def four(tmp_path):
    "Four sound photographs, decoded once."
    for name in "abcd": save(tmp_path/f"{name}.bmp")
    return quarantine(list_photos(tmp_path))[0]


READERS = {
    "views": lambda photos, workers: view_batches(photos, whole(4), 16, 2),
    "pixels": lambda photos, workers: DataLoader(SquarePixels(photos, 16), 2, num_workers=workers),
}


def complaint(photos, reader, workers):
    try: list(READERS[reader](photos, workers))
    except CCDError as e: return str(e)


@pytest.mark.parametrize("how, workers, reader", [*((how, 0, reader) for how in GONE for reader in READERS), ("deleted", 2, "views")])
def test_a_photograph_that_goes_while_it_is_needed_is_one_line(four, monkeypatch, how, workers, reader):
    monkeypatch.setattr(data, "loader_workers", lambda: workers)
    change(four.root/"c.bmp", how)
    said = complaint(four, reader, workers)
    assert said.startswith(f"{four.root/'c.bmp'} cannot be decoded (") and said.endswith("): restore it, or run again without it")
    assert GONE[how] in said and "\n" not in said


FAST = ["--preset", "toy", "--epochs", 2, *(x for s in ("train.warmup=1", "student.size=64", "views.size=64", "views.per_image=2")
                                            for x in ("--set", s))]
NAMED = ["--classes", "star, heart"]


@pytest.mark.parametrize("cache", ["none", "cache"])
@pytest.mark.parametrize("how", ["deleted", "emptied"])
def test_a_photograph_that_goes_during_fit_is_one_line(ccd, root, tmp_path, monkeypatch, cache, how):
    for name in "bcd": save(root/f"{name}.png")
    real = run.distill

    def distill(*args, **kw):
        change(root/"c.png", how)
        return real(*args, **kw)
    monkeypatch.setattr(run, "distill", distill)
    cache = cache if cache == "none" else tmp_path/cache
    code, out, err = ccd("fit", root, *NAMED, "--out", tmp_path/"run", "--cache", cache, *FAST)
    assert (code, out, len(err)) == (2, "", 1) and err[0].startswith(f"ccd: {root/'c.png'} cannot be ")


def everything(root):
    "All that can lie beside photographs."
    for case in (circle, fifo, bytes_name, bytes_folder, hidden, tools, dangling): case(root)
    for name in ("notes.txt", "film.mp4", "text.jpg"): (root/name).write_text("no photograph")


def test_a_run_says_once_and_keeps_what_it_left_out(ccd, root, tmp_path):
    for name in "bcd": save(root/f"{name}1.png")
    (root/"b.jpg").unlink(missing_ok=True)
    everything(root)
    code, out, err = ccd("fit", root, *NAMED, "--out", tmp_path/"run", *FAST)
    said = [line for line in err if "left out" in line]
    assert code == 0 and len(said) == 1 and said[0].startswith(f"{root}: 4 photographs; ")
    assert "2 of other kinds passed over: " in said[0] and "1 .txt" in said[0]
    rows = {name.lstrip("'"): why for name, why in csv.reader(open(tmp_path/"run"/"quarantine.csv", encoding="utf-8"))}
    assert rows["text.jpg"].startswith("not an image") and rows["b.jpg"] == "not a regular file" and rows["*.mp4"] == "of another kind: 1"
    m, config = read_json(tmp_path/"run"/"metrics.json"), read_json(tmp_path/"run"/"config.json")
    left = len(rows) - 3  # without the head, *.txt and *.mp4
    assert (m["photos"], m["quarantined"], m["passed"]) == (4, left, {".txt": 1, ".mp4": 1})
    assert (config["n"], config["quarantined"], config["passed"]) == (4, left, m["passed"])
    assert f"left out {left}, of other kinds 2 (reasons: " in out
    assert pq.read_table(tmp_path/"run"/"labels.parquet")["image"].to_pylist() == ["a.png", "b1.png", "c1.png", "d1.png"]
    code, out, err = ccd("predict", tmp_path/"run", root, "--out", tmp_path/"tags.csv")
    assert code == 0 and "4 photographs" in out and sum("passed over" in line for line in err) == 1
    named = {line.removeprefix("left out ").split(":")[0] for line in err if line.startswith("left out")}
    assert named == {name for name in rows if name[0] != "*"} - {"image"}


def test_a_folder_need_not_be_utf_8(root, tmp_path):
    folder = tmp_path/os.fsdecode(b"f\xf6to")
    make(os.rename, root, folder)
    for name in "bcd": save(folder/f"{name}.png")
    start = [sys.executable, "-c", "from ccd.cli import main; main()", "fit", folder, *NAMED, *FAST]
    got = subprocess.run([*map(str, start)], capture_output=True, cwd=tmp_path, env=os.environ | dict(PYTHONIOENCODING="utf-8:strict"))
    assert got.returncode == 0 and b"Traceback" not in got.stderr and b"f\\udcf6to-1" in got.stdout, got.stderr
    config = read_json(tmp_path/"runs"/f"{folder.name}-1"/"config.json")
    assert config["photos"] == str(folder) and str(folder) in config["command"]
