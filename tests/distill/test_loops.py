"Other people's loops and losses: torchdistill, Hugging Face's Trainer, Lightning, DistributedDataParallel."
import pytest
import torch
import torch.nn.functional as F
from draws import classroom
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

from kullback.distill import DualHead, USKDLoss, dist_loss, kd_loss, sinkhorn_kd_loss

EXACT = dict(rtol=1e-9, atol=1e-12)


def rows(n, seed=0, width=16, K=10):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=g, dtype=torch.float64), torch.randint(K, (n,), generator=g)


def linear(seed, width=16, K=10):
    net = nn.Linear(width, K).double()
    with torch.no_grad():
        for p in net.parameters(): p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    return net


def each(logits, teacher_logits, labels):
    return F.cross_entropy(logits, labels, reduction="none") + kd_loss(logits, teacher_logits, 4., reduction="none")


def theirs(name, s, t, labels=None, *a, **k):
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    loss = getattr(losses, name)(".", "output", ".", "output", *a, **k)
    return loss({".": {"output": s}}, {".": {"output": t}}, labels)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tau", [.5, 1., 4.])
@pytest.mark.filterwarnings("ignore:reduction")
def test_torchdistill_logit_losses(seed, tau):
    s, t, y = classroom(seed, B=12)
    ce, kl = F.cross_entropy(s, y), kd_loss(s, t, tau)
    for alpha in (.2, 1.):
        assert_close(theirs("KDLoss", s, t, y, tau, alpha), alpha*ce + (1 - alpha)*kl, **EXACT)
        assert_close(theirs("KDLoss", s, t, y, tau, alpha, 3.), alpha*ce + 3*kl, **EXACT)
        assert_close(theirs("KDLoss", s, t, y, tau, alpha, 3., "sum"), 12*(alpha*ce + 3*kl), **EXACT)
        assert_close(theirs("KDLoss", s, t, y, tau, alpha, 3., "mean"), alpha*ce + 3*kl/5, **EXACT)
    for silent in (theirs("KDLoss", s, t, y, tau, 0), theirs("KDLoss", s, t, None, tau, .5), theirs("SKDInstanceLoss", s, t, y, tau)):
        assert_close(silent, kd_loss(s, t, tau, scale_t2=False), **EXACT)                  # τ² is lost without labels, or at α = 0
    z = lambda x: (x - x.mean(1, keepdim=True))/(x.std(1, keepdim=True) + 1e-7)
    assert_close(theirs("LogitStdKDLoss", s, t, y, tau, alpha=.3), .3*ce + .7*kd_loss(z(s), z(t), tau), **EXACT)
    assert_close(theirs("DISTLoss", s, t, None, 2., .5, tau), dist_loss(s, t, 2., .5, tau), rtol=1e-5, atol=1e-8)


def test_torchdistill_teaches_a_teacher_that_is_not_detached():
    s, t, y = classroom(0)
    t.requires_grad_()
    assert torch.autograd.grad(theirs("KDLoss", s, t, y, 4., .5), t)[0].norm() > 0
    assert not kd_loss(s, t).requires_grad
    with pytest.raises(TypeError): theirs("KDLoss", s, t, y, 4.)


def test_kl_div_forms():
    s, t, _ = classroom(1)
    a, b = (s/4).log_softmax(1), (t/4).log_softmax(1)
    assert_close(16*F.kl_div(a, b, reduction="batchmean", log_target=True), kd_loss(s, t, 4.), **EXACT)
    assert_close(16*F.kl_div(b, a, reduction="batchmean", log_target=True), kd_loss(s, t, 4., "reverse"), **EXACT)


def test_a_plan_does_not_accumulate():
    "Losses of a batch: no scale makes four quarters of a batch out of it. Sums over examples: any split, uneven too."
    s, t, y = classroom(2, B=64)
    quarters = list(zip(s.split(16), t.split(16)))
    assert_close(sum(kd_loss(a, b, reduction="sum") for a, b in quarters), kd_loss(s, t, reduction="sum"), **EXACT)
    plan = lambda a, b: torch.autograd.grad(sinkhorn_kd_loss(a.requires_grad_(), b), a)[0]
    whole, parts = plan(s, t), torch.cat([plan(a.clone(), b) for a, b in quarters])
    assert F.cosine_similarity(whole.flatten(), parts.flatten(), dim=0) < .999


@pytest.fixture
def hf_step(tmp_path):
    "One step of SGD at rate 1 by Hugging Face's Trainer: what the weights moved, and the trainer."
    transformers = pytest.importorskip("transformers")

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.config = linear(1), None

        def forward(self, x, labels=None): return {"logits": self.net(x)}

    def step(loss, n, size, steps, extra=None, **more):
        x, y = rows(n)
        model, teacher, seen = Classifier(), linear(2), {}
        if extra is not None: model.distiller = extra
        model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
        def criterion(outputs, labels, num_items_in_batch=None):
            with torch.no_grad(): t = teacher(seen["x"])
            return loss(each(outputs["logits"], t, labels), num_items_in_batch)
        args = transformers.TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=steps, learning_rate=1.,
            optim="sgd", max_grad_norm=0., lr_scheduler_type="constant", report_to=[], disable_tqdm=True, use_cpu=True,
            save_strategy="no", logging_strategy="no", **more)
        trainer = transformers.Trainer(model, args, train_dataset=[dict(x=a, labels=b) for a, b in zip(x, y)], compute_loss_func=criterion)
        before = parameters_to_vector(model.net.parameters()).detach()
        trainer.train()
        return before - parameters_to_vector(model.net.parameters()).detach(), trainer
    return step


