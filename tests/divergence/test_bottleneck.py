"The bottleneck's loss against its parts in other words; NIB's bound against quadrature."
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from kullback.divergence import (
    CSInformationBottleneck,
    conditional_cs_divergence,
    cs_ib_loss,
    cs_mutual_information,
    nib_upper_bound,
)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_model_hands_out_both():
    encoder, decoder = nn.Linear(4, 3).double(), nn.Linear(3, 1).double()
    x = randn(5, 4)
    y_hat, t = CSInformationBottleneck(encoder, decoder)(x)
    assert_close(t, encoder(x)); assert_close(y_hat, decoder(encoder(x)))
    assert len(list(CSInformationBottleneck(encoder, decoder).parameters())) == 4


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("denominator", ["squared_sum", "sum_of_squares"])
def test_every_option_reaches_its_term(normalized, denominator):
    x, y, t, z = randn(20, 3), randn(20, 2, seed=1), randn(20, 2, seed=2), randn(20, 2, seed=3)
    loss, parts = cs_ib_loss(x, y, t, z, .7, (1.5, .8, 2.), normalized, denominator, 2)
    fit = conditional_cs_divergence(x, y, z, (1.5, .8), denominator, 2)
    compression = cs_mutual_information(x, t, (1.5, 2.), normalized, 2)
    assert_close(loss, fit + .7*compression)
    assert parts.keys() == {"fit", "compression"}
    assert_close(parts["fit"], fit); assert_close(parts["compression"], compression)
    assert_close(cs_ib_loss(x, y, t, z, 0., (1.5, .8, 2.), normalized, denominator, 2)[0], fit)


def test_order_and_motion_of_the_batch_do_not_matter():
    x, y, t, z = randn(20, 3), randn(20, seed=1), randn(20, 2, seed=2), randn(20, seed=3)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    turn = torch.linalg.qr(randn(3, 3, seed=5))[0]
    assert_close(cs_ib_loss((x @ turn)[order] + 9, y[order] - 2, -t[order], z[order] - 2, .5)[0], cs_ib_loss(x, y, t, z, .5)[0])


def test_nib_bounds_the_information_of_a_mixture():
    "I(x; t) by quadrature on a line."
    m = torch.tensor([-2., -1.5, 0., .3, 4.]).double()
    grid = np.linspace(-12, 14, 40_001)
    for s in (.2, .7, 2.):
        each = np.exp(-(grid - m.numpy()[:, None])**2/(2*s*s))/math.sqrt(2*math.pi)/s
        mixture = each.mean(0)
        entropy = -np.trapezoid(mixture*np.log(mixture + 1e-300), grid)
        truth = entropy - .5*math.log(2*math.pi*math.e*s*s)
        upper, lower = nib_upper_bound(m[:, None], s*s), nib_upper_bound(m[:, None], 4*s*s)
        assert lower - 1e-9 <= truth <= upper + 1e-9 <= math.log(5) + 1e-8
        by_hand = -np.log(np.exp(-(m[:, None] - m).numpy()**2/(2*s*s)).mean(1)).mean()
        assert_close(upper.item(), by_hand)
        assert_close(nib_upper_bound(m[:, None], torch.tensor(s*s).double()), upper)


@pytest.mark.parametrize("call, message", [
    (lambda: cs_ib_loss(randn(5, 2), randn(5), randn(5, 2), randn(5), -1.), "beta must not be negative, got -1.0"),
    (lambda: cs_ib_loss(randn(5, 2), randn(5), randn(4, 2), randn(5), 1.), "rows differ"),
    (lambda: cs_ib_loss(randn(5, 2), randn(5), randn(5), randn(5), 1.), r"t must be \(N, d\)"),
    (lambda: nib_upper_bound(randn(5), 1.), r"mean must be \(N, d\)"),
    (lambda: nib_upper_bound(randn(5, 2), -1.), "noise_var must be positive, got -1.0"),
    (lambda: nib_upper_bound(randn(5, 2), torch.tensor(0.)), "noise_var must be positive, got 0.0"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message): call()
