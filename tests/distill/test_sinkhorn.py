"The batch transport loss: POT, SciPy, loops written out here, stored values, invariances."
import math

import ot
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close

from kullback.distill import SinKD, annealed_temperature, sinkhorn_kd_loss
from kullback.divergence import pairwise_lp

STUDENT = torch.tensor([[3*math.sin(1 + 7*b + 3*c) for c in range(5)] for b in range(4)], dtype=torch.float64)
TEACHER = torch.tensor([[4*math.cos(2 + 5*b + 2*c) for c in range(5)] for b in range(4)], dtype=torch.float64)


def logits(seed, *shape, scale=3.):
    return scale*torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def python_loss(student, teacher, temperature, epsilon, n_iters):
    "Rows, then columns, in Python floats: no tensor in sight."
    def soft(z):
        e = [math.exp(v/temperature) for v in z]
        return [v/sum(e) for v in e]
    s, t = [soft(z) for z in student], [soft(z) for z in teacher]
    D = [[sum(abs(a - b) for a, b in zip(x, y)) for y in t] for x in s]
    P = [[math.exp(-d/epsilon) for d in row] for row in D]
    for _ in range(n_iters):
        P = [[v/sum(row) for v in row] for row in P]
        totals = [sum(column) for column in zip(*P)]
        P = [[v/c for v, c in zip(row, totals)] for row in P]
    return sum(p*d for ps, ds in zip(P, D) for p, d in zip(ps, ds))


@pytest.mark.parametrize("temperature, epsilon, n_iters", [(2., .1, 20), (1., .3, 1), (4., .05, 7)])
def test_against_rows_and_columns_in_plain_python(temperature, epsilon, n_iters):
    want = python_loss(STUDENT.tolist(), TEACHER.tolist(), temperature, epsilon, n_iters)
    assert_close(sinkhorn_kd_loss(STUDENT, TEACHER, temperature, epsilon, n_iters).item(), want, rtol=1e-11, atol=0)
    mean = sinkhorn_kd_loss(STUDENT, TEACHER, temperature, epsilon, n_iters, "mean")
    assert_close(mean.item(), want/4, rtol=1e-11, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(2, 9), st.floats(.05, 2), st.sampled_from([1, 20, 500]))
def test_against_pot(seed, b, d, epsilon, n_iters):
    "POT's plan has mass 1: times b it is this one, after any number of iterations; POT turns to columns first."
    s, t = logits(seed, b, d), logits(seed + 1, b, d)
    D = torch.cdist((s/2).softmax(-1), (t/2).softmax(-1), 1.).numpy()
    uniform = torch.full((b,), 1/b, dtype=torch.float64).numpy()
    plan = ot.sinkhorn(uniform, uniform, D.T, epsilon, "sinkhorn_log", n_iters, 0, warn=False).T
    ours = sinkhorn_kd_loss(s, t, epsilon=epsilon, n_iters=n_iters)
    assert_close(ours.item(), b*float((plan*D).sum()), rtol=1e-10, atol=1e-12)
    assert 0 <= ours <= 2*b


@pytest.mark.parametrize("b, d", [(6, 4), (15, 10)])
def test_a_low_price_is_the_best_assignment(b, d):
    s, t = logits(1, b, d), logits(2, b, d)
    D = pairwise_lp((s/2).softmax(-1), (t/2).softmax(-1))
    best = D[linear_sum_assignment(D)].sum()
    assert_close(sinkhorn_kd_loss(s, t, epsilon=5e-4, n_iters=6000), best, rtol=0, atol=1e-3)
    assert_close(sinkhorn_kd_loss(s, t, epsilon=1e6), D.sum()/b, rtol=1e-4, atol=0)
    assert best <= D.diagonal().sum()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(2, 6))
