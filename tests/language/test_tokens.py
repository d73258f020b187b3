"`language.tokens`: facts that the page would be bored by."
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from kullback.language import (
    masked_mean,
    sequence_logps,
    sequence_nll,
    sequential_kl,
    token_kl,
    token_logps,
    token_stats,
)

EXACT = dict(rtol=0, atol=1e-12)


def case(B=3, T=6, V=11, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = 2*torch.randn(2, B, T, V, generator=g, dtype=torch.float64)
    labels = torch.randint(V, (B, T), generator=g)
    for row in range(B): labels[row, :row + 1] = -100          # prompts of unequal length
    labels[0, -2:] = -100                                      # and padding
    return logits[0], logits[1], labels


def loop_logps(logits, labels):
    "By hand: one position at a time."
    out = torch.zeros(labels.shape[0], labels.shape[1] - 1, dtype=logits.dtype)
    for b in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            if labels[b, t] >= 0:
                z = logits[b, t - 1]
                out[b, t - 1] = z[labels[b, t]] - torch.log(sum(torch.exp(v) for v in z))
    return out


def test_logps_by_hand():
    logits, _, labels = case()
    logps, mask = token_logps(logits, labels)
    assert_close(logps, loop_logps(logits, labels), **EXACT)
    assert torch.equal(mask, labels[:, 1:] >= 0)
    assert_close(sequence_logps(logits, labels), logps.sum(-1), **EXACT)
    assert_close(sequence_logps(logits, labels, average=True), logps.sum(-1)/torch.tensor([3, 4, 3]), **EXACT)


def test_uniform_logits():
    logits, labels = torch.zeros(1, 4, 10).double(), torch.tensor([[-100, 3, 9, -100]])
    assert_close(sequence_logps(logits, labels), torch.tensor([-2*10.]).double().div(10).mul(torch.tensor(10.).log()))
    logp, mu, var = token_stats(logits, labels.clamp(0))
    assert_close(logp, mu, **EXACT)
    assert_close(var, torch.zeros(1, 4).double(), **EXACT)


def test_a_batch_is_a_loop():
    p, q, labels = case()
    for f in (lambda p, q, y: sequence_logps(p, y), sequential_kl,
              lambda p, q, y: sequential_kl(p, q, y, "reverse"), lambda p, q, y: token_logps(p, y)[0]):
        rows = torch.cat([f(p[i:i + 1], q[i:i + 1], labels[i:i + 1]) for i in range(len(p))])
        assert_close(f(p, q, labels), rows, **EXACT)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_masked_reaches_nothing(junk):
    p, q, labels = case()
    off = (labels == -100)[:, 1:]
    off = torch.cat([off, torch.ones(len(off), 1, dtype=torch.bool)], 1)       # the last logits predict nothing
    bad = p.masked_fill(off[..., None], junk).requires_grad_()
    aligned, keep = labels.roll(-1, 1).clamp(0), ~off
    for f in (lambda z: sequence_logps(z, labels), lambda z: sequential_kl(z, q, labels),
              lambda z: sequential_kl(z, q, labels, "reverse"), lambda z: sequence_nll(z, aligned, keep),
              lambda z: token_kl(z, q, keep)):
        assert_close(f(bad), f(p), **EXACT)
        grad, = torch.autograd.grad(f(bad).sum(), bad)
        assert grad.isfinite().all() and (grad[off] == 0).all()


def test_gradients():
    p, q, labels = case(2, 3, 4)
    labels = labels.clamp(0); labels[:, 0] = -100
    p.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sequence_logps(z, labels), (p,))
    assert torch.autograd.gradcheck(lambda z: sequential_kl(z, q, labels), (p,))
    assert torch.autograd.gradcheck(lambda z: sequential_kl(z, q, labels, "reverse"), (p,))
    assert torch.autograd.gradcheck(lambda z: token_stats(z, labels.clamp(0)), (p,))
    assert torch.autograd.gradcheck(token_kl, (p, q.requires_grad_()))


def test_gradient_of_a_label_is_one_minus_p():
    logits, _, labels = case()
    logits.requires_grad_()
    sequence_logps(logits, labels).sum().backward()
    P = logits.detach().softmax(-1)
    scored = labels[:, 1:] >= 0
    onehot = torch.nn.functional.one_hot(labels[:, 1:].clamp(0), logits.shape[-1])
    assert_close(logits.grad[:, :-1], (onehot - P[:, :-1])*scored[..., None], **EXACT)


def test_direction_and_order():
    p, q, labels = case()
    mask = labels[:, 1:] >= 0
    KL = lambda a, b: (a.softmax(-1)*(a.log_softmax(-1) - b.log_softmax(-1))).sum(-1)
    assert_close(token_kl(p, q), KL(p, q), **EXACT)
    assert_close(sequential_kl(p, q, labels, "forward"), (KL(q, p)[:, :-1]*mask).sum(-1), **EXACT)
    assert_close(sequential_kl(p, q, labels, "reverse"), (KL(p, q)[:, :-1]*mask).sum(-1), **EXACT)


def test_other_ignore_index():
    p, q, labels = case()
    ours = labels.masked_fill(labels == -100, -1)
    assert_close(sequence_logps(p, ours, ignore_index=-1), sequence_logps(p, labels), **EXACT)
    assert_close(sequential_kl(p, q, ours, ignore_index=-1), sequential_kl(p, q, labels), **EXACT)
    with pytest.raises(ValueError, match="got -1"): sequence_logps(p, ours)
    pad = labels.masked_fill(labels == -100, 0)               # a pad id inside the vocabulary
    assert token_logps(p, pad, ignore_index=0)[1].sum() == (pad[:, 1:] != 0).sum()


