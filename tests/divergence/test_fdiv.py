"`divergence.fdiv`: each family against its definition, and the theorems that hold for all of them."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, special
from torch.testing import assert_close

from kullback.divergence import (
    f_divergence,
    get_f_divergence,
    js_divergence,
    kl_from_logits,
    renyi_divergence,
    variational_link,
)

INF = math.inf
CASES = [("reverse_kl", None), ("forward_kl", None), ("js", None), ("alpha", .1), ("alpha", .5), ("alpha", .9),
         ("tsallis", .3), ("tsallis", .5), ("tsallis", 2.), ("tsallis", 3.5), ("tv", None), ("chi2", None),
         ("neyman", None), ("hellinger", None), ("jeffreys", None)]
every = pytest.mark.parametrize("case", CASES, ids=lambda c: c[0] + ("" if c[1] is None else f"-{c[1]}"))
smooth = pytest.mark.parametrize("case", [c for c in CASES if c[0] != "tv"],
                                 ids=lambda c: c[0] + ("" if c[1] is None else f"-{c[1]}"))

# the definitions once more, in NumPy, from the table of the literature; u may be 0
GENERATORS = {
    "reverse_kl": lambda u, a: special.xlogy(u, u),
    "forward_kl": lambda u, a: -np.log(u),
    "js": lambda u, a: special.xlogy(u, u) - (u + 1)*np.log((u + 1)/2),
    "alpha": lambda u, a: (u**(1 - a) - (1 - a)*u - a)/(a*(a - 1)),
    "tsallis": lambda u, a: (u**a - u)/(a - 1),
    "tv": lambda u, a: abs(u - 1)/2,
    "chi2": lambda u, a: (u - 1)**2,
    "neyman": lambda u, a: (u - 1)**2/u,
    "hellinger": lambda u, a: (np.sqrt(u) - 1)**2,
    "jeffreys": lambda u, a: (u - 1)*np.log(u),
}


def draw(*shape, seed=0, scale=2.):
    g = torch.Generator().manual_seed(seed)
    return (scale*torch.randn(*shape, generator=g, dtype=torch.float64)).log_softmax(-1)


def directly(p, q, name, a):
    "The divergence as its own literature writes it, not through a generator."
    p, q = p.exp(), q.exp()
    kl = lambda a, b: (a*(a/b).log()).sum(-1)
    return {"reverse_kl": lambda: kl(p, q), "forward_kl": lambda: kl(q, p),
            "js": lambda: kl(p, (p + q)/2) + kl(q, (p + q)/2),
            "alpha": lambda: (1 - (p**(1 - a)*q**a).sum(-1))/(a*(1 - a)),
            "tsallis": lambda: ((p**a*q**(1 - a)).sum(-1) - 1)/(a - 1),
            "tv": lambda: (p - q).clamp_min(0).sum(-1),
            "chi2": lambda: (p*p/q).sum(-1) - 1, "neyman": lambda: (q*q/p).sum(-1) - 1,
            "hellinger": lambda: 2 - 2*(p*q).sqrt().sum(-1),
            "jeffreys": lambda: ((p - q)*(p/q).log()).sum(-1)}[name]()


@every
def test_generator_and_divergence_against_the_literature(case):
    name, a = case
    d, u = get_f_divergence(*case), torch.logspace(-4, 4, 200, dtype=torch.float64)
    expected = torch.from_numpy(GENERATORS[name](u.numpy(), a))
    assert_close(d.f(u), expected, rtol=1e-11, atol=1e-12)
    assert d.f(torch.ones((), dtype=torch.float64)) == 0
    p, q = draw(5, 8), draw(5, 8, seed=1)
    assert_close(f_divergence(p, q, *case), directly(p, q, name, a), rtol=1e-11, atol=1e-12)
    assert_close(d.terms(p, q), q.exp()*torch.from_numpy(GENERATORS[name]((p - q).exp().numpy(), a)), rtol=1e-9, atol=1e-12)


