"The review bed, on texts made up here: rewards by hand, what is kept, pairs, and the loop."
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from kullback.align import dpo_loss
from kullback.language import sequence_logps
from kullback.testbed.reviews import (
    EOS,
    PAD,
    UNK,
    ReviewBed,
    ReviewLM,
    align_policy,
    bigram_ids,
    clauses,
    data_folder,
    digest,
    encode,
    fit_judge,
    lexicon_reward,
    make_pairs,
    perplexity,
    reference_logps,
    remembered,
    train_lm,
    words_of,
)

GOOD, BAD, PLAIN = ["good", "great", "fine"], ["bad", "dull"], ["a", "film", "story", "it", "is", "so", "very"]
LEXICON = {"good": 2., "great": 3., "fine": 1., "bad": -2., "dull": -1.5, "unused": 4.}


def generator(seed=0): return torch.Generator().manual_seed(seed)


def made_up(n=120, seed=0):
    words, g = GOOD + BAD + PLAIN, generator(seed)
    draw = lambda high: int(torch.randint(high, (), generator=g))
    texts = [[words[draw(len(words))] for _ in range(4 + draw(6))] for _ in range(n)]
    return texts, [sum((w in GOOD) - (w in BAD) for w in t)/2 for t in texts]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path))
    return tmp_path/"reviews"


@pytest.fixture(scope="module")
def bed():
    texts, rating = made_up()
    return ReviewBed.from_texts(texts, rating, LEXICON, {"good": 1.}, vocab=11, length=8, prompt=2, n_train=90)


@pytest.fixture
def ref(bed): return train_lm(bed, epochs=1, generator=generator())


@pytest.fixture
def pairs(bed, ref): return bed.make_pairs(ref, bed.prompts("train"), 40, generator=generator(1))


def test_words():
    assert words_of("Don't--STOP, it's 3 o'clock?!") == ["don't", "stop", ",", "it's", "o'clock", "?", "!"]


def test_rows_by_hand():
    words = ("<pad>", "<eos>", "<unk>", "a", "film")
    assert encode([["a", "film"], ["a", "odd", "film", "a"], ["a"]*9], words, 4).tolist() == [
        [EOS, 3, 4, EOS, PAD], [EOS, 3, UNK, 4, 3], [EOS, 3, 3, 3, 3]]


def test_clauses_keep_known_words_only():
    texts = [["a", "film", ",", "so", "odd", ".", "it", "is"], ["it", "is", "a", "film"]]
    assert clauses(texts, {"a", "film", "it", "is", "so"}, range(2, 4)) == [(0, ["a", "film"]), (0, ["it", "is"])]


def test_gold_reward_by_hand():
    value = torch.tensor([0., 0., 0., 2., -1.])
    assert_close(lexicon_reward(torch.tensor([[3, 3, 4, 1]]), value), torch.tensor([3/math.sqrt(9 + 15)]))
    assert_close(lexicon_reward(torch.tensor([[3]]), value, alpha=12.), torch.tensor([.5]))


def test_bed(bed):
    assert bed.words[:3] == ("<pad>", "<eos>", "<unk>") and len(bed.words) == 14 and bed.tokens.shape == (120, 9)
    assert (bed.tokens == UNK).any()                           # 12 words, 11 known
    for w, v in zip(bed.words, bed.valence.tolist()): assert v == pytest.approx(LEXICON.get(w, 0.))
    prompts = bed.prompts("test")
    assert prompts.shape[1] == 3 and (prompts[:, 0] == EOS).all() and (prompts[:, 1:] > UNK).all()
    rows = bed.part("test")
    assert_close(bed.gold_reward(rows), lexicon_reward(rows[:, 3:], bed.valence))
    changed = rows.clone(); changed[:, 1:3] = bed.words.index("great")
    assert torch.equal(bed.gold_reward(changed), bed.gold_reward(rows))                # the prompt earns nothing
    assert torch.equal(bed.heldout_reward(changed), bed.heldout_reward(rows))
    assert len(bed.part("train")) == 90 and bed.text(torch.tensor([[EOS, 3, EOS, PAD]])) == [f"{bed.words[3]} <eos>"]


def test_features_by_hand():
    assert bigram_ids(torch.tensor([[3, 4, UNK, 5, 1]]), 10).tolist() == [[3, 4, -1, 5, -1, 10 + 34, -1, -1, -1]]


