"What may be typed: names, settings and terminals out of the ordinary, each with what is stated to come of it."
import csv
import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from ccd.classes import COCO80, NUS81, TOY14, VOC20, read_classes
from ccd.cli import main
from ccd.core import CCDError, pick_device
from ccd.load_teacher import load_teacher
from ccd.options import show_columns
from ccd.predict import tag
from ccd.settings import StudentSettings, flat, settings
from ccd.student import create_student, save_model
from ccd.tables import write_table
from ccd.teacher import embed_classes

def refused(words, function, *args, **kw):
    "`function` ends in a `CCDError` of one line that has `words`."
    with pytest.raises(CCDError, match=re.escape(words)) as e: function(*args, **kw)
    assert "\n" not in str(e.value)


# --- class names

@pytest.mark.parametrize("given, names", [
    ("dog, cafe\u0301", ["dog", "caf\u00e9"]), ("dog,\ttv  monitor\n", ["dog", "tv monitor"]), ("a, b\u00a0c", ["a", "b c"]),
    ("\u0645\u06cc\u200c\u0634, \U0001f468\u200d\U0001f33e", ["\u0645\u06cc\u200c\u0634", "\U0001f468\u200d\U0001f33e"]),
    ("dog: puppy | dog, cat", ["dog", "cat"]), ("-dog, =cat, @home", ["-dog", "=cat", "@home"]), ("[/x], [red]", ["[/x]", "[red]"])])
def test_names_that_are_read(given, names): assert read_classes(given) == names


@pytest.mark.parametrize("name", ["dogs, cats.txt", "a;b.txt", "[x].txt", "#1.txt"])
def test_a_class_file_may_be_called_anything(tmp_path, name):
    (tmp_path/name).write_bytes(b"\xef\xbb\xbfdog\r\nhat, coat\r\n")
    assert read_classes(str(tmp_path/name)) == ["dog", "hat, coat"]


# --- classes and prompts that a teacher cannot tell apart

@pytest.fixture(scope="module", params=["toy", "cpu"])
def teacher(request): return load_teacher(settings(request.param).teacher)


@pytest.mark.parametrize("classes", [VOC20, TOY14, COCO80, NUS81], ids=["VOC20", "TOY14", "COCO80", "NUS81"])
@pytest.mark.parametrize("prompt", ["ccd", "nus-wide"])
def test_the_lists_of_the_literature_are_told_apart(teacher, classes, prompt):
    assert len(embed_classes(teacher, classes, prompt)) == len(classes)


CUT = "very "*600 + "{}"  # longer than any text tower reads


@pytest.mark.parametrize("prompt, apart", [(CUT, False), (f"a photo of the {{}} | {CUT}", False), (f"{{}} {CUT[:-2]}", True)])
def test_a_prompt_that_is_cut_before_the_class(teacher, prompt, apart):
    if apart: assert len(embed_classes(teacher, ["dog", "cat"], prompt)) == 2
    else: refused("reads 'dog' and 'cat' as the same", embed_classes, teacher, ["dog", "cat"], prompt)


@pytest.mark.parametrize("other", ["DOG", "dog "])
def test_classes_that_are_the_same_to_the_tower(teacher, other):
    refused(f"reads 'dog' and {other!r} as the same", embed_classes, teacher, ["cat", "dog", other])


@pytest.mark.parametrize("name", ["猫", "🐱", "red ☃"])
def test_words_that_the_offline_teacher_does_not_know(teacher, name):
    known = read_classes(f"dog, {name}: snowman")
    assert len(embed_classes(teacher, known)) == 2
    if teacher.name == "offline": refused(f"cannot read 'a photo of the {name}'", embed_classes, teacher, ["dog", name])
    else: assert len(embed_classes(teacher, ["dog", name])) == 2  # CLIP reads bytes


def test_a_class_list_is_refused_before_any_work(ccd, photos, tmp_path):
    code, said, err = ccd("fit", photos, "--classes", "t.v., t. v.", "--preset", "toy", "--out", tmp_path/"run")
    assert code == 2 and said == "" and len(err) == 1 and "reads 't.v.' and 't. v.' as the same" in err[0]
    assert not (tmp_path/"run").exists(), "the mended command must find its --out free"


# --- tables

@pytest.mark.parametrize("text, cell", [
    *((x + "1+1.jpg", "'" + x + "1+1.jpg") for x in "=+-@\t\r"), *((x, x) for x in ("a=b", "a,b", "-1.5", "+2", "'a", "", "–", "a\nb"))])
