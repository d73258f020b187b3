"""Data: pins against what the files hold, routes against folders that were made for the purpose."""
import hashlib
import io
import json
import os
import tarfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest
import torch

from kullback.testbed import (
    CATALOG,
    DataError,
    catalog,
    class_noise,
    load,
    long_tail_counts,
    make_long_tail,
    split,
)
from kullback.testbed import data as data_page
from kullback.testbed.formats import histories, idx
from kullback.testbed.routes import (
    Archive,
    Closed,
    Pinned,
    cache_path,
    fetch,
    from_index,
    from_installed,
    index_pages,
    keep,
    links,
    pip_settings,
    read_address,
)
from kullback.testbed.sources import Entry, Hub, Source, read_cifar_binary, read_human_eval, read_vader

FOLDER = os.environ.get("KULLBACK_DATA", "")
needs_folder = pytest.mark.skipif(not FOLDER, reason="$KULLBACK_DATA is not set: there are no local copies")
TEXT = b"Alice\tknows\tBob\n"


def sha(data): return hashlib.sha256(data).hexdigest()


def missing(reason):
    "Something this machine has not: a skip, and a failure where CI promised that everything is there."
    if FOLDER and os.environ.get("KULLBACK_REQUIRE_ALL") == "1": pytest.fail(reason)
    pytest.skip(reason)


def in_folder(source):
    return isinstance(source, Source) and all(p.archive is None and not p.address for p in source.files)


@pytest.fixture
def away(tmp_path, monkeypatch):
    "No folder, an empty cache, pip without an index: nothing outside `tmp_path` can answer."
    for name, value in dict(KULLBACK_DATA="", KULLBACK_CACHE=str(tmp_path/"cache"), PIP_NO_INDEX="1",
                            PIP_FIND_LINKS=str(tmp_path/"links"), PIP_CONFIG_FILE=os.devnull).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(data_page.datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path/"links").mkdir()
    return tmp_path


@pytest.fixture
def toy(away):
    "A wheel with one file, and its pin; the wheel lies in pip's links."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z: z.writestr("toy/toy.txt", TEXT)
    archive = Archive("toy", "toy-1.0-py3-none-any.whl", sha(out.getvalue()), len(out.getvalue()))
    (away/"links"/archive.name).write_bytes(out.getvalue())
    return Pinned("toy.txt", sha(TEXT), len(TEXT), archive, ("toy/toy.txt",))


# --- the files themselves -------------------------------------------------------------------------

@needs_folder
@pytest.mark.parametrize("name", [e.name for e in CATALOG.values() if any(map(in_folder, e.sources))])
def test_every_local_copy_has_its_rows(name):
    bundle = load(name)  # checksums and counts are compared inside
    assert bundle.route.startswith("local folder: ")
    for rows in bundle.splits.values():
        if hasattr(rows, "images"):
            assert rows.images.dtype == torch.uint8 and rows.labels.dtype == torch.int64
            assert len(rows.images) == len(rows.labels) and rows.images.ndim in (3, 4)


@needs_folder
def test_facts_that_the_sources_publish():
    fashion = load("fashion_mnist")["train"].images.double()/255
    assert round(fashion.mean().item(), 4) == .2860 and round(fashion.std().item(), 4) == .3530
    for name, classes, train, test in [("cifar10-q95", 10, 5000, 1000), ("cifar100-q90", 100, 500, 100)]:
        bundle = load(name)
        assert bundle["train"].labels.bincount().tolist() == [train]*classes
        assert bundle["test"].labels.bincount().tolist() == [test]*classes
        assert bundle["train"].images.shape[1:] == (3, 32, 32)
    for name, answers, skills in [("assist2009u", 325_637, 110), ("assist2009dkt", 525_534, 124),
                                  ("assist2015", 683_801, 100),
                                  ("statics2011", 189_297, 1223), ("assist2009pid", 325_589,
                                                                   110), ("assist2017pid", 941_502, 102)]:
        parts = load(name).splits.values()
        assert sum(len(h.skill) for h in parts) == answers
        assert len(torch.cat([h.skill for h in parts]).unique()) == skills
    assert sum(v is None for v in load("california_housing")["all"]["total_bedrooms"][:]) == 207
    assert sum(v is None for v in load("beijing_pm25")["all"]["pm2.5"][:]) == 2067
    tofu = load("tofu")["full"]
    assert [sum(tofu[k][:]) for k in ("forget10", "forget05", "forget01")] == [400, 200, 40]
    awa = load("awa1")
    assert awa.extra["continuous"].shape == (50, 85) and len(awa.extra["unseen"]) == 10
    assert set(awa["unseen"].labels.tolist()) == set(awa.extra["unseen"].tolist())


