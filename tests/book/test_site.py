"The site in a real browser: every page, from disk, at the width of a telephone, without a network."
import html.parser
import json
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from kullback.book.ledger import ledger_html, ledger_rows, reproductions
from kullback.book.site import ELSEWHERE, KATEX, bring, build_site, katex, readme_md

ROOT = Path(__file__).resolve().parents[2]
PHONE = 390
SOURCES = ("nbs", "reproductions", "kullback", "_quarto.yml", "settings.ini")


def skip_or_fail(reason):
    (pytest.fail if os.environ.get("KULLBACK_REQUIRE_ALL") == "1" else pytest.skip)(reason)


def newest(root):
    "When a source last changed."
    files = [f for name in SOURCES for f in ([root/name] if (root/name).is_file() else (root/name).rglob("*"))]
    return max(f.stat().st_mtime for f in files if f.is_file() and f.suffix != ".pyc")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The folder of the site: the one that lies there if nothing changed since, else built in a copy, without git."
    here = ROOT/"_site"
    if (here/"search.js").exists() and (here/"search.js").stat().st_mtime > newest(ROOT): return here
    copy = tmp_path_factory.mktemp("site")
    for name in SOURCES:
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, copy/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else: shutil.copy(ROOT/name, copy/name)
    return build_site(copy).parent


@pytest.fixture(scope="session")
def pages(site): return sorted(site.rglob("*.html"))


class Links(html.parser.HTMLParser):
    "What a page names and what it points to."
    def __init__(self, text):
        super().__init__()
        self.ids, self.to = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        self.to += [attrs[k] for k in ("href", "src") if attrs.get(k)]


def test_every_source_became_a_page(site):
    nbs = {p.relative_to(ROOT).with_suffix(".html") for p in (ROOT/"nbs").rglob("*.ipynb") if p != ROOT/"nbs/index.ipynb"}
    papers = {p.relative_to(ROOT).with_suffix(".html") for p in reproductions(ROOT)}
    extra = {Path(n) for n in ("index.html", "ledger.html", "errata.html", "reproductions/index.html")}
    built = {p.relative_to(site) for p in site.rglob("*.html")} - {Path("smoke.html")}
    assert built == nbs | papers | extra


def test_links_and_anchors_resolve(site, pages):
    known = {p.resolve(): Links(p.read_text(encoding="utf-8")) for p in pages}
    broken = []
    for page, links in known.items():
        for link in links.to:
            if re.match(r"[a-z]+:", link): continue
            path, _, anchor = link.partition("#")
            target = (page.parent/unquote(path.partition("?")[0])).resolve() if path else page
            if target.is_dir(): broken.append((page.name, link, "a folder: from disk it shows no page"))
            elif not target.exists(): broken.append((page.name, link))
            elif anchor and "=" not in anchor and target in known and unquote(anchor) not in known[target].ids: broken.append((page.name, link, "no such anchor"))
    assert broken == []


def test_navigation_lists_every_page(site, pages):
    front = Links((site/"reproductions/index.html").read_text(encoding="utf-8")).to
    for paper in reproductions(ROOT): assert any(f"{paper.stem}.html" in link for link in front), paper.stem
    library = Links((site/"nbs/divergence/kl.html").read_text(encoding="utf-8")).to
    for page in (ROOT/"nbs").glob("*/*.ipynb"): assert any(link.endswith(f"{page.stem}.html") for link in library), page


def test_no_machine_path_and_no_address_is_loaded(site, pages):
    for page in [*pages, site/"search.json"]:
        text = page.read_text(encoding="utf-8")
        for path in {str(ROOT), str(site.parent), sys.prefix}: assert path not in text, (page, path)
        assert not ELSEWHERE.search(text), page


def test_readme_is_the_front_door():
    assert (ROOT/"README.md").read_text(encoding="utf-8") == readme_md(ROOT), "make site writes README.md anew"


def test_an_archive_with_another_checksum_is_refused(tmp_path):
    command = [sys.executable, "-c", "open('x.tgz', 'w').write('not what was asked for')"]
    assert "has sha256" in bring(("any", command, "x.tgz", "package/", "0"*64), tmp_path/"katex") and not list(tmp_path.iterdir())
    assert katex([("any", command, "x.tgz", "package/", "0"*64)], tmp_path)[0] is None


