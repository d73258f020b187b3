"Kernel divergences against explicit feature maps, quadrature, permutation baselines and other packages."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from sklearn.gaussian_process.kernels import RBF
from sklearn.neighbors import KernelDensity
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from kullback.divergence import (
    cauchy_schwarz_divergence,
    conditional_cs_divergence,
    cs_mutual_information,
    gaussian_cs_divergence,
    gaussian_gram,
    hsic,
    linear_cka,
    median_bandwidth,
    mmd2,
    rbf_kernel,
)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_grams_are_sklearns_and_scipys():
    a, b = randn(12, 5), randn(9, 5, seed=1)
    assert_close(gaussian_gram(a, b, 1.7).numpy(), RBF(1.7)(a.numpy(), b.numpy()))
    assert_close(rbf_kernel(a, b, .4).numpy(), np.exp(-.4*cdist(a, b, "sqeuclidean")))
    for n in (7, 8):
        assert_close(median_bandwidth(a[:n]).item(), np.median(pdist(a[:n])))
        assert_close(median_bandwidth(a[:n], squared=True).item(), np.median(pdist(a[:n], "sqeuclidean")))


def test_far_from_the_origin_single_precision_still_knows_distances():
    a = randn(20, 3, dtype=torch.float32)*1e-2
    shift = 1e3
    exact = gaussian_gram((a + shift).double(), bandwidth=.01)
    assert_close(gaussian_gram(a + shift, bandwidth=.01).double(), exact, rtol=0, atol=1e-5)


def test_cauchy_schwarz_is_the_divergence_of_two_density_estimates():
    "Quadrature over sklearn's KDE with bandwidth σ/√2, one dimension."
    a, b, sigma = randn(30, 1), .5*randn(20, 1, seed=1) + 1, .6
    grid = np.linspace(-8, 8, 4001)[:, None]
    p, q = (np.exp(KernelDensity(bandwidth=sigma/2**.5).fit(s.numpy()).score_samples(grid)) for s in (a, b))
    inner = lambda f, h: np.trapezoid(f*h, grid[:, 0])
    expected = np.log(inner(p, p)*inner(q, q)/inner(p, q)**2)
    assert_close(cauchy_schwarz_divergence(a, b, sigma).item(), expected, rtol=1e-8, atol=0)
    mmd = (inner(p, p) + inner(q, q) - 2*inner(p, q))*math.sqrt(2*math.pi)*sigma
    assert_close(mmd2(a, b, sigma).item(), mmd, rtol=1e-8, atol=0)


def test_mutual_information_is_the_divergence_of_joint_and_product():
    "The product of marginals as an explicit sample of all N² pairs."
    x, t = randn(12, 2), randn(12, 1, seed=1)
    joint = torch.cat([x, t], 1)
    i, j = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    product = torch.cat([x[i.flatten()], t[j.flatten()]], 1)
    assert_close(cs_mutual_information(x, t, .9), cauchy_schwarz_divergence(joint, product, .9), rtol=1e-10, atol=1e-13)
    scaled = torch.cat([x/.5, t/2.], 1), torch.cat([x[i.flatten()]/.5, t[j.flatten()]/2.], 1)
    assert_close(cs_mutual_information(x, t, (.5, 2.)), cauchy_schwarz_divergence(*scaled), rtol=1e-10, atol=1e-13)
    biased = mmd2(joint, product, .9)
    assert_close(hsic(x, t, .9), biased*(12/11)**2, rtol=1e-10, atol=1e-14)


def test_conditional_is_its_own_weighted_angle():
    "Weights w_j·K_ji on pairs: Eq. 5 by summing over pairs of an explicit list."
    x, y, z = randn(9, 2), randn(9, 1, seed=1), randn(9, 1, seed=2)
    for name in ("squared_sum", "sum_of_squares"):
        K = np.exp(-cdist(x, x, "sqeuclidean")/2/.7**2)
        w = 1/(K.sum(1)**2 if name == "squared_sum" else (K**2).sum(1))
        A = lambda s, t, w=w, K=K: sum(w[j]*K[j, i]*np.exp(-float(s[j] - t[i])**2/2/1.4**2) for j in range(9) for i in range(9))
        expected = np.log(A(y, y)) + np.log(A(z, z)) - 2*np.log(A(z, y))
        ours = conditional_cs_divergence(x, y, z, (.7, 1.4), name)
        assert_close(ours.item(), expected)
        assert_close(conditional_cs_divergence(x, y, z, (.7, 1.4), name, 2).item(), expected/math.log(2))


def test_conditional_finds_a_wrong_conditional():
    "Same marginal of y, shuffled against x: the plain divergence is blind, the conditional one is not."
    x = randn(300, 1); y = x + .1*randn(300, 1, seed=1)
    shuffled = y[torch.randperm(300, generator=torch.Generator().manual_seed(2))]
    assert cauchy_schwarz_divergence(y, shuffled, .5).abs() < 1e-12
    assert conditional_cs_divergence(x, y, shuffled, .5) > .1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), m=st.integers(2, 12), log_sigma=st.floats(-6, 3))
