"`distill.ofa`: both forms written out without torch, bounds, what each branch hears, accelerate."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import classroom as drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from kullback.distill import ExitBranches, OFADistiller, TokenExit, dist_loss, kd_loss, ofa_loss, ofa_targets

EXACT = dict(rtol=0, atol=1e-12)


def by_hand(s, t, y, gamma, tau, form):
    "Sums over examples and classes, one at a time."
    total = 0.
    for zs, zt, label in zip(s.tolist(), t.tolist(), y.tolist()):
        p = [math.exp(v/tau - max(zt)/tau) for v in zt]
        p = [v/sum(p) for v in p]
        log_z = math.log(sum(math.exp(v/tau) for v in zs))
        for c, (v, pc) in enumerate(zip(zs, p)):
            weight = ((1 + pc)**gamma - (form == "code") if c == label else pc**gamma if form == "code" else pc)
            total -= weight*(v/tau - log_z)
    return total/len(s)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([.3, 1., 1.5, 4.]), st.sampled_from([1., 2.5]), st.sampled_from(["code", "paper"]))
def test_written_out(seed, gamma, tau, form):
    s, t, y = drawn(seed)
    assert_close(ofa_loss(s, t, y, gamma, tau, form).item(), by_hand(s, t, y, gamma, tau, form), rtol=1e-12, atol=1e-12)
    rows = ofa_loss(s, t, y, gamma, tau, form, "none")
    assert rows.shape == (7,)
    assert_close(rows.sum(), ofa_loss(s, t, y, gamma, tau, form, "sum"), **EXACT)


def test_gamma_one_is_distillation():
    s, t, y = drawn(1)
    for tau in (1., 3.):
        z = s.clone().requires_grad_()
        ours = torch.autograd.grad(ofa_loss(z, t, y, 1., tau), z)[0]
        theirs = torch.autograd.grad(kd_loss(z, t, tau, scale_t2=False), z)[0]
        assert_close(ours, theirs, **EXACT)
        assert_close(ofa_targets(t, y, 1., tau), (t/tau).softmax(-1), **EXACT)
    assert_close(ofa_loss(s, t, y, form="paper"), F.cross_entropy(s, y) + F.cross_entropy(s, t.softmax(-1)), **EXACT)


def test_forms_differ_by_one_on_the_label_and_by_the_exponent_elsewhere():
    _, t, y = drawn(2)
    code, paper = (ofa_targets(t, y, 1.7, form=f) for f in ("code", "paper"))
    hot = F.one_hot(y, 5).bool()
    assert_close((paper - code)[hot], torch.ones(7).double(), **EXACT)
    assert_close(code[~hot], paper[~hot]**1.7, **EXACT)


def test_weights_move_strictly_with_gamma():
    _, t, y = drawn(3)
    hot, p = F.one_hot(y, 5).bool(), t.softmax(-1)
    ladder = torch.stack([ofa_targets(t, y, gamma) for gamma in (.5, 1., 1.2, 2., 6.)])
    assert (ladder.diff(dim=0)[:, hot] > 0).all() and (ladder.diff(dim=0)[:, ~hot] < 0).all()
    for gamma in (1., 1.2, 2., 6.): assert (ofa_targets(t, y, gamma)[hot] >= gamma*p[hot]*(1 - 1e-14)).all()
    for gamma in (.2, .9): assert (ofa_targets(t, y, gamma)[hot] <= gamma*p[hot]*(1 + 1e-14)).all()


def test_small_probabilities_keep_their_weight_in_single_precision():
    "(1 + p)^γ − 1 written as such is 0 in float32 for p below 6e-8."
    t = torch.tensor([[0., 20.]])
    weight = ofa_targets(t, torch.tensor([0]), 1.5)[0, 0].item()
    assert weight == pytest.approx(1.5*math.exp(-20)/(1 + math.exp(-20)), rel=1e-5)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_far_logits_in_single_precision(form):
    s = torch.tensor([[1e3, -1e3, 0., 0.], [-1e3, 1e3, 1e3, 0.]], requires_grad=True)
    loss = ofa_loss(s, -s.detach(), torch.tensor([0, 3]), 1.5, form=form)
    loss.backward()
    assert loss.isfinite() and s.grad.isfinite().all() and loss > 100


