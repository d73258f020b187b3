"`divergence.kl`: SciPy, torch.distributions and exact arithmetic as oracles; far logits and excluded classes."
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from scipy.spatial import distance
from torch import distributions as dist
from torch.testing import assert_close

from kullback.divergence import (
    entropy_from_logits,
    js_divergence,
    kl_from_logits,
    kl_top,
    log_mixture,
    masked_reduced,
    reduced,
    soft_cross_entropy,
)

INF = math.inf
EXACT = dict(rtol=1e-11, atol=1e-12)
draw = partial(normal, scale=2.)
shapes = st.lists(st.integers(1, 4), max_size=3)
logit = st.one_of(st.floats(-1e4, 1e4), st.floats(-5, 5))


# values

@settings(max_examples=60, deadline=None)
@given(shape=shapes, K=st.integers(1, 6), seed=st.integers(0, 1000), t=st.sampled_from([.1, 1., 4.]))
def test_against_torch_distributions_and_scipy(shape, K, seed, t):
    a, b = draw(*shape, K, seed=seed), draw(*shape, K, seed=seed + 1)
    p, q = dist.Categorical(logits=a/t), dist.Categorical(logits=b/t)
    assert_close(kl_from_logits(a, b, t), dist.kl_divergence(p, q), rtol=1e-9, atol=1e-12)
    assert_close(entropy_from_logits(a, t), p.entropy(), rtol=1e-9, atol=1e-12)
    P, Q = special.softmax(a.numpy()/t, -1), special.softmax(b.numpy()/t, -1)
    assert_close(kl_from_logits(a, b, t), torch.tensor(special.rel_entr(P, Q).sum(-1)), rtol=1e-9, atol=1e-12)
    assert_close(entropy_from_logits(a, t), torch.tensor(stats.entropy(P, axis=-1)), rtol=1e-9, atol=1e-12)
    assert_close(soft_cross_entropy(b/t, a.div(t).softmax(-1), "none"), p.entropy() + dist.kl_divergence(p, q), rtol=1e-9, atol=1e-12)
    js = (special.rel_entr(P, (P + Q)/2) + special.rel_entr(Q, (P + Q)/2)).sum(-1)/2     # jensenshannon takes a root: nan at −1e-17
    assert_close(js_divergence(p.probs, q.probs), torch.tensor(js), rtol=1e-9, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(rows=st.integers(2, 5).flatmap(lambda K: st.tuples(*[st.lists(logit, min_size=K, max_size=K)]*2)))
def test_far_logits_in_exact_arithmetic(rows):
    mp = pytest.importorskip("mpmath")
    with mp.workdps(60):
        def logp(z):
            top = max(z)
            lse = top + mp.log(mp.fsum(mp.exp(mp.mpf(x) - top) for x in z))
            return [mp.mpf(x) - lse for x in z]
        p, q = map(logp, rows)
        kl = mp.fsum(mp.exp(a)*(a - b) for a, b in zip(p, q))
        entropy = -mp.fsum(mp.exp(a)*a for a in p)
        cross = -mp.fsum(mp.exp(a)*b for a, b in zip(p, q))
        js = mp.fsum(f for a, b in zip(p, q) for m in [mp.log((mp.exp(a) + mp.exp(b))/2)]
                     for f in (mp.exp(a)*(a - m), mp.exp(b)*(b - m)))/2
    a, b = (torch.tensor(r, dtype=torch.float64, requires_grad=True) for r in rows)
    scale = max(map(abs, rows[0] + rows[1])) + 1
    near = lambda got, exact: abs(got.item() - float(exact)) <= 1e-14*scale*len(rows[0]) + 1e-13
    got = kl_from_logits(a, b)
    assert near(got, kl) and got >= -1e-12*scale
    assert near(entropy_from_logits(a), entropy) and near(soft_cross_entropy(b, a.softmax(-1)), cross)
    assert near(js_divergence(a.softmax(-1), b.softmax(-1)), js)
    for value in (got, entropy_from_logits(a), js_divergence(a.softmax(-1), b.softmax(-1))):
        assert all(g is None or g.isfinite().all() for g in torch.autograd.grad(value, (a, b), allow_unused=True))


@settings(max_examples=60, deadline=None)
@given(K=st.integers(2, 6), seed=st.integers(0, 1000), scale=st.sampled_from([.1, 1., 5.]))
def test_inequalities(K, seed, scale):
    a, b, c = (draw(20, K, seed=seed + i, scale=scale) for i in range(3))
    p, q, r = (z.softmax(-1) for z in (a, b, c))
    KL, JS, tv = kl_from_logits(a, b), js_divergence(p, q), (p - q).abs().sum(-1)/2
    assert (KL >= 2*tv**2 - 1e-12).all()                                        # Pinsker
    assert (JS <= math.log(2)*tv + 1e-12).all() and (JS >= tv**2/2 - 1e-12).all()
    assert (JS <= (KL + kl_from_logits(b, a))/4 + 1e-12).all()
    root = lambda x, y: js_divergence(x, y).clamp_min(0).sqrt()                 # √JS is a metric
    assert (root(p, r) <= root(p, q) + root(q, r) + 1e-9).all()
    channel = draw(20, K, 3, seed=seed + 5).log_softmax(-1)                     # data processing
    through = lambda z: (z.log_softmax(-1)[..., None] + channel).logsumexp(-2)
    assert (kl_from_logits(through(a), through(b)) <= KL + 1e-12).all()
    assert (entropy_from_logits(a) <= math.log(K) + 1e-12).all()
    hot = kl_from_logits(a, b, 3.)                                              # 2nd order in 1/T far out
    assert (kl_from_logits(a, b, 1e4)*1e8 - ((a - b) - (a - b).mean(-1, keepdim=True)).square().mean(-1)/2).abs().max() < 1e-2*(1 + scale**2)
    assert (hot >= 0).all()


def test_additive_over_independent_parts():
    a, b, c, d = draw(3), draw(4, seed=1), draw(3, seed=2), draw(4, seed=3)
    joint = lambda x, y: (x[:, None] + y).flatten()
    assert_close(kl_from_logits(joint(a, b), joint(c, d)), kl_from_logits(a, c) + kl_from_logits(b, d), **EXACT)
    assert_close(entropy_from_logits(joint(a, b)), entropy_from_logits(a) + entropy_from_logits(b), **EXACT)


def test_pythagoras():
    "D(p‖q) = D(p‖p*) + D(p*‖q) where p* is q tilted to p's mean of a statistic."
    stat, a, b = torch.arange(5).double(), draw(5), draw(5, seed=1)
    lo, hi, target = -50., 50., (a.softmax(-1)*stat).sum()
    for _ in range(200):
        mid = (lo + hi)/2
        lo, hi = (mid, hi) if ((b + mid*stat).softmax(-1)*stat).sum() < target else (lo, mid)
    star = b + lo*stat
    assert_close(kl_from_logits(a, b), kl_from_logits(a, star) + kl_from_logits(star, b), rtol=1e-9, atol=1e-9)


# gradients

def test_gradients_in_closed_form():
    "∂D/∂z^p = p(log p/q − D)/τ and ∂D/∂z^q = (q − p)/τ."
    a, b, t = draw(4, 6).requires_grad_(), draw(4, 6, seed=1).requires_grad_(), 2.5
    ga, gb = torch.autograd.grad(kl_from_logits(a, b, t).sum(), (a, b))
    p, q = (a/t).softmax(-1), (b/t).softmax(-1)
    assert_close(gb, (q - p)/t, **EXACT)
    assert_close(ga, p*((p/q).log() - kl_from_logits(a, b, t)[:, None])/t, **EXACT)
    for f in (kl_from_logits, lambda a, b: js_divergence(a.softmax(-1), b.softmax(-1)),
              lambda a, b: soft_cross_entropy(b, a.softmax(-1), "none")):
        assert torch.autograd.gradcheck(f, (a[:1], b[:1])) and torch.autograd.gradgradcheck(f, (a[:1], b[:1]))


@pytest.mark.parametrize("p, q", [([0., 1., -INF], [0., -1., 2.]), ([0., 1., -INF], [3., 1., -INF]), ([0., -INF, -INF], [1., 2., 3.]),
                                  ([1e4, 0., -INF], [-1e4, 0., 1e4])])
def test_excluded_classes(p, q):
    "A class that p excludes adds nothing, and no NaN to any gradient; leaving it out altogether gives the same."
    a, b = (torch.tensor(z, dtype=torch.float64, requires_grad=True) for z in (p, q))
    kept = torch.tensor(p) > -INF
    value, entropy = kl_from_logits(a, b), entropy_from_logits(a)
    logp, logq = a.log_softmax(-1)[kept].detach(), b.log_softmax(-1)[kept].detach()
    assert_close(value, (logp.exp()*(logp - logq)).sum(), **EXACT)
    assert_close(entropy, -(logp.exp()*logp).sum(), **EXACT)
    ga, gb = torch.autograd.grad(value, (a, b))
    assert ga.isfinite().all() and gb.isfinite().all() and (ga[~kept] == 0).all()
    assert_close(gb, (b.softmax(-1) - a.softmax(-1)).detach(), **EXACT)
    assert torch.autograd.grad(entropy, a)[0].isfinite().all()
    cross = soft_cross_entropy(b, a.softmax(-1))
    assert_close(cross, value + entropy, **EXACT)
    assert all(g.isfinite().all() for g in torch.autograd.grad(cross, (a, b)))


def test_infinite_where_q_excludes():
    assert kl_from_logits(torch.zeros(3), torch.tensor([0., 0., -INF])) == INF
    assert soft_cross_entropy(torch.tensor([0., -INF]), torch.tensor([.5, .5])) == INF
    assert soft_cross_entropy(torch.tensor([0., -INF]), torch.tensor([1., 0.])) == 0


def test_js_where_softmax_underflows():
    "Sharp rows with exact zeros on both sides: the value is right and the gradient is no NaN."
    a, b = torch.tensor([1e3, 0., -1e3], requires_grad=True), torch.tensor([1e3, 999., -2e3], requires_grad=True)
    value = js_divergence(a.softmax(-1), b.softmax(-1))
    p, q = a.detach().double().softmax(-1).numpy(), b.detach().double().softmax(-1).numpy()
    assert value.item() == pytest.approx(distance.jensenshannon(p, q)**2, rel=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, (a, b)))
    disjoint = js_divergence(torch.tensor([1., 0., 0.]), torch.tensor([0., 1., 0.]))
    assert_close(disjoint, torch.tensor(2.).log())


