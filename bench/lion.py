"""Lion beside lion-pytorch (MIT) and PyTorch's own AdamW and SGD: same values, then step time and peak memory."""
import torch
from _bench import compare
from lion_pytorch import Lion as Peer

from kullback.optim import Lion

MAKE = {
    "kullback Lion": lambda p: Lion(p, lr=1e-3, weight_decay=.1),
    "lion-pytorch": lambda p: Peer(p, lr=1e-3, weight_decay=.1),
    "torch AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=.1),
    "torch AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=.1, fused=True),
    "torch SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=.9, weight_decay=.1),
}
MODELS = {
    "lion-small": ("an MLP, 6 tensors, 26 thousand weights", [(64, 64), (64,), (256, 64), (256,), (10, 256), (10,)], 50),
    "lion-resnet18": ("the shapes of ResNet-18, 62 tensors, 11.7 million weights", None, 1),
    "lion-large": ("four matrices of 4096 × 1024, 16.8 million weights", [(4096, 1024)]*4, 1),
}


def shapes(name):
    if MODELS[name][1] is not None: return MODELS[name][1]
    from torchvision.models import resnet18
    with torch.device("meta"): return [tuple(p.shape) for p in resnet18().parameters()]


def weights(name, dtype=torch.float32):
    g, device = torch.Generator().manual_seed(0), "cuda" if torch.cuda.is_available() else "cpu"
    out = [torch.randn(s, generator=g, dtype=dtype).to(device).requires_grad_() for s in shapes(name)]
    for p in out: p.grad = torch.randn(p.shape, generator=g, dtype=dtype).to(device)
    return out


def setup(label, name):
    return MAKE[label](weights(name)).step


def largest_difference(steps=50):
    "Of the two Lions' weights after every one of these steps, float64, fresh gradients each."
    g, worst = torch.Generator().manual_seed(1), 0.
    ours, theirs = weights("lion-small", torch.float64), weights("lion-small", torch.float64)
    a, b = MAKE["kullback Lion"](ours), MAKE["lion-pytorch"](theirs)
    for _ in range(steps):
        for p, q in zip(ours, theirs): p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype).to(p.device); q.grad = p.grad
        a.step(); b.step()
        worst = max(worst, *((p - q).abs().max().item() for p, q in zip(ours, theirs)))
    return worst


if __name__ == "__main__":
    print(f"largest difference between the two Lions over 50 steps in float64: {largest_difference():.1e}")
    for name, (note, _, inner) in MODELS.items():
        compare(name, {label: (setup, (label, name)) for label in MAKE}, baseline="lion-pytorch", inner=inner, note=note,
                packages=("torch", "lion-pytorch"))
