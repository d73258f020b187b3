"Examples for test_devices: norm_direction."
from functools import partial

from torch import nn

from kullback.distill import NDDistiller, cosine_direction_loss, nd_loss, norm_deficit


def kdpp(make, projector=None):
    distiller = NDDistiller(projector=projector).fit(make.normal(12, 5).detach(), make.ids(1, 12), 1)
    return partial(distiller, make.normal(4, 1), make.normal(4, 1), make.normal(4, 3 if projector else 5),
                   make.normal(4, 5), make.ids(1, 4), 5)


EXAMPLES = {
    "nd_loss": lambda make: partial(nd_loss, make.normal(4, 5), make.normal(4, 5), make.normal(6, 5), make.ids(6, 4)),
    "cosine_direction_loss": lambda make: partial(cosine_direction_loss, make.normal(4, 5), make.normal(6, 5), make.ids(6, 4)),
    "norm_deficit": lambda make: partial(norm_deficit, make.normal(4, 5), make.normal(4, 5)),
    "NDDistiller": [kdpp, lambda make: kdpp(make, nn.Linear(3, 5))],
}
NO_GRADIENT = {}
EXEMPT = {}
