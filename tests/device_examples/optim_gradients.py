"Examples for test_devices: gradients."
from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensor

from kullback.optim import align_gradients, aligned_backward, conflict


def two(make): return [make.normal(3, 4), make.normal(5)], [make.normal(3, 4), make.normal(5)]


def backward(make):
    weight = torch.randn(4, 3).requires_grad_()
    x = make.normal(5, 4).detach()

    def call():
        weight.grad = None
        out = aligned_backward((x@weight).square().sum(), -(x@weight).sum(), [weight])
        return out, weight.grad
    return call


def forward_only(make):
    "Fake cuda has no backward: the two gradients are given."
    if isinstance(torch.ones(1), FakeTensor): return partial(conflict, *two(make))
    return backward(make)


EXAMPLES = {
    "conflict": lambda make: partial(conflict, *two(make)),
    "align_gradients": [lambda make: partial(align_gradients, *two(make)),
                        lambda make: partial(align_gradients, [make.normal(3), None], [None, make.normal(2)])],
    "aligned_backward": forward_only,
}
NO_GRADIENT = {"aligned_backward": "it writes gradients"}
EXEMPT = {}
