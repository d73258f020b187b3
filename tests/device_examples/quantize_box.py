"Examples for test_devices: rotations and the box."
from functools import partial

import torch

from kullback.quantize import klt_hadamard, log_qsur, log_qsur_from_samples, optimal_rotation


def cov(make): return make.leaf(torch.diag(torch.tensor([1., 2., 3., 5.])) + .1)


EXAMPLES = {
    "optimal_rotation": lambda make: partial(optimal_rotation, cov(make)),
    "klt_hadamard": lambda make: partial(klt_hadamard, [make.normal(9, 4), make.normal(3, 4)]),
    "log_qsur": [lambda make: partial(log_qsur, cov(make)),
                 lambda make: partial(log_qsur, cov(make), make.normal(4), "principal")],
    "log_qsur_from_samples": lambda make: partial(log_qsur_from_samples, make.normal(9, 4), shrinkage=.1),
}
NO_GRADIENT = {}
EXEMPT = {name: "a fresh matrix on the default device; its reader moves it" for name in
          ("hadamard", "random_hadamard", "random_orthogonal")}
