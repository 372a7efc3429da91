"Truth never reaches labelling or training: deleted or shuffled, it changes no byte of labels and weights."
import random
import shutil
from dataclasses import replace

from ccd.benchmarks import read_benchmark
from ccd.classes import TOY14
from ccd.methods import compare
from ccd.run import fit

SAME = ("labels.parquet", "views.parquet", "model/model.safetensors")


def test_truth_deleted_or_shuffled_gives_the_same_bytes(toy_root, tmp_path, small):
    train, test = read_benchmark("toy", toy_root, "train"), read_benchmark("toy", toy_root, "test")
    with_truth = fit(train, out=tmp_path/"with", s=small(), evaluation=test)

    shuffled = tmp_path/"shuffled"
    shutil.copytree(toy_root, shuffled)
    notes = sorted((shuffled/"VOCdevkit"/"VOCtoy"/"Annotations").glob("train_*.xml"))
    texts = [p.read_text() for p in notes]
    order = list(range(len(texts)))
    random.Random(1).shuffle(order)
    for p, k in zip(notes, order): p.write_text(texts[k])
    other = read_benchmark("toy", shuffled, "train")
    assert (other.truth != train.truth).any()
    with_shuffled = fit(other, out=tmp_path/"run2", s=small())

    without = fit(other.photos, classes=TOY14, out=tmp_path/"without", s=small())
    for name in SAME:
        assert (with_truth/name).read_bytes() == (with_shuffled/name).read_bytes() == (without/name).read_bytes(), name


def test_another_seed_gives_other_weights(toy_root, tmp_path, small):
    photos = read_benchmark("toy", toy_root, "train").photos
    a, b = (fit(photos, classes=TOY14, out=tmp_path/str(k), s=small(seed=k)) for k in (0, 1))
    assert (a/SAME[2]).read_bytes() != (b/SAME[2]).read_bytes()


def test_methods_without_labels_do_not_see_them(toy_root, tmp_path, small):
    train, test = read_benchmark("toy", toy_root, "train"), read_benchmark("toy", toy_root, "test")
    other = replace(train, truth=train.truth[::-1].copy())
    s = small(student__backbone="torchvision/resnet18", student__weights="random", student__freeze=3, student__size=32, train__epochs=2)
    got = []
    for k, b in enumerate((train, other)):
        names = ("discriminant", "student_discriminant", "ccd_discriminant", "an", "role", "cdul", "an@single")
        rows = compare(b, test, s, [0], tmp_path/f"{k}.json", names)
        got.append({r["method"]: r["eval_mean_ap"] for r in rows})
    assert [m for m in got[0] if got[0][m] != got[1][m]] == ["an@single"]
