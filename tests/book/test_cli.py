"The command as a user meets it: whole runs, failures, Ctrl-C, --resume, --in-place."
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import tiny

from kullback.book.cli import main
from kullback.testbed.claims import MIME, Claim, Claims, exact, greater

WAIT = "import os, time\nwhile not os.path.exists('_go'): time.sleep(.1)"


def here(*words):
    "The command in this process, for what needs no kernel."
    with pytest.raises(SystemExit) as stop: main(list(map(str, words)))
    return stop.value.code


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "One parallel run over pages that end in every way."
    root = tiny.clone(tmp_path_factory.mktemp("ran"))
    tiny.put(root, "good")
    tiny.put(root, "raises", "x = 1\n\ndef f(): return 1/0\nf()")
    tiny.put(root, "quiet", claims=None)
    tiny.put(root, "dies", "import os\nos.kill(os.getpid(), 9)")
    tiny.put(root, "untagged", head=None)
    tiny.put(root, "absent", "from kullback.testbed.data import load\nload('cifar100-q90')")
    tiny.put(root, "damaged", "from kullback.testbed.routes import Pinned, fetch\nfetch(Pinned('digits.csv.gz', 64*'0', 10))")
    (root/"_data").mkdir()
    (root/"_data"/"digits.csv.gz").write_text("not these bytes")
    return root, tiny.kullback("run", "--all", "--scale", "smoke", "--jobs", 2, cwd=root, KULLBACK_DATA=str(root/"_data"))


def test_a_failure_is_named_kept_and_does_not_stop_the_others(ran):
    root, done = ran
    assert done.returncode == 1 and not done.stderr
    said = done.stdout
    assert "raises  FAILED in cell 4 of 5, line 4: f()\n  ZeroDivisionError: division by zero" in said
    assert "kept with its traceback: _runs/smoke/raises.failed.ipynb" in said
    assert "quiet  FAILED\n  the page ran to its end but displayed no claims" in said
    assert "dies  FAILED in cell 4 of 5" in said and "Kernel died" in said
    assert "untagged  FAILED\n  no cells are tagged `parameters`" in said
    assert "absent  FAILED in cell 4 of 5, line 2: load('cifar100-q90')\n  DataError: cifar100-q90 cannot be had here" in said
    assert "$KULLBACK_DATA holds no cifar100_train.npz" in said
    assert "damaged  FAILED in cell 4 of 5, line 2" in said and "checksum mismatch: digits.csv.gz from the local folder" in said
    assert "1 of 7 ran well" in said
    kept = json.loads((root/"_runs/smoke/raises.failed.ipynb").read_text())
    assert any(o["output_type"] == "error" for c in kept["cells"] for o in c.get("outputs", []))
    assert sorted(p.name for p in (root/"_runs/smoke").iterdir()) == [
        "absent.failed.ipynb", "damaged.failed.ipynb", "dies.failed.ipynb", "good.ipynb", "quiet.failed.ipynb", "raises.failed.ipynb", "summary.json"]


def test_the_summary_says_how_each_page_ended(ran):
    root, _ = ran
    rows = {r["slug"]: r for r in json.loads((root/"_runs/smoke/summary.json").read_text())["runs"]}
    failed = ["absent", "damaged", "dies", "quiet", "raises", "untagged"]
    assert {s: r["status"] for s, r in rows.items()} == dict.fromkeys(failed, "failed") | dict(good="ok")
    assert rows["good"]["notebook"] == "_runs/smoke/good.ipynb" and rows["good"]["parameters"] == dict(scale="smoke", seeds=1)


