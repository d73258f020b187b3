"Examples for test_devices: packed weights."
from functools import partial

from kullback.quantize import (
    pack_bits,
    pack_palette,
    pack_power,
    pack_uniform,
    power_quantize,
    unpack,
    unpack_bits,
)

HOW = [{}, dict(symmetric=False, group_size=4), dict(granularity="per_tensor", mse=True)]

EXAMPLES = {
    "pack_bits": lambda make: partial(pack_bits, make.ids(8, 5, 3), 3),
    "unpack_bits": lambda make: partial(unpack_bits, pack_bits(make.ids(8, 5, 3), 3), 3, 15),
    "pack_palette": lambda make: partial(pack_palette, make.normal(5, 8), make.normal(4)),
    "pack_uniform": [lambda make, how=how: partial(pack_uniform, make.normal(5, 8), 3, **how) for how in HOW],
    "pack_power": lambda make: partial(pack_power, *power_quantize(make.normal(5, 8).detach(), .5, 3, dim=0), .5, 3),
    "unpack": [lambda make: partial(unpack, pack_palette(make.normal(5, 8).detach(), make.normal(4).detach()))] +
              [lambda make, how=how: partial(unpack, pack_uniform(make.normal(5, 8).detach(), 3, **how)) for how in HOW] +
              [lambda make: partial(unpack, pack_power(*power_quantize(make.normal(5, 8).detach(), .5, 3, dim=0), .5, 3))],
}
NO_GRADIENT = {name: "stored bits" for name in EXAMPLES}
EXEMPT = {"Packed": "a record; pack_palette and pack_uniform make it", "load_packed": "reads a file", "save_packed": "writes a file",
          "storage_row": "numbers", "unpack_model": "calls unpack for each name"}
