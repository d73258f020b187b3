"Power grids: a quantizer in plain Python, facts for any input, refusals."
import math

import pytest
import torch
from draws import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kullback.quantize import (
    companding_distortion,
    kmeans_1d,
    optimal_exponent,
    power_dequantize,
    power_exponent_search,
    power_fake_quantize,
    power_levels,
    power_quantize,
)


def plain(row, a, bits):
    "One row in Python floats, through the largest magnitude's power as the card of PowerQuant has it."
    n, M = 2**(bits - 1) - 1, max(map(abs, row)) or 1.
    codes = [round(math.copysign(abs(v)**a*n/M**a, v)) for v in row]
    return codes, [math.copysign((abs(q)*M**a/n)**(1/a), q) if q else 0. for q in codes]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 8), st.floats(.2, 1.4))
def test_against_plain_python(seed, bits, a):
    w = normal(3, 17, seed=seed)
    codes, scale = power_quantize(w, a, bits, dim=0)
    both = [plain(row, a, bits) for row in w.tolist()]
    assert codes.tolist() == [q for q, _ in both]
    assert_close(power_dequantize(codes, scale, a, bits), torch.tensor([v for _, v in both], dtype=torch.float64),
                 rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(.2, 1.4), st.sampled_from(["warp", "weight"]), st.sampled_from([None, 0, 1]))
def test_twice_is_once_odd_and_equivariant(seed, bits, a, nearest, dim):
    w = normal(5, 9, seed=seed)
    w[0, 0] = 0.
    f = lambda x: power_fake_quantize(x, a, bits, dim=dim, nearest=nearest)  # noqa: E731
    v = f(w)
    assert v[0, 0] == 0
    assert_close(f(v), v, rtol=1e-12, atol=1e-12)
    assert torch.equal(f(-w), -v)
    assert_close(f(2.7*w), 2.7*v, rtol=1e-10, atol=1e-10)


def test_channels_are_quantized_alone():
    w = normal(4, 3, 2, 2)
    codes, scale = power_quantize(w, .6, 4, dim=0)
    assert scale.shape == (4, 1, 1, 1) and codes.dtype == torch.int32
    for row, q, M in zip(w, *power_quantize(w, .6, 4, dim=0)):
        alone, top = power_quantize(row, .6, 4)
        assert torch.equal(q, alone) and M.item() == top.item()
    assert torch.equal(power_quantize(w, .6, 4, dim=-4)[1], scale)


def test_a_narrow_scale_clips():
    codes, scale = power_quantize(torch.tensor([-3., .1, 2.]), .5, 3, scale=1.)
    assert codes.tolist() == [-3, 1, 3] and scale == 1


@pytest.mark.parametrize("a", [.4, 1., 1.4])
def test_slopes_are_finite_with_zeros(a):
    w = torch.tensor([0., 0., .3, -.7, 1.], dtype=torch.float64, requires_grad=True)
    x = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    out = power_fake_quantize(w, x, 3)
    out.sum().backward()
    assert torch.equal(w.grad, torch.ones(5).double()) and x.grad.isfinite()
    codes, M = power_quantize(w, a, 3)
    h = 1e-6
    slope = (power_dequantize(codes, M, a + h, 3) - power_dequantize(codes, M, a - h, 3)).sum()/(2*h)
    assert_close(x.grad, slope, rtol=1e-6, atol=1e-8)


def test_levels_become_geometric():
    "As a → 0 the ratio of neighbours is (k+1)/k to the power 1/a: a log-like grid."
    levels = power_levels(.1, 3, torch.tensor(2.).double())[-3:]
    assert_close(levels, 2*torch.tensor([1/3, 2/3, 1.]).double()**10)


@pytest.mark.parametrize("bits", [3, 4])
def test_floor_power_uniform(bits):
    w = normal(2000, seed=3)
    a, errors = power_exponent_search([w], bits)
    power, uniform = ((power_fake_quantize(w, e, bits) - w).square().sum() for e in (a, 1.))
    assert kmeans_1d(w, 2**bits - 1)[2] <= power <= uniform
    assert power.sqrt() <= errors.min()
    assert_close(errors[0, 80], uniform.sqrt())


def test_search_shares_or_not():
    w = [normal(50, seed=1), normal(30, 4, seed=2)]
    a, errors = power_exponent_search(w, 4, dim=0, shared=False)
    assert a.shape == (2,) and errors.shape == (2, 101)
    shared, same = power_exponent_search(w, 4, dim=0)
    assert shared.shape == () and torch.equal(same, errors)


def test_distortion_is_differentiable_and_the_optimum_flat():
    w = normal(500, seed=5)
    w[:40] = 0.
    best = optimal_exponent(w)
    near = best + torch.tensor([-.01, 0., .01])
    costs = [companding_distortion(a, w, 6) for a in near]
    assert costs[1] < costs[0] and costs[1] < costs[2]
    assert optimal_exponent(torch.ones(4)) == 1.5                     # all at ±M: the more, the better
    assert companding_distortion(1., w, 6) == pytest.approx(float(w.abs().max()**2/12/31**2*(460/500)))


def test_refusals():
    w = normal(3, 4)
    for bad in (dict(a=0.), dict(a=-1.), dict(a=torch.tensor(-.5)), dict(bits=1), dict(bits=2.5), dict(nearest="level")):
        with pytest.raises(ValueError): power_quantize(**{**dict(w=w, a=.5, bits=3), **bad})
    with pytest.raises(ValueError, match="-2"): power_quantize(w, .5, 3, scale=-2.)
    with pytest.raises(ValueError, match="hold"): power_exponent_search([], 3)
    with pytest.raises(ValueError, match="grid"): power_exponent_search([w], 3, grid=(0., 1., .1))
    with pytest.raises(ValueError, match="other than 0"): optimal_exponent(0*w)
    with pytest.raises(ValueError, match="hold weights"): companding_distortion(.5, w[:0], 3)