def test_parallel_jobs_share_the_cores(ran):
    assert shown_threads(ran[0]) == str(max(1, len(os.sched_getaffinity(0))//2))


def shown_threads(root): return tiny.shown(tiny.executed(root, "good"))["threads"]


def test_the_printed_call_does_the_same(ran):
    "Pasted into a shell with another output, papermill makes the same notebook of it."
    root, done = ran
    call = next(line for line in done.stdout.splitlines() if line.startswith("good  $ ")).removeprefix("good  $ ")
    call = call.replace("_runs/smoke/good.ipynb", "_runs/again.ipynb")
    env = tiny.environment(PATH=os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])
    subprocess.run(call, shell=True, cwd=root, env=env, check=True, capture_output=True, timeout=120)
    again = json.loads((root/"_runs/again.ipynb").read_text())
    ours = tiny.executed(root, "good")
    assert tiny.sources(again) == tiny.sources(ours) and tiny.shown(again) == tiny.shown(ours)


def test_a_failing_rerun_leaves_the_good_run(ran):
    root, _ = ran
    before = (root/"_runs/smoke/good.ipynb").read_bytes()
    tiny.put(root, "good", "raise FileNotFoundError('digits: tried $KULLBACK_DATA and PyPI')")
    done = tiny.kullback("run", "good", "--scale", "smoke", cwd=root)
    assert done.returncode == 1 and "FileNotFoundError: digits: tried $KULLBACK_DATA and PyPI" in done.stdout
    assert (root/"_runs/smoke/good.ipynb").read_bytes() == before
    assert (root/"_runs/smoke/good.failed.ipynb").exists()


def test_a_parameter_from_any_folder(tmp_path):
    root = tiny.clone(tmp_path)
    tiny.put(root, "good")
    deep = root/"nbs"/"divergence"
    deep.mkdir(parents=True)
    done = tiny.kullback("run", "good", "-p", "seeds=5", "-p", "teacher=5", cwd=deep)
    assert done.returncode == 0, done.stderr
    nb = tiny.executed(root, "good", "small")
    assert '# Parameters\nseeds = 5\nteacher = "5"\n' in tiny.sources(nb)
    assert tiny.shown(nb)["claims"][0]["estimate"] == 5. and tiny.shown(nb)["threads"] is None
    assert (root/"reproductions/x/good.ipynb").read_text() == json.dumps(tiny.page("good"))


def start(root, *words):
    return subprocess.Popen(tiny.command(*words), cwd=root, env=tiny.environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(.05)


def alive(pid):
    try: return open(f"/proc/{pid}/stat").read().split()[2] != "Z"
    except FileNotFoundError: return False


def test_ctrl_c_loses_only_what_is_in_flight(tmp_path):
    root = tiny.clone(tmp_path)
    tiny.put(root, "a-quick")
    tiny.put(root, "b-slow", "import os\nopen('_pid', 'w').write(str(os.getpid()))\n" + WAIT)
    tiny.put(root, "c-next", WAIT)  # may start before the interrupt, never ends before it
    words = ["run", "--all", "--scale", "smoke", "--jobs", "2"]
    quick = root/"_runs/smoke/a-quick.ipynb"
    running = start(root, *words)
    wait_for(lambda: quick.exists() and (root/"_pid").exists() and (root/"_pid").read_text())
    finished = quick.read_bytes()
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert len(err.splitlines()) == 1 and "1 finished and kept, 2 to do (b-slow, c-next)" in err
    assert shlex.join(["kullback", *words, "--resume"]) in err
    assert "Traceback" not in out + err
    assert sorted(p.name for p in (root/"_runs/smoke").iterdir()) == ["a-quick.ipynb", "summary.json"]
    assert quick.read_bytes() == finished
    wait_for(lambda: not alive(int((root/"_pid").read_text())), 15)

    (root/"_go").touch()
    again = tiny.kullback(*words, "--resume", cwd=root)
    assert again.returncode == 0, again.stdout
    assert "a-quick  finished before, skipped" in again.stdout and "3 of 3 ran well" in again.stdout
    assert quick.read_bytes() == finished
    assert {p.name for p in (root/"_runs/smoke").iterdir()} == {"a-quick.ipynb", "b-slow.ipynb", "c-next.ipynb", "summary.json"}


def test_in_place_writes_what_would_be_committed(tmp_path):
    root = tiny.clone(tmp_path)
    page = tiny.put(root, "good", claims=tiny.HASH + tiny.CLAIMS)
    edited = tiny.put(root, "edited", "from pathlib import Path\np = Path('reproductions/x/edited.ipynb')\n"
                      "p.write_text(p.read_text().replace('# Tiny', '# Edited'))")
    done = tiny.kullback("run", "--all", "--in-place", "--jobs", 2, cwd=root)
    assert done.returncode == 1
    nb = json.loads(page.read_text())
    assert tiny.sources(nb) == tiny.sources(tiny.page("good", claims=tiny.HASH + tiny.CLAIMS)) and tiny.shown(nb)["scale"] == "small"
    assert [c["metadata"] for c in nb["cells"]] == [{}, {}, dict(tags=["parameters"]), {}, {}] and set(nb["metadata"]) == {"kernelspec"}
    assert "edited while it ran" in done.stdout and "# Edited" in edited.read_text() and "outputs\": []" in edited.read_text()
    before = page.read_bytes()
    again = tiny.kullback("run", "good", "--in-place", "--resume", cwd=root)
    assert again.returncode == 0 and "good  finished before, skipped" in again.stdout and page.read_bytes() == before


def test_the_command_starts_without_torch():
    code = "import sys, kullback.book.cli; print([m for m in ('torch', 'numpy', 'papermill', 'nbformat') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=tiny.environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_list_shows_every_page_and_what_is_wrong_with_it(tmp_path, capsys):
    root = tiny.clone(tmp_path)
    tiny.put(root, "good")
    tiny.put(root, "bad", front=None)
    assert here("list", "--root", root) == 0
    rows = {line.split("│")[2].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "not run yet" in rows["good"] and "small smoke paper" in rows["good"] and "no front matter" in rows["bad"]


def test_a_new_page_runs_at_scale_smoke(tmp_path, capsys):
    root = tiny.clone(tmp_path)
    assert here("new", "classify", "smooth-digits", "--root", root) == 0
    assert "kullback run smooth-digits --scale smoke" in capsys.readouterr().out
    done = tiny.kullback("run", "smooth-digits", "--scale", "smoke", cwd=root, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout
    claims = tiny.shown(tiny.executed(root, "smooth-digits"))
    assert [c["verdict"] for c in claims["claims"]] == ["no verdict (smoke)"]*2 and claims["data"][0]["name"] == "digits"
    run = root/"_runs/smoke/smooth-digits.ipynb"
    assert here("compare", run, run, "--root", root) == 0 and "all 2 claims agree" in capsys.readouterr().out
    assert here("new", "distill", "smooth-digits", "--root", root) == 2 and "smooth-digits exists" in capsys.readouterr().err


def test_the_ledger_lists_what_was_committed(tmp_path, capsys):
    root = tiny.clone(tmp_path)
    page = tiny.put(root, "good")
    assert here("ledger", "--root", root) == 0 and "no page has been run yet" in capsys.readouterr().out
    rules = [Claim("a", "it helps [much]", greater(0), paper="69.90 → 71.96", primary=True), Claim("b", "it is itself", exact(atol=1.))]
    claims = Claims("good", rules, seeds=5)
    claims.paired("a", [1., 2., 3., 2., 1.])
    claims.exact("b", 1., 1.)
    nb = json.loads(page.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        data = {MIME: claims.payload() | {"modules": {"kullback.part.gone": "0"}}}
    nb["cells"][-1]["outputs"] = [dict(output_type="display_data", metadata={}, data=data)]
    page.write_text(json.dumps(nb))
    assert here("ledger", "--root", root) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if "│" in line and "it " in line]
    assert all(word in first for word in ("good", "it helps [much]", "+1.8", "69.90 → 71.96", "holds here"))
    assert "it is itself" in second and "reproduced (stale)" in second  # a module that the run rested on is gone


def test_a_reported_run_comes_back_or_is_named(tmp_path):
    "`again` executes what was committed and fails where a claim has left its tolerance."
    root = tiny.clone(tmp_path)
    claims = tiny.CLAIMS.replace('slug=SLUG', 'slug=SLUG, date="2026-01-01", run_seconds=2., modules={}').replace(
        'source_sha256=SOURCE', 'source_sha256="", seeds=seeds')
    path = tiny.put(root, "good", claims=claims)
    assert tiny.kullback("run", "good", "--in-place", cwd=root).returncode == 0
    done = tiny.kullback("again", "--minutes", "1", cwd=root)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "good: comes back")
    nb = json.loads(path.read_text())
    moved = next(o["data"][MIME] for c in nb["cells"] for o in c.get("outputs", []) if MIME in o.get("data", {}))
    moved["claims"][0]["estimate"] += 3
    path.write_text(json.dumps(nb))
    gone = tiny.kullback("again", "--minutes", "1", cwd=root)
    assert (gone.returncode, gone.stdout.splitlines()[-1]) == (1, "good: differs in main")
    assert "no reported run fits" in tiny.kullback("again", "--minutes", ".01", cwd=root).stdout
