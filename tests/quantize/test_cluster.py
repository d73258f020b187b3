"Soft k-means, what it keeps for backward, palettes: plain Python, enumeration, scikit-learn, gradcheck."
import gc
import math
import weakref

import pytest
import torch
from draws import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from kullback.quantize import (
    DKMLinear,
    DKMWeight,
    SavedTensorCompressor,
    depalettize,
    dkm,
    dkm_attention,
    dkm_unique,
    kmeans_1d,
    palettize,
    palettized_bits,
    tensor_saved_bytes,
)
from kullback.quantize import cluster as home


def best_intervals(values, k):
    "Least squared error of k intervals by the quadratic recursion, in Python floats."
    v = sorted(values)
    def cost(i, j):
        mean = sum(v[i:j])/(j - i)
        return sum((x - mean)**2 for x in v[i:j])
    E = [0.] + [math.inf]*len(v)
    for c in range(1, k + 1):
        E = [math.inf] + [min((E[i] + cost(i, j) for i in range(c - 1, j)), default=math.inf) for j in range(1, len(v) + 1)]
    return E[-1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=14), st.integers(1, 5))
def test_kmeans_is_the_minimum(values, k):
    x = torch.tensor(values, dtype=torch.float64)/4
    if len(x.unique()) < k:
        with pytest.raises(ValueError, match=f"k={k}"): kmeans_1d(x, k)
        return
    centroids, labels, inertia = kmeans_1d(x, k)
    assert_close(inertia.item(), best_intervals(x.tolist(), k), rtol=1e-9, atol=1e-9)
    assert centroids.shape == (k,) and (centroids.diff() > 0).all()
    assert_close((x - centroids[labels]).square().sum(), inertia)


@pytest.mark.parametrize("k", [2, 7, 16])
def test_sklearn_is_never_better(k):
    x = torch.cat([normal(700, seed=1), 3 + .1*normal(200, seed=2)])
    assert kmeans_1d(x, k)[2] <= KMeans(k, n_init=20, random_state=0).fit(x[:, None].numpy()).inertia_*(1 + 1e-9)


def test_beyond_the_exact_search_the_generator_decides():
    x, k = normal(2**15, seed=3).float(), 80
    runs = [kmeans_1d(x, k, n_init=1, max_iter=5, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1])) and not torch.equal(runs[0][0], runs[2][0])
    assert_close((x - runs[0][0][runs[0][1]]).square().sum(), runs[0][2], rtol=1e-3, atol=0)
    assert kmeans_1d(x, k, generator=torch.Generator().manual_seed(0))[2] <= runs[0][2]


def plain_dkm(x, C, tau, n_iter, floor):
    "Lists of lists."
    for _ in range(n_iter):
        A = []
        for v in x:
            e = [math.exp(-(v - c)**2/tau) for c in C]
            A.append([max(t/sum(e), floor) for t in e])
        C = [sum(a[j]*v for a, v in zip(A, x))/sum(a[j] for a in A) for j in range(len(C))]
    return [sum(a*c for a, c in zip(row, C)) for row in A], C


@pytest.mark.parametrize("f", [dkm, dkm_unique])
@pytest.mark.parametrize("floor", [0., 1e-7, 1e-2])
def test_against_plain_python(f, floor):
    x, C = (normal(4, 6)*2).round()/4, normal(3, seed=1)
    want, centroids = plain_dkm(x.flatten().tolist(), C.tolist(), .3, 3, floor)
    soft, new = f(x, C, .3, 3, min_value=floor)
    assert_close(soft.flatten().tolist(), want, rtol=1e-11, atol=1e-12)
    assert_close(new.tolist(), centroids, rtol=1e-11, atol=1e-12)


SOFT = [.82815261396485, -.79448677046671, .80702742153474, -.75341339579967, .84805706821015, -.87179818177053,
        .84822879072742, -.86175871678254, .80635655687473, -.79275487856392, .82753784075271, -.84455956732741]
SLOPE = [4.356943185205, 4.115332189811, 5.381490894487, 3.104778463176, 4.837526552801, 7.193575393654,
         5.112359161291, 7.625162250119, 6.08942140401, 6.421357218251, 5.635028095228, 8.76604277619]


