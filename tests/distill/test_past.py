"Progressive refinement: what the memory keeps, in which order, and what a whole epoch of it equals."
import pytest
import torch
import torch.nn.functional as F

from kullback.distill import PSKD, PredictionMemory, pskd_alpha, pskd_targets


def test_two_epochs_equal_the_written_out_recipe():
    "SGD on a linear model, against targets kept by hand in a dictionary."
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (12,), generator=g)
    order = [torch.randperm(12, generator=g).split(5) for _ in range(3)]
    weights = [torch.zeros(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    method, kept = PSKD(12, 3, 3, alpha_T=.6), {}
    method.memory.double()
    for epoch, batches in enumerate(order):
        for rows in batches:
            loss = method.loss(x[rows] @ weights[0], y[rows], rows, epoch)
            grad = torch.autograd.grad(loss, weights[0])[0]
            logits = x[rows] @ weights[1]
            alpha = .6*(epoch + 1)/3
            past = [kept.get(int(r), F.one_hot(y[r], 3).double()) for r in rows]
            targets = torch.stack([(1 - alpha)*F.one_hot(y[r], 3).double() + alpha*p for r, p in zip(rows, past)])
            other = torch.autograd.grad(F.cross_entropy(logits, targets), weights[1])[0]
            kept.update({int(r): p for r, p in zip(rows, logits.detach().softmax(-1))})
            torch.testing.assert_close(grad, other, rtol=0, atol=1e-12)
            with torch.no_grad(): weights[0] -= grad; weights[1] -= other
    torch.testing.assert_close(method.memory.probs, torch.stack([kept[i] for i in range(12)]), rtol=0, atol=1e-12)


def test_state_dict_resumes_the_memory():
    memory = PredictionMemory(3, 2)
    memory.update(torch.tensor([1]), torch.tensor([[.25, .75]]))
    twin = PredictionMemory(3, 2)
    twin.load_state_dict(memory.state_dict())
    assert torch.equal(twin.get(torch.tensor([1])), memory.get(torch.tensor([1])))
    with pytest.raises(ValueError, match="row 0"): twin.get(torch.tensor([0, 1]))


@pytest.mark.parametrize("call, said", [
    (lambda: pskd_alpha(-1, 10), "got -1"), (lambda: pskd_alpha(0, 10, 1.5), "got 1.5"),
    (lambda: pskd_targets(torch.tensor([3]), torch.ones(1, 3)/3, .5), "got 3"),
    (lambda: pskd_targets(torch.tensor([0]), torch.ones(1, 3)/3, -.1), "got -0.1"),
    (lambda: PredictionMemory(2, 3).update(torch.tensor([0]), torch.ones(1, 4)/4), r"got \(1, 4\)"),
    (lambda: PredictionMemory(0, 3), "0 × 3")])
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said): call()