def test_invariances(seed, b, d):
    s, t = logits(seed, b, d), logits(seed + 1, b, d)
    g = torch.Generator().manual_seed(seed)
    rows, classes = torch.randperm(b, generator=g), torch.randperm(d, generator=g)
    value = sinkhorn_kd_loss(s, t)
    close = dict(rtol=0, atol=1e-10)
    assert_close(sinkhorn_kd_loss(s[rows], t), value, **close)
    assert_close(sinkhorn_kd_loss(s, t[rows]), value, **close)
    assert_close(sinkhorn_kd_loss(s[:, classes], t[:, classes]), value, **close)
    assert_close(sinkhorn_kd_loss(s + logits(3, b, 1), t - logits(4, b, 1)), value, **close)
    share = sinkhorn_kd_loss(s, t, reduction="none")
    assert_close(sinkhorn_kd_loss(s[rows], t, reduction="none"), share[rows], **close)


def test_a_stack_is_a_loop():
    s, t = logits(0, 3, 6, 5), logits(1, 3, 6, 5)
    alone = torch.stack([sinkhorn_kd_loss(a, b, reduction="none") for a, b in zip(s, t)])
    assert_close(sinkhorn_kd_loss(s, t, reduction="none"), alone, rtol=1e-12, atol=1e-12)
    assert_close(sinkhorn_kd_loss(s, t), alone.sum(), rtol=1e-12, atol=0)


def test_gradient_is_that_of_iterations_autograd_sees():
    leaf, other = (logits(5, 6, 4).requires_grad_() for _ in range(2))
    teacher = logits(6, 6, 4)
    D = ((other[:, None]/2).softmax(-1) - (teacher/2).softmax(-1)).abs().sum(-1)
    K = (-D/.1).exp()
    for _ in range(20):
        K = K/K.sum(1, keepdim=True)
        K = K/K.sum(0, keepdim=True)
    (K*D).sum().backward()
    sinkhorn_kd_loss(leaf, teacher).backward()
    assert_close(leaf.grad, other.grad, rtol=0, atol=1e-11)


def test_half_precision_is_computed_in_single():
    s, t = logits(0, 6, 5).bfloat16(), logits(1, 6, 5).bfloat16()
    half = sinkhorn_kd_loss(s, t)
    assert half.dtype == torch.float32
    assert_close(half, sinkhorn_kd_loss(s.float(), t.float()))
    leaf = s.requires_grad_()
    sinkhorn_kd_loss(leaf, t).backward()
    assert leaf.grad.dtype == torch.bfloat16 and leaf.grad.isfinite().all()


@pytest.mark.parametrize("alpha, beta", [(0., 0.), (1., 0.), (.9, .0008)])
def test_module_is_its_terms(alpha, beta):
    y = torch.tensor([0, 4, 2, 2])
    out = SinKD(alpha, beta, 3.5)(STUDENT, TEACHER, y)
    kd = F.cross_entropy(STUDENT/3.5, (TEACHER/3.5).softmax(-1))
    want = (1 - alpha)*F.cross_entropy(STUDENT, y) + alpha*kd + beta*python_loss(STUDENT.tolist(), TEACHER.tolist(), 2., .1, 20)
    assert_close(out["loss"], want, rtol=1e-12, atol=0)
    mean = SinKD(alpha, beta, 3.5, reduction="mean")(STUDENT, TEACHER, y)
    assert_close(4*mean["sinkhorn"], out["sinkhorn"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("call, said", [
    (lambda: sinkhorn_kd_loss(STUDENT, TEACHER[:3]), "shapes differ"),
    (lambda: sinkhorn_kd_loss(STUDENT[0], TEACHER[0]), r"got \(5,\)"),
    (lambda: sinkhorn_kd_loss(STUDENT, TEACHER, temperature=0), "temperature must be positive, got 0"),
    (lambda: sinkhorn_kd_loss(STUDENT, TEACHER, n_iters=0), "at least 1, got 0"),
    (lambda: SinKD(-.1, 0., 2.), "got -0.1"), (lambda: SinKD(.5, -1., 2.), "got -1.0"),
    (lambda: SinKD(.5, 1., 2., reduction="none"), "'none'"),
    (lambda: annealed_temperature(0, 1, 4.), "got 1"), (lambda: annealed_temperature(0, 3, -4.), "got -4.0")])
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said): call()