@every
def test_between_gaussians_by_quadrature(case):
    "∫ q f(p/q) for N(.3, .8²) and N(0, 1), by SciPy; the library's terms integrated on a fine grid agree."
    name, a = case
    p = lambda x: math.exp(-(x - .3)**2/(2*.64))/(.8*math.sqrt(2*math.pi))
    q = lambda x: math.exp(-x*x/2)/math.sqrt(2*math.pi)
    exact = integrate.quad(lambda x: q(x)*GENERATORS[name](p(x)/q(x), a), -8, 8, limit=200, epsabs=1e-11)[0]
    x = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    logp, logq = -(x - .3)**2/1.28 - math.log(.8*math.sqrt(2*math.pi)), -x*x/2 - math.log(math.sqrt(2*math.pi))
    assert abs(torch.trapezoid(get_f_divergence(*case).terms(logp, logq), x).item() - exact) < 2e-7


@every
def test_slopes_by_autograd(case):
    d = get_f_divergence(*case)
    l = torch.linspace(-5, 5, 50, dtype=torch.float64)
    u = l.exp().requires_grad_()
    first, = torch.autograd.grad(d.f(u).sum(), u, create_graph=True)
    assert_close(d.f_prime_log(l), first.detach(), rtol=1e-8, atol=1e-9)
    leaf = l.clone().requires_grad_()
    d.f_prime_log(leaf).sum().backward()
    assert_close(leaf.grad, d.slope_log(l), rtol=1e-10, atol=1e-12)
    assert_close(d.slope_log(l), l.exp()*d.f_second_log(l), rtol=1e-10, atol=1e-12)


@every
def test_limits_are_those_of_the_slope(case):
    d = get_f_divergence(*case)
    at_zero, at_inf = d.f_prime_log(torch.tensor([-INF, INF], dtype=torch.float64)).tolist()
    assert at_zero == pytest.approx(d.f_prime_at_zero) and at_inf == pytest.approx(d.f_prime_at_inf)
    assert d.f(torch.zeros(())).item() == pytest.approx(d.f_at_zero, rel=1e-6)


@every
def test_inverse_slope_is_monotone_and_never_nan(case):
    "−∞ below f′(0⁺), +∞ above f′(∞), increasing in between."
    d = get_f_divergence(*case)
    s = torch.cat([torch.linspace(-1e4, 1e4, 4001), torch.linspace(-3, 3, 601)]).double().sort().values
    inv = d.f_prime_inv(s)
    assert not inv.isnan().any() and (inv[1:] >= inv[:-1]).all()
    assert (inv[s < d.f_prime_at_zero] == -INF).all() and (inv[s > d.f_prime_at_inf] == INF).all()
    if case[0] != "tv":
        inside = inv.isfinite()
        assert_close(d.f_prime_log(inv[inside]), s[inside], rtol=1e-6, atol=1e-6)


@every
def test_fenchel_young(case):
    d = get_f_divergence(*case)
    u = torch.logspace(-5, 5, 300, dtype=torch.float64)
    t = torch.linspace(max(d.f_prime_at_zero, -30) - 2, min(d.f_prime_at_inf, 30) + 2, 300, dtype=torch.float64)
    gap = d.f(u)[:, None] + d.conjugate(t) - u[:, None]*t
    assert (gap > -1e-8*(1 + u[:, None])).all()
    touching = d.f_prime_log(u.log())
    assert_close(d.conjugate(touching), u*touching - d.f(u), rtol=1e-7, atol=1e-7)
    assert (d.conjugate(t[t > d.f_prime_at_inf]) == INF).all()
    assert_close(d.conjugate(t[t < d.f_prime_at_zero]), torch.full_like(t[t < d.f_prime_at_zero], -d.f_at_zero))


@every
def test_conjugate_by_numerical_supremum(case):
    name, a = case
    d = get_f_divergence(*case)
    for l in (-2., -.5, .4, 1.5):
        t = d.f_prime_log(torch.tensor(l, dtype=torch.float64)).item()*.99 - .005
        best = optimize.minimize_scalar(lambda v, t=t: GENERATORS[name](math.exp(v), a) - t*math.exp(v),
                                        bounds=(-25, 12), method="bounded", options={"xatol": 1e-10})
        sup = max(-best.fun, -float(d.f_at_zero))
        assert d.conjugate(torch.tensor(t, dtype=torch.float64)).item() == pytest.approx(sup, rel=1e-6, abs=1e-6)


