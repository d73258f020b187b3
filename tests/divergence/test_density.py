"Kernel densities against SciPy, sklearn and statsmodels; the asymptotic formulas against root finding and simulation."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import gaussian_kde
from sklearn.neighbors import KernelDensity
from statsmodels.nonparametric.kernel_density import KDEMultivariate
from torch.distributions import MultivariateNormal, kl_divergence
from torch.testing import assert_close

from kullback.divergence import (
    clt_bandwidth,
    condensation_bandwidth,
    effective_sample_size,
    gaussian_cgf,
    gaussian_cgf_prime,
    kde_log_density,
    kde_log_density_limit,
    kde_weights,
    kl_gaussian_kde,
    kl_optimal_bandwidth,
    participation_ratio,
    scott_bandwidth,
    select_bandwidth,
    silverman_bandwidth,
    tail_index,
)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_density_is_sklearns_and_statsmodels():
    data, query = randn(80, 3), 2*randn(15, 3, seed=1)
    ours = kde_log_density(query, data, .8, chunk=7).numpy()
    assert_close(ours, KernelDensity(bandwidth=.8).fit(data).score_samples(query))
    other = KDEMultivariate(data.numpy(), "ccc", bw=[.8]*3).pdf(query.numpy())
    assert_close(ours, np.log(other), rtol=1e-8, atol=1e-10)


def test_the_estimate_is_a_density():
    data = randn(9, 1)
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    assert_close(torch.trapezoid(kde_log_density(grid, data, .5).exp(), grid[:, 0]), torch.tensor(1.).double())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), chunk=st.integers(1, 40), log_h=st.floats(-5, 4))
def test_chunks_change_nothing(seed, n, chunk, log_h):
    data, query, h = randn(n, 4, seed=seed), randn(3, 4, seed=seed + 1), math.exp(log_h)
    assert_close(kde_log_density(query, data, h, chunk), kde_log_density(query, data, h), rtol=1e-12, atol=1e-12)
    w = kde_weights(query, data, h)
    assert_close(w.sum(1), torch.ones(3).double())
    p = participation_ratio(w.log())
    assert ((p >= 1/n - 1e-9) & (p <= 1 + 1e-9)).all()
    assert_close(p*effective_sample_size(w.log()), torch.ones(3).double())


def test_gradients():
    leaves = randn(4, 3).requires_grad_(), randn(6, 3, seed=1).requires_grad_(), torch.tensor(.7).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda q, x, h: kde_log_density(q, x, h, chunk=4), leaves)
    assert torch.autograd.gradcheck(kde_weights, leaves)
    v = randn(5).exp().requires_grad_()
    at = torch.tensor([.4, 2.]).double().requires_grad_()
    for f in (gaussian_cgf, gaussian_cgf_prime, condensation_bandwidth, clt_bandwidth, kl_optimal_bandwidth):
        assert torch.autograd.gradcheck(f, (at, v))
    for f in (tail_index, kde_log_density_limit):
        assert torch.autograd.gradcheck(f, (at, torch.tensor([.3, .5]).double().requires_grad_(), v))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 12), log_alpha=st.floats(-12, 2), spread=st.floats(0, 4))
def test_condensation_against_a_root_finder(seed, d, log_alpha, spread):
    alpha, v = math.exp(log_alpha), (spread*randn(d, seed=seed)).exp()
    h = condensation_bandwidth(alpha, v)
    z = lambda lam: lam*v.numpy()
    gap = lambda t: .5*np.mean(np.log1p(z(np.exp(t))) - z(np.exp(t))/(1 + z(np.exp(t)))**2) - alpha
    assert_close(h.log().item(), -brentq(gap, -80, 80, xtol=1e-13)/2, rtol=1e-6, atol=1e-6)
    best = kl_optimal_bandwidth(alpha, v)
    lam = h**-2
    assert best < h < clt_bandwidth(alpha, v)
    assert_close(best**2, h**2*(1 - (1 + lam*v).pow(-2).mean()), rtol=1e-6, atol=0)
    assert_close(tail_index(h, alpha, v), torch.tensor(1.).double(), rtol=1e-6, atol=0)
    c = math.exp(spread)
    assert_close(condensation_bandwidth(alpha, c*c*v), c*h, rtol=1e-6, atol=0)


def test_the_optimum_maximises_the_limit():
    v = randn(7).exp()
    for alpha in (.05, .2, 1.):
        h = minimize_scalar(lambda h, a=alpha: -float(kde_log_density_limit(h, a, v)), bounds=(.01, 4), method="bounded",
                            options={"xatol": 1e-9}).x
        assert_close(h, kl_optimal_bandwidth(alpha, v).item(), rtol=1e-5, atol=0)


