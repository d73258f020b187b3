"MCMI: the surrogate by hand and under vmap, its limits, and what the tracker keeps."
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from draws import labelled
from draws import normal as draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from kullback.distill import CentroidTracker, cmi_surrogate, mcmi_loss
from kullback.divergence import class_means, conditional_mutual_information

EXACT = dict(rtol=0, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(K=st.integers(2, 6), seed=st.integers(0, 1000), lam=st.sampled_from([0., .15, 2.]), scale=st.sampled_from([.1, 2., 8.]))
def test_by_hand(K, seed, lam, scale):
    "Loops over examples and classes; own centroids give the information, and no others give less."
    z, y, Q = draw(30, K, seed=seed, scale=scale), labelled(30, K, seed), draw(K, K, seed=seed + 1).softmax(-1)
    P = z.softmax(-1)
    spread = sum(sum(P[n, k]*(P[n, k]/Q[y[n], k]).log() for k in range(K)) for n in range(30))/30
    hits = sum(-P[n, y[n]].log() for n in range(30))/30
    assert_close(cmi_surrogate(z, y, Q), spread, **EXACT)
    assert_close(mcmi_loss(z, y, Q, lam), hits - lam*spread, **EXACT)
    I = conditional_mutual_information(P, y)
    assert_close(cmi_surrogate(z, y, class_means(P, y, K)), I, **EXACT)
    assert cmi_surrogate(z, y, Q) >= I - 1e-12


def test_gradient_of_the_loss():
    z, y, Q = draw(60, 4, scale=2.).requires_grad_(), labelled(), draw(4, 4, seed=2).softmax(-1).requires_grad_()
    mcmi_loss(z, y, Q, .3).backward()
    P = z.detach().softmax(-1)
    logratio = (P/Q.detach()[y]).log()
    spread = P*(logratio - (P*logratio).sum(-1, keepdim=True))
    assert_close(z.grad, (P - F.one_hot(y, 4) - .3*spread)/60, **EXACT)
    assert Q.grad is None
    assert torch.autograd.gradcheck(lambda z: mcmi_loss(z, y[:6], Q, .3), draw(6, 4, seed=5).requires_grad_())


def test_an_empty_centroid_entry_costs_the_floor():
    sure, y = torch.tensor([[0., 200., 0.]]), torch.tensor([0])
    one_hot = torch.eye(3)
    assert_close(cmi_surrogate(sure, y, one_hot).item(), -math.log(1e-12), rtol=1e-6, atol=0)
    assert_close(cmi_surrogate(sure, y, one_hot, eps=1e-3).item(), math.log(1.002/1e-3), rtol=1e-6, atol=0)
    leaf = (1e3*torch.randn(9, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    mcmi_loss(leaf, torch.arange(9) % 3, one_hot).backward()
    assert leaf.grad.isfinite().all()


def test_a_stack_of_teachers_under_vmap():
    z, Q = draw(3, 20, 4), draw(3, 4, 4, seed=1).softmax(-1)
    y = torch.stack([labelled(20, 4, s) for s in range(3)])
    stacked = torch.vmap(partial(mcmi_loss, lam=.4))(z, y, Q)
    assert_close(stacked, torch.stack([mcmi_loss(*row, .4) for row in zip(z, y, Q)]), **EXACT)


class Tally(nn.Module):
    "BatchNorm and dropout: statistics that training would move."
    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(3), nn.Dropout(.5), nn.Linear(3, 4)

    def forward(self, x): return self.head(self.drop(self.norm(x)))


def test_fit_leaves_the_model_alone():
    model, x, y = Tally().double(), draw(60, 3, scale=3.), labelled()
    model.drop.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    tracker = CentroidTracker(4).double()
    tracker.fit(model, list(zip(x.split(7), y.split(7))))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and model.norm.training and not model.drop.training
    P = model.eval()(x).detach().softmax(-1)
    assert_close(tracker.centroids, class_means(P, y, 4), **EXACT)
    model.train()
    with pytest.raises(ValueError, match="got 4"): tracker.fit(model, [(x, y + 1)])
    assert model.training                                             # also after a refusal
    tracker.fit(lambda x: x, [(draw(60, 4), y)])                      # a function is a model too
    assert_close(tracker.centroids, class_means(draw(60, 4).softmax(-1), y, 4), **EXACT)


def test_fit_forgets_and_rejects_nothing_half_way():
    tracker = CentroidTracker(4).double()
    tracker.update(torch.eye(4).double(), torch.arange(4))
    with pytest.raises(ValueError, match="class 3 has no example"):
        tracker.fit(lambda x: x, [(draw(3, 4), torch.arange(3))])
    assert torch.equal(tracker.centroids, torch.eye(4).double())
    with pytest.raises(ValueError, match="class 0 has no example"): tracker.fit(lambda x: x, [])


@settings(max_examples=40, deadline=None)
@given(momentum=st.floats(0, 1), seed=st.integers(0, 1000))
def test_updates_by_hand(momentum, seed):
    tracker, kept = CentroidTracker(4, momentum).double(), {}
    for step in range(4):
        y = torch.randint(0, 4, (5,), generator=torch.Generator().manual_seed(seed + step))
        P = draw(5, 4, seed=seed + step).softmax(-1)
        tracker.update(P, y)
        for c in y.unique().tolist():
            mean = P[y == c].mean(0)
            kept[c] = momentum*kept[c] + (1 - momentum)*mean if c in kept else mean
    for c, row in kept.items(): assert_close(tracker.get(torch.tensor([c]))[0], row, rtol=0, atol=1e-7)  # momentum is float32
    assert tracker.known.tolist() == [c in kept for c in range(4)]
    assert_close(tracker.centroids.sum(1), torch.ones(4).double(), **EXACT)


def test_state_survives():
    tracker, twin = CentroidTracker(4, .9), CentroidTracker(4, .9)
    tracker.update(draw(9, 4).float().softmax(-1), torch.arange(9) % 3)
    twin.load_state_dict(tracker.state_dict())
    for t in (tracker, twin): t.update(draw(9, 4, seed=1).float().softmax(-1), torch.arange(9) % 4)
    assert torch.equal(twin.centroids, tracker.centroids) and twin.known.all()
    assert not list(tracker.parameters())


@pytest.mark.parametrize("call, said", [
    (lambda: cmi_surrogate(draw(3, 4), torch.arange(3), torch.eye(5)), r"got \(3, 4\), \(5, 5\)"),
    (lambda: cmi_surrogate(draw(3, 4), torch.tensor([0, 1, 4]), torch.eye(4)), "got 4"),
    (lambda: cmi_surrogate(draw(3, 4), torch.arange(3), torch.eye(4), eps=0.), "eps must be positive, got 0"),
    (lambda: mcmi_loss(draw(3, 4), torch.arange(3), torch.eye(4), math.nan), "got nan"),
    (lambda: mcmi_loss(draw(3, 4), torch.arange(3), torch.eye(4) - .5), "got an entry"),
    (lambda: CentroidTracker(4).update(2*torch.eye(4), torch.arange(4)), "row that sums to 2"),
    (lambda: CentroidTracker(4).get(torch.tensor([1])), "class 1 was seen"),
    (lambda: CentroidTracker(0), "got 0"), (lambda: CentroidTracker(3, -.1), "got -0.1")])
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said): call()
