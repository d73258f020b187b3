"""DKT, DKVMN and SAKT against pykt-toolkit with weights copied over, and the folded convolution against conv3d.

`setup` copies the weights, refuses to time two models whose outputs differ, and returns one training step: forward, loss
over real next steps, backward. pykt's loss is its own: it picks the next concept with a one-hot product and takes the
cross-entropy of probabilities in double precision. pykt is in the extra `peers`; without it only the convolution runs.
"""
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from _bench import compare

K, B, T = 110, 64, 200


def batch():
    g = torch.Generator().manual_seed(0)
    c, r = torch.randint(K, (B, T), generator=g), torch.randint(2, (B, T), generator=g)
    lengths = torch.randint(20, T, (B, 1), generator=g)
    return c, r, torch.arange(T - 1) < lengths


def pair(name):
    "Ours and pykt's, the same weights."
    from pykt.models.dkt import DKT as TheirDKT
    from pykt.models.dkvmn import DKVMN as TheirDKVMN
    from pykt.models.sakt import SAKT as TheirSAKT

    from kullback.trace import DKT, DKVMN, SAKT
    torch.manual_seed(0)
    ours, theirs = {"dkt": lambda: (DKT(K, 100), TheirDKT(K, 100, 0.)),
                    "dkvmn": lambda: (DKVMN(K, 50, 20), TheirDKVMN(K, 50, 20, 0.)),
                    "sakt": lambda: (SAKT(K, 64, T, 4), TheirSAKT(K, T, 64, 4, 0., 1))}[name]()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def their_probabilities(name, net, c, r):
    if name == "dkt": return (net(c[:, :-1], r[:, :-1])*F.one_hot(c[:, 1:], K)).sum(-1)
    if name == "dkvmn": return net(c, r)[:, 1:]
    return net(c[:, :-1], r[:, :-1], c[:, 1:])


def tracer(kind, name):
    from kullback.trace import next_step_loss
    c, r, m = batch()
    ours, theirs = pair(name)
    with torch.no_grad():
        gap = (ours(c[:, :-1], r[:, :-1], c[:, 1:], m).sigmoid() - their_probabilities(name, theirs, c, r)).abs()[m].max()
    assert gap < 1e-5, f"{name}: outputs differ by {gap}"
    def our_step():
        ours.zero_grad()
        next_step_loss(ours(c[:, :-1], r[:, :-1], c[:, 1:], m), r[:, 1:], m).backward()
    def their_step():
        theirs.zero_grad()
        p = torch.masked_select(their_probabilities(name, theirs, c, r), m)
        F.binary_cross_entropy(p.double(), torch.masked_select(r[:, 1:], m).double()).backward()
    return our_step if kind == "kullback" else their_step


def convolution(kind, cin, cout):
    from kullback.trace import frame_conv
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1000, cin, 4, 7, 7, generator=g).requires_grad_()
    w = torch.randn(cout, cin, 3, 3, 3, generator=g).requires_grad_()
    conv = frame_conv if kind == "kullback" else lambda x, w: F.conv3d(x, w, padding=1)
    assert torch.allclose(conv(x, w), F.conv3d(x, w, padding=1), atol=1e-3)
    def step():
        x.grad = w.grad = None
        conv(x, w).sum().backward()
    return step


if __name__ == "__main__":
    if find_spec("pykt"):
        for name in ("dkt", "dkvmn", "sakt"):
            compare(f"tracing-{name}", {k: (tracer, (k, name)) for k in ("kullback", "pykt")}, "kullback", rounds=7, warmup=1,
                    packages=("torch", "pykt-toolkit"), note=f"{B} learners, {T} steps, {K} concepts, one training step")
    for cin, cout in ((1, 4), (4, 8), (8, 4)):
        compare(f"tracing-conv-{cin}-{cout}", {k: (convolution, (k, cin, cout)) for k in ("kullback", "conv3d")}, "kullback",
                rounds=9, warmup=2, note=f"1,000 clips of 4 frames 7×7, {cin} to {cout} channels, forward and backward")
