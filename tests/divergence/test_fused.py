"`divergence.fused`: the same numbers as the plain path, without its logits."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from kullback.divergence import (
    f_divergence,
    get_f_divergence,
    linear_cross_entropy,
    linear_divergence,
    linear_token_logps,
    masked_reduced,
)
from kullback.divergence import fused as module

EXACT = dict(rtol=1e-12, atol=1e-12)
FAMILIES = [("reverse_kl", None), ("kl", None), ("forward_kl", None), ("js", None), ("alpha", .3), ("alpha", .8),
            ("tsallis", .6), ("tsallis", 1.7), ("tv", None), ("chi2", None), ("neyman", None), ("hellinger", None),
            ("jeffreys", None)]
N, D, E, V = 11, 4, 6, 13


def heads(n=N, d=D, e=E, v=V, seed=0, scale=1., dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [(scale*torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)
            for shape in ((n, d), (v, d), (n, e), (v, e))]


def plain(h, W, th, tW, name, temperature=1., mask=None, reduction="mean", alpha=None):
    p, q = ((x @ w.T/temperature).log_softmax(-1) for x, w in ((h, W), (th.detach(), tW.detach())))
    return masked_reduced(f_divergence(p, q, name, alpha), mask, reduction)


def gradients(loss, h, W, *rest, weights=None):
    "Value and gradients by the student's two tensors."
    h, W = h.detach().requires_grad_(), W.detach().requires_grad_()
    value = loss(h, W, *rest)
    total = value if weights is None else (value*weights).sum()
    return value.detach(), *torch.autograd.grad(total, (h, W))


@pytest.mark.parametrize("name, alpha", FAMILIES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_family_equals_the_plain_path(name, alpha, masked, reduction):
    mask = torch.arange(N) % 3 != 1 if masked else None
    weights = torch.linspace(-1, 2, N).double() if reduction == "none" else None
    for temperature, chunk in ((1., None), (2.5, 1), (.7, 4), (1., N), (1., 100)):
        options = dict(temperature=temperature, mask=mask, reduction=reduction, alpha=alpha)
        ours = gradients(partial(linear_divergence, divergence=name, chunk=chunk, **options), *heads(), weights=weights)
        assert_close(ours, gradients(partial(plain, name=name, **options), *heads(), weights=weights), **EXACT)


@pytest.mark.parametrize("name, alpha", FAMILIES)
def test_gradcheck(name, alpha):
    h, W, th, tW = heads(3, 2, 2, 4)
    for reduction in ("mean", "none"):
        loss = partial(linear_divergence, teacher_hidden=th, teacher_weight=tW, divergence=name, temperature=1.5,
                       reduction=reduction, chunk=2, alpha=alpha)
        assert torch.autograd.gradcheck(loss, (h.requires_grad_(), W.requires_grad_()))


def test_a_record_of_ones_own():
    "A divergence that no name stands for is computed, by its record."
    record = get_f_divergence("alpha", .25)
    assert_close(linear_divergence(*heads(), divergence=record), plain(*heads(), name="alpha", alpha=.25), **EXACT)
    with pytest.raises(ValueError, match="got alpha=0.25"): linear_divergence(*heads(), record, alpha=.25)
    impostor = type(record)(**{**vars(get_f_divergence("chi2")), "name": "js"})
    assert_close(linear_divergence(*heads(), divergence=impostor), plain(*heads(), name="chi2"), **EXACT)


def test_equal_heads_have_divergence_zero_and_no_gradient():
    h, W, _, _ = heads()
    for name, alpha in FAMILIES:
        value, *slopes = gradients(partial(linear_divergence, divergence=name, alpha=alpha), h, W, h, W)
        for x in (value, *slopes): assert_close(x, torch.zeros_like(x), **EXACT)


def test_directions():
    h, W, th, tW = heads()
    log_p, log_q = (h @ W.T).log_softmax(-1), (th @ tW.T).log_softmax(-1)
    KL = lambda a, b: F.kl_div(b, a, log_target=True, reduction="none").sum(-1)
    each = partial(linear_divergence, h, W, th, tW, reduction="none")
    assert_close(each(), KL(log_q, log_p), **EXACT)
    assert_close(each("reverse_kl"), KL(log_p, log_q), **EXACT)
    m = ((log_p.exp() + log_q.exp())/2).log()
    assert_close(each("js"), KL(log_p, m) + KL(log_q, m), **EXACT)
    assert_close(each("jeffreys"), each("reverse_kl") + each("forward_kl"), **EXACT)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "js"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(name, dtype):
    "Logit gaps of hundreds of nats, as a trained head has them, either way round."
    for scale in (1., 30., 1000.):
        h, W, th, tW = heads(scale=scale, dtype=dtype)
        ours = gradients(partial(linear_divergence, divergence=name), h, W, th, tW)
        exact = gradients(partial(plain, name=name), *(x.double() for x in (h, W, th, tW)))
        for a, b in zip(ours, exact):
            assert a.isfinite().all()
            assert_close(a.double(), b, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-4*float(b.abs().max()))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(reduction):
    h, W, _, _ = heads()
    labels = torch.arange(N) % V
    labels[2], labels[7] = -100, -100
    weights = torch.linspace(-1, 2, N).double() if reduction == "none" else None
    theirs = gradients(lambda h, W: F.cross_entropy(h @ W.T, labels, reduction=reduction), h, W, weights=weights)
    for chunk in (None, 1, 3):
        ours = gradients(partial(linear_cross_entropy, labels=labels, reduction=reduction, chunk=chunk), h, W, weights=weights)
        assert_close(ours, theirs, **EXACT)
    pad = labels.masked_fill(labels < 0, 0)                               # another word for "nothing here"
    assert_close(linear_cross_entropy(h, W, pad, ignore_index=0, reduction="sum"),
                 F.cross_entropy(h @ W.T, pad, ignore_index=0, reduction="sum"), **EXACT)


def test_token_logps():
    h, W, _, _ = heads()
    labels, weights = torch.arange(N) % V, torch.linspace(-1, 2, N).double()
    theirs = gradients(lambda h, W: (h @ W.T).log_softmax(-1).gather(-1, labels[:, None])[:, 0], h, W, weights=weights)
    assert_close(gradients(partial(linear_token_logps, labels=labels, chunk=4), h, W, weights=weights), theirs, **EXACT)
    one_hot = torch.full((N, V), -60.).double().scatter(-1, labels[:, None], 60.)     # a teacher that is sure
    assert_close(linear_divergence(h, W, one_hot, torch.eye(V).double(), reduction="none"),
                 -linear_token_logps(h, W, labels), rtol=0, atol=1e-9)


def test_what_is_masked_reaches_nothing():
    h, W, th, tW = heads()
    mask = torch.arange(N) % 3 != 1
    for junk in (float("nan"), float("inf"), 1e300):
        bad = [x.masked_fill(~mask[:, None], junk) for x in (h, th)]
        for reduction in ("mean", "none"):
            loss = partial(linear_divergence, mask=mask, reduction=reduction, chunk=4)
            weights = torch.ones(N).double() if reduction == "none" else None
            assert_close(gradients(loss, bad[0], W, bad[1], tW, weights=weights),
                         gradients(loss, h, W, th, tW, weights=weights), **EXACT)


def test_a_factor_upstream_and_downstream():
    h, W, th, tW = heads()
    def chain(loss):
        a, b = h.clone().requires_grad_(), W.clone().requires_grad_()
        value = (3*loss(a.tanh(), 2*b, th, tW)).exp()
        return value, *torch.autograd.grad(value, (a, b))
    assert_close(chain(partial(linear_divergence, divergence="js")), chain(partial(plain, name="js")), **EXACT)


def test_only_what_is_asked_for():
    h, W, th, tW = heads()
    for frozen in (0, 1):
        leaves = [h.clone(), W.clone()]
        leaves[1 - frozen].requires_grad_()
        linear_divergence(*leaves, th.requires_grad_(), tW.requires_grad_()).backward()
        assert leaves[frozen].grad is None and th.grad is None and tW.grad is None
        full = gradients(linear_divergence, h, W, th, tW)[2 - frozen]
        assert_close(leaves[1 - frozen].grad, full, **EXACT)
    assert not linear_divergence(h, W, th, tW).requires_grad
    with torch.no_grad(): assert not linear_divergence(h.requires_grad_(), W, th, tW).requires_grad


def test_backward_twice_and_accumulation():
    h, W, th, tW = heads()
    once = gradients(linear_divergence, h, W, th, tW)[1:]
    h.requires_grad_(), W.requires_grad_()
    loss = linear_divergence(h, W, th, tW, chunk=3)
    loss.backward(retain_graph=True)
    loss.backward()                                                       # recomputed, added
    for x, g in zip((h, W), once): assert_close(x.grad, 2*g, **EXACT)
    h.grad = W.grad = None
    (.3*linear_divergence(h, W, th, tW)).backward()
    for x, g in zip((h, W), once): assert_close(x.grad, .3*g, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_frozen_head_gives_each_token_its_own_factor(dtype):
    h, W, th, tW = heads(dtype=dtype)
    mask, weights = torch.arange(N) % 3 != 1, torch.linspace(-1, 2, N, dtype=torch.float64)
    tol = EXACT if dtype == torch.float64 else dict(rtol=2e-2, atol=2e-2)
    for loss in (partial(linear_divergence, teacher_hidden=th, teacher_weight=tW, divergence="js", mask=mask),
                 partial(linear_cross_entropy, labels=torch.arange(N).masked_fill(~mask, -100))):
        loss = partial(loss, reduction="none", chunk=4)
        full = gradients(loss, h, W, weights=weights)
        leaf = h.clone().requires_grad_()
        value = (loss(leaf, W)*weights).sum()
        for _ in range(2): value.backward(retain_graph=True)              # the second time swept again
        assert_close(leaf.grad, 2*full[1], **tol)


def test_js_in_float32():
    "Near, apart and equal: no worse than the registry, whose log-softmax is off by the sum of a wide softmax."
    g = torch.Generator().manual_seed(0)
    wide, other = (3*torch.randn(16, 2**15, generator=g) for _ in range(2))
    for t in (other, wide + .1*other, 3*other):
        exact, low = wide.double(), wide.clone()
        value = module._any_tile(exact, t.double(), get_f_divergence("js"))
        assert_close(module._js_tile(low, t.clone()).double(), value, rtol=0, atol=6e-7)
        assert (low - exact).norm() < 1e-4*exact.norm()
    same = wide.clone()
    assert not module._js_tile(same, wide.clone()).any() and not same.any()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "js"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiles_at_log_ratios_of_ten_thousand(name, dtype):
    "One class up, one down by 10⁴ nats, either way round: finite, and the registry's."
    z = torch.zeros(2, 5, dtype=dtype)
    z[0, 0], z[0, 1], z[1, 0], z[1, 1] = 1e4, -1e4, -1e4, 1e4
    for a, b in ((z, 0*z), (0*z, z), (z, -z), (z, z)):
        exact, low = a.to(torch.float64, copy=True), a.clone()
        value = module._any_tile(exact, b.to(torch.float64, copy=True), get_f_divergence(name))
        assert_close(module._TILES[name](low, b.clone()).double(), value, rtol=1e-6, atol=1e-6)
        assert low.isfinite().all()
        assert_close(low.double(), exact, rtol=0, atol=2e4*torch.finfo(dtype).eps)       # two places of a log-ratio


def test_a_recomputation_notices_changed_inputs():
    for changed in range(4):
        parts = heads()
        for x in parts[:2]: x.requires_grad_()
        loss = linear_divergence(*parts, reduction="none").sum()
        with torch.no_grad(): parts[changed].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"): loss.backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(reduction):
    h, W, th, tW = heads()
    h.requires_grad_()
    loss = linear_divergence(h, W, th, tW, reduction=reduction).sum()
    slope, = torch.autograd.grad(loss, h, create_graph=True)
    assert_close(slope.detach(), gradients(linear_divergence, h, W, th, tW)[1]*(1 if reduction == "mean" else N), **EXACT)
    with pytest.raises(RuntimeError, match="no second derivative"): (slope.square().sum() + h.sum()).backward()
    with pytest.raises(RuntimeError): torch.func.grad(lambda x: linear_divergence(x, W, th, tW))(h.detach())


class Sizes(TorchDispatchMode):
    "The largest tensor that any operation returns."
    numel = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor): self.note(x)
        return out

    def note(self, x):
        self.numel = max(self.numel, x.numel())
        return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_tokens_by_vocabulary(dtype, reduction):
    parts = heads(512, 8, 8, 4096, dtype=dtype)
    labels = torch.arange(512)
    calls = [lambda name=name, alpha=alpha: linear_divergence(*parts, name, 2., labels % 2 == 0, reduction, 16, alpha)
             for name, alpha in FAMILIES]
    calls += [lambda: linear_cross_entropy(*parts[:2], labels, reduction=reduction, chunk=16),
              lambda: linear_token_logps(*parts[:2], labels, chunk=16)]
    for x in parts[:2]: x.requires_grad_()
    for call in calls:
        with Sizes() as seen, torch.autograd.graph.saved_tensors_hooks(seen.note, seen.note): call().sum().backward()
        assert seen.numel == 16*4096
    with Sizes() as seen: linear_divergence(*parts).backward()             # and by itself it chooses less than all
    assert seen.numel < 512*4096


def error(got, exact): return torch.stack([(a.double() - b).norm()/b.norm() for a, b in zip(got, exact)])


@pytest.mark.parametrize("terms", [100, 193, 4096])
def test_rounding_of_a_product_does_not_grow_with_what_it_sums(terms):
    "A float32 chain of 4,096 terms is off by 5.7e-7, pieces of at most 192 stay below 3.5e-7."
    g = torch.Generator().manual_seed(terms)
    a, b = torch.randn(48, terms, generator=g), torch.randn(terms, 600, generator=g)
    exact = a.double() @ b.double()
    ours = module._add_product_(torch.full((48, 600), float("nan")), a, b, beta=0)
    assert (ours - exact).norm()/exact.norm() < 3.5e-7
    assert_close(module._add_product_(ours.clone(), a, -b), torch.zeros_like(ours), rtol=0, atol=1e-6*terms)


@pytest.mark.parametrize("name", ["forward_kl", "js"])
@pytest.mark.parametrize("chunk", [None, 60, 600])
def test_float32_in_pieces(name, chunk):
    "More words, widths and tokens than a piece holds; heads that lie transposed or strided in memory."
    parts = heads(600, 400, 200, 4500, scale=.2, dtype=torch.float32)
    exact = gradients(partial(plain, name=name, temperature=1.5), *(x.double() for x in parts))
    turned = [parts[0].repeat_interleave(2, 1)[:, ::2], parts[1].T.contiguous().T, parts[2].T.contiguous().T,
              torch.cat([parts[3], parts[3]], 1)[:, :200]]
    for h, W, th, tW in (parts, turned):
        loss = partial(linear_divergence, divergence=name, chunk=chunk, temperature=1.5)
        for a, b in zip(gradients(loss, h, W, th, tW), exact): assert (a - b).norm() < 2e-6*b.norm()


def plain_autocast(h, W, th, tW, name):
    return f_divergence(F.linear(h, W).float().log_softmax(-1), F.linear(th, tW).float().log_softmax(-1), name).mean()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "js", "hellinger", "tv"])
