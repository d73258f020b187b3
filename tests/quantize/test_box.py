"Hadamard orders, the best rotation against its closed form, slopes."
import math

import pytest
import torch
from draws import normal
from torch.testing import assert_close

from kullback.quantize import (
    hadamard,
    klt_hadamard,
    log_qsur,
    optimal_rotation,
    random_hadamard,
    random_orthogonal,
)


@pytest.mark.parametrize("n", [1, 2, 4, 12, 16, 20, 40, 48, 128])
def test_hadamard(n):
    for h in (hadamard(n), random_hadamard(n, torch.Generator().manual_seed(n))):
        assert_close(h @ h.T, torch.eye(n).double(), rtol=0, atol=1e-12)
        assert_close(h.abs(), torch.full((n, n), n**-.5).double())


@pytest.mark.parametrize("n", [0, 3, 6, 10, 18, 2.5])
def test_orders_without_a_matrix_are_refused(n):
    with pytest.raises(ValueError, match=str(n)): hadamard(n)


@pytest.mark.parametrize("d", [2, 8, 12, 256])
def test_best_rotation_meets_the_closed_form(d):
    a = normal(d, 2*d + 3, seed=d)
    cov = a @ a.T
    t, lam = optimal_rotation(cov), torch.linalg.eigvalsh(cov)
    want = d/2*math.log(math.pi) - math.lgamma(d/2 + 1) - d*math.log(2) + lam.log().sum()/2 - d/2*lam.mean().log()
    assert_close(log_qsur(t @ cov @ t.T), want, rtol=0, atol=1e-10)
    r = random_orthogonal(d, torch.Generator().manual_seed(0))
    assert log_qsur(r @ cov @ r.T) <= want
    k = klt_hadamard(a.T)
    assert_close((k.T @ a.cov() @ k).diagonal(), a.cov().trace().div(d).expand(d))


def test_slopes():
    a = normal(4, 4)
    cov, mean = (a @ a.T + torch.eye(4)).requires_grad_(), normal(4, seed=1).requires_grad_()
    for extent in ("box", "principal"):
        assert torch.autograd.gradcheck(lambda c, m, e=extent: log_qsur((c + c.T)/2, m, e), (cov, mean))
