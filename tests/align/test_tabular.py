"`align.tabular`: facts that the page would be bored by."
import itertools
import math

import pytest
import torch
from draws import normal
from torch.testing import assert_close

from kullback.align import TabularPolicy, enumerate_texts, prefix_logits, text_logps, token_values
from kullback.divergence import gibbs_tilt, kl_from_logits
from kullback.language import sample, sequence_logps

EXACT = dict(rtol=0, atol=1e-12)
SIZES = [(2, 1), (2, 5), (3, 3), (5, 2), (7, 1)]


def generator(seed=0): return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("V, T", SIZES)
def test_texts_are_a_product(V, T):
    assert enumerate_texts(V, T).tolist() == [list(t) for t in itertools.product(range(V), repeat=T)]


@pytest.mark.parametrize("V, T", SIZES)
def test_log_probabilities_by_walking(V, T):
    policy = TabularPolicy(V, T, 2., generator=generator())
    rows, want = policy.logits.detach().log_softmax(-1), []
    for text in itertools.product(range(V), repeat=T):
        row, total = 0, 0.
        for x in text: total, row = total + rows[row, x].item(), V*row + 1 + x
        want.append(total)
    assert_close(policy.logp().detach(), torch.tensor(want, dtype=torch.float64), **EXACT)
    ids = torch.cat([torch.full((V**T, 1), V + 3), enumerate_texts(V, T)], 1)          # any start sign
    labels = ids.masked_fill(torch.arange(T + 1) == 0, -100)
    assert_close(sequence_logps(policy(ids), labels), policy.logp(), **EXACT)


@pytest.mark.parametrize("V, T", SIZES)
def test_every_distribution_is_a_policy(V, T):
    weights = 3*normal(V**T)
    policy = TabularPolicy.from_logp(weights, V)
    assert (policy.vocab, policy.length) == (V, T)
    assert_close(policy.logp().detach(), weights.log_softmax(-1), **EXACT)
    assert_close(text_logps(prefix_logits(weights, V), T), weights.log_softmax(-1), **EXACT)


def test_a_text_that_cannot_be():
    weights = torch.full((9,), -torch.inf, dtype=torch.float64)
    weights[[1, 5]] = 0.
    logp = text_logps(prefix_logits(weights, 3), 2)
    assert_close(logp[[1, 5]].exp(), torch.tensor([.5, .5], dtype=torch.float64), **EXACT)


def test_values_by_enumeration():
    V, T, beta = 3, 3, .4
    ref, r = TabularPolicy(V, T, generator=generator()), normal(V**T)
    pi0 = ref.logp().detach().exp()
    mean, soft = token_values(ref.logits.detach(), r), token_values(ref.logits.detach(), r, beta)
    texts, row = enumerate_texts(V, T).tolist(), 0
    for t in range(T):
        for prefix in itertools.product(range(V), repeat=t):
            for z in range(V):
                mine = torch.tensor([text[:t + 1] == [*prefix, z] for text in texts])
                w = pi0[mine]/pi0[mine].sum()
                assert_close(mean[row, z], (w*r[mine]).sum(), **EXACT)
                assert_close(soft[row, z], beta*(w*(r[mine]/beta).exp()).sum().log(), **EXACT)
            row += 1


def test_the_optimum_spends_what_it_says():
    "J(π*) = β log Z, and log π*/π0 is r/β − log Z on every text."
    ref, r, beta = TabularPolicy(4, 2, generator=generator()), normal(16), .3
    ref_logp = ref.logp().detach()
    best, logZ = gibbs_tilt(ref_logp, r, beta), (ref_logp + r/beta).logsumexp(-1)
    assert_close(best - ref_logp, r/beta - logZ, **EXACT)
    assert_close((best.exp()*r).sum() - beta*kl_from_logits(best, ref_logp), beta*logZ, **EXACT)
    tokens = ref.logits.detach() + token_values(ref.logits.detach(), r, beta)/beta
    assert_close(text_logps(tokens, 2), best, **EXACT)


def test_it_is_a_model_like_others():
    policy = TabularPolicy(3, 3, generator=generator())
    ids = torch.tensor([[0, 2, 1, 0]])
    whole = policy(ids)
    assert whole.shape == (1, 4, 3) and (whole[:, 3] == 0).all()
    for t in range(1, 5): assert torch.equal(policy(ids[:, :t]), whole[:, :t])          # causal
    tokens, mask = sample(policy, torch.zeros(5, 1, dtype=torch.long), 3, generator=generator(1))
    assert tokens.shape == (5, 4) and mask.sum() == 15
    twin = TabularPolicy(3, 3)
    twin.load_state_dict(policy.state_dict())
    assert torch.equal(twin.logp(), policy.logp())


def test_gradients_reach_the_rows_that_were_used():
    policy = TabularPolicy(3, 2, generator=generator())
    policy(torch.tensor([[0, 2]]))[:, 1].sum().backward()
    assert policy.logits.grad.abs().sum(-1).nonzero().flatten().tolist() == [3]         # the prefix (2,)
    assert torch.autograd.gradcheck(lambda z: text_logps(z, 2), (policy.logits,))


def test_size_is_refused_before_anything_is_built():
    for V, T in ((1, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"vocab {V}, length {T}"): TabularPolicy(V, T)
    assert len(TabularPolicy(10, 4).logits) == 1111 and math.prod(TabularPolicy(10, 4).logp().shape) == 10**4
