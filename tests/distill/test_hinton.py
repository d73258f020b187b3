"`distill.hinton`: stored values, PyTorch's functions, invariances."
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kullback.distill import kd_loss

EXACT = dict(rtol=0, atol=1e-12)
# logits by formula; values by a script that follows Eq. 1 with Python loops in float64 (no torch)
STUDENT = torch.tensor([[3*math.sin(1 + 7*b + 3*c) for c in range(6)] for b in range(4)], dtype=torch.float64)
TEACHER = torch.tensor([[4*math.cos(2 + 5*b + 2*c) for c in range(6)] for b in range(4)], dtype=torch.float64)
STORED = {
    ("forward", "kl"): [4.68701824336778, 7.24246401358028, 5.164752932847, 2.94022842818787],
    ("reverse", "kl"): [5.2640913999364, 6.32893091781343, 5.87122844456747, 3.10842476618712],
    ("forward", "ce"): [29.4732910551049, 32.4439005994574, 30.9081405672068, 27.8316310924661],
}


@pytest.mark.parametrize("direction, kind", STORED)
def test_stored_values(direction, kind):
    want = torch.tensor(STORED[direction, kind], dtype=torch.float64)
    assert_close(kd_loss(STUDENT, TEACHER, 4., direction, kind=kind, reduction="none"), want, rtol=1e-13, atol=0)
    assert_close(kd_loss(STUDENT, TEACHER, 4., direction, False, kind), want.mean()/16, rtol=1e-13, atol=0)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 9), st.floats(.3, 20))
def test_against_torch(seed, B, K, tau):
    g = torch.Generator().manual_seed(seed)
    s, t = 3*torch.randn(2, B, K, generator=g, dtype=torch.float64)
    log_s, log_t = (s/tau).log_softmax(-1), (t/tau).log_softmax(-1)
    close = dict(rtol=1e-10, atol=1e-11)
    assert_close(kd_loss(s, t, tau), tau**2*F.kl_div(log_s, log_t, reduction="batchmean", log_target=True), **close)
    assert_close(kd_loss(s, t, tau, "reverse", False, reduction="sum"),
                 F.kl_div(log_t, log_s, reduction="sum", log_target=True), **close)
    assert_close(kd_loss(s, t, tau, kind="ce"), tau**2*F.cross_entropy(s/tau, log_t.exp()), **close)
    assert_close(kd_loss(s, t, tau, kind="mse"), F.mse_loss(s, t), **close)
    assert_close(kd_loss(s, t, tau, kind="mse", scale_t2=False), F.mse_loss(s/tau, t/tau), **close)
    shift = torch.randn(B, 1, generator=g, dtype=torch.float64)
    assert_close(kd_loss(s + shift, t - 2*shift, tau), kd_loss(s, t, tau), **close)
    perm = torch.randperm(K, generator=g)
    assert_close(kd_loss(s[:, perm], t[:, perm], tau), kd_loss(s, t, tau), **close)


@pytest.mark.parametrize("direction, kind", [*STORED, ("reverse", "ce"), ("forward", "mse")])
def test_gradcheck_and_frozen_teacher(direction, kind):
    f = lambda s: kd_loss(s, TEACHER, 2., direction, kind=kind)
    assert torch.autograd.gradcheck(f, (STUDENT.clone().requires_grad_(),))
    teacher = TEACHER.clone().requires_grad_()
    assert not kd_loss(STUDENT, teacher, 2., direction, kind=kind).requires_grad


def test_classes_that_the_teacher_excludes():
    teacher = TEACHER.clone()
    teacher[:, 2] = -math.inf
    student = STUDENT.clone().requires_grad_()
    loss = kd_loss(student, teacher, 2.)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()
    assert kd_loss(teacher, STUDENT, 2.) == math.inf              # the student excludes, the teacher does not


def test_extremes_stay_finite():
    big = 1e4*torch.eye(6)
    student = torch.zeros(6, 6, requires_grad=True)
    loss = kd_loss(student, big, 1.)
    assert_close(loss, torch.tensor(6.).log())
    loss.backward()
    assert student.grad.isfinite().all()


def test_leading_axes():
    s, t = STUDENT.view(2, 2, 6), TEACHER.view(2, 2, 6)
    assert_close(kd_loss(s, t, reduction="none").flatten(), kd_loss(STUDENT, TEACHER, reduction="none"), **EXACT)


@pytest.mark.parametrize("kwargs, said", [
    (dict(temperature=0.), "got 0"), (dict(temperature=float("nan")), "nan"), (dict(direction="both"), "'both'"),
    (dict(kind="js"), "'js'"), (dict(reduction="batchmean"), "'batchmean'"), (dict(kind="mse", direction="reverse"), "symmetric"),
])
def test_refusals(kwargs, said):
    with pytest.raises(ValueError, match=said): kd_loss(STUDENT, TEACHER, **kwargs)
