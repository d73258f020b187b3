"Uniform grids: PyTorch's kernels, a quantizer in plain Python, facts for any input."
import math

import pytest
import torch
from draws import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kullback.quantize import fake_quantize, quant_params, round_ste, rtn, uniform_codes, uniform_values


def plain(row, bits, symmetric):
    "One row in Python floats; Python's round() also takes halves to even."
    top, bottom = max(0., *row), min(0., *row)
    if symmetric:
        low, high = -2**(bits - 1), 2**(bits - 1) - 1
        s, z = max(top/high, bottom/low), 0
    else:
        low, high = 0, 2**bits - 1
        s = (top - bottom)/high
        z = round(-bottom/s)
    return [s*(min(max(round(v/s) + z, low), high) - z) for v in row]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 8), st.booleans(), st.floats(-3, 3))
def test_against_plain_python(seed, bits, symmetric, shift):
    x = normal(3, 17, seed=seed) + shift
    want = torch.tensor([plain(row, bits, symmetric) for row in x.tolist()], dtype=torch.float64)
    assert_close(fake_quantize(x, bits, symmetric), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_is_bitwise(dtype):
    x = (100*normal(10**5)).to(dtype)
    assert torch.equal(round_ste(x), x.round())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 6), st.booleans(), st.booleans())
def test_levels_error_idempotence_and_zero(seed, bits, symmetric, mse):
    x = normal(6, 40, seed=seed)
    x[:, 3] = 0.
    scale, zero_point = quant_params(x, bits, symmetric, mse=mse)
    y = fake_quantize(x, bits, symmetric, mse=mse)
    assert all(row.unique().numel() <= 2**bits for row in y)
    assert (y[:, 3] == 0).all()
    if mse:
        wide = fake_quantize(x, bits, symmetric)
        assert ((y - x).square().sum(-1) <= (wide - x).square().sum(-1)*(1 + 1e-12)).all()
    else:
        assert ((y - x).abs() <= scale/2*(1 + 1e-9)).all()
        assert_close(fake_quantize(y, bits, symmetric), y, rtol=0, atol=1e-12)
    assert torch.equal(zero_point, zero_point.round())


def test_mse_search_is_the_best_of_its_eighty():
    x = normal(5, 30, seed=4)
    scale, zero = quant_params(x, 3)
    errors = []
    for i in range(80):
        s = scale*(1 - i/100)
        errors.append((s*(x/s).round().clamp(-4, 3) - x).square().sum(-1))
    want = scale[:, 0]*(1 - torch.stack(errors).argmin(0)/100)
    assert_close(quant_params(x, 3, mse=True)[0][:, 0], want)
    one = quant_params(x, 3, granularity="per_tensor", mse=True)[0]
    assert_close(one, quant_params(x.reshape(1, -1), 3, mse=True)[0].squeeze())


def test_the_ends_of_the_grid_keep_their_gradient():
    "All codes of this row are its first and last; torch.clamp alone may give them none."
    x = torch.tensor([[-4., 3., -4., 3.]], dtype=torch.float64, requires_grad=True)
    scale, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    uniform_values(uniform_codes(x, scale, zero, 3), scale, zero).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_groups_leading_axes_and_scales():
    x = normal(2, 3, 24)
    scale, zero = quant_params(x, 4, False, group_size=8)
    assert scale.shape == zero.shape == (2, 3, 3, 1)
    codes = uniform_codes(x, scale, zero, 4, False, group_size=8)
    assert codes.min() >= 0 and codes.max() <= 15 and torch.equal(codes, codes.round())
    assert torch.equal(uniform_values(codes, scale, zero, group_size=8), fake_quantize(x, 4, False, group_size=8))
    assert torch.equal(fake_quantize(x, 4, False, group_size=24), fake_quantize(x, 4, False))


def test_negative_rows_have_one_step_more():
    row = torch.tensor([[-8., -1.]])
    assert quant_params(row, 4)[0].item() == 1. and quant_params(-row, 4)[0].item() == pytest.approx(8/7)


def test_rows_of_zeros_and_rtn():
    assert torch.equal(rtn(torch.zeros(2, 5), 3), torch.zeros(2, 5))
    w = normal(4, 9).requires_grad_()
    assert not rtn(w, 3).requires_grad
    assert_close(rtn(math.pi*w, 3), math.pi*rtn(w, 3))


def test_clip_ratio_narrows_both_ends():
    x = normal(4, 50)
    for symmetric in (True, False):
        assert_close(quant_params(x, 4, symmetric, clip_ratio=.5)[0], quant_params(x, 4, symmetric)[0]/2)
