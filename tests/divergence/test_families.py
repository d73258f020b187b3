"`divergence.families`: torch.distributions, quadrature and sampling-free identities as oracles."
import math

import pytest
import torch
import torch.nn.functional as F
from draws import normal as draw
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats
from torch import distributions as dist
from torch.testing import assert_close

from kullback.divergence import (
    bernoulli_kl,
    categorical_kl,
    dirichlet_kl,
    f_divergence,
    gaussian_kl,
    gaussian_kl_full,
    kl_chain,
    kl_from_logits,
    target_odds,
)

INF = math.inf
EXACT = dict(rtol=1e-10, atol=1e-12)


def covariance(*shape, d, seed=0):
    root = draw(*shape, d, d, seed=seed)
    return root@root.mT + .2*torch.eye(d, dtype=torch.float64)


# Bernoulli

@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
@settings(max_examples=200, deadline=None)
def test_bernoulli_in_exact_arithmetic(a, b):
    mp = pytest.importorskip("mpmath")
    with mp.workdps(50):
        softplus = lambda z: mp.log1p(mp.exp(z)) if z < 0 else z + mp.log1p(mp.exp(-z))
        sigmoid = lambda z: mp.exp(-softplus(-z))
        x, y = mp.mpf(a), mp.mpf(b)
        exact = sigmoid(x)*(softplus(-y) - softplus(-x)) + sigmoid(-x)*(softplus(y) - softplus(x))
    z = torch.tensor([a, b], dtype=torch.float64, requires_grad=True)
    value = bernoulli_kl(z[0], z[1])
    assert value.item() == pytest.approx(float(exact), rel=1e-9, abs=1e-15)
    assert torch.autograd.grad(value, z)[0].isfinite().all()


@pytest.mark.parametrize("a", [-INF, -3., 0., 40., INF])
@pytest.mark.parametrize("b", [-INF, -3., 0., 40., INF])
def test_certain_coins(a, b):
    "0·log 0 = 0; +∞ exactly where q excludes what p allows; the gradient of a finite value is finite."
    p, q = torch.tensor([a, b], dtype=torch.float64)
    z = torch.stack([p, q]).requires_grad_()
    value = bernoulli_kl(z[:1], z[1:])
    excluded = (b == INF and a < INF) or (b == -INF and a > -INF)
    assert value.item() == INF if excluded else value.isfinite()
    if a == b: assert value.item() == 0
    if not excluded: assert torch.autograd.grad(value, z)[0].isfinite().all()


def test_bernoulli_is_a_categorical_with_two_classes():
    logits_p, logits_q, y = draw(5, 7, scale=3.), draw(5, 7, seed=1, scale=3.), torch.tensor([0, 6, 3, 3, 1])
    odds = [target_odds(z, y) for z in (logits_p, logits_q)]
    binary = kl_chain(logits_p, logits_q, y)[0]
    assert_close(bernoulli_kl(*(o[:, 0] - o[:, 1] for o in odds)), binary, **EXACT)


def test_bernoulli_oracles():
    a, b = draw(50, scale=4.), draw(50, seed=1, scale=4.)
    assert_close(bernoulli_kl(a, b), dist.kl_divergence(dist.Bernoulli(logits=a), dist.Bernoulli(logits=b)), rtol=1e-8, atol=1e-12)
    p, q = special.expit(a.numpy()), special.expit(b.numpy())
    assert_close(bernoulli_kl(a, b), torch.from_numpy(special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q)), rtol=1e-8, atol=1e-12)
    assert_close(bernoulli_kl(a, b, "sum"), bernoulli_kl(a, b).sum())
    assert_close(bernoulli_kl(-a, -b), bernoulli_kl(a, b), **EXACT)                   # heads and tails exchanged
    cross = F.binary_cross_entropy_with_logits(b, a.sigmoid(), reduction="none")
    entropy = dist.Bernoulli(logits=a).entropy()
    assert_close(bernoulli_kl(a, b), cross - entropy, rtol=1e-8, atol=1e-10)
    leaves = a[:5].clone().requires_grad_(), b[:5].clone().requires_grad_()
    assert torch.autograd.gradcheck(bernoulli_kl, leaves)


# categorical

def test_categorical():
    p, q = draw(4, 3, 6, scale=2.).softmax(-1), draw(4, 3, 6, seed=1, scale=2.).softmax(-1)
    assert_close(categorical_kl(p, q), dist.kl_divergence(dist.Categorical(p), dist.Categorical(q)), **EXACT)
    assert_close(categorical_kl(p, q), torch.from_numpy(special.rel_entr(p.numpy(), q.numpy()).sum(-1)), **EXACT)
    assert_close(categorical_kl(p, q), kl_from_logits(p.log(), q.log()), **EXACT)
    assert_close(categorical_kl(p, q), f_divergence(p.log(), q.log()), **EXACT)
    product = lambda a: (a[:, 0, :, None]*a[:, 1, None, :]).flatten(1)
    assert_close(categorical_kl(product(p), product(q)), categorical_kl(p, q)[:, :2].sum(-1), **EXACT)


