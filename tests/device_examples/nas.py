"Examples for test_devices: entangled weights."
from functools import partial

from kullback.nas import combine_alphas, mix_weights

EXAMPLES = {
    "mix_weights": lambda make: partial(mix_weights, make.normal(4, 3), make.mask(2, 4, 3), make.probs(2)),
    "combine_alphas": lambda make: partial(combine_alphas, make.probs(2), make.probs(3), make.probs(2)),
}
NO_GRADIENT = {}
EXEMPT = {"slice_mask": "a mask from plain numbers"}
