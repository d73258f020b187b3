"`distill.split`: stored values, identities on random logits, limits."
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kullback.distill import dkd_loss, kd_loss, nkd_loss

EXACT = dict(rtol=1e-13, atol=0)
# logits by formula; values by a script that follows the equations with Python loops in float64 (no torch)
STUDENT = torch.tensor([[3*math.sin(1 + 7*b + 3*c) for c in range(6)] for b in range(4)], dtype=torch.float64)
TEACHER = torch.tensor([[4*math.cos(2 + 5*b + 2*c) for c in range(6)] for b in range(4)], dtype=torch.float64)
LABELS = torch.tensor([1, 5, 0, 3])


def stored(*values): return torch.tensor(values, dtype=torch.float64)


def masked(logits, labels):
    "The other classes' distribution, by masking instead of gathering."
    return logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -math.inf).softmax(-1)


def draw(seed, B, C):
    g = torch.Generator().manual_seed(seed)
    s, t = 3*torch.randn(2, B, C, generator=g, dtype=torch.float64)
    return s, t, torch.randint(C, (B,), generator=g)


def test_stored_values():
    none = dict(reduction="none")
    assert_close(nkd_loss(STUDENT, TEACHER, LABELS, **none),
                 stored(3.46488976906082, 7.17859974096658, 8.04022263741343, 2.40260255760599), **EXACT)
    assert_close(nkd_loss(STUDENT, TEACHER, LABELS, 3., 3.5, **none),
                 stored(55.5722267010364, 65.8299139682884, 66.0861925186596, 49.1599770381315), **EXACT)
    assert_close(dkd_loss(STUDENT, TEACHER, LABELS, **none),
                 stored(40.2091946993708, 63.6253484433449, 56.873483173889, 23.6930233597197), **EXACT)


cases = settings(deadline=None, max_examples=60)
sizes = (st.integers(0, 10**6), st.integers(1, 7), st.integers(2, 9), st.floats(.5, 6))


@cases
@given(*sizes)
def test_nkd_by_masking(seed, B, C, lam):
    s, t, y = draw(seed, B, C)
    rows = torch.arange(B)
    n_t, n_s = masked(t/lam, y), masked(s/lam, y)
    rest = -(n_t*n_s.log().nan_to_num(neginf=0.)).sum(-1)
    want = -t.softmax(-1)[rows, y]*s.log_softmax(-1)[rows, y] + 1.7*lam**2*rest
    assert_close(nkd_loss(s, t, y, lam, 1.7, "none"), want, rtol=1e-9, atol=1e-10)


@cases
@given(*sizes)
def test_the_three_relations(seed, B, C, lam):
    s, t, y = draw(seed, B, C)
    close, rows = dict(rtol=1e-9, atol=1e-10), torch.arange(B)
    none = dict(reduction="none")
    non_target = nkd_loss(s, t, y, lam, 2., **none) - nkd_loss(s, t, y, lam, 0., **none)
    n_t = masked(t/lam, y)
    entropy = 2*lam**2*torch.special.entr(n_t).sum(-1)
    assert_close(dkd_loss(s, t, y, 0., 2., lam, **none), non_target - entropy, **close)      # DKD beside NKD
    doubt = 1 - (t/lam).softmax(-1)[rows, y]
    parts = [dkd_loss(s, t, y, a, b, lam, **none) for a, b in [(1., 0.), (0., 1.)]]
    assert_close(parts[0] + doubt*parts[1], kd_loss(s, t, lam, reduction="none"), **close)   # KD is DKD with β = doubt
    same = nkd_loss(t, t, y, lam, 2., **none) - nkd_loss(t, t, y, lam, 0., **none)
    assert_close(same, entropy, **close)
    assert (non_target >= same - 1e-9).all()                       # Gibbs: nobody beats the teacher


def test_two_classes_have_no_rest():
    s, t, y = draw(3, 50, 2)
    for gamma in (0., 1., 1e6):
        loss = nkd_loss(s, t, y, 2., gamma, "none")
        assert_close(loss, -t.softmax(-1)[torch.arange(50), y]*s.log_softmax(-1)[torch.arange(50), y], rtol=0, atol=1e-12)


def test_a_certain_teacher_gives_cross_entropy_and_an_opinion():
    s, t, y = draw(5, 20, 8)
    sure = t + 500*F.one_hot(y, 8)
    assert_close(nkd_loss(s, sure, y, gamma=0.), F.cross_entropy(s, y), rtol=1e-12, atol=0)
    assert_close(kd_loss(s, sure, 1., kind="ce"), F.cross_entropy(s, y), rtol=1e-12, atol=0)
    opinion = lambda teacher: nkd_loss(s, teacher, y) - nkd_loss(s, teacher, y, gamma=0.)
    assert_close(opinion(sure), opinion(t), rtol=1e-10, atol=0)     # still heard
    assert opinion(t) > 1


def test_gradients():
    s, t, y = draw(7, 5, 6)
    for f in (lambda s: nkd_loss(s, t, y, 2.), lambda s: dkd_loss(s, t, y, temperature=2.)):
        assert torch.autograd.gradcheck(f, (s.clone().requires_grad_(),))
    leaf = s.clone().requires_grad_()
    one = F.one_hot(y, 6).bool()
    rest, = torch.autograd.grad(nkd_loss(leaf, t, y, 2., 1.) - nkd_loss(leaf, t, y, 2., 0.), leaf)
    assert (rest[one] == 0).all()
    assert_close(rest, 2/5*(masked(s/2, y) - masked(t/2, y)), rtol=0, atol=1e-10)
    teacher = t.clone().requires_grad_()
    assert not nkd_loss(s, teacher, y).requires_grad and not dkd_loss(s, teacher, y).requires_grad


def test_vmap_over_seeds_equals_a_loop():
    s, t, y = draw(9, 12, 5)
    s, t, y = s.view(3, 4, 5), t.view(3, 4, 5), y.view(3, 4)
    for f in (nkd_loss, dkd_loss):
        assert_close(torch.vmap(f)(s, t, y), torch.stack([f(*one) for one in zip(s, t, y)]), rtol=0, atol=1e-12)


def test_label_scores_count_by_their_largest():
    s, t, y = draw(11, 6, 5)
    scores = .6*F.one_hot(y, 5) + .4*F.one_hot((y + 1) % 5, 5)
    assert nkd_loss(s, t, scores, 2.) == nkd_loss(s, t, y, 2.)


@pytest.mark.parametrize("f", [nkd_loss, dkd_loss])
def test_refusals(f):
    s, t, y = draw(13, 4, 5)
    for args, kwargs, said in [((s, t[:, :4], y), {}, "shapes differ"), ((s, t, y + 1 - y.min() + 4), {}, "0..4"),
                               ((s, t, -1 - y), {}, "0..4"), ((s[:, :1], t[:, :1], 0*y), {}, "two classes"),
                               ((s, t, y), dict(temperature=0.), "got 0"), ((s, t, y.double()), {}, "float64"),
                               ((s, t, y[:3]), {}, r"\(4,\)"), ((s, t, y), dict(reduction="avg"), "'avg'"),
                               ((s, t, y[:, None]), {}, "shape")]:
        with pytest.raises(ValueError, match=said): f(*args, **kwargs)
