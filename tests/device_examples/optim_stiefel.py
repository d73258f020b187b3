"Examples for test_devices: orthonormal columns."
from functools import partial

import torch

from kullback.optim import StiefelAdam, qr_retraction, stiefel_project_tangent


def frame(): return torch.eye(5, 3).clone()


def stepped(make, retraction):
    weights = [frame().requires_grad_(), torch.zeros(4, requires_grad=True)]
    opt = StiefelAdam(weights, .1, retraction=retraction)
    slopes = [torch.randn(5, 3), torch.randn(4)]

    def call():
        for _ in range(2):
            for w, g in zip(weights, slopes): w.grad = g
            opt.step()
        return [w.detach() for w in weights] + [opt.state[w]["exp_avg"] for w in weights]
    return call


EXAMPLES = {
    "stiefel_project_tangent": lambda make: partial(stiefel_project_tangent, frame(), make.normal(5, 3)),
    "qr_retraction": lambda make: partial(qr_retraction, frame(), make.normal(5, 3)),
    "StiefelAdam": [lambda make, how=how: stepped(make, how) for how in ("qr", "cayley")],
}
NO_GRADIENT = {"StiefelAdam": "an optimiser steps without one"}
EXEMPT = {}
