"`distill.uskd`: stored values, PyTorch's label smoothing, loops, limits."
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kullback.distill import USKDLoss, uskd_target, zipf_labels

EXACT = dict(rtol=0, atol=1e-12)
# inputs by formula; values by a script that follows the equations with Python loops in float64 (no torch)
STUDENT = torch.tensor([[3*math.sin(1 + 7*b + 3*c) for c in range(6)] for b in range(4)], dtype=torch.float64)
MID = torch.tensor([[math.cos(1 + b + 2*d) for d in range(3)] for b in range(4)], dtype=torch.float64)
LABELS = torch.tensor([1, 5, 0, 3])
STORED = {"paper": (4.24744636751321, 2.53514234989749, 0.0110218604254756, 4.51198246292844),
          "code": (4.24744636751321, 1.86432133552781, 0.0110218604254756, 4.44490036149147)}


def uskd(**kwargs):
    loss = USKDLoss(3, 6, **kwargs).double()
    with torch.no_grad():
        loss.weak_head.weight.copy_(torch.tensor([[math.sin(2 + 3*c + d) for d in range(3)] for c in range(6)],
                                                 dtype=torch.float64))
        loss.weak_head.bias.copy_(.1*torch.arange(6, dtype=torch.float64))
    return loss


@pytest.mark.parametrize("form", ["paper", "code"])
def test_stored_values(form):
    total, parts = uskd(rank_score=form)(MID, STUDENT, LABELS)
    got = torch.stack([parts["target"], parts["nontarget"], parts["weak"], total])
    assert_close(got, torch.tensor(STORED[form], dtype=torch.float64), rtol=1e-13, atol=0)
    P = torch.tensor([0.9908056513281, 0.990789083816796, 1.02657958296752, 0.991825681887587], dtype=torch.float64)
    assert_close(uskd_target(STUDENT, LABELS), P, **EXACT)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 40))
def test_zipf_by_a_loop(seed, B, C):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(5 if seed % 2 else 10**6, (B, C), generator=g).double()      # half of them full of ties
    y = torch.randint(C, (B,), generator=g)
    got = zipf_labels(scores, y)
    for b in range(B):
        queue = sorted(range(C), key=lambda c: (-scores[b, c].item(), c))
        weight = [0. if c == y[b] else 1/(queue.index(c) + 1) for c in range(C)]
        assert_close(got[b], torch.tensor(weight, dtype=torch.float64)/sum(weight), **EXACT)
    assert torch.equal(zipf_labels(3*scores - 50, y), got)          # only the order counts


def test_zipf_label_on_top_and_infinite_scores():
    for C in (2, 5, 100):
        scores = torch.arange(C).double()[None]
        z = zipf_labels(scores, torch.tensor([C - 1]))
        assert_close(z.max(), torch.tensor(.5/(sum(1/r for r in range(1, C + 1)) - 1), dtype=torch.float64), **EXACT)
        scores[0, -1] = math.inf
        assert torch.equal(zipf_labels(scores, torch.tensor([C - 1])), z)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(2, 9))
def test_target_averages_one(seed, B, C):
    g = torch.Generator().manual_seed(seed)
    s, y = (5*torch.randn(B, C, generator=g, dtype=torch.float64)).requires_grad_(), torch.randint(C, (B,), generator=g)
    P = uskd_target(s, y)
    assert_close(P.mean(), torch.ones((), dtype=torch.float64), **EXACT)
    assert (P > 0).all() and (P < 2).all() and not P.requires_grad
    assert_close(uskd_target(s, y, .3), P - .7, **EXACT)


