"`distill.dual`: PyTorch's binary cross-entropy and log-cosh, limits, which head hears what, accelerate."
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from draws import classroom
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, kl_divergence
from torch.testing import assert_close

from kullback.distill import DualHead, auxiliary_head, binary_kl_loss, binary_kl_norm_loss, dhkd_loss

EXACT = dict(rtol=0, atol=1e-12)
drawn = partial(classroom, spread=4.)


def coins(p, q):
    "D(p‖q) of coins given by logits: torch.distributions, and cross-entropies where it says inf, a probability having rounded to 1."
    P = p.sigmoid()
    theirs = kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q))
    gap = F.binary_cross_entropy_with_logits(q, P, reduction="none") - F.binary_cross_entropy_with_logits(p, P, reduction="none")
    assert ((q.sigmoid() == 1) | (q.sigmoid() == 0) | theirs.isfinite()).all()
    return torch.where(theirs.isfinite(), theirs, gap)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([.5, 1., 2., 7.]))
def test_against_torch_distributions(seed, tau):
    s, t, _ = drawn(seed)
    plain, norm = tau**2*coins(t/tau, s/tau).sum(1), tau**2*coins(torch.zeros_like(s), (s - t)/tau).sum(1)
    for f, want in ((binary_kl_loss, plain), (binary_kl_norm_loss, norm)):
        assert_close(f(s, t, tau, "none"), want, rtol=1e-10, atol=1e-10)
        assert_close(f(s, t, tau), want.mean(), rtol=1e-10, atol=1e-10)
        assert_close(f(s, t, tau, "sum"), want.sum(), rtol=1e-10, atol=1e-10)


def test_stored_values():
    "By a script without torch: s = sin(1 + 3k), t = 2·cos(k), τ = 2, K = 3."
    s = torch.tensor([[math.sin(1 + 3*k) for k in range(3)]], dtype=torch.float64)
    t = torch.tensor([[2*math.cos(k) for k in range(3)]], dtype=torch.float64)
    coin = lambda x: 1/(1 + math.exp(-x))
    plain = norm = 0.
    for k in range(3):
        p, q = coin(t[0, k].item()/2), coin(s[0, k].item()/2)
        plain += 4*(p*math.log(p/q) + (1 - p)*math.log((1 - p)/(1 - q)))
        norm += 4*math.log(math.cosh((s[0, k].item() - t[0, k].item())/4))
    assert_close(binary_kl_loss(s, t).item(), plain, **EXACT)
    assert_close(binary_kl_norm_loss(s, t).item(), norm, **EXACT)


def test_limits():
    s, t, _ = drawn(1)
    assert_close(binary_kl_norm_loss(s, t, 1e3), (s - t).square().sum(1).mean()/8, rtol=1e-4, atol=0)
    assert_close(binary_kl_loss(s, t, 1e4), (s - t).square().sum(1).mean()/8, rtol=1e-3, atol=0)     # the plain one too
    assert_close(binary_kl_norm_loss(s, t, 1e-4)/1e-4, (s - t).abs().sum(1).mean()/2, rtol=1e-3, atol=0)


def test_gradients_by_autograd_and_bounds():
    s, t, _ = drawn(2, spread=30.)
    z = s.requires_grad_()
    for tau in (.5, 2.):
        plain = torch.autograd.grad(binary_kl_loss(z, t, tau), z)[0]*len(s)
        norm = torch.autograd.grad(binary_kl_norm_loss(z, t, tau), z)[0]*len(s)
        assert_close(plain, tau*((z/tau).sigmoid() - (t/tau).sigmoid()).detach(), **EXACT)
        assert_close(norm, tau/2*torch.tanh((z - t)/(2*tau)).detach(), **EXACT)
        assert (norm.abs() <= tau/2 + 1e-12).all()


@pytest.mark.parametrize("f", [binary_kl_loss, binary_kl_norm_loss])
def test_far_logits_in_single_precision(f):
    s = torch.tensor([[1e4, -1e4, 0., 1e4]], requires_grad=True)
    t = torch.tensor([[-1e4, 1e4, 1e4, 1e4]])
    loss = f(s, t)
    loss.backward()
    assert loss.isfinite() and s.grad.isfinite().all()
    assert s.grad[0, 0] > .9 and s.grad[0, 1] < -.9 and s.grad[0, 3] == 0
    assert f(s, s.detach()).item() == pytest.approx(0, abs=1e-6)