def test_categorical_without_mass():
    p, q = torch.tensor([.5, .5, 0., 0.], requires_grad=True), torch.tensor([.5, .25, .25, 0.], requires_grad=True)
    value = categorical_kl(p, q)
    assert_close(value, torch.tensor(.5*math.log(2)))
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, (p, q)))
    assert categorical_kl(q, p) == INF


# Gaussians

@pytest.mark.parametrize("m, lv, rm, rlv", [(.3, -.4, 0., 0.), (2., 1., -1., .5), (0., -3., .1, 1.)])
def test_gaussian_by_quadrature(m, lv, rm, rlv):
    p, q = stats.norm(m, math.exp(lv/2)), stats.norm(rm, math.exp(rlv/2))
    exact = integrate.quad(lambda x: p.pdf(x)*(p.logpdf(x) - q.logpdf(x)), -30, 30, limit=400, points=[m])[0]
    one = lambda v: torch.tensor([v], dtype=torch.float64)
    assert gaussian_kl(one(m), one(lv), one(rm), one(rlv)).item() == pytest.approx(exact, rel=1e-7)


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(1, 3), max_size=2), d=st.integers(1, 5), seed=st.integers(0, 1000))
def test_gaussian_against_torch(shape, d, seed):
    m, lv, rm, rlv = (draw(*shape, d, seed=seed + i) for i in range(4))
    normal = lambda m, lv: dist.Independent(dist.Normal(m, (lv/2).exp()), 1)
    KL = gaussian_kl(m, lv, rm, rlv)
    assert KL.shape == tuple(shape)
    assert_close(KL, dist.kl_divergence(normal(m, lv), normal(rm, rlv)), **EXACT)
    assert_close(gaussian_kl(m, lv), gaussian_kl(m, lv, torch.zeros_like(m), torch.zeros_like(m)), **EXACT)
    assert_close(gaussian_kl_full(m, lv.exp().diag_embed(), rm, rlv.exp().diag_embed()), KL, **EXACT)
    assert (KL >= 0).all() and (gaussian_kl(m, lv, m, lv) == 0).all()
    assert_close(gaussian_kl(3*m + 1, lv + 2*math.log(3), 3*rm + 1, rlv + 2*math.log(3)), KL, **EXACT)   # change of units


def test_gaussian_is_accurate_near_equality():
    "½(e^δ − 1 − δ) ≈ δ²/4: a naive sum would return rounding noise."
    lv = torch.tensor([1e-7], dtype=torch.float64)
    assert gaussian_kl(torch.zeros_like(lv), lv).item() == pytest.approx(2.5e-15, rel=1e-3)
    far = torch.tensor([-1e4], requires_grad=True)
    value = gaussian_kl(torch.zeros(1), far)
    assert value.item() == pytest.approx(4999.5) and torch.autograd.grad(value, far)[0].item() == -.5


@pytest.mark.parametrize("d", [1, 2, 6])
def test_full_covariance(d):
    m, rm, S, R = draw(3, 2, d), draw(3, 2, d, seed=1), covariance(3, 2, d=d, seed=2), covariance(3, 2, d=d, seed=3)
    KL = gaussian_kl_full(m, S, rm, R)
    assert_close(KL, dist.kl_divergence(dist.MultivariateNormal(m, S), dist.MultivariateNormal(rm, R)), rtol=1e-9, atol=1e-10)
    inv = torch.linalg.inv(R)
    direct = ((inv@S).diagonal(dim1=-2, dim2=-1).sum(-1) - d - torch.logdet(S) + torch.logdet(R)
              + torch.einsum("...i,...ij,...j", m - rm, inv, m - rm))/2
    assert_close(KL, direct, rtol=1e-8, atol=1e-9)
    A = draw(d, d, seed=9) + 3*torch.eye(d, dtype=torch.float64)                     # any invertible map changes nothing
    assert_close(gaussian_kl_full(m@A.T, A@S@A.T, rm@A.T, A@R@A.T), KL, rtol=1e-8, atol=1e-9)
    leaves = tuple(x[0, 0].clone().requires_grad_() for x in (m, S, rm, R))
    sym = lambda m, S, rm, R: gaussian_kl_full(m, (S + S.mT)/2, rm, (R + R.mT)/2)
    assert torch.autograd.gradcheck(sym, leaves)


