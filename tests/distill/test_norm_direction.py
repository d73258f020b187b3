"`distill.norm_direction`: loops, polar coordinates, scaling laws, state that survives saving and accelerate."
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from kullback.distill import NDDistiller, cosine_direction_loss, kd_loss, nd_loss, norm_deficit

EXACT = dict(rtol=0, atol=1e-12)


def drawn(seed, B=12, D=5, K=3):
    g = torch.Generator().manual_seed(seed)
    s, t, c = (torch.randn(n, D, generator=g, dtype=torch.float64) for n in (B, B, K))
    return s*torch.rand(B, 1, generator=g, dtype=torch.float64)*3, t, c, torch.randint(K, (B,), generator=g)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 8))
def test_loop(seed, B, D):
    s, t, c, y = drawn(seed, B, D)
    want = []
    for i in range(B):
        e = c[y[i]]/math.sqrt((c[y[i]]**2).sum())
        want.append(1 - float(s[i]@e)/max(math.sqrt((s[i]**2).sum()), math.sqrt((t[i]**2).sum())))
    want = torch.tensor(want, dtype=torch.float64)
    for how, f in (("none", lambda x: x), ("mean", torch.mean), ("sum", torch.sum)):
        assert_close(nd_loss(s, t, c, y, how), f(want), **EXACT)


def test_in_the_plane():
    "In two dimensions with e = (1, 0): 1 − r·cos φ / max(r, R)."
    phi, r, R = (x.flatten() for x in torch.meshgrid(torch.linspace(0, 6, 9), torch.tensor([.1, 1., 4.]), torch.tensor([.5, 2.]),
                                                     indexing="ij"))
    f, t = torch.stack([r*phi.cos(), r*phi.sin()], 1).double(), torch.stack([0*R, R], 1).double()
    c, y = torch.tensor([[7., 0.]]).double(), torch.zeros(len(f), dtype=torch.long)
    r, R, cos = r.double(), R.double(), f[:, 0]/r.double()
    assert_close(nd_loss(f, t, c, y, "none"), 1 - r*cos/torch.maximum(r, R), rtol=0, atol=1e-7)
    assert_close(cosine_direction_loss(f, c, y, "none"), 1 - cos, rtol=0, atol=1e-7)
    assert_close(norm_deficit(f, t), torch.where(r < R, 1 - r/R, 0), rtol=0, atol=1e-7)


def test_longer_never_costs_more_when_the_angle_is_acute():
    s, t, c, y = drawn(1)
    s = s*(s*c[y]).sum(1, keepdim=True).sign()
    losses = torch.stack([nd_loss(a*s, t, c, y, "none") for a in (.1, .5, 1., 2., 10., 100.)])
    assert (losses.diff(dim=0) <= 1e-12).all() and (losses[0] > losses[-1]).all()


def test_a_zero_student_is_pulled_along_the_class_mean():
    _, t, c, y = drawn(2)
    f = torch.zeros_like(t, requires_grad=True)
    loss = nd_loss(f, t, c, y)
    loss.backward()
    assert loss == 1
    assert_close(f.grad, -F.normalize(c, dim=1)[y]/t.norm(dim=1, keepdim=True)/len(t), **EXACT)


def test_gradient_by_finite_differences():
    "A detached maximum leaves every value as it is; only slopes tell."
    s, t, c, y = drawn(7)
    s.requires_grad_()
    assert 2 < (s.norm(dim=1) > t.norm(dim=1)).sum() < 10
    assert torch.autograd.gradcheck(lambda f: nd_loss(f, t, c, y, "none"), s, eps=1e-7, atol=1e-6)
    assert torch.autograd.gradcheck(lambda f: cosine_direction_loss(f, c, y, "none"), s, eps=1e-7, atol=1e-6)


def test_only_the_student_learns():
    s, t, c, y = drawn(3)
    for x in (s, t, c): x.requires_grad_()
    (nd_loss(s, t, c, y) + cosine_direction_loss(s, c, y) + norm_deficit(s, t).sum()).backward()
    assert s.grad is not None and t.grad is None and c.grad is None


def test_single_precision_of_long_features():
    s, t, c, y = drawn(4)
    long = nd_loss(1e6*s.float(), t.float(), 1e-6*c.float(), y, "none")
    assert_close(long.double(), cosine_direction_loss(s, c, y, "none"), rtol=0, atol=1e-5)


