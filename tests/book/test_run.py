"What is refused before a kernel starts, and what papermill makes of what we pass on."
import json
import os

import pytest
import tiny
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill import cli as pm
from papermill.iorw import NoDatesSafeLoader
from papermill.translators import PythonTranslator

from kullback.book.cli import main
from kullback.book.run import (
    Refusal,
    Result,
    committed_form,
    failed_path,
    finished,
    papermill_call,
    papermill_value,
    parameters,
    plan,
    read_notebook,
    read_summary,
    read_value,
    scale_values,
    threads_each,
    write_summary,
    write_whole,
)
from kullback.testbed.claims import source_hash


@pytest.fixture
def root(tmp_path):
    root = tiny.clone(tmp_path)
    tiny.put(root, "good")
    return root


MISTAKES = {
    "unknown slug": (["goood"], "unknown slug goood (did you mean good?)"),
    "unknown scale": (["good", "--scale", "smal"], "unknown scale smal (did you mean small?)"),
    "unknown parameter": (["good", "-p", "seed=2"], "good has no parameter seed (did you mean seeds?)"),
    "a word for an int": (["good", "-p", "seeds=two"], "good: seeds must be int, got 'two'"),
    "a float for an int": (["good", "-p", "seeds=2.5"], "good: seeds must be int, got '2.5'"),
    "a truth for an int": (["good", "-p", "seeds=True"], "good: seeds must be int, got 'True'"),
    "words in a list of numbers": (["good", "-p", "grid=['a']"], "good: grid must be list[float], got \"['a']\""),
    "no equals sign": (["good", "-p", "seeds"], "-p takes name=value, got 'seeds'"),
    "the scale as a parameter": (["good", "-p", "scale=paper"], "--scale"),
    "in place at another scale": (["good", "--in-place", "--scale", "smoke"], "--in-place"),
    "in place with a parameter": (["good", "--in-place", "-p", "seeds=9"], "--in-place"),
    "nothing": ([], "--all"),
    "a slug and all": (["good", "--all"], "--all"),
    "no workers": (["good", "--jobs", "0"], "--jobs must be at least 1, got 0"),
}


