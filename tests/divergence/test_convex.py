"Bregman divergences, Fenchel–Young gaps and Jeffreys against SciPy, and what affine changes do to them."
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import rel_entr
from torch.testing import assert_close

from kullback.divergence.convex import bregman, fenchel_young, jeffreys
from kullback.divergence.fdiv import f_divergence

vectors = st.lists(st.floats(-8, 8), min_size=4, max_size=4).map(lambda v: torch.tensor(v, dtype=torch.float64))


def quadratic(A, b):
    "½xᵀAx + bᵀx; the conjugate is ½(y−b)ᵀA⁻¹(y−b)."
    return SimpleNamespace(value=lambda x: x @ A @ x/2 + b @ x, grad=lambda x: A @ x + b,
                           conjugate=lambda y: (y - b) @ torch.linalg.solve(A, y - b)/2)


def positive(seed):
    B = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return B.T @ B + .1*torch.eye(4, dtype=torch.float64)


@given(vectors, vectors, st.integers(0, 99))
def test_quadratic_divergence_is_a_mahalanobis_distance(a, b, seed):
    A = positive(seed)
    assert_close(bregman(quadratic(A, a - b), a, b), (a - b) @ A @ (a - b)/2, rtol=1e-9, atol=1e-9)


@given(vectors, vectors, vectors, st.floats(-5, 5))
def test_an_affine_term_changes_no_divergence(a, b, slope, constant):
    plain = SimpleNamespace(value=lambda x: x.exp().sum(), grad=torch.exp)
    tilted = SimpleNamespace(value=lambda x: plain.value(x) + slope @ x + constant, grad=lambda x: plain.grad(x) + slope)
    assert_close(bregman(tilted, a, b), bregman(plain, a, b), rtol=1e-9, atol=1e-8)


@given(vectors, vectors, vectors)
def test_three_points(a, b, c):
    "D(a,c) = D(a,b) + D(b,c) + <∇K(b) − ∇K(c), a − b>."
    kernel = SimpleNamespace(value=lambda x: x.logsumexp(-1), grad=lambda x: x.softmax(-1))
    right = bregman(kernel, a, b) + bregman(kernel, b, c) + (kernel.grad(b) - kernel.grad(c)) @ (a - b)
    assert_close(bregman(kernel, a, c), right, rtol=0, atol=1e-10)


@given(vectors, vectors, st.integers(0, 99))
def test_gap_is_distance_to_the_best_point(x, y, seed):
    "For fixed y the smallest gap over x is 0, at the point whose slope is y."
    kernel = quadratic(positive(seed), torch.zeros(4, dtype=torch.float64))
    fun = lambda z: fenchel_young(kernel, torch.from_numpy(z), y).item()
    jac = lambda z: (kernel.grad(torch.from_numpy(z)) - y).numpy()
    best = minimize(fun, x.numpy(), jac=jac, method="BFGS", options=dict(gtol=1e-9))
    assert abs(best.fun) < 1e-6 and fenchel_young(kernel, x, y) >= -1e-9


def test_jeffreys_against_scipy_and_the_registry():
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(9, 5, generator=g, dtype=torch.float64).mul(3).softmax(-1) for _ in range(2))
    scipy = (rel_entr(p.numpy(), q.numpy()) + rel_entr(q.numpy(), p.numpy())).sum(-1)
    assert_close(jeffreys(p, q), torch.from_numpy(scipy), rtol=1e-12, atol=0)
    assert_close(jeffreys(p, q), f_divergence(p.log(), q.log(), "jeffreys"), rtol=1e-10, atol=0)
    assert torch.equal(jeffreys(p, q), jeffreys(q, p))


@pytest.mark.parametrize("p, q, value", [
    ([1., 0.], [0., 1.], np.inf), ([0., .5, .5], [0., .25, .75], .25*np.log(3)), ([0., 1.], [0., 1.], 0.)])
def test_jeffreys_where_classes_are_excluded(p, q, value):
    assert_close(jeffreys(torch.tensor(p), torch.tensor(q)), torch.tensor(value, dtype=torch.float32))
