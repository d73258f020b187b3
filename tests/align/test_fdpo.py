"`align.fdpo`: facts that the page would be bored by."
import math

import pytest
import torch
from draws import normal
from torch.autograd import gradcheck
from torch.testing import assert_close

from kullback.align import dpo_loss, fdpo_loss, fdpo_scores, optimal_fpolicy
from kullback.divergence import f_divergence, gibbs_tilt

EXACT = dict(rtol=0, atol=1e-12)
FAMILIES = [("reverse_kl", .5), ("forward_kl", .5), ("js", .5), ("alpha", .3), ("alpha", .8), ("hellinger", .5), ("neyman", .5),
            ("jeffreys", .5), ("tsallis", .5)]
CLOSED = {"reverse_kl": lambda d, a: d, "forward_kl": lambda d, a: -math.exp(-d), "js": lambda d, a: math.log(2/(1 + math.exp(-d))),
          "alpha": lambda d, a: -math.exp(-a*d)/a, "hellinger": lambda d, a: 1 - math.exp(-d/2),
          "neyman": lambda d, a: 1 - math.exp(-2*d), "jeffreys": lambda d, a: d + 1 - math.exp(-d),
          "tsallis": lambda d, a: (a*math.exp((a - 1)*d) - 1)/(a - 1)}


def pairs(B=6, seed=0): return list(normal(4, B, seed=seed, scale=2.) - 10)