@pytest.mark.parametrize("f", [dkm, dkm_unique])
def test_stored_values_of_coremltools(f):
    "From coremltools 9.0, FakePalettize: 3 bits, τ .05, three iterations, floor 1e-7, nothing subtracted from the first distance."
    x = torch.tensor([[math.sin(1 + 7*i + 3*j) for j in range(4)] for i in range(3)], dtype=torch.float64, requires_grad=True)
    soft, _ = f(x, torch.tensor([-.8, -.3, 0., .1, .2, .4, .6, .9], dtype=torch.float64), .05)
    (soft*torch.arange(12.).view(3, 4)).sum().backward()
    assert_close(soft.flatten().tolist(), SOFT, rtol=0, atol=1e-13)
    assert_close(x.grad.flatten().tolist(), SLOPE, rtol=0, atol=1e-11)


@pytest.mark.parametrize("f", [dkm, dkm_unique])
@pytest.mark.parametrize("n_iter, c", [(1, 1), (3, 1), (2, 2)])
def test_gradcheck(f, n_iter, c):
    x = normal(6, 4).requires_grad_()
    assert gradcheck(lambda x: f(x, normal(3, c, seed=1), .5, n_iter, cluster_dim=c), x)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(1e-3, 10), st.integers(1, 4), st.sampled_from([0., 1e-7, .05]), st.sampled_from([1, 3]))
def test_unique_is_dkm(seed, tau, n_iter, floor, c):
    x = (normal(9, 12, seed=seed)*3).round()/3 if c > 1 else normal(9, 12, seed=seed).bfloat16().double()
    x[0], x[1] = x[2], 0.
    C, up, leaves = normal(5, c, seed=seed + 1), normal(9, 12, seed=seed + 2), []
    outs = []
    for f in (dkm, dkm_unique):
        leaves.append(x.clone().requires_grad_())
        outs.append(f(leaves[-1], C, tau, n_iter, cluster_dim=c, min_value=floor))
        ((outs[-1][0]*up).sum() + outs[-1][1].pow(3).sum()).backward()
    assert_close(outs[0], outs[1], rtol=1e-11, atol=1e-12)
    assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-9, atol=1e-10*max(1., float(leaves[0].grad.abs().max())))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(1e-3, 10), st.integers(1, 4))
def test_mass_equivariance_and_rows(seed, tau, n_iter):
    x, C = normal(7, 8, seed=seed), normal(4, seed=seed + 1)
    soft, new = dkm(x, C, tau, n_iter, min_value=0)
    assert_close(soft.sum(), x.sum(), rtol=0, atol=1e-10)
    moved = dkm(3*x - 1, 3*C - 1, 9*tau, n_iter, min_value=0)
    assert_close(moved, (3*soft - 1, 3*new - 1), rtol=0, atol=1e-9)
    A = dkm_attention(x.reshape(-1, 1), C[:, None], tau)
    assert (A >= 1e-7).all() and (A.sum(1) - 1).abs().max() <= 4e-7


def test_tol_stops_after_the_centroids_moved():
    x, C = normal(50), normal(3, seed=1).sort().values
    assert_close(dkm(x, C, .1, 50, tol=1e9), dkm(x, C, .1, 2))      # the second iteration is the first to be compared
    assert_close(dkm_unique(x, C, .1, 50, tol=1e9), dkm(x, C, .1, 2))
    assert_close(dkm(x, C, .1, 500, tol=1e-13)[1], dkm(x, C, .1, 500)[1], rtol=0, atol=1e-5)


def test_centroids_get_no_gradient_and_dtypes_are_the_callers():
    x, C = normal(5, 5).bfloat16().requires_grad_(), normal(3).float().requires_grad_()
    for f in (dkm, dkm_unique):
        soft, new = f(x, C, .1)
        assert (soft.dtype, new.dtype) == (torch.bfloat16, torch.float32)
        new.sum().backward()
        assert C.grad is None and x.grad.dtype == torch.bfloat16
        assert f(x, C.detach().bfloat16(), .1)[1].dtype == torch.bfloat16


