"""What fake tensors cannot show: values, gradients, autocast and generators on real CUDA against the CPU.

Inputs come from tests/device_examples, drawn on the CPU and moved. Skipped without a GPU, red under KULLBACK_REQUIRE_ALL=1
when this folder was asked for by name; KULLBACK_GPU_DEVICE=cpu rehearses the file itself where there is none.
"""
import copy
import importlib.util
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

spec = importlib.util.spec_from_file_location("test_devices", Path(__file__).resolve().parent.parent/"test_devices.py")
examples = importlib.util.module_from_spec(spec)
sys.modules["test_devices"] = examples
spec.loader.exec_module(examples)

DEVICE = os.environ.get("KULLBACK_GPU_DEVICE", "cuda")
ASKED = any("gpu" in arg for arg in sys.argv)
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available() and
                                not (ASKED and os.environ.get("KULLBACK_REQUIRE_ALL") == "1"), reason="no CUDA device here")


def moved(x):
    "The same value on the other device, as a leaf of its own."
    if isinstance(x, Tensor): return x.detach().to(DEVICE).requires_grad_(x.requires_grad)
    if isinstance(x, nn.Module): return copy.deepcopy(x).to(DEVICE)
    return x


def both(builder):
    "The example on the CPU and on the other device, with the leaves of each."
    torch.manual_seed(0)
    call = builder(examples.Make())
    if not isinstance(call, partial): pytest.skip("the example is a closure: its inputs cannot be moved")
    func = moved(call.func) if isinstance(call.func, nn.Module) else call.func
    other = partial(func, *tree_map(moved, call.args), **tree_map(moved, call.keywords))
    leaves = [[t for t in tree_leaves((c.args, c.keywords)) if isinstance(t, Tensor) and t.requires_grad] for c in (call, other)]
    return (call, leaves[0]), (other, leaves[1])


@pytest.mark.parametrize("part, name, builder", examples.CASES)
def test_values_and_gradients_agree(part, name, builder):
    (cpu, cpu_leaves), (gpu, gpu_leaves) = both(builder)
    outs = [examples.tensors(c()) for c in (cpu, gpu)]
    if not all(torch.equal(a, b) for a, b in zip(outs[0], examples.tensors(cpu()))): pytest.skip("draws numbers")
    for a, b in zip(*outs):
        assert b.device.type == torch.device(DEVICE).type
        torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-5)
    scalars = [sum(o.sum() for o in out if o.requires_grad) for out in outs]
    if not isinstance(scalars[0], Tensor): return
    for value in scalars: value.backward()
    for a, b in zip(cpu_leaves, gpu_leaves):
        if a.grad is not None: torch.testing.assert_close(b.grad.cpu(), a.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("part, name, builder", examples.CASES)
def test_runs_under_autocast(part, name, builder):
    (cpu, _), (gpu, _) = both(builder)
    with torch.autocast(DEVICE, dtype=torch.bfloat16): outs = examples.tensors(gpu())
    for plain, out in zip(examples.tensors(cpu()), outs): assert torch.equal(out.isnan().cpu(), plain.isnan())


def test_generators_live_where_the_numbers_do():
    "A draw on the device wants a generator of that device, and repeats with it."
    from kullback.divergence import gumbel_topk
    weights = torch.zeros(50, device=DEVICE)
    draws = [gumbel_topk(weights, 5, generator=torch.Generator(DEVICE).manual_seed(0)) for _ in range(2)]
    assert torch.equal(*draws)
