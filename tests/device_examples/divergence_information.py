"Examples for test_devices: information."
from functools import partial

import torch

from kullback.divergence import (
    class_means,
    conditional_mutual_information,
    dv_bound,
    infonce_bound,
    log_loo_mean_exp,
    log_mean_exp_offdiag,
    mi_alpha_bound,
    nwj_bound,
    tuba_bound,
)


def labels(): return torch.arange(9) % 3


EXAMPLES = {
    "class_means": lambda make: partial(class_means, make.normal(9, 5), labels(), 3),
    "conditional_mutual_information": [
        lambda make, w=w: partial(conditional_mutual_information, make.probs(9, 5), labels(), 3, w)
        for w in ("empirical", "uniform")],
    "mi_alpha_bound": [lambda make, a=a: partial(mi_alpha_bound, make.normal(5, 5), make.normal(5), a) for a in (0., .3, 1.)],
    "tuba_bound": lambda make: partial(tuba_bound, make.normal(5, 5), make.normal(5)),
    **{fn.__name__: lambda make, fn=fn: partial(fn, make.normal(5, 5))
       for fn in (dv_bound, infonce_bound, log_loo_mean_exp, log_mean_exp_offdiag, nwj_bound)},
}
NO_GRADIENT = {}
EXEMPT = {}