@needs_folder
def test_two_sources_of_one_name_hold_the_same_rows(monkeypatch):
    for name, read in [("humaneval", read_human_eval), ("vader_tweet", read_vader),
                       ("vader_movie", read_vader)]:
        here, packaged = load(name), CATALOG[name].sources[1]
        try: files = {p.name: fetch(p)[0] for p in packaged.files}
        except Closed as e: missing(f"no package index: {e}")
        for split_name, rows in read(files).items(): assert rows[:] == here[split_name][:]


@needs_folder
def test_mnist5k_is_cut_from_the_training_images():
    try: small = load("mnist5k")["all"]
    except DataError as e: missing(str(e))
    whole = load("mnist")
    known = {part: {x.numpy().tobytes(): int(y) for x,
                    y in zip(whole[part].images, whole[part].labels)} for part in whole.splits}
    ours = [(x.numpy().tobytes(), int(y)) for x, y in zip(small.images, small.labels)]
    assert all(known["train"].get(x) == y and x not in known["test"] for x, y in ours)
    assert small.labels.bincount().tolist() == [500]*10


def test_scikit_learn_reads_the_same_tables():
    from sklearn import datasets as sk
    assert np.array_equal(load("digits")["all"].images.numpy(), sk.load_digits().images)
    for name in ("breast_cancer", "wine", "iris"):
        rows, theirs = load(name)["all"], getattr(sk, f"load_{name}")()
        assert rows.column_names[:-1] == list(theirs.feature_names)
        assert np.array_equal(rows.to_pandas().iloc[:, :-1],
                              theirs.data) and rows["label"][:] == theirs.target.tolist()
        assert rows.features["label"].names == list(theirs.target_names)
    theirs = sk.load_diabetes(scaled=False)
    assert np.array_equal(load("diabetes")["all"].to_pandas(), np.c_[theirs.data, theirs.target])


# --- routes ---------------------------------------------------------------------------------------

def test_a_wheel_is_found_kept_and_found_again(toy, away):
    assert fetch(toy) == (TEXT, "package index: toy-1.0-py3-none-any.whl")
    (away/"links"/toy.archive.name).unlink()
    assert fetch(toy) == (TEXT, "cache: toy-1.0-py3-none-any.whl")
    assert [p.name for p in (away/"cache").iterdir()] == [cache_path(toy.archive).name]


def test_a_damaged_cache_is_said_aloud_and_replaced(toy, away, capsys):
    fetch(toy)
    cache_path(toy.archive).write_bytes(b"half of a wh")
    assert fetch(toy)[1].startswith("package index")
    assert "damaged" in capsys.readouterr().err
    assert fetch(toy)[1].startswith("cache")


def test_another_file_of_the_same_name_is_refused(toy, away):
    (away/"links"/toy.archive.name).write_bytes(b"PK\x03\x04 rebuilt")
    with pytest.raises(DataError, match="checksum mismatch: toy-1.0"): fetch(toy)
    assert not cache_path(toy.archive).exists()


def test_the_folder_comes_first_and_must_be_right(toy, away, monkeypatch):
    folder = away/"folder"; folder.mkdir()
    monkeypatch.setenv("KULLBACK_DATA", str(folder))
    (folder/toy.archive.name).write_bytes((away/"links"/toy.archive.name).read_bytes())
    assert fetch(toy)[1] == f"local folder: {toy.archive.name}"
    (folder/"toy.txt").write_bytes(TEXT)
    assert fetch(toy)[1] == "local folder: toy.txt"
    (folder/"toy.txt").write_bytes(TEXT[:-1])
    with pytest.raises(DataError, match="toy.txt from the local folder"): fetch(toy)


def test_nothing_reachable_names_every_route(toy, away):
    (away/"links"/toy.archive.name).unlink()
    with pytest.raises(Closed) as e: fetch(toy)
    for word in ("local folder: $KULLBACK_DATA is not set", "installed package", "cache:",
                 "place 1 does not list it"):
        assert word in str(e.value)
    assert str(away) not in str(e.value)


def test_an_installed_package_with_another_edition_is_passed_over(toy):
    other = Pinned("METADATA", sha(b"x"), 1, Archive("pytest", "pytest.whl", sha(b"y"), 1), ("x",),
                   "pytest/__init__.py")
    with pytest.raises(Closed, match="pytest .* carries another METADATA"): from_installed(other)


