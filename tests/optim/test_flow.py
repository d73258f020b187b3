"The flow against SciPy's integrators; the height against its definition."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch.testing import assert_close

from kullback.divergence import bregman
from kullback.optim import get_kernel, lion_flow, lyapunov

SETTING = dict(alpha=1.3, gamma=.8, lam=1.5, eps=.6)
SMOOTH = ["l2sq", "huber(0.3)", "logsumexp"]


def problem(seed, d=5):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    B, b = draw(2*d, d), draw(d)
    A = B.T @ B/(2*d)
    return draw, (lambda x: x @ A @ x/2 - b @ x), (lambda x: A @ x - b)


@pytest.mark.parametrize("name", SMOOTH)
def test_euler_converges_to_the_flow_at_first_order(name):
    draw, _, slope = problem(0)
    kernel, (x, m) = get_kernel(name), (draw(5), draw(5))
    def velocity(t, state):
        x, m = torch.from_numpy(state).split(5)
        dm = -SETTING["alpha"]*slope(x) - SETTING["gamma"]*m
        return torch.cat([kernel.grad(m + SETTING["eps"]*dm) - SETTING["lam"]*x, dm]).numpy()
    exact = solve_ivp(velocity, (0, 1), np.concatenate([x, m]), rtol=1e-11, atol=1e-12, max_step=.01).y[:, -1]
    errors = []
    for n in (200, 400):
        path = lion_flow(slope, x, m, name, **SETTING, dt=1/n, n_steps=n)
        errors.append(np.abs(torch.cat([path.x[-1], path.m[-1]]).numpy() - exact).max())
    assert errors[1] < .01 and 1.8 < errors[0]/errors[1] < 2.2
    assert_close(path.t[-1], torch.tensor(1., dtype=torch.float64))


INVERSE = {"l2sq": lambda y: y, "huber(0.3)": lambda y: .3*y, "logsumexp": lambda y: y.log()}  # a v with ∇K(v) = y


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SMOOTH), st.integers(0, 999), st.floats(.3, 3), st.floats(.3, 3), st.floats(.3, 3), st.floats(.05, 1))
def test_rate_of_the_height(name, seed, alpha, gamma, lam, part):
    "Autograd through `lyapunov` along the velocities: minus two symmetrised Bregman divergences, for all coefficients."
    draw, f, slope = problem(seed)
    kernel, eps = get_kernel(name), part/gamma
    x, m = kernel.grad(.2*draw(5))/lam, draw(5)
    dm = -alpha*slope(x) - gamma*m
    z, v, c = m + eps*dm, INVERSE[name](lam*x), (1 - eps*gamma)/(1 + eps*lam)
    x_, m_ = x.clone().requires_grad_(), m.clone().requires_grad_()
    gx, gm = torch.autograd.grad(lyapunov(f(x_), x_, m_, name, alpha, gamma, lam, eps), (x_, m_))
    both_ways = lambda a, b: bregman(kernel, a, b) + bregman(kernel, b, a)
    rate = gx @ (kernel.grad(z) - lam*x) + gm @ dm
    assert_close(rate, -(gamma + c*lam)*both_ways(z, v) - c/eps*both_ways(z, m), rtol=1e-8, atol=1e-8)
    assert rate <= 0


@pytest.mark.parametrize("name", [*SMOOTH, "lp(1.5)", "topk(2)", "nuclear"])
def test_height_over_momenta_is_lowest_at_the_objective(name):
    kernel, g = get_kernel(name), torch.Generator().manual_seed(1)
    best = torch.randn(3, 2, generator=g, dtype=torch.float64)
    x = kernel.grad(best)/SETTING["lam"]
    F = SETTING["alpha"]*2. + SETTING["gamma"]/SETTING["lam"]*kernel.conjugate(kernel.grad(best))
    height = lambda m: lyapunov(torch.tensor(2., dtype=torch.float64), x, m, name, **SETTING)
    assert_close(height(best), F, rtol=1e-12, atol=1e-12)
    for _ in range(20): assert height(best + torch.randn(3, 2, generator=g, dtype=torch.float64)) >= F - 1e-12


def test_height_is_infinite_outside():
    x = torch.tensor([.9, 0.])
    assert lyapunov(torch.tensor(0.), x, x, "l1", **SETTING) == torch.inf
    assert lyapunov(torch.tensor(0.), .5*x, x, "l1", **SETTING).isfinite()


@pytest.mark.parametrize("bad, why", [(dict(alpha=0.), "alpha"), (dict(gamma=-1.), "gamma"), (dict(lam=0.), "lam"),
                                      (dict(eps=-.1), "eps"), (dict(eps=9.), "eps")])
def test_refusals(bad, why):
    x = torch.zeros(2)
    with pytest.raises(ValueError, match=why): lyapunov(x.sum(), x, x, "l1", **{**SETTING, **bad})
    with pytest.raises(ValueError, match=why): lion_flow(lambda x: x, x, x, "l1", **{**SETTING, **bad}, dt=.1, n_steps=1)