@pytest.mark.parametrize("route", [*KATEX, None], ids=lambda r: r[0] if r else "cache")
def test_each_route_brings_what_a_page_needs(route, tmp_path, request):
    if route is None: folder = request.getfixturevalue("site")/"site_libs/katex"
    elif os.environ.get("KULLBACK_NETWORK") != "1": pytest.skip("downloads; KULLBACK_NETWORK=1 runs it")
    else:
        folder = tmp_path/"katex"
        assert bring(route, folder) == ""
    css = (folder/"katex.min.css").read_text(encoding="utf-8")
    fonts = set(re.findall(r"fonts/[\w-]+\.woff2", css))
    assert len(fonts) >= 20 and all((folder/font).exists() for font in fonts)
    assert (folder/"katex.min.js").exists() and (folder/"contrib/auto-render.min.js").exists()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    selenium = pytest.importorskip("selenium.webdriver") if os.environ.get("KULLBACK_REQUIRE_ALL") != "1" else __import__("selenium.webdriver").webdriver
    from selenium.webdriver.chrome.service import Service
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chromium is None or driver is None: skip_or_fail("chromium and chromedriver are not installed")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update",
                 "disable-sync", "disable-dev-shm-usage", "host-resolver-rules=MAP * ~NOTFOUND", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    web = selenium.Chrome(options=options, service=Service(driver))
    web.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=PHONE, height=844, deviceScaleFactor=1, mobile=False))
    yield web
    web.quit()


def phone(web, url):
    "Open a page as a telephone does."
    web.get(url)
    return web


LOOK = r"""
const main = document.querySelector("main") || document.body, copy = main.cloneNode(true);
copy.querySelectorAll("pre, code, script, style, svg, .katex, .katex-display").forEach(e => e.remove());
const scrolls = e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
  if (["auto", "scroll"].includes(getComputedStyle(p).overflowX)) return true; return false; };
const wide = [...main.querySelectorAll("*")].filter(e => !e.closest(".katex") && e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e));
return {text: copy.textContent, scroll: document.documentElement.scrollWidth, inner: innerWidth, wide: wide.map(e => e.outerHTML.slice(0, 120)),
  math: main.querySelectorAll(".math").length, katex: main.querySelectorAll(".katex").length,
  bad: [...main.querySelectorAll(".katex-error")].map(e => e.textContent),
  blank: [...main.querySelectorAll("img")].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src.slice(0, 80))};
"""


@pytest.fixture(scope="session")
def seen(site, pages, browser):
    "What the browser saw of each page."
    found = {}
    for page in pages:
        phone(browser, page.as_uri())
        look = browser.execute_script(LOOK)
        look["console"] = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
        events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
        look["asked"] = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        found[page.relative_to(site).as_posix()] = look
    return found


def test_no_markup_is_left_in_the_text(seen):
    stray = {name: m[0] for name, look in seen.items() if (m := re.search(r".{0,30}(?:\$(?![A-Z_]{4})|:::|#\||\\\(|\\\[|\{=html\}|\]\{).{0,30}", look["text"]))}
    assert stray == {}


def test_formulas_are_typeset(seen):
    assert {n: look["bad"] for n, look in seen.items() if look["bad"]} == {}
    assert {n: (look["math"], look["katex"]) for n, look in seen.items() if look["katex"] < look["math"]} == {}
    assert seen["nbs/divergence/kl.html"]["katex"] > 20


def test_figures_have_pixels(seen):
    assert {n: look["blank"] for n, look in seen.items() if look["blank"]} == {}


def test_console_is_silent(seen):
    assert {n: look["console"] for n, look in seen.items() if look["console"]} == {}


def test_nothing_leaves_the_machine(seen):
    assert {n: out for n, look in seen.items() if (out := [u for u in look["asked"] if not re.match(r"(file|data|blob|about|chrome):", u)])} == {}