def test_an_index_with_another_checksum_is_passed_over(toy, away, monkeypatch):
    page = away/"simple"/"toy"; page.mkdir(parents=True)
    (page/"index.html").write_text(f'<a href="../../links/{toy.archive.name}#sha256={"0"*64}">x</a>')
    monkeypatch.setenv("PIP_NO_INDEX", ""); monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", (away/"simple").as_uri())
    with pytest.raises(Closed, match="place 1 lists another file of this name"): from_index(toy.archive)
    right = f"../../links/{toy.archive.name}#sha256={toy.archive.sha256}"
    (page/"index.html").write_text(f'<a href="{right}">x</a>')
    assert from_index(toy.archive)[1] == "package index: toy-1.0-py3-none-any.whl"


@pytest.fixture
def server(toy, away):
    "An index that speaks JSON and asks for a password."
    wheel, seen = (away/"links"/toy.archive.name).read_bytes(), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            page = {"files": [{"filename": toy.archive.name, "url": "../../files/toy.whl",
                               "hashes": {"sha256": toy.archive.sha256}}]}
            known = {"/simple/toy/": (json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json"),
                     "/files/toy.whl": (wheel, "application/octet-stream")}
            body, kind = known.get(self.path, (b"", "text/plain"))
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", kind); self.end_headers(); self.wfile.write(body)
        def log_message(self, *_): pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, daemon=True).start()
    yield http.server_port, seen
    http.shutdown(); http.server_close()


def test_a_json_index_with_a_password(toy, server, monkeypatch):
    port, seen = server
    monkeypatch.setenv("PIP_NO_INDEX", ""); monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://reader:p%40ss@127.0.0.1:{port}/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1"); monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch(toy)[0] == TEXT
    assert seen[0] == ("/simple/toy/", "Basic cmVhZGVyOnBAc3M=")
    gone = Archive("other", "other-1.whl", "0"*64, 1)
    with pytest.raises(Closed, match="place 1: HTTPError 404") as e: from_index(gone)
    assert "p%40ss" not in str(e.value) and "p@ss" not in str(e.value)


def test_pip_is_asked_for_its_places(away, monkeypatch):
    (away/"pip.conf").write_text("[global]\nextra-index-url =\n  https://a.example/simple\n  https://b.example/simple\n"
                                 "[download]\ntimeout = 7\n[install]\nindex-url = https://never.example\n")
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"): monkeypatch.setenv(name, "")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(away/"pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://c.example/simple/")
    monkeypatch.delenv("PIP_DEFAULT_TIMEOUT", raising=False)
    settings = pip_settings()
    assert settings["timeout"] == "7"
    wanted = [f"https://{k}.example/simple/scikit-learn/" for k in "cab"]
    pages = index_pages("Scikit_Learn", settings)
    assert [p for p in pages if p in wanted] == wanted and not any("never" in p for p in pages)


def test_an_address_is_verified_and_kept(away):
    (away/"there.txt").write_bytes(TEXT)
    pin = Pinned("far.txt", sha(TEXT), len(TEXT), address=(away/"there.txt").as_uri())
    assert fetch(pin) == (TEXT, "address: far.txt") and fetch(pin)[1] == "cache: far.txt"
    wrong = Pinned("far.txt", sha(b"other"), 5, address=(away/"there.txt").as_uri())
    with pytest.raises(DataError, match="far.txt from the address"): fetch(wrong)


def write_many(args):
    path, data = args
    for _ in range(20): keep(data, path)


def test_parallel_writers_leave_one_whole_file(tmp_path):
    data, path = bytes(300_000), tmp_path/"cache"/"file"
    with ProcessPoolExecutor(2) as pool: list(pool.map(write_many, [(path, data)]*2))
    assert path.read_bytes() == data and list(path.parent.iterdir()) == [path]


def test_archives_within_archives(away):
    def tarred(name, data):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as t:
            info = tarfile.TarInfo(name); info.size = len(data); t.addfile(info, io.BytesIO(data))
        return out.getvalue()
    outer = tarred("a/b.tar.gz", tarred("../../escape.txt", TEXT))
    archive = Archive("nest", "nest-1.tar.gz", sha(outer), len(outer))
    (away/"links"/archive.name).write_bytes(outer)
    assert fetch(Pinned("escape.txt", sha(TEXT), len(TEXT), archive,
                        ("a/b.tar.gz", "../../escape.txt")))[0] == TEXT
    with pytest.raises(DataError, match="no member 'a/c'"): fetch(Pinned("c", sha(TEXT), 1, archive,
                                                                         ("a/c",)))
    with pytest.raises(DataError, match="checksum mismatch: d from the archive"):
        fetch(Pinned("d", sha(b"d"), 1, archive, ("a/b.tar.gz", "../../escape.txt")))
    assert not (away.parent/"escape.txt").exists()


