"Examples for test_devices: uniform grids."
from functools import partial

from kullback.quantize import fake_quantize, quant_params, round_ste, rtn, uniform_codes, uniform_values

HOW = [{}, dict(symmetric=False), dict(granularity="per_tensor", mse=True), dict(group_size=4, clip_ratio=.8)]


def there(make, back=False, **options):
    x = make.normal(3, 8)
    scale, zero_point = (t.detach() for t in quant_params(x, 4, **options))
    group = options.get("group_size")
    if back: return partial(uniform_values, x, scale, zero_point, group)
    return partial(uniform_codes, x, scale, zero_point, 4, options.get("symmetric", True), group)


EXAMPLES = {
    "round_ste": lambda make: partial(round_ste, make.normal(3, 8)),
    "quant_params": [lambda make, how=how: partial(quant_params, make.normal(3, 8), 4, **how) for how in HOW],
    "fake_quantize": [lambda make, how=how: partial(fake_quantize, make.normal(3, 8), 4, **how) for how in HOW],
    "uniform_codes": [lambda make, how=how: there(make, **how) for how in HOW],
    "uniform_values": [lambda make, how=how: there(make, True, **how) for how in HOW],
    "rtn": lambda make: partial(rtn, make.normal(3, 8), 3),
}
NO_GRADIENT = {"rtn": "a rounded copy"}