def test_jeffreys_conjugate_is_lambert_w():
    t = torch.linspace(-400, 400, 401, dtype=torch.float64)
    w = torch.from_numpy(special.wrightomega(1 - t.numpy()))
    d = get_f_divergence("jeffreys")
    assert_close(d.f_prime_inv(t), -w.log(), rtol=1e-12, atol=1e-12)
    near = t.abs() < 300
    assert_close(d.conjugate(t[near]), (w + 1/w + t - 2)[near], rtol=1e-10, atol=1e-10)
    leaf = t[::40].clone().requires_grad_()
    assert torch.autograd.gradcheck(d.f_prime_inv, leaf) and torch.autograd.gradgradcheck(d.f_prime_inv, leaf)


@every
def test_variational_bound(case):
    d, (g, composite) = get_f_divergence(*case), variational_link(*case)
    p, q = draw(6), draw(6, seed=1)
    v = torch.linspace(-8, 8, 400, dtype=torch.float64)
    assert_close(composite(v), d.conjugate(g(v)), rtol=1e-6, atol=1e-7)
    assert (g(v).diff() > 0).all() and (composite(v).diff() >= -1e-12).all()
    gen = torch.Generator().manual_seed(2)
    random = 3*torch.randn(2000, 6, generator=gen, dtype=torch.float64)
    bound = (p.exp()*g(random)).sum(-1) - (q.exp()*composite(random)).sum(-1)
    assert bound.max() <= f_divergence(p, q, *case) + 1e-8
    t = d.f_prime_log(p - q)
    assert_close((p.exp()*t - q.exp()*d.conjugate(t)).sum(), f_divergence(p, q, *case), rtol=1e-10, atol=1e-10)


@every
def test_nonnegative_and_zero_only_at_equality(case):
    p, q = draw(200, 4), draw(200, 4, seed=3)
    assert (f_divergence(p, q, *case) > 1e-6).all()
    assert f_divergence(p, p, *case).abs().max() < 1e-14


@every
def test_data_processing(case):
    "No channel increases a divergence: 100 random ones, and merging two classes."
    p, q = draw(100, 6), draw(100, 6, seed=1)
    channel = draw(100, 6, 3, seed=2)
    through = lambda logp: (logp[..., None] + channel).logsumexp(-2)
    assert (f_divergence(through(p), through(q), *case) <= f_divergence(p, q, *case) + 1e-12).all()
    merged = lambda logp: torch.cat([logp[:, :4], logp[:, 4:].logsumexp(-1, keepdim=True)], -1)
    assert (f_divergence(merged(p), merged(q), *case) <= f_divergence(p, q, *case) + 1e-12).all()


@every
def test_jointly_convex(case):
    p, q, p2, q2 = (draw(100, 5, seed=s) for s in range(4))
    mid = lambda a, b: torch.logaddexp(a, b) - math.log(2)
    D = lambda a, b: f_divergence(a, b, *case)
    assert (D(mid(p, p2), mid(q, q2)) <= (D(p, q) + D(p2, q2))/2 + 1e-12).all()


@every
def test_range(case):
    "D_f ≤ f(0) + f′(∞), reached by disjoint supports."
    d = get_f_divergence(*case)
    p, q = torch.tensor([0., -INF], dtype=torch.float64), torch.tensor([-INF, 0.], dtype=torch.float64)
    assert f_divergence(p, q, d).item() == pytest.approx(d.f_at_zero + d.f_prime_at_inf)
    assert (f_divergence(draw(100, 5, scale=6.), draw(100, 5, seed=1, scale=6.), d) <= d.f_at_zero + d.f_prime_at_inf).all()


def test_inequalities_between_families():
    p, q = draw(500, 5), draw(500, 5, seed=1)
    tv, h, kl, chi2, js = (f_divergence(p, q, n) for n in ("tv", "hellinger", "reverse_kl", "chi2", "js"))
    slack = 1 + 1e-12
    assert (2*tv**2 <= kl*slack).all()                                      # Pinsker
    assert (tv <= (1 - (-kl).exp()).sqrt()*slack).all()                     # Bretagnolle–Huber
    assert (h/2 <= tv*slack).all() and (tv <= (h*(1 - h/4)).sqrt()*slack).all()
    assert (kl <= chi2.log1p()*slack).all()
    assert (js <= 2*math.log(2)*tv*slack).all()
    assert (renyi_divergence(p, q, .5) <= kl*slack).all() and (kl <= renyi_divergence(p, q, 2.)*slack).all()


