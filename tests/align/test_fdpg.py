"f-DPG: the rule against autograd, two roads to old methods, and what is carried along."
import math

import pytest
import torch
from draws import normal
from torch.testing import assert_close

from kullback.align import (
    MovingBaseline,
    PartitionEstimator,
    TabularPolicy,
    divergence_estimate,
    enumerate_texts,
    fdpg_loss,
    fdpg_pseudo_reward,
    fit_gdc_lambda,
)
from kullback.divergence import f_divergence, get_f_divergence, kl_from_logits

NAMES = ["forward_kl", "reverse_kl", "js", "tv", "chi2_p_pi", "chi2_pi_p"]
WRITTEN_OUT = { # f′ of log t, as in the paper's table
    "forward_kl": lambda l: -1/l.exp(),
    "reverse_kl": lambda l: 1 + l,
    "js": lambda l: (2*l.exp()/(1 + l.exp())).log(),
    "tv": lambda l: ((l > 0).double() - (l < 0).double())/2,
    "chi2_p_pi": lambda l: 1 - 1/l.exp()**2,
    "chi2_pi_p": lambda l: 2*(l.exp() - 1),
}


def close(a, b, atol=1e-12): assert_close(a, b, rtol=0, atol=atol)


def bed(seed=0):
    policy = TabularPolicy(3, 3, generator=torch.Generator().manual_seed(seed))
    return policy, normal(27, seed=seed + 1).log_softmax(-1), normal(27, seed=seed + 2).log_softmax(-1)


def expected(policy, score, log_z, log_q=None, divergence="js", baseline=None):
    "Exact expectation of the surrogate over single samples."
    lp = policy.logp()
    q = lp.detach() if log_q is None else log_q
    each = [fdpg_loss(lp[i:i+1], score[i:i+1], log_z, None if log_q is None else q[i:i+1], divergence, baseline)
            for i in range(27)]
    return torch.autograd.grad((q.exp()*torch.stack(each)).sum(), policy.logits)[0]


@pytest.mark.parametrize("name", NAMES)
def test_pseudo_reward_is_minus_the_slope_written_out(name):
    log_t = normal(50, scale=3.)
    close(fdpg_pseudo_reward(log_t, name), -WRITTEN_OUT[name](log_t), 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_generators_are_the_divergences_they_are_called(name):
    "Direct sums over 27 texts, not through f."
    policy, target, _ = bed()
    pi, p = policy.logp().detach().exp(), target.exp()
    m = (pi + p)/2
    direct = {"forward_kl": (p*(p/pi).log()).sum(), "reverse_kl": (pi*(pi/p).log()).sum(),
              "js": (pi*(pi/m).log()).sum() + (p*(p/m).log()).sum(), "tv": (pi - p).abs().sum()/2,
              "chi2_p_pi": ((pi - p)**2/pi).sum(), "chi2_pi_p": ((pi - p)**2/p).sum()}
    close(f_divergence(policy.logp().detach(), target, name), direct[name])
    close(get_f_divergence(name).f(pi/p) @ p, direct[name])


@pytest.mark.parametrize("name", NAMES)
def test_expected_surrogate_is_the_gradient_of_the_divergence(name):
    "For any proposal, any baseline and any scale of the score."
    policy, target, log_q = bed(3)
    exact = torch.autograd.grad(f_divergence(policy.logp(), target, name), policy.logits)[0]
    close(expected(policy, target, 0., None, name), exact, 1e-10)
    close(expected(policy, target - 400., -400., log_q, name), exact, 1e-10)
    close(expected(policy, target, 0., log_q, name, 7.), expected(policy, target, 0., log_q, name))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_expected_at_the_target(name):
    policy, _, log_q = bed(5)
    close(expected(policy, policy.logp().detach(), 0., log_q, name), torch.zeros_like(policy.logits))


@pytest.mark.parametrize("name", ["forward_kl", "js", "tv", "chi2_p_pi"])
def test_exact_gradient_with_a_target_that_excludes(name):
    policy, target, log_q = bed(6)
    hard = target.masked_fill(enumerate_texts(3, 3)[:, 1] == 0, -math.inf)
    log_z = hard.logsumexp(-1)
    exact = torch.autograd.grad(f_divergence(policy.logp(), hard - log_z, name), policy.logits)[0]
    close(expected(policy, hard, log_z, log_q, name), exact, 1e-10)


def test_forward_kl_is_weighted_maximum_likelihood():
    policy, target, log_q = bed(8)
    i = torch.tensor([1, 1, 9, 20])
    lp = policy.logp()
    ours = torch.autograd.grad(fdpg_loss(lp[i], target[i] + 2, 2., log_q[i], "forward_kl"), policy.logits, retain_graph=True)[0]
    by_hand = sum(torch.autograd.grad(lp[j], policy.logits, retain_graph=True)[0]*(target - log_q)[j].exp() for j in i)/4
    close(ours, -by_hand)


def test_only_the_last_log_pi_carries_gradient():
    pi, P, q = (normal(5, seed=s).log_softmax(-1).requires_grad_() for s in range(3))
    log_z, B = torch.tensor(.3, dtype=torch.float64, requires_grad=True), torch.tensor(.1, dtype=torch.float64)
    loss = fdpg_loss(pi, P, log_z, q, "js", B)
    loss.backward()
    assert P.grad is None and q.grad is None and log_z.grad is None
    reward = -WRITTEN_OUT["js"]((pi - P + log_z).detach()) - B
    close(pi.grad, -(pi - q).detach().exp()*reward/5)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "js", "tv"])