def test_chain_rule_of_gaussians():
    "KL of the whole = KL of the first coordinate + expected KL of the second given the first."
    m, rm, S, R = draw(2), draw(2, seed=1), covariance(d=2, seed=2), covariance(d=2, seed=3)
    one = lambda m, v: (m[None], v.log()[None])
    first = gaussian_kl(*one(m[0], S[0, 0]), *one(rm[0], R[0, 0]))
    slope, rslope = S[0, 1]/S[0, 0], R[0, 1]/R[0, 0]
    rest, rrest = S[1, 1] - S[0, 1]*slope, R[1, 1] - R[0, 1]*rslope
    shift = m[1] - rm[1] + rslope*(rm[0] - m[0])                                     # mean difference at x₀ = m₀
    spread = (slope - rslope)**2*S[0, 0]/rrest/2                                     # its variance over x₀
    second = gaussian_kl(*one(shift, rest), *one(torch.zeros_like(shift), rrest)) + spread
    assert_close(gaussian_kl_full(m, S, rm, R), first + second, **EXACT)


# Dirichlet

@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(1, 3), max_size=2), K=st.integers(2, 6), seed=st.integers(0, 1000), scale=st.sampled_from([.1, 1., 2.]))
def test_dirichlet_against_torch(shape, K, seed, scale):
    c, c2 = draw(*shape, K, seed=seed, scale=scale).exp(), draw(*shape, K, seed=seed + 1, scale=scale).exp()
    KL = dirichlet_kl(c, c2)
    assert KL.shape == tuple(shape) and (KL >= -1e-10).all()
    assert_close(KL, dist.kl_divergence(dist.Dirichlet(c), dist.Dirichlet(c2)), rtol=1e-9, atol=1e-9)
    assert_close(dirichlet_kl(c, c), torch.zeros_like(KL), rtol=0, atol=1e-10)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    assert_close(dirichlet_kl(c[..., order], c2[..., order]), KL, rtol=1e-9, atol=1e-9)


def test_two_classes_are_a_beta():
    p, q = stats.beta(2.5, .8), stats.beta(1.2, 3.)
    exact = integrate.quad(lambda x: p.pdf(x)*(p.logpdf(x) - q.logpdf(x)), 0, 1, limit=400)[0]
    t = lambda *v: torch.tensor(v, dtype=torch.float64)
    assert dirichlet_kl(t(2.5, .8), t(1.2, 3.)).item() == pytest.approx(exact, rel=1e-6)


def test_aggregation_loses_information():
    "Merging two classes of a Dirichlet adds their concentrations: data processing."
    c, c2 = draw(50, 5).exp(), draw(50, 5, seed=1).exp()
    merge = lambda c: torch.cat([c[:, :3], c[:, 3:].sum(-1, keepdim=True)], -1)
    assert (dirichlet_kl(merge(c), merge(c2)) <= dirichlet_kl(c, c2) + 1e-10).all()


def test_anchor_at_the_uniform():
    c = torch.ones(4, dtype=torch.float64, requires_grad=True)
    grad, = torch.autograd.grad(dirichlet_kl(c, torch.ones_like(c)), c)
    assert grad.abs().max() < 1e-14
    leaves = draw(3, 4).exp().requires_grad_(), draw(3, 4, seed=1).exp().requires_grad_()
    assert torch.autograd.gradcheck(dirichlet_kl, leaves)


@pytest.mark.parametrize("bad, message", [
    (lambda: bernoulli_kl(draw(3), draw(4)), "shapes differ"),
    (lambda: bernoulli_kl(draw(3), draw(3), "batchmean"), "got 'batchmean'"),
    (lambda: categorical_kl(draw(3).softmax(0), 2*draw(3).softmax(0)), "q must be distributions"),
    (lambda: categorical_kl(torch.tensor([1.5, -.5]), torch.tensor([.5, .5])), "an entry -0.5"),
    (lambda: gaussian_kl(draw(3), draw(3), draw(2)), "shapes differ"),
    (lambda: gaussian_kl_full(draw(3), covariance(d=2), draw(3), covariance(d=2)), "got (2, 2)"),
    (lambda: gaussian_kl_full(draw(2), covariance(d=2), draw(2), -covariance(d=2)), "ref_cov must be positive definite"),
    (lambda: dirichlet_kl(torch.ones(3), torch.tensor([1., 0., 2.])), "q_conc must be positive, got 0.0"),
])
def test_refusals(bad, message):
    with pytest.raises(ValueError) as error: bad()
    assert message in str(error.value)
