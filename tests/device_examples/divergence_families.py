"Examples for test_devices: families."
from functools import partial

import torch

from kullback.divergence import bernoulli_kl, categorical_kl, dirichlet_kl, gaussian_kl, gaussian_kl_full


def covariance(make):
    root = make.normal(3, 4, 4)
    return root@root.mT + torch.eye(4)


EXAMPLES = {
    "bernoulli_kl": lambda make: partial(bernoulli_kl, make.normal(4, 6), make.normal(4, 6), "mean"),
    "categorical_kl": lambda make: partial(categorical_kl, make.probs(4, 6), make.probs(4, 6)),
    "gaussian_kl": [lambda make: partial(gaussian_kl, make.normal(3, 4), make.normal(3, 4)),
                    lambda make: partial(gaussian_kl, *(make.normal(3, 4) for _ in range(4)))],
    "gaussian_kl_full": lambda make: partial(gaussian_kl_full, make.normal(3, 4), covariance(make), make.normal(3, 4),
                                             covariance(make)),
    "dirichlet_kl": lambda make: partial(dirichlet_kl, make.normal(4, 6).exp(), make.normal(4, 6).exp()),
}
NO_GRADIENT = {}
EXEMPT = {}
