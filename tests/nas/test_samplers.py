"Samplers of mixtures: projections, draws, and where they break."
import pytest
import torch
from scipy.optimize import minimize
from torch.autograd import gradcheck
from torch.testing import assert_close

from kullback.nas import (
    dirichlet_alpha,
    dirichlet_anchor_kl,
    gumbel_hard,
    softmax_alpha,
    sparsemax,
    uniform_one_hot,
)


def gen(seed=0): return torch.Generator().manual_seed(seed)


def test_sparsemax_solves_the_quadratic_programme():
    z = 2*torch.randn(5, generator=gen(), dtype=torch.float64)
    found = minimize(lambda a: ((a - z.numpy())**2).sum(), [.2]*5, bounds=[(0, 1)]*5, tol=1e-12,
                     constraints={"type": "eq", "fun": lambda a: a.sum() - 1})
    assert_close(sparsemax(z), torch.tensor(found.x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_sparsemax_along_any_axis(dim):
    z = torch.randn(3, 4, 5, generator=gen(), dtype=torch.float64)
    assert_close(sparsemax(z, dim), sparsemax(z.movedim(dim, -1)).movedim(-1, dim))
    assert gradcheck(lambda z: sparsemax(z, dim), z.requires_grad_())


def test_sparsemax_with_ties_and_far_scores():
    assert sparsemax(torch.tensor([3., 3., 0.])).tolist() == [.5, .5, 0]
    assert sparsemax(torch.tensor([1e6, 0.])).tolist() == [1, 0]
    assert sparsemax(torch.tensor([4.])).tolist() == [1]


def test_a_dirichlet_draw_is_torch_s_own():
    beta = torch.randn(6, 3, generator=gen(), dtype=torch.float64).requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = torch.distributions.Dirichlet(torch.nn.functional.elu(beta) + 1).rsample()
    ours = dirichlet_alpha(beta, gen(1))
    assert torch.equal(ours, theirs)
    up = torch.randn(6, 3, generator=gen(2), dtype=torch.float64)
    assert_close(*(torch.autograd.grad((a*up).sum(), beta)[0] for a in (ours, theirs)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [-1e4, -20., 0., 50.])
def test_dirichlet_stays_on_the_simplex(value):
    beta = torch.full((200, 4), value).requires_grad_()
    alpha = dirichlet_alpha(beta, gen())
    assert (alpha >= 0).all()
    assert_close(alpha.sum(-1), torch.ones(200))
    alpha[:, 0].sum().backward()
    assert beta.grad.isfinite().all() and dirichlet_anchor_kl(beta.detach()).isfinite()


def test_a_dirichlet_draw_beside_meta():
    beta = torch.randn(2, 4, generator=gen()).requires_grad_()
    g = gen(1)
    with torch.device("meta"): alpha = dirichlet_alpha(beta, g)
    alpha[:, 0].sum().backward()
    assert alpha.device.type == beta.grad.device.type == "cpu"


def test_the_anchor_is_a_divergence_of_torch():
    beta = torch.randn(4, 5, generator=gen(), dtype=torch.float64)
    c = torch.nn.functional.elu(beta) + 1
    laws = torch.distributions.Dirichlet(c), torch.distributions.Dirichlet(torch.ones_like(c))
    assert_close(dirichlet_anchor_kl(beta, .3), .3*torch.distributions.kl_divergence(*laws).sum(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gumbel_is_one_hot_to_the_last_bit(dtype):
    alpha = gumbel_hard(torch.randn(1000, 7, generator=gen(), dtype=dtype), .1, gen(1))
    assert ((alpha == 0) | (alpha == 1)).all() and (alpha.sum(-1) == 1).all() and alpha.dtype == dtype


def test_same_generator_same_draw():
    beta = torch.randn(4, generator=gen())
    for draw in (lambda g: dirichlet_alpha(beta, g), lambda g: gumbel_hard(beta, 1., g), lambda g: uniform_one_hot(4, g)):
        assert torch.equal(draw(gen(3)), draw(gen(3)))


def test_refusals():
    with pytest.raises(ValueError, match=r"got \(0,\)"): softmax_alpha(torch.zeros(0))
    with pytest.raises(ValueError, match="int64"): sparsemax(torch.arange(3))
    with pytest.raises(ValueError, match="temperature must be positive, got -1"): gumbel_hard(torch.zeros(2), -1)
    with pytest.raises(ValueError, match="got 1.5"): uniform_one_hot(1.5)
    with pytest.raises(ValueError, match="got nan"): dirichlet_anchor_kl(torch.zeros(2), float("nan"))
