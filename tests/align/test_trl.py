"""Our losses beside TRL's own code, on random log-probabilities: names, signs, constants, and whose α is whose.

`DPOTrainer._compute_loss` runs unbound. It gets a stand-in for itself (the settings it reads) and for the model (an
output that holds the per-token log-probabilities: one token an answer, so that a sequence's sum is ours).
"""
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from draws import normal
from torch.testing import assert_close

from kullback.align import fdpo_loss, fdpo_scores, preference_loss

B = 7
NAMES = [("reverse_kl", None, "reverse_kl"), ("forward_kl", None, "forward_kl"), ("js", None, "js_divergence"),
         *[("alpha", a, "alpha_divergence") for a in (.1, .3, .5, .7, .9)]]


@pytest.fixture(scope="module")
def trl_loss():
    "(four log-probabilities (B,), settings) -> TRL's loss and the metrics it logs."
    pytest.importorskip("transformers")
    trl = pytest.importorskip("trl")
    if not hasattr(trl.DPOTrainer, "_compute_loss"): pytest.skip(f"trl {trl.__version__} computes its loss elsewhere")

    def run(pc, pr, rc, rr, beta=.1, kind="sigmoid", f="reverse_kl", a=.5, smoothing=0.):
        logps = torch.cat([pc, pr])[:, None]
        blank = torch.zeros_like(logps)
        outputs = SimpleNamespace(log_probs=logps, entropy=blank, mean_logits=blank, is_top1=blank.bool())
        every = lambda x: x
        state = SimpleNamespace(
            model=SimpleNamespace(training=True), accelerator=SimpleNamespace(device="cpu", gather=every, gather_for_metrics=every),
            aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, use_weighting=False, beta=beta, loss_types=[kind],
            loss_weights=[1.], f_divergence_type=f, f_alpha_divergence_coef=a, label_smoothing=smoothing,
            _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1)
        ones = torch.ones(2*B, 2, dtype=torch.long)
        inputs = dict(input_ids=ones, attention_mask=ones, completion_mask=torch.tensor([[0, 1]]).expand(2*B, 2),
                      ref_chosen_logps=rc, ref_rejected_logps=rr)
        loss = trl.DPOTrainer._compute_loss(state, lambda **_: outputs, inputs, False)
        return loss, {k: v[0] for k, v in state._metrics["train"].items()}
    return run


def pairs(seed=0, dtype=torch.float32): return [x.to(dtype) for x in normal(4, B, seed=seed, scale=2.) - 20]


@pytest.mark.parametrize("name, alpha, theirs", NAMES)
@pytest.mark.parametrize("beta", [.05, 1.])
def test_f_divergences(trl_loss, name, alpha, theirs, beta):
    "Equal loss and gradients: alpha here is 1 − f_alpha_divergence_coef there."
    dtype = torch.float32 if name == "alpha" else torch.float64
    x, y = ([t.requires_grad_() for t in pairs(1, dtype)[:2]] for _ in range(2))
    ref = pairs(1, dtype)[2:]
    ours, chosen, rejected = fdpo_loss(*x, *ref, beta, name, alpha or .5)
    other, logged = trl_loss(*y, *ref, beta, f=theirs, a=1 - (alpha or .5))
    tol = dict(rtol=2e-5, atol=2e-6) if name == "alpha" else dict(rtol=1e-10, atol=1e-12)
    assert_close(ours, other, **tol)
    for a, b in zip(torch.autograd.grad(ours, x), torch.autograd.grad(other, y)): assert_close(a, b, **tol)
    if name == "reverse_kl": assert_close(chosen.mean().item(), logged["rewards/chosen"])
    else: assert abs(chosen.mean().item() - logged["rewards/chosen"]) > 1e-3     # TRL logs β·log-ratio for every divergence


def test_the_same_alpha_is_another_loss(trl_loss):
    x = pairs(1)
    for a in (.1, .3, .7, .9):
        assert abs(fdpo_loss(*x, .1, "alpha", a)[0] - trl_loss(*x, f="alpha_divergence", a=a)[0]) > 1e-3
    assert_close(fdpo_loss(*x, .1, "alpha", .5)[0], trl_loss(*x, f="alpha_divergence", a=.5)[0])


def test_ends_of_their_alpha(trl_loss):
    "1 is reverse KL, 0 forward KL, and neither is refused there."
    x = pairs(1)
    assert_close(trl_loss(*x, f="alpha_divergence", a=1.)[0], fdpo_loss(*x, .1)[0])
    assert_close(trl_loss(*x, f="alpha_divergence", a=0.)[0], fdpo_loss(*x, .1, "forward_kl")[0])
    for a in (0., 1.):
        with pytest.raises(ValueError, match="alpha must lie"): fdpo_loss(*x, .1, "alpha", a)


def test_their_clamp_guards_alpha_alone(trl_loss):
    "Two hundred nats below the reference, float32."
    far, zero = torch.tensor([-200.]*B), torch.zeros(B)
    assert trl_loss(far, far, zero, zero, f="alpha_divergence", a=.1)[0].isfinite()
    assert trl_loss(far, far, zero, zero, f="forward_kl")[0].isnan()
    assert fdpo_loss(far, far, zero, zero, .1, "forward_kl")[0].isfinite()
    assert_close(fdpo_scores(torch.tensor([-200.]), "alpha", .9) + 1/.9, -torch.tensor([80.]).expm1()/.9, rtol=2e-5, atol=0)


@pytest.mark.parametrize("kind", ["sigmoid", "hinge"])
def test_preference_losses(trl_loss, kind):
    x = pairs(2, torch.float64)
    ours, chosen, rejected = preference_loss(*x, .3, kind)
    other, logged = trl_loss(*x, .3, kind)
    assert_close(ours, other, rtol=1e-12, atol=1e-12)
    for name, reward in (("chosen", chosen), ("rejected", rejected)): assert_close(reward.mean().item(), logged[f"rewards/{name}"])


def test_ipo_is_theirs_for_answers_of_one_token(trl_loss):
    "TRL divides each score by the number of tokens; a sum is the paper's."
    x = pairs(2, torch.float64)
    assert_close(preference_loss(*x, .3, "ipo")[0], trl_loss(*x, .3, "ipo")[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eps", [.1, .3])
def test_their_robust_loss_is_ours_stretched(trl_loss, eps):
    "[(1 − ε)·L(m) − ε·L(−m)]/(1 − 2ε), unbiased for flipped labels; ours is the cross-entropy with a smoothed label."
    x = pairs(2, torch.float64)
    robust = trl_loss(*x, .3, "robust", smoothing=eps)[0]
    plain, turned = (preference_loss(*y, .3)[0] for y in (x, [x[1], x[0], x[3], x[2]]))
    smoothed = preference_loss(*x, .3, label_smoothing=eps)[0]
    assert_close(smoothed, (1 - eps)*plain + eps*turned, rtol=1e-12, atol=1e-12)
    assert_close(robust, (smoothed - 2*eps*turned)/(1 - 2*eps), rtol=1e-12, atol=1e-12)