def test_divergences_are_divergences(seed, n, m, log_sigma):
    a, b, sigma = randn(n, 2, seed=seed), randn(m, 2, seed=seed + 1), math.exp(log_sigma)
    value = cauchy_schwarz_divergence(a, b, sigma)
    assert value.isfinite() and value > -1e-9
    assert_close(value, cauchy_schwarz_divergence(b, a, sigma), rtol=1e-10, atol=1e-12)
    turn = torch.linalg.qr(randn(2, 2, seed=seed + 2))[0]
    assert_close(value, cauchy_schwarz_divergence(a @ turn + 1, b @ turn + 1, sigma), rtol=1e-6, atol=1e-8)
    assert_close(value, cauchy_schwarz_divergence(3*a, 3*b, 3*sigma), rtol=1e-8, atol=1e-10)
    assert mmd2(a, b, sigma) > -1e-12
    assert hsic(a, a[:, :1], sigma) > -1e-12


def test_gaussian_closed_form_by_quadrature():
    m1, S1, m2, S2 = randn(2), torch.cov(randn(2, 9)), randn(2, seed=1), torch.cov(randn(2, 9, seed=2))
    axis = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    p, q = (MultivariateNormal(m, S).log_prob(grid).exp() for m, S in ((m1, S1), (m2, S2)))
    expected = ((p*p).sum()*(q*q).sum()/(p*q).sum()**2).log()
    assert_close(gaussian_cs_divergence(m1, S1, m2, S2), expected, rtol=1e-9, atol=0)
    assert_close(gaussian_cs_divergence(m1, S1, m2, S2), gaussian_cs_divergence(m2, S2, m1, S1))
    batch = gaussian_cs_divergence(torch.stack([m1, m2]), torch.stack([S1, S2]), torch.stack([m2, m2]), torch.stack([S2, S2]))
    assert_close(batch, torch.stack([expected, torch.zeros(()).double()]), rtol=1e-9, atol=1e-12)


def test_single_precision_agrees_with_double():
    x, t, y, z = randn(64, 6), randn(64, 3, seed=1), randn(64, seed=2), randn(64, seed=3)
    calls = [lambda c: conditional_cs_divergence(c(x), c(y), c(z), (3., 1.)), lambda c: cs_mutual_information(c(x), c(t), 2., True),
             lambda c: hsic(c(x), c(t), 2.), lambda c: linear_cka(c(x), c(t)), lambda c: cauchy_schwarz_divergence(c(x), c(x) + 1)]
    for call in calls: assert_close(call(torch.Tensor.float).double(), call(lambda v: v), rtol=2e-4, atol=1e-5)


def test_a_shrinking_code_keeps_its_normalised_information():
    "In single precision too: the limit of small t is the linear kernel's, reached smoothly."
    x, t = randn(100, 6, dtype=torch.float32), randn(100, 3, seed=1, dtype=torch.float32)
    values = torch.stack([cs_mutual_information(x, t*10.**-k, 3., True) for k in (1, 2)])
    assert values.dtype == torch.float32
    assert_close(values, values[-1:].expand(2), rtol=5e-2, atol=0)
    exact = cs_mutual_information(x.double(), t.double()*1e-2, 3., True)
    assert_close(values[-1].double(), exact, rtol=1e-4, atol=0)


def test_gradients():
    x, t, y = randn(6, 2).requires_grad_(), randn(6, 2, seed=1).requires_grad_(), randn(6, 2, seed=2)
    check = torch.autograd.gradcheck
    assert check(lambda x, t: conditional_cs_divergence(x, y, t), (x, t))
    assert check(lambda x, t: cs_mutual_information(x, t, normalized=True), (x, t))
    assert check(lambda x, t: hsic(x, t) + mmd2(x, t) + linear_cka(x, t), (x, t))


def test_cka_by_either_side():
    tall, wide = randn(40, 6), randn(40, 90, seed=1)
    features = linear_cka(tall, wide[:, :7])
    padded = torch.cat([wide[:, :7], torch.zeros(40, 83).double()], 1)
    assert_close(linear_cka(tall, padded), features)
    one, other = tall[:, 0], wide[:, 0]
    assert_close(linear_cka(one[:, None], other[:, None]), torch.corrcoef(torch.stack([one, other]))[0, 1]**2)


@pytest.mark.parametrize("call, message", [
    (lambda: cauchy_schwarz_divergence(randn(5, 2), randn(5, 3)), "columns differ"),
    (lambda: mmd2(randn(1, 2), randn(5, 2)), "at least 2 rows, got 1"),
    (lambda: conditional_cs_divergence(randn(5), randn(5), randn(5)), r"x must be \(N, d\), got \(5,\)"),
    (lambda: conditional_cs_divergence(randn(5, 2), randn(5, 2), randn(5, 1)), "columns differ"),
    (lambda: conditional_cs_divergence(randn(5, 2), randn(5), randn(5), (1., 1., 1.)), "one number or 2"),
    (lambda: conditional_cs_divergence(randn(5, 2), randn(5), randn(5), denominator="sum"), "'sum'"),
    (lambda: cs_mutual_information(randn(5, 2), randn(4, 2)), "rows differ"),
    (lambda: cs_mutual_information(randn(5, 2), randn(5, 2), -1.), "bandwidth must be positive, got -1.0"),
    (lambda: cs_mutual_information(randn(5, 2), randn(5, 2), base=1.), "base must be above 1, got 1.0"),
    (lambda: gaussian_gram(randn(5, 2), bandwidth=torch.tensor(0.)), "bandwidth must be positive, got 0.0"),
    (lambda: rbf_kernel(randn(5, 2), randn(5, 2), 0.), "gamma must be positive"),
    (lambda: median_bandwidth(torch.zeros(5, 2)), "coincide"),
    (lambda: gaussian_cs_divergence(randn(2), torch.eye(3), randn(2), torch.eye(2)), "shapes differ"),
    (lambda: linear_cka(randn(5, 2), randn(4, 2)), "rows differ"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message): call()