# --- load -----------------------------------------------------------------------------------------

def test_the_second_source_is_taken_and_recorded(toy, away, monkeypatch, capsys):
    nowhere = Pinned("absent.txt", sha(b""), 0)
    read = lambda files: {"all": list(files.values())}
    entry = Entry("toy", "a toy", "public", {"all": 1},
                  (Source("first", (nowhere,), read), Source("second", (toy,), read)))
    monkeypatch.setitem(CATALOG, "toy", entry)
    bundle = load("toy")
    assert bundle.provenance() == {"name": "toy", "variant": "second", "sha256": toy.sha256,
                                   "route": f"package index: {toy.archive.name}"}
    assert capsys.readouterr().err.splitlines() == [
        f"kullback data: asking the package index for {toy.archive.name} (0.0 MB)",
        f"kullback data: toy (second) by package index: {toy.archive.name}"]


def test_refusals(toy, away, monkeypatch):
    with pytest.raises(DataError, match="'CIFAR100-Q9'; did you mean cifar100-q90"): load("CIFAR100-Q9")
    with pytest.raises(DataError, match=r"(?s)cannot be had here.*JPEG q90.*not set.*made from cyizhuo"):
        load("cifar100-q90")
    with pytest.raises(DataError, match="ylecun/mnist not asked, offline mode"):
        monkeypatch.setitem(CATALOG, "hub", Entry("hub", "", "", {},
                                                  (Hub("hub copy", "ylecun/mnist"),))); load("hub")
    short = Entry("toy", "a toy", "public", {"all": 2}, (Source("only", (toy,), lambda files: {"all": [1]}),))
    monkeypatch.setitem(CATALOG, "toy", short)
    with pytest.raises(DataError, match=r"should have the rows \{'all': 2\}, got \{'all': 1\}"): load("toy")
    assert isinstance(DataError(""), ValueError)