def test_many_points_follow_the_first_branch():
    "At h > h_CLT the log-density of a large sample at |x|² = d is φ's, to the accuracy that its own spread allows."
    d, alpha = 30, .3
    h = 1.5*clt_bandwidth(alpha)
    data = randn(round(math.exp(alpha*d)), d)
    query = randn(50, d, seed=1); query = query*math.sqrt(d)/query.norm(dim=1, keepdim=True)
    assert_close(kde_log_density(query, data, h).mean()/d, kde_log_density_limit(h, alpha), rtol=0, atol=2e-3)


def test_rules_of_thumb_are_scipys():
    data = 3*randn(70, 1)
    assert_close(silverman_bandwidth(data).item(), gaussian_kde(data[:, 0], "silverman").covariance[0, 0]**.5)
    assert_close(scott_bandwidth(data).item(), gaussian_kde(data[:, 0], "scott").covariance[0, 0]**.5)
    data = randn(200, 4)
    kde = gaussian_kde(data.T.numpy())
    sigma = data.var(0).mean().sqrt().item()
    assert_close(silverman_bandwidth(data).item(), sigma*kde.silverman_factor())
    assert_close(scott_bandwidth(data).item(), sigma*kde.scotts_factor())


def test_search_finds_the_best_of_a_grid():
    data, heldout = randn(200, 6), randn(150, 6, seed=1)
    found = select_bandwidth(data, heldout, (.05, 5.))
    loss = minimize_scalar(lambda h: -KernelDensity(bandwidth=h).fit(data).score(heldout), bounds=(.05, 5), method="bounded",
                           options={"xatol": 1e-8})
    assert_close(found, loss.x, rtol=1e-4, atol=0)


def test_divergence_of_one_centre_is_closed_form():
    d = 4
    S = torch.cov(randn(d, 30)) + torch.eye(d).double()*.2
    mean, centre = randn(d, seed=1), randn(1, d, seed=2)
    truth = kl_divergence(MultivariateNormal(mean, S), MultivariateNormal(centre[0], 1.7*torch.eye(d).double()))
    g = torch.Generator().manual_seed(3)
    estimate, error = kl_gaussian_kde(centre, 1.7**.5, mean, S, 40_000, g)
    assert (estimate - truth).abs() < 4*error < .2
    again = kl_gaussian_kde(centre, 1.7**.5, mean, S, 40_000, torch.Generator().manual_seed(3))
    assert again == (estimate, error)


def test_plain_numbers_and_single_precision():
    assert condensation_bandwidth(.2).dtype == torch.float64
    single = condensation_bandwidth(.2, torch.ones(3))
    assert single.dtype == torch.float32
    assert_close(single.double(), condensation_bandwidth(.2), rtol=1e-6, atol=0)
    assert kl_optimal_bandwidth(torch.full((2, 3), .1), torch.ones(4)).shape == (2, 3)


@pytest.mark.parametrize("call, message", [
    (lambda: kde_log_density(randn(3, 2), randn(0, 2), 1.), r"data must be .*\(0, 2\)"),
    (lambda: kde_log_density(randn(3, 2), randn(4, 3), 1.), "query 2, data 3"),
    (lambda: kde_log_density(randn(3, 2), randn(4, 2), -1.), "bandwidth must be positive, got -1.0"),
    (lambda: kde_log_density(randn(3, 2), randn(4, 2), 1., 0), "chunk must be at least 1, got 0"),
    (lambda: gaussian_cgf(-1.), "lam must not be negative, got -1.0"),
    (lambda: gaussian_cgf(1., torch.ones(2, 2)), "variances must be"),
    (lambda: condensation_bandwidth(.1, 0.), "variances must be positive, got 0.0"),
    (lambda: tail_index(0., .1), "h must be positive, got 0.0"),
    (lambda: clt_bandwidth(-.1), "alpha must be positive, got -0.1"),
    (lambda: select_bandwidth(randn(3, 2), randn(3, 2), (1., 1.)), "0 < low < high"),
    (lambda: silverman_bandwidth(randn(1, 2)), "at least 2 rows"),
    (lambda: kl_gaussian_kde(randn(3, 2), 1., torch.zeros(2).double(), torch.eye(2).double(), 1), "at least 2, got 1"),
    (lambda: kl_gaussian_kde(randn(3, 2), 1., torch.zeros(2).double(), -torch.eye(2).double(), 5), "cov must be positive definite"),
    (lambda: kl_gaussian_kde(randn(3, 2), 1., torch.zeros(3).double(), torch.eye(3).double(), 5), r"got \(3,\) and \(3, 3\)"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message): call()
