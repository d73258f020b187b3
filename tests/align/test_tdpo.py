"`align.tdpo`: facts that the page would be bored by."
import math

import pytest
import torch
from draws import normal
from torch.autograd import gradcheck
from torch.testing import assert_close

from kullback.align import TDPOLoss, dpo_loss, tdpo_loss
from kullback.align.tabular import TabularPolicy, enumerate_texts, token_values
from kullback.divergence import gibbs_tilt
from kullback.language import sequence_logps, sequential_kl

EXACT = dict(rtol=0, atol=1e-12)
VARIANTS = ("tdpo1", "tdpo2")


def halves(B=6, seed=0):
    ratio, kl = normal(2, B, seed=seed, scale=3.), normal(2, B, seed=seed + 1).square()
    return [*ratio, *kl]


def batch(B=4, T=6, V=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2, 2*B, T, V, generator=g, dtype=torch.float64)
    labels = torch.randint(V, (2*B, T), generator=g)
    labels[:, :2] = labels[0, 4:] = labels[-1, 5:] = -100
    return z[0].requires_grad_(), z[1], labels


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("beta, alpha", [(.1, .5), (1., 0.), (.4, 1.5)])
def test_by_hand(variant, beta, alpha):
    x = halves()
    a = 1. if variant == "tdpo1" else alpha
    m = [beta*(w - r - a*(kr - kw)) for w, r, kw, kr in zip(*[t.tolist() for t in x])]
    wanted = torch.tensor([math.log1p(math.exp(-v)) for v in m], dtype=torch.float64)
    loss, chosen, rejected = tdpo_loss(*x, beta, alpha, variant, "none")
    assert_close(loss, wanted, **EXACT)
    for reduction in ("mean", "sum"):
        assert_close(tdpo_loss(*x, beta, alpha, variant, reduction)[0], getattr(wanted, reduction)(), **EXACT)
    assert_close(chosen, beta*(x[0] + x[2]), **EXACT)          # weight 1, whatever alpha
    assert_close(rejected, beta*(x[1] + x[3]), **EXACT)


def test_what_is_held_constant():
    for variant, k_w in (("tdpo1", True), ("tdpo2", False)):
        x = [t.requires_grad_() for t in halves()]
        loss, chosen, rejected = tdpo_loss(*x, variant=variant)
        assert not chosen.requires_grad and not rejected.requires_grad
        loss.backward()
        assert [t.grad is not None for t in x] == [True, True, k_w, True]
        assert (x[0].grad < 0).all() and (x[1].grad > 0).all() and (x[3].grad > 0).all()
        if k_w: assert (x[2].grad < 0).all()
    fixed = halves()[2]
    assert gradcheck(lambda w, r, k: tdpo_loss(w, r, fixed, k, .4)[0], [halves()[i].requires_grad_() for i in (0, 1, 3)])
    assert gradcheck(lambda *x: tdpo_loss(*x, .4, variant="tdpo1")[0], [t.requires_grad_() for t in halves()])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_module_is_the_function(variant):
    z, ref, labels = batch()
    ratio, kl = sequence_logps(z, labels) - sequence_logps(ref, labels), sequential_kl(z, ref, labels)
    for ours, plain in zip(TDPOLoss(.3, .7, variant)(z, ref, labels), tdpo_loss(*ratio.chunk(2), *kl.chunk(2), .3, .7, variant)):
        assert_close(ours, plain, **EXACT)


def test_alpha_zero_is_dpo():
    z, ref, labels = batch()
    ours = TDPOLoss(.3, 0.)(z, ref, labels)[0]
    plain = dpo_loss(*sequence_logps(z, labels).chunk(2), *sequence_logps(ref, labels).chunk(2), .3)[0]
    assert_close(ours, plain, **EXACT)
    assert_close(*(torch.autograd.grad(x, z)[0] for x in (ours, plain)), **EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_statewise_optimum_is_stationary(seed):
    "Three tokens, three steps, all pairs: TDPO1's gradient vanishes at π₀·exp(Q/β), one state at a time."
    V, T, beta = 3, 3, .3 + seed
    g = torch.Generator().manual_seed(seed)
    texts = enumerate_texts(V, T)
    ids = torch.cat([torch.zeros(len(texts), 1, dtype=torch.long), texts], 1)
    ref, best, r = TabularPolicy(V, T, generator=g), TabularPolicy(V, T), normal(V**T, seed=seed)
    best.logits.data = gibbs_tilt(ref.logits.detach().log_softmax(-1), token_values(ref.logits.detach(), r), beta)
    i, j = torch.cartesian_prod(torch.arange(V**T), torch.arange(V**T)).T
    x, q = best(ids), ref(ids).detach()
    d, k = sequence_logps(x, ids) - sequence_logps(q, ids), sequential_kl(x, q, ids)
    loss = (torch.sigmoid(r[i] - r[j])*tdpo_loss(d[i], d[j], k[i], k[j], beta, variant="tdpo1", reduction="none")[0]).mean()
    assert torch.autograd.grad(loss, best.logits)[0].abs().max() < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
def test_junk_behind_the_mask(variant):
    z, ref, labels = batch()
    value = TDPOLoss(.3, variant=variant)(z, ref, labels)[0]
    for junk in (math.nan, math.inf, -math.inf, 1e9):
        dirty = [x.detach().clone() for x in (z, ref)]
        for x in dirty: x[0, 3:] = x[:, 0] = x[:, -1] = junk
        dirty[0].requires_grad_()
        loss = TDPOLoss(.3, variant=variant)(*dirty, labels)[0]
        assert_close(loss, value, **EXACT)
        assert torch.autograd.grad(loss, dirty[0])[0].isfinite().all()


def test_far_margins_stay_finite():
    big = torch.tensor([-1000., 1000.], requires_grad=True)
    zero = torch.zeros(2)
    loss = tdpo_loss(big, zero, zero, zero, 1., reduction="none")[0]
    assert_close(loss, torch.tensor([1000., 0.]))


def test_refused():
    x, (z, ref, labels) = halves(), batch()
    for bad, message in ((dict(beta=0.), "beta must be positive, got 0"), (dict(alpha=-1.), "not be negative, got -1"),
                         (dict(alpha=math.nan), "got nan"), (dict(variant="tdpo"), "got 'tdpo'"), (dict(reduction="max"), "got 'max'")):
        with pytest.raises(ValueError, match=message): tdpo_loss(*x, **bad)
    for k, name in enumerate(("chosen_logratio", "rejected_logratio", "chosen_kl", "rejected_kl")):
        with pytest.raises(ValueError, match=f"{name}.*\\(2,\\)"): tdpo_loss(*[t[:2] if i == k else t for i, t in enumerate(x)])
        with pytest.raises(ValueError, match=f"{name} must be finite"): tdpo_loss(*[t/0 if i == k else t for i, t in enumerate(x)])
    with pytest.raises(ValueError, match=r"got \(6, 1\)"): tdpo_loss(*[t[:, None] for t in x])
    with pytest.raises(ValueError, match="even batch is needed, got 7"): TDPOLoss()(z[:7], ref[:7], labels[:7])
    with pytest.raises(ValueError, match="shapes differ"): TDPOLoss()(z, ref[..., :3], labels)
    with pytest.raises(ValueError, match="row 2 has no token"): TDPOLoss()(z, ref, labels.index_fill(0, torch.tensor([2]), -100))