def test_weak_head_alone_is_label_smoothing():
    loss = uskd(alpha=0., beta=0., mu=.3)
    want = .3*F.cross_entropy(loss.weak_head(MID), LABELS, label_smoothing=.1)
    assert_close(loss(MID, STUDENT, LABELS)[0], want, **EXACT)


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("first, second", [(.7, .3), (1., 0.)])
def test_mixtures(form, first, second):
    "A share of 0 is no label in the paper's form; in the code's its class, the first of the zeros, leaves the rest."
    loss = uskd(rank_score=form)
    other = torch.tensor([2, 4, 3, 0]) if second else torch.tensor([0, 0, 1, 0])
    shares = first*F.one_hot(LABELS, 6).double() + second*F.one_hot(other, 6).double()
    parts = loss(MID, STUDENT, shares)[1]
    S, W, rows = STUDENT.softmax(-1), loss.weak_head(MID).softmax(-1).detach(), torch.arange(4)
    target, nontarget = 0., 0.
    for share, y in ((first, LABELS), (second, other))[:2 if second else 1]:
        square = S[rows, y]**2
        target = target - ((share + square - square.mean())*S[rows, y].log()).mean()
    for b in range(4):
        gone = (LABELS[b].item(), other[b].item())[:1 if form == "paper" and not second else 2]
        w, s, ls = W[b], S[b], S[b].log()
        R = (w/(1 - w[gone, ].sum()) + s/(1 - s[gone, ].sum()) if form == "paper" else
             w/(1 - w[gone, ].sum() + 1e-6) + ls/(1 - ls[gone, ].sum() + 1e-6))
        queue = R.argsort(descending=True).tolist()
        keep = [c for c in range(6) if c not in gone]
        z = torch.tensor([1/(queue.index(c) + 1) for c in keep], dtype=torch.float64)
        nontarget = nontarget - (z/z.sum()*STUDENT[b, keep].log_softmax(-1)).sum()/4
    assert_close(parts["target"], target, **EXACT)
    assert_close(parts["nontarget"], nontarget, **EXACT)
    weak = loss.mu*F.cross_entropy(loss.weak_head(MID), shares, label_smoothing=.1)
    assert_close(parts["weak"], weak, **EXACT)


def test_gradients():
    loss = uskd()
    mid, s = MID.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    total, parts = loss(mid, s, LABELS)
    grad = lambda part, x: torch.autograd.grad(part, x, retain_graph=True, materialize_grads=True)[0]
    weak = loss.mu*F.cross_entropy(loss.weak_head(mid), LABELS, label_smoothing=.1)
    assert_close(grad(total, mid), grad(weak, mid), **EXACT)        # the ranking sends nothing back
    P = uskd_target(s, LABELS)
    assert_close(grad(parts["target"], s), P[:, None]*(s.softmax(-1) - F.one_hot(LABELS, 6)).detach()/4, **EXACT)
    assert (grad(parts["nontarget"], s)[torch.arange(4), LABELS] == 0).all()


def test_confident_students_stay_finite():
    sure = (200*F.one_hot(LABELS, 6)).float().requires_grad_()
    for form in ("paper", "code"):
        total, _ = USKDLoss(3, 6, rank_score=form)(MID.float(), sure, LABELS)
        total.backward()
        assert total.isfinite() and sure.grad.isfinite().all()


def test_a_sure_weak_head_is_heard_in_the_paper_and_mute_in_the_code():
    "1 − W_y is far below the code's 1e-6: its ranking is the student's, while Eq. 3 keeps the weak head's opinion."
    student = torch.tensor([[3., .5, .4, .3, .2, .1]], dtype=torch.float64)
    label = torch.tensor([0])
    own = F.cross_entropy(student[:, 1:], zipf_labels(student, label)[:, 1:])
    for form in ("paper", "code"):
        loss = uskd(rank_score=form)
        with torch.no_grad():
            loss.weak_head.weight.zero_()
            loss.weak_head.bias.copy_(torch.tensor([30., 0, 1, 2, 3, 4]))
        nontarget = loss(MID[:1], student, label)[1]["nontarget"]
        assert (nontarget - own).abs() < 1e-12 if form == "code" else nontarget - own > .05


def test_state_is_the_weak_head():
    assert set(USKDLoss(3, 6).state_dict()) == {"weak_head.weight", "weak_head.bias"}


def test_refusals():
    loss = uskd()
    for call, said in [
        (lambda: USKDLoss(3, 6, rank_score="own"), "'own'"),
        (lambda: loss(MID, STUDENT[:, :5], LABELS % 5), "shapes differ"),
        (lambda: loss(MID, STUDENT, LABELS + 1), "0..5, got 6"),
        (lambda: loss(MID, STUDENT, LABELS[:3]), "B = 4"),
        (lambda: loss(MID, STUDENT, 3*torch.ones(4, 6)), "got 3.0"),
        (lambda: loss(MID, STUDENT, torch.ones(4, 5)), "shapes differ"),
        (lambda: zipf_labels(STUDENT, LABELS.double()), "float64"),
        (lambda: zipf_labels(STUDENT.masked_fill(STUDENT > 1, math.nan), LABELS), "nan"),
        (lambda: zipf_labels(STUDENT[:, :1], 0*LABELS), "leave none"),
        (lambda: uskd_target(STUDENT[0], LABELS), r"\(B, C\)"),
    ]:
        with pytest.raises(ValueError, match=said): call()
