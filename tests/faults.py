"""What a run survives: a tiny fit on drawn scenes is killed, or refused by the system, wherever it touches the disk, and called again.
`python tests/faults.py` tries every point, `--points 3` a few of each kind; needs strace (Debian: apt-get install strace)."""
import argparse
import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = dict(student__size=64, views__size=64, views__per_image=2, train__epochs=3, train__warmup=1, labels__max_entropy=2.6)
SYNCS, RENAMES = ("fsync", "fdatasync"), ("rename", "renameat", "renameat2")
WRITES = "write", "pwrite64", "writev", "openat", "mkdir", "ftruncate"
KINDS = {  # name: system calls, what happens to one of them
    "killed at a rename": (RENAMES, "signal=KILL"),
    "killed at an fsync": (SYNCS, "signal=KILL"),
    "disk full": (WRITES, "error=ENOSPC"),
    "disk faulty": ((*WRITES, *RENAMES, *SYNCS), "error=EIO"),
}
SIGNALS = {"killed at any moment": signal.SIGKILL, "interrupted at any moment": signal.SIGINT}


def scenes(folder):
    "Photographs and a split to measure on, below `folder`."
    from ccd.toy import write_toy
    return write_toy(folder, dict(train=12, test=8), size=64)


def tiny(folder, splits):
    "The fit that is tried; its run folder and its cache lie in `folder`."
    from ccd.run import fit
    from ccd.settings import settings
    return fit(splits["train"], out=folder/"run", s=settings("toy", **TINY), evaluation=splits["test"], cache=folder/"cache")


def left(folder):
    "What a run has left: the digest of each file. Of config.json and metrics.json dates and seconds do not count."
    found = {}
    for path in sorted((folder/"run").rglob("*")):
        if path.is_dir(): continue
        data = path.read_bytes()
        if path.name in ("config.json", "metrics.json"):
            kept = {k: v for k, v in json.loads(data).items() if k not in ("date", "command", "seconds")}
            data = json.dumps(kept, sort_keys=True).encode()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def child(folder, splits):
    "The tiny fit in a process of its own that waits to be let go; how it ends is in the file `said`."
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER: strace is no parent of ours
        code = ended(folder, splits)
    finally: os._exit(code)


def ended(folder, splits):
    "Once it is let go, the exit code of the fit, as of the command; the line is kept."
    from ccd.options import said
    try:
        os.kill(os.getpid(), signal.SIGSTOP)
        tiny(folder, splits)
    except BaseException as e:
        try: code, line = said(e)
        except BaseException: code, line = 1, f"traceback: {e!r}"
        with open(folder.parent/"said", "a") as f: f.write(line + "\n")
        return code
    return 0


