"A few of the faults of `faults.py`, for a process that has started no threads: `test_faults_kill.py` runs them."
import os
import shutil
import signal

import pytest

from faults import KINDS, SIGNALS, Scene, child, left, tries

@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    if not shutil.which("strace"): pytest.skip("strace is missing: apt-get install strace")
    scene = Scene(tmp_path_factory.mktemp("faults"))
    try: scene.traced("-e", "trace=fsync")
    except RuntimeError as e: pytest.skip(str(e))
    return scene


def test_a_run_that_is_killed_or_refused_goes_on_to_the_same_bytes(scene):
    found = list(tries(scene, points=1, moments=1))
    assert {kind for kind, _, _ in found} == {*KINDS, *SIGNALS}
    assert [(kind, where, wrong) for kind, where, wrong in found if wrong] == []


def test_files_are_kept_by_the_disk_before_and_after_they_get_their_names(scene):
    published, unkept = scene.unkept()
    assert published >= 10 and unkept == []


def test_a_second_process_is_refused_while_the_first_goes_on(scene):
    pid = child(scene.fresh(), scene.splits)
    os.waitpid(pid, os.WUNTRACED)
    os.kill(pid, signal.SIGCONT)
    while not (scene.at/"run"/"config.json").exists(): assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    assert scene.again(0) and "run is being written by another process" in (scene.folder/"said").read_text()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and left(scene.at) == scene.whole
