"PS-KD in two processes (gloo, CPU) equals one on the same data: weights, and every process' memory."
import os
import socket

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.multiprocessing import start_processes
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

from kullback.distill import PSKD
from kullback.testbed.loops import train

EPOCHS, BATCH = 3, 4


class Rows(Dataset):
    "(input, label, index), as a prediction memory wants them."
    def __init__(self, n):
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(n, 5, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)

    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i], self.y[i], i


def fit(n, world, shuffle):
    "The accelerate loop of the testbed; the whole batch is BATCH whatever the number of processes."
    accelerator, data, epoch, last = Accelerator(cpu=True), Rows(n), [0], {}
    assert accelerator.num_processes == world
    model = nn.Linear(5, 3).double()
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    method = PSKD(n, 3, EPOCHS, alpha_T=.9)
    method.memory.double()
    loader = DataLoader(data, BATCH//world, shuffle=shuffle, generator=torch.Generator().manual_seed(1))

    def loss(net, batch):
        x, y, i = batch
        return method.loss(net(x), y, i, epoch[0], accelerator.gather_for_metrics)

    def count(e):
        epoch[0] = e + 1
        if e == EPOCHS - 2:
            with torch.no_grad(): last["start"] = model(data.x[:BATCH]).softmax(-1)
    train(model, loss, loader, EPOCHS, torch.optim.SGD(model.parameters(), lr=.5), accelerator, on_epoch=count)
    return {"weight": model.weight.detach().clone(), **last, **{k: v.clone() for k, v in method.memory.state_dict().items()}}


def work(rank, port, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                      ACCELERATE_USE_CPU="true", GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    out = {"even": fit(16, 2, True), "padded": fit(10, 2, False)}
    torch.save(out, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    "What both processes end with; one start for all tests."
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    start_processes(work, (port, str(folder)), nprocs=2, start_method="spawn")
    return [torch.load(folder/f"{r}.pt", weights_only=True) for r in range(2)]


def test_two_equal_one(ranks):
    "Shuffled, three epochs: the second and third read rows that the other process wrote."
    one = fit(16, 1, True)
    for rank in ranks:
        for name in one: assert_close(rank["even"][name], one[name], rtol=0, atol=1e-12)
    assert one["known"].all()


def test_padding_leaves_no_trace_in_the_memory(ranks):
    "Ten rows in batches of four: the last step pads with rows 0 and 1, whose predictions stay those of the first step."
    first, second = (r["padded"] for r in ranks)
    assert torch.equal(first["probs"], second["probs"]) and first["known"].all()
    assert_close(first["probs"][:BATCH], first["start"], rtol=0, atol=1e-12)


def test_a_memory_that_is_not_gathered_differs():
    "The test itself can fail: where predictions stay at home, later epochs miss rows."
    home = PSKD(4, 2, 2)
    rows = torch.tensor([0, 1])
    home.loss(torch.zeros(2, 2), rows, rows, 0)
    with pytest.raises(ValueError, match="row 2"): home.loss(torch.zeros(2, 2), rows, rows + 2, 1)
