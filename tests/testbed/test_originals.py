"Originals made up here: rows of text, folding, and a row whose every number is computed again."
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from kullback.quantize import Packed, pack_power, pack_uniform, power_quantize
from kullback.testbed.nets import SmallCNN
from kullback.testbed.originals import (
    Original,
    folded,
    judge,
    pack_weights,
    parts_of,
    rows_of,
    rows_text,
    storage_and_loss,
    stored,
)


def generator(seed=0): return torch.Generator().manual_seed(seed)


def made_up(tokens=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Embedding(6, 8)]*tokens, nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6)).eval().requires_grad_(False)
    g = generator()
    x = {k: torch.randint(6, (n, 5), generator=g) if tokens else torch.randn(n, 8, generator=g)
         for k, n in (("train", 40), ("validation", 10), ("test", 30))}
    y = {k: torch.randint(-1, 6, v.shape if tokens else (len(v),), generator=g) for k, v in x.items()}
    return Original(model, x, {k: v.masked_fill(v < 0, -100) for k, v in y.items()})


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("chunk", [7, 256])
def test_judge_by_another_road(tokens, chunk):
    o = made_up(tokens)
    other = copy.deepcopy(o.model)
    with torch.no_grad(): other[-1].weight.mul_(1.5)
    p, q = (m(o.x["test"]).double().log_softmax(-1).reshape(-1, 6) for m in (o.model, other))
    y = o.y["test"].flatten(); known = y >= 0
    got = judge(o, other, chunk=chunk)
    assert_close(got["kl"], F.kl_div(q, p, reduction="batchmean", log_target=True).item(), rtol=1e-5, atol=0)
    assert_close(got["nats"], F.nll_loss(q[known], y[known]).item(), rtol=1e-5, atol=0)
    assert_close(got["accuracy"], 100*(q.argmax(-1) == y)[known].double().mean().item())
    assert judge(o, o.model, chunk=chunk)["kl"] < 1e-7


def test_row_counts_and_loads():
    o = made_up()
    assert o.names == ("0.weight", "2.weight")
    packed = pack_weights(o, lambda w, name: pack_uniform(w, 4), ("0.weight",))
    assert isinstance(packed["0.weight"], Packed) and torch.equal(packed["2.weight"], o.state["2.weight"])
    row = storage_and_loss(o, packed, 1.)
    assert row["bits_per_weight"] == 4 + 16*32/128 and row["seconds"] == 1
    assert row["plain_bits"] == 32*(16 + 6 + 96) and row["file_bytes"] > row["bytes"]
    whole = storage_and_loss(o, o.state)
    assert whole["kl"] == 0 and math.isnan(whole["bits_per_weight"]) and math.isnan(whole["seconds"])
    assert "4.000" not in rows_text({"whole": whole}) and "8.000" in rows_text({"a": [row, row]})
    with pytest.raises(ValueError, match="no weight is called 'x'"): pack_weights(o, None, ("x",))


def test_what_comes_back_is_what_was_packed():
    o = made_up()
    packed = pack_weights(o, lambda w, name: pack_power(*power_quantize(w, .6, 3, dim=0), .6, 3))
    state, row = stored(packed)
    assert state.keys() == o.state.keys() and row["packed_weights"] == 128 + 96
    with pytest.raises(ValueError, match="0.bias came back changed"): stored(o.state | {"0.bias": torch.full((16,), math.nan)})


def test_splits_and_calibration():
    o = made_up()
    assert o.logits("test") is o.logits("test")
    assert_close(o.logits("validation"), o.model(o.x["validation"]))
    a, b = (o.calibration(8, generator(s)) for s in (1, 1))
    assert torch.equal(a, b) and all((o.x["train"] == r).all(1).any() for r in a) and len({tuple(r.tolist()) for r in a}) == 8
    with pytest.raises(ValueError, match="got 'valid'"): o.logits("valid")
    with pytest.raises(ValueError, match="1..40, got 0"): o.calibration(0)


def test_text_becomes_rows():
    words = [f"w{i}" for i in range(100)]
    parts = parts_of([words, words])
    assert parts["train"] == 2*words[:80] and parts["validation"] == 2*words[80:90] and parts["test"] == 2*words[90:]
    rows = rows_of(words, 60, 9, words)
    assert rows.shape == (11, 10) and torch.equal(rows[1:, 0], rows[:-1, -1])
    assert rows.flatten()[:10].tolist() == list(range(3, 13)) and (rows == 2).sum() == 100 - 57 + 4


def test_folding():
    net = SmallCNN(1, 10, 4, generator()).double()
    x = torch.randn(32, 1, 8, 8, generator=generator(1), dtype=torch.float64)
    net.train()(2*x + 1)
    assert_close(folded(net)(x), net.eval()(x), rtol=1e-12, atol=1e-12)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded(net).modules()) and not folded(net).training
