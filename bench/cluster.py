"""Soft k-means: on distinct weights against all weights and against coremltools; and what is kept for backward.

A weight of 1024×1024 in float32 whose values fit bfloat16, eight centroids, forward and backward. `plain` is the method
written down directly: `cdist`, softmax, two matrix products. coremltools' `FakePalettize` starts at the same centroids,
with the same temperature and floor; its subtraction from the first distance and its early stop are off. `setup` refuses
to time a case whose soft weights are not those of the first within 1e-3 of the palette's spread: float32 products over a
million weights, theirs and the plain ones, lose 3e-4. k-means on a line is timed against scikit-learn's, which may stop
above the minimum.
"""
import sys
import warnings
from importlib.util import find_spec

import torch
from _bench import compare

N, K, TAU = 1024, 8, 1e-4


def problem(n=N):
    g = torch.Generator().manual_seed(0)
    weight = (.02*torch.randn(n, n, generator=g)).bfloat16().float().requires_grad_()
    return weight, torch.linspace(-.05, .05, K), torch.randn(n, n, generator=g)


def plain(weight, centroids, n_iter):
    x, C = weight.reshape(-1, 1), centroids[:, None]
    for _ in range(n_iter):
        A = (-torch.cdist(x, C).square()/TAU).softmax(-1).clamp(min=1e-7)
        C = (A.T @ x)/A.sum(0)[:, None]
    return (A @ C).reshape(weight.shape)


def apple(centroids, n_iter):
    from coremltools.optimize.torch.palettization.fake_palettize import FakePalettize
    from torch.ao.quantization import MovingAverageMinMaxObserver
    observer = MovingAverageMinMaxObserver.with_args(quant_min=-128, quant_max=127, dtype=torch.qint8)
    module = FakePalettize(observer, 3, 1, advanced_options=dict(
        palett_tau=TAU, kmeans_max_iter=n_iter, palett_epsilon=-1., prune_threshold=0., zero_threshold=1e-7, palett_cluster_tol=1.))
    module.enable_fake_palett()

    def soft(weight):
        if not module.partitions: module.create_partitions(weight.detach())
        module.centroids = [centroids[:, None].clone()]
        return module(weight)
    return soft


def clustering(kind, centroids, n_iter):
    from kullback.quantize import SavedTensorCompressor, dkm, dkm_unique
    if kind == "dkm_unique": return lambda w: dkm_unique(w, centroids, TAU, n_iter)[0]
    if kind == "dkm": return lambda w: dkm(w, centroids, TAU, n_iter)[0]
    if kind == "plain": return lambda w: plain(w, centroids, n_iter)
    if kind == "coremltools": return apple(centroids, n_iter)

    def compressed(w):
        with SavedTensorCompressor(): return dkm(w, centroids, TAU, n_iter)[0]
    return compressed


def setup(kind, n_iter):
    warnings.filterwarnings("ignore")
    weight, centroids, up = problem()
    cluster = clustering(kind, centroids, n_iter)
    with torch.no_grad(): gap = (cluster(weight) - clustering("dkm_unique", centroids, n_iter)(weight)).abs().max()
    assert gap < 1e-3*(centroids[-1] - centroids[0]), f"{kind}: soft weights differ by {gap}"

    def step():
        weight.grad = None
        cluster(weight).backward(up)
    return step


def kmeans(kind, n, k):
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    if kind == "kullback, exact":
        from kullback.quantize import kmeans_1d
        return lambda: kmeans_1d(x, k)
    from sklearn.cluster import KMeans
    return lambda: KMeans(k, n_init=10, random_state=0).fit(x[:, None].numpy())


def kept():
    "Bytes for backward: autograd's own, compressed, with eight learners."
    from kullback.quantize import SavedTensorCompressor, dkm, dkm_unique, tensor_saved_bytes
    weight, C, _ = problem()
    weight = weight.detach().bfloat16().requires_grad_()
    own = tensor_saved_bytes(lambda w: dkm(w, C, TAU), weight)
    rows = {"autograd": own, "dkm_unique": tensor_saved_bytes(lambda w: dkm_unique(w, C, TAU), weight)}
    for shards in (1, 8):
        with SavedTensorCompressor(shards=shards) as c: dkm(weight, C, TAU)
        rows[f"M+U+S, {shards} learner(s)"] = c.bytes_saved
    for name, size in rows.items(): print(f"{name:22} {size/2**20:9.2f} MiB  {own/size:6.1f} times fewer")


if __name__ == "__main__":
    kept()
    kinds = ["dkm_unique", "dkm", "dkm, compressed", "plain"]
    if find_spec("coremltools"): kinds.append("coremltools")
    else: print("coremltools is not installed: pip install coremltools, in an environment of its own", file=sys.stderr)
    for n_iter in (3, 1):
        compare(f"cluster-{n_iter}", {k: (setup, (k, n_iter)) for k in kinds}, "dkm_unique", rounds=7, warmup=1,
                packages=("torch", "coremltools"), note=f"1024×1024, 8 centroids, {n_iter} iteration(s), forward and backward")
    if find_spec("sklearn"):
        compare("kmeans-line", {k: (kmeans, (k, 50_000, 8)) for k in ("kullback, exact", "scikit-learn, 10 starts")},
                "kullback, exact", rounds=5, warmup=1, packages=("torch", "scikit-learn"), note="50,000 numbers, 8 clusters")
