"Examples for test_devices: kernels, flow, lion."
from functools import partial

import torch

from kullback.optim import Lion, LionK, constraint_violation, get_kernel, kkt_score, lion_flow, lyapunov

NAMES = "l1 l2sq lp(1.5) lp(1) huber(0.3) soft_l1(0.3) topk(4) group(0) nuclear logsumexp".split()


def everything(kernel, x, y): return [f(z) for f in (kernel.value, kernel.grad, kernel.conjugate, kernel.violation)
                                      for z in (x, y)]


def inside(kernel, x): return kernel.grad(x.detach())


def stepped(optimizer, make, **options):
    "Two steps on a matrix and a vector; what comes back are the weights and the states."
    weights = [torch.zeros(4, 3, requires_grad=True), torch.zeros(1, 5, requires_grad=True)]
    opt = optimizer(weights, lr=.1, weight_decay=.5, **options)

    def call():
        for _ in range(2):
            for w in weights: w.grad = torch.ones_like(w)
            opt.step()
        return [w.detach() for w in weights] + [opt.state[w]["exp_avg"] for w in weights]
    return call


EXAMPLES = {
    "get_kernel": [lambda make, n=n: partial(everything, get_kernel(n), make.normal(4, 3), make.normal(4, 3))
                   for n in NAMES],
    "lion_flow": [lambda make, n=n: partial(lion_flow, lambda x: 2*x, make.normal(4, 3), make.normal(4, 3), n,
                                            1., 1., 2., .5, .1, 3) for n in ("huber(0.3)", "logsumexp")],
    "lyapunov": [lambda make, n=n: partial(lyapunov, make.normal(1)[0], inside(get_kernel(n), make.normal(4, 3))/2,
                                           make.normal(4, 3), n, 1., 1., 2., .5) for n in NAMES],
    "kkt_score": lambda make: partial(kkt_score, make.normal(4, 3), make.normal(4, 3), 2.),
    "constraint_violation": [lambda make, n=n: partial(constraint_violation, make.normal(4, 3), 2., n) for n in NAMES
                             if n != "l2sq"],  # no fence: a constant zero
    "Lion": lambda make: stepped(Lion, make),
    "LionK": [lambda make, n=n: stepped(LionK, make, kernel=n) for n in NAMES],
}
NO_GRADIENT = {"Lion": "an optimiser steps without one", "LionK": "an optimiser steps without one"}
EXEMPT = {"ConvexKernel": "a record; get_kernel's examples call every entry", "Trajectory": "a record; lion_flow returns it",
          "lion_coefficients": "numbers in, numbers out"}
