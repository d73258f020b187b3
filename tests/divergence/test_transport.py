"Plans against POT, SciPy and geomloss; gradients against autograd through log-space iterations written out here."
import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kullback.divergence import pairwise_lp, sinkhorn_distance, sinkhorn_plan
from kullback.divergence.transport import _stretches


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unrolled(cost, epsilon, n_iters, a, b):
    "Log-space iterations that autograd sees."
    g = torch.zeros_like(b)
    for _ in range(n_iters):
        f = a.log() - (g - cost/epsilon).logsumexp(1)
        g = b.log() - (f[:, None] - cost/epsilon).logsumexp(0)
    return (f[:, None] + g - cost/epsilon).exp()


@pytest.mark.parametrize("epsilon, method", [(.1, "sinkhorn"), (.01, "sinkhorn_log")])
def test_plan_is_pots(epsilon, method):
    cost, a, b = rand(12, 7), rand(12, seed=1) + .1, rand(7, seed=2) + .1
    a, b = a/a.sum(), b/b.sum()
    theirs = ot.sinkhorn(a.numpy(), b.numpy(), cost.numpy(), epsilon, method, 20_000, 1e-14)
    assert_close(sinkhorn_plan(cost, epsilon, 20_000, a, b, tol=1e-14), torch.from_numpy(theirs), rtol=1e-7, atol=1e-12)


def test_a_low_price_is_exact_transport():
    cost, a, b = rand(9, 6), rand(9, seed=1) + .1, rand(6, seed=2) + .1
    a, b = a/a.sum(), b/b.sum()
    plan = sinkhorn_plan(cost, 5e-4, 20_000, a, b)
    assert_close((plan*cost).sum().item(), ot.emd2(a.numpy(), b.numpy(), cost.numpy()), rtol=0, atol=1e-4)


def test_debiased_entropic_value_is_geomloss():
    geomloss = pytest.importorskip("geomloss")
    x, y = rand(20, 3), rand(15, 3, seed=1) + .3
    theirs = geomloss.SamplesLoss("sinkhorn", p=1, blur=.1, scaling=.999, debias=True, backend="tensorized")(x, y)
    ours = sinkhorn_distance(x, y, .1, 5000, p=2, debias=True, mass="prob", value="entropic", tol=1e-13)
    assert_close(ours, theirs, rtol=1e-3, atol=1e-6)     # theirs halves its price in steps and stops at the last


def test_a_batch_is_a_loop():
    cost, a = rand(4, 6, 5), rand(4, 6, seed=3) + .5
    for epsilon in (.2, .004):
        batch = sinkhorn_plan(cost, epsilon, 60, a)
        alone = torch.stack([sinkhorn_plan(c, epsilon, 60, m) for c, m in zip(cost, a)])
        assert_close(batch, alone, rtol=1e-9, atol=1e-14)
    x, y = rand(3, 5, 4), rand(3, 5, 4, seed=1)
    assert_close(sinkhorn_distance(x, y), torch.stack([sinkhorn_distance(*pair) for pair in zip(x, y)]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 7), m=st.integers(1, 7), steps=st.integers(1, 60),
       log_eps=st.floats(-7, 2))
def test_every_road_takes_the_same_steps(seed, n, m, steps, log_eps):
    "Stretches and log steps alone agree after any number of iterations at any price, value and gradient."
    cost, a, b = rand(n, m, seed=seed), rand(n, seed=seed + 1) + .1, rand(m, seed=seed + 2) + .1
    b = b*(a.sum()/b.sum())
    weight, epsilon = rand(n, m, seed=seed + 3), math.exp(log_eps)
    leaves = [[t.clone().requires_grad_() for t in (cost, a, b)] for _ in range(2)]
    ours = sinkhorn_plan(leaves[0][0], epsilon, steps, *leaves[0][1:])
    theirs = unrolled(leaves[1][0], epsilon, steps, *leaves[1][1:])
    assert_close(ours, theirs, rtol=1e-8, atol=1e-13)
    grads = [torch.autograd.grad((plan*weight).sum(), x) for plan, x in zip((ours, theirs), leaves)]
    for one, other in zip(*grads): assert_close(one, other, rtol=1e-6, atol=1e-9/min(epsilon, 1))


def test_single_precision_survives_any_price():
    cost = rand(30, 30)
    for epsilon in (1., .1, 1e-2, 1e-3, 1e-4):
        exact = sinkhorn_plan(cost, epsilon, 300)
        single = sinkhorn_plan(cost.float(), epsilon, 300)
        assert_close(single.double(), exact, rtol=0, atol=3e-6/epsilon**.5)


def test_single_precision_gradient_is_finite():
    for epsilon in (.1, 1e-3, 1e-4):
        cost = rand(30, 30, dtype=torch.float32).requires_grad_()
        (sinkhorn_plan(cost, epsilon, 100)*cost).sum().backward()
        assert cost.grad.isfinite().all()


def test_half_precision_is_computed_in_single():
    cost = rand(8, 8).bfloat16()
    plan = sinkhorn_plan(cost)
    assert plan.dtype == torch.bfloat16
    assert_close(plan, sinkhorn_plan(cost.float()).bfloat16(), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16): inside = sinkhorn_plan(cost.float())
    assert_close(inside, sinkhorn_plan(cost.float()), rtol=0, atol=1e-6)
    assert sinkhorn_plan(torch.randint(5, (3, 3))).dtype == torch.float32


def test_columns_are_exact_after_any_number_of_steps():
    for steps in (1, 2, 9, 50):
        plan = sinkhorn_plan(rand(16, 16), .05, steps)
        assert_close(plan.sum(0), torch.ones(16).double(), rtol=0, atol=1e-12)