# what backward keeps

W = (20*torch.randn(96, 96, generator=torch.Generator().manual_seed(0))).round()/1024 + 0.      # 16-bit valued, no −0
C8 = torch.linspace(-.05, .05, 8)


def compressor(name):
    return SavedTensorCompressor("M" in name, "U" in name, 4 if "S" in name else 1)


@pytest.mark.parametrize("name", ["", "M", "U", "S", "MU", "MS", "US", "MUS"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_bitwise(name, dtype):
    found = []
    for hook in (None, compressor(name)):
        w = W.to(dtype).clone().requires_grad_()
        if hook is None: soft, C = dkm(w, C8, 1e-4)
        else:
            with hook: soft, C = dkm(w, C8, 1e-4)
        (soft.float().pow(3).sum() + C.square().sum()).backward()
        found.append((soft, C, w.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found))
    assert hook.raw_bytes >= hook.bytes_saved > 0
    assert hook.n_maps == (0 if "U" not in name else 9 if "M" in name else 13)


class Keep(torch.autograd.Function):
    "Saves what it is given, hands it out again in backward."
    seen = []

    @staticmethod
    def forward(ctx, x, *saved):
        ctx.save_for_backward(*saved)
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        Keep.seen[:] = ctx.saved_tensors
        return grad.expand(2), *[None]*len(ctx.saved_tensors)


def test_views_come_back_as_they_were():
    x = torch.zeros(2, requires_grad=True)
    base = torch.randn(64, 48)
    views = [base, base.T, base[3:, ::2], base[:1].expand(7, 48), base.reshape(8, 8, 48).permute(2, 0, 1), base.double()]
    with SavedTensorCompressor() as c: y = Keep.apply(x, *views)
    y.backward()
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(Keep.seen, views))
    assert c.n_tensors == 2 and c.bytes_saved == 4*base.numel() + 8*base.numel()


@pytest.mark.parametrize("L", [1, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_one_map(L, dtype):
    x, w = torch.zeros(2, requires_grad=True), W.bfloat16().reshape(-1, 1)
    A = dkm_attention(w.float(), C8[:, None], 1e-4).to(dtype)
    N, u, s_m = len(w), len(w.unique()), A.element_size()
    with SavedTensorCompressor(shards=L) as c: Keep.apply(x, A.T, w)      # the map first: it waits for its weights
    assert (c.index_bytes, c.table_bytes, c.plain_bytes) == (2*N//L, s_m*u*8 + 2*u, 0)
    with SavedTensorCompressor(False, True, L) as c: Keep.apply(x, A, A.T, w)
    assert c.index_bytes == 2*2*N//L and c.table_bytes == 2*s_m*u*8 + 2*u
    with SavedTensorCompressor(unique=False, shards=L) as c: Keep.apply(x, A, A.T, w)
    assert c.bytes_saved == (s_m*8*N + 2*N)//L


def test_two_weights_of_one_shape_are_told_apart():
    x = torch.zeros(2, requires_grad=True)
    one, two = W.bfloat16().reshape(-1, 1), W.flip(0).bfloat16().reshape(-1, 1)
    maps = [dkm_attention(w.float(), C8[:, None], 1e-4) for w in (one, two)]
    with SavedTensorCompressor() as c: y = Keep.apply(x, one, two, *maps)
    y.backward()
    assert c.n_maps == 2 and all(torch.equal(a, b) for a, b in zip(Keep.seen, [one, two, *maps]))


def test_nan_zero_signs_and_strangers():
    "Bits, not values: −0 differs from 0, NaN equals itself; one entry out of line and the map stays as it is."
    x, w = torch.zeros(2, requires_grad=True), W.bfloat16().reshape(-1, 1).clone()
    w[:2000:2], w[1:2000:2] = 0., -0.
    A = torch.where(w.float().signbit(), torch.tensor(-0.), torch.tensor(0.)).expand(-1, 2).clone()
    A[w[:, 0] == w[5000, 0]] = float("nan")
    with SavedTensorCompressor() as c: y = Keep.apply(x, w, A)
    y.backward()
    assert c.n_maps == 1 and torch.equal(Keep.seen[1].view(torch.int32), A.view(torch.int32))
    A[0, 1] = -0.
    with SavedTensorCompressor() as c: Keep.apply(x, w, A)
    assert c.n_maps == 0


def test_a_freed_storage_is_never_mistaken():
    def f(x):
        return sum((x*i).square().sum() for i in range(1, 40))
    x = torch.ones(64, 64, requires_grad=True)
    for hook in (SavedTensorCompressor(), SavedTensorCompressor(False, True, 3)):
        with hook: y = f(x)
        assert torch.autograd.grad(y, x)[0][0, 0] == 2*sum(i*i for i in range(1, 40))


def test_nothing_outlives_the_graph():
    w = W.bfloat16().clone().requires_grad_()
    with SavedTensorCompressor() as c:
        soft, _ = dkm(w, C8, 1e-4)
        kept = [ref for ref, _ in c._known.values()]
    assert all(isinstance(r, weakref.ref) for r in kept) and any(r() for r in kept)
    del soft, _
    gc.collect()
    assert not any(r() for r in kept)


def test_changed_in_place_is_refused():
    x = torch.ones(2000, requires_grad=True)
    with SavedTensorCompressor():
        y = x*2
        z = y.square().sum()
    y.data.zero_()                     # as autograd, it does not see this
    with torch.no_grad(): y.add_(1)    # but this
    with pytest.raises(RuntimeError, match="modified in place"): z.backward()


def test_saved_bytes():
    x = torch.ones(10, 10, requires_grad=True)
    assert tensor_saved_bytes(lambda a, b: a @ b, x, x) == 400
    assert tensor_saved_bytes(lambda a, b: a @ b, x, x, distinct=False) == 800
    assert tensor_saved_bytes(lambda a: a + 1, x) == 0
    net = nn.Sequential(nn.Linear(10, 10), nn.ReLU())
    assert tensor_saved_bytes(net, x) == 400 + 400 + 400      # input, weight (for the input's gradient), the ReLU's output


# palettes

@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_palettize_takes_the_nearest(seed, k):
    w, C = normal(6, 10, seed=seed), normal(k, seed=seed + 1)
    lut, indices = palettize(w, C)
    assert torch.equal(indices.long(), (w[..., None] - C).abs().argmin(-1))
    back = depalettize(lut, indices)
    assert torch.equal(depalettize(*palettize(back, C)), back) and len(back.unique()) <= k
    assert palettized_bits(w, k) == 60*math.ceil(math.log2(k)) + 64*k


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_palettize_in_16_bits(dtype):
    "Midpoints of bfloat16 centroids are no bfloat16 values."
    w = normal(40, 40).to(dtype)
    C = kmeans_1d(w.flatten(), 16)[0]
    assert torch.equal(palettize(w, C)[1].long(), (w.double()[..., None] - C.double()).abs().argmin(-1))


def test_layer_state_and_modes():
    torch.manual_seed(0)
    layer, x = DKMLinear(12, 8, 2, 1e-2, bias=False), torch.randn(3, 12)
    assert layer.palette.centroids.isnan().all()
    layer.eval()(x)
    start = layer.palette.centroids.clone()
    assert torch.equal(start, kmeans_1d(layer.weight.flatten(), 4)[0])
    with torch.no_grad(): layer.train()(x)
    assert torch.equal(layer.palette.centroids, start)        # no gradient, no step
    layer(x)
    assert not torch.equal(layer.palette.centroids, start)
    other = DKMLinear(12, 8, 2, 1e-2, bias=False)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(x), layer.eval()(x))
    lut, indices = layer.to_lut()
    assert lut.shape == (4,) and indices.shape == (8, 12)
    assert torch.equal(DKMWeight.to_lut(layer.palette, layer.weight)[1], indices)


def test_contract_module():
    assert home.dkm is dkm and home.SavedTensorCompressor is SavedTensorCompressor and home.kmeans_1d is kmeans_1d
