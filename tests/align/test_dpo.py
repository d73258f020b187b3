"`align.dpo`: facts that the page would be bored by."
import copy
import itertools
import math

import pytest
import torch
from draws import normal
from torch import nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from kullback.align import check_reference, dpo_loss, preference_loss
from kullback.divergence import gibbs_tilt

EXACT = dict(rtol=0, atol=1e-12)
KINDS = ("sigmoid", "kto_pair", "ipo", "hinge")


def pairs(B=6, seed=0): return list(normal(4, B, seed=seed, scale=2.) - 10)


def by_hand(x, beta, kind, eps=0.):
    "One pair at a time, with math alone."
    w, lose = ([float(p - r) for p, r in zip(*ab)] for ab in ((x[0], x[2]), (x[1], x[3])))
    sigma = lambda z: 1/(1 + math.exp(-z))
    if kind == "kto_pair":
        zw, zl = max(0, sum(w)/len(w)), max(0, sum(lose)/len(lose))
        return [1 - sigma(beta*(d - zl)) for d in w] + [1 - sigma(beta*(zw - d)) for d in lose]
    gaps = [a - b for a, b in zip(w, lose)]
    if kind == "hinge": return [max(0, 1 - beta*d) for d in gaps]
    if kind == "ipo": return [(d - 1/(2*beta))**2 for d in gaps]
    return [-(1 - eps)*math.log(sigma(beta*d)) - eps*math.log(sigma(-beta*d)) for d in gaps]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [.1, 1.])
def test_by_hand(kind, beta):
    x = pairs()
    loss, chosen, rejected = preference_loss(*x, beta, kind, reduction="none")
    wanted = torch.tensor(by_hand(x, beta, kind), dtype=torch.float64)
    assert_close(loss, wanted, **EXACT)
    for reduction in ("mean", "sum"):
        assert_close(preference_loss(*x, beta, kind, reduction=reduction)[0], getattr(wanted, reduction)(), **EXACT)
    assert_close(chosen, beta*(x[0] - x[2]), **EXACT)
    assert_close(rejected, beta*(x[1] - x[3]), **EXACT)


@pytest.mark.parametrize("eps", [0., .1, .5])
def test_smoothing_by_hand(eps):
    x = pairs()
    for loss in (dpo_loss(*x, .3, eps, "none"), preference_loss(*x, .3, label_smoothing=eps, reduction="none")):
        assert_close(loss[0], torch.tensor(by_hand(x, .3, "sigmoid", eps), dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    x = [t.requires_grad_() for t in pairs()]
    loss, chosen, rejected = preference_loss(*x, .7, kind)
    loss.backward()
    assert x[2].grad is None and x[3].grad is None
    assert not chosen.requires_grad and not rejected.requires_grad
    ref = [t.detach() for t in x[2:]]
    assert gradcheck(lambda c, r: preference_loss(c, r, *ref, .7, kind)[0], x[:2])


def test_far_margins_stay_finite():
    "float32, hundreds of nats: softplus's tails, and a gradient that is 0 or β."
    c = torch.tensor([-500., 500.], requires_grad=True)
    loss = dpo_loss(c, *torch.zeros(3, 2), 1., reduction="none")[0]
    assert_close(loss, torch.tensor([500., 0.]))
    loss.sum().backward()
    assert_close(c.grad, torch.tensor([-1., 0.]))


def test_a_teachers_tilt_is_the_fixed_point():
    "Three answers, every ordered pair, descending from the student: log-ratios of teacher·exp(r/β)/Z."
    teacher, r, beta = normal(3, seed=3).log_softmax(-1), normal(3, seed=4), .5
    i, j = torch.tensor(list(itertools.permutations(range(3), 2))).T
    logits = normal(3, seed=5).requires_grad_()
    opt = torch.optim.LBFGS([logits], max_iter=300, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe")
    def closure():
        opt.zero_grad()
        p = logits.log_softmax(-1)
        loss = (torch.sigmoid(r[i] - r[j])*dpo_loss(p[i], p[j], teacher[i], teacher[j], beta, reduction="none")[0]).sum()
        loss.backward()
        return loss
    opt.step(closure)
    assert_close(logits.detach().log_softmax(-1), gibbs_tilt(teacher, r, beta), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind, shifts", [("sigmoid", True), ("hinge", True), ("ipo", True), ("kto_pair", False)])
def test_a_common_shift(kind, shifts):
    "Differences alone count, but for KTO below zero."
    pc, pr, rc, rr = pairs()
    moved, here = (preference_loss(pc + c, pr + c, rc, rr, .3, kind)[0] for c in (-30., 0.))
    assert torch.isclose(moved, here, rtol=0, atol=1e-10) == shifts


def test_kto_depends_on_the_batch_it_is_in():
    x = pairs()
    x[0] = x[0] + 3
    whole = preference_loss(*x, .3, "kto_pair", reduction="none")[0].view(2, -1)[:, :3]
    half = preference_loss(*[t[:3] for t in x], .3, "kto_pair", reduction="none")[0].view(2, -1)
    assert (whole - half).abs().max() > 1e-3
    for kind in ("sigmoid", "ipo", "hinge"):
        whole, half = (preference_loss(*y, .3, kind, reduction="none")[0][:3] for y in (x, [t[:3] for t in x]))
        assert torch.equal(whole, half)


@pytest.mark.parametrize("bad, message", [
    (dict(beta=0), "beta must be positive, got 0"), (dict(beta=math.nan), "nan"),
    (dict(label_smoothing=.6), "got 0.6"), (dict(label_smoothing=-.1), "got -0.1"),
    (dict(reduction="batchmean"), "got 'batchmean'"), (dict(loss_type="dpo"), "got 'dpo'"),
    (dict(loss_type="ipo", label_smoothing=.1), "label_smoothing=0.1 has no meaning for 'ipo'"),
    (dict(loss_type="hinge", detach_kl=True), "detach_kl has no meaning for 'hinge'")])
def test_refused_arguments(bad, message):
    with pytest.raises(ValueError, match=message): preference_loss(*pairs(), **bad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", range(4))
def test_refused_tensors(kind, which):
    x = pairs()
    short, broken = list(x), [t.clone() for t in x]
    short[which] = x[which][:3]
    with pytest.raises(ValueError, match=r"shapes differ.*\(3,\)"): preference_loss(*short, loss_type=kind)
    for value in (math.nan, math.inf):
        broken[which][2] = value
        with pytest.raises(ValueError, match="must be finite, got -?(nan|inf)"): preference_loss(*broken, loss_type=kind)
    with pytest.raises(ValueError, match=r"got \(2, 3\)"): preference_loss(*[t.view(2, 3) for t in x], loss_type=kind)


def test_references():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("scale", torch.ones(3))
    policy = Tied()
    check_reference(policy, copy.deepcopy(policy))             # ties inside one model are its own affair
    with pytest.raises(ValueError, match="'embed.weight'"): check_reference(policy, policy)
    ref = copy.deepcopy(policy)
    ref.scale = policy.embed.weight.detach()[0]                # a slice kept as a buffer is the same memory
    with pytest.raises(ValueError, match="'embed.weight'"): check_reference(policy, ref)
    policy.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the policy is trained: Tied"): check_reference(policy, policy)
    with torch.device("meta"): check_reference(nn.Linear(2, 3), nn.Linear(2, 3))
