"""Every public function on devices this machine may lack: no tensor is left on a default device.

Forward on fake CUDA tensors, and forward and backward on CPU tensors while the default device is meta: there a
forgotten `arange` or `zeros` lands on meta and meets the caller's CPU tensors.

Each name that `kullback.<part>` exports has an entry in `device_examples/<part>.py` or `device_examples/<part>_<idea>.py`:
    EXAMPLES     name -> builder, or a list of builders. `builder(make)` builds modules and inputs and returns a call
                 without arguments that runs the function and returns what it computes.
    NO_GRADIENT  name -> reason why no output carries a gradient (names of EXAMPLES)
    EXEMPT       name -> reason why it has no example (returns plain numbers, holds no tensors, ...)
`make` draws the inputs, on whatever device is the default: `normal`, `probs`, `logp` (leaves that require a gradient),
`ids(high, *shape)`, `mask(*shape)`.
"""
import importlib
import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

HERE = Path(__file__).resolve().parent
PARTS = sorted(p.parent.name for p in (HERE.parent/"kullback").glob("*/__init__.py")
               if p.parent.name not in ("testbed", "book"))


class Make:
    "Inputs on the default device; leaves keep their gradients for the test to read."
    def __init__(self): self.leaves = []

    def leaf(self, x):
        self.leaves.append(x.detach().requires_grad_())
        return self.leaves[-1]

    def normal(self, *shape, dtype=None): return self.leaf(torch.randn(*shape, dtype=dtype))
    def probs(self, *shape): return self.leaf(torch.randn(*shape).softmax(-1))
    def logp(self, *shape): return self.leaf(torch.randn(*shape).log_softmax(-1))
    def ids(self, high, *shape): return torch.randint(high, shape)

    def mask(self, *shape):
        "True in every row's first half, False behind: no row is empty."
        return (torch.arange(shape[-1]) < (shape[-1] + 1)//2).expand(shape).clone()


def load(part):
    "The three tables of a part, merged over its files."
    tables = {"EXAMPLES": {}, "NO_GRADIENT": {}, "EXEMPT": {}}
    for path in sorted((HERE/"device_examples").glob("*.py")):
        if path.stem != part and not path.stem.startswith(f"{part}_"): continue
        spec = importlib.util.spec_from_file_location(f"device_examples_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, table in tables.items():
            new = getattr(module, name, {})
            assert not table.keys() & new.keys(), f"{path.name} repeats {sorted(table.keys() & new.keys())} in {name}"
            table.update(new)
    return tables


TABLES = {part: load(part) for part in PARTS}
CASES = [pytest.param(part, name, builder, id=f"{part}.{name}" + (f"-{i}" if i else ""))
         for part in PARTS for name, builders in TABLES[part]["EXAMPLES"].items()
         for i, builder in enumerate(builders if isinstance(builders, list) else [builders])]


def tensors(out):
    "All tensors in whatever came back: nests, tuples with names, modules, plain objects that hold tensors."
    found = []
    for x in tree_leaves(out):
        if isinstance(x, Tensor): found.append(x)
        elif isinstance(x, nn.Module): found += [*x.parameters(), *x.buffers()]
        elif hasattr(x, "__dict__") and not callable(x): found += tensors(list(vars(x).values()))
    return found


@pytest.mark.parametrize("part", PARTS)
def test_every_public_name_has_an_example(part):
    public = set(importlib.import_module(f"kullback.{part}").__all__)
    examples, quiet, exempt = TABLES[part].values()
    missing, unknown = public - examples.keys() - exempt.keys(), (examples.keys() | exempt.keys()) - public
    assert not missing, f"add {sorted(missing)} to tests/device_examples/{part}.py (or {part}_<idea>.py)"
    assert not unknown, f"kullback.{part} exports no {sorted(unknown)}"
    assert not examples.keys() & exempt.keys()
    assert quiet.keys() <= examples.keys()
    assert all(isinstance(reason, str) and reason for reason in [*quiet.values(), *exempt.values()])


@pytest.mark.parametrize("part, name, builder", CASES)
def test_forward_on_fake_cuda(part, name, builder):
    with torch.random.fork_rng(devices=[]), FakeTensorMode(), torch.device("cuda"):
        torch.manual_seed(0)
        out = tensors(builder(Make())())
        assert out, "no tensor came back: list the name in EXEMPT, with the reason"
        assert {t.device.type for t in out} == {"cuda"}


@pytest.mark.parametrize("part, name, builder", CASES)
def test_forward_and_backward_beside_meta(part, name, builder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = Make()
        call = builder(make)
        with torch.device("meta"):
            out = tensors(call())
            assert {t.device.type for t in out} == {"cpu"}
            alive = [t for t in out if t.requires_grad]
            if name in TABLES[part]["NO_GRADIENT"]:
                assert not alive, "a gradient came back: take the name out of NO_GRADIENT"
                return
            assert alive, "no output carries a gradient: list the name in NO_GRADIENT, with the reason"
            sum(t.sum() for t in alive).backward()
        grads = [x.grad for x in make.leaves if x.grad is not None]
        assert all(g.device.type == "cpu" and g.isfinite().all() for g in grads)
        assert grads or not make.leaves, "no input received a gradient"


# the test itself: what it must catch

FORGETS = {
    "arange": lambda x: x*torch.arange(x.shape[-1]),
    "zeros": lambda x: x + torch.zeros(x.shape),
    "buffer": lambda x: nn.BatchNorm1d(x.shape[-1])(x),
    "cpu": lambda x: x + torch.ones(3, device="cpu"),
}


@pytest.mark.parametrize("what", ["arange", "zeros", "buffer"])
def test_a_forgotten_device_is_caught(what):
    with pytest.raises((RuntimeError, AssertionError)):
        test_forward_and_backward_beside_meta("divergence", "?", lambda make: partial(FORGETS[what], make.normal(4, 3)))


def test_a_tensor_left_on_the_cpu_is_caught():
    with pytest.raises((RuntimeError, AssertionError)):
        test_forward_on_fake_cuda("divergence", "?", lambda make: partial(FORGETS["cpu"], make.normal(4, 3)))
