"Two runs agree within the committed tolerance, and nothing else makes them agree."
import json

import pytest
import tiny
from hypothesis import assume, given
from hypothesis import strategies as st

from kullback.book.cli import main
from kullback.book.compare import compare_claims, said

FINITE = st.floats(-1e6, 1e6)


def claim(id, estimate, tolerance=.5, **more):
    return dict(id=id, kind="greater", estimate=estimate, tolerance=tolerance, unit="points", verdict="undecided") | more


def payload(*claims, slug="good", scale="small"): return dict(slug=slug, scale=scale, verdict="undecided", claims=list(claims))


@given(FINITE, FINITE, st.floats(0, 1e6))
def test_agreement_is_distance_within_the_committed_tolerance(a, b, tolerance):
    row, = compare_claims(payload(claim("x", a, None)), payload(claim("x", b, tolerance)))
    assert row.agrees == (abs(a - b) <= tolerance)


@given(st.lists(FINITE, min_size=1), st.data())
def test_exact_values_are_compared_one_by_one(values, data):
    "In whatever order the worst comes, and each with its own relative allowance."
    def exact(values): return claim("x", data.draw(st.sampled_from(values)), kind="exact", values=values, atol=.1, rtol=.01)
    near = [v + .09 + .009*abs(v) for v in values]
    assert compare_claims(payload(exact(near)), payload(exact(values)))[0].agrees
    at = data.draw(st.integers(0, len(values) - 1))
    far = [v + (.2 + .02*abs(v))*(i == at) for i, v in enumerate(values)]
    row, = compare_claims(payload(exact(far)), payload(exact(values)))
    assert not row.agrees and (row.run, row.committed) == (far[at], values[at])


def test_the_worst_exact_value_is_the_one_furthest_beyond_its_own_allowance():
    "A thousand may move by ten (1 %), a zero by a tenth."
    def exact(*values): return claim("x", values[0], kind="exact", values=list(values), atol=.1, rtol=.01)
    row, = compare_claims(payload(exact(1009., .2)), payload(exact(1000., 0.)))
    assert not row.agrees and (row.run, row.committed) == (.2, 0.)


@given(FINITE, FINITE)
def test_one_seed_states_no_tolerance(a, b):
    assume(a != b)
    assert not compare_claims(payload(claim("x", a)), payload(claim("x", b, None)))[0].agrees
    assert compare_claims(payload(claim("x", a)), payload(claim("x", a, None)))[0].agrees


def test_missing_claims_differ_and_a_turned_verdict_is_said():
    ours = payload(claim("both", 1.), claim("gone", 1.))
    yours = payload(claim("new", 1.), claim("both", 1.2, verdict="holds here"))
    rows = compare_claims(yours, ours)
    assert [(r.id, r.agrees, said(r)) for r in rows] == [
        ("both", True, "agrees, verdict undecided → holds here"), ("gone", False, "only committed"), ("new", False, "only in this run")]


@pytest.fixture
def root(tmp_path):
    root = tiny.clone(tmp_path)
    write(tiny.put(root, "good"), payload(claim("x", 1.)))
    tiny.put(root, "fresh")
    (root/"_runs/small").mkdir(parents=True)
    return root


def write(path, data):
    nb = tiny.page("good")
    nb["cells"][-1]["outputs"] = [dict(output_type="display_data", metadata={}, data={"application/vnd.kullback.claims+json": data})]
    path.write_text(json.dumps(nb))


def compare(root, *words):
    with pytest.raises(SystemExit) as stop: main(["compare", *map(str, words), "--root", str(root)])
    return stop.value.code


def test_the_exit_code_says_whether_they_differ(root, capsys):
    run = root/"_runs/small/good.ipynb"
    write(run, payload(claim("x", 1.5)))
    assert compare(root, "good") == 0 and compare(root, run) == 0
    assert "all 1 claims agree" in capsys.readouterr().out
    write(run, payload(claim("x", 1.6)))
    assert compare(root, "good") == 1 and "1 of 1 claims differ: x" in capsys.readouterr().out
    assert compare(root, run, run) == 0


@pytest.mark.parametrize("words, message", [
    (["god"], "did you mean good?"), (["good"], "no notebook"), (["nothing.ipynb"], "no notebook nothing.ipynb"),
    (["reproductions/x/good.ipynb", "fresh"], "holds no claims")])
def test_what_cannot_be_compared_is_refused(root, words, message, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert compare(root, *words) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_scales_do_not_mix(root, capsys):
    write(root/"_runs/small/good.ipynb", payload(claim("x", 1.), scale="smoke"))
    assert compare(root, "good") == 2 and "'smoke' and 'small'" in capsys.readouterr().err
