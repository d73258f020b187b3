"Examples for test_devices: power grids."
from functools import partial

from kullback.quantize import (
                               companding_distortion,
                               optimal_exponent,
                               power_dequantize,
                               power_exponent_search,
                               power_fake_quantize,
                               power_levels,
                               power_quantize,
)

HOW = [{}, dict(dim=0), dict(dim=-1, nearest="weight")]


def a(make): return make.probs(2)[0]


EXAMPLES = {
    "power_quantize": [lambda make, how=how: partial(power_quantize, make.normal(3, 8), a(make), 3, **how) for how in HOW],
    "power_dequantize": lambda make: partial(power_dequantize, make.ids(4, 3, 8), make.probs(3, 1), a(make), 3),
    "power_fake_quantize": [lambda make, how=how: partial(power_fake_quantize, make.normal(3, 8), a(make), 3, **how) for how in HOW],
    "power_levels": [lambda make: partial(power_levels, .5, 3, a(make)), lambda make: partial(power_levels, a(make), 3, 2.)],
    "power_exponent_search": [lambda make, shared=shared: partial(power_exponent_search, [make.normal(3, 8), make.normal(5)], 3,
                                                                  grid=(.4, .6, .1), shared=shared) for shared in (True, False)],
    "companding_distortion": lambda make: partial(companding_distortion, a(make), make.normal(3, 8), 3),
    "optimal_exponent": lambda make: partial(optimal_exponent, make.normal(3, 8)),
}
NO_GRADIENT = {"power_quantize": "whole numbers", "power_exponent_search": "the best of a grid", "optimal_exponent": "found by bisection"}