def test_rows_of_the_cost_carry_rows_of_the_plan():
    cost, order = rand(9, 9), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert_close(sinkhorn_plan(cost[order]), sinkhorn_plan(cost)[order], rtol=1e-12, atol=0)
    assert_close(sinkhorn_plan(cost + rand(9, 1) + rand(9), .1, 400), sinkhorn_plan(cost, .1, 400), rtol=1e-9, atol=0)


def test_masses():
    cost = rand(6, 4)
    plan = sinkhorn_plan(cost, .1, 500, mass="prob")
    assert_close(plan.sum(1), torch.full((6,), 1/6).double()); assert_close(plan.sum(0), torch.full((4,), 1/4).double())
    given_rows = sinkhorn_plan(cost, .1, 500, a=torch.arange(1., 7).double())
    assert_close(given_rows.sum(0), torch.full((4,), 21/4).double())
    square = rand(5, 5)
    assert_close(sinkhorn_plan(square), 5*sinkhorn_plan(square, mass="prob"))
    x, y = rand(5, 3), rand(5, 3, seed=1)
    assert_close(sinkhorn_distance(x, y), 5*sinkhorn_distance(x, y, mass="prob"))


def test_tolerance_stops_where_it_says():
    cost = rand(20, 20)
    for epsilon in (.1, .003):
        loose = sinkhorn_plan(cost, epsilon, 100_000, tol=1e-4, mass="prob")
        off = (loose.sum(1) - 1/20).abs().sum()
        assert 1e-9 < off <= 1e-4
    assert_close(sinkhorn_plan(cost, .1, 7, tol=1e-30), sinkhorn_plan(cost, .1, 7))
    _, found = _stretches(cost[None]/.003, *(torch.zeros(1, 1, 20).double(),)*2, 100_000, False, True, 1e-4)
    assert sum(len(U) + 1 for _, _, U, _ in found) < 50_000


def test_the_scalings_are_all_that_is_kept():
    cost = rand(128, 128).requires_grad_()
    kept = {}
    def pack(t): kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(); return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): sinkhorn_plan(cost, n_iters=20)
    scalings = 2*(20 + 2)*128*8
    assert sum(kept.values()) <= 128*128*8 + scalings
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.no_grad(): sinkhorn_plan(cost)
    assert not kept


def test_vmap_and_functional_gradients():
    cost = rand(3, 6, 6)
    loss = lambda c: (sinkhorn_plan(c, .2, 15)*c).sum()
    grads = torch.vmap(torch.func.grad(loss))(cost)
    leaf = cost.clone().requires_grad_()
    sum(loss(c) for c in leaf).backward()
    assert_close(grads, leaf.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("epsilon", [.3, .01])
def test_second_derivatives(epsilon):
    leaf = rand(1, 3, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda c: sinkhorn_plan(c, epsilon, 6), leaf, eps=1e-7, atol=1e-3, rtol=1e-4)
    hessian = torch.func.jacrev(torch.func.grad(lambda c: (sinkhorn_plan(c, .3, 5)**2).sum()))(rand(3, 3)).reshape(9, 9)
    assert_close(hessian, hessian.T); assert hessian.abs().max() > 1e-3


def test_compiles_without_a_break():
    torch._dynamo.reset()
    fn = torch.compile(lambda x, y: sinkhorn_distance(x, y, .3), backend="eager", fullgraph=True)
    x, y = rand(5, 3), rand(5, 3, seed=1)
    assert_close(fn(x, y), sinkhorn_distance(x, y, .3))


def test_one_dimension_is_sorted_transport():
    "With |x − y| on a line the optimum pairs the sorted samples."
    x, y = rand(12, 1), rand(12, 1, seed=1)
    value = sinkhorn_distance(x, y, 2e-4, 20_000, tol=1e-9)
    assert_close(value, (x.sort(0).values - y.sort(0).values).abs().sum(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("p", [1, 2, 3, math.inf])
def test_norms_and_their_gradients(p):
    x, y = rand(5, 4).requires_grad_(), rand(6, 4, seed=1)
    D = pairwise_lp(x, y, p)
    assert_close(D.detach().numpy(), np.linalg.norm(x.detach()[:, None].numpy() - y.numpy(), p, -1))
    other, = torch.autograd.grad((torch.linalg.vector_norm(x[:, None] - y, p, -1)*rand(5, 6, seed=2)).sum(), x)
    assert_close(torch.autograd.grad((D*rand(5, 6, seed=2)).sum(), x)[0], other)


@pytest.mark.parametrize("call, message", [
    (lambda: sinkhorn_plan(rand(3)), r"cost must be .*\(3,\)"),
    (lambda: sinkhorn_plan(rand(3, 3), -1.), "epsilon must be positive, got -1.0"),
    (lambda: sinkhorn_plan(rand(3, 3), mass="half"), "mass must be .* 'half'"),
    (lambda: sinkhorn_plan(rand(3, 3), a=torch.ones(4)), r"a must be \(3,\) or \(1, 3\), got \(4,\)"),
    (lambda: sinkhorn_plan(rand(3, 3), a=torch.ones(3), b=2*torch.ones(3)), "sum alike"),
    (lambda: sinkhorn_plan(rand(3, 3)*math.nan), "cost must be finite"),
    (lambda: sinkhorn_plan(rand(3, 3)*1e9, log_domain=False), "use log_domain=True"),
    (lambda: pairwise_lp(rand(3, 2), rand(3, 3)), "x and y must be"),
    (lambda: sinkhorn_distance(rand(3, 2), rand(4, 2)), "got 3 and 4"),
    (lambda: sinkhorn_distance(rand(3, 2), rand(3, 2), value="dual"), "value must be .* 'dual'"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message): call()