@pytest.mark.parametrize("mode", ["float32", "bfloat16", "float16", "autocast"])
def test_no_worse_than_the_plain_path_in_low_precision(name, mode):
    "Distance from the exact value and gradients, mean over eight draws, beside the plain path's."
    dtype = torch.float32 if mode == "autocast" else getattr(torch, mode)
    ours, theirs = [], []
    for seed in range(8):
        parts = heads(96, 32, 24, 500, seed=seed, scale=.5, dtype=dtype)
        exact = gradients(partial(plain, name=name), *(x.double() for x in parts))
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            got = gradients(partial(linear_divergence, divergence=name, chunk=32), *parts)
            assert got[0].dtype == torch.float32 and got[1].dtype == got[2].dtype == dtype
            ours.append(error(got, exact))
            theirs.append(error(gradients(partial(plain_autocast, name=name), *parts), exact))
    ours, theirs = torch.stack(ours).mean(0), torch.stack(theirs).mean(0)
    assert (ours <= 1.02*theirs + 1e-7).all(), (ours, theirs)


def test_cross_entropy_in_low_precision():
    h, W, _, _ = heads(96, 32, 24, 500, scale=.5, dtype=torch.bfloat16)
    labels = torch.arange(96)
    exact = gradients(lambda h, W: F.cross_entropy(h @ W.T, labels), h.double(), W.double())
    ours = error(gradients(partial(linear_cross_entropy, labels=labels), h, W), exact)
    assert (ours <= 1.02*error(gradients(lambda h, W: F.cross_entropy(F.linear(h, W).float(), labels), h, W), exact)).all()


