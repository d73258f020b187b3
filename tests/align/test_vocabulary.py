"`align.vocabulary`: the numbers of `language.tokens`, from hidden states and a head."
from functools import partial

import pytest
import torch
from draws import normal
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from kullback.align import linear_preference_terms, linear_sequence_logps, linear_sequential_kl
from kullback.language import sequence_logps, sequential_kl

EXACT = dict(rtol=1e-12, atol=1e-12)
B, T, D, E, V = 3, 6, 4, 5, 11


def heads(seed=0, dtype=torch.float64):
    "Policy's hidden states and head, the reference's."
    return [normal(*shape, seed=4*seed + i).to(dtype) for i, shape in enumerate(((B, T, D), (V, D), (B, T, E), (V, E)))]


def answers(ignore=-100):
    labels = torch.arange(B*T).view(B, T) % V
    labels[0, :3], labels[1, 1], labels[2, 2:] = ignore, ignore, ignore      # a prompt, a hole, padding
    return labels


def gradients(loss, *parts, weights=None):
    leaves = [x.detach().requires_grad_() for x in parts]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value @ torch.linspace(-1, 2, B).to(value.dtype), leaves)


@pytest.mark.parametrize("ignore", [-100, 12345])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
def test_sequence_logps(ignore, average, chunk):
    h, W, *_ = heads()
    y = answers(ignore)
    ours = gradients(lambda h, W: linear_sequence_logps(h, W, y, ignore, average, chunk), h, W)
    assert_close(ours, gradients(lambda h, W: sequence_logps(h @ W.T, y, ignore, average), h, W), **EXACT)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("chunk", [None, 4])
def test_sequential_kl(direction, chunk):
    h, W, h0, W0 = heads()
    y = answers()
    ours = gradients(lambda h, W: linear_sequential_kl(h, W, h0, W0, y, direction, chunk=chunk), h, W)
    theirs = gradients(lambda h, W: sequential_kl(h @ W.T, h0 @ W0.T, y, direction), h, W)
    assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_three_terms_in_one_sweep(direction, chunk):
    "The separate functions, each row of each term under a weight of its own."
    h, W, h0, W0 = heads()
    y = answers()
    def ours(h, W): return torch.stack(linear_preference_terms(h, W, h0, W0, y, direction, chunk=chunk), 1) @ weigh
    def theirs(h, W):
        return torch.stack([sequence_logps(h @ W.T, y), sequence_logps(h0 @ W0.T, y),
                            sequential_kl(h @ W.T, h0 @ W0.T, y, direction)], 1) @ weigh
    for weigh in torch.cat([torch.eye(3), torch.tensor([[.7, 5., -1.3]])]).double():
        assert_close(gradients(ours, h, W) if weigh[0] or weigh[2] else ours(h, W),
                     gradients(theirs, h, W) if weigh[0] or weigh[2] else theirs(h, W), **EXACT)


def test_terms_at_a_sure_policy():
    "p of the label is 1 − 1e-11 or less than 1e-300: the gradient of `linear_sequence_logps`, where 1 − p has six digits."
    y = torch.tensor([[-100, 1, 2]])
    for up in (25., -800.):
        W, h = torch.eye(3).double(), torch.zeros(1, 3, 3).double()
        h[0, 0, 1], h[0, 1, 2] = up, up
        h0 = .1*normal(1, 3, 3)
        for direction in ("forward", "reverse"):
            got = torch.autograd.grad(linear_preference_terms(h.requires_grad_(), W, h0, W, y, direction)[0], h)[0]
            plain = torch.autograd.grad(linear_sequence_logps(h, W, y), h)[0]
            assert_close(got, plain, rtol=1e-12, atol=0)
            kl = torch.autograd.grad(linear_preference_terms(h, W, h0, W, y, direction)[2], h)[0]
            assert_close(kl, torch.autograd.grad(linear_sequential_kl(h, W, h0, W, y, direction), h)[0], rtol=1e-10, atol=1e-12)


