"`trace.bkt`: the filter by paths, its gradient, simulated learners by their closed forms."
import itertools

import pytest
import torch
from torch.testing import assert_close

from kullback.trace import (
    BKT,
    bkt_curve,
    learning_curve,
    next_step_loss,
    pad_sequences,
    simulate_bkt,
    simulate_irt,
)


def drawn(K=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    net = BKT(K).double()
    with torch.no_grad():
        for p in net.parameters(): p.copy_(torch.randn(K, generator=g, dtype=torch.float64))
    return net


def test_likelihood_of_a_learner_by_paths():
    "Product of the predictions = P(answers 2..n | answer 1), by enumeration."
    net = drawn(1)
    L, learn, guess, slip = (v.item() for v in net.rates())
    def joint(answers):
        total = 0.
        for path in itertools.product((0, 1), repeat=len(answers)):
            p = L if path[0] else 1 - L
            for u, v in itertools.pairwise(path): p *= float(v) if u else (learn if v else 1 - learn)
            for u, a in zip(path, answers):
                right = 1 - slip if u else guess
                p *= right if a else 1 - right
            total += p
        return total
    for answers in itertools.product((0, 1), repeat=5):
        b = pad_sequences([([0]*5, list(answers))])
        nll = next_step_loss(net(*b[:3], b.mask), b.next_responses, b.mask)*4
        assert_close((-nll).exp().item(), joint(answers)/joint(answers[:1]), rtol=1e-10, atol=0)


def test_gradient():
    net = drawn(3)
    c, r, q = torch.randint(3, (2, 6)), torch.randint(2, (2, 6)), torch.randint(3, (2, 6))
    names = [n for n, _ in net.named_parameters()]
    call = lambda *p: torch.func.functional_call(net, dict(zip(names, p)), (c, r, q))
    assert torch.autograd.gradcheck(call, tuple(p.detach().clone().requires_grad_() for p in net.parameters()))


def test_untouched_concepts_stay_where_they_were():
    net = drawn(3)
    prior, _, guess, slip = net.rates()
    z = net(torch.zeros(1, 4).long(), torch.ones(1, 4).long(), torch.full((1, 4), 2)).sigmoid()
    assert_close(z, (prior*(1 - slip) + (1 - prior)*guess)[2].expand(1, 4))


def test_padding_and_future_do_not_matter():
    net = drawn(3)
    g = torch.Generator().manual_seed(1)
    c, q = torch.randint(3, (2, 4, 7), generator=g)
    r, m = torch.randint(2, (4, 7), generator=g), torch.arange(7) < 5
    z = net(c, r, q, m.expand(4, 7))
    other = net(c.masked_fill(~m, -1), r.masked_fill(~m, 9), q.masked_fill(~m, 77), m.expand(4, 7))
    assert torch.equal(z[:, :5], other[:, :5])
    assert_close(net(c[:, :3], r[:, :3], q[:, :3]), z[:, :3], rtol=0, atol=1e-12)


def test_simulated_rates():
    g = torch.Generator().manual_seed(0)
    rates = [torch.tensor([v]) for v in (.3, .2, .25, .1)]
    asked = torch.zeros(40000, 5).long()
    share, count = learning_curve(asked, simulate_bkt(asked, *rates, generator=g), asked == 0, 5)
    assert_close(share, bkt_curve(*rates, 5)[0], rtol=0, atol=.012)
    answers, p = simulate_irt(asked, torch.zeros(40000), torch.tensor([.5]), .7, g)
    assert_close(p[0, 3]/(1 - p[0, 3]), torch.tensor(4**.7)*torch.tensor(-.5).exp())
    assert_close(answers.float().mean(0), p[0], rtol=0, atol=.012)
    with pytest.raises(ValueError, match=r"ability must be \(40000,\), got \(3,\)"): simulate_irt(asked, torch.zeros(3), torch.zeros(1))


def test_curve_counts_only_those_who_stay():
    c = torch.zeros(3, 4).long()
    r = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    m = torch.arange(4) < torch.tensor([[2], [3], [4]])
    share, count = learning_curve(c, r, m, 4)
    assert count.tolist() == [3, 3, 2, 1] and share.tolist() == [pytest.approx(1/3), pytest.approx(1/3), .5, 1.]
    share, count = learning_curve(c, r, m, 3, stay=True)
    assert count.tolist() == [2, 2, 2] and share.tolist() == [0, 0, .5]