def test_float16_gradients_do_not_vanish():
    "Under a loss scale the gradients are those of float32, rounded once."
    parts = heads(64, 16, 16, 4000, scale=.3, dtype=torch.float16)
    exact = gradients(partial(plain, name="forward_kl"), *(x.double() for x in parts))
    scaled = gradients(lambda *x: 2**12*linear_divergence(*x), *parts)
    assert error([g.double()/2**12 for g in scaled[1:]], exact[1:]).max() < 1e-3


def test_mixed_heads():
    "A bfloat16 teacher under a float32 student: each head keeps its type."
    h, W, th, tW = heads(dtype=torch.float32)
    low = th.bfloat16(), tW.bfloat16()
    ours = gradients(linear_divergence, h, W, *low)
    assert ours[0].dtype == ours[2].dtype == torch.float32
    logits = (low[0] @ low[1].T).float()
    theirs = gradients(partial(plain, name="forward_kl"), h, W, logits, torch.eye(V))
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_strided_inputs_and_checkpoint():
    h, W, th, tW = heads()
    wide = torch.stack([h, h], -1)[..., 0]
    assert not wide.is_contiguous()
    assert_close(gradients(linear_divergence, wide, W.T.contiguous().T, th, tW), gradients(linear_divergence, h, W, th, tW), **EXACT)
    again = lambda *x: checkpoint(linear_divergence, *x, use_reentrant=False)
    assert_close(gradients(again, h, W, th, tW), gradients(linear_divergence, h, W, th, tW), **EXACT)


