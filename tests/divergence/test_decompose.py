"`divergence.decompose`: the split as a permutation, the chain rule for values, gradients and far logits."
import math
from functools import partial

import pytest
import torch
from draws import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as dist
from torch.testing import assert_close

from kullback.divergence import bernoulli_kl, kl_chain, kl_from_logits, split_target, target_odds

EXACT = dict(rtol=1e-10, atol=1e-11)
draw = partial(normal, scale=2.)


cases = st.tuples(st.integers(1, 5), st.integers(2, 7), st.integers(0, 1000), st.sampled_from([1e-3, 1., 30., 1e3, 1e4]))


def case(B, C, seed, scale):
    y = torch.randint(C, (B,), generator=torch.Generator().manual_seed(seed))
    return draw(B, C, seed=seed, scale=scale), draw(B, C, seed=seed + 1, scale=scale), y


@settings(max_examples=80, deadline=None)
@given(cases)
def test_split_is_a_permutation(c):
    z, _, y = case(*c)
    target, others = split_target(z, y)
    B, C = z.shape
    assert target.shape == (B, 1) and others.shape == (B, C - 1)
    keep = torch.ones(B, C, dtype=torch.bool).scatter_(1, y[:, None], False)
    assert torch.equal(others, z[keep].reshape(B, C - 1)) and torch.equal(target[:, 0], z[~keep])
    ids = torch.arange(C).expand(B, C)
    assert (split_target(ids, y)[1].diff(dim=1) > 0).all()                     # class order is kept
    leaf = z.clone().requires_grad_()
    weights = torch.cat([target, others], 1).detach()
    grad, = torch.autograd.grad((torch.cat(split_target(leaf, y), 1)*weights).sum(), leaf)
    assert torch.equal(grad, z)                                                # every entry goes to one place


@settings(max_examples=80, deadline=None)
@given(cases)
def test_chain_rule(c):
    p, q, y = case(*c)
    binary, weight, rest = kl_chain(p, q, y)
    tol = dict(rtol=1e-9, atol=1e-11*(1 + c[3]))
    assert_close(binary + weight*rest, kl_from_logits(p, q), **tol)
    rows = torch.arange(len(y))
    P, Q = p.softmax(-1), q.softmax(-1)
    others = lambda x: torch.stack([torch.cat([r[:i], r[i+1:]]) for r, i in zip(x, y)])
    assert_close(weight, others(P).sum(-1), rtol=1e-9, atol=1e-300)            # exact even where 1 − p_y rounds to 0
    lp, lq = others(p).log_softmax(-1), others(q).log_softmax(-1)              # torch.distributions says inf at far logits
    assert_close(rest, (lp.exp()*(lp - lq)).sum(-1), **tol)
    if c[3] <= 30:
        coin = lambda x: dist.Bernoulli(logits=x[rows, y] - others(x).logsumexp(-1))   # from probabilities it would clamp
        if min(weight.min(), P[rows, y].min(), (1 - Q[rows, y]).min()) > 1e-6:
            assert_close(binary, dist.kl_divergence(coin(p), coin(q)), rtol=1e-6, atol=1e-8)
    logit = lambda z: target_odds(z, y)[:, 0] - target_odds(z, y)[:, 1]
    assert_close(binary, bernoulli_kl(logit(p), logit(q)), **tol)
    shift = draw(len(y), 1, seed=c[2] + 2)
    for a, b in zip(kl_chain(p + shift, q - shift, y), (binary, weight, rest)): assert_close(a, b, rtol=1e-7, atol=1e-8*(1 + c[3]))


def test_chain_rule_of_gradients():
    p, q, y = draw(4, 6).requires_grad_(), draw(4, 6, seed=1).requires_grad_(), torch.tensor([0, 5, 2, 2])
    binary, weight, rest = kl_chain(p, q, y)
    whole = torch.autograd.grad((binary + weight*rest).sum(), (p, q), retain_graph=True)
    assert_close(whole, torch.autograd.grad(kl_from_logits(p, q).sum(), (p, q)), **EXACT)
    for part in (binary, rest):
        grad, = torch.autograd.grad(part.sum(), q, retain_graph=True)
        assert_close(grad.sum(1), torch.zeros(4).double(), **EXACT)            # each part ignores a common shift
    label = torch.autograd.grad(rest.sum(), q)[0].gather(1, y[:, None])
    assert (label == 0).all()                                                  # "if not, what?" does not see the label's logit


def test_what_each_question_ignores():
    p, q, y = draw(4, 6), draw(4, 6, seed=1), torch.tensor([0, 5, 2, 2])
    lifted = q.scatter_add(1, y[:, None], torch.full((4, 1), 3.).double())     # a surer label
    assert_close(kl_chain(p, lifted, y)[2], kl_chain(p, q, y)[2], **EXACT)
    order = torch.tensor([1, 2, 0, 4, 3])                                      # the others permuted among themselves
    target, others = split_target(q, y)
    shuffled = torch.cat([target, others[:, order]], 1)
    assert_close(target_odds(shuffled, torch.zeros(4, dtype=torch.long)), target_odds(q, y), **EXACT)


def test_excluded_classes():
    "Classes that p excludes, label or not: values and gradients are those of the undivided divergence."
    p = torch.tensor([[0., 1., -math.inf, 2.], [0., 1., -math.inf, 2.]], dtype=torch.float64, requires_grad=True)
    q, y = draw(2, 4).requires_grad_(), torch.tensor([0, 2])
    binary, weight, rest = kl_chain(p, q, y)
    assert_close(binary + weight*rest, kl_from_logits(p, q), **EXACT)
    got = torch.autograd.grad((binary + weight*rest).sum(), (p, q))
    assert_close(got, torch.autograd.grad(kl_from_logits(p, q).sum(), (p, q)), **EXACT)
    assert weight[1] == 1


@pytest.mark.parametrize("bad, message", [
    (lambda: split_target(draw(3), torch.zeros(3, dtype=torch.long)), "logits must be (B, C), got (3,)"),
    (lambda: split_target(draw(3, 1), torch.zeros(3, dtype=torch.long)), "got C = 1"),
    (lambda: split_target(draw(3, 2), torch.tensor([0, 2, 1])), "0..1, got 2"),
    (lambda: split_target(draw(3, 2), torch.tensor([0, -100, 1])), "got -100"),
    (lambda: target_odds(draw(3, 2), torch.zeros(3)), "got torch.float32"),
    (lambda: kl_chain(draw(3, 2), draw(3, 3), torch.zeros(3, dtype=torch.long)), "shapes differ"),
    (lambda: kl_chain(draw(3, 2), draw(3, 2), torch.zeros(2, dtype=torch.long)), "labels must have shape (3,)"),
])
def test_refusals(bad, message):
    with pytest.raises(ValueError) as error: bad()
    assert message in str(error.value)
