"Examples for test_devices: balanced."
from functools import partial

from torch import nn

from kullback.distill import OnlineDistiller, balanced_kl_weights, bdkd_student_loss, bdkd_teacher_loss

VARIANTS = ("entropy", "sum", "forward", "reverse")
EXAMPLES = {
    "balanced_kl_weights": [lambda make, v=v: partial(balanced_kl_weights, make.normal(4, 6), make.normal(4, 6), variant=v)
                            for v in VARIANTS],
    "bdkd_student_loss": [lambda make, v=v: partial(bdkd_student_loss, make.normal(4, 6), make.normal(4, 6), make.ids(6, 4),
                                                    4., variant=v) for v in VARIANTS],
    "bdkd_teacher_loss": lambda make: partial(bdkd_teacher_loss, make.normal(4, 6), make.normal(4, 6), make.ids(6, 4), 4.),
    "OnlineDistiller": lambda make: partial(OnlineDistiller(nn.Linear(5, 6), nn.Linear(5, 6), bdkd_student_loss,
                                                            bdkd_teacher_loss), make.normal(4, 5), make.ids(6, 4)),
}
NO_GRADIENT = {"balanced_kl_weights": "entropies are compared, not differentiated"}
EXEMPT = {}
