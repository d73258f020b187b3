"The ledger on clones in miniature: order, staleness, and what git can and cannot say."
import json
import subprocess
from pathlib import Path

import pytest

from kullback.book.ledger import git, history, ledger_counts, ledger_rows, rule_and_run, rule_key
from kullback.testbed.claims import MIME, module_hashes, source_hash

ROOT = Path(__file__).resolve().parents[2]


def claim(**changed):
    return dict(id="gain", sentence="a beats b", primary=True, kind="greater", margin=.5, rtol=0., atol=0., unit="points", paper="1",
                source="paper", estimate=1., low=.6, high=1.4, level=.95, n=8, values=[1.], predicted=None, verdict="holds here",
                tolerance=.4) | changed


def page(slug, claims=None, rule='Claim("gain", "a beats b", greater(.5), primary=True)', modules=None, prose="."):
    cells = [dict(cell_type="raw", source=f"---\ntitle: The {slug}\n---", metadata={}),
             dict(cell_type="markdown", source=prose, metadata={}),
             dict(cell_type="code", source=rule, metadata={}, outputs=[])]
    nb = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
    if claims:
        data = dict(format=1, slug=slug, scale="small", seeds=8, device="cpu", hardware="2 CPU cores", date="2026-11-24",
                    run_seconds=5., versions={}, data=[], modules=modules or {}, verdict=claims[0]["verdict"], claims=claims,
                    source_sha256=source_hash(nb))
        cells[-1]["outputs"] = [dict(output_type="display_data", metadata={}, data={MIME: data})]
    return nb


def put(root, part, slug, nb):
    path = root/"reproductions"/part/f"{slug}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb), encoding="utf-8")
    return path


def commit(root):
    subprocess.run(["git", "-C", root, "add", "-A"], check=True)
    subprocess.run(["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "commit", "-qm", "x"], check=True)


@pytest.fixture
def clone(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def test_papers_come_in_the_books_order_and_the_primary_claim_first(tmp_path):
    second = claim(id="other", primary=False, verdict="undecided")
    for part, slug in (("quantize", "a"), ("divergence", "z"), ("align", "m"), ("later-room", "b")):
        put(tmp_path, part, slug, page(slug, [second, claim()]))
    rows = ledger_rows(tmp_path)
    assert [r["slug"] for r in rows] == ["z", "z", "m", "m", "a", "a", "b", "b"]
    assert [r["primary"] for r in rows] == [True, False]*4
    assert ledger_counts(rows) == dict(papers=4, joint=0, claims=8, stale=0, verdicts={"holds here": 4})


def test_a_joint_page_is_no_paper(tmp_path):
    said = page("b", [claim()])
    said["cells"][0]["source"] = "---\ntitle: The b\njoint: true\n---"
    for slug, nb in (("a", page("a", [claim()])), ("b", said), ("comparison", page("comparison", [claim()]))): put(tmp_path, "align", slug, nb)
    rows = ledger_rows(tmp_path)
    assert [r["joint"] for r in rows] == [False, True, True]
    assert ledger_counts(rows) | dict(stale=0) == dict(papers=1, joint=2, claims=3, stale=0, verdicts={"holds here": 1})


def test_a_page_without_a_run_has_no_row(tmp_path):
    put(tmp_path, "align", "a", page("a"))
    assert ledger_rows(tmp_path) == []


def test_a_run_goes_stale_with_code_not_with_comments(tmp_path):
    module = tmp_path/"kullback"/"part"/"idea.py"
    module.parent.mkdir(parents=True)
    module.write_text("def f(x):\n    return x + 1\n", encoding="utf-8")
    put(tmp_path, "align", "a", page("a", [claim()], modules=module_hashes(["kullback.part.idea"], root=tmp_path)))
    assert ledger_rows(tmp_path)[0]["stale"] == []
    module.write_text("def f(x):\n    return x + 1  # one more\n", encoding="utf-8")
    assert ledger_rows(tmp_path)[0]["stale"] == []
    module.write_text("def f(x):\n    return x + 2\n", encoding="utf-8")
    assert ledger_rows(tmp_path)[0]["stale"] == ["kullback.part.idea"]
    module.unlink()
    assert ledger_rows(tmp_path)[0]["stale"] == ["kullback.part.idea"]


@pytest.mark.parametrize("other, same", [
    ('Claim("gain", "in other words", greater(.5), paper="2", primary=True)', True),
    ('Claim(id="gain", sentence="a beats b", rule=greater(.5), primary=True)', True),
    ('Claim("gain", "a beats b", greater(0.5), source="mail", primary=True)  # a comment', True),
    ('Claim("gain", "a beats b", greater(.4), primary=True)', False),
    ('Claim("gain", "a beats b", less(.5), primary=True)', False),
    ('Claim("gain", "a beats b", greater(.5))', False),
    ('Claim("loss", "a beats b", greater(.5), primary=True)', False)])
def test_a_rule_is_its_id_direction_margin_and_rank(other, same):
    assert (rule_key(page("a")) == rule_key(page("a", rule=other))) is same


def test_rule_before_run_after_and_together(clone):
    path = put(clone, "align", "a", page("a"))
    commit(clone)
    put(clone, "align", "a", page("a", [claim()]))
    assert (rule_and_run(clone, path)["run"], rule_and_run(clone, path)["rule_first"]) == (None, None)   # run, not yet committed
    commit(clone)
    found = rule_and_run(clone, path)
    assert found["rule_first"] is True and found["rule"][0] != found["run"][0]
    put(clone, "align", "b", page("b", [claim()]))
    commit(clone)
    assert rule_and_run(clone, clone/"reproductions/align/b.ipynb")["rule_first"] is False
    assert rule_and_run(clone, path) == found                    # a neighbour's commit moves nothing


def test_a_margin_that_moved_after_the_run_is_seen(clone):
    path = put(clone, "align", "a", page("a"))
    commit(clone)
    nb = page("a", [claim()])
    put(clone, "align", "a", nb)
    commit(clone)
    nb["cells"][-1]["source"] = nb["cells"][-1]["source"].replace(".5", ".4")
    put(clone, "align", "a", nb)
    commit(clone)
    found, newest = rule_and_run(clone, path), history(clone, path)[0][0]
    assert found["rule"][0] == newest != found["run"][0] and found["rule_first"] is False


def test_a_shallow_clone_says_nothing_it_cannot_know(clone, tmp_path_factory):
    put(clone, "align", "a", page("a"))
    commit(clone)
    put(clone, "align", "a", page("a", [claim()]))
    commit(clone)
    copy = tmp_path_factory.mktemp("shallow")/"copy"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{clone}", copy], check=True)
    row, = ledger_rows(copy)
    assert (row["rule"], row["run"], row["rule_first"]) == (None, None, None) and row["verdict"] == "holds here"


def test_without_git_there_are_no_dates(clone, monkeypatch):
    put(clone, "align", "a", page("a", [claim()]))
    commit(clone)
    monkeypatch.setenv("PATH", "")
    assert git(clone, "log") is None
    row, = ledger_rows(clone)
    assert (row["rule"], row["run"], row["rule_first"]) == (None, None, None)


def test_every_committed_rule_precedes_its_result():
    rows = ledger_rows(ROOT)
    assert [r["slug"] for r in rows if r["rule_first"] is False] == []
    assert all(r["slug"] == Path(r["page"]).stem for r in rows)
