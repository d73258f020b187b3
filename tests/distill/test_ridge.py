"Self-distillation of a kernel ridge: the authors' printed losses, scikit-learn's fit, and what the rounds may not do."
import math
from functools import partial

import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from torch.testing import assert_close

from kullback.distill import brier_self_distill_loss, kernel_ridge_fit, optimal_alpha, self_distill, shrinkage
from kullback.divergence import rbf_kernel

close = partial(assert_close, rtol=0)
# the eleven points of Mobahi, Farajtabar and Bartlett (2020), as the authors' toy_example.ipynb lists them
SINE = [0.38476636465198066, 1.2333967683416893, 1.33232242218057, 0.69201594888895180, -0.29756145531871736,
        -0.24189291901377769, -0.7964485769175675, -0.9616480167034174, -0.49672509509916934, -0.3469066003991437,
        0.5589512650600734]
# test losses that notebook prints, steps 1..6 and the limit; and the README's column headed α = 0.25
PRINTED = {0.: [.16477, .15076, .14915, .15561, .16735, .18251, .49505],
           .25: [.16477, .15309, .14958, .14903, .14946, .15011, .15250],
           .35: [.16477, .15424, .15089, .14983, .14954, .14948, .14959]}


def problem(seed=0, n=15, c=None):
    g = torch.Generator().manual_seed(seed)
    X, X_new = (torch.randn(k, 3, generator=g, dtype=torch.float64) for k in (n, 20))
    y = torch.randn(*((n,) if c is None else (n, c)), generator=g, dtype=torch.float64)
    return rbf_kernel(X, X, .3), y, rbf_kernel(X_new, X, .3)


@pytest.mark.parametrize("alpha", PRINTED)
def test_losses_the_authors_print(alpha):
    X, x = (torch.arange(n, dtype=torch.float64)[:, None]/(n - 1) for n in (11, 101))
    K, K_new, y = rbf_kernel(X, X, 80.), rbf_kernel(x, X, 80.), torch.tensor(SINE).double()
    preds = self_distill(K, y, .2, alpha, 6, K_new)["preds"]
    end = K_new @ kernel_ridge_fit(K, y, .2/alpha) if alpha else torch.zeros(101)
    losses = (torch.cat([preds, end[None]]) - torch.sin(2*math.pi*x[:, 0])).square().mean(1)
    close(losses, torch.tensor(PRINTED[alpha]).double(), atol=5.5e-6)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("alpha", [-.4, 0., .3, 1., 1.7])
def test_steps_equal_scikit_learn_on_mixed_targets(steps, alpha):
    K, y, K_new = problem(1, c=2)
    past = y.numpy()
    for _ in range(steps):
        peer = KernelRidge(alpha=.4, kernel="precomputed").fit(K.numpy(), alpha*y.numpy() + (1 - alpha)*past)
        past = peer.predict(K.numpy())
    out = self_distill(K, y, .4, alpha, steps, K_new)
    assert out["targets"].shape == (steps + 1, 15, 2) and out["preds"].shape == (steps, 20, 2)
    close(out["targets"][-1], torch.from_numpy(past), atol=1e-10)
    close(out["preds"][-1], torch.from_numpy(peer.predict(K_new.numpy())), atol=1e-10)


def test_one_target_is_a_column_of_many():
    K, y, K_new = problem(2, c=3)
    whole = self_distill(K, y, .1, (.2, .9, .4), 3, K_new)
    for j in range(3):
        one = self_distill(K, y[:, j], .1, (.2, .9, .4), 3, K_new)
        for part in ("targets", "preds"): close(one[part], whole[part][..., j], atol=1e-12)
    assert self_distill(K, y, .1, .5, 2)["preds"] is None


@pytest.mark.parametrize("alpha", [0., .3, 1., 1.6])
def test_closed_form_equals_rounds(alpha):
    K, y, _ = problem(3)
    d, V = torch.linalg.eigh(K)
    rounds = self_distill(K, y, .2, alpha, 8)["targets"]
    for tau in range(1, 9): close(V @ (shrinkage(d, .2, alpha, tau)*(V.T @ y)), rounds[tau], atol=1e-10)


def test_limit_is_more_ridge():
    K, y, _ = problem(4)
    d, V = torch.linalg.eigh(K)
    for alpha in (.05, .5, 1.):
        end = V @ (shrinkage(d, .3, alpha, math.inf)*(V.T @ y))
        close(end, K @ kernel_ridge_fit(K, y, .3/alpha), atol=1e-9)
    assert (1 - .5)*(d/(d + .3)).max() < .9
    close(shrinkage(d, .3, .5, 200), shrinkage(d, .3, .5, math.inf), atol=1e-8)
    assert not shrinkage(d.clamp(min=0), .3, 0., math.inf).any()