def test_an_unreachable_hub_is_one_clear_error(away, monkeypatch):
    monkeypatch.setattr(data_page.datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(data_page.datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(CATALOG, "hub", Entry("hub", "", "", {}, (Hub("hub copy", "ylecun/mnist"),)))
    with pytest.raises(DataError, match="ylecun/mnist is out of reach"): load("hub")


def test_a_hub_copy_takes_our_form(away, monkeypatch):
    "The hub itself could not be asked; a stand-in answers with rows in the hub's form."
    from datasets import ClassLabel, Dataset, Features, Image, Value
    from PIL import Image as Picture
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    kinds = Features({"img": Image(), "coarse": Value("int64"), "fine": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"img": [Picture.fromarray(x) for x in pixels], "coarse": [0]*3,
                              "fine": [1, 0, 1]}, features=kinds)
    asked = []
    monkeypatch.setattr(data_page.datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(data_page.datasets.config, "HF_ENDPOINT", away.as_uri())
    monkeypatch.setattr(data_page.datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or rows)
    (away/"api"/"datasets"/"us").mkdir(parents=True)
    (away/"api"/"datasets"/"us"/"them").write_text('{"sha": "0123456789abcdef"}')
    hub = Hub("hub copy", "us/them", "plain", (("train", "training"),), (("img", "image"), ("fine", "label")))
    monkeypatch.setitem(CATALOG, "hub", Entry("hub", "", "public", {"train": 3}, (hub,)))
    bundle = load("hub")
    assert np.array_equal(bundle["train"].images,
                          pixels.transpose(0, 3, 1, 2)) and bundle["train"].labels.tolist() == [1, 0, 1]
    assert asked == [(("us/them", "plain"), {"split": "training", "revision": "0123456789abcdef"})]
    assert bundle.route == "Hugging Face hub: us/them at 0123456789ab, checksum not pinned"
    assert len(bundle.sha256) == 64
    assert repr(bundle) == "hub (hub copy; public): train 3"


def test_several_files_have_one_checksum(away, monkeypatch):
    a, b = (Pinned(n, sha(n.encode()), 1, address=(away/n).as_uri()) for n in "ab")
    for n in "ab": (away/n).write_text(n)
    monkeypatch.setitem(CATALOG, "two", Entry("two", "", "", {"all": 2},
                                              (Source("v", (a, b), lambda f: {"all": list(f)}),)))
    bundle = load("two")
    assert bundle.sha256 == sha(f"{a.sha256}  a\n{b.sha256}  b\n".encode())
    assert bundle.route == "address: a + b"


def test_the_list_says_what_is_here(away, monkeypatch):
    rows = {r["name"]: r for r in catalog()}
    assert rows["digits"]["here"] == "installed package" and rows["cifar10-q95"]["here"] == ""
    (away/"folder").mkdir(); (away/"folder"/"tofu.jsonl.gz").write_bytes(b"")
    monkeypatch.setenv("KULLBACK_DATA", str(away/"folder"))
    assert {r["name"]: r for r in catalog()}["tofu"]["here"] == "local folder"


# --- formats --------------------------------------------------------------------------------------

def test_the_binary_edition_of_cifar(away):
    g = np.random.default_rng(0)
    planes, labels = g.integers(0, 256, (7, 3, 32, 32), dtype=np.uint8), g.integers(0, 10, 7, dtype=np.uint8)
    records = [bytes([y]) + x.tobytes() for x, y in zip(planes, labels)]
    out, names = io.BytesIO(), "\n".join("abcdefghij").encode()
    parts = {f"data_batch_{k + 1}.bin": records[k] for k in range(5)}
    parts |= {"test_batch.bin": records[5] + records[6], "batches.meta.txt": names}
    with tarfile.open(fileobj=out, mode="w:gz") as t:
        for name, data in parts.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}"); info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    found = read_cifar_binary({"cifar-10-binary.tar.gz": out.getvalue()})
    assert np.array_equal(found["train"].images, planes[:5]) and np.array_equal(found["test"].labels,
                                                                                labels[5:])
    assert found["test"].names == list("abcdefghij")


def test_idx_refuses_other_files():
    import gzip
    with pytest.raises(ValueError, match="starts with 000009"): idx(gzip.compress(b"\0\0\x09\x01" + bytes(8)))


def test_histories_keep_students_apart():
    z = {"s_skill": np.array([1, 2, 3]), "s_correct": np.array([0, 1, 1]), "s_off": np.array([0, 1, 3]),
         "s_split": np.array([1, 0]),
         "s_problem": np.array([7, 8, 9])}
    h = histories(z, "s").select(torch.tensor([1]))
    assert len(h) == 1 and {k: v.tolist() for k, v in h[0].items()} == {"skill": [2, 3], "correct": [1, 1],
                                                                        "problem": [8, 9]}


def test_a_folder_and_a_page_offer_the_same(toy, away):
    offered = links(str(away/"links"), {})
    assert list(offered) == [toy.archive.name]
    assert sha(read_address(offered[toy.archive.name][0], {})[0]) == toy.archive.sha256


# --- splits, noise, tails -------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(5))
def test_stratified_parts_keep_shares(seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor([.6, .3, .08, .02]), 500, replacement=True, generator=g)
    parts = split(500, {"a": 101, "b": 203, "c": 196}, stratify=y, generator=g)
    assert torch.cat(list(parts.values())).sort().values.equal(torch.arange(500))
    left = y.bincount(minlength=4).double()
    for part in parts.values():
        own = y[part].bincount(minlength=4)
        assert (own - len(part)*left/left.sum()).abs().max() < 1
        left = left - own


def test_split_refuses():
    with pytest.raises(ValueError, match="must not be negative"): split(5, {"a": -1})
    with pytest.raises(ValueError, match=r"shape \(5,\), got \(4,\)"): split(5, {"a": 1},
                                                                             stratify=torch.zeros(4))
    assert len(split(5, {"a": 0})["a"]) == 0


def test_tails_and_noise_draw_from_the_generator_alone():
    y = torch.arange(4).repeat(50)
    state = torch.random.get_rng_state()
    draw = lambda seed: (class_noise(y, .5, generator=torch.Generator().manual_seed(seed)),
                         make_long_tail(y, long_tail_counts(40, 4, .1), torch.Generator().manual_seed(seed)))
    assert all(a.equal(b) for a, b in zip(draw(0), draw(0))) and not draw(0)[1].equal(draw(1)[1])
    assert torch.random.get_rng_state().equal(state)
    assert long_tail_counts(40, 4, .1).tolist() == [40, 18, 8, 4]
    with pytest.raises(ValueError, match="not be negative, got -1"): make_long_tail(y, torch.tensor([1, -1]))
    with pytest.raises(ValueError, match="got 0"): long_tail_counts(10, 3, 0)