def test_teacher_learns_nothing():
    s, t, y = drawn(4)
    t.requires_grad_()
    z = s.requires_grad_()
    (ofa_loss(z, t, y, 1.5) + ofa_loss(z, t, y, 2., 3., "paper") + dist_loss(z, t)).backward()
    assert t.grad is None and z.grad is not None and not ofa_targets(t, y).requires_grad


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1., 2., 5.]))
def test_dist_against_numpy(seed, tau):
    s, t, _ = drawn(seed, spread=1.)
    q, p = ((z/tau).softmax(-1).numpy() for z in (s, t))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T)])
    for beta, gamma in ((1., 1.), (.3, 2.), (0., 1.)):
        value = dist_loss(s, t, beta, gamma, tau).item()
        assert value == pytest.approx(tau**2*(beta*(1 - rows) + gamma*(1 - columns)), abs=2e-4)
        assert -1e-12 <= value <= 2*tau**2*(beta + gamma)
    assert_close(dist_loss(s, t, tau, tau, tau), dist_loss(t, s, tau, tau, tau), **EXACT)      # a symmetric loss


def test_dist_survives_constant_rows():
    z = torch.zeros(3, 4, requires_grad=True)
    loss = dist_loss(z, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    loss.backward()
    assert_close(loss, torch.tensor(2.)) and z.grad.isfinite().all()


def test_conv_branch_is_the_stated_one():
    kinds = [type(m).__name__ for m in ExitBranches([(8, 8, 8), (16, 4, 4), (32, 2, 2)], 6, teacher_dim=40).exits[0].modules()]
    assert kinds.count("BatchNorm2d") == 4 and kinds.count("ReLU") == 4 and kinds.count("Conv2d") == 8
    exits = ExitBranches([(8, 8, 8), (16, 4, 4), (32, 2, 2)], 6, teacher_dim=40).exits
    assert [e[-1].in_features for e in exits] == [40]*3
    grouped = [m for m in exits[0].modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [m.stride[0] for m in grouped] == [2, 1, 2, 1] and [m.groups for m in grouped] == [8, 8, 16, 16]
    assert [m.kernel_size for m in exits[2].modules() if isinstance(m, nn.Conv2d)] == [(1, 1)]


def test_token_branch_merges_until_the_grid_and_reads_what_it_should():
    assert [len(TokenExit(n, 8, 1, 8, 6).merges) for n in (49, 196, 784, 225)] == [0, 1, 2, 0]
    branch, x = TokenExit(17, 8, 1, 8, 6, heads=2, class_token=True), torch.randn(2, 17, 8)
    mean = TokenExit(16, 8, 1, 8, 6, heads=2)
    order = torch.randperm(16)
    assert_close(branch(torch.cat([x[:, :1], x[:, 1:][:, order]], 1)), branch(x))      # attention has no places of its own
    assert_close(mean(x[:, 1:][:, order]), mean(x[:, 1:]))
    with torch.no_grad(): branch.blocks = nn.ModuleList()
    assert_close(branch(x), branch.head(branch.norm(x[:, 0])))


def test_merging_sees_squares():
    branch = TokenExit(16, 2, 0, 2, 3, grid=2)
    picture = torch.randn(1, 4, 4, 2)
    squares = torch.stack([picture[0, i:i + 2, j:j + 2].reshape(8) for i in (0, 2) for j in (0, 2)])
    want = branch.head(branch.norm(branch.merges[0](squares)).mean(0))
    assert_close(branch(picture.view(1, 16, 2))[0], want)


def test_initialisation_follows_its_generator():
    twins = [ExitBranches([(16, 8)]*2, 6, "token", generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    states = [t.state_dict() for t in twins]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values()))
    assert not torch.equal(states[0]["exits.0.head.weight"], states[2]["exits.0.head.weight"])
    for name, p in twins[0].named_parameters():
        if p.ndim == 2: assert .014 < p.std() < .026, name
    conv = ExitBranches([(64, 4, 4)], 6, generator=torch.Generator().manual_seed(0)).exits[0][0].weight
    assert conv.std().item() == pytest.approx(math.sqrt(2/64), rel=.05)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x):
        a = self.first(x)
        b = self.second(a)
        return self.head(b), [a, b]


def student(**setting): return OFADistiller(Pair(), ExitBranches([(4,), (4,)], 5, "linear"), **setting)


def test_whole_objective_and_its_weights():
    torch.manual_seed(0)
    x, (_, t, y) = torch.randn(7, 6), drawn(5)
    t = t.float()
    for weights in ((1., 1., 1.), (0., 1., 0.), (.5, .2, 3.)):
        net = student(gammas=(1.1, 1.3, 1.5), weights=weights, temperature=2., label_smoothing=.1)
        logits, features = net.student(x)
        a, b = net.branches(features)
        terms = (F.cross_entropy(logits, y, label_smoothing=.1), ofa_loss(logits, t, y, 1.5, 2.),
                 ofa_loss(a, t, y, 1.1, 2.) + ofa_loss(b, t, y, 1.3, 2.))
        assert_close(net(x, t, y)["loss"], sum(w*v for w, v in zip(weights, terms)))


def test_mixed_labels():
    torch.manual_seed(1)
    x, (_, t, y), net = torch.randn(7, 6), drawn(6), student(gammas=1.5)
    mixed = .7*F.one_hot(y, 5).float() + .3*F.one_hot((y + 1) % 5, 5).float()
    out, hard = net(x, t.float(), mixed), net(x, t.float(), y)
    assert_close(out["kd"], hard["kd"]), assert_close(out["ofa"], hard["ofa"])
    assert_close(out["ce"], F.cross_entropy(net.student(x)[0], mixed))


def test_state_and_accelerate():
    from accelerate import Accelerator
    torch.manual_seed(2)
    net, twin = student(gammas=1.4), student(gammas=1.4)
    twin.load_state_dict(net.state_dict())
    x, (_, t, y) = torch.randn(7, 6), drawn(7)
    opt, other = (torch.optim.SGD(n.parameters(), lr=.1) for n in (net, twin))
    accelerator = Accelerator(cpu=True)
    prepared, opt = accelerator.prepare(net, opt)
    accelerator.backward(prepared(x, t.float(), y)["loss"])
    opt.step()
    twin(x, t.float(), y)["loss"].backward()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values()))


