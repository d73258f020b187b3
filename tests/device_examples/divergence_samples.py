"Examples for test_devices: transport, kernel."
from functools import partial

import torch

from kullback.divergence import (
    cauchy_schwarz_divergence,
    conditional_cs_divergence,
    cs_mutual_information,
    gaussian_cs_divergence,
    gaussian_gram,
    hsic,
    linear_cka,
    median_bandwidth,
    mmd2,
    pairwise_lp,
    rbf_kernel,
    sinkhorn_distance,
    sinkhorn_plan,
)


def covariance(make, d):
    return make.leaf(torch.eye(d)*2)


EXAMPLES = {
    "sinkhorn_plan": [lambda make: partial(sinkhorn_plan, make.normal(5, 5)),
                      lambda make: partial(sinkhorn_plan, make.normal(2, 5, 7), .01, 30, mass="prob", tol=1e-3),
                      lambda make: partial(sinkhorn_plan, make.normal(5, 7), 1., 9, make.probs(5), make.probs(7), False)],
    "pairwise_lp": lambda make: partial(pairwise_lp, make.normal(5, 3), make.normal(4, 3)),
    "sinkhorn_distance": [lambda make: partial(sinkhorn_distance, make.probs(5, 3), make.probs(5, 3), debias=True),
                          lambda make: partial(sinkhorn_distance, make.probs(2, 5, 3), make.probs(2, 4, 3), mass="prob",
                                               value="entropic")],
    "gaussian_gram": lambda make: partial(gaussian_gram, make.normal(5, 3)),
    "rbf_kernel": lambda make: partial(rbf_kernel, make.normal(5, 3), make.normal(4, 3), .5),
    "median_bandwidth": lambda make: partial(median_bandwidth, make.normal(5, 3)),
    "cauchy_schwarz_divergence": lambda make: partial(cauchy_schwarz_divergence, make.normal(5, 3), make.normal(4, 3)),
    "gaussian_cs_divergence": lambda make: partial(gaussian_cs_divergence, make.normal(3), covariance(make, 3),
                                                   make.normal(3), covariance(make, 3)),
    "mmd2": lambda make: partial(mmd2, make.normal(5, 3), make.normal(4, 3)),
    "hsic": lambda make: partial(hsic, make.normal(5, 3), make.normal(5, 2)),
    "conditional_cs_divergence": [lambda make, d=d: partial(conditional_cs_divergence, make.normal(5, 3), make.normal(5),
                                                            make.normal(5), (2., 1.), d)
                                  for d in ("squared_sum", "sum_of_squares")],
    "cs_mutual_information": lambda make: partial(cs_mutual_information, make.normal(5, 3), make.normal(5, 2),
                                                  normalized=True),
    "linear_cka": [lambda make: partial(linear_cka, make.normal(9, 3), make.normal(9, 2)),
                   lambda make: partial(linear_cka, make.normal(4, 9), make.normal(4, 2))],
}
