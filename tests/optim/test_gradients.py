"`optim.gradients`: projections by least squares, half-spaces, Nones, vmap, and one ordinary backward."
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from kullback.optim import align_gradients, aligned_backward, conflict

EXACT = dict(rtol=0, atol=1e-12)
SHAPES = [(3, 4), (5,), (2, 1, 2)]


def drawn(seed):
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(*s, generator=g, dtype=torch.float64) for s in SHAPES] for _ in range(2)]


def flat(gs): return torch.cat([x.flatten() for x in gs])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_projection_by_least_squares(seed):
    a, b = drawn(seed)
    before = [x.clone() for x in a]
    out = align_gradients(a, b)
    u, v = flat(a), flat(b)
    if u@v >= 0:
        assert all(torch.equal(x, y) for x, y in zip(out, b)) and conflict(a, b) == 0
    else:
        coefficient = torch.linalg.lstsq(u[:, None], v[:, None]).solution[0, 0]
        assert_close(flat(out), v - coefficient*u, **EXACT)
        assert_close(conflict(a, b), coefficient, **EXACT)
    assert u@flat(out) >= -1e-12
    assert_close(flat(align_gradients([7*x for x in a], b)), flat(out), **EXACT)
    assert_close(flat(align_gradients(a, [7*x for x in b])), 7*flat(out), rtol=0, atol=1e-11)
    assert_close(flat(align_gradients(a, out)), flat(out), **EXACT)                       # once is enough
    assert all(torch.equal(x, y) for x, y in zip(a, before))
    assert [x.shape for x in out] == [x.shape for x in b]


def test_a_single_tensor_is_a_list_of_one():
    (a, *_), (b, *_) = drawn(0)
    out = align_gradients(a, b)
    assert isinstance(out, torch.Tensor) and torch.equal(out, align_gradients([a], [b])[0])


def test_none_is_zero():
    a, b = [torch.tensor([1., 0.]), None, torch.tensor([2.]), None], [torch.tensor([-3., 1.]), torch.tensor([5.]), None, None]
    zeros = lambda gs, like: [torch.zeros_like(o if o is not None else torch.zeros(1)) if x is None else x for x, o in zip(gs, like)]
    out, want = align_gradients(a, b), align_gradients(zeros(a, b), zeros(b, a))
    assert out[3] is None
    for x, y in zip(out[:3], want): assert_close(x, y, **EXACT)
    assert_close(conflict(a, b), torch.tensor(-3/5), rtol=1e-6, atol=0)
    assert conflict([torch.ones(2), None], [None, torch.ones(3)]) == 0


def test_a_vanished_primary_changes_nothing():
    b = torch.tensor([1., -2.])
    assert torch.equal(align_gradients(torch.zeros(2), b), b)


def test_vmap_is_one_alignment_a_seed():
    stacks = [[torch.stack(x) for x in zip(*(drawn(s)[i] for s in range(5)))] for i in (0, 1)]
    got = torch.vmap(align_gradients)(*stacks)
    for s in range(5): assert_close(flat([x[s] for x in got]), flat(align_gradients(*drawn(s))), **EXACT)


def net_and_losses(flip):
    torch.manual_seed(2)
    net = nn.ModuleDict({"body": nn.Linear(6, 5), "one": nn.Linear(5, 3), "two": nn.Linear(5, 3), "idle": nn.Linear(2, 2)}).double()
    net["two"].load_state_dict(net["one"].state_dict())
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 3

    def losses():
        h = net["body"](x).tanh()
        return F.cross_entropy(net["one"](h), y), flip*2*F.cross_entropy(net["two"](h), y)
    return net, losses


@pytest.mark.parametrize("flip", [-1, 1])
def test_backward_is_the_reweighted_sum(flip):
    net, losses = net_and_losses(flip)
    weight = aligned_backward(*losses(), net.parameters())
    got = {n: p.grad for n, p in net.named_parameters()}
    assert got["idle.weight"] is None and not weight.requires_grad
    assert (weight > 1) if flip < 0 else (weight == 1)
    net.zero_grad()
    main, helper = losses()
    (weight*main + helper).backward()
    for n, p in net.named_parameters():
        if p.grad is not None: assert_close(got[n], p.grad, **EXACT)
    main, helper = losses()
    g1 = torch.autograd.grad(main, list(net.parameters()), materialize_grads=True)
    assert flat(g1)@flat([p.grad if p.grad is not None else 0*p for p in net.parameters()]) >= flat(g1)@flat(g1) - 1e-12


def test_backward_adds_to_what_is_there():
    net, losses = net_and_losses(-1)
    aligned_backward(*losses(), net.parameters())
    once = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    aligned_backward(*losses(), net.parameters())
    for p, g in zip([p for p in net.parameters() if p.grad is not None], once): assert_close(p.grad, 2*g, **EXACT)


def test_refusals():
    a, b = drawn(3)
    for call, said in [
        (lambda: align_gradients(a, b[:2]), "differ in length: 3, 2"),
        (lambda: align_gradients(a, b[::-1]), r"entry 0 differ: \(3, 4\), \(2, 1, 2\)"),
        (lambda: conflict([None, None], b[:2]), "no gradient"),
        (lambda: aligned_backward(a[0].sum(), b[0].sum(), []), "empty"),
    ]:
        with pytest.raises(ValueError, match=said): call()