def test_inside_a_compiled_step():
    h, W, th, tW = heads()
    step = torch.compile(lambda h, W: 2*linear_divergence(h.tanh(), W, th, tW, "js"), backend="eager")
    assert_close(gradients(step, h, W), gradients(lambda h, W: 2*plain(h.tanh(), W, th, tW, "js"), h, W), **EXACT)


def test_the_buffers_are_reused():
    "As many products as the chain rule needs, none again for a mean; half as many again for 'none'."
    class Products(TorchDispatchMode):
        count = 0
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += "mm" in func.overloadpacket.__name__
            return func(*args, **(kwargs or {}))
    parts = heads(12)
    for x in parts[:2]: x.requires_grad_()
    for reduction, products in (("mean", 4), ("none", 6)):
        with Products() as seen: linear_divergence(*parts, reduction=reduction, chunk=4).sum().backward()
        assert seen.count == products*3
    with torch.no_grad(), Products() as seen: linear_divergence(*parts, chunk=4)
    assert seen.count == 2*3
    parts[1].requires_grad_(False)                                        # a frozen head: nothing is swept twice
    with Products() as seen: linear_divergence(*parts, reduction="none", chunk=4).sum().backward()
    assert seen.count == 3*3


def refusals():
    h, W, th, tW = heads()
    y = torch.arange(N)
    L = linear_divergence
    return {
        r"student_hidden must be \(N, D\)": [lambda: L(h[0], W, th, tW), lambda: L(h, W[:, 1:], th, tW)],
        r"teacher_hidden must be \(N, D\)": [lambda: L(h, W, th[None], tW)],
        "teacher 11 and 12": [lambda: L(h, W, th, tW[1:])],
        "student has 10 tokens": [lambda: L(h[1:], W, th, tW)],
        "got torch.float32, torch.float64": [lambda: L(h.float(), W, th, tW)],
        "got torch.int64, torch.int64": [lambda: L(h.long(), W.long(), th, tW)],
        "is empty": [lambda: L(h[:0], W, th[:0], tW), lambda: linear_cross_entropy(h[:0], W, y[:0])],
        "unknown divergence 'kld'": [lambda: L(h, W, th, tW, "kld")],
        r"alpha must lie in \(0, 1\), got None": [lambda: L(h, W, th, tW, "alpha")],
        "no parameter, got alpha=0.5": [lambda: L(h, W, th, tW, "js", alpha=.5)],
        "temperature must be positive, got 0": [lambda: L(h, W, th, tW, temperature=0)],
        "got 'batchmean'": [lambda: L(h, W, th, tW, reduction="batchmean"),
                            lambda: linear_cross_entropy(h, W, y, reduction="batchmean")],
        "mask must be bool": [lambda: L(h, W, th, tW, mask=y), lambda: L(h, W, th, tW, mask=y[1:] > 0)],
        "a mean over nothing": [lambda: L(h, W, th, tW, mask=y < 0), lambda: linear_cross_entropy(h, W, y*0 - 100)],
        "chunk must be a positive number of tokens, got 0": [lambda: L(h, W, th, tW, chunk=0)],
        "0..12, got 13": [lambda: linear_cross_entropy(h, W, y + 3), lambda: linear_token_logps(h, W, y + 3)],
        "0..12, got -100": [lambda: linear_token_logps(h, W, y*0 - 100)],
        r"labels must have shape \(11,\)": [lambda: linear_token_logps(h, W, y[1:]), lambda: linear_cross_entropy(h, W, y[1:])],
        "integer class ids": [lambda: linear_token_logps(h, W, y.double())],
    }


@pytest.mark.parametrize("message", list(refusals()))
def test_refusals(message):
    for call in refusals()[message]:
        with pytest.raises(ValueError, match=message): call()


def test_half_precision_on_fake_cuda():
    with FakeTensorMode(), torch.device("cuda"):
        parts = [torch.randn(*shape, dtype=torch.bfloat16) for shape in ((N, D), (V, D), (N, E), (V, E))]
        for x in parts[:2]: x.requires_grad_()                             # the gradients are made in forward
        loss = linear_divergence(*parts, chunk=4)
    assert loss.device.type == "cuda" and loss.dtype == torch.float32


def test_names_by_hand_are_the_registry_s():
    for name in module._TILES: assert get_f_divergence(name).name == name
