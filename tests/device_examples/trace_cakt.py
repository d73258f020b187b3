"Examples for test_devices: CAKT and its parts."
from functools import partial

import torch

from kullback.trace import CAKT, FrameSE, Residual3d, concept_frames, frame_conv, same_concept_index

B, T, K = 3, 6, 5


def plain(net, *args):
    "cuDNN's LSTM asks the driver even for fake tensors; PyTorch's own does not."
    with torch.backends.cudnn.flags(enabled=False): return net(*args)


def frames(make):
    index = same_concept_index(make.ids(K, B, T), 2)
    return partial(concept_frames, make.normal(B, T, 4), index, make.leaf(torch.tensor(.3)), torch.arange(T))


EXAMPLES = {
    "same_concept_index": [lambda make, k=k: partial(same_concept_index, make.ids(K, B, T), k, make.ids(K, B, T)) for k in (2, 8)],
    "concept_frames": frames,
    "frame_conv": lambda make: partial(frame_conv, make.normal(2, 3, 4, 5, 5), make.normal(6, 3, 3, 3, 3)),
    "FrameSE": lambda make: partial(FrameSE(4), make.normal(2, 3, 4, 5, 5)),
    "Residual3d": [lambda make, c=c: partial(Residual3d(3, c, 4), make.normal(2, 3, 4, 5, 5)) for c in (3, 4)],
    "CAKT": [lambda make, a=a: partial(plain, CAKT(K, 3, 2, a), make.ids(K, B, T), make.ids(2, B, T), make.ids(K, B, T), make.mask(B, T))
             for a in ("next", "current", "recent")],
}
NO_GRADIENT = {"same_concept_index": "integers"}