# mixtures

@settings(max_examples=60, deadline=None)
@given(K=st.integers(1, 6), seed=st.integers(0, 1000), lam=st.floats(0, 1))
def test_mixture(K, seed, lam):
    a, b = draw(3, K, seed=seed).log_softmax(-1), draw(3, K, seed=seed + 1).log_softmax(-1)
    mix = log_mixture(a, b, lam)
    assert_close(mix.exp(), (1 - lam)*a.exp() + lam*b.exp(), rtol=1e-10, atol=1e-14)
    assert_close(mix.logsumexp(-1), torch.zeros(3).double(), rtol=0, atol=1e-12)
    assert_close(log_mixture(b, a, 1 - lam), mix, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lam", [0., .3, 1.])
def test_mixture_with_excluded_classes(lam):
    "A retrieval distribution excludes most words; what both exclude stays excluded, without NaN."
    a = torch.tensor([0., 1., -INF, -INF], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([2., -INF, 0., -INF], dtype=torch.float64, requires_grad=True)
    mix = log_mixture(a.log_softmax(-1), b.log_softmax(-1), lam)
    assert_close(mix.exp(), (1 - lam)*a.softmax(-1) + lam*b.softmax(-1), **EXACT)
    assert all(g.isfinite().all() for g in torch.autograd.grad(mix[0], (a, b)))


def test_mixture_weight_may_vary():
    a, b, lam = draw(3, 4).log_softmax(-1), draw(3, 4, seed=1).log_softmax(-1), torch.tensor([[.1], [.5], [.9]]).double()
    assert_close(log_mixture(a, b, lam).exp(), (1 - lam)*a.exp() + lam*b.exp(), **EXACT)
    weight = lam.clone().requires_grad_()
    grad, = torch.autograd.grad(log_mixture(a, b, weight).sum(), weight)
    assert_close(grad, ((b.exp() - a.exp())/log_mixture(a, b, lam).exp()).sum(-1, keepdim=True), **EXACT)


# the k largest

@settings(max_examples=60, deadline=None)
@given(V=st.integers(1, 8), seed=st.integers(0, 1000), data=st.data(), direction=st.sampled_from(["forward", "reverse"]))
def test_top_by_hand(V, seed, data, direction):
    k = data.draw(st.integers(1, V))
    student, teacher = draw(V, seed=seed), draw(V, seed=seed + 1)
    first, second = (teacher, student) if direction == "forward" else (student, teacher)
    keep = sorted(range(V), key=lambda i: -first[i])[:k]
    p, q = first.softmax(-1).numpy()[keep], second.softmax(-1).numpy()[keep]
    partial = p*np.log(p/q)
    assert_close(kl_top(student, teacher, k, "partial", direction), torch.tensor(partial.sum()), **EXACT)
    assert_close(kl_top(student, teacher, k, "renormalized", direction), torch.tensor(stats.entropy(p/p.sum(), q/q.sum())), rtol=1e-8, atol=1e-12)


def test_top_mask_and_gradient():
    student, teacher = draw(2, 5, 9).requires_grad_(), draw(2, 5, 9, seed=1)
    mask = torch.arange(5).expand(2, 5) < torch.tensor([[2], [4]])
    each = kl_top(student, teacher, 3, reduction="none")
    assert each.shape == (2, 5)
    assert_close(kl_top(student, teacher, 3, mask=mask), each[mask].mean())
    assert_close(kl_top(student, teacher, 3, mask=mask, reduction="sum"), each[mask].sum())
    grad, = torch.autograd.grad(kl_top(student, teacher, 3, mask=mask), student)
    kept = torch.zeros(2, 5, 9, dtype=torch.bool).scatter_(-1, teacher.topk(3, -1).indices, True)
    assert ((grad != 0) == (kept & mask[..., None])).all()                      # renormalised: nothing outside the k


# reductions

def test_reductions():
    x, mask = draw(3, 4), torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) > .4
    assert reduced(x, "none") is x and reduced(x) == x.mean() and reduced(x, "sum") == x.sum()
    assert_close(masked_reduced(x, mask), x[mask].mean())
    assert_close(masked_reduced(x.masked_fill(~mask, math.nan), mask), x[mask].mean())     # what is masked may be NaN
    leaf = x.clone().requires_grad_()
    masked_reduced(leaf, mask).backward()
    assert_close(leaf.grad, mask/mask.sum().double())
    assert F.kl_div(x.log_softmax(-1), x.softmax(-1), reduction="batchmean").abs() < 1e-12


@pytest.mark.parametrize("bad, message", [
    (lambda: kl_from_logits(draw(3), draw(4)), "shapes differ: p_logits (3,), q_logits (4,)"),
    (lambda: kl_from_logits(draw(3), draw(3), 0.), "temperature must be positive, got 0.0"),
    (lambda: kl_from_logits(draw(3), draw(3), reduction="batchmean"), "got 'batchmean'"),
    (lambda: entropy_from_logits(draw(3), -1.), "got -1.0"),
    (lambda: soft_cross_entropy(draw(2, 3), draw(3)), "shapes differ"),
    (lambda: js_divergence(draw(3).softmax(0), draw(2).softmax(0)), "shapes differ"),
    (lambda: log_mixture(draw(3), draw(3), 1.2), "lam must lie in [0, 1], got 1.2"),
    (lambda: kl_top(draw(3), draw(3), 4), "k must lie in 1..3, got 4"),
    (lambda: kl_top(draw(3), draw(3), 0), "got 0"),
    (lambda: kl_top(draw(3), draw(3), 1, "renormalised"), "got 'renormalised'"),
    (lambda: kl_top(draw(3), draw(3), 1, direction="backward"), "got 'backward'"),
    (lambda: masked_reduced(draw(3), torch.zeros(3, dtype=torch.bool)), "excludes every position"),
    (lambda: masked_reduced(draw(3), torch.ones(3)), "mask must be bool, got torch.float32"),
])
def test_refusals(bad, message):
    with pytest.raises(ValueError) as error: bad()
    assert message in str(error.value)
