"`divergence.gibbs`: optimality against a numerical optimiser, limits, exact laws of the draws."
import itertools
import math

import pytest
import torch
from draws import normal as draw
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from torch.testing import assert_close

from kullback.divergence import (
    effective_sample_size,
    gibbs_tilt,
    gumbel_topk,
    kl_from_logits,
    log_mean_exp,
    soft_value,
)

INF = math.inf
EXACT = dict(rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("beta", [.2, 1., 5.])
def test_optimum_by_a_numerical_optimiser(beta):
    q, r = draw(5).log_softmax(-1), draw(5, seed=1)
    def loss(z):
        p = torch.tensor(z).log_softmax(-1)
        return -((p.exp()*r).sum() - beta*kl_from_logits(p, q)).item()
    found = optimize.minimize(loss, [0.]*5, method="BFGS", options={"gtol": 1e-9})
    assert_close(torch.tensor(found.x).softmax(-1), gibbs_tilt(q, r, beta).exp(), rtol=0, atol=1e-5)
    assert -found.fun == pytest.approx(soft_value(r, beta, q).item(), abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(shape=st.lists(st.integers(1, 3), max_size=2), N=st.integers(1, 6), seed=st.integers(0, 1000), beta=st.floats(1e-3, 1e3),
       scale=st.sampled_from([1., 1e2, 1e4]))
def test_tilt_and_value(shape, N, seed, beta, scale):
    q, r = draw(*shape, N, seed=seed).log_softmax(-1), draw(*shape, N, seed=seed + 1, scale=scale)
    p, V = gibbs_tilt(q, r, beta), soft_value(r, beta, q)
    assert p.shape == q.shape and V.shape == tuple(shape)
    assert_close(p.logsumexp(-1), torch.zeros_like(V), rtol=0, atol=1e-10)
    J = (p.exp()*r).sum(-1) - beta*kl_from_logits(p, q)
    assert_close(J, V, rtol=1e-9, atol=1e-9*scale)
    mean = (q.exp()*r).sum(-1)
    assert (mean - 1e-9*scale <= V).all() and (V <= r.max(-1).values + 1e-9*scale).all()
    assert (soft_value(r, 2*beta, q) <= V + 1e-9*scale).all()                       # dearer divergence earns less
    assert_close(gibbs_tilt(q, r + 7, beta), p, rtol=1e-9, atol=1e-8*scale/beta)    # a constant reward moves nobody
    assert_close(soft_value(r + 7, beta, q), V + 7, rtol=1e-9, atol=1e-9*scale)
    twice = gibbs_tilt(gibbs_tilt(q, r, beta), r, beta)                             # tilts compose
    assert_close(twice, gibbs_tilt(q, 2*r, beta), rtol=1e-8, atol=1e-8*scale/beta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_rewards_and_excluded_outcomes(dtype):
    q = torch.tensor([.5, .5, 0.], dtype=dtype).log().requires_grad_()
    r = torch.tensor([1e4, -1e4, 1e5], dtype=dtype, requires_grad=True)
    p, V = gibbs_tilt(q, r, .1), soft_value(r, .1, q)
    assert p.exp().tolist() == [1, 0, 0] and p[2] == -INF                           # no reward buys what q excludes
    assert V.item() == pytest.approx(1e4 + .1*math.log(.5))
    grad_q, grad_r = torch.autograd.grad(V, (q, r))
    assert grad_r.tolist() == [1, 0, 0] and grad_q.isfinite().all()
    assert torch.autograd.grad(p[0], r)[0].isfinite().all()


def test_slope_of_the_frontier_is_the_price():
    q, r = draw(6).log_softmax(-1), draw(6, seed=1)
    beta = torch.tensor(.7, dtype=torch.float64, requires_grad=True)
    p = (q + r/beta).log_softmax(-1)
    reward, nats = (p.exp()*r).sum(), (p.exp()*(p - q)).sum()
    dr, = torch.autograd.grad(reward, beta, retain_graph=True)
    dn, = torch.autograd.grad(nats, beta)
    assert_close(dr/dn, beta.detach(), **EXACT)
    assert_close(p.detach(), gibbs_tilt(q, r, .7), **EXACT)


def test_value_derivatives():
    "∂V/∂r = p*, ∂V/∂β = −D(p*‖q), and the Hessian in r is the covariance under p* over β."
    q, r, beta = draw(5).log_softmax(-1), draw(5, seed=1), .6
    p = gibbs_tilt(q, r, beta).exp()
    H = torch.autograd.functional.hessian(lambda r: soft_value(r, beta, q), r)
    assert_close(H, (p.diag() - p[:, None]*p)/beta, **EXACT)
    step = 1e-5
    slope = (soft_value(r, beta + step, q) - soft_value(r, beta - step, q))/(2*step)
    assert_close(slope, -kl_from_logits(gibbs_tilt(q, r, beta), q), rtol=1e-7, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(N=st.integers(1, 8), seed=st.integers(0, 1000), shift=st.sampled_from([0., 700., -1e4, 1e4]))
def test_log_mean_exp_and_effective_size(N, seed, shift):
    x = draw(3, N, seed=seed)
    assert_close(log_mean_exp(x + shift), torch.tensor(special.logsumexp(x.numpy(), -1) - math.log(N)) + shift, rtol=1e-12, atol=1e-9)
    assert_close(log_mean_exp(x.T, 0), log_mean_exp(x), **EXACT)
    assert_close(soft_value(x + shift, 1.), log_mean_exp(x + shift), **EXACT)
    ess = effective_sample_size(x + shift)
    w = special.softmax(x.numpy(), -1)
    assert_close(ess, torch.tensor(1/(w**2).sum(-1)), rtol=1e-8, atol=0)
    assert (ess >= 1 - 1e-9).all() and (ess <= N + 1e-9).all()


def test_effective_size_of_equal_groups():
    assert effective_sample_size(torch.tensor([0.]*5 + [-INF]*7)).item() == pytest.approx(5)
    assert effective_sample_size(torch.tensor([1e4, -1e4])).item() == 1
    leaf = torch.tensor([0., 1., -INF], requires_grad=True)
    assert torch.autograd.grad(effective_sample_size(leaf), leaf)[0].isfinite().all()


# draws without replacement

def sequence_probability(w, order):
    left, p = 1., 1.
    for i in order: p, left = p*w[i]/left, left - w[i]
    return p


def test_law_of_ordered_draws():
    "Plackett–Luce: all 24 ordered pairs of five outcomes (one excluded), chi-square against the exact law."
    lw = torch.tensor([0., .7, -1., 1.3, -INF], dtype=torch.float64)
    w, n, g = lw.softmax(-1).tolist(), 8000, torch.Generator().manual_seed(0)
    seen = {}
    for _ in range(n):
        pair = tuple(gumbel_topk(lw, 2, generator=g).tolist())
        seen[pair] = seen.get(pair, 0) + 1
    law = {o: sequence_probability(w, o) for o in itertools.permutations(range(4), 2)}
    assert sum(law.values()) == pytest.approx(1) and set(seen) <= set(law)
    chi2 = sum((seen.get(o, 0) - n*p)**2/(n*p) for o, p in law.items())
    assert special.chdtrc(len(law) - 1, chi2) > 1e-3


@settings(max_examples=50, deadline=None)
@given(N=st.integers(1, 30), seed=st.integers(0, 1000), data=st.data())
def test_draws_are_distinct_and_reproducible(N, seed, data):
    k, lw = data.draw(st.integers(1, N)), draw(N, seed=seed, scale=5.)
    a, b = (gumbel_topk(lw, k, generator=torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(a, b) and len(set(a.tolist())) == k
    assert torch.equal(gumbel_topk(lw, k, noise=False), lw.argsort(descending=True)[:k])
    assert sorted(gumbel_topk(lw, N, generator=torch.Generator().manual_seed(seed)).tolist()) == list(range(N))
    torch.manual_seed(0); before = torch.rand(1)
    torch.manual_seed(0); gumbel_topk(lw, k, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.rand(1), before)                                       # the global state is left alone


@pytest.mark.parametrize("bad, message", [
    (lambda: gibbs_tilt(draw(3), draw(4)), "shapes differ"),
    (lambda: gibbs_tilt(draw(3), draw(3), -1.), "beta must be positive, got -1.0"),
    (lambda: gibbs_tilt(draw(3), draw(3), math.nan), "got nan"),
    (lambda: soft_value(draw(3), 0.), "got 0.0"),
    (lambda: soft_value(draw(3), 1., draw(3)), "log-mass"),
    (lambda: soft_value(draw(3), 1., draw(2).log_softmax(0)), "shapes differ"),
    (lambda: log_mean_exp(torch.zeros(3, 0)), "a mean over nothing: shape (3, 0)"),
    (lambda: gumbel_topk(draw(3), 4), "k must lie in 1..3, got 4"),
    (lambda: gumbel_topk(draw(2, 3), 1), "got (2, 3)"),
    (lambda: gumbel_topk(torch.tensor([0., -INF, -INF]), 2), "only 1 weights are above zero, cannot draw 2"),
])
def test_refusals(bad, message):
    with pytest.raises(ValueError) as error: bad()
    assert message in str(error.value)
