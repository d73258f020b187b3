"`divergence.information`: exact identities of conditional information; bounds against enumeration and Gaussians."
import math

import pytest
import torch
from draws import labelled
from draws import normal as draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kullback.divergence import (
    categorical_kl,
    class_means,
    conditional_mutual_information,
    dv_bound,
    entropy_from_logits,
    infonce_bound,
    kl_from_logits,
    log_loo_mean_exp,
    log_mean_exp_offdiag,
    mi_alpha_bound,
    nwj_bound,
    tuba_bound,
)

EXACT = dict(rtol=0, atol=1e-10)


# class means

@settings(max_examples=40, deadline=None)
@given(N=st.integers(4, 40), D=st.integers(1, 5), C=st.integers(1, 4), seed=st.integers(0, 1000))
def test_means_are_a_group_by(N, D, C, seed):
    x, y = draw(N, D, seed=seed), labelled(N, C, seed)
    means = class_means(x, y, C)
    for c in range(C): assert_close(means[c], x[y == c].mean(0), **EXACT)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    assert_close(class_means(x[order], y[order], C), means, **EXACT)
    assert_close(class_means(x.float().bfloat16(), y, C).double(), means, rtol=2e-2, atol=2e-2)   # summed in float32
    assert_close(class_means(x@draw(D, 3), y, C), means@draw(D, 3), **EXACT)                      # linear


def test_one_member_is_its_own_mean():
    x = draw(3, 5)
    assert torch.equal(class_means(x, torch.tensor([2, 0, 1]), 3), x[[1, 2, 0]])


def test_many_members_in_half_precision():
    "Counts are integers and sums float32: a sum of 500,000 would overflow in float16, its mean is 100."
    assert (class_means(torch.full((5000, 2), 100, dtype=torch.float16), torch.zeros(5000, dtype=torch.long), 1) == 100).all()


def test_mean_gradient():
    y, leaf = labelled(), draw(60, 3).requires_grad_()
    grad, = torch.autograd.grad(class_means(leaf, y, 4).sum(), leaf)
    assert_close(grad, (1/torch.bincount(y).double())[y][:, None].expand(-1, 3), **EXACT)


# conditional mutual information

@pytest.mark.parametrize("weights", ["empirical", "uniform"])
def test_entropy_form(weights):
    P, y = draw(60, 5, scale=2.).softmax(-1), labelled()
    Q, H = class_means(P, y, 4), lambda p: entropy_from_logits(p.log())
    within = class_means(H(P)[:, None], y, 4)[:, 0]
    share = torch.bincount(y).double()/60 if weights == "empirical" else torch.full((4,), .25).double()
    assert_close(conditional_mutual_information(P, y, 4, weights), (share*(H(Q) - within)).sum(), **EXACT)


def test_as_a_divergence_of_joints():
    "I(X;Ŷ|Y) = D( P(x,y,ŷ) ‖ P(y)P(x|y)P(ŷ|y) ), summed over the whole table."
    P, y = draw(12, 5, scale=2.).softmax(-1), labelled(12, 3)
    joint, factored = P/12, class_means(P, y, 3)[y]/12
    assert_close(conditional_mutual_information(P, y, 3), categorical_kl(joint.flatten(), factored.flatten()), **EXACT)


def test_ends():
    y = torch.arange(3).repeat(8)
    constant = draw(3, 3).softmax(-1)[y]
    assert conditional_mutual_information(constant, y).abs() < 1e-15
    spread, classes = torch.eye(4).double().repeat(12, 1), torch.arange(4).repeat_interleave(12)
    assert_close(conditional_mutual_information(spread, classes), torch.tensor(4.).double().log(), **EXACT)
    logits, y = draw(60, 4, scale=2.), labelled()
    assert conditional_mutual_information((logits/1e4).softmax(-1), y) < 1e-7
    correct = (logits + 20*torch.nn.functional.one_hot(y, 4))/1e-2
    assert conditional_mutual_information(correct.softmax(-1), y).abs() < 1e-12


def test_any_other_centre_asks_more():
    logits, y = draw(60, 5, scale=2.), labelled()
    P, Q = logits.softmax(-1), draw(4, 5, seed=3).softmax(-1)
    I = conditional_mutual_information(P, y, 4)
    surrogate = kl_from_logits(logits, Q.log()[y]).mean()
    share = torch.bincount(y).double()/60
    assert_close(surrogate, I + (share*categorical_kl(class_means(P, y, 4), Q)).sum(), **EXACT)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([.1, 1., 10., 1e3]))
