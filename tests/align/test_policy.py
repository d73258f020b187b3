"Policy gradients on samples: unbiased, indifferent to constants, and closed at both ends of the clip."
import itertools

import pytest
import torch
from draws import normal
from torch.testing import assert_close

from kullback.align import kl_penalised_reward, ppo_clip_loss, rloo_baseline, rloo_loss
from kullback.divergence import gibbs_tilt, kl_from_logits, soft_value


def close(a, b, atol=1e-12): assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_advantages_sum_to_zero_and_are_rescaled_deviations(k):
    v = normal(6, k, seed=k)
    advantage = v - rloo_baseline(v)
    close(advantage.mean(1), torch.zeros(6).double())
    close(advantage, k/(k - 1)*(v - v.mean(1, keepdim=True)))


def test_integer_rewards_have_a_fractional_baseline():
    close(rloo_baseline(torch.tensor([[1, 2, 4]])), torch.tensor([[3., 2.5, 1.5]]))


@pytest.mark.parametrize("k", [2, 3])
def test_loss_is_unbiased_over_every_tuple_of_sequences(k):
    "Two-token answers from logits per prefix: the whole tree is 3·3 leaves, the tuples are all written down."
    root, branch, reward = normal(3, seed=1).requires_grad_(), normal(3, 3, seed=2).requires_grad_(), normal(9, seed=3)
    logp = (root.log_softmax(-1)[:, None] + branch.log_softmax(-1)).flatten()
    wanted = torch.autograd.grad((logp.exp()*reward).sum(), [root, branch], retain_graph=True)
    tuples = torch.tensor(list(itertools.product(range(9), repeat=k)))
    weight = logp.detach()[tuples].sum(-1).exp()
    losses = torch.stack([rloo_loss(logp[ys][None], reward[ys][None]) for ys in tuples])
    found = torch.autograd.grad((weight*losses).sum(), [root, branch])
    for a, b in zip(found, wanted): close(a, -b, 1e-10)


def test_a_constant_in_the_reward_moves_nothing():
    logp, reward = normal(4, 3).requires_grad_(), normal(4, 3, seed=1)
    one, two = (torch.autograd.grad(rloo_loss(logp, r), logp)[0] for r in (reward, reward + 50))
    close(one, two)


def test_gradient_does_not_flow_through_the_price():
    logp, ref, reward = normal(4, 3).requires_grad_(), normal(4, 3, seed=1), normal(4, 3, seed=2)
    shaped = reward - .3*(logp - ref) # not detached by the caller
    one = torch.autograd.grad(rloo_loss(logp, shaped), logp)[0]
    two = torch.autograd.grad(rloo_loss(logp, kl_penalised_reward(reward, logp, ref, .3)), logp)[0]
    close(one, two)


def test_price_is_zero_at_the_reference_and_linear_in_beta():
    reward, logp, ref = normal(7), normal(7, seed=1), normal(7, seed=2)
    for name in ("reverse_kl", "forward_kl", "js", "tv", "neyman", "hellinger"):
        assert torch.equal(kl_penalised_reward(reward, ref, ref, .5, name), reward)
    close(kl_penalised_reward(reward, logp, ref, .5), reward - .5*(logp - ref))
    assert torch.equal(kl_penalised_reward(reward, logp, ref, 0.), reward)
    assert torch.equal(kl_penalised_reward(reward, logp, ref, .5, "kl"), kl_penalised_reward(reward, logp, ref, .5))


def test_small_log_ratios_survive_float32():
    ref = torch.full((3,), -2.)
    policy = ref + 2.**-20
    assert torch.equal(kl_penalised_reward(torch.zeros(3), policy, ref, 1.), torch.full((3,), -2.**-20))


def test_at_the_gibbs_tilt_every_answer_earns_the_soft_value():
    reward, ref = normal(5, seed=4), normal(5, seed=5).log_softmax(-1)
    for beta in (.2, 3.):
        best = gibbs_tilt(ref, reward, beta)
        shaped = kl_penalised_reward(reward, best, ref, beta)
        close(shaped, soft_value(reward, beta, ref).expand(5))
        close((best.exp()*reward).sum() - beta*kl_from_logits(best, ref), shaped[0])


@pytest.mark.parametrize("clip", [.1, .2, .5])
def test_clip_against_both_cases_written_out(clip):
    logp, old, A = normal(8, 6).requires_grad_(), normal(8, 6, seed=1), normal(8, 6, seed=2)
    rho = (logp - old).exp()
    cases = torch.where(A >= 0, rho.clamp(max=1 + clip)*A, rho.clamp(min=1 - clip)*A)
    loss = ppo_clip_loss(logp, old, A, clip)
    close(loss, -cases.mean())
    close(torch.autograd.grad(loss, logp)[0], torch.autograd.grad(-cases.mean(), logp)[0])


def test_one_step_of_ppo_is_one_step_of_reinforce():
    logp, A = normal(4, 6).requires_grad_(), normal(4, 6, seed=2)
    close(torch.autograd.grad(ppo_clip_loss(logp, logp, A), logp)[0], torch.autograd.grad(-(A*logp).mean(), logp)[0])


def test_mask_counts_tokens_not_rows():
    logp, old, A = normal(2, 4), normal(2, 4, seed=1), normal(2, 4, seed=2)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    kept = [ppo_clip_loss(logp[i:i+1, j:j+1], old[i:i+1, j:j+1], A[i:i+1, j:j+1]) for i, j in mask.nonzero()]
    close(ppo_clip_loss(logp, old, A, mask=mask), torch.stack(kept).mean())


@pytest.mark.parametrize("call, message", [
    (lambda: rloo_baseline(torch.zeros(3, 1)), r"\(3, 1\)"),
    (lambda: rloo_loss(torch.zeros(3), torch.zeros(3)), r"got \(3,\)"),
    (lambda: rloo_loss(torch.zeros(3, 2), torch.zeros(2, 3)), "shapes differ"),
    (lambda: kl_penalised_reward(torch.zeros(2), torch.zeros(2), torch.zeros(2), float("nan")), "got nan"),
    (lambda: kl_penalised_reward(torch.zeros(2), torch.tensor([0., -torch.inf]), torch.zeros(2), 1.), "got -inf"),
    (lambda: ppo_clip_loss(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2), 0.), "got 0.0"),
    (lambda: ppo_clip_loss(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2)), "shapes differ"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message): call()
