"`trace.cakt`: indices by loops, frames by hand, the folded convolution against conv3d, the released model's forward in other words."
import math

import pytest
import torch
import torch.nn.functional as F
from draws import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from kullback.trace import (
    CAKT,
    FrameSE,
    Residual3d,
    concept_frames,
    frame_conv,
    next_step_loss,
    same_concept_index,
)

EXACT = dict(rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 6))
def test_index_by_double_loop(seed, k, T):
    g = torch.Generator().manual_seed(seed)
    c, q = torch.randint(3, (2, 3, T), generator=g)
    for query in (q, None):
        index = same_concept_index(c, k, query)
        assert index.shape == (3, T, k) and index.dtype == torch.int64
        for b in range(3):
            for t in range(T):
                past = [j for j in range(t + 1) if c[b, j] == (c if query is None else q)[b, t]][-k:]
                assert index[b, t].tolist() == [-1]*(k - len(past)) + past


def test_frames_and_their_gradients():
    c, q = torch.randint(3, (2, 2, 6), generator=torch.Generator().manual_seed(1))
    index, emb = same_concept_index(c, 2, q), normal(2, 6, 4)
    times = torch.arange(6) + 1
    want = torch.zeros(2, 6, 2, 4).double()
    for b, t, s in torch.cartesian_prod(torch.arange(2), torch.arange(6), torch.arange(2)).tolist():
        j = index[b, t, s].item()
        if j >= 0: want[b, t, s] = math.exp(-.4*(t + 1 - j))*emb[b, j]
    assert_close(concept_frames(emb, index, .4, times), want, **EXACT)
    assert_close(concept_frames(emb, index, .4, times.expand(2, 6)), want, **EXACT)
    assert torch.autograd.gradcheck(lambda e, d: concept_frames(e, index, d, times), (emb.requires_grad_(), torch.tensor(.4).double().requires_grad_()))
    d = torch.tensor(-80., requires_grad=True)                              # a missing frame must not turn the gradient into NaN
    concept_frames(torch.ones(1, 30, 2), torch.full((1, 30, 1), -1), d, torch.arange(30)).sum().backward()
    assert d.grad == 0
    for call, said in [(lambda: concept_frames(emb, index[:, :3], .4, times), "index must be"), (lambda: concept_frames(emb, index, .4, times[:3]), "query_time must be"),
                       (lambda: same_concept_index(c, 0), "k must be positive, got 0"), (lambda: same_concept_index(c, 2, q[:, :3]), "shapes differ")]:
        with pytest.raises(ValueError, match=said): call()


@pytest.mark.parametrize("shape", [(2, 1, 1, 1, 1), (3, 2, 4, 5, 5), (1, 3, 7, 2, 6), (4, 8, 2, 3, 3)])
def test_folded_convolution(shape):
    x, w = normal(*shape).requires_grad_(), normal(5, shape[1], 3, 3, 3, seed=1).requires_grad_()
    ours, theirs = frame_conv(x, w), F.conv3d(x, w, padding=1)
    assert_close(ours, theirs, **EXACT)
    for a, b in zip(torch.autograd.grad(ours.cos().sum(), (x, w)), torch.autograd.grad(theirs.cos().sum(), (x, w))): assert_close(a, b, **EXACT)


def test_block_without_change_of_channels_keeps_x():
    block = Residual3d(3, 3, 4).double().eval()
    with torch.no_grad(): block.bn2.weight.zero_()
    x = normal(2, 3, 4, 5, 5)
    assert block.downsample is None
    assert_close(block(x), x.relu(), **EXACT)


def test_frame_weights():
    se, x = FrameSE(6, 3).double(), normal(2, 3, 6, 4, 4)
    assert se.fc[0].weight.shape == (2, 6)
    with torch.no_grad(): se.fc[2].weight.copy_(1e3*torch.eye(6, 2))        # frames 0 and 1 open with the units, the others stay at ½
    units = F.relu(x.mean((-2, -1))@se.fc[0].weight.T)
    want = torch.full((2, 3, 6), .5).double()
    want[..., :2] = (1e3*units).sigmoid()
    assert_close(se(x), x*want[..., None, None], **EXACT)


