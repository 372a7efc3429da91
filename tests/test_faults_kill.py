"Killed, interrupted, refused by the disk, or two at once: nothing is lost, and the same command goes on."
import json
import os
import shutil
import signal
import subprocess
import sys
from errno import ENOSPC
from pathlib import Path

import pytest

from ccd import run as run_module
from ccd.benchmarks import Benchmark
from ccd.core import read_json, write_json
from ccd.data import Photos
from ccd.results import Rows
from ccd.settings import settings
from conftest import ROOT

FAST = ["--preset", "toy", "--set", "train.epochs=2", "--set", "train.warmup=1", "--set", "student.size=64", "--set", "views.size=64",
        "--set", "views.per_image=2"]


# --- points at which a run is killed or refused: a few here, all by `python tests/faults.py`

def test_a_run_that_is_killed_or_refused_goes_on_to_the_same_bytes():
    "In a process of its own: faults are made in forks of it, and a process that has started threads must not be forked."
    if not shutil.which("strace"): pytest.skip("strace is missing: apt-get install strace")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", ROOT/"tests"/"faults_alone.py"],
                          env=os.environ | dict(OMP_NUM_THREADS="1"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    if "3 passed" not in done.stdout: pytest.skip(done.stdout.splitlines()[-2])


# --- commands

@pytest.fixture
def fit(ccd, photos, tmp_path):
    return lambda *more: ccd("fit", photos, "--classes", "star, heart", "--out", tmp_path/"run", *FAST, *more)


def test_an_interrupted_fit_says_where_it_stands_and_what_to_type(fit, ccd, photos, tmp_path, monkeypatch):
    def interrupted(run, record, add=run_module.write_log):
        add(run, record)
        signal.raise_signal(signal.SIGINT)
    with monkeypatch.context() as m:
        m.setattr(run_module, "write_log", interrupted)
        code, out, err = fit()
    assert (code, out) == (130, "")
    command = f"ccd fit {photos} --classes 'star, heart' --out "
    assert err[-1].startswith(f"ccd: {tmp_path/'run'}: stopped after epoch 1 of 2; to go on: {command}")
    code, _, err = ccd("predict", tmp_path/"run", photos, "--out", tmp_path/"tags.csv")
    assert code == 2 and len(err) == 1 and "is a run that is not finished: the same command goes on: " in err[0]
    with monkeypatch.context() as m:
        def retrained(*a, load=run_module.load_teacher):
            teacher = load(*a)
            teacher.fingerprint = "f"*64
            return teacher
        m.setattr(run_module, "load_teacher", retrained)
        code, _, err = fit()
        assert code == 2 and "checkpoint.pt belongs to other settings or labels" in err[-1]
    code, out, err = fit()
    assert code == 0 and any("goes on after epoch 1 of 2" in line for line in err) and "run folder: " in out
    assert len((tmp_path/"run"/"log.jsonl").read_text().splitlines()) == 2
    assert {oct(p.stat().st_mode) for p in (tmp_path/"run").rglob("*.*")} == {"0o100644"}, "who may read one may read all"
    kept = (tmp_path/"run"/"metrics.json").read_text()
    code, out, err = fit()
    assert code == 0 and any("is finished already" in line for line in err) and "run folder: " in out
    code, out, err = fit("--seed", 5)
    assert code == 2 and "run exists already, with seed 0 in place of 5: give another --out, or --overwrite" in err[-1]
    assert (tmp_path/"run"/"metrics.json").read_text() == kept
    assert fit("--seed", 5, "--overwrite")[0] == 0 and read_json(tmp_path/"run"/"config.json")["settings"]["seed"] == 5


def test_a_disk_that_is_full_is_one_line_in_every_command(fit, ccd, photos, toy_root, tmp_path, monkeypatch):
    measured = ["--benchmark", "toy", "--root", toy_root, "--eval-split", "test", "--seeds", 1, "--limit", 4, "--out", tmp_path/"rows.json"]
    assert fit()[0] == 0
    before = sorted(tmp_path.rglob("*"))

    def full(fd): raise OSError(ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    for command in (
        ["fit", photos, "--classes", "star, heart", "--out", tmp_path/"new", *FAST],
        ["label", photos, "--classes", "star, heart", "--preset", "toy", "--out", tmp_path/"labels.csv", "--cache", "none"],
        ["predict", tmp_path/"run", photos, "--out", tmp_path/"tags.csv"],
        ["compare", *measured, *FAST, "--methods", "an", "--cache", "none"],
        ["toy", tmp_path/"toy", "--train", 1, "--test", 1]):
        code, out, err = ccd(*command)
        assert code == 2 and out == "" and "cannot be written (No space left on device): " in err[-1], (command, err)
    for p in ("new", "toy/VOCdevkit/VOCtoy/JPEGImages", "toy/VOCdevkit/VOCtoy", "toy/VOCdevkit", "toy"):
        if (tmp_path/p).exists(): (tmp_path/p).rmdir()  # empty
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_output_that_cannot_be_printed_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", "from ccd.cli import main; main()", "settings"]
        got = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert got.returncode == 2
    assert got.stderr == "ccd: output cannot be read or written (No space left on device): look at its disk and rights\n"


# --- results

def test_two_processes_on_one_results_file_lose_no_row(tmp_path):
    one, pids = Benchmark("toy", "train", Photos(Path("nowhere"), ["0.jpg"]), [], [], []), []
    both = [Rows(tmp_path/"rows.json", settings(), one, one, ["a", "b"]) for _ in range(2)]
    for who, rows in enumerate(both):
        pids.append(os.fork())
        if pids[-1]: continue
        try:
            for seed in range(8): rows.add(dict(method="ab"[who], seed=seed, labels_train_mean_ap=1., eval_mean_ap=2., seconds=3.))
        except BaseException: os._exit(1)
        finally: os._exit(0)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    assert [(r["seed"], r["method"]) for r in read_json(tmp_path/"rows.json")["rows"]] == [(s, m) for s in range(8) for m in "ab"]
    assert os.listdir(tmp_path) == ["rows.json"]


def test_a_file_of_rows_says_what_it_was_made_with(tmp_path):
    one = Benchmark("toy", "train", Photos(Path("nowhere"), ["0.jpg"]), [], [], [])
    Rows(tmp_path/"rows.json", settings(), one, one, ["a"]).add(
        dict(method="a", seed=0, labels_train_mean_ap=1., eval_mean_ap=2., seconds=3.))
    held = read_json(tmp_path/"rows.json")
    held["provenance"]["settings"]["labels"]["alpha"] = .9
    write_json(tmp_path/"rows.json", held)
    with pytest.raises(Exception, match="labels.alpha 0.9 in place of 0.4.: give another --out, or remove it"):
        Rows(tmp_path/"rows.json", settings(), one, one, ["a"])
    assert json.loads((tmp_path/"rows.json").read_text()) == held
