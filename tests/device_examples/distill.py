"Examples for test_devices: hinton, split, uskd."
from functools import partial

from kullback.distill import USKDLoss, dkd_loss, kd_loss, nkd_loss, uskd_target, zipf_labels


def shares(make, B, C): return make.normal(B, C).detach().softmax(-1)


EXAMPLES = {
    "kd_loss": [lambda make, d=d, k=k: partial(kd_loss, make.normal(4, 6), make.normal(4, 6), 4., d, kind=k)
                for d, k in [("forward", "kl"), ("reverse", "kl"), ("forward", "ce"), ("forward", "mse")]],
    "dkd_loss": lambda make: partial(dkd_loss, make.normal(4, 6), make.normal(4, 6), make.ids(6, 4)),
    "nkd_loss": [lambda make: partial(nkd_loss, make.normal(4, 6), make.normal(4, 6), make.ids(6, 4), 2.),
                 lambda make: partial(nkd_loss, make.normal(4, 6), make.normal(4, 6), shares(make, 4, 6))],
    "uskd_target": [lambda make: partial(uskd_target, make.normal(4, 6), make.ids(6, 4)),
                    lambda make: partial(uskd_target, make.normal(4, 6), make.ids(6, 4, 2), make.mask(4, 2))],
    "zipf_labels": lambda make: partial(zipf_labels, make.normal(4, 6), make.ids(6, 4)),
    "USKDLoss": [lambda make, form=form: partial(USKDLoss(5, 6, rank_score=form), make.normal(4, 5), make.normal(4, 6),
                                                 make.ids(6, 4)) for form in ("paper", "code")]
                + [lambda make: partial(USKDLoss(5, 6), make.normal(4, 5), make.normal(4, 6), shares(make, 4, 6))],
}
NO_GRADIENT = {"uskd_target": "a weight, detached by definition", "zipf_labels": "depends on the order of scores only"}
EXEMPT = {}
