"""One convolution for n candidates: weights mixed against outputs mixed, and the authors' own layers.

64 images of 14×14, 16 channels to 32, kernels up to 7; forward and backward to weight, bias, input and every α. n = 3: output
channels {8, 16, 32}; 9: and kernels {3, 5, 7}; 27: and input channels {4, 8, 16}. `authors, weights` is `ConvMixture`,
`authors, outputs` the sum over `ConvSuper` of their weight-sharing baseline, both of automl/TangleNAS, whose clone is named by
$TANGLENAS (it has no licence file: nothing of it is here). `setup` refuses to time a case whose output is not that of the first
within 1e-4; only `ConvSuper` is let off, which crops kernels at the corner. Then a supernet of two convolutions and 81
architectures, a training step of both modes. Bytes kept for backward are counted, peaks measured in a fresh process.
"""
import importlib.util
import itertools
import os
import sys
from pathlib import Path

import torch
from _bench import compare
from torch import nn

SIZES = {3: ((16,), (8, 16, 32), (7,)), 9: ((16,), (8, 16, 32), (3, 5, 7)), 27: ((4, 8, 16), (8, 16, 32), (3, 5, 7))}
CLONE = os.environ.get("TANGLENAS")


def ours(n, mode):
    from kullback.nas import EntangledConv2d
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EntangledConv2d(*SIZES[n], mode=mode)


def theirs(n, mode):
    path = Path(CLONE)/"toy_search_spaces"/"conv_macro"/"mixture_operations.py"
    spec = importlib.util.spec_from_file_location("tanglenas_mixture_operations", path)
    ops = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ops)
    inps, outs, kernels = SIZES[n]
    conv, layer = nn.Conv2d(16, 32, 7, padding=3), ours(n, "weights")
    conv.weight, conv.bias = layer.weight, layer.bias
    if mode == "weights": mixed = ops.ConvMixture(conv, list(inps), list(outs), list(kernels))
    else: supers = nn.ModuleList(ops.ConvSuper(conv, i, o, k) for i, o, k in itertools.product(inps, outs, kernels))

    def call(x, alphas):
        joint = (alphas["inp"][:, None, None]*alphas["out"][:, None]*alphas["kernel"]).flatten()
        if mode == "weights": return mixed(x, joint)
        return sum(w*op(x) for w, op in zip(joint, supers))
    call.leaves = [conv.weight, conv.bias]
    return call


def problem(n):
    g = torch.Generator().manual_seed(1)
    alphas = {name: torch.randn(len(s), generator=g).softmax(0).requires_grad_() for name, s in zip(("inp", "out", "kernel"), SIZES[n])}
    return torch.randn(64, 16, 14, 14, generator=g).requires_grad_(), alphas, torch.randn(64, 32, 14, 14, generator=g)


def layer_of(kind, n):
    if kind.startswith("authors"): return theirs(n, kind.split(", ")[1])
    layer = ours(n, kind)
    if kind == "weights": return layer
    layer.load_state_dict(ours(n, "weights").state_dict())
    return layer


def setup(kind, n):
    (x, alphas, up), layer, first = problem(n), layer_of(kind, n), ours(n, "weights")
    with torch.no_grad(): gap = (layer(x, alphas) - first(x, alphas)).abs().max()
    assert kind == "authors, outputs" or gap < 1e-4, f"{kind}, n = {n}: outputs differ by {gap}"
    leaves = [x, *alphas.values(), *(layer.leaves if hasattr(layer, "leaves") else layer.parameters())]

    def step():
        for leaf in leaves: leaf.grad = None
        layer(x, alphas).backward(up)
    return step


class Supernet(nn.Module):
    "Two convolutions, 81 architectures."
    def __init__(self, mode):
        from kullback.nas import EntangledConv2d
        super().__init__()
        self.one = EntangledConv2d((1,), (4, 8, 16), (1, 3, 5), mode=mode)
        self.two = EntangledConv2d((4, 8, 16), (8, 16, 32), (1, 3, 5), mode=mode)
        self.head = nn.Linear(32, 10)

    def forward(self, x, a):
        x = self.one(x, dict(out=a["c1"], kernel=a["k1"])).relu()
        return self.head(self.two(x, dict(inp=a["c1"], out=a["c2"], kernel=a["k2"])).relu().mean((-2, -1)))


def supernet(mode):
    torch.manual_seed(0)
    net, x, y = Supernet(mode), torch.randn(64, 1, 14, 14), torch.randint(10, (64,))
    alphas = {name: torch.full((3,), 1/3, requires_grad=True) for name in ("c1", "k1", "c2", "k2")}

    def step():
        net.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(x, alphas), y).backward()
    return step


def kept():
    "Bytes for backward, each storage once."
    from kullback.quantize import tensor_saved_bytes
    for n in SIZES:
        x, alphas, _ = problem(n)
        sizes = {kind: tensor_saved_bytes(layer_of(kind, n), x, alphas)/2**20 for kind in kinds()}
        print(f"n = {n:2}: " + ", ".join(f"{kind} {size:.2f} MiB" for kind, size in sizes.items()))
    x, alphas = torch.randn(64, 1, 14, 14), {name: torch.full((3,), 1/3, requires_grad=True) for name in ("c1", "k1", "c2", "k2")}
    print("supernet: " + ", ".join(f"{mode} {tensor_saved_bytes(Supernet(mode), x, alphas)/2**20:.2f} MiB" for mode in ("weights", "outputs")))


def kinds(): return ["weights", "outputs", *(["authors, weights", "authors, outputs"] if CLONE else [])]


if __name__ == "__main__":
    if not CLONE: print("$TANGLENAS names no clone of automl/TangleNAS: the authors' layers are left out", file=sys.stderr)
    kept()
    for n in SIZES:
        compare(f"entangle-{n}", {kind: (setup, (kind, n)) for kind in kinds()}, "weights", rounds=9, warmup=2,
                note=f"one convolution, {n} candidates, forward and backward")
    compare("entangle-supernet", {mode: (supernet, (mode,)) for mode in ("weights", "outputs")}, "weights", rounds=15, warmup=3,
            note="two convolutions, 81 architectures, forward and backward, 64 images of 14×14")