def released(net, x, K, k):
    "The released forward in plain loops: own concept, age 0 first, growing lists of past steps; initial states zero."
    B, T = x.shape
    H, S = net.side, net.decay
    e = net.interaction_emb.weight[x]
    clips = torch.zeros(B, T, k, H, H).double()
    for b in range(B):
        past = {}
        for t in range(T):
            past.setdefault(x[b, t].item() % K, []).append(t)
            for slot, j in enumerate(reversed(past[x[b, t].item() % K][-k:])): clips[b, t, k - 1 - slot] = torch.exp((j - t)*S)*e[b, j].view(H, H)
    y = clips.view(B*T, 1, k, H, H)
    for block in net.blocks:
        out = block.bn2(F.conv3d(block.bn1(F.conv3d(y, block.conv3d_1.weight, padding=1)).relu(), block.conv3d_2.weight, padding=1))
        gate = block.se_layer.fc(F.adaptive_avg_pool3d(out, (k, 1, 1)).flatten(2))
        y = (out*gate[..., None, None] + block.downsample(y)).relu()
    u = F.adaptive_avg_pool3d(y, (1, H, H)).view(B, T, -1)
    h, _ = net.front(e)
    both = torch.cat([u, h], 2)
    z = net.curve_gate(both).sigmoid()*u + net.state_gate(both).sigmoid()*h
    return net.out_layer(net.rear(z)[0])


def test_current_alignment_is_the_released_forward():
    torch.manual_seed(0)
    net = CAKT(4, 3, 3, "current").double().eval()
    g = torch.Generator().manual_seed(2)
    c, q = torch.randint(4, (2, 3, 8), generator=g)
    r = torch.randint(2, (3, 8), generator=g)
    everything = released(net, c + 4*r, 4, 3)
    assert_close(net(c, r, q), everything.gather(2, q[..., None])[..., 0], **EXACT)


def test_only_the_next_concept_tells_next_from_current():
    "Where the next concept is the current one, the clips hold the same tries, one step older."
    e, c = normal(2, 6, 9), torch.randint(2, (2, 6))
    near, far = CAKT(2, 3, 2, "current").double(), CAKT(2, 3, 2, "next").double()
    assert_close(far.clips(e, c, c), near.clips(e, c, c)*(-near.decay).exp(), **EXACT)


def test_batch_statistics_are_those_of_real_steps():
    torch.manual_seed(1)
    net, twin = (CAKT(3, 3, 2).double() for _ in range(2))
    twin.load_state_dict(net.state_dict())
    c, q = torch.randint(3, (2, 4, 7))
    r, m = torch.randint(2, (4, 7)), torch.arange(7) < torch.tensor([[7], [2], [5], [1]])
    net(c, r, q, m)
    x = twin.interaction_emb(c + 3*r)
    twin.curve(twin.clips(x, c, q)[m])
    for a, b in zip(net.buffers(), twin.buffers()): assert_close(a, b, rtol=0, atol=1e-12)


def test_every_switch_reaches_its_part():
    c, r = torch.zeros(2, 5).long(), torch.ones(2, 5).long()
    bare = CAKT(2, 3, 2, se=False, decay=False)
    assert bare.decay == 0. and not [n for n, _ in bare.named_parameters() if "se_layer" in n or "decay" in n]
    net = CAKT(2, 3, 2)
    next_step_loss(net(c, r, c), r).backward()
    assert all(p.grad is not None for p in net.parameters()) and net.raw_decay.grad != 0
    loose = CAKT(2, 3, 2, dropout=.5)
    assert not torch.equal(loose(c, r, c), loose(c, r, c))


def test_accelerate():
    from accelerate import Accelerator
    torch.manual_seed(2)
    net, twin = (CAKT(3, 3, 2) for _ in range(2))
    twin.load_state_dict(net.state_dict())
    c, q = torch.randint(3, (2, 4, 7))
    r, m = torch.randint(2, (4, 7)), torch.ones(4, 7, dtype=torch.bool)
    opt, other = (torch.optim.SGD(n.parameters(), lr=.1) for n in (net, twin))
    accelerator = Accelerator(cpu=True)
    prepared, opt = accelerator.prepare(net, opt)
    accelerator.backward(next_step_loss(prepared(c, r, q, m), r, m))
    opt.step()
    next_step_loss(twin(c, r, q, m), r, m).backward()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values()))
