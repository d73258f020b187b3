"Examples for test_devices: rebuilt layers."
from functools import partial

from kullback.quantize import (
    QuantizedLayer,
    power_quantize,
    soft_round,
)


def layer(make):
    built = QuantizedLayer(*power_quantize(make.normal(3, 8), .5, 3, dim=0), .5, 3)
    return partial(built, make.normal(5, 8))


EXAMPLES = {
    "soft_round": lambda make: partial(soft_round, make.normal(3, 8), .3),
    "QuantizedLayer": layer,
}
EXEMPT = {name: "takes gradients inside, which fake CUDA tensors lack; test_reconstruct runs it beside meta"
          for name in ("adaround", "nupes_reconstruct", "reconstruct_model")}
