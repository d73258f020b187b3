"""The three float32 products of a head over a few tokens: MKL, oneDNN in one chain, and in the pieces of `fused`.

    python bench/products.py [--tokens 128] [--vocab 32768] [--hidden 512]

`logits` sums over the hidden width, `by hidden` over the vocabulary, `by weight` over the tokens and adds to what is
there. The rounding error is the norm of the distance from float64 over the norm of the product.
"""
import argparse

import torch
from _bench import compare, repeats

from kullback.divergence.fused import _add_product_, _mm, _onednn

METHODS = {"MKL": lambda out, a, b, beta: out.addmm_(a, b, beta=beta),
           "oneDNN, one chain": lambda out, a, b, beta: out.mul_(beta).add_(_mm(a, b)),
           "oneDNN, pieces": _add_product_}


def factors(which, tokens, vocab, hidden):
    "Two factors, and what the product goes into."
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g)
    if which == "logits": return draw(tokens, hidden), draw(vocab, hidden).T, torch.zeros(tokens, vocab), 0
    if which == "by hidden": return draw(tokens, vocab), draw(vocab, hidden), torch.zeros(tokens, hidden), 0
    return draw(tokens, vocab).T, draw(tokens, hidden), torch.zeros(vocab, hidden), 1


def setup(method, *size):
    a, b, out, beta = factors(*size)
    return lambda: METHODS[method](out, a, b, beta)


def rounding(method, which, tokens, vocab, hidden):
    a, b, out, _ = factors(which, tokens, vocab, hidden)
    exact = a.double() @ b.double()
    return float((METHODS[method](out, a, b, 0).double() - exact).norm()/exact.norm())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--hidden", type=int, default=512)
    args = repeats(parser, rounds=30, warmup=3)
    if not _onednn(torch.zeros(1)): raise SystemExit("this build of torch has no oneDNN")
    for which in ("logits", "by hidden", "by weight"):
        size = which, args.tokens, args.vocab, args.hidden
        cases = {m: (setup, (m, *size)) for m in METHODS}
        compare(f"products-{which.replace(' ', '-')}", cases, "MKL", rounds=args.rounds, warmup=args.warmup, threads=2,
                allocators=args.allocator,
                note=f"{which}, {args.tokens} tokens, {args.vocab} words, hidden {args.hidden}, float32, "
                     f"{2e-9*args.tokens*args.vocab*args.hidden:.2f} GFLOP")
        print(*(f"{m}: {rounding(m, *size):.1e}" for m in METHODS), sep=", ")
