"`distill.balanced`: torch.distributions, a script without torch, which side hears what, modes, accelerate, calibration's ends."
import math

import pytest
import torch
import torch.nn.functional as F
from draws import classroom as drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from kullback.classify.calibration import ece
from kullback.distill import OnlineDistiller, balanced_kl_weights, bdkd_student_loss, bdkd_teacher_loss

EXACT = dict(rtol=0, atol=1e-12)


def on_paper(s, t, y, tau, nu, alpha):
    "Eq. 4, row by row, in the standard library."
    def soft(row, tau):
        top = max(row)
        e = [math.exp((v - top)/tau) for v in row]
        return [v/sum(e) for v in e]
    def kl(p, q): return sum(a*math.log(a/b) for a, b in zip(p, q))
    def entropy(p): return -sum(a*math.log(a) for a in p)
    total = 0.
    for s_row, t_row, label in zip(s.tolist(), t.tolist(), y.tolist()):
        p, q = soft(s_row, tau), soft(t_row, tau)
        w_f, w_r = (1, nu) if entropy(soft(s_row, 1)) > entropy(soft(t_row, 1)) else (nu, 1)
        total += -math.log(soft(s_row, 1)[label]) + alpha*tau**2*(w_f*kl(q, p) + w_r*kl(p, q))
    return total/len(y)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([1., 2., 4.]), st.sampled_from([.5, 1., 2., 4.]), st.sampled_from([.3, 1., 2.]))
def test_student_loss_against_a_script(seed, tau, nu, alpha):
    s, t, y = drawn(seed)
    assert_close(bdkd_student_loss(s, t, y, tau, nu, alpha).item(), on_paper(s, t, y, tau, nu, alpha), rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([1., 3.]))
def test_fixed_variants_against_torch_distributions(seed, tau):
    s, t, y = drawn(seed)
    p, q = Categorical(logits=s/tau), Categorical(logits=t/tau)
    ce, forward, reverse = F.cross_entropy(s, y), tau**2*kl_divergence(q, p).mean(), tau**2*kl_divergence(p, q).mean()
    for variant, want in (("forward", forward), ("reverse", reverse), ("sum", forward + reverse)):
        assert_close(bdkd_student_loss(s, t, y, tau, 3., .7, variant), ce + .7*want, rtol=1e-10, atol=1e-10)
    assert_close(bdkd_teacher_loss(t, s, y, tau, .7), F.cross_entropy(t, y) + .7*forward, rtol=1e-10, atol=1e-10)


def test_nu_one_and_the_bounds_of_the_mix():
    s, t, y = drawn(1)
    assert_close(bdkd_student_loss(s, t, y, nu=1.), bdkd_student_loss(s, t, y, variant="sum"), **EXACT)
    w_f, w_r = balanced_kl_weights(s, t, 3.)
    assert_close(w_f + w_r, torch.full_like(w_f, 4.), **EXACT)
    assert set(w_f.tolist()) == {1., 3.}


def test_branches_and_tie():
    flat, peak = torch.zeros(1, 6), torch.tensor([[5., 0, 0, 0, 0, 0]])
    pairs = {(flat, peak): (1., 2.), (peak, flat): (2., 1.), (peak, peak): (2., 1.), (flat, flat): (2., 1.)}
    for (s, t), want in pairs.items(): assert tuple(w.item() for w in balanced_kl_weights(s, t)) == want


def test_the_temperature_of_the_entropies_counts():
    "One runner-up at −1 against many at −4: at τ = 1 the first is less sure, at τ = 8 the second."
    few, wide = torch.full((1, 50), -60.), torch.full((1, 50), -4.)
    few[0, 0], few[0, 1], wide[0, 0] = 0., -.2, 3.
    assert balanced_kl_weights(few, wide, 2., 1.)[0].item() == 1.
    assert balanced_kl_weights(few, wide, 2., 8.)[0].item() == 2.


def test_equal_logits_are_at_rest():
    s, _, y = drawn(2)
    for variant in ("entropy", "sum", "forward", "reverse"):
        z = s.clone().requires_grad_()
        rest = bdkd_student_loss(z, s, y, 2., 4., 1., variant) - F.cross_entropy(z, y)
        assert_close(rest, 0*rest, **EXACT)
        assert_close(torch.autograd.grad(rest, z)[0], 0*s, **EXACT)


def test_gradients_are_those_of_weighted_divergences():
    s, t, y = drawn(3)
    z = s.clone().requires_grad_()
    auto = torch.autograd.grad(bdkd_student_loss(z, t, y, nu=4.) - F.cross_entropy(z, y), z)[0]
    p, q = s.softmax(-1), t.softmax(-1)
    H = lambda p: -(p*p.log()).sum(-1, keepdim=True)
    w_f, w_r = torch.where(H(p) > H(q), 1., 4.), torch.where(H(p) > H(q), 4., 1.)
    ratio = p.log() - q.log()
    want = w_f*(p - q) + w_r*p*(ratio - (p*ratio).sum(-1, keepdim=True))
    assert_close(auto, want/len(y), rtol=0, atol=1e-10)