def test_families_meet():
    p, q = draw(20, 7), draw(20, 7, seed=1)
    D = lambda a, b, *case: f_divergence(a, b, *case)
    close = dict(rtol=1e-10, atol=1e-12)
    assert_close(D(p, q, "kl"), kl_from_logits(p, q), **close)
    assert_close(D(p, q, "forward_kl"), kl_from_logits(q, p), **close)
    assert_close(D(p, q, "js"), 2*js_divergence(p.exp(), q.exp()), **close)
    assert_close(D(p, q, "alpha", .5), 2*D(p, q, "hellinger"), **close)
    assert_close(D(p, q, "tsallis", .5), D(p, q, "hellinger"), **close)
    assert_close(D(p, q, "tsallis", 2.), D(p, q, "chi2"), **close)
    assert_close(D(p, q, "tsallis", .7), .7*D(p, q, "alpha", .3), **close)
    assert_close(D(p, q, "jeffreys"), D(p, q, "reverse_kl") + D(p, q, "forward_kl"), **close)
    for name, other in [("reverse_kl", "forward_kl"), ("chi2", "neyman"), ("js", "js"), ("tv", "tv"), ("jeffreys", "jeffreys")]:
        assert_close(D(p, q, name), D(q, p, other), **close)
    assert_close(D(p, q, "alpha", .2), D(q, p, "alpha", .8), **close)


@pytest.mark.parametrize("eps", [1e-3, 1e-5, 1e-7])
def test_alpha_and_tsallis_run_into_kl(eps):
    p, q = draw(20, 7), draw(20, 7, seed=1)
    near = dict(rtol=30*eps + 1e-8/eps*1e-6, atol=1e-8)
    assert_close(f_divergence(p, q, "alpha", eps), kl_from_logits(p, q), **near)
    assert_close(f_divergence(p, q, "alpha", 1 - eps), kl_from_logits(q, p), **near)
    for order in (1 - eps, 1 + eps):
        assert_close(f_divergence(p, q, "tsallis", order), kl_from_logits(p, q), **near)
        assert_close(renyi_divergence(p, q, order), kl_from_logits(p, q), **near)


@pytest.mark.parametrize("a", [.2, .5, 2., 7.])
def test_renyi(a):
    p, q = draw(20, 7), draw(20, 7, seed=1)
    R = renyi_divergence(p, q, a)
    assert_close(R, ((p.exp()**a*q.exp()**(1 - a)).sum(-1)).log()/(a - 1), rtol=1e-10, atol=1e-12)
    assert_close(R, ((a - 1)*f_divergence(p, q, "tsallis", a)).log1p()/(a - 1), rtol=1e-10, atol=1e-12)
    if a < 1: assert_close((1 - a)*R, a*renyi_divergence(q, p, 1 - a), rtol=1e-10, atol=1e-12)     # skew symmetry
    far = renyi_divergence(torch.tensor([0., -1e4]), torch.tensor([-1e4, 0.]), a)
    assert far.isfinite() and far.item() == pytest.approx(min(1e4*a/(1 - a), 1e4) if a < 1 else 1e4, rel=1e-3)


def test_renyi_without_mass():
    p, q = torch.tensor([.5, .5, 0.]).log(), torch.tensor([0., .5, .5]).log()
    assert renyi_divergence(p, q, 2.) == INF
    assert renyi_divergence(p, q, .5).item() == pytest.approx(2*math.log(2), rel=1e-6)
    apart = torch.tensor([0., -INF]), torch.tensor([-INF, 0.])
    assert renyi_divergence(*apart, .5) == renyi_divergence(*apart, 2.) == INF
    leaf = torch.tensor([0., 0., -INF], requires_grad=True)
    for a in (.5, 2.):
        grad, = torch.autograd.grad(renyi_divergence(leaf.log_softmax(-1), torch.zeros(3).log_softmax(-1), a), leaf)
        assert grad.isfinite().all()