def test_no_cell_of_a_csv_is_a_formula(tmp_path, text, cell):
    write_table(tmp_path/"t.csv", {text: [text, "b"], "n": np.array([-1., 2.5]), "k": [-1, 2]})
    rows = list(csv.reader(open(tmp_path/"t.csv", newline="", encoding="utf-8")))
    assert rows == [[cell, "n", "k"], [cell, "-1.0000", "-1"], ["b", "2.5000", "2"]]


def test_photographs_called_like_formulas(ccd, tmp_path):
    (tmp_path/"photos").mkdir()
    for name in ("=1+1.png", "-a.png", "b|c.png"): Image.new("RGB", (40, 30), "red").save(tmp_path/"photos"/name)
    (tmp_path/"photos"/"@x.png").write_text("not an image")
    small = [x for v in ("train.epochs=1", "train.warmup=1", "student.size=64", "views.size=64", "views.per_image=1") for x in ("--set", v)]
    code, _, _ = ccd("fit", tmp_path/"photos", "--classes", "-dog, @cat", "--preset", "toy", "--out", tmp_path/"run", *small)
    assert code == 0 and (tmp_path/"run"/"quarantine.csv").read_text().splitlines()[1].startswith("'@x.png,")
    code, _, _ = ccd("predict", tmp_path/"run", tmp_path/"photos", "--threshold", 0, "--out", tmp_path/"tags.csv")
    rows = list(csv.reader(open(tmp_path/"tags.csv")))
    assert code == 0 and rows[0] == ["image", "tags", "'-dog", "'@cat"] and [r[0] for r in rows[1:]] == ["'-a.png", "'=1+1.png", "b|c.png"]
    assert all(r[1][0] == "'" and 0 <= float(r[2]) <= 1 for r in rows[1:])


# --- settings

def ends(name, *values): return [(name, v) for v in values]


OUTSIDE = [
    *ends("teacher.size", 0, -5, 31, 4097, 1e9), *ends("teacher.batch", 0, 4097), *ends("labels.max_entropy", 0, 21),
    *ends("labels.floor", -1, 1), *ends("labels.alpha", -.1, 1.1), *ends("labels.neighbours", -1, 1001),
    *ends("views.per_image", 0, -1, 1001, 1e12), *ends("views.offset", -.1, .6, 1e9), *ends("views.cam_size", 7, 4097),
    *ends("views.cam_threshold", -.1, 1), *ends("views.size", 0, 31, 4097), *ends("views.roi_size", -1, 0, 31, 8193),
    *ends("student.size", 1, 31, 4097), *ends("student.freeze", -1, 101), *ends("student.boost", 0, 101), *ends("train.epochs", 0, 10_001),
    *ends("train.warmup", -1, 10_001), *ends("train.lr", 0, 1.1, 1e6), *ends("train.head_lr", 0, 1e6), *ends("train.batch", 0, 4097),
    *ends("train.consistency", -1, 1001), *ends("train.hue", -.1, .6), *ends("train.stop_positive", 0, 1.1),
    *ends("seed", -1, 2**32, 2**70)]
INSIDE = [
    *ends("teacher.size", 32, 4096, None), *ends("views.per_image", .1, 1000), *ends("views.offset", 0, .5),
    *ends("views.roi_size", 32, None), *ends("student.size", 32, 4096), *ends("train.head_lr", 1), *ends("train.warmup", 0, 4),
    *ends("train.epochs", 2), *ends("seed", 0, 2**32 - 1)]


def given(name, value): return {name.replace(".", "__"): value}


@pytest.mark.parametrize("name, value", OUTSIDE)
def test_a_number_beyond_its_ends(name, value):
    for v in (value, str(value)):
        with pytest.raises(CCDError) as e: settings(**given(name, v))
        assert re.fullmatch(rf"setting {name} = .{{1,70}}: input should be .* \((at least|above) .*\)", str(e.value)), e.value


@pytest.mark.parametrize("name, value", INSIDE)
def test_a_number_at_its_ends(name, value):
    assert flat(settings(**given(name, value)))[name] == value


@pytest.mark.parametrize("name", [k for k, v in flat(settings("paper")).items() if type(v) in (int, float)] + ["views.roi_size"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "-1e300", "9"*400, "", "ten", "1,5", "[/x]"])
def test_no_number_is_open(name, value): refused(f"setting {name} = ", settings, **given(name, value))


