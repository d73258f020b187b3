"Entangled weights: facts."
import pytest
import torch

from kullback.nas import slice_mask


@pytest.mark.parametrize("shape", [(7,), (7, 5), (7, 5, 5), (7, 5, 3, 5)])
def test_a_slice_of_everything_is_everything(shape):
    assert (slice_mask(shape) == 1).all()
    assert slice_mask(shape, out=3).sum() == 3*torch.ones(shape)[0].numel()