def test_ratios_of_random_pairs():
    "Above the first fit's from the second round on, but most come down again; unbounded without truth."
    g = torch.Generator().manual_seed(5)
    low = torch.rand(2000, generator=g, dtype=torch.float64)*2 + .05
    high, alphas = low*(1.2 + torch.rand(2000, generator=g, dtype=torch.float64)), (.1, .3, .6)
    for alpha in alphas:
        steps = [1, 2, 3, 4, 5, 6, math.inf]
        R = torch.stack([shrinkage(high, 1., alpha, t)/shrinkage(low, 1., alpha, t) for t in steps])
        assert (R[1:] > R[0]).all()
        close(R[-1], high*(alpha*low + 1)/(low*(alpha*high + 1)), atol=1e-10)
        assert (R[:-1].diff(dim=0) < 0).any(0).double().mean() > .5
    bare = torch.stack([shrinkage(high, 1., 0., t)/shrinkage(low, 1., 0., t) for t in range(1, 40)])
    assert (bare.diff(dim=0) > 0).all()
    close(bare[4], bare[0]**5, atol=1e-8)


def test_best_weight_is_the_least_squares_one():
    g = torch.Generator().manual_seed(6)
    gt, last, v = (torch.randn(40, 2, generator=g, dtype=torch.float64) for _ in range(3))
    fitted = torch.linalg.lstsq((gt - last).reshape(-1, 1), (v - last).reshape(-1, 1)).solution.item()
    assert abs(optimal_alpha(gt, last, v) - fitted) < 1e-12
    assert optimal_alpha(gt, last, last - 3*(gt - last)) == pytest.approx(-3, abs=1e-12)
    assert optimal_alpha(gt, last, last - 3*(gt - last), clip=True) == 0.
    assert type(optimal_alpha(gt.float(), last.float(), v.float())) is float


def test_loss_of_the_first_round_needs_no_teacher():
    g = torch.Generator().manual_seed(7)
    z, a, b = (torch.randn(5, 4, generator=g, dtype=torch.float64) for _ in range(3))
    hot = torch.eye(4, dtype=torch.float64)[[0, 1, 3, 3, 2]]
    assert brier_self_distill_loss(z, hot, a, 1.) == brier_self_distill_loss(z, hot, b, 1.)
    assert brier_self_distill_loss(z, hot, z, 0.) == 0


K3, y3 = torch.eye(3), torch.ones(3)


@pytest.mark.parametrize("call, said", [
    (lambda: kernel_ridge_fit(K3, y3, -1.), "got -1"), (lambda: kernel_ridge_fit(K3, torch.ones(4), 1.), r"got \(4,\)"),
    (lambda: kernel_ridge_fit(torch.ones(3), y3, 1.), r"got \(3,\)"), (lambda: kernel_ridge_fit(K3, y3, math.nan), "got nan"),
    (lambda: kernel_ridge_fit(K3, torch.ones(3, 1, 1), 1.), r"got \(3, 1, 1\)"),
    (lambda: self_distill(K3, y3, 1., .5, 0), "got 0"), (lambda: self_distill(K3, y3, 1., [.5], 2), "got 1"),
    (lambda: self_distill(K3, y3, 1., math.nan, 2), "got .nan"), (lambda: self_distill(K3, y3, 0., .5, 2), "got 0"),
    (lambda: self_distill(K3, y3, 1., .5, 2, torch.ones(3, 2)), r"got \(3, 2\)"),
    (lambda: shrinkage(y3, 1., .5, 0), "got 0"), (lambda: shrinkage(y3, 1., .5, 1.5), "got 1.5"),
    (lambda: shrinkage(y3, 1., -.1, 2), "got -0.1"), (lambda: shrinkage(y3, 0., .5, 2), "got 0"),
    (lambda: shrinkage(-2*y3, 1., .5, 2), "got -2"), (lambda: shrinkage(y3, 1., 3., math.inf), "alpha 3"),
    (lambda: optimal_alpha(y3, y3, y3), "coincide"), (lambda: optimal_alpha(y3, K3, y3), "shapes differ"),
    (lambda: brier_self_distill_loss(K3, K3, K3, math.inf), "got inf"),
    (lambda: brier_self_distill_loss(K3, K3, K3[:2], .5), "shapes differ")])
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said): call()