def test_terms_refuse_a_second_derivative():
    h, W, h0, W0 = heads()
    h.requires_grad_()
    first = linear_preference_terms(h, W, h0, W0, answers())[2].sum()
    slope, = torch.autograd.grad(first, h, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"): (slope.square().sum() + h.sum()).backward()


def test_terms_inside_autocast_and_compile():
    h, W, h0, W0 = heads(dtype=torch.float32)
    plain = gradients(lambda h, W: linear_preference_terms(h, W, h0, W0, answers())[2], h, W)
    with torch.autocast("cpu", torch.bfloat16):
        low = gradients(lambda h, W: linear_preference_terms(h, W, h0, W0, answers())[2], h, W)
    assert low[0].dtype == low[1].dtype == torch.float32
    assert_close(low, plain, rtol=.05, atol=.1)
    step = torch.compile(lambda h, W: 2*linear_preference_terms(h.tanh().atanh(), W, h0, W0, answers())[2], backend="eager")
    small = h/10
    assert_close(gradients(step, small, W), gradients(lambda h, W: 2*linear_preference_terms(h, W, h0, W0, answers())[2], small, W),
                 rtol=1e-4, atol=1e-5)


def test_the_last_hidden_state_and_the_first_label_are_not_read():
    h, W, h0, W0 = heads()
    y = answers()
    other, late = y.clone(), h.clone()
    other[:, 0], late[:, -1] = 7, float("nan")
    assert torch.equal(linear_sequence_logps(late, W, other), linear_sequence_logps(h, W, y))
    assert torch.equal(linear_sequential_kl(late, W, h0, W0, other), linear_sequential_kl(h, W, h0, W0, y))


def test_what_is_not_scored_reaches_nothing():
    h, W, h0, W0 = heads()
    y = answers()
    void = torch.cat([y[:, 1:] == -100, torch.ones(B, 1, dtype=torch.bool)], 1)[..., None]
    def terms(h0): return lambda h, W: sum(linear_preference_terms(h, W, h0, W0, y))
    for junk in (float("nan"), float("inf")):
        bad, bad0 = h.masked_fill(void, junk), h0.masked_fill(void, junk)
        for got, clean in ((gradients(partial(linear_sequence_logps, labels=y), bad, W),
                            gradients(partial(linear_sequence_logps, labels=y), h, W)),
                           (gradients(terms(bad0), bad, W), gradients(terms(h0), h, W)),
                           (gradients(partial(linear_sequential_kl, ref_hidden=bad0, ref_weight=W0, labels=y), bad, W),
                            gradients(partial(linear_sequential_kl, ref_hidden=h0, ref_weight=W0, labels=y), h, W))):
            assert_close(got, clean, **EXACT)


def test_the_reference_gets_no_gradient():
    h, W, h0, W0 = heads()
    h0.requires_grad_(), W0.requires_grad_(), h.requires_grad_()
    linear_sequential_kl(h, W, h0, W0, answers()).sum().backward()
    sum(linear_preference_terms(h, W, h0, W0, answers())).sum().backward()
    assert h0.grad is None and W0.grad is None and h.grad is not None


def test_a_policy_at_its_reference():
    "No divergence, no slope; log-probabilities add up to one over the last token."
    h, W, *_ = heads()
    zero = gradients(lambda h, W: linear_sequential_kl(h, W, h.detach(), W.detach(), answers()), h, W)
    for x in zero: assert_close(x, torch.zeros_like(x), **EXACT)
    each = torch.full((V, 3), -100)
    each[:, 2] = torch.arange(V)
    one = linear_sequence_logps(h[:1, :3].expand(V, -1, -1), W, each).exp().sum()
    assert_close(one, torch.ones_like(one), **EXACT)


def test_low_precision_gives_float32():
    h, W, h0, W0 = heads(dtype=torch.bfloat16)
    for value in (linear_sequence_logps(h, W, answers()), linear_sequential_kl(h, W, h0, W0, answers())):
        assert value.dtype == torch.float32
    wide = [x.double() for x in (h, W)]
    assert_close(linear_sequence_logps(h, W, answers()).double(), sequence_logps(wide[0] @ wide[1].T, answers()), rtol=0, atol=.1)


class Sizes(TorchDispatchMode):
    numel = products = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor): self.numel = max(self.numel, out.numel())
        self.products += "mm" in func.overloadpacket.__name__
        return out


@pytest.mark.parametrize("frozen, products", [(False, (4, 6, 6)), (True, (2, 3, 5))])
def test_no_logits_and_how_many_products(frozen, products):
    "Of 60 tokens never more than 10 stand beside the vocabulary; a frozen head is swept once."
    h, W, h0, W0 = (normal(4, 16, 8), normal(256, 8), normal(4, 16, 8), normal(256, 8))
    y = torch.arange(64).view(4, 16)
    h.requires_grad_(), W.requires_grad_(not frozen)
    calls = (lambda: linear_sequence_logps(h, W, y, chunk=10), lambda: linear_sequential_kl(h, W, h0, W0, y, chunk=10),
             lambda: sum(linear_preference_terms(h, W, h0, W0, y, chunk=10)))
    for call, n in zip(calls, products):
        with Sizes() as seen: call().sum().backward()
        assert seen.numel == 10*256 and seen.products == 6*n


def refusals():
    h, W, h0, W0 = heads()
    y = answers()
    L, K, P = linear_sequence_logps, linear_sequential_kl, linear_preference_terms
    return {
        r"hidden must be \(B, T, D\) and labels \(B, T\), got \(3, 4\) and \(3, 6\)": [lambda: L(h[:, 0], W, y)],
        r"got \(3, 6, 4\) and \(3, 5\)": [lambda: L(h, W, y[:, 1:]), lambda: K(h, W, h0, W0, y[:, 1:])],
        r"got \(3, 5, 5\) and \(3, 6\)": [lambda: K(h, W, h0[:, 1:], W0, y)],
        "nothing to predict in 1 token": [lambda: L(h[:, :1], W, y[:, :1])],
        "row 1 has no token": [lambda: L(h, W, y.index_fill(0, torch.tensor([1]), -100))],
        "0..10, got 11": [lambda: L(h, W, y.masked_fill(y == 4, 11)), lambda: K(h, W, h0, W0, y.masked_fill(y == 4, 11))],
        "got -1": [lambda: L(h, W, y.masked_fill(y == -100, -1))],
        "integer class ids": [lambda: L(h, W, y.double())],
        "'forward' or 'reverse', got 'both'": [lambda: K(h, W, h0, W0, y, "both"), lambda: P(h, W, h0, W0, y, "both")],
        "chunk must be a positive number of tokens, got 0": [lambda: L(h, W, y, chunk=0), lambda: K(h, W, h0, W0, y, chunk=0)],
        "labels must lie in 0..9": [lambda: K(h, W, h0, W0[1:], y), lambda: P(h, W, h0, W0[1:], y)],
        "policy has 11 words, reference 12": [lambda: P(h, W, h0, torch.cat([W0, W0[:1]]), y)],
        r"ref_hidden and ref_weight must share": [lambda: P(h, W, h0.float(), W0, y)],
    }


@pytest.mark.parametrize("message", list(refusals()))
def test_refusals(message):
    for call in refusals()[message]:
        with pytest.raises(ValueError, match=message): call()