def test_the_peer_learns_nothing():
    s, t, y = (x.requires_grad_() if x.is_floating_point() else x for x in drawn(4))
    bdkd_student_loss(s, t, y).backward()
    assert t.grad is None and s.grad.abs().sum() > 0
    s.grad = None
    bdkd_teacher_loss(t, s, y).backward()
    assert s.grad is None and t.grad.abs().sum() > 0
    assert not any(w.requires_grad for w in balanced_kl_weights(s, t))


def test_far_logits_in_single_precision():
    s, t = torch.tensor([[1e3, -1e3, 0.]], requires_grad=True), torch.tensor([[-1e3, 1e3, 1e3]])
    for value in (bdkd_student_loss(s, t, torch.tensor([1])), bdkd_teacher_loss(s, t, torch.tensor([1]))):
        assert value.isfinite() and torch.autograd.grad(value, s)[0].isfinite().all()


def nets(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 5))


def test_a_loss_that_forgets_to_detach_still_reaches_one_net():
    def naive(own, peer, y): return (own - peer).square().mean()
    student, teacher = nets()
    pair = OnlineDistiller(student, teacher, naive, naive)
    for loss, net, other in zip(pair(torch.randn(8, 6), torch.zeros(8).long()), (student, teacher), (teacher, student)):
        grads = torch.autograd.grad(loss, [*net.parameters(), *other.parameters()], allow_unused=True)
        own = len(list(net.parameters()))
        assert all(g is not None for g in grads[:own]) and all(g is None for g in grads[own:])


def test_modes_and_state_are_the_modules_own():
    student, teacher = nets()
    pair = OnlineDistiller(student, teacher, bdkd_student_loss, bdkd_teacher_loss)
    assert {k.split(".")[0] for k in pair.state_dict()} == {"student", "teacher"}
    x, y = torch.randn(8, 6), torch.arange(8) % 5
    before = [net[1].running_mean.clone() for net in (student, teacher)]
    pair.train()(x, y)
    assert all(not torch.equal(a, net[1].running_mean) for a, net in zip(before, (student, teacher)))
    after = [net[1].running_mean.clone() for net in (student, teacher)]
    teacher.eval()
    pair(x, y)
    assert not torch.equal(after[0], student[1].running_mean) and torch.equal(after[1], teacher[1].running_mean)
    assert student.training and not teacher.training


@pytest.mark.parametrize("one_optimiser", [True, False])
def test_accelerate_and_one_sum_or_two_steps(one_optimiser):
    from accelerate import Accelerator
    pair, twin = (OnlineDistiller(*nets(), bdkd_student_loss, bdkd_teacher_loss) for _ in range(2))
    twin.load_state_dict(pair.state_dict())
    x, y = torch.randn(8, 6), torch.arange(8) % 5
    accelerator = Accelerator(cpu=True)
    prepared, opt = accelerator.prepare(pair, torch.optim.SGD(pair.parameters(), lr=.1))
    accelerator.backward(sum(prepared(x, y)))
    opt.step()
    groups = [twin.parameters()] if one_optimiser else [twin.student.parameters(), twin.teacher.parameters()]
    others = [torch.optim.SGD(g, lr=.1) for g in groups]
    for loss in twin(x, y): loss.backward()
    for o in others: o.step()
    for a, b in zip(pair.state_dict().values(), twin.state_dict().values()): assert_close(a, b)


def test_the_score_of_calibration_at_both_ends():
    g = torch.Generator().manual_seed(5)
    conf = torch.rand(20_000, generator=g, dtype=torch.float64)
    assert ece(conf, (torch.rand(20_000, generator=g, dtype=torch.float64) < conf).long()) < .02
    probs = torch.tensor([[.7, .2, .1]], dtype=torch.float64).expand(50, 3)
    assert_close(ece(probs, torch.zeros(50).long()).item(), .3, rtol=0, atol=1e-12)


def test_refusals():
    s, t, y = drawn(6)
    for call, said in [
        (lambda: balanced_kl_weights(s, t, -1.), "nu must be positive, got -1"),
        (lambda: balanced_kl_weights(s, t, math.nan), "got nan"),
        (lambda: balanced_kl_weights(s, t, 2., 0.), "entropy_temperature must be positive, got 0"),
        (lambda: balanced_kl_weights(s, t, variant="balanced"), "'balanced'"),
        (lambda: balanced_kl_weights(s, t[:3]), "shapes differ"),
        (lambda: bdkd_student_loss(s, t, y, 0.), "temperature must be positive, got 0"),
        (lambda: bdkd_student_loss(s, t, y + 5), "0..4, got"),
        (lambda: bdkd_student_loss(s, t, y, nu=0.), "got 0"),
        (lambda: bdkd_student_loss(s, t, y, variant="kl"), "'kl'"),
        (lambda: bdkd_teacher_loss(t, s[:, :4], y), "shapes differ"),
        (lambda: bdkd_teacher_loss(t, s, y[:3]), "must have shape"),
        (lambda: bdkd_teacher_loss(t, s, y, -2.), "got -2"),
    ]:
        with pytest.raises(ValueError, match=said): call()
