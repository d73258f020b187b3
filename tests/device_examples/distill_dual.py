"Examples for test_devices: dual."
from functools import partial

from torch import nn

from kullback.distill import DualHead, auxiliary_head, binary_kl_loss, binary_kl_norm_loss, dhkd_loss

EXAMPLES = {
    "binary_kl_loss": lambda make: partial(binary_kl_loss, make.normal(4, 6), make.normal(4, 6)),
    "binary_kl_norm_loss": lambda make: partial(binary_kl_norm_loss, make.normal(4, 6), make.normal(4, 6)),
    "dhkd_loss": lambda make: partial(dhkd_loss, make.normal(4, 6), make.normal(4, 6), make.normal(4, 6), make.ids(6, 4)),
    "auxiliary_head": [lambda make, a=a: partial(auxiliary_head(5, 6, a), make.normal(4, 5)) for a in ("linear", "mlp")],
    "DualHead": [lambda make, a=a: partial(DualHead(nn.Linear(7, 5), 5, 6, a), make.normal(4, 7)) for a in ("linear", "mlp")],
}
NO_GRADIENT = {}
EXEMPT = {}