def test_teacher_learns_nothing():
    s, t, y = drawn(3)
    t.requires_grad_()
    z = s.clone().requires_grad_()
    (binary_kl_loss(z, t) + binary_kl_norm_loss(z, t) + dhkd_loss(z, z, t, y)).backward()
    assert t.grad is None and z.grad is not None


def test_dhkd_is_the_weighted_sum():
    (s, t, y), (a, _, _) = drawn(4), drawn(5)
    want = .7*F.cross_entropy(s, y) + .2*9*torch.cosh((a - t)/6).log().sum(1).mean()
    assert_close(dhkd_loss(s, a, t, y, .7, .2, 3.), want, **EXACT)
    rows = dhkd_loss(s, a, t, y, .7, .2, 3., "none")
    assert rows.shape == (7,) and torch.allclose(rows.mean(), want)


def gradients(loss, net): return {n: g for (n, p), g in zip(net.named_parameters(), torch.autograd.grad(
    loss, list(net.parameters()), retain_graph=True, allow_unused=True)) if g is not None}


@pytest.mark.parametrize("aux", ["linear", "mlp"])
def test_each_head_hears_its_own_loss(aux):
    torch.manual_seed(0)
    net, (_, t, y) = DualHead(nn.Linear(6, 4), 4, 5, aux), drawn(6)
    main, helper = net(torch.randn(7, 6))
    ce, logit = gradients(F.cross_entropy(main, y), net), gradients(binary_kl_norm_loss(helper, t.float()), net)
    assert ce.keys() == {"backbone.weight", "backbone.bias", "main.weight", "main.bias"}
    assert {n.split(".")[0] for n in logit} == {"backbone", "aux"}
    both = gradients(dhkd_loss(main, helper, t.float(), y), net)
    assert_close(both["main.weight"], ce["main.weight"])
    assert_close(both["backbone.weight"], ce["backbone.weight"] + logit["backbone.weight"])


def test_the_flag_decides_else_the_mode():
    net, x = DualHead(nn.Identity(), 4, 5), torch.randn(3, 4)
    assert len(net(x)) == 2 and net(x, both=False).shape == (3, 5)
    net.eval()
    main, aux = net(x, both=True)
    assert torch.equal(net(x), main) and aux.shape == (3, 5)
    assert not net.training


def test_mlp_head_is_the_stated_one():
    kinds = [type(m).__name__ for m in auxiliary_head(32, 100, "mlp")]
    assert kinds == ["Linear", "Dropout", "BatchNorm1d", "ReLU", "Linear"]
    assert sum(p.numel() for p in auxiliary_head(32, 100, "mlp").parameters()) == 33*200 + 400 + 201*100


def test_state_and_accelerate():
    from accelerate import Accelerator
    torch.manual_seed(1)
    net, twin = (DualHead(nn.Linear(6, 4), 4, 5, "mlp", dropout=0.) for _ in range(2))
    twin.load_state_dict(net.state_dict())
    x, (_, t, y) = torch.randn(7, 6), drawn(7)
    opt, other = (torch.optim.SGD(n.parameters(), lr=.1) for n in (net, twin))
    accelerator = Accelerator(cpu=True)
    prepared, opt = accelerator.prepare(net, opt)
    accelerator.backward(dhkd_loss(*prepared(x), t.float(), y))
    opt.step()
    dhkd_loss(*twin(x), t.float(), y).backward()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values()))


def test_refusals():
    s, t, y = drawn(8)
    for call, said in [
        (lambda: binary_kl_loss(s, t, 0.), "got 0"),
        (lambda: binary_kl_norm_loss(s, t, math.nan), "got nan"),
        (lambda: binary_kl_loss(s, t[:3]), "shapes differ"),
        (lambda: binary_kl_norm_loss(s, t, reduction="avg"), "'avg'"),
        (lambda: dhkd_loss(s, s, t, y + 5), "0..4, got"),
        (lambda: dhkd_loss(s, s[:, :4], t, y), "shapes differ"),
        (lambda: auxiliary_head(4, 5, "cosine"), "'cosine'"),
    ]:
        with pytest.raises(ValueError, match=said): call()
