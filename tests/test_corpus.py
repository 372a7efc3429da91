"The corpus of bad input: every case has its stated outcome, and nothing that came with it was run."
import re
from collections import Counter

import pytest

from ccd.core import CCDError, unseen
from corpus import CORPUS, KINDS, LeftOut, Made, Used, make_common

THEIRS = re.compile("weights_only|trust_remote_code|allow_pickle|re-run|Re-run|Traceback")  # words of libraries, and advice that is none


@pytest.fixture(scope="session")
def common(tmp_path_factory): return make_common(tmp_path_factory.mktemp("common"))


def test_the_corpus_is_large_and_says_nothing_twice():
    assert len(CORPUS) >= 120 and min(Counter(c.kind for c in CORPUS).values()) >= 4
    assert len({(c.kind, c.what) for c in CORPUS}) == len(CORPUS) == sum(map(len, KINDS.values()))


@pytest.mark.parametrize("case", CORPUS, ids=lambda c: f"{c.kind}: {c.what}".encode("unicode_escape").decode())
def test_bad_input_has_its_stated_outcome(common, tmp_path, monkeypatch, case):
    monkeypatch.setattr("ccd.weights._answers", lambda: False)
    m = Made(tmp_path, common)
    if isinstance(case.outcome, Used): assert case.run(m) == case.outcome.value
    elif isinstance(case.outcome, LeftOut):
        name, why = case.outcome
        left = case.run(m)
        assert list(left) == [name] and why in left[name], left
    else:
        with pytest.raises(CCDError) as e: case.run(m)
        said = str(e.value)
        assert case.outcome in said and not THEIRS.search(said) and not any(map(unseen, said)), said
        assert said.count(": ") >= 1 or len(said) > 30, "what, and the mend"
    assert not m.ran.exists(), "foreign code was run"
