"Inputs that many tests draw: float64, from a seed."
import torch


def normal(*shape, seed=0, scale=1.):
    return scale*torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classroom(seed, B=7, K=5, spread=3.):
    "Student logits, teacher logits, labels."
    g = torch.Generator().manual_seed(seed)
    s, t = (spread*torch.randn(B, K, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t, torch.randint(K, (B,), generator=g)


def labelled(N=60, K=4, seed=0):
    "Labels: every class at least once, unbalanced."
    g = torch.Generator().manual_seed(seed)
    return torch.cat([torch.arange(K), (K*torch.rand(N - K, generator=g)**2).long()])[torch.randperm(N, generator=g)]