class Scene:
    "Where tries are made: drawn scenes, and what an undisturbed run of them leaves."
    def __init__(self, folder):
        self.folder = Path(folder)
        self.splits = scenes(self.folder/"scenes")
        start = time.monotonic()
        tiny(self.fresh(), self.splits)
        self.seconds, self.whole = time.monotonic() - start, left(self.at)

    def fresh(self):
        "An empty folder for a try."
        self.at = self.folder/"try"
        shutil.rmtree(self.at, ignore_errors=True)
        (self.folder/"said").unlink(missing_ok=True)
        self.at.mkdir()
        return self.at

    def traced(self, *options):
        "A run under strace: its exit code, -9 for killed, and what its first thread, which alone writes, asked of the system."
        trace = self.folder/"trace"
        pid = child(self.fresh(), self.splits)
        os.waitpid(pid, os.WUNTRACED)
        tracer = subprocess.Popen(["strace", "-q", "-y", "-o", trace, "-p", str(pid), *options], stderr=subprocess.DEVNULL)
        while f"TracerPid:\t{tracer.pid}\n" not in Path(f"/proc/{pid}/status").read_text():
            if tracer.poll() is not None: raise RuntimeError("strace cannot attach to a process here")
            time.sleep(.01)
        os.kill(pid, signal.SIGCONT)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        tracer.wait()
        return code, trace.read_text(errors="replace").splitlines()

    def points(self):
        "By kind, the calls of an undisturbed run that touch its folder or the cache: (name, how many of that name, itself the last)."
        every = sorted({c for calls, _ in KINDS.values() for c in calls})
        code, lines = self.traced("-e", f"trace={','.join(every)}")
        assert code == 0 and left(self.at) == self.whole
        seen, touching = Counter(), []
        for line in lines:
            name = line.partition("(")[0]
            seen[name] += 1
            if str(self.at) in line and (name != "openat" or "O_CREAT" in line): touching.append((name, seen[name]))
        return {kind: [point for point in touching if point[0] in calls] for kind, (calls, _) in KINDS.items()}

    def again(self, code):
        "What is wrong with a run that ended with `code`, and with the same call after it; empty where nothing is."
        said = self.folder/"said"
        lines = said.read_text().splitlines() if said.exists() else []
        wrong = []
        if code not in (0, -9) and (code not in (2, 130) or len(lines) != 1): wrong.append(f"ended with {code}: {lines}")
        pid = child(self.at, self.splits)
        os.waitpid(pid, os.WUNTRACED)
        os.kill(pid, signal.SIGCONT)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code: wrong.append(f"the same call ended with {code}: {said.read_text()}")
        now = left(self.at)
        return wrong + [f"{k} differs" for k in sorted(now.keys() | self.whole) if now.get(k) != self.whole.get(k)]

    def at_point(self, kind, point):
        "What is wrong after a fault of `kind` in a call of `points`."
        call, k = point
        code, lines = self.traced("-e", f"trace={call}", "-e", f"inject={call}:{KINDS[kind][1]}:when={k}")
        if code == 0 and not any("(INJECTED)" in line for line in lines): return ["the fault did not come"]
        return self.again(code)

    def at_moment(self, kind, share):
        "What is wrong after a signal at a share of an undisturbed run's time."
        pid = child(self.fresh(), self.splits)
        os.waitpid(pid, os.WUNTRACED)
        os.kill(pid, signal.SIGCONT)
        time.sleep(share*self.seconds)
        os.kill(pid, SIGNALS[kind])
        return self.again(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def unkept(self):
        "Files that got their names before the disk had them, or whose names it was never asked to keep."
        _, lines = self.traced("-e", f"trace={','.join(SYNCS + RENAMES)}")
        kept, wrong, published = set(), [], 0
        for n, line in enumerate(lines):
            if line.startswith("f"): kept.update(re.findall(r"<(.*?)>", line))
            if not line.startswith("rename") or str(self.at) not in line: continue
            old, new = re.findall(r'"(.*?)"', line)
            published += 1
            later = {p for x in lines[n:] if x.startswith("f") for p in re.findall(r"<(.*?)>", x)}
            if old not in kept or str(Path(new).parent) not in later: wrong.append(new)
        return published, wrong


def spread(points, most):
    "At most so many of the points, evenly apart."
    if most is None or len(points) <= most: return points
    return [points[(2*i + 1)*len(points)//(2*most)] for i in range(most)]


def tries(scene, points=None, moments=30, seed=0):
    "(kind, where, what is wrong) of each try."
    for kind, every in scene.points().items():
        for point in spread(every, points): yield kind, "{} {}".format(*point), scene.at_point(kind, point)
    draw = random.Random(seed)
    for kind in SIGNALS:
        for _ in range(moments):
            share = draw.random()
            yield kind, f"{share:.0%}", scene.at_moment(kind, share)


def main():
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--points", type=int, help="of each kind of call; all if left out")
    parse.add_argument("--moments", type=int, default=30, help="drawn moments of each kind of signal")
    parse.add_argument("--seed", type=int, default=0)
    args = parse.parse_args()
    if not shutil.which("strace"): sys.exit("strace is missing: apt-get install strace")
    with tempfile.TemporaryDirectory() as d:
        scene, count, bad = Scene(d), {}, 0
        for kind, where, wrong in tries(scene, args.points, args.moments, args.seed):
            good, n = count.get(kind, (0, 0))
            count[kind] = good + (not wrong), n + 1
            if wrong: print(f"{kind}, {where}: {'; '.join(wrong)}", flush=True)
        for kind, (good, n) in count.items(): print(f"{kind}: {good} of {n}")
        published, unkept = scene.unkept()
        print(f"kept by the disk before and after they got their names: {published - len(unkept)} of {published}", *unkept)
        bad = sum(n - good for good, n in count.values()) + len(unkept)
    sys.exit(bool(bad))


if __name__ == "__main__": main()
