"Lion against lion-pytorch, PyTorch's SGD and SciPy; and what an optimiser owes to those who train with it."
import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lion_pytorch import Lion as Peer
from scipy.optimize import linprog, minimize
from torch import nn
from torch.testing import assert_close

from kullback.optim import ConvexKernel, Lion, LionK, constraint_violation, get_kernel, kkt_score
from kullback.optim import lion as module

KERNELS = ["l1", "l2sq", "lp(1.5)", "huber(0.3)", "soft_l1(0.3)", "topk(4)", "group(0)", "nuclear", "logsumexp"]


def draw(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights(dtype=torch.float64): return [draw(s, *shape, dtype=dtype).requires_grad_() for s, shape in enumerate([(4, 3), (5, 2), (1, 7)])]


def steps(opt, params, first, last):
    for t in range(first, last):
        for i, p in enumerate(params): p.grad = draw(1000*i + t, *p.shape).to(p.dtype)
        opt.step()
    return params


def test_every_step_of_lion_pytorch():
    "Two groups, a schedule, missing gradients: the same weights bit for bit, the same states to rounding."
    ours, theirs = weights(), weights()
    make = lambda optimizer, p: optimizer([dict(params=p[:2], weight_decay=.5), dict(params=p[2:], lr=.03, betas=(.95, .98))],
                                          lr=.01, weight_decay=0.)
    a, b = make(Lion, ours), make(Peer, theirs)
    decay = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 80) for o in (a, b)]
    for t in range(80):
        for i, (p, q) in enumerate(zip(ours, theirs)):
            p.grad = None if (t + i) % 7 == 0 else draw(100*t + i, *p.shape)
            q.grad = None if p.grad is None else p.grad.clone()
        a.step(); b.step(); decay[0].step(); decay[1].step()
        for p, q in zip(ours, theirs):
            assert torch.equal(p, q)
            if p in a.state: assert_close(a.state[p]["exp_avg"], b.state[q]["exp_avg"], rtol=0, atol=1e-15)


def test_a_state_of_lion_pytorch_is_taken_over():
    ours, theirs = weights(), weights()
    a, b = Lion(ours, lr=1.), Peer(theirs, lr=.01, weight_decay=.2)
    steps(b, theirs, 0, 10)
    for p, q in zip(ours, theirs): p.data.copy_(q.data)
    a.load_state_dict(copy.deepcopy(b.state_dict()))
    for p, q in zip(steps(a, ours, 10, 30), steps(b, theirs, 10, 30)): assert torch.equal(p, q)


def test_square_kernel_is_heavy_ball():
    "β₁ = β₂ = β and step η: PyTorch's SGD with momentum β and rate η(1−β)."
    ours, theirs = weights(), weights()
    a = LionK(ours, lr=.1, betas=(.9, .9), kernel="l2sq")
    b = torch.optim.SGD(theirs, lr=.1*.1, momentum=.9)
    for p, q in zip(steps(a, ours, 0, 40), steps(b, theirs, 0, 40)): assert_close(p, q, rtol=0, atol=1e-12)


