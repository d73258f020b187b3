"Every kernel against SciPy's optimisers, and the inequalities that make it one."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.testing import assert_close

from kullback.divergence import bregman, fenchel_young
from kullback.optim import get_kernel

BOXES = ["l1", "huber(0.3)", "soft_l1(0.3)"]
NORMS = ["l1", "lp(1)", "lp(1.5)", "lp(2)", "lp(4)", "topk(1)", "topk(4)", "topk(99)", "group(0)", "group(-1)", "nuclear"]
NAMES = sorted({*BOXES, *NORMS, "l2sq", "logsumexp"})
entries = st.one_of(st.just(0.), st.floats(-50, 50), st.sampled_from([-.3, .3, 1., -1.]))
matrices = st.lists(entries, min_size=12, max_size=12).map(lambda v: torch.tensor(v, dtype=torch.float64).view(4, 3))


def draw(seed, *shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40)
@given(st.sampled_from(NAMES), matrices, matrices)
def test_fenchel_young(name, x, other):
    kernel = get_kernel(name)
    y, size = kernel.grad(x), 1 + x.abs().max() + other.abs().max()
    assert fenchel_young(kernel, x, y).abs() < 1e-10*size**2
    assert fenchel_young(kernel, other, y) > -1e-10*size**2
    assert bregman(kernel, other, x) > -1e-10*size**2
    assert kernel.violation(y) < 1e-10


@settings(max_examples=20)
@given(st.sampled_from(NAMES), matrices, matrices, st.floats(0, 1))
def test_values_and_violations_are_convex(name, a, b, s):
    kernel = get_kernel(name)
    for f in (kernel.value, kernel.violation):
        assert f(s*a + (1 - s)*b) <= s*f(a) + (1 - s)*f(b) + 1e-9*(1 + f(a) + f(b))


@pytest.mark.parametrize("name", NORMS)
def test_the_fence_is_the_dual_norm(name):
    "sup <y, z>/K(z), found by L-BFGS from many starts, is the factor by which y must shrink to touch the fence."
    kernel, y = get_kernel(name), draw(1, 4, 3)
    def fun(z):
        z = torch.tensor(z, requires_grad=True)
        ratio = -(y*z.view(4, 3)).sum()/kernel.value(z.view(4, 3))
        ratio.backward(); return ratio.item(), z.grad.numpy()
    starts = [draw(s, 12).numpy() for s in range(6)] + list(np.eye(12)*y.numpy().reshape(-1)) + [np.sign(y.numpy()).ravel()]
    gauge = max(-minimize(fun, z, jac=True, method="L-BFGS-B").fun for z in starts)
    assert kernel.violation(y).item() == pytest.approx(max(gauge - 1, 0), abs=2e-3)
    assert kernel.conjugate(y/(1.01*gauge)) == 0 and kernel.conjugate(y/(.98*gauge)) == math.inf


@pytest.mark.parametrize("name", ["l2sq", "huber(0.3)", "huber(2)", "logsumexp"])
def test_smooth_conjugates_are_suprema(name):
    kernel = get_kernel(name)
    for seed in range(3):
        y = kernel.grad(.4*draw(seed, 6)*.9)
        def fun(z, y=y):
            z = torch.tensor(z, requires_grad=True); value = kernel.value(z) - y @ z
            value.backward(); return value.item(), z.grad.numpy()
        best = minimize(fun, np.zeros(6), jac=True, method="BFGS", options=dict(gtol=1e-10))
        assert kernel.conjugate(y).item() == pytest.approx(-best.fun, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_scale_and_order(name):
    "Norms are homogeneous; kernels that know no place commute with permutations of the entries."
    kernel, x = get_kernel(name), draw(2, 4, 3)
    if name in NORMS:
        assert_close(kernel.value(7*x), 7*kernel.value(x), rtol=1e-12, atol=0)
        assert_close(kernel.grad(1e-200*x), kernel.grad(x), rtol=1e-9, atol=1e-12)
        assert_close(kernel.grad(-x), -kernel.grad(x), rtol=1e-9, atol=1e-12)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0))
    assert_close(kernel.grad(x[order]), kernel.grad(x)[order], rtol=1e-9, atol=1e-12)
    if kernel.elementwise: assert torch.equal(kernel.grad(x.flatten()[:5]), kernel.grad(x).flatten()[:5])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(name, dtype):
    kernel, x = get_kernel(name), draw(3, 4, 3).to(dtype)
    y = kernel.grad(x)
    assert y.dtype == dtype and kernel.conjugate(y).isfinite()
    assert_close(y.double(), kernel.grad(x.double()), rtol=0, atol=1e-6 if dtype == torch.float32 else .02)


def test_nuclear_of_a_matrix_without_full_rank():
    u, v = draw(0, 5, 2), draw(1, 3, 2)
    y = get_kernel("nuclear").grad(u @ v.T)
    assert_close(torch.linalg.svdvals(y), torch.tensor([1., 1., 0.], dtype=torch.float64), rtol=0, atol=1e-12)


def test_ties_among_the_largest():
    y = get_kernel("topk(2)").grad(torch.tensor([1., -1., 1., .5]))
    assert y.abs().sum() == 2 and y[3] == 0


@pytest.mark.parametrize("name", [*NAMES, "lp(1.23456789)", "huber(1e-07)", "soft_l1(0.1234567890123)"])
def test_names_read_back(name):
    kernel = get_kernel(name)
    assert get_kernel(kernel.name).name == kernel.name
    x = draw(5, 4, 3)
    assert torch.equal(get_kernel(kernel.name).grad(x), kernel.grad(x))


@pytest.mark.parametrize("bad", ["", "L1", "l1()", "lp()", "lp(1,2)", "huber(nan)", "topk(-3)", "soft_l1(0)", "group(x)", None, ["l1"]])
def test_bad_names_are_refused_with_the_name(bad):
    with pytest.raises(ValueError, match="kernel|topk|soft_l1"): get_kernel(bad)