def test_estimates_agree_for_every_proposal_and_scale(kind):
    policy, target, log_q = bed(10)
    log_pi = policy.logp().detach()
    mean = lambda q, c: (q.exp()*divergence_estimate(target + c, log_pi, q, c, kind)).sum()
    direct = {"forward_kl": kl_from_logits(target, log_pi), "reverse_kl": kl_from_logits(log_pi, target),
              "js": f_divergence(log_pi, target, "js")/2, "tv": f_divergence(log_pi, target, "tv")}[kind]
    for q in (log_q, log_pi, target): close(mean(q, 0.), direct)
    close(mean(log_q, -300.), direct, 1e-10)


def test_partition_forgets_nothing_and_keeps_its_order_free():
    P, q = normal(90, scale=4.) - 500, normal(90, seed=1) - 490
    orders = [torch.arange(90).split(13), torch.arange(89, -1, -1).split(50)]
    wanted = (P - q + 10).exp().mean().log() - 10
    for order in orders:
        Z = PartitionEstimator()
        for rows in order: Z.update(P[rows], q[rows])
        close(Z.log_z, wanted)
    twin = PartitionEstimator().double()
    twin.load_state_dict(Z.state_dict())
    close(twin.log_z, Z.log_z)


def test_partition_waits_for_the_first_hit():
    Z = PartitionEstimator()
    Z.update(torch.full((3,), -math.inf), torch.zeros(3))
    assert Z.log_z == -math.inf
    Z.update(torch.tensor([0.]), torch.tensor([0.]))
    close(Z.log_z, torch.tensor(-math.log(4)), 1e-6)


def test_baseline_is_the_mean_of_the_window():
    B, seen = MovingBaseline(7), []
    assert B.value == 0
    for s in range(6):
        values = normal(3, seed=s)
        B.update(values)
        seen.append(values)
        close(B.value, torch.cat(seen)[-7:].mean())
    B.update(normal(20, seed=9))
    close(B.value, normal(20, seed=9)[-7:].mean())


@pytest.mark.parametrize("rate, wanted", [(.3, .5), (.01, .5), (.5, .05)])
def test_gdc_of_one_binary_feature_is_a_difference_of_logits(rate, wanted):
    phi, logw = torch.tensor([[0.], [1.]]).double(), torch.tensor([1 - rate, rate]).double().log()
    lam = fit_gdc_lambda(phi, torch.tensor([wanted]).double(), logw)
    close(lam, (torch.logit(torch.tensor([wanted])) - torch.logit(torch.tensor([rate]))).double(), 1e-4)


def test_gdc_tilt_is_the_nearest_with_these_moments():
    "D(r‖a) = D(r‖p) + D(p‖a) for every r that shares the moments: Pythagoras."
    base, phi = normal(12).log_softmax(-1), normal(12, 2, seed=1)
    other = normal(12, seed=2).log_softmax(-1)
    moments = other.exp() @ phi
    p = (base + phi @ fit_gdc_lambda(phi, moments, base, steps=5000)).log_softmax(-1)
    close(p.exp() @ phi, moments, 1e-10)
    close(kl_from_logits(other, base), kl_from_logits(other, p) + kl_from_logits(p, base), 1e-9)


def test_gdc_weights_are_repetitions():
    phi, mu = normal(6, 2), torch.zeros(2).double() + .1
    counts = torch.tensor([1, 3, 2, 1, 4, 2])
    close(fit_gdc_lambda(phi, mu, counts.double().log()), fit_gdc_lambda(phi.repeat_interleave(counts, 0), mu))


@pytest.mark.parametrize("call, message", [
    (lambda: fdpg_pseudo_reward(torch.tensor([math.inf]), "reverse_kl"), "no finite slope where log t is inf"),
    (lambda: fdpg_pseudo_reward(torch.tensor([-math.inf]), "js"), "log t is -inf"),
    (lambda: fdpg_pseudo_reward(torch.zeros(1), "kld"), "unknown divergence"),
    (lambda: fdpg_loss(torch.zeros(2), torch.tensor([0., -math.inf]), 0., divergence="chi2_pi_p"), "log t is inf"),
    (lambda: fdpg_loss(torch.zeros(2), torch.zeros(3), 0.), "shapes differ"),
    (lambda: fdpg_loss(torch.zeros(2), torch.zeros(2), 0., torch.zeros(3)), "shapes differ"),
    (lambda: fdpg_loss(torch.zeros(2), torch.zeros(2), math.nan), "log_z must be finite, got nan"),
    (lambda: fdpg_loss(torch.tensor([-math.inf]), torch.zeros(1), 0.), "policy_logp must be finite"),
    (lambda: fdpg_loss(torch.zeros(2), torch.zeros(2), 0., baseline=torch.zeros(2)), r"one number, got \(2,\)"),
    (lambda: divergence_estimate(*torch.zeros(3, 2), 0., "kl"), "got 'kl'"),
    (lambda: divergence_estimate(*torch.zeros(3, 2), math.inf), "log_z must be finite, got inf"),
    (lambda: PartitionEstimator().update(torch.zeros(1), torch.tensor([-math.inf])), "= inf"),
    (lambda: PartitionEstimator().log_z, "call update first"),
    (lambda: MovingBaseline(0), "got 0"),
    (lambda: fit_gdc_lambda(torch.zeros(4, 1), torch.zeros(2)), r"\(4, 1\), \(2,\)"),
    (lambda: fit_gdc_lambda(torch.zeros(4, 1), torch.zeros(1), torch.zeros(3)), r"got \(3,\)"),
    (lambda: fit_gdc_lambda(torch.zeros(4, 1), torch.ones(1)), "both sides of the wanted moment 1"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message): call()