def test_square_kernel_is_nesterov():
    "β₁ = β², β₂ = β and step η: PyTorch's Nesterov momentum β with rate η(1−β)."
    ours, theirs = weights(), weights()
    a = LionK(ours, lr=.1, betas=(.81, .9), kernel="l2sq")
    b = torch.optim.SGD(theirs, lr=.1*.1, momentum=.9, nesterov=True)
    for p, q in zip(steps(a, ours, 0, 40), steps(b, theirs, 0, 40)): assert_close(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_the_equation_line_by_line(name):
    "Eq. 1 with momenta of negative gradients, in plain tensors."
    kernel, params = get_kernel(name), weights()
    opt = LionK(params, lr=.05, betas=(.8, .95), weight_decay=.7, kernel=name)
    x, m = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
    for t in range(30):
        g = [draw(1000*i + t, *p.shape) for i, p in enumerate(params)]
        x = [x + .05*(kernel.grad(.8*m - .2*g) - .7*x) for x, m, g in zip(x, m, g)]
        m = [.95*m - .05*g for m, g in zip(m, g)]
    for p, want in zip(steps(opt, params, 0, 30), x): assert_close(p.detach(), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["l1", "huber(0.3)", "soft_l1(0.3)", "l2sq", "lp(1.5)"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_cutting_changes_nothing(name, layout, monkeypatch):
    "A large tensor is stepped in pieces; the values are those of one piece."
    def run(piece):
        monkeypatch.setattr(module, "_PIECE", piece)
        p = draw(0, 3, 4, 5, 6)
        if layout == "channels_last": p = p.contiguous(memory_format=torch.channels_last)
        params = [p.requires_grad_(), draw(1, 70).requires_grad_(), draw(2, 3).requires_grad_()]
        steps(LionK(params, lr=.1, weight_decay=.3, kernel=name), params, 0, 5)
        return params
    for p, q in zip(run(10**9), run(64)): assert_close(p, q, rtol=0, atol=1e-14)


def test_work_is_cut_where_it_may_be(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 64)
    sizes = lambda elementwise, *shapes: [sum(t.numel() for t in lists[0]) for lists in module._pieces(
        [(torch.zeros(s), torch.zeros(s), torch.zeros(s)) for s in shapes], elementwise)]
    assert sizes(True, (10, 15)) == [64, 64, 22] and sizes(False, (10, 15)) == [150]
    assert sizes(True, (30,), (30,), (30,), (5,)) == [90, 5]


def test_resume_from_disk():
    whole = steps(opt := LionK(ps := weights(), lr=.05, weight_decay=.4, kernel="huber(0.3)"), ps, 0, 30)
    half = weights()
    steps(opt := LionK(half, lr=.05, weight_decay=.4, kernel="huber(0.3)"), half, 0, 15)
    torch.save(opt.state_dict(), file := io.BytesIO()); file.seek(0)
    again = LionK(half, lr=9., kernel="l2sq")
    again.load_state_dict(torch.load(file, weights_only=True))
    for p, q in zip(steps(again, half, 15, 30), whole): assert torch.equal(p, q)


def clipped(z): return z.clamp(-1, 1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_keep_their_own_kernel(duplicate):
    opt = LionK(weights(), lr=.05, kernel=clipped)
    twin = duplicate(opt)
    ours = steps(opt, opt.param_groups[0]["params"], 0, 10)
    for p, q in zip(steps(twin, twin.param_groups[0]["params"], 0, 10), ours): assert torch.equal(p, q)


def test_groups_with_kernels_of_their_own():
    params = weights()
    opt = LionK([dict(params=params[:1], kernel="nuclear"), dict(params=params[1:])], lr=.1, weight_decay=1.)
    steps(opt, params, 0, 200)
    assert constraint_violation(params[0], 1., "nuclear") < 1e-6 < constraint_violation(4*params[0], 1., "nuclear")
    other = lambda z: z*2
    other.__name__ = "clipped"
    opt = LionK(weights(), kernel=clipped)
    with pytest.raises(ValueError, match="two kernels .* 'clipped'"):
        opt.add_param_group(dict(params=[torch.ones(2, requires_grad=True)], kernel=other))


def test_closure_sees_gradients_and_returns_its_loss():
    p = torch.tensor([3., -4.], requires_grad=True)
    opt = Lion([p], lr=.5)
    def closure(): opt.zero_grad(); loss = p.square().sum(); loss.backward(); return loss
    assert opt.step(closure).item() == 25. and p.tolist() == [2.5, -3.5]


def test_a_tensor_rate_and_a_schedule_on_it():
    a, b = weights(), weights()
    oa, ob = Lion(a, lr=.1, weight_decay=.3), Lion(b, lr=torch.tensor(.1, dtype=torch.float64), weight_decay=.3)
    for t in range(10):
        steps(oa, a, t, t + 1); steps(ob, b, t, t + 1)
        oa.param_groups[0]["lr"] *= .9; ob.param_groups[0]["lr"].mul_(.9)
    for p, q in zip(a, b): assert_close(p, q, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_stay_and_may_mix(dtype):
    params = weights(dtype)[:2] + weights()[2:]
    opt = Lion(params, lr=.05, weight_decay=.1)
    steps(opt, params, 0, 5)
    assert [p.dtype for p in params] == [dtype, dtype, torch.float64]
    assert all(opt.state[p]["exp_avg"].dtype == p.dtype for p in params)


def test_sparse_complex_and_misshapen_gradients_are_refused_before_anything_moves():
    table = nn.Embedding(5, 3, sparse=True)
    dense = torch.ones(2, requires_grad=True); dense.grad = torch.ones(2)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse_coo"): Lion([dense, table.weight]).step()
    with pytest.raises(ValueError, match="sparse_coo"): Lion([dict(params=dense), dict(params=table.weight)]).step()
    z = torch.ones(2, dtype=torch.complex64, requires_grad=True); z.grad = torch.ones_like(z)
    with pytest.raises(ValueError, match="complex64"): Lion([dense, z]).step()
    with pytest.raises(ValueError, match="shapes differ"): LionK([dense], kernel=torch.sum).step()
    assert torch.equal(dense, torch.ones(2))


@pytest.mark.parametrize("bad", [dict(lr=-1e-9), dict(betas=(1., .9)), dict(betas=(.9, -.1)), dict(weight_decay=float("nan")),
                                 dict(betas=(.9, .9, .9)), dict(kernel="lp(0.9)")])
def test_numbers_out_of_range_are_refused_in_every_group(bad):
    p = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError): LionK([p], **bad)
    with pytest.raises(ValueError): LionK([dict(params=[p], **bad)])


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KERNELS), st.floats(.05, 5), st.floats(.01, 1), st.integers(0, 999))
def test_the_violation_contracts_whatever_the_gradients(name, lam, pull, seed):
    "Also beyond a first order: the Euclidean distance to the box contracts at the same rate."
    p = (10*draw(seed, 4, 3)/lam).requires_grad_()
    opt = LionK([p], lr=pull/lam, weight_decay=lam, kernel=name)
    for t in range(8):
        old = p.detach().clone(); p.grad = draw(seed + t, 4, 3); opt.step()
        before, after = constraint_violation(old, lam, name), constraint_violation(p.detach(), lam, name)
        assert after <= (1 - pull)*before + 1e-11*(1 + before)
        if name == "l1":
            outside = lambda x: (lam*x - (lam*x).clamp(-1, 1)).norm()
            assert outside(p.detach()) <= (1 - pull)*outside(old) + 1e-11*(1 + outside(old))


@settings(max_examples=25, deadline=None)
@given(st.floats(.1, 9), st.integers(0, 999))
def test_kkt_score_is_a_linear_programme(lam, seed):
    x, grad = draw(seed, 6).clamp(-1, 1)/lam, draw(seed + 1, 6)
    best = linprog(grad.numpy(), bounds=[(-1/lam, 1/lam)]*6).fun
    assert kkt_score(x, grad, lam).item() == pytest.approx(lam*((grad @ x).item() - best), abs=1e-9)


@pytest.mark.parametrize("lam", [.5, 2., 8.])
def test_kkt_score_vanishes_at_the_solution_of_a_solver(lam):
    B, b = draw(0, 12, 6), 2*draw(1, 6)
    A = (B.T @ B).numpy()/12
    fun = lambda x: (x @ A @ x/2 - b.numpy() @ x, A @ x - b.numpy())
    x = minimize(fun, np.zeros(6), jac=True, method="L-BFGS-B", bounds=[(-1/lam, 1/lam)]*6, options=dict(ftol=1e-15, gtol=1e-12)).x
    x = torch.from_numpy(x)
    slope = lambda x: torch.from_numpy(A) @ x - b
    assert kkt_score(x, slope(x), lam) < 1e-6
    off = x.clone(); off[0] *= .9
    assert kkt_score(off, slope(off), lam) > 1e-3
    assert kkt_score(2*x, -x, lam) < 0 or constraint_violation(2*x, lam) == 0  # outside the box it is no certificate


def test_a_network_under_autocast_and_accumulation():
    "Gradients from wherever they come: two half batches accumulated equal one batch."
    def run(parts):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1)).double()
        opt, x = Lion(net.parameters(), lr=.01, weight_decay=.1), draw(0, 8, 5)
        for _ in range(10):
            opt.zero_grad()
            for rows in x.chunk(parts): (net(rows).square().mean()/parts).backward()
            opt.step()
        return net(x)
    assert_close(run(1), run(2))


def test_a_kernel_object_is_kept_by_name():
    mine = ConvexKernel("mine", None, torch.sign, None)
    p, q = weights(), weights()
    a, b = LionK(p, lr=.1, kernel=mine), Lion(q, lr=.1)
    assert a.param_groups[0]["kernel"] == "mine"
    for x, y in zip(steps(a, p, 0, 5), steps(b, q, 0, 5)): assert torch.equal(x, y)
