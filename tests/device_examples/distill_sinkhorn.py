"Examples for test_devices: sinkhorn."
from functools import partial

from kullback.distill import SinKD, sinkhorn_kd_loss

EXAMPLES = {
    "sinkhorn_kd_loss": [lambda make, r=r: partial(sinkhorn_kd_loss, make.normal(4, 6), make.normal(4, 6).detach(), reduction=r)
                         for r in ("sum", "none")] +
                        [lambda make: partial(sinkhorn_kd_loss, make.normal(2, 4, 6), make.normal(2, 4, 6).detach(), epsilon=.003)],
    "SinKD": lambda make: partial(SinKD(.9, .8, 2., reduction="mean"), make.normal(4, 6), make.normal(4, 6).detach(), make.ids(6, 4)),
}
EXEMPT = {"annealed_temperature": "returns a plain number"}