def test_range_permutation_and_data_processing(seed, scale):
    P, y = draw(40, 5, seed=seed, scale=scale).softmax(-1), labelled(40, 4, seed)
    I = conditional_mutual_information(P, y, 4)
    assert -1e-12 <= I <= math.log(5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    assert_close(conditional_mutual_information(P[order], y[order], 4), I, **EXACT)
    channel = draw(5, 3, seed=seed + 1, scale=2.).softmax(-1)
    assert conditional_mutual_information(P@channel, y, 4) <= I + 1e-12
    assert conditional_mutual_information(torch.cat([P[:, :3], P[:, 3:].sum(1, keepdim=True)], 1), y, 4) <= I + 1e-12


@pytest.mark.parametrize("dtype, tiny", [(torch.float32, 1e-45), (torch.float64, 5e-324)])
def test_probabilities_at_the_edge_of_underflow(dtype, tiny):
    "The smallest number divided by the size of its class is 0; its divergence from the centroid is not ∞."
    probs = torch.tensor([[1., tiny], [1., 0.], [1., 0.], [.5, .5]], dtype=dtype, requires_grad=True)
    I = conditional_mutual_information(probs, torch.tensor([0, 0, 0, 1]))
    assert I == 0 and torch.autograd.grad(I, probs)[0].isfinite().all()


def test_gradient_needs_no_centroid():
    y, leaf = labelled(), draw(60, 5).requires_grad_()
    through, = torch.autograd.grad(conditional_mutual_information(leaf.softmax(-1), y, 4), leaf)
    frozen = class_means(leaf.detach().softmax(-1), y, 4)[y]
    held, = torch.autograd.grad(categorical_kl(leaf.softmax(-1), frozen).mean(), leaf)
    assert_close(through, held, rtol=0, atol=1e-14)
    sharp = (1e3*draw(60, 5)).requires_grad_()                        # probabilities that underflow to 0
    grad, = torch.autograd.grad(conditional_mutual_information(sharp.softmax(-1), y, 4), sharp)
    assert grad.isfinite().all()


# bounds from a critic

def loo(f):
    K = len(f)
    return torch.stack([torch.stack([f[i, [l for l in range(K) if l != j]].exp().mean().log() for j in range(K)]) for i in range(K)])


@settings(max_examples=40, deadline=None)
@given(K=st.integers(2, 7), seed=st.integers(0, 1000), scale=st.sampled_from([0., 1., 10.]), alpha=st.sampled_from([0., .1, .5, .9, 1.]))
def test_by_hand(K, seed, scale, alpha):
    "Eq. 3 with loops."
    f, b = draw(K, K, seed=seed, scale=scale), draw(K, seed=seed + 1)
    m = loo(f)
    assert_close(log_loo_mean_exp(f), m, **EXACT)
    mixed = (alpha*m.exp() + (1 - alpha)*b.exp()[:, None]).log()
    pairs = [(i, j) for i in range(K) for j in range(K) if i != j]
    joint = sum(f[i, i] - mixed[i, j] for i, j in pairs)/len(pairs)
    marginal = sum((f[i, j] - mixed[i, i]).exp() for i, j in pairs)/len(pairs)
    assert_close(mi_alpha_bound(f, b, alpha), 1 + joint - marginal, rtol=1e-9, atol=1e-9)
    assert_close(log_mean_exp_offdiag(f), (sum(f[i, j].exp() for i, j in pairs)/len(pairs)).log(), **EXACT)
    assert_close(tuba_bound(f, b), 1 + (f.diagonal() - b).mean() - sum((f[i, j] - b[i]).exp() for i, j in pairs)/len(pairs),
                 rtol=1e-9, atol=1e-9)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    again = f[order][:, order]
    assert_close(mi_alpha_bound(again, b[order], alpha), mi_alpha_bound(f, b, alpha), rtol=1e-9, atol=1e-9)
    for bound in (nwj_bound, infonce_bound, dv_bound): assert_close(bound(again), bound(f), rtol=1e-9, atol=1e-9)


def test_relations():
    f, b = draw(6, 6, scale=2.), draw(6, seed=1)
    assert_close(mi_alpha_bound(f, b, 0.), tuba_bound(f, b), **EXACT)
    assert_close(tuba_bound(f, torch.ones_like(b)), nwj_bound(f), **EXACT)
    assert_close(mi_alpha_bound(f, b, 1.), mi_alpha_bound(f + draw(6, 1, seed=2), draw(6, seed=3), 1.), **EXACT)
    off = ~torch.eye(6, dtype=torch.bool)
    assert_close((f[off].reshape(6, 5) - log_loo_mean_exp(f).diagonal()[:, None]).exp().mean(), torch.ones(()).double(), **EXACT)
    assert_close(infonce_bound(f), math.log(6) - torch.nn.functional.cross_entropy(f, torch.arange(6)), **EXACT)
    for seed in range(50):
        g = draw(6, 6, seed=seed, scale=2.)
        assert nwj_bound(g) <= dv_bound(g) + 1e-12
        assert_close(dv_bound(g + 3.7), dv_bound(g), **EXACT)
    assert_close(nwj_bound(f + 1 - log_mean_exp_offdiag(f)), dv_bound(f), **EXACT)   # the best shift makes them one


@pytest.mark.parametrize("alpha", [.01, .3, 1.])
def test_caps(alpha):
    for seed in range(30):
        f = draw(8, 8, seed=seed, scale=3.)
        for g in (f, f + 1e3*torch.eye(8)):
            assert mi_alpha_bound(g, draw(8, seed=seed), alpha) <= 1 + math.log(7/alpha) + 1e-12
            assert infonce_bound(g) <= math.log(8) + 1e-12
            assert mi_alpha_bound(g, torch.zeros(8).double(), 1.) <= math.log(7) + 1e-12
    even = torch.full((5, 5), -2.5, dtype=torch.float64)
    assert mi_alpha_bound(even, even[0], alpha).abs() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_five_hundred(dtype):
    f = draw(6, 6).to(dtype)
    for big in (f + 500*torch.eye(6, dtype=dtype), f - 500*torch.eye(6, dtype=dtype), f + 500, f - 500):
        leaf = big.clone().requires_grad_()
        m = log_loo_mean_exp(leaf)
        assert m.isfinite().all() and torch.autograd.grad(m.sum(), leaf)[0].isfinite().all()
        expected = torch.stack([(big.masked_fill(torch.arange(6) == j, -math.inf).logsumexp(1) - math.log(5)) for j in range(6)], 1)
        assert_close(m.detach(), expected)
        value = mi_alpha_bound(leaf, torch.zeros(6, dtype=dtype), 1.)
        assert value.isfinite() and torch.autograd.grad(value, leaf)[0].isfinite().all()


def test_gradients():
    f, b = draw(4, 4).requires_grad_(), draw(4, seed=1).requires_grad_()
    for alpha in (0., .3, 1.): assert torch.autograd.gradcheck(lambda f, b, a=alpha: mi_alpha_bound(f, b, a), (f, b))
    for fn in (nwj_bound, infonce_bound, dv_bound, log_loo_mean_exp, log_mean_exp_offdiag): assert torch.autograd.gradcheck(fn, (f,))


def test_scores_are_not_changed():
    f, b = draw(4, 4), draw(4, seed=1)
    kept = f.clone(), b.clone()
    mi_alpha_bound(f, b, .5), tuba_bound(f, b), nwj_bound(f)
    assert torch.equal(f, kept[0]) and torch.equal(b, kept[1])


def test_gaussians_with_the_optimal_critic():
    "NWJ with f + 1 is unbiased at the optimum: the mean of 600 batches lies within three standard errors of I = 1."
    d, K, I = 4, 32, 1.
    rho = math.sqrt(1 - math.exp(-2*I/d))
    g = torch.Generator().manual_seed(0)
    s = torch.randn(600, K, d, generator=g, dtype=torch.float64)
    t = rho*s + math.sqrt(1 - rho**2)*torch.randn(600, K, d, generator=g, dtype=torch.float64)
    pair = (t[:, None] - rho*s[:, :, None]).square().sum(-1)/(1 - rho**2)
    f = t.square().sum(-1)[:, None]/2 - pair/2 - d/2*math.log(1 - rho**2)
    nwj = torch.stack([nwj_bound(x + 1) for x in f])
    assert abs(nwj.mean() - I) < 3*nwj.std()/600**.5
    nce, loo1 = (torch.stack([fn(x) for x in f]) for fn in (infonce_bound, lambda x: mi_alpha_bound(x, torch.zeros(K).double(), 1.)))
    assert nce.mean() < I and loo1.std() < nwj.std()


@pytest.mark.parametrize("bad, message", [
    (lambda: class_means(draw(3), torch.tensor([0, 1, 2]), 3), "features must be (N, D), got (3,)"),
    (lambda: class_means(draw(3, 2), torch.tensor([0, 1, 1]), 3), "class 2 has no example"),
    (lambda: class_means(draw(3, 2), torch.tensor([0, 1, 3]), 3), "0..2, got 3"),
    (lambda: class_means(draw(3, 2), torch.tensor([0, 1]), 2), "labels must have shape (3,)"),
    (lambda: conditional_mutual_information(draw(3, 3), torch.arange(3)), "must be distributions"),
    (lambda: conditional_mutual_information(draw(3, 3).softmax(-1), torch.arange(3), weights="prior"), "got 'prior'"),
    (lambda: conditional_mutual_information(draw(3, 3).softmax(-1), torch.arange(3) % 2), "class 2 has no example"),
    (lambda: nwj_bound(draw(3, 4)), "got (3, 4)"),
    (lambda: infonce_bound(draw(1, 1)), "K ≥ 2, got (1, 1)"),
    (lambda: tuba_bound(draw(3, 3), draw(4)), "log_baseline must be (3,), got (4,)"),
    (lambda: mi_alpha_bound(draw(3, 3), draw(3), -.1), "alpha must lie in [0, 1], got -0.1"),
    (lambda: mi_alpha_bound(draw(3, 3), draw(3), math.nan), "got nan"),
])
def test_refusals(bad, message):
    with pytest.raises(ValueError) as error: bad()
    assert message in str(error.value)
