"Examples for test_devices: tracers."
from functools import partial

import torch

from kullback.trace import DKT, DKVMN, SAKT, SAKTBlock, write_memory

B, T, K = 3, 6, 5


def batch(make): return make.ids(K, B, T), make.ids(2, B, T), make.ids(K, B, T), make.mask(B, T)


def plain(net, *args):
    "cuDNN's LSTM asks the driver even for fake tensors; PyTorch's own does not."
    with torch.backends.cudnn.flags(enabled=False): return net(*args)


EXAMPLES = {
    "DKT": lambda make: partial(plain, DKT(K, 4), *batch(make)),
    "DKVMN": lambda make: partial(DKVMN(K, 4, 3), *batch(make)),
    "SAKT": [lambda make, b=b: partial(SAKT(K, 4, 8, 2, b), *batch(make)) for b in (1, 2)],
    "SAKTBlock": lambda make: partial(SAKTBlock(4, 2), make.normal(B, T, 4), make.normal(B, T, 4)),
    "write_memory": lambda make: partial(write_memory, make.normal(B, 3, 4), make.probs(B, 3), make.probs(B, 4), make.normal(B, 4)),
}
EXEMPT = {"influence": "runs backward itself, which fake CUDA tensors cannot without a driver"}
