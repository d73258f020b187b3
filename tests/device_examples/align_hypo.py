"Examples for test_devices: hypo."
from functools import partial

from kullback.align import hypo_loss, online_kl_surrogate

EXAMPLES = {
    "online_kl_surrogate": [lambda make, b=b: partial(online_kl_surrogate, make.normal(4, 3), make.normal(4, 3), b)
                            for b in ("rloo", "none", "batch")],
    "hypo_loss": lambda make: partial(hypo_loss, make.normal(5), make.normal(5), make.normal(4, 2), make.normal(4, 2), .1, .01),
}
NO_GRADIENT = {}
EXEMPT = {}