def test_vmap_over_seeds():
    stacks = [torch.stack(x) for x in zip(*(drawn(s) for s in range(4)))]
    got = torch.vmap(lambda s, t, c, y: nd_loss(s, t, c, y))(*stacks)
    assert_close(got, torch.stack([nd_loss(*drawn(s)) for s in range(4)]), **EXACT)


class Pupil(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 4), nn.Linear(4, 3)
        self.distiller = NDDistiller(2., 1.5, 3., 4, nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5)))

    def forward(self, x, teacher_logits, teacher_feat, labels, epoch):
        f = self.body(x).relu()
        return self.distiller(self.head(f), teacher_logits, f, teacher_feat, labels, epoch)


def pupil():
    torch.manual_seed(5)
    net, data = Pupil(), (torch.randn(12, 6), torch.randn(12, 3), torch.randn(12, 5), torch.arange(12) % 3)
    net.distiller.fit(data[2], data[3], 3)
    return net, data


def test_total_and_warm_up():
    net, (x, t, tf, y) = pupil()
    net.eval()
    f = net.body(x).relu()
    nd = nd_loss(net.distiller.projector(f), tf, net.distiller.class_means, y)
    for epoch, w in ((0, 0), (1, .25), (3, .75), (4, 1), (50, 1)):
        want = F.cross_entropy(net.head(f), y) + 2*w*kd_loss(net.head(f), t, 3.) + 1.5*nd
        assert_close(net(x, t, tf, y, epoch)[0], want, rtol=0, atol=1e-6)
    assert NDDistiller(warmup_epochs=0).warmup(0) == 1 and NDDistiller().warmup(0) == 0 and NDDistiller().warmup(19) == .95


def test_state_survives_saving():
    net, data = pupil()
    net.eval()
    fresh = Pupil().eval()
    fresh.load_state_dict(net.state_dict())
    assert "distiller.class_means" in net.state_dict()
    assert torch.equal(fresh(*data, 3)[0], net(*data, 3)[0])
    other = Pupil()
    other.distiller.fit(torch.randn(8, 2), torch.arange(8) % 4, 4)
    with pytest.raises(RuntimeError, match="size mismatch"): other.load_state_dict(net.state_dict())


def test_accelerate_takes_the_same_step():
    from accelerate import Accelerator
    (net, data), (twin, _) = pupil(), pupil()
    opt, other = (torch.optim.SGD(n.parameters(), lr=.1) for n in (net, twin))
    accelerator = Accelerator(cpu=True)
    prepared, opt = accelerator.prepare(net, opt)
    accelerator.backward(prepared(*data, 2)[0])
    opt.step()
    twin(*data, 2)[0].backward()
    other.step()
    for (n, a), (m, b) in zip(net.state_dict().items(), twin.state_dict().items()): assert n == m and torch.equal(a, b)
    assert not torch.equal(net.distiller.projector[1].weight, pupil()[0].distiller.projector[1].weight)


def test_refusals():
    s, t, c, y = drawn(6)
    blank = torch.zeros_like(s)
    for call, said in [
        (lambda: nd_loss(s, t[:, :4], c, y), "shapes differ"),
        (lambda: nd_loss(s, t, c[:, :4], y), "5 dimensions, class means 4"),
        (lambda: nd_loss(s, t, c, y + 3), "0..2, got"),
        (lambda: nd_loss(s, t, c, y[:5]), r"\(12,\)"),
        (lambda: nd_loss(s, t, c*torch.tensor([[1.], [0], [1]]), y), "norm 0"),
        (lambda: nd_loss(blank, blank, c, y), "undefined"),
        (lambda: nd_loss(s, t, c, y, "batch"), "'batch'"),
        (lambda: nd_loss(s[0], t[0], c, y), "two axes"),
        (lambda: cosine_direction_loss(blank, c, y), "no direction"),
        (lambda: norm_deficit(s, blank), "share"),
        (lambda: NDDistiller(temperature=0.), "got 0"),
        (lambda: NDDistiller(nd_weight=-1.), "nd_weight must be 0 or more, got -1"),
        (lambda: NDDistiller().warmup(-1), "got -1"),
        (lambda: NDDistiller().fit(t, y, 9), "has no example"),
        (lambda: NDDistiller()(s, t, s, t, y, 0), "call fit"),
    ]:
        with pytest.raises(ValueError, match=said): call()