def test_judge_is_at_its_optimum():
    "The gradient of the penalised likelihood vanishes, and rare features carry nothing."
    g = generator()
    tokens, positive = torch.randint(3, 8, (200, 4), generator=g), torch.rand(200, generator=g) < .4
    judge = fit_judge(tokens, positive, 8, C=.7, min_count=20)
    counts = torch.stack([(bigram_ids(tokens, 8) == k).sum(1) for k in judge.keys], 1).double()
    w, b = judge.weight[:-1].double(), judge.bias.double()
    residual = (counts @ w + b).sigmoid() - positive.double()
    assert_close(.7*counts.T @ residual + w, torch.zeros_like(w), rtol=0, atol=1e-3)
    assert abs(residual.sum()) < 1e-3 and judge.weight[-1] == 0
    assert_close(judge(tokens), (2*(counts @ w + b).sigmoid() - 1).float(), rtol=0, atol=1e-5)


def test_initialisation_belongs_to_the_generator():
    state = torch.get_rng_state()
    a, b, c = (ReviewLM(9, 4, 6, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert digest(a.state_dict()) == digest(b.state_dict()) != digest(c.state_dict())


def test_muted_words_have_no_share():
    model = ReviewLM(9, 4, 6, generator=generator())
    ids = torch.tensor([[EOS, 3, UNK, 5]])
    P = model(ids).softmax(-1)
    assert (P[..., [PAD, UNK]] == 0).all()
    logits, state = None, None
    for t in range(4): logits, state = model.step(ids[:, t], state)
    assert_close(logits, model(ids)[:, -1])


def test_perplexity_counts_known_words_and_ends():
    model = ReviewLM(9, 4, 6)
    with torch.no_grad():
        for p in model.parameters(): p.zero_()
    assert perplexity(model, torch.tensor([[EOS, 3, UNK, EOS, PAD], [EOS, 4, 5, 6, 7]])) == pytest.approx(7.)


def test_training_is_kept_and_chance_goes_on_alike(bed, cache):
    first, second = generator(), generator()
    a = train_lm(bed, epochs=1, generator=first)
    files = list(cache.iterdir())
    b = train_lm(bed, epochs=1, generator=second)
    assert digest(a.state_dict()) == digest(b.state_dict()) and list(cache.iterdir()) == files and len(files) == 1
    assert torch.equal(first.get_state(), second.get_state())
    c = train_lm(bed, epochs=1, lr=5e-3, generator=generator())
    d = train_lm(bed, start=a, rows=bed.part("train")[:64], epochs=1, generator=generator())
    assert len({digest(m.state_dict()) for m in (a, c, d)}) == 3 and len(list(cache.iterdir())) == 3
    assert not any(p.requires_grad for p in a.parameters())


@pytest.mark.parametrize("harm", ["byte", "short", "empty", "foreign", "pickle"])
def test_a_harmed_file_is_refused_aloud(cache, capsys, harm):
    calls = []
    def compute(): calls.append(1); return {"x": torch.arange(5.)}
    remembered("test", {"a": 1}, compute)
    [file] = cache.iterdir()
    whole = bytearray(file.read_bytes())
    if harm == "byte": whole[-3] ^= 1; file.write_bytes(whole)
    if harm == "short": file.write_bytes(whole[:-4])
    if harm == "empty": file.write_bytes(b"")
    if harm == "foreign": save_file({"x": torch.zeros(5)}, file, {"about": "{}", "sha256": digest({"x": torch.zeros(5)})})
    if harm == "pickle": torch.save({"x": torch.zeros(5)}, file)
    assert torch.equal(remembered("test", {"a": 1}, compute)["x"], torch.arange(5.))
    assert len(calls) == 2 and "is refused" in (said := capsys.readouterr().err) and file.name in said
    assert torch.equal(remembered("test", {"a": 1}, compute)["x"], torch.arange(5.)) and len(calls) == 2
    assert list(cache.iterdir()) == [file] and torch.equal(load_file(file)["x"], torch.arange(5.))


def test_digest_sees_everything():
    x = torch.arange(6.)
    seen = {digest(d) for d in ({"x": x}, {"y": x}, {"x": x.view(2, 3)}, {"x": x.double()}, {"x": x + 1}, {})}
    assert len(seen) == 6 and digest({"a": x, "b": x}) == digest({"b": x, "a": x})


def test_pairs(bed, ref, pairs):
    assert all(len(x) == 40 for x in pairs.values())
    for who in ("chosen", "rejected"):
        ids, labels = pairs[who], pairs[who + "_labels"]
        assert_close(bed.gold_reward(ids), pairs[who + "_reward"])
        scored = labels >= 0
        assert torch.equal(labels[scored], ids[scored]) and not scored[:, :3].any() and scored[:, 3].all()
        assert (ids[:, 3:][~scored[:, 3:]] == PAD).all() and not (ids == UNK).any()
    assert torch.equal(pairs["chosen"][:, :3], pairs["rejected"][:, :3])
    assert ((pairs["chosen_reward"] - pairs["rejected_reward"]).abs() > 1e-6).all()
    again = make_pairs(bed, ref, bed.prompts("train"), 40, generator=generator(1))
    assert digest(again) == digest(pairs)


def test_labels_follow_bradley_and_terry(bed, ref):
    hot = bed.make_pairs(ref, bed.prompts("train"), 40, temperature=1e6, generator=generator(2))
    assert (hot["chosen_reward"] > hot["rejected_reward"]).all()
    many = bed.make_pairs(ref, bed.prompts("train"), 3000, temperature=2., generator=generator(3))
    gap = many["chosen_reward"] - many["rejected_reward"]
    p = (2*gap.abs()).sigmoid()
    assert abs((gap > 0).float().mean() - p.mean()) < 4*(p*(1 - p)).mean().sqrt()/3000**.5


def test_a_model_that_repeats_itself_has_no_pairs(bed, ref):
    with pytest.raises(ValueError, match="only 0 pairs of 5"):
        bed.make_pairs(ref, bed.prompts("train"), 5, top_p=1e-6, generator=generator())


def test_reference_logps(bed, ref, pairs):
    logps = reference_logps(ref, pairs, chunk=7)
    for row, who in zip(logps, ("chosen", "rejected")):
        assert_close(row, sequence_logps(ref(pairs[who]), pairs[who + "_labels"]), rtol=0, atol=1e-5)


def test_the_loop(bed, ref, pairs):
    before, seen, losses = digest(ref.state_dict()), [], []
    mask = torch.nn.Parameter(torch.ones(()))
    def loss_fn(logits, batch):
        assert logits.shape == (*batch.ids.shape, len(bed.words)) and len(batch.ids) == 2*len(batch.index)
        n = len(batch.index)
        assert torch.equal(batch.ids[:n], pairs["chosen"][batch.index]) and torch.equal(batch.ids[n:], pairs["rejected"][batch.index])
        assert_close(sequence_logps(batch.ref_logits, batch.labels), batch.ref_logps, rtol=0, atol=1e-5)
        assert not batch.ref_logits.requires_grad and torch.equal(batch.policy(batch.ids), logits)
        seen.append(batch.index)
        chosen, rejected = sequence_logps(logits, batch.labels).chunk(2)
        return mask*dpo_loss(chosen, rejected, *batch.ref_logps.chunk(2))[0]
    policy = align_policy(ref, pairs, loss_fn, batch_size=16, extra=[mask], generator=generator(4),
                          on_step=lambda policy, batch, loss: losses.append(loss.item()))
    assert [len(i) for i in seen] == [16, 16, 8]*2 and sorted(torch.cat(seen[:3]).tolist()) == list(range(40))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert digest(ref.state_dict()) == before != digest(policy.state_dict()) and mask.item() != 1 and not policy.training
    other = align_policy(ref, pairs, lambda z, b: 0*z.sum(), start=policy, epochs=1, generator=generator(4))
    assert digest(other.state_dict()) == digest(policy.state_dict())


def test_the_folder_is_for_a_while(monkeypatch):
    import os
    for before in (None, "there"):
        monkeypatch.delenv("KULLBACK_DATA", raising=False)
        if before: monkeypatch.setenv("KULLBACK_DATA", before)
        with pytest.raises(KeyError):
            with data_folder("here"): assert os.environ["KULLBACK_DATA"] == "here"; raise KeyError
        with data_folder(None): pass
        assert os.environ.get("KULLBACK_DATA") == before


def test_refusals(bed):
    texts, rating = made_up()
    with pytest.raises(ValueError, match="1..7, got 8"): ReviewBed.from_texts(texts, rating, {}, {}, length=8, prompt=8)
    with pytest.raises(ValueError, match="1..119, got 120"): ReviewBed.from_texts(texts, rating, {}, {}, n_train=120)
    with pytest.raises(ValueError, match="no word occurs 9 times"): fit_judge(torch.tensor([[3, 4]]), torch.tensor([True]), 5, min_count=9)
    with pytest.raises(ValueError, match="alpha must be positive"): lexicon_reward(bed.tokens, bed.valence, 0.)
