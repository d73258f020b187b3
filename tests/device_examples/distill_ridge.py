"Examples for test_devices: ridge."
import math
from functools import partial

from kullback.distill import brier_self_distill_loss, kernel_ridge_fit, self_distill, shrinkage


def gram(make):
    "A kernel matrix, as a leaf."
    x = make.normal(5, 3).detach()
    return make.leaf(x @ x.T)


EXAMPLES = {
    "kernel_ridge_fit": [lambda make: partial(kernel_ridge_fit, gram(make), make.normal(5), .3),
                         lambda make: partial(kernel_ridge_fit, gram(make), make.normal(5, 2), .3)],
    "self_distill": [lambda make: partial(self_distill, gram(make), make.normal(5, 2), .3, .4, 3, make.normal(4, 5)),
                     lambda make: partial(self_distill, gram(make), make.normal(5), .3, (1., .4), 2)],
    "shrinkage": [lambda make, t=t: partial(shrinkage, make.leaf(make.normal(5).detach().square()), .3, .4, t)
                  for t in (1, 4, math.inf)],
    "brier_self_distill_loss": lambda make: partial(brier_self_distill_loss, make.normal(4, 6), make.probs(4, 6),
                                                    make.normal(4, 6), .4),
}
EXEMPT = {"optimal_alpha": "returns a number"}