def autograd(n):
    (x, y), net = rows(n), linear(1)
    each(net(x), linear(2)(x).detach(), y).mean().backward()
    return parameters_to_vector([p.grad for p in net.parameters()])


@pytest.mark.parametrize("n, size, steps", [(64, 64, 1), (64, 16, 4), (60, 16, 4), (33, 16, 3)])
def test_trainer_accumulates_sums_over_num_items(hf_step, n, size, steps):
    moved, _ = hf_step(lambda values, items: values.sum()/items, n, size, steps)
    assert_close(moved, autograd(n), **EXACT)


def test_trainer_does_not_divide_a_mean_and_ignores_its_own_label_smoothing(hf_step):
    mean = lambda values, items: values.mean()
    moved, _ = hf_step(mean, 64, 16, 4)
    assert_close(moved, 4*autograd(64), **EXACT)
    assert torch.equal(hf_step(mean, 64, 16, 4, label_smoothing_factor=.3)[0], moved)


def test_trainer_saves_no_teacher_and_trains_what_is_an_attribute(hf_step, tmp_path):
    extra = USKDLoss(16, 10).double()
    _, trainer = hf_step(lambda values, items: values.sum()/items, 16, 16, 1, extra)
    trained = {id(p) for group in trainer.optimizer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in extra.parameters()} <= trained
    trainer.save_model(str(tmp_path/"saved"))
    saved = pytest.importorskip("safetensors.torch").load_file(tmp_path/"saved"/"model.safetensors")
    assert sorted(saved) == ["distiller.weak_head.bias", "distiller.weak_head.weight", "net.bias", "net.weight"]


@pytest.fixture
def taught():
    lightning = pytest.importorskip("lightning")

    class Taught(lightning.LightningModule):
        def __init__(self, student, teacher, register):
            super().__init__()
            self.student, self.hidden = student, [teacher.eval()]
            if register: self.teacher = teacher

        def training_step(self, batch, _):
            with torch.no_grad(): t = self.hidden[0](batch[0])
            return each(self.student(batch[0]), t, batch[1]).mean()

        def configure_optimizers(self): return torch.optim.SGD(self.student.parameters(), .1)
    return Taught


@pytest.fixture
def lightning_fit(taught, tmp_path):
    import lightning
    def fit(n, size, accumulate, steps, register=False):
        module = taught(linear(1), linear(2), register)
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows(n)), size)
        trainer = lightning.Trainer(
            max_steps=steps, accumulate_grad_batches=accumulate, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)
        trainer.fit(module, data)
        trainer.save_checkpoint(tmp_path/"a.ckpt")
        return module, torch.load(tmp_path/"a.ckpt", weights_only=True)
    return fit


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size, accumulate", [(64, 1), (16, 4)])
def test_lightning_equals_a_plain_loop(lightning_fit, size, accumulate):
    module, _ = lightning_fit(64*3, size, accumulate, 3)
    net, teacher, (x, y) = linear(1), linear(2), rows(64*3)
    optimizer = torch.optim.SGD(net.parameters(), .1)
    for i in torch.arange(64*3).split(64):
        each(net(x[i]), teacher(x[i]).detach(), y[i]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_close(module.student.state_dict(), net.state_dict(), **EXACT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("register", [False, True])
def test_lightning_checkpoint(lightning_fit, register):
    "A listed teacher stays out of the checkpoint, of the optimiser and of train(); a registered one is in the first and the last."
    module, checkpoint = lightning_fit(16, 16, 1, 1, register)
    teacher = module.hidden[0]
    assert not teacher.training
    assert any(k.startswith("teacher.") for k in checkpoint["state_dict"]) == register
    assert sum(len(g["params"]) for g in checkpoint["optimizer_states"][0]["param_groups"]) == 2
    assert module.train() and teacher.training == register
    assert_close(teacher.state_dict(), linear(2).state_dict(), rtol=0, atol=0)


def test_ddp_refuses_a_head_without_loss(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        x, y = rows(8)
        def twice(**options):
            net = DistributedDataParallel(DualHead(nn.Linear(16, 4), 4, 10).double(), **options)
            for _ in range(2): F.cross_entropy(net(x)[0], y).backward()
            return [name for name, p in net.module.named_parameters() if p.grad is None]
        with pytest.raises(RuntimeError, match="did not receive grad|Expected to have finished reduction"): twice()
        assert twice(find_unused_parameters=True) == ["aux.weight", "aux.bias"]
    finally: torch.distributed.destroy_process_group()
