"`trace.data` and `trace.evaluate`: pandas' own shuffles, double loops, files, scikit-learn, protocols on random learners."
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from kullback.trace import (
    accuracy,
    chunk_sequences,
    concept_matches,
    expand_questions,
    interaction_ids,
    late_fusion,
    next_step_loss,
    pad_sequences,
    pooled_auc,
    previous_tries,
    question_rows,
    read_pykt_csv,
    read_three_line_csv,
    renumber,
    student_folds,
    window_sequences,
)


def learners(seed, n=6, longest=23, K=4):
    g = np.random.default_rng(seed)
    return [(torch.from_numpy(g.integers(0, K, L)), torch.from_numpy(g.integers(0, 2, L))) for L in g.integers(1, longest, n)]


@pytest.mark.parametrize("n", [11, 104, 333, 4151])
def test_folds_are_those_of_pandas(n):
    "sample(frac=1, random_state=1024), a fifth to test; sampled again, five folds, the longer ones first."
    frame = pd.DataFrame({"i": range(n)}).sample(frac=1., random_state=1024)
    rest, test = frame[:n - int(n*.2)], frame[n - int(n*.2):]
    rest = rest.sample(frac=1., random_state=1024)
    fold = student_folds(n)
    assert set(test["i"]) == set((fold == -1).nonzero().flatten().tolist())
    start = 0
    for i in range(5):
        size = len(rest)//5 + (i < len(rest) % 5)
        assert set(rest["i"][start:start + size]) == set((fold == i).nonzero().flatten().tolist())
        start += size


def test_folds_leave_the_global_generator_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    student_folds(50)
    assert (np.random.get_state()[1] == before).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(3, 9))
def test_chunks_and_windows(seed, width):
    seqs = learners(seed)
    pieces = chunk_sequences(seqs, width, 3)
    kept = [(s[0][:len(s[0]) - (len(s[0]) % width if len(s[0]) % width < 3 else 0)]) for s in seqs]
    assert torch.equal(torch.cat([p[0] for p in pieces] or [torch.zeros(0).long()]), torch.cat(kept))
    b = pad_sequences(window_sequences([(torch.arange(len(s[0])), s[1]) for s in seqs], width))
    assert sorted(b.next_concepts[b.counts].tolist()) == sorted(t for s in seqs for t in range(1, len(s[0])))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_matches_and_tries_by_loops(seed):
    g = torch.Generator().manual_seed(seed)
    c, q = torch.randint(4, (2, 3, 9), generator=g)
    M = concept_matches(c, q)
    for b in range(3):
        for t in range(9):
            assert M[b, t].tolist() == [j <= t and c[b, j] == q[b, t] for j in range(9)]
    assert torch.equal(previous_tries(c, q), M.sum(-1))
    assert torch.equal(previous_tries(c), torch.stack([torch.stack([(row[:t] == row[t]).sum() for t in range(9)]) for row in c]))


def test_ids_and_masks():
    c, r = torch.tensor([[0, 3, -1]]), torch.tensor([[1, 0, -1]])
    assert interaction_ids(c, r, 4, c >= 0).tolist() == [[4, 3, 0]]
    assert interaction_ids(c[:, :2].int(), r[:, :2].bool(), 4).dtype == torch.int64
    for call, said in [(lambda: interaction_ids(c.float(), r, 4), "integers"), (lambda: interaction_ids(c, r, 4, c), "bool"),
                       (lambda: interaction_ids(c, r[:, :2], 4), "shapes differ"), (lambda: interaction_ids(c[:, :2], r[:, :2] - 1, 4), "got -1")]:
        with pytest.raises(ValueError, match=said): call()


def test_padding_holds_the_learners():
    seqs = learners(0)
    b = pad_sequences(seqs, 40)
    assert b.mask.shape == (6, 39) and torch.equal(b.mask, b.counts)
    for row, (c, r) in enumerate(seqs):
        L = len(c) - 1
        assert b.mask[row].tolist() == [True]*L + [False]*(39 - L)
        assert torch.equal(b.concepts[row, :L], c[:-1]) and torch.equal(b.next_concepts[row, :L], c[1:])
        assert torch.equal(b.responses[row, :L], r[:-1]) and torch.equal(b.next_responses[row, :L], r[1:])
    with pytest.raises(ValueError, match="length 5 cannot hold"): pad_sequences(seqs, 5)


def test_a_window_keeps_its_history():
    "What is not scored is still real: the model must see it."
    b = pad_sequences(window_sequences([(torch.arange(7), torch.ones(7).long())], 4))
    assert b.mask.all() and b.counts.sum(1).tolist() == [3, 1, 1, 1] and b.counts[1:, -1].all()


