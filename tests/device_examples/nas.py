"Examples for test_devices: entangled weights."
from functools import partial

from kullback.nas import (
    EntangledConv2d,
    EntangledLayerNorm,
    EntangledLinear,
    PaddedLayerNorm,
    combine_alphas,
    mix_weights,
)

MODES = ("weights", "outputs")
NORMS = [dict(mode="outputs"), dict(statistics="slice"), dict(bias=False)]


def conv(mode):
    return lambda make: partial(EntangledConv2d((2, 3), (2, 4), (1, 3), 2, mode=mode), make.normal(2, 3, 5, 5),
                                dict(inp=make.probs(2), out=make.probs(2), kernel=make.probs(2)))


def linear(mode, bias):
    return lambda make: partial(EntangledLinear((2, 3), (4,), bias, mode), make.normal(2, 3), dict(inp=make.probs(2)))


EXAMPLES = {
    "mix_weights": lambda make: partial(mix_weights, make.normal(4, 3), make.mask(2, 4, 3), make.probs(2)),
    "combine_alphas": lambda make: partial(combine_alphas, make.probs(2), make.probs(3), make.probs(2)),
    "EntangledConv2d": [conv(mode) for mode in MODES],
    "EntangledLinear": [linear(mode, bias) for mode in MODES for bias in (True, False)],
    "EntangledLayerNorm": [lambda make, how=how: partial(EntangledLayerNorm((2, 5), **how), make.normal(3, 5),
                                                         dict(out=make.probs(2))) for how in NORMS],
    "PaddedLayerNorm": lambda make: partial(PaddedLayerNorm(4, 6), make.normal(3, 4)),
}
NO_GRADIENT = {}
EXEMPT = {"slice_mask": "a mask from plain numbers"}
