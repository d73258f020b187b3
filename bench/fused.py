"""`linear_divergence` beside the same loss on logits (plain, compiled), TRL's and Liger's.

    python bench/fused.py [--vocab 32768 ...] [--loss js ...] [--method kullback plain ...] [--rounds 5]

2,048 tokens, hidden 512 (student) and 1,024 (teacher), float32, two threads; every method gives value and both
gradients of one loss, and they are compared before anything is timed. `products` is the four matrix products at full
size with their outputs reused: what no method can do without. Peak memory is above inputs and gradients, with every
freed block handed back to the system.
"""
import argparse
import os
from functools import partial

import torch
from _bench import compare, repeats

from kullback.divergence import f_divergence, linear_divergence

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
TOKENS, STUDENT, TEACHER = 2048, 512, 1024
BETA = {"forward_kl": 0., "js": .5, "reverse_kl": 1.}                 # TRL's and Liger's word for it


def heads(tokens, vocab):
    g = torch.Generator().manual_seed(0)
    draw = lambda n, d: torch.randn(n, d, generator=g)*d**-.25
    h, W, th, tW = draw(tokens, STUDENT), draw(vocab, STUDENT), draw(tokens, TEACHER), draw(vocab, TEACHER)
    return h.requires_grad_(), W.requires_grad_(), th, tW


def registry(name):
    "The registry's formula on logits."
    def loss(h, W, th, tW): return f_divergence((h @ W.T).log_softmax(-1), (th @ tW.T).log_softmax(-1), name).mean()
    return loss


def plain(name):
    "The formula one would write by hand, with as few tensors as autograd allows."
    def loss(h, W, th, tW):
        p, q = (h @ W.T).log_softmax(-1), (th @ tW.T).log_softmax(-1)
        if name == "forward_kl": return (q.exp()*(q - p)).sum(-1).mean()
        if name == "reverse_kl": return (p.exp()*(p - q)).sum(-1).mean()
        P, Q = p.exp(), q.exp()
        m = ((P + Q)/2).log()
        return (P*(p - m) + Q*(q - m)).sum(-1).mean()
    return loss


def trl(name):
    from trl.experimental.gkd import GKDTrainer
    factor = 2 if name == "js" else 1
    def loss(h, W, th, tW):
        value = GKDTrainer.generalized_jsd_loss((h @ W.T)[None], (th @ tW.T)[None], beta=BETA[name], reduction="sum")
        return value*(factor/len(h))
    return loss


def liger(name, **options):
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    criterion = LigerFusedLinearJSDLoss(weight_hard_loss=0., weight_soft_loss=1., beta=BETA[name], **options)
    factor = 2 if name == "js" else 1
    def loss(h, W, th, tW): return criterion(h, W, th, tW, torch.zeros(len(h), dtype=torch.long))*factor
    return loss


METHODS = {
    "kullback": lambda name: partial(linear_divergence, divergence=name),
    "plain": plain,
    "plain, compiled": lambda name: torch.compile(plain(name)),
    "TRL": trl,
    "Liger, default": liger,
    "Liger, chunk 128": partial(liger, chunk_size=128),
    "Liger, chunk 128, eager": partial(liger, chunk_size=128, compiled=False),
    "registry on logits": registry,
}
DEFAULT = list(METHODS)[:-1]


def setup(method, name, vocab):
    "Forward and backward; the gradients of the last call are dropped first."
    h, W, th, tW = heads(TOKENS, vocab)
    if method == "products": return products(h, W, th, tW)
    loss = METHODS[method](name)
    def call():
        h.grad = W.grad = None
        loss(h, W, th, tW).backward()
    return call


def products(h, W, th, tW):
    h, W = h.detach(), W.detach()
    z, t = h.new_empty(len(h), len(W)), h.new_empty(len(h), len(W))
    grad_h, grad_W = torch.empty_like(h), torch.empty_like(W)
    def call():
        torch.mm(h, W.T, out=z)
        torch.mm(th, tW.T, out=t)
        torch.mm(z, W, out=grad_h)
        torch.mm(z.T, h, out=grad_W)
    return call


def agree(names, methods):
    "Value and gradients of every method against float64, at a small size."
    for name in names:
        h, W, th, tW = heads(256, 2048)
        exact = [x.detach().double().requires_grad_() for x in (h, W)]
        value = registry(name)(*exact, th.double(), tW.double())
        slopes = torch.autograd.grad(value, exact)
        for method in methods:
            h.grad = W.grad = None
            ours = METHODS[method](name)(h, W, th, tW)
            ours.backward()
            for a, b in zip((ours.detach(), h.grad, W.grad), (value.detach(), *slopes)):
                error = float((a.double() - b).norm()/b.norm())
                if not error < 1e-5: raise SystemExit(f"{method} computes another {name}: off by {error:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--loss", nargs="+", default=list(BETA), choices=list(BETA))
    parser.add_argument("--method", nargs="+", default=DEFAULT, choices=list(METHODS))
    args = repeats(parser)
    agree(args.loss, args.method)
    for vocab in args.vocab:
        for name in args.loss:
            cases = {m: (setup, (m, name, vocab)) for m in ["products", *args.method]}
            compare(f"fused-{name}-{vocab//1024}k", cases, "products", rounds=args.rounds, warmup=args.warmup,
                    threads=2, allocators=args.allocator,
                    packages=("torch", "trl", "liger-kernel"),
                    note=f"{name}, {TOKENS} tokens, vocabulary {vocab}, hidden {STUDENT}/{TEACHER}, float32")
