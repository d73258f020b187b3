"Examples for test_devices: soft k-means, palettes."
from functools import partial

from kullback.quantize import (
    DKMLinear,
    DKMWeight,
    SavedTensorCompressor,
    depalettize,
    dkm,
    dkm_attention,
    dkm_unique,
    palettize,
)

HOW = [{}, dict(cluster_dim=2, n_iter=2), dict(min_value=0, tol=1e-3)]


def started(module, palette, make, x):
    palette.centroids = make.normal(4).detach().sort().values
    return partial(module, x)


def linear(make):
    layer = DKMLinear(6, 5, 2, .1)
    return started(layer, layer.palette, make, make.normal(3, 6))


def weight(make):
    palette = DKMWeight(2, .1)
    return started(palette, palette, make, make.normal(5, 6))


def compressed(make):
    x, C = make.normal(64, 32), make.normal(4).detach()

    def call():
        with SavedTensorCompressor(): return dkm(x, C, .1)
    return call


EXAMPLES = {
    "dkm_attention": [lambda make, c=c: partial(dkm_attention, make.normal(12, c), make.normal(4, c), .5) for c in (1, 2)],
    "dkm": [lambda make, how=how: partial(dkm, make.normal(5, 6), make.normal(4, how.get("cluster_dim", 1)).detach(), .5, **how)
            for how in HOW],
    "dkm_unique": [lambda make, how=how: partial(dkm_unique, make.normal(5, 6),
                                                 make.normal(4, how.get("cluster_dim", 1)).detach(), .5, **how) for how in HOW],
    "palettize": [lambda make: partial(palettize, make.normal(5, 6), make.normal(4)),
                  lambda make: partial(palettize, make.normal(5, 6), make.normal(4, 2))],
    "depalettize": [lambda make: partial(depalettize, make.normal(4), make.ids(4, 5, 6)),
                    lambda make: partial(depalettize, make.normal(4, 2), make.ids(4, 5, 3))],
    "DKMWeight": weight,
    "DKMLinear": linear,
    "SavedTensorCompressor": compressed,
}
NO_GRADIENT = {"palettize": "indices, and a table that is a copy"}
EXEMPT = {"kmeans_1d": "how many values are distinct is data: the search runs on the host",
          "tensor_saved_bytes": "a number", "palettized_bits": "a number"}