def test_refusals():
    s, t, y = drawn(8)
    for call, said in [
        (lambda: ofa_targets(t, y, -1.), "gamma must be positive, got -1"),
        (lambda: ofa_loss(s, t, y, temperature=0.), "temperature must be positive, got 0"),
        (lambda: ofa_targets(t, y, form="readme"), "'readme'"),
        (lambda: ofa_targets(t[0], y[:1]), r"\(5,\)"),
        (lambda: ofa_loss(s, t, y - 5), r"0\.\.4, got"),
        (lambda: ofa_loss(s, t, y.double()), "float64"),
        (lambda: ofa_loss(s, t, y, reduction="avg"), "'avg'"),
        (lambda: ofa_loss(s[:3], t, y), "shapes differ"),
        (lambda: dist_loss(s[0], t[0]), r"\(5,\)"),
        (lambda: dist_loss(s, t, temperature=-2.), "got -2"),
        (lambda: ExitBranches([], 5), "none"),
        (lambda: ExitBranches([(4,)], 5, "token"), r"\(4,\)"),
        (lambda: ExitBranches([(4,)], 5, "linear")([s, s]), "1 branches, 2 stages"),
        (lambda: student(gammas=(1., 0., 1.)), "gamma must be positive, got 0"),
        (lambda: student(gammas=(1., 1.)), "3, got 2"),
        (lambda: student(weights=(1., 1.)), "three, got 2"),
    ]:
        with pytest.raises(ValueError, match=said): call()