@pytest.mark.parametrize("words, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_starts_nothing(root, words, message, capfd):
    with pytest.raises(SystemExit) as stop: main(["run", *words, "--root", str(root)])
    out, err = capfd.readouterr()
    assert stop.value.code == 2
    assert message in err and len(err.splitlines()) == 1 and not out
    assert not (root/"_runs").exists()


def test_outside_a_clone(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KULLBACK_ROOT", raising=False)
    with pytest.raises(SystemExit) as stop: main(["run", "good"])
    assert stop.value.code == 2 and "clone the repository" in capfd.readouterr().err


DEFECTS = {
    "no parameter cell": (dict(head=None), "no cells are tagged `parameters`"),
    "a computed parameter": (dict(head="seeds: int = 4*2\nscale: str = 'small'"), "(line 1)"),
    "no scale parameter": (dict(head="seeds: int = 8"), "scale: str"),
    "reported at another scale": (dict(head="seeds: int = 8\nscale: str = 'smoke'"), "scale: str"),
    "a type nobody knows": (dict(head="seeds: Count = 8\nscale: str = 'small'"), "`Count`"),
    "no front matter": (dict(front=None), "no front matter"),
    "front matter without scales": (dict(front="---\ntitle: Tiny\n---"), "no `scales:`"),
    "no such scale": (dict(front="---\nscales: {paper: {seeds: 5}}\n---"), "no scale `smoke`"),
    "front matter is no YAML": (dict(front="---\ntitle: [\n---"), "not YAML"),
    "a scale that sets nothing real": (dict(front="---\nscales: {smoke: {seed: 1}}\n---"), "`seed`, which the parameter cell"),
    "a scale of the wrong type": (dict(front="---\nscales: {smoke: {seeds: few}}\n---"), "'few' is no int"),
    "a scale under another name": (dict(front="---\nscales: {smoke: {scale: small}}\n---"), "`small` under `smoke`"),
}


@pytest.mark.parametrize("parts, message", DEFECTS.values(), ids=DEFECTS)
def test_a_defective_page_fails_alone(root, parts, message, capfd):
    tiny.put(root, "bad", **parts)
    jobs, defects = plan(root, [], "smoke", every=True)
    assert [j.slug for j in jobs] == ["good"] and message in defects["bad"]
    with pytest.raises(SystemExit) as stop: main(["run", "bad", "--scale", "smoke", "--root", str(root)])
    assert stop.value.code == 1 and message in capfd.readouterr().out
    assert [(r["slug"], r["status"]) for r in read_summary(root, "smoke")] == [("bad", "failed")]


def test_a_file_that_is_no_notebook(root):
    tiny.put(root, "bad").write_text("<<<<<<< ours\n{}")
    assert "line 1" in plan(root, ["bad"])[1]["bad"]


def test_one_slug_names_one_page(root):
    (root/"reproductions"/"y").mkdir()
    (root/"reproductions"/"y"/"good.ipynb").write_text("{}")
    with pytest.raises(Refusal, match="two pages share the slug good"): plan(root, ["good"])


def test_scales_are_rows_over_the_parameter_cell(root):
    nb = read_notebook(tiny.put(root, "good"))
    assert scale_values(nb, "small") == {}
    assert scale_values(nb, "smoke") == dict(scale="smoke", seeds=1)
    assert scale_values(nb, "paper") == dict(scale="paper", seeds=10, lr=1e-3)  # YAML reads 1e-3 as a string
    job = plan(root, ["good"], "paper", ["seeds=3", "teacher=None", "grid=[1]"])[0][0]
    assert job.parameters == dict(scale="paper", seeds=3, lr=1e-3, teacher=None, grid=[1])


def test_we_and_papermill_read_the_same_parameter_cell(root):
    "Names and annotations; papermill's reader cannot see `|`, nor a line with `=` in its comment."
    from papermill import inspect_notebook
    page = root/"plain.ipynb"
    page.write_text(json.dumps(tiny.page("plain", head="a: int = 1  # one\nb: list[float] = [.1]\nc = 'x'\nscale: str = 'small'")))
    theirs = inspect_notebook(str(page).replace("{", "{{").replace("}", "}}"))
    ours = parameters(read_notebook(page))
    assert list(ours) == list(theirs)
    assert [(p.kind, p.comment) for p in ours.values()] == [("int", "one"), ("list[float]", ""), ("str", ""), ("str", "")]
    assert list(parameters(tiny.page("x"))) == ["seeds", "device", "scale", "lr", "grid", "teacher"]


GUESSED = st.sampled_from(["True", "False", "None", "5", "1e3", "-.5", "nan", "1_0"])  # papermill's -p makes something else of these
VALUES = {"bool": st.booleans(), "int": st.integers(), "float": st.floats(allow_nan=False), "str": st.text() | GUESSED,
          "list[float]": st.lists(st.floats(allow_nan=False)), "list[str]": st.lists(st.text() | GUESSED),
          "dict": st.dictionaries(st.text(), st.integers() | st.text()), "int | None": st.none() | st.integers()}
KINDED = st.sampled_from(sorted(VALUES)).flatmap(lambda kind: VALUES[kind].map(lambda v: (kind, v)))


@given(KINDED)
@settings(max_examples=300, deadline=None)
def test_papermill_receives_exactly_this_value(kinded):
    "Its own readers of -p, -r and -y, then the Python that it injects."
    kind, value = kinded
    how, *rest = papermill_value("v", value)
    received = {"-p": lambda: pm._resolve_type(rest[1]), "-r": lambda: rest[1],
                "-y": lambda: yaml.load(rest[0], Loader=NoDatesSafeLoader)["v"]}[how]()
    assert (type(received), received) == (type(value), value)
    scope = {}
    exec(PythonTranslator.assign("v", PythonTranslator.translate(received)), scope)
    assert scope["v"] == value and type(scope["v"]) is type(value)


@given(KINDED)
@settings(max_examples=300, deadline=None)
def test_a_typed_value_is_read_back(kinded):
    kind, value = kinded
    text = value if isinstance(value, str) else repr(value)
    if kind == "str" or "inf" not in text: assert read_value(text, kind) == value


def test_the_call_keeps_braces(root):
    "Papermill formats paths: a brace in a folder's name must not become a placeholder."
    from papermill.parameterize import parameterize_path
    job = plan(root, ["good"], "smoke")[0][0]
    call = papermill_call(job)
    assert [parameterize_path(p, {}) for p in call[1:3]] == [str(job.page), str(job.output)]


def test_cores_are_shared():
    cores = len(os.sched_getaffinity(0))
    assert threads_each(1) is None and threads_each(2) == max(1, cores//2) and threads_each(10**6) == 1


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path/"a.txt"
    write_whole(path, "first")
    with pytest.raises(UnicodeEncodeError): write_whole(path, "second \ud800")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]


def test_finished_means_this_source_and_these_parameters(root):
    job, = plan(root, ["good"], "smoke")[0]
    assert finished(job) is None
    note = dict(slug="good", scale="smoke", status="ok", seconds=3., notebook="_runs/smoke/good.ipynb",
                parameters=job.parameters, source_sha256=source_hash(job.page))
    nb = tiny.page("good")
    write_whole(job.output, json.dumps(nb | dict(metadata=dict(kullback=note))))
    assert finished(job).status == "skipped" and finished(job).seconds == 3.
    assert finished(plan(root, ["good"], "smoke", ["seeds=2"])[0][0]) is None
    write_whole(failed_path(job), "{}")
    assert finished(job) is None  # a later run failed
    failed_path(job).unlink()
    tiny.put(root, "good", body="2 + 2")
    assert finished(plan(root, ["good"], "smoke")[0][0]) is None


def test_the_summary_remembers_other_pages(root):
    tiny.put(root, "also")
    write_summary(root, "smoke", [Result("good", "smoke", "ok", 1., "a"), Result("also", "smoke", "failed", 2., "")])
    write_summary(root, "smoke", [Result("good", "smoke", "failed", 3., "")])
    write_summary(root, "smoke", [Result("also", "smoke", "skipped", 0., "")])
    assert [(r["slug"], r["status"]) for r in read_summary(root, "smoke")] == [("also", "failed"), ("good", "failed")]
    assert read_summary(root, "paper") == []


def test_the_committed_form_is_what_nbdev_clean_leaves(root):
    from nbdev.clean import _nbdev_clean, process_write
    nb = tiny.page("good")
    nb["metadata"] |= dict(papermill=dict(duration=1.), language_info=dict(name="python"), kullback=dict(a=1))
    for c in nb["cells"]: c["metadata"] |= dict(papermill=dict(duration=1.), tags=c["metadata"].get("tags", []))
    text = committed_form(nb, root)
    assert "papermill" not in text and '"tags": []' not in text
    path = root/"reproductions"/"x"/"clean.ipynb"
    path.write_text(text)
    process_write("cannot clean", lambda nb: _nbdev_clean(nb, path=root), str(path))
    assert path.read_text() == text
    assert list(parameters(read_notebook(path))) == list(parameters(tiny.page("good")))
