"Token weights: three known losses at three ends, gradients by hand, and masks that cannot go wrong quietly."
import pytest
import torch
import torch.nn.functional as F
from draws import normal
from torch.testing import assert_close

from kullback.align import TokenMask, activation_mask, dpo_loss, masked_token_preference_loss, tdpo_loss

B, T = 5, 7


def close(a, b, atol=1e-12): assert_close(a, b, rtol=0, atol=atol)


def bed(seed=0):
    "ρ and κ of both answers, leaves; which tokens stand there."
    rho = [normal(B, T, seed=seed + i).requires_grad_() for i in (0, 1)]
    kappa = [normal(B, T, seed=seed + i).exp().requires_grad_() for i in (2, 3)]
    lengths = torch.tensor([[7, 2, 5, 1, 3], [1, 6, 7, 4, 3]])
    there = [torch.arange(T) < n[:, None] for n in lengths]
    return rho, kappa, there


def grads(loss, leaves): return torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)


def total(x, m): return (x*m).sum(1)


@pytest.mark.parametrize("given", [False, True])
def test_all_ones_is_tdpo1_without_stop_gradient(given):
    rho, kappa, there = bed()
    ones = [torch.ones(B, T).double()]*4 if given else []
    loss, aux = masked_token_preference_loss(*rho, *kappa, *there, *ones, beta=.4, reduction="none")
    u = total(rho[0], there[0]) - total(rho[1], there[1])
    delta = total(kappa[1], there[1]) - total(kappa[0], there[0])
    wanted = torch.log1p(torch.exp(-.4*(u - delta)))
    close(loss, wanted)
    for a, b in zip(grads(loss.sum(), rho + kappa), grads(wanted.sum(), rho + kappa)): close(a, b)
    sums = [total(x, m) for x, m in zip(rho + kappa, there*2)]
    close(loss, tdpo_loss(*sums, .4, variant="tdpo1", reduction="none")[0])
    close(aux["chosen_rewards"] - aux["rejected_rewards"], .4*(u - delta).detach())


def test_no_divergence_is_dpo():
    rho, kappa, there = bed(4)
    none = [torch.zeros(B, T).double()]*2
    loss = masked_token_preference_loss(*rho, *kappa, *there, None, None, *none, beta=.4)[0]
    sums = [total(r, m) for r, m in zip(rho, there)]
    zero = torch.zeros(B).double()
    dpo = dpo_loss(*sums, zero, zero, .4)[0]
    close(loss, dpo)
    for a, b in zip(grads(loss, rho), grads(dpo, rho)): close(a, b)


def test_zero_masks_give_log_two_and_nothing_else():
    rho, kappa, there = bed()
    loss = masked_token_preference_loss(*rho, *kappa, *there, *[torch.zeros(B, T).double()]*4)[0]
    close(loss, torch.tensor(2.).double().log())
    assert all((g == 0).all() for g in grads(loss, rho + kappa))


def test_scale_belongs_to_mask_and_beta_together():
    rho, kappa, there = bed()
    masks = [normal(B, T, seed=20 + i).abs() for i in range(4)]
    one, two = (masked_token_preference_loss(*rho, *kappa, *there, *[c*m for m in masks], beta=.6/c)[0] for c in (1., 7.))
    close(one, two)
    for a, b in zip(grads(one, rho + kappa), grads(two, rho + kappa)): close(a, b)


def test_gradients_of_independent_masks_by_hand():
    rho, kappa, there = bed(8)
    masks = [normal(B, T, seed=30 + i).abs().requires_grad_() for i in range(4)] # reward w, reward l, kl w, kl l
    loss, aux = masked_token_preference_loss(*rho, *kappa, *there, *masks, beta=.2, l1_reward=.03, l1_kl=.07, reduction="sum")
    pull = .2*torch.sigmoid(aux["rejected_rewards"] - aux["chosen_rewards"])[:, None]
    for g, sign, values, lam, m in zip(grads(loss, masks), (-1, 1, -1, 1), rho + kappa, (.03, .03, .07, .07), there*2):
        close(g, ((sign*pull*values + lam)*m).detach(), 1e-10)


def test_penalty_of_a_common_mask_with_halved_weights():
    rho, kappa, there = bed()
    common = [normal(B, T, seed=40 + i).abs() for i in range(2)]
    loss, aux = masked_token_preference_loss(*rho, *kappa, *there, *common, *common, l1_reward=.1/2, l1_kl=.3/2, reduction="none")
    norm = sum((m*s).sum(1) for m, s in zip(common, there))
    close(aux["penalty"], .2*norm)
    free = masked_token_preference_loss(*rho, *kappa, *there, *common, *common, reduction="none")[0]
    close(loss - free, .2*norm)


def test_padding_is_not_read():
    rho, kappa, there = bed()
    masks = [normal(B, T, seed=50 + i).abs() for i in range(4)]
    wanted = masked_token_preference_loss(*rho, *kappa, *there, *masks, l1_reward=1., l1_kl=1.)[0]
    dirty = [x.detach().masked_fill(~m, float("nan")).requires_grad_() for x, m in zip(rho + kappa, there*2)]
    loss = masked_token_preference_loss(*dirty, *there, *[m.masked_fill(~s, -9.) for m, s in zip(masks, there*2)],
                                        l1_reward=1., l1_kl=1.)[0]
    close(loss, wanted)
    assert all(g.isfinite().all() for g in grads(loss, dirty))


def test_answers_may_differ_in_padded_length():
    rho, kappa, there = bed()
    w, l = there[0][:, :7], there[1][:, :7]
    more = [F.pad(x, (0, 3)) for x in (rho[1], kappa[1], l)]
    close(masked_token_preference_loss(rho[0], more[0], kappa[0], more[1], w, more[2])[0],
          masked_token_preference_loss(*rho, *kappa, *there)[0])