def test_nothing_is_wider_than_a_telephone(seen):
    assert {n: (look["scroll"], look["wide"]) for n, look in seen.items() if look["scroll"] > PHONE or look["wide"]} == {}


def test_search_works_from_disk(site, browser):
    phone(browser, (site/"nbs/divergence/kl.html").as_uri())
    browser.execute_async_script("""
        const done = arguments[0], box = document.querySelector("#quarto-search input");
        box.value = "entropy"; box.dispatchEvent(new Event("input", {bubbles: true})); setTimeout(done, 1500);""")
    results = browser.execute_script("return [...document.querySelectorAll('.search-result')].map(a => a.getAttribute('href'))")
    assert any("kl.html" in link for link in results), results


ROW = dict(slug="a", title="Alpha", part="align", page="reproductions/align/a.ipynb", sentence="one", rule_text="above 0", verdict="holds here",
           here="+2", estimate=2., paper="3", source="paper", kind="greater", primary=True, stale=[], scale="small", device="cpu", seeds=8,
           hardware="2 CPU cores", date="2026-11-24", run_seconds=300., rule=("abc", "2026-11-01T00:00:00Z"), run=("def", "2026-11-02T00:00:00Z"),
           rule_first=True)


@pytest.fixture
def ledger(tmp_path, browser):
    "A ledger of three rows in the browser."
    rows = [ROW, dict(ROW, slug="b", title="Beta", estimate=-10., verdict="undecided", stale=["the page itself"]),
            dict(ROW, slug="b", title="Beta", estimate=.5, kind="exact", primary=False, verdict="reproduced", sentence="two")]
    assets = ROOT/"nbs/assets"
    (tmp_path/"l.html").write_text(f'<meta charset="utf-8"><link rel="stylesheet" href="{(assets/"book.css").as_uri()}"><main class="content">'
                                   f'{ledger_html(rows)}</main><script src="{(assets/"ledger.js").as_uri()}"></script>', encoding="utf-8")
    return phone(browser, (tmp_path/"l.html").as_uri())


def shown(web):
    return web.execute_script("return [...document.querySelectorAll('#ledger tbody tr')].filter(r => r.offsetParent)"
                              ".map(r => r.cells[0].querySelector('a').textContent + ' ' + r.cells[3].dataset.sort)")


def test_ledger_sorts_numbers_as_numbers(ledger):
    from selenium.webdriver.common.by import By
    head = ledger.find_elements(By.CSS_SELECTOR, "#ledger th button")[3]
    ledger.execute_script("arguments[0].click()", head)
    assert shown(ledger) == ["Beta -10.0", "Beta 0.5", "Alpha 2.0"]
    ledger.execute_script("arguments[0].click()", head)
    assert shown(ledger) == ["Alpha 2.0", "Beta 0.5", "Beta -10.0"]
    assert ledger.find_elements(By.CSS_SELECTOR, "#ledger th")[3].get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("control, value, left", [
    ("text", "beta TWO", ["Beta 0.5"]), ("verdict", "holds here", ["Alpha 2.0"]), ("kind", "primary", ["Alpha 2.0", "Beta -10.0"]),
    ("kind", "exact", ["Beta 0.5"]), ("kind", "stale", ["Beta -10.0"]), ("text", "no such thing", [])])
def test_ledger_filters(ledger, control, value, left):
    ledger.execute_script("const c = document.getElementById('ledger-' + arguments[0]); c.value = arguments[1]; "
                          "c.dispatchEvent(new Event('input'))", control, value)
    assert shown(ledger) == left
    assert ledger.execute_script("return document.getElementById('ledger-count').textContent") == f"{len(left)} of 3 claims"


def test_ledger_scrolls_in_its_own_box(ledger):
    box, page = ledger.execute_script("const b = document.querySelector('.ledger-box'); return [[b.scrollWidth, b.clientWidth], "
                                      "document.documentElement.scrollWidth]")
    assert box[0] > box[1] and page <= PHONE


def test_the_sites_ledger_holds_every_claim(site, browser):
    phone(browser, (site/"ledger.html").as_uri())
    assert len(shown(browser)) == len(ledger_rows(ROOT))