@pytest.mark.parametrize("name, alpha", FAMILIES)
def test_scores_in_closed_form(name, alpha):
    delta = normal(50, seed=1, scale=3.)
    wanted = torch.tensor([CLOSED[name](d, alpha) for d in delta.tolist()], dtype=torch.float64)
    assert_close(fdpo_scores(delta, name, alpha), wanted, rtol=1e-12, atol=1e-12)
    assert_close(fdpo_scores(delta.view(5, 10), name, alpha), wanted.view(5, 10), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name, alpha", FAMILIES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_by_hand(name, alpha, reduction):
    x, beta = pairs(), .3
    s = [[CLOSED[name](d, alpha) for d in (x[k] - x[k + 2]).tolist()] for k in (0, 1)]
    m = [beta*(w - r) for w, r in zip(*s)]
    each = torch.tensor([max(0, -x) + math.log1p(math.exp(-abs(x))) for x in m], dtype=torch.float64)
    loss, chosen, rejected = fdpo_loss(*x, beta, name, alpha, reduction)
    assert_close(loss, each if reduction == "none" else getattr(each, reduction)(), rtol=1e-10, atol=1e-12)
    assert_close(torch.stack([chosen, rejected]), beta*torch.tensor(s, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_reverse_kl_is_dpo():
    for ours, plain in zip(fdpo_loss(*pairs(), .3), dpo_loss(*pairs(), .3)): assert_close(ours, plain, **EXACT)
    assert_close(fdpo_loss(*pairs(), .3, "kl")[0], dpo_loss(*pairs(), .3)[0], **EXACT)


@pytest.mark.parametrize("name, alpha", FAMILIES)
def test_gradients(name, alpha):
    x = [t.requires_grad_() for t in pairs()]
    loss, chosen, rejected = fdpo_loss(*x, .3, name, alpha)
    loss.backward()
    assert x[2].grad is None and x[3].grad is None and not chosen.requires_grad and not rejected.requires_grad
    assert gradcheck(lambda c, r: fdpo_loss(c, r, *[t.detach() for t in x[2:]], .3, name, alpha)[0], x[:2])


@pytest.mark.parametrize("name, alpha", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_two_hundred_nats(name, alpha, dtype):
    delta = torch.tensor([-250., -200., -90., -5., 0., 90., 250.], dtype=dtype, requires_grad=True)
    zero = torch.zeros_like(delta)
    for pair in ((delta, zero), (zero, delta)):
        loss = fdpo_loss(*pair, zero, zero, 1e-3, name, alpha)[0]
        assert loss.isfinite()
        grad, = torch.autograd.grad(loss, delta)
        assert grad.isfinite().all()
    s = fdpo_scores(delta, name, alpha)
    assert s.dtype == torch.float32 and s.isfinite().all() and (s.diff() >= 0).all()


def test_the_clamp_is_an_argument():
    deep = torch.tensor([-100.], dtype=torch.float64)
    assert fdpo_scores(deep, "forward_kl").item() == -math.exp(80)
    assert math.isclose(fdpo_scores(deep, "forward_kl", max_exponent=700.).item(), -math.exp(100))
    assert math.isclose(fdpo_scores(deep, "alpha", .5).item(), -2*math.exp(50))          # the exponent is αΔ, not Δ
    with pytest.raises(ValueError, match="max_exponent must be positive, got 0"): fdpo_scores(deep, "js", max_exponent=0)


@pytest.mark.parametrize("name, alpha", FAMILIES)
@pytest.mark.parametrize("beta", [.05, 1., 50.])
def test_no_rival_beats_the_optimum(name, alpha, beta):
    alpha = alpha if name in ("alpha", "tsallis") else None
    ref, r = normal(2, 5, seed=2, scale=2.).softmax(-1), normal(2, 5, seed=3)
    best = optimal_fpolicy(ref, r, beta, name, alpha)
    assert_close(best.sum(-1), torch.ones(2).double(), **EXACT)
    def J(p): return (p*r).sum(-1) - beta*f_divergence(p.log(), ref.log(), name, alpha)
    for seed in range(20):
        step = normal(2, 5, seed=10 + seed)
        for size in (1e-3, 1e-1, 1.): assert (J((best.log() + size*step).softmax(-1)) <= J(best) + 1e-12*beta).all()


def test_ends_of_the_price():
    ref, r = normal(6, seed=2).softmax(-1), normal(6, seed=3)
    for name in ("reverse_kl", "forward_kl", "js", "hellinger", "jeffreys", "neyman"):
        assert_close(optimal_fpolicy(ref, r, 1e7, name), ref, rtol=1e-5, atol=0)
        assert optimal_fpolicy(ref, r, 1e-4, name)[r.argmax()] > .97
        assert_close(optimal_fpolicy(ref, r + 5, .3, name), optimal_fpolicy(ref, r, .3, name), rtol=0, atol=1e-10)
    assert_close(optimal_fpolicy(ref, r, .3), gibbs_tilt(ref.log(), r, .3).exp(), **EXACT)
    assert_close(optimal_fpolicy(ref, r, .3, "alpha", 1e-6), gibbs_tilt(ref.log(), r, .3).exp(), rtol=0, atol=1e-4)
    assert_close(optimal_fpolicy(ref, r, .3, "alpha", 1 - 1e-6), optimal_fpolicy(ref, r, .3, "forward_kl"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name, alpha", [("reverse_kl", None), ("forward_kl", None), ("js", None), ("alpha", .5)])
def test_descent_reaches_the_optimum(name, alpha):
    "Eight answers, every pair, the paper's four: total variation below 1e-4."
    ref, r, beta = normal(8, seed=2).softmax(-1), normal(8, seed=3), .7
    i, j = torch.combinations(torch.arange(8)).T
    wins, logits = torch.sigmoid(r[i] - r[j]), ref.log().clone().requires_grad_()
    opt = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-11, tolerance_change=1e-16, line_search_fn="strong_wolfe")
    def closure():
        opt.zero_grad()
        p, q = logits.log_softmax(-1), ref.log()
        each = lambda w, k: fdpo_loss(p[w], p[k], q[w], q[k], beta, name, alpha or .5, "none")[0]
        loss = (wins*each(i, j) + (1 - wins)*each(j, i)).mean()
        loss.backward()
        return loss
    opt.step(closure)
    assert (logits.detach().softmax(-1) - optimal_fpolicy(ref, r, beta, name, alpha)).abs().sum()/2 < 1e-4


@pytest.mark.parametrize("call", [
    lambda name, alpha: fdpo_loss(*pairs(), .1, name, alpha), lambda name, alpha: fdpo_scores(pairs()[0], name, alpha),
    lambda name, alpha: optimal_fpolicy(torch.full((3,), 1/3), torch.zeros(3), 1., name, alpha)])
def test_refused_divergences(call):
    for name, alpha, message in [("kl3", .5, "unknown divergence 'kl3'"), ("alpha", 0., r"\(0, 1\), got 0.0"),
                                 ("alpha", 1.2, r"\(0, 1\), got 1.2"), ("tv", .5, "finite slope.*-0.5"),
                                 ("chi2", .5, "finite slope.*-2"), ("pearson", .5, "finite slope"), ("tsallis", 2., "finite slope")]:
        with pytest.raises(ValueError, match=message): call(name, alpha)


def test_refused_tensors():
    x = pairs()
    with pytest.raises(ValueError, match="shapes differ"): fdpo_loss(x[0][:2], *x[1:])
    with pytest.raises(ValueError, match="must be finite, got inf"): fdpo_loss(x[0], x[1], x[2] - math.inf, x[3], .1, "js")
    with pytest.raises(ValueError, match="beta must be positive, got 0"): fdpo_loss(*x, 0., "js")
    q = torch.tensor([.5, .5])
    for bad, message in ((dict(ref=q[:1]), "shapes differ"), (dict(ref=q*0), "positive everywhere, got 0"), (dict(beta=-1), "got -1"),
                         (dict(ref=q.log()), "positive everywhere, got -0.69"), (dict(reward=q*math.nan), "finite, got nan")):
        with pytest.raises(ValueError, match=message): optimal_fpolicy(**{**dict(ref=q, reward=q, beta=1.), **bad})
