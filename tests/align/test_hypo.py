"HyPO: DPO at one end, the exact divergence in expectation, and the third answer's mass in closed form."
import itertools

import pytest
import torch
from draws import normal
from torch.testing import assert_close

from kullback.align import TabularPolicy, dpo_loss, hypo_loss, online_kl_surrogate
from kullback.divergence import kl_from_logits


def close(a, b, atol=1e-12): assert_close(a, b, rtol=0, atol=atol)


def bed(seed=0):
    "A policy over nine texts of two tokens, a reference, a pair of them."
    policy = TabularPolicy(3, 2, generator=torch.Generator().manual_seed(seed))
    return policy, normal(9, seed=seed + 1).log_softmax(-1)


def grad(value, policy): return torch.autograd.grad(value, policy.logits, retain_graph=True)[0]


def test_lam_zero_is_dpo_in_value_and_gradient():
    policy, ref = bed()
    lp = policy.logp()
    w, l, ys = torch.tensor([0, 4]), torch.tensor([1, 7]), torch.tensor([[2, 3], [5, 5]])
    loss, aux = hypo_loss(lp[w] - ref[w], lp[l] - ref[l], lp[ys], ref[ys], .3, 0.)
    dpo, chosen, rejected = dpo_loss(lp[w], lp[l], ref[w], ref[l], .3)
    close(loss, dpo)
    close(grad(loss, policy), grad(dpo, policy))
    close(aux["chosen_rewards"], chosen)
    close(aux["rejected_rewards"], rejected)
    close(aux["kl"], (lp - ref)[ys].mean().detach())
    assert not any(v.requires_grad for v in aux.values())


def test_expected_loss_descends_pairs_and_exact_divergence():
    policy, ref = bed(6)
    lp = policy.logp()
    pairs = torch.tensor(list(itertools.product(range(9), repeat=2)))
    w, l = torch.tensor([0, 4]), torch.tensor([1, 7])
    losses = [hypo_loss((lp - ref)[w], (lp - ref)[l], lp[ys][None], ref[ys][None], .3, .2)[0] for ys in pairs]
    found = grad((lp.detach()[pairs].sum(1).exp()*torch.stack(losses)).sum(), policy)
    close(found, grad(dpo_loss(lp[w], lp[l], ref[w], ref[l], .3)[0] + .2*kl_from_logits(lp, ref), policy), 1e-10)


@pytest.mark.parametrize("baseline, factor", [("rloo", 1.), ("none", 1.), ("batch", .5)])
def test_expected_surrogate_is_the_gradient_of_the_exact_divergence(baseline, factor):
    policy, ref = bed(2)
    lp = policy.logp()
    pairs = torch.tensor(list(itertools.product(range(9), repeat=2)))
    parts = [online_kl_surrogate(lp[ys][None], ref[ys][None], baseline) for ys in pairs]
    weight = lp.detach()[pairs].sum(1).exp()
    exact = kl_from_logits(lp, ref)
    close(grad((weight*torch.stack([s for s, _ in parts])).sum(), policy), factor*grad(exact, policy), 1e-10)
    close((weight*torch.stack([kl for _, kl in parts])).sum(), exact.detach(), 1e-12)


def test_two_prompts_do_not_mix_their_baselines():
    "Rows are prompts: the loss of both is the mean of the losses of each."
    lp, ref = normal(2, 3).requires_grad_(), normal(2, 3, seed=1)
    both = online_kl_surrogate(lp, ref)[0]
    each = [online_kl_surrogate(lp[i:i+1], ref[i:i+1])[0] for i in range(2)]
    close(torch.autograd.grad(both, lp)[0], torch.autograd.grad(sum(each)/2, lp)[0])


def test_gradient_by_hand():
    lp, ref = normal(3, 2).requires_grad_(), normal(3, 2, seed=1).requires_grad_()
    surrogate, kl = online_kl_surrogate(lp, ref)
    surrogate.backward()
    d = (lp - ref).detach()
    close(lp.grad, torch.stack([d[:, 0] - d[:, 1], d[:, 1] - d[:, 0]], 1)/6)
    assert ref.grad is None and not kl.requires_grad


def test_constants_move_the_estimate_only():
    lp, ref = normal(4, 3).requires_grad_(), normal(4, 3, seed=1)
    (a, ka), (b, kb) = online_kl_surrogate(lp, ref), online_kl_surrogate(lp, ref - 9)
    close(torch.autograd.grad(a, lp)[0], torch.autograd.grad(b, lp)[0])
    close(kb - ka, torch.tensor(9.).double())


def test_raising_both_answers_is_seen_online_only():
    chosen, rejected = normal(5), normal(5, seed=1)
    lp, ref = normal(4, 2, seed=2), normal(4, 2, seed=3)
    one, a = hypo_loss(chosen, rejected, lp.clone().requires_grad_(), ref, .2, .1)
    two, b = hypo_loss(chosen + 4, rejected + 4, (lp + 4).requires_grad_(), ref, .2, .1)
    close(a["dpo"], b["dpo"])
    close(b["kl"] - a["kl"], torch.tensor(4.).double())


def test_nothing_pulls_at_the_reference():
    lp = normal(4, 3).requires_grad_()
    for baseline in ("rloo", "none", "batch"):
        surrogate, kl = online_kl_surrogate(lp, lp.detach(), baseline)
        assert kl == 0 and (torch.autograd.grad(surrogate, lp)[0] == 0).all()


@pytest.mark.parametrize("odds", [.2, 1., 5.])
def test_third_answer_minimises_the_divergence_at_fixed_odds(odds):
    "Eq. 4 by a fine grid over m instead of a derivative."
    ref = normal(3, seed=4).log_softmax(-1)
    s = torch.tensor([odds/(1 + odds), 1/(1 + odds)]).double()
    m = torch.linspace(1e-4, 1 - 1e-4, 200001).double()
    grid = torch.cat([(1 - m)[:, None]*s, m[:, None]], 1).log()
    best = grid[kl_from_logits(grid, ref.expand_as(grid)).argmin()]
    close(best[2] - ref[2], s @ (best[:2] - ref[:2]), 1e-4)


@pytest.mark.parametrize("call, message", [
    (lambda lp: hypo_loss(lp[:, 0], lp[:, 1], lp, lp, .1, -.5), "lam must not be negative, got -0.5"),
    (lambda lp: hypo_loss(lp[:, 0], lp[:, 1], lp, lp, -1., .5), "beta must be positive, got -1"),
    (lambda lp: hypo_loss(lp[:2, 0], lp[:, 1], lp, lp, .1, .5), "shapes differ"),
    (lambda lp: online_kl_surrogate(lp, lp[:2]), "shapes differ"),
    (lambda lp: online_kl_surrogate(lp.detach(), lp), "carries no gradient"),
    (lambda lp: online_kl_surrogate(lp, lp, "mean"), "got 'mean'"),
    (lambda lp: online_kl_surrogate(lp[:1, :1], lp[:1, :1], "batch"), "batch of 1"),
    (lambda lp: online_kl_surrogate(lp, lp - torch.inf), "must be finite, got inf"),
    (lambda lp: online_kl_surrogate(lp[:, :1], lp[:, :1]), r"got \(3, 1\)"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message): call(normal(3, 2).requires_grad_())
