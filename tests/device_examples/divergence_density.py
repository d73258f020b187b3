"Examples for test_devices: density, bottleneck."
from functools import partial

import torch
from torch import nn

from kullback.divergence import (
    CSInformationBottleneck,
    clt_bandwidth,
    condensation_bandwidth,
    cs_ib_loss,
    gaussian_cgf,
    gaussian_cgf_prime,
    kde_log_density,
    kde_log_density_limit,
    kde_weights,
    kl_gaussian_kde,
    kl_optimal_bandwidth,
    nib_upper_bound,
    participation_ratio,
    scott_bandwidth,
    silverman_bandwidth,
    tail_index,
)


def model(make): return CSInformationBottleneck(nn.Linear(3, 2), nn.Linear(2, 1))


EXAMPLES = {
    "kde_log_density": lambda make: partial(kde_log_density, make.normal(4, 3), make.normal(9, 3), .5, chunk=4),
    "kde_weights": lambda make: partial(kde_weights, make.normal(4, 3), make.normal(9, 3), .5),
    "participation_ratio": lambda make: partial(participation_ratio, make.normal(4, 6)),
    "gaussian_cgf": lambda make: partial(gaussian_cgf, .7, make.probs(4)),
    "gaussian_cgf_prime": lambda make: partial(gaussian_cgf_prime, make.probs(3), 2.),
    "condensation_bandwidth": lambda make: partial(condensation_bandwidth, .2, make.probs(4)),
    "clt_bandwidth": lambda make: partial(clt_bandwidth, make.probs(3)),
    "kl_optimal_bandwidth": lambda make: partial(kl_optimal_bandwidth, make.probs(3), make.probs(4)),
    "tail_index": lambda make: partial(tail_index, .5, .2, make.probs(4)),
    "kde_log_density_limit": lambda make: partial(kde_log_density_limit, make.probs(3), .2, make.probs(4)),
    "silverman_bandwidth": lambda make: partial(silverman_bandwidth, make.normal(9, 3)),
    "scott_bandwidth": lambda make: partial(scott_bandwidth, make.normal(9, 3)),
    "kl_gaussian_kde": lambda make: partial(kl_gaussian_kde, make.normal(9, 3), .5, make.normal(3),
                                            make.leaf(2*torch.eye(3)), 7),
    "cs_ib_loss": lambda make: partial(cs_ib_loss, make.normal(6, 3), make.normal(6), make.normal(6, 2), make.normal(6), .5,
                                       normalized=True),
    "CSInformationBottleneck": lambda make: partial(model(make), make.normal(6, 3)),
    "nib_upper_bound": lambda make: partial(nib_upper_bound, make.normal(6, 3), .5),
}
EXEMPT = {"select_bandwidth": "searches on values and returns a plain number"}
