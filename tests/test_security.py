"What SECURITY.md promises of a run: photographs are only read, nothing is connected to, and nothing is written outside its folder."
import hashlib
import re
import shutil
import socket

import pytest
from jinja2 import Environment

from conftest import ROOT

SMALL = [x for v in ("train.epochs=2", "train.warmup=1", "student.size=64", "views.size=64", "views.per_image=1") for x in ("--set", v)]


def tree(folder):
    "Every file below `folder`: its bytes and its time."
    return {p.relative_to(folder): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
            for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def alone(monkeypatch):
    "Addresses that something in this process connects to, which fails."
    asked = []

    def connect(self, address):
        asked.append(address)
        raise OSError("no network")
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **kw: connect(None, a))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return asked


def test_a_run_reads_photographs_and_connects_to_nothing(ccd, photos, tmp_path, alone):
    (tmp_path/"in").mkdir()
    for p in sorted(photos.iterdir())[:8]: shutil.copy(p, tmp_path/"in")
    (tmp_path/"in"/"text.jpg").write_text("not an image")
    before = tree(tmp_path)
    classes = ["--classes", "star, heart, house"]
    assert ccd("fit", tmp_path/"in", *classes, "--preset", "toy", "--out", tmp_path/"run", *SMALL)[0] == 0
    assert ccd("predict", tmp_path/"run", tmp_path/"in", "--out", tmp_path/"tags.csv")[0] == 0
    assert ccd("label", tmp_path/"in", *classes, "--limit", 2, "--out", tmp_path/"labels.csv")[0] == 0  # the offline teacher
    after = tree(tmp_path)
    assert alone == [] and {k: after[k] for k in before} == before
    assert {k.parts[0] for k in after.keys() - before.keys()} == {"run", "tags.csv", "labels.csv"}


def test_the_fixture_sees_a_connection(alone):
    from ccd.weights import _answers
    assert not _answers() and alone


def test_the_report_runs_no_name():
    page = (ROOT/"ccd"/"assets"/"report.html").read_text(encoding="utf-8")
    assert "|safe" not in page.replace(" ", "") and "autoescape false" not in page
    assert (ROOT/"ccd"/"demo.py").read_text(encoding="utf-8").count("Environment(") == 1 == page.count("<title>")
    assert "Environment(autoescape=True)" in (ROOT/"ccd"/"demo.py").read_text(encoding="utf-8")
    text = Environment(autoescape=True).from_string("<td>{{ name }}</td>").render(name="<img src=x onerror=alert(1)>")
    assert "<img" not in text


def test_every_promise_names_a_test_or_command_that_is_there():
    promises = re.findall(r"^\| \d+ \|.*$", (ROOT/"SECURITY.md").read_text(encoding="utf-8"), re.M)
    assert len(promises) >= 12
    for line in promises:
        held = re.findall(r"`(?:tests/)?(test_\w+|guards|mutate)\.py(?:::(\w+))?`", line)
        assert held or "make " in line, line
        for file, test in held:
            text = (ROOT/"tests"/f"{file}.py").read_text(encoding="utf-8")
            assert not test or f"def {test}(" in text, line


def test_torch_reads_weights_and_nothing_else():
    "No call of `torch.load` in the library that could run what a pickle says."
    calls = [line for file in (ROOT/"ccd").glob("*.py") for line in file.read_text(encoding="utf-8").splitlines() if "torch.load(" in line]
    assert calls and all("weights_only=True" in line for line in calls)
