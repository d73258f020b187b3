"The repository agrees with itself: exports in sync, notebooks clean, parameters tagged, no foreign words."
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(p for d in ("nbs", "reproductions") for p in (ROOT/d).rglob("*.ipynb")
               if not any(part.startswith((".", "_")) for part in p.relative_to(ROOT).parts))
REPRODUCTIONS = [p for p in PAGES if p.relative_to(ROOT).parts[0] == "reproductions"]


def name(path): return str(path.relative_to(ROOT))


def read(path): return json.loads(path.read_text(encoding="utf-8"))


def files(folder): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.py")}


def test_exports_are_in_sync(tmp_path):
    "A fresh export gives kullback/ byte for byte: no stale module, no edit by hand."
    for item in ("settings.ini", "nbs", "_quarto.yml"):
        source = ROOT/item
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path/item)
    subprocess.run([str(Path(sys.executable).parent/"nbdev_export")], cwd=tmp_path, check=True)
    fresh, ours = files(tmp_path/"kullback"), files(ROOT/"kullback")
    assert sorted(map(str, fresh)) == sorted(map(str, ours))
    assert [str(p) for p in fresh if fresh[p] != ours[p]] == [], "run nbdev_clean --fname nbs && nbdev_export"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_page_is_clean(page):
    "Metadata is what nbdev_clean leaves; the parameters tag survives; no traceback, no machine path in outputs."
    nb = read(page)
    assert set(nb["metadata"]) <= {"kernelspec"}, nb["metadata"].keys()
    for cell in nb["cells"]:
        assert set(cell["metadata"]) <= {"tags"}, cell["metadata"]
        assert cell.get("execution_count") is None
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            text = json.dumps({k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}) + \
                "".join(output.get("text", []))
            assert not re.search(r"/(work|root|tmp|home|Users)/", text), text[:300]


@pytest.mark.parametrize("page", REPRODUCTIONS, ids=name)
def test_reproduction_has_one_parameter_cell(page):
    tagged = [c for c in read(page)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    source = "".join(tagged[0]["source"])
    for parameter in ("seeds: int", "device: str", "scale: str"): assert parameter in source


@pytest.mark.parametrize("page", REPRODUCTIONS, ids=name)
def test_reproduction_holds_a_whole_run_or_none(page):
    "A rule waits for its run without any output; a run is at scale small and ends with its claims."
    from kullback.testbed.claims import read_claims
    data = read_claims(page)
    if data is None: assert not any(c.get("outputs") for c in read(page)["cells"])
    else:
        assert (data["scale"], data["slug"]) == ("small", page.stem)
        # nbdev_clean splits this text into a list, and refuses the page the second time: `kullback run --in-place` writes it whole
        assert all(isinstance(c["source"], str) for c in data["claims"])


# for the house: shared by chapters, not something a reader of the part asks for
INTERNAL = {"divergence.checks", "divergence.families.check_simplex", "optim.lion.lion_k_step_",
            *(f"optim.kernels.{name}" for name in ("L1", "L2SQ", "LOGSUMEXP", "NUCLEAR"))}
ROOMS = sorted(p.parent.name for p in (ROOT/"kullback").glob("*/__init__.py") if p.parent.name not in ("book", "testbed"))


def exported(module):
    found = re.search(r"^__all__ = \[(.*?)\]", module.read_text(encoding="utf-8"), re.S | re.M)
    return re.findall(r"'(\w+)'", found.group(1)) if found else []


@pytest.mark.parametrize("part", ROOMS)
def test_a_part_offers_every_name_of_its_chapters(part):
    "`from kullback.<part> import name` works for every public name, and the part's index page speaks of each of its chapters."
    offered = set(exported(ROOT/"kullback"/part/"__init__.py"))
    index = "".join("".join(c["source"]) for c in read(ROOT/"nbs"/part/"index.ipynb")["cells"] if c["cell_type"] == "markdown")
    for module in sorted((ROOT/"kullback"/part).glob("[!_]*.py")):
        chapter = f"{part}.{module.stem}"
        if chapter in INTERNAL: continue
        missing = [name for name in exported(module) if name not in offered and f"{chapter}.{name}" not in INTERNAL]
        assert missing == [], f"add to _all_ in nbs/{part}/index.ipynb"
        assert f"{module.stem}.ipynb" in index or f"`{module.stem}`" in index, f"nbs/{part}/index.ipynb does not name {chapter}"


@pytest.mark.parametrize("page", [p for p in PAGES if p not in REPRODUCTIONS and p.stem != "index"], ids=name)
def test_library_page_shows_its_outputs(page):
    "A chapter is committed as it ran: a reader without Python sees what its checks say."
    assert any(c.get("outputs") for c in read(page)["cells"] if c["cell_type"] == "code")


def test_no_public_name_equals_its_module():
    "`import kullback.part.x as m` would give the function x."
    for module in (ROOT/"kullback").rglob("*.py"):
        found = re.search(r"^__all__ = \[(.*?)\]", module.read_text(encoding="utf-8"), re.S | re.M)
        names = re.findall(r"'(\w+)'", found.group(1)) if found else []
        assert module.stem not in names, module


def test_test_files_have_names_of_their_own():
    "pytest imports them by their bare names: two of one name in two folders cannot be collected together."
    names = [p.name for p in (ROOT/"tests").rglob("test_*.py")]
    assert sorted({n for n in names if names.count(n) > 1}) == []


def test_imports_point_one_way():
    "A part imports what stands above it, never below, and no part imports the testbed or the book."
    order = ["divergence", "optim", "language", "classify", "distill", "select", "align", "quantize", "nas", "trace", "structured"]
    for part in order:
        for module in (ROOT/"kullback"/part).glob("*.py"):
            text = module.read_text(encoding="utf-8")
            used = set(re.findall(r"^\s*from \.\.(\w+)", text, re.M)) | set(re.findall(r"kullback\.(\w+)[\w.]* import", text))
            assert used <= set(order[:order.index(part) + 1]), (module, used)


def test_one_source_of_metadata():
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT/"settings.ini", encoding="utf-8")
    lock = (ROOT/"requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    pinned = {re.split(r"[=<>;\[ ]", line)[0].lower() for line in lock.splitlines() if line and not line.startswith("#")}
    wanted = " ".join(ini["DEFAULT"][f"{part}requirements"] for part in ("", "dev_", "loop_")).split()
    assert {re.split(r"[=<>\[]", w)[0].lower() for w in wanted} <= pinned