def states(L=3, H=6): return [normal(B, T, H, seed=60 + i, scale=1. + i) for i in range(L)]


def test_token_mask_by_hand():
    net = TokenMask(6, 3, generator=torch.Generator().manual_seed(0)).double().eval()
    for p in net.parameters(): p.data = normal(*p.shape, seed=p.numel())
    m, there = net(states()), bed()[2][0]
    h = [F.relu(F.layer_norm(x, (6,), net.norm.weight, net.norm.bias) @ w.weight[0] + w.bias) for x, w in zip(states(), net.layers)]
    close(m, F.relu(sum(a*x for a, x in zip(net.mixer.weight[0], h))))
    assert torch.equal(net(states(), there), m*there) and m.shape == (B, T)


@pytest.mark.parametrize("init", ["positive", "hf"])
def test_start_is_the_generators(init):
    one, two = (TokenMask(6, 3, 0., init, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert (one([torch.zeros(B, T, 6)]*3) == 0).all() # no feature and zero biases
    assert (one([s.float() for s in states()]) >= 0).all()


def test_positive_start_is_alive():
    for seed in range(50):
        m = TokenMask(6, 3, 0., generator=torch.Generator().manual_seed(seed)).double()(states())
        assert (m > 0).double().mean() > .5


def test_a_dead_mask_moves_nothing():
    rho, kappa, there = bed()
    net = TokenMask(6, 3, 0.).double()
    torch.nn.init.constant_(net.mixer.weight, -1.)
    m = net(states())
    loss = masked_token_preference_loss(*rho, *kappa, *there, m, m, m, m)[0]
    assert all((g == 0).all() for g in grads(loss, [*rho, *kappa, *net.parameters()]))
    assert TokenMask.sparsity(m, there[0]) == 1


def test_sparsity_counts_scored_tokens_only():
    m = torch.tensor([[0., 1., 0.], [2., 0., 0.]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]]).bool()
    assert TokenMask.sparsity(m, mask) == .5


def test_activation_mask_has_its_ends_in_every_answer():
    x, there = normal(B, T, 6), bed()[2][0]
    one = activation_mask([x], there)
    assert one.min() == 0 and one.max() == 1 and (one[~there] == 0).all()
    for row, m in zip(one, there):
        assert (row[m] == 1).sum() == 1 and (row[m] == 0).sum() == (m.sum() > 1)
    for scale, shift in ((2., 5.), (.01, -3.)): close(activation_mask([scale*x + shift], there), one)


def test_activation_mask_against_z_normalisation_row_by_row():
    x, there = [normal(B, T, 6, seed=s) for s in range(3)], bed()[2][1]
    there[0, 1] = True # two tokens at least, or the standard deviation does not exist
    maps = torch.zeros(3, B, T).double()
    for l in range(3):
        for b in range(B):
            row = x[l][b, there[b]].mean(-1)
            z = (row - row.mean())/(row.std() + 1e-12)
            maps[l, b, there[b]] = (z - z.min())/(z.max() - z.min())
    close(activation_mask(x, there), maps.mean(0))


def test_activation_mask_ignores_padding_precision_and_flat_layers():
    x, there = normal(B, T, 6), bed()[2][0]
    one = activation_mask([x], there)
    longer = activation_mask([F.pad(x, (0, 0, 0, 4), value=99.)], F.pad(there, (0, 4)))
    assert torch.equal(longer[:, :T], one) and (longer[:, T:] == 0).all()
    assert torch.equal(activation_mask([torch.full((B, T, 6), 3.)], there), there.float())
    assert activation_mask([x.half()], there).dtype == torch.float32
    assert activation_mask([x], there & False).isfinite().all()


@pytest.mark.parametrize("call, message", [
    (lambda a: masked_token_preference_loss(*a, beta=0.), "beta must be positive, got 0.0"),
    (lambda a: masked_token_preference_loss(*a, l1_reward=-.1), "got -0.1"),
    (lambda a: masked_token_preference_loss(*a, l1_reward=.1), "no chosen_reward_mask"),
    (lambda a: masked_token_preference_loss(*a, -torch.ones(B, T).double()), "chosen_reward_mask must not be negative, got -1"),
    (lambda a: masked_token_preference_loss(*a, torch.ones(B).double()), "chosen_reward_mask"),
    (lambda a: masked_token_preference_loss(a[0][:, :3], *a[1:]), "shapes differ: chosen_logratio"),
    (lambda a: masked_token_preference_loss(*a[:4], a[4].long(), a[5]), "bool, got"),
    (lambda a: masked_token_preference_loss(a[0][:2], a[1], a[2][:2], a[3], a[4][:2], a[5]), "2 chosen answers for 5"),
    (lambda a: masked_token_preference_loss(*a[:4], a[4] & False, a[5] & False), "no token to score"),
    (lambda a: masked_token_preference_loss(*a, reduction="sums"), "'sums'"),
    (lambda a: TokenMask(4, 2, init="zeros"), "got 'zeros'"),
    (lambda a: TokenMask(4, 2)([a[0]]), "2 layers, got 1"),
    (lambda a: TokenMask.sparsity(a[0], a[4] & False), "excludes every token"),
    (lambda a: activation_mask([], a[4]), "empty"),
    (lambda a: activation_mask([torch.ones(B, T + 1, 2)], a[4]), "shapes differ"),
    (lambda a: activation_mask([torch.ones(B, T, 2)], a[4].float()), "bool, got"),
])
def test_refusals(call, message):
    rho, kappa, there = bed()
    with pytest.raises(ValueError, match=message): call((*rho, *kappa, *there))