# the edge of floating point

BOUNDED_LOG_PRICE = ["reverse_kl", "forward_kl", "js", "tv", "hellinger", "jeffreys"]


@every
def test_grads_in_closed_form_are_autograd(case):
    d = get_f_divergence(*case)
    p, q = draw(9, 7, scale=4.).requires_grad_(), draw(9, 7, seed=1, scale=4.).requires_grad_()
    by_autograd = torch.autograd.grad(d.terms(p, q).sum(), (p, q))
    dp, dq = d.grads(p.detach(), q.detach())
    assert_close((dp, dq), by_autograd, rtol=1e-9, atol=1e-10)
    assert_close(dp + dq, d.terms(p, q).detach(), rtol=1e-9, atol=1e-10)


@smooth
def test_gradcheck_through_the_softmax(case):
    z, r = (draw(5, seed=s).requires_grad_() for s in (0, 1))
    loss = lambda z, r: f_divergence(z.log_softmax(-1), r.log_softmax(-1), *case)
    assert torch.autograd.gradcheck(loss, (z, r)) and torch.autograd.gradgradcheck(loss, (z, r))


@smooth
def test_hessian_at_equality_is_the_fisher_information(case):
    "∂²D_f/∂z² at p = q is f″(1)·(diag p − ppᵀ): the corner at log u = 0 does not show."
    r = draw(5)
    H = torch.autograd.functional.hessian(lambda z: f_divergence(z.log_softmax(-1), r, *case), r.clone())
    curvature = get_f_divergence(*case).f_second_log(torch.zeros((), dtype=torch.float64))
    assert_close(H, curvature*(r.exp().diag() - r.exp()[:, None]*r.exp()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every
def test_log_ratios_of_ten_thousand(case, dtype):
    "Nothing is NaN; families whose price is finite or logarithmic give finite values and gradients."
    d = get_f_divergence(*case)
    l = torch.tensor([-1e4, -200., 0., 200., 1e4], dtype=dtype)
    for fn in (d.f_prime_log, d.f_second_log, d.slope_log, d.f_prime_inv, d.conjugate, d.activation, d.conjugate_of_activation):
        assert not fn(l).isnan().any()
    p = torch.tensor([0., -1e4, -5e3], dtype=dtype, requires_grad=True)
    q = torch.tensor([-1e4, 0., -2e4], dtype=dtype, requires_grad=True)
    value = f_divergence(p.log_softmax(-1), q.log_softmax(-1), d)
    assert not value.isnan()
    if case[0] in BOUNDED_LOG_PRICE or case[0] == "alpha" or (case[1] or 2) < 1:
        assert value.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, (p, q)))
        assert all(g.isfinite().all() for g in d.grads(p.detach(), q.detach()))


def test_products_that_exist_though_their_factors_do_not():
    "p²/q = 1 with q = e^−2000 and p = e^−1000; both underflow, u overflows."
    p, q = torch.tensor([-1000.]).double(), torch.tensor([-2000.]).double()
    assert get_f_divergence("chi2").terms(p, q) == 1 and get_f_divergence("neyman").terms(q, p) == 1
    assert get_f_divergence("chi2").grads(p, q) == (2, -1)