def test_stats_are_standard():
    "Under the model itself the standardised log-probability has mean 0 and variance 1."
    logits, _, _ = case()
    V = logits.shape[-1]
    every = [token_stats(logits, torch.full(logits.shape[:2], v)) for v in range(V)]
    z = torch.stack([(lp - mu)/var.sqrt() for lp, mu, var in every], -1)
    P = logits.softmax(-1)
    zero = torch.zeros(logits.shape[:2]).double()
    assert_close((P*z).sum(-1), zero, **EXACT)
    assert_close((P*z**2).sum(-1), zero + 1, **EXACT)
    shifted = token_stats(logits + 7, torch.zeros(logits.shape[:2], dtype=torch.long))
    for a, b in zip(shifted, every[0]): assert_close(a, b, **EXACT)


def test_excluded_tokens():
    "A token the model excludes costs +inf and nothing else breaks."
    logits = torch.tensor([[[0., 0., -float("inf")], [0., 0., 0.]]]).double()
    assert sequence_logps(logits, torch.tensor([[-100, 2]])) == -float("inf")
    logp, mu, var = token_stats(logits, torch.tensor([[0, 0]]))
    assert_close(mu[0, 0], -torch.tensor(2.).double().log(), **EXACT)
    assert var.abs().max() < 1e-15


def test_two_means():
    values, mask = torch.arange(6.).view(2, 3).double(), torch.tensor([[True, False, True], [False, True, False]])
    assert masked_mean(values, mask) == (0 + 2 + 4)/3
    assert masked_mean(values, mask, "sequence") == (1 + 4)/2
    full = torch.ones_like(mask)
    assert_close(masked_mean(values, full), masked_mean(values, full, "sequence"), **EXACT)


def refusals():
    p, q, labels = case()
    mask = labels >= 0
    empty = labels.clone(); empty[2] = -100
    return {
        "row 2 has no token": [lambda: sequence_logps(p, empty), lambda: sequential_kl(p, q, empty),
                               lambda: sequence_nll(p, labels, empty >= 0),
                               lambda: masked_mean(p[..., 0], empty >= 0, "sequence")],
        r"logits must be \(B, T, V\)": [lambda: token_logps(p[0], labels), lambda: token_kl(p[0], q[0])],
        r"got \(3, 5\)": [lambda: token_logps(p, labels[:, 1:]), lambda: token_kl(p, q, mask[:, 1:])],
        "shapes differ": [lambda: sequential_kl(p, q[:, 1:], labels), lambda: masked_mean(p, mask),
                          lambda: sequence_nll(p, labels, mask[:, 1:]), lambda: token_kl(p, q[..., 1:])],
        "0..10, got 11": [lambda: token_logps(p, labels.clamp(0) + 11), lambda: token_stats(p, labels.clamp(11))],
        "0..10, got -100": [lambda: token_stats(p, labels)],
        "integer token ids": [lambda: token_stats(p, labels.double()), lambda: token_logps(p, mask)],
        "mask must be bool": [lambda: sequence_nll(p, labels.clamp(0), labels), lambda: token_kl(p, q, labels),
                              lambda: masked_mean(p[..., 0], labels), lambda: masked_mean(p[..., 0], labels, "sequence")],
        "direction must be": [lambda: sequential_kl(p, q, labels, "both")],
        "per must be": [lambda: masked_mean(p[..., 0], mask, "mean")],
        r"nothing to predict in 1 token": [lambda: sequence_logps(p[:, :1], labels[:, :1])],
    }


@pytest.mark.parametrize("message", list(refusals()))
def test_refusals(message):
    for call in refusals()[message]:
        with pytest.raises(ValueError, match=message): call()


def everything(p, q, labels):
    mask = labels >= 0
    return (*token_logps(p, labels), sequence_logps(p, labels), sequential_kl(p, q, labels),
            token_kl(p, q, mask), sequence_nll(p, labels, mask), *token_stats(p, labels.clamp(0)),
            masked_mean(p[..., 0], mask), masked_mean(p[..., 0], mask, "sequence"))


def test_fake_cuda():
    with FakeTensorMode(), torch.device("cuda"):
        out = everything(torch.randn(2, 4, 5), torch.randn(2, 4, 5), torch.ones(2, 4, dtype=torch.long))
    assert all(t.device.type == "cuda" for t in out)


def test_cpu_inputs_under_another_default_device():
    p, q, labels = case()
    p.requires_grad_()
    with torch.device("meta"):
        out = everything(p, q, labels)
        sum(t.sum() for t in out if t.requires_grad).backward()
    assert all(t.device.type == "cpu" for t in out) and p.grad.isfinite().all()


def test_vmap_and_dtype():
    p, q, labels = case()
    stacked = torch.vmap(lambda a: sequence_logps(a, labels))(torch.stack([p, q]))
    assert_close(stacked, torch.stack([sequence_logps(p, labels), sequence_logps(q, labels)]), **EXACT)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert sequence_logps(p.to(dtype), labels).dtype == torch.float32
    low = p.bfloat16()
    assert_close(sequential_kl(low, q.bfloat16(), labels), sequential_kl(low.float(), q.bfloat16().float(), labels))
