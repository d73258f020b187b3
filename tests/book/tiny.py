"A clone so small that its pages take two seconds: no torch, no data."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FRONT = """---
title: Tiny
description: as small as a page can be
scales:
  smoke: {scale: smoke, seeds: 1}
  paper: {scale: paper, seeds: 10, lr: 1e-3}
---"""
HEAD = """seeds: int = 8  # paired over methods
device: str = "auto"
scale: str = "small"
lr: float = .1  # a = sign in a comment
grid: list[float] = [.1, 1.]
teacher: str | None = None"""
CLAIMS = """import os
row = dict(id="main", sentence="it runs", kind="greater", unit="", estimate=float(seeds), verdict="holds here", tolerance=1.)
display({"application/vnd.kullback.claims+json": dict(
    slug=SLUG, scale=scale, threads=os.environ.get("OMP_NUM_THREADS"), verdict="holds here", claims=[row],
    source_sha256=SOURCE), "text/plain": SLUG}, raw=True)"""
HASH = "from kullback.testbed.claims import source_hash\nSOURCE = source_hash(f'reproductions/x/{SLUG}.ipynb')\n"


def cell(source, kind="code", tags=()):
    extra = dict(execution_count=None, outputs=[]) if kind == "code" else {}
    return dict(cell_type=kind, source=source, metadata=dict(tags=list(tags)) if tags else {}, **extra)


def page(slug, body="1 + 1", front=FRONT, head=HEAD, claims=CLAIMS):
    "A reproduction page; None leaves a part out."
    cells = [cell(front, "raw")] if front else []
    cells += [cell("# Tiny", "markdown")]
    cells += [cell(head, tags=["parameters"])] if head else []
    cells += [cell(body)] + ([cell(f"SLUG, SOURCE = {slug!r}, None\n{claims}")] if claims else [])
    for i, c in enumerate(cells): c["id"] = str(i)
    kernel = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    return dict(nbformat=4, nbformat_minor=5, metadata=kernel, cells=cells)


def put(root, slug, *args, **kwargs):
    path = root/"reproductions"/"x"/f"{slug}.ipynb"
    path.write_text(json.dumps(page(slug, *args, **kwargs)))
    return path


def clone(folder):
    "A folder that is a clone, with a name that needs care."
    root = folder/"my {own} clone"
    (root/"reproductions"/"x").mkdir(parents=True)
    shutil.copy(ROOT/"settings.ini", root)
    return root.resolve()


def command(*words):
    return [sys.executable, "-c", "from kullback.book.cli import main; main()", *map(str, words)]


def environment(**more):
    "Ours, with this checkout importable and nothing said about threads or roots."
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "KULLBACK_ROOT", "FORCE_COLOR")}
    return {**env, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **more}


def kullback(*words, cwd, **env):
    "The command in its own process."
    return subprocess.run(command(*words), cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=300)


def executed(root, slug, scale="smoke"): return json.loads((root/"_runs"/scale/f"{slug}.ipynb").read_text())


def sources(nb): return ["".join(c["source"]) for c in nb["cells"]]


def shown(nb):
    "The claims that a notebook displayed."
    found = [o["data"] for c in nb["cells"] for o in c.get("outputs", []) if "data" in o]
    return next(d["application/vnd.kullback.claims+json"] for d in found if "application/vnd.kullback.claims+json" in d)
