"Orthogonality after many steps, batches, wide shapes, and Adam's own vectors."
import copy

import pytest
import torch
from draws import normal
from torch.testing import assert_close

from kullback.optim import StiefelAdam, qr_retraction, stiefel_project_tangent


def frame(*shape, seed=0): return torch.linalg.qr(normal(*shape, seed=seed))[0]


@pytest.mark.parametrize("retraction", ["qr", "cayley"])
@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("shape", [(8, 8), (9, 4), (3, 6, 6), (5, 1)])
def test_fifty_steps_stay_orthonormal(retraction, dtype, tol, shape):
    w = frame(*shape).to(dtype).requires_grad_()
    opt = StiefelAdam([w], lr=.3, retraction=retraction)
    for i in range(50):
        w.grad = normal(*shape, seed=i).to(dtype)
        opt.step()
    assert (w.mT @ w - torch.eye(shape[-1], dtype=dtype)).abs().max() < tol
    assert (w - frame(*shape).to(dtype)).abs().max() > .1


@pytest.mark.parametrize("retraction", ["qr", "cayley"])
def test_a_batch_is_its_matrices(retraction):
    start, slopes = frame(3, 5, 4), [normal(3, 5, 4, seed=i) for i in range(7)]
    one, many = start.clone().requires_grad_(), [m.clone().requires_grad_() for m in start]
    together, apart = StiefelAdam([one], .1, retraction=retraction), StiefelAdam(many, .1, retraction=retraction)
    for g in slopes:
        one.grad = g
        for m, part in zip(many, g): m.grad = part.clone()
        together.step(), apart.step()
    assert_close(one.detach(), torch.stack([m.detach() for m in many]))


@pytest.mark.parametrize("retraction", ["qr", "cayley"])
def test_turning_the_problem_turns_the_path(retraction):
    "QR from the left only; Cayley from both sides."
    left, right = frame(5, 5, seed=7), frame(5, 5, seed=8) if retraction == "cayley" else torch.eye(5).double()
    a, b = frame(5, 5).requires_grad_(), (left @ frame(5, 5) @ right).requires_grad_()
    opts = StiefelAdam([a], .2, retraction=retraction), StiefelAdam([b], .2, retraction=retraction)
    for i in range(9):
        a.grad = normal(5, 5, seed=i)
        b.grad = left @ a.grad @ right
        for opt in opts: opt.step()
    assert_close(b.detach(), left @ a.detach() @ right)


def test_momentum_is_tangent_and_travels_in_a_checkpoint():
    w = frame(6, 4).requires_grad_()
    opt = StiefelAdam([w], .1)
    for i in range(5):
        w.grad = normal(6, 4, seed=i)
        opt.step()
        m = opt.state[w]["exp_avg"]
        assert_close(stiefel_project_tangent(w.detach(), m), m)
        assert opt.state[w]["exp_avg_sq"].numel() == 1
    twin = w.detach().clone().requires_grad_()
    other = StiefelAdam([twin], .1)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for v, o in ((w, opt), (twin, other)):
        v.grad = normal(6, 4, seed=99)
        o.step()
    assert torch.equal(w, twin)


def test_qr_fixes_signs():
    x = frame(6, 3)
    assert_close(qr_retraction(x, torch.zeros_like(x)), x)
    z = normal(7, 7)
    q = qr_retraction(torch.zeros_like(z), z)
    assert ((q.T @ z).diagonal() > 0).all() and (q.T @ z).tril(-1).abs().max() < 1e-12


def test_closure_and_missing_gradients():
    w, idle = frame(4, 4).requires_grad_(), frame(3, 3).requires_grad_()
    opt = StiefelAdam([w, idle], .1)
    def closure():
        opt.zero_grad()
        loss = w.sum()
        loss.backward()
        return loss
    before = w.sum().item()
    assert opt.step(closure).item() == before
    assert torch.equal(idle, frame(3, 3)) and not torch.equal(w, frame(4, 4))