@pytest.mark.parametrize("epochs, warmup, fits", [(1, 2, False), (3, 4, False), (2, 2, True), (1, 0, True)])
def test_the_warm_up_is_part_of_the_epochs(epochs, warmup, fits):
    both = dict(train__epochs=epochs, train__warmup=warmup)
    if fits: assert settings(**both).train.warmup == warmup
    else: refused(f"setting train.warmup = {warmup}: it is part of train.epochs", settings, **both)


@pytest.mark.parametrize("name", ["meta", "", "cuda:99", "gpu", "[/x]"])
def test_devices_that_are_none(name): refused(f"device {name!r} is not available here", pick_device, name)


# --- terminals

@pytest.fixture
def on_terminal(monkeypatch):
    "Run the command line on a terminal of some encoding: exit code, and what stood on it."
    def run(encoding, *args):
        screens = {k: io.TextIOWrapper(io.BytesIO(), encoding) for k in ("stdout", "stderr")}
        for k, v in screens.items(): monkeypatch.setattr(sys, k, v)
        monkeypatch.setattr(sys, "argv", ["ccd", *map(str, args)])
        with pytest.raises(SystemExit) as e: main()
        for v in screens.values(): v.flush()
        return e.value.code or 0, *(v.buffer.getvalue() for v in screens.values())
    return run


@pytest.mark.parametrize("encoding", ["cp437", "ascii", "cp1252", "utf-8", "shift_jis"])
def test_a_terminal_without_the_characters(on_terminal, toy_root, tmp_path, encoding):
    (tmp_path/"猫").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path/"猫"/"été.png")
    (tmp_path/"猫"/"Дом.png").write_text("not an image")
    code, out, err = on_terminal(encoding, "label", tmp_path/"猫", "--classes", "猫, ×", "--preset", "toy", "--out", tmp_path/"labels.csv")
    assert code == 0 and b"1 photographs" in out and b"left out " in err
    assert (tmp_path/"labels.csv").read_text(encoding="utf-8").splitlines()[1].startswith("été.png,train,1,")
    for args in (["presets"], ["settings"], ["data"], ["fit", "--help"], ["bench", "--benchmark", "toy", "--root", toy_root, "--limit", 2,
                                                                         "--preset", "toy"]):
        code, out, err = on_terminal(encoding, *args)
        assert code == 0 and out and b"Error" not in err
    code, _, err = on_terminal(encoding, "fit", tmp_path/"猫猫", "--classes", "a, b")
    assert code == 2 and len(err.splitlines()) == 1 and b"is not a folder" in err


@pytest.mark.parametrize("name", ["[/x]", "[red]", ":dog:", "[bold]a[/bold]", "\\[x", "[link=http://x]y[/link]"])
def test_names_are_no_markup(capsys, name):
    show_columns(name, {name: [name], "AP": [61.5]})
    assert capsys.readouterr().out.count(name) == 3


def test_a_mistake_is_one_line_whatever_a_file_is_called(ccd, tmp_path):
    code, out, err = ccd("fit", tmp_path/"a\nb[/x]", "--classes", "dog, cat")
    assert (code, out, len(err)) == (2, "", 1) and "a b[/x] is not a folder" in err[0]


@pytest.mark.parametrize("args", [["--size", 0], ["--size", -3], ["--size", 10**6], ["--train", -1], ["--test", 0], ["--seed", -1]])
def test_scenes_that_cannot_be_drawn(ccd, tmp_path, args):
    code, out, err = ccd("toy", tmp_path/"toy", *args)
    assert code == 2 and out == "" and any(args[0] in line for line in err) and not (tmp_path/"toy").exists()


@pytest.mark.parametrize("threshold", ["nan", "inf", "-0.1", "1.1"])
def test_a_threshold_that_is_no_probability(ccd, photos, tmp_path, threshold):
    student = create_student(StudentSettings("torchvision/resnet18", "random", 32), ["dog", "cat"])
    refused(f"--threshold {float(threshold)}", tag, student, photos, float(threshold))
    save_model(student, tmp_path/"model")
    code, out, err = ccd("predict", tmp_path, photos, "--threshold", threshold, "--out", tmp_path/"tags.csv")
    assert code == 2 and out == "" and any("--threshold" in line for line in err) and not (tmp_path/"tags.csv").exists()