@every
def test_classes_without_mass(case):
    "−∞ in p, in q, in both: the limits f(0), f′(∞), 0; gradients finite wherever the value is."
    d = get_f_divergence(*case)
    p = torch.tensor([.5, .5, 0., 0.]).double().log()
    q = torch.tensor([0., .25, .75, 0.]).double().log()
    regular = d.terms(p[1:2], q[1:2])[0]
    expected = torch.stack([torch.tensor(.5*d.f_prime_at_inf), regular, torch.tensor(.75*d.f_at_zero), torch.tensor(0.)])
    assert_close(d.terms(p, q), expected.double())
    dp, dq = d.grads(p, q)                      # p alone: p f′(∞) and 0; q alone: 0 and q f(0); infinite where the price is
    assert dp[0].item() == pytest.approx(.5*d.f_prime_at_inf) and dq[2].item() == pytest.approx(.75*d.f_at_zero)
    if d.f_prime_at_inf < INF: assert_close(dq[0], (dq*0)[3])
    if d.f_at_zero < INF: assert_close(dp[2], (dq*0)[3])
    assert dp[3] == dq[3] == 0
    for a, b in ([p, p], [p, torch.zeros(4).double().log_softmax(-1)], [torch.zeros(4).double().log_softmax(-1), p]):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        value = f_divergence(a.log_softmax(-1), b.log_softmax(-1), d)
        assert not value.isnan()
        if value.isfinite():
            by_autograd = torch.autograd.grad(value, (a, b))
            assert all(g.isfinite().all() for g in by_autograd)
            for g, logp, via_z in zip(d.grads(a.detach(), b.detach()), (a, b), by_autograd):
                assert_close(g - logp.detach().exp()*g.sum(), via_z, rtol=1e-9, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(case=st.sampled_from(CASES), seed=st.integers(0, 10**6), scale=st.sampled_from([0., 1e-3, 1., 30., 1e3, 1e4]),
       shape=st.lists(st.integers(1, 4), min_size=0, max_size=3), K=st.integers(1, 9))
def test_shapes_and_scales(case, seed, scale, shape, K):
    p, q = draw(*shape, K, seed=seed, scale=scale), draw(*shape, K, seed=seed + 1, scale=scale)
    D, d = f_divergence(p, q, *case), get_f_divergence(*case)
    assert D.shape == tuple(shape) and not D.isnan().any()
    assert (D >= -1e-9*(1 + scale)).all()
    assert_close(D, d.terms(p, q).sum(-1))
    order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    assert_close(f_divergence(p[..., order], q[..., order], *case), D, rtol=1e-9, atol=1e-9*(1 + scale))
    if K == 1: assert (D == 0).all()


@settings(max_examples=100, deadline=None)
@given(case=st.sampled_from(CASES), l=st.floats(-1e4, 1e4), w=st.floats(-1e4, 0.))
def test_one_class_against_exact_arithmetic(case, l, w):
    "terms(p, q) in 60 digits of mpmath, wherever the result is a normal double."
    mp = pytest.importorskip("mpmath")
    (name, a), (p, q) = case, (w + l, w)
    if p > 0: p, q = 0., -l
    with mp.workdps(60):
        P, Q, L = mp.exp(mp.mpf(p)), mp.exp(mp.mpf(q)), mp.mpf(p) - mp.mpf(q)
        exact = {"reverse_kl": lambda: P*L, "forward_kl": lambda: -Q*L,
                 "js": lambda: P*mp.log(2*P/(P + Q)) + Q*mp.log(2*Q/(P + Q)),
                 "alpha": lambda: ((1 - mp.mpf(a))*P + a*Q - mp.exp(mp.mpf(q) + (1 - mp.mpf(a))*L))/(mp.mpf(a)*(1 - mp.mpf(a))),
                 "tsallis": lambda: (mp.exp(mp.mpf(q) + a*L) - P)/(mp.mpf(a) - 1),
                 "tv": lambda: abs(P - Q)/2, "chi2": lambda: (P - Q)**2/Q, "neyman": lambda: (P - Q)**2/P,
                 "hellinger": lambda: (mp.sqrt(P) - mp.sqrt(Q))**2, "jeffreys": lambda: (P - Q)*L}[name]()
    got = get_f_divergence(*case).terms(torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)).item()
    if abs(exact) > 1e300: assert got == INF or got == pytest.approx(float(exact), rel=1e-8)
    else: assert got == pytest.approx(float(exact), rel=1e-8, abs=1e-13)


# what the papers need

def test_what_preference_optimisation_asks():
    "f′(0⁺) = −∞ admits a family to f-DPO; the score's saturation is f′(∞)."
    admitted = {c[0] for c in CASES if get_f_divergence(*c).f_prime_at_zero == -INF}
    assert admitted == {"reverse_kl", "forward_kl", "js", "alpha", "tsallis", "neyman", "hellinger", "jeffreys"}
    assert get_f_divergence("tsallis", 2.).f_prime_at_zero == -1 and get_f_divergence("tv").f_prime_at_zero == -.5
    l = torch.linspace(-1, 1, 21, dtype=torch.float64)
    score = lambda *case: get_f_divergence(*case).f_prime_log(l).diff()
    assert_close(score("alpha", 1e-4), score("reverse_kl"), rtol=1e-3, atol=0)
    assert_close(score("alpha", 1 - 1e-6), score("forward_kl"), rtol=1e-5, atol=0)
    assert_close(get_f_divergence("js").f_prime_log(l), math.log(2) + torch.nn.functional.logsigmoid(l), rtol=0, atol=1e-12)
    weights = {"reverse_kl": torch.ones_like(l), "forward_kl": (-l).exp(), "js": torch.sigmoid(-l)}
    for name, w in weights.items(): assert_close(get_f_divergence(name).slope_log(l), w)
    assert_close(get_f_divergence("alpha", .3).slope_log(l), (-.3*l).exp())