def test_round_trip_through_both_files(tmp_path):
    seqs = learners(1)
    join = lambda x: ",".join(map(str, x.tolist()))
    old = tmp_path/"a.csv"
    old.write_text("".join(f"{len(c)}\n{join(c)}\n{join(r)},\n" for c, r in seqs))
    new = tmp_path/"b.csv"
    pad = lambda x: torch.cat([x, torch.full((25 - len(x),), -1)])
    new.write_text("fold,uid,questions,concepts,responses,selectmasks\n" + "".join(
        f'{i % 5},{i},"{join(pad(c))}","{join(pad(c))}","{join(pad(r))}","{join(pad(torch.ones_like(c)))}"\n' for i, (c, r) in enumerate(seqs)))
    table = read_pykt_csv(new)
    for (c, r), (a, b), d, e, q, k in zip(seqs, read_three_line_csv(old), table["concepts"], table["responses"], table["questions"], table["counts"]):
        assert torch.equal(c, a) and torch.equal(r, b) and torch.equal(c, d) and torch.equal(r, e) and torch.equal(c, q) and k.all()
    assert table["fold"].tolist() == [i % 5 for i in range(6)]


def test_renumbering():
    seqs = [(torch.tensor([9, 2, 9]), torch.tensor([0, 1, 1]), torch.tensor([5, 6, 7])), ([4], [0])]
    out, table = renumber(seqs)
    assert table == {9: 0, 2: 1, 4: 2} and out[0][0].tolist() == [0, 1, 0] and out[0][2].tolist() == [5, 6, 7]
    assert renumber(seqs, table)[0][1][0].tolist() == [2]


def test_auc_and_accuracy_against_sklearn():
    g = torch.Generator().manual_seed(2)
    z, y, m = torch.randn(7, 11, generator=g).round(decimals=1), torch.randint(2, (7, 11), generator=g), torch.rand(7, 11, generator=g) < .6
    assert pooled_auc(z, y, m) == pytest.approx(roc_auc_score(y[m], z[m]), abs=1e-12)
    assert accuracy(z, y, m) == pytest.approx(accuracy_score(y[m], z[m] >= 0))
    assert pooled_auc(z.flatten(), y.flatten()) == pytest.approx(roc_auc_score(y.flatten(), z.flatten()), abs=1e-12)


def test_loss_ignores_what_is_masked():
    z, y, m = torch.randn(2, 4), torch.ones(2, 4).long(), torch.tensor([[True, True, False, False]]*2)
    assert torch.equal(next_step_loss(z, y.where(m, -7), m), next_step_loss(z.masked_fill(~m, 100.), y, m))
    with pytest.raises(ValueError, match="excludes every position"): next_step_loss(z, y, torch.zeros(2, 4, dtype=torch.bool))


def test_no_row_sees_a_copy_of_its_question():
    c, r, group, repeat = expand_questions([(0, 1), (2,), (1, 3, 0), (2, 3)], [1, 0, 1, 1])
    assert c.tolist() == [0, 1, 2, 1, 3, 0, 2, 3] and repeat.tolist() == [False, True, False, False, True, True, False, True]
    rows, asked = question_rows(c, r, group, max_len=4)
    assert asked.tolist() == [1, 2, 2, 2, 3, 3]
    assert [row[0].tolist() for row in rows] == [[0, 1, 2], [0, 1, 2, 1], [0, 1, 2, 3], [0, 1, 2, 0], [1, 3, 0, 2], [1, 3, 0, 3]]
    assert all(row[2].tolist() == [False]*(len(row[0]) - 1) + [True] for row in rows)


def test_fusions():
    p, k = torch.tensor([.9, .8, .1, .4, .3, .5]), torch.tensor([3, 3, 3, 8, 8, 8])
    assert torch.allclose(late_fusion(p, k), torch.tensor([.6, .4]))
    assert torch.allclose(late_fusion(p, k, "vote"), torch.tensor([.85, .35]))
    assert torch.allclose(late_fusion(p, k, "all"), torch.tensor([.1, .35]))
    assert torch.allclose(late_fusion(torch.tensor([.7, .2]), torch.tensor([0, 0]), "vote"), torch.tensor([.7]))    # a tie goes up
    leaf = p.clone().requires_grad_()
    late_fusion(leaf, k, "all").sum().backward()
    assert torch.allclose(leaf.grad, torch.tensor([0, 0, 1, .5, .5, 0]))