def test_what_policy_gradients_ask():
    "f′ where the target has no mass, and far from it."
    at_inf = {n: get_f_divergence(n).f_prime_log(torch.tensor(INF)).item() for n in ("forward_kl", "js", "tv", "chi2_p_pi", "chi2_pi_p")}
    assert at_inf == pytest.approx({"forward_kl": 0, "js": math.log(2), "tv": .5, "chi2_p_pi": 1, "chi2_pi_p": INF})
    assert get_f_divergence("js").f_prime_log(torch.tensor([-700., 700.])).isfinite().all()
    assert get_f_divergence("tv").f_prime_log(torch.zeros(1)) == 0


def test_what_unlearning_asks():
    "Loss −g(P_e) + f*(g(P_f)): the table of values, falling in P_e and rising in P_f for every family."
    def loss(name, e, f): g, c = variational_link(name); return (c(torch.tensor(f).double()) - g(torch.tensor(e).double())).item()
    softplus = lambda x: math.log1p(math.exp(x))
    corners = [(0., 0.), (1., 0.), (0., 1.), (1., 1.)]
    assert [loss("kl", *c) for c in corners] == pytest.approx([math.exp(-1), math.exp(-1) - 1, 1, 0])
    assert [loss("js", *c) for c in corners] == pytest.approx([softplus(-e) + softplus(f) - 2*math.log(2) for e, f in corners])
    assert [loss("tv", *c) for c in corners] == pytest.approx([0, -math.tanh(1)/2, math.tanh(1)/2, 0])
    assert [loss("pearson", *c) for c in corners] == pytest.approx([0, -1, 1.25, .25])
    for name, g, c in [("forward_kl", lambda v: -math.exp(-v), lambda v: v - 1), ("hellinger", lambda v: 1 - math.exp(-v), math.expm1)]:
        assert loss(name, .3, .8) == pytest.approx(c(.8) - g(.3))
    grid = torch.linspace(0, 1, 50, dtype=torch.float64)
    for case in CASES:
        g, c = variational_link(*case)
        assert (g(grid).diff() > 0).all() and (c(grid).diff() > 0).all(), case


@pytest.mark.parametrize("bad, message", [
    (lambda: get_f_divergence("rkl"), "unknown divergence 'rkl'"),
    (lambda: get_f_divergence("alpha"), "got None"),
    (lambda: get_f_divergence("alpha", 0.), "got 0.0"),
    (lambda: get_f_divergence("alpha", -1.), "got -1.0"),
    (lambda: get_f_divergence("alpha", math.nan), "got nan"),
    (lambda: get_f_divergence("tsallis", 1.), "got 1.0"),
    (lambda: get_f_divergence("tsallis", INF), "got inf"),
    (lambda: get_f_divergence("js", .5), "no parameter, got alpha=0.5"),
    (lambda: variational_link("reverse", None), "unknown divergence 'reverse'"),
    (lambda: f_divergence(draw(3), draw(4)), "shapes differ"),
    (lambda: f_divergence(draw(3), torch.zeros(3).double(), "tv"), "q_logp must be log-probabilities"),
    (lambda: f_divergence(draw(3).exp(), draw(3), "tv"), "p_logp must be log-probabilities"),
    (lambda: renyi_divergence(draw(3), draw(3), 1), "got 1"),
    (lambda: renyi_divergence(draw(3), draw(4), 2.), "shapes differ"),
])
def test_refusals(bad, message):
    with pytest.raises(ValueError) as error: bad()
    assert message in str(error.value)
