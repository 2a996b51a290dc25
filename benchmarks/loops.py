"""The programs that train leave-one-out replicas: this engine, and the loops that one would write or take instead.

Each gets a :class:`Setting` and the examples to leave out and gives ℓ(A(Sⁱ), z_i) for each. All take the same steps on the same
batches from the same start, with S's mask, dropout off and torch's AdamW or its equal.
"""

from __future__ import annotations

import copy
import dataclasses
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTForImageClassification,
)
from transformers.utils import logging

from stability import FineTuning, Problem, problems
from stability.masks import Mask, Parameters
from stability.problems.digits import _config
from stability.selectors import SAM
from stability.training import Precision
from stability.training.replicas import Replicas, train

logging.set_verbosity_error()  # of transformers: that the head is new
logging.disable_progress_bar()
T = TypeVar("T")

PROBLEMS = ("digits", "tiny-bert", "minilm-cb")


@dataclass(frozen=True)
class Setting:
    """What is trained, as plain values that another process can be told.

    Attributes:
        problem: one of :data:`PROBLEMS`; the texts of both language models are those of CB.
        steps: of each replica.
        device: where.
        precision: of the products.
        model: folder of MiniLM, whose tokenizer the tiny model has too.
        data: folder of the tasks.
        mask: file of S's mask, once it is selected.
        n: training examples; by default 100 of ``digits``, and all of CB.
    """

    problem: str
    steps: int
    device: str = "cpu"
    precision: Precision = "float32"
    model: str = ""
    data: str = ""
    mask: str = ""
    n: int | None = None

    @property
    def algorithm(self) -> FineTuning:
        if self.problem == "digits":
            made = FineTuning(SAM(0.05), steps=self.steps, precision=self.precision)
            return made.with_defaults(problems.training_defaults("digits"))
        rate: dict[str, Any] = {"batch_size": 16, "learning_rate": 1e-3, "schedule": "linear"}
        return FineTuning(SAM(0.005), steps=self.steps, precision=self.precision, **rate)

    @property
    def loaded(self) -> Problem:
        return _loaded(dataclasses.replace(self, steps=1, precision="float32", mask=""))

    @property
    def selected(self) -> Mask:
        return _selected(dataclasses.replace(self, steps=1, precision="float32"))

    def plain_model(self) -> nn.Module:
        """Transformers' own model with its own attention kernel at the start, as one would load it; loaded once."""
        return _plain_model(dataclasses.replace(self, steps=1, precision="float32", mask=""))

    def gates(self) -> dict[str, Tensor]:
        """Of every tensor that is trained a mask of its shape."""
        start, gates = self.loaded.start(self.algorithm.seed), {}
        for name, index in self.algorithm.tunable_mask(self.loaded, self.selected).indices.items():
            gates[name] = torch.zeros_like(start[name])
            gates[name].view(-1)[index.to(self.device)] = 1.0
        return gates


@lru_cache(maxsize=1)
def _loaded(setting: Setting) -> Problem:
    cb = str(Path(setting.data) / "cb")
    if setting.problem == "digits":
        loaded = problems.load("digits", n=setting.n or 100)
    elif setting.problem == "minilm-cb":
        loaded = problems.load(cb, model=setting.model, n=setting.n)
    else:
        with tempfile.TemporaryDirectory() as folder:
            loaded = problems.load(cb, model=write_tiny_bert(Path(folder), setting.model))
    return loaded.to(torch.device(setting.device))


@lru_cache(maxsize=1)
def _plain_model(setting: Setting) -> nn.Module:
    if setting.problem == "digits":
        model: nn.Module = ViTForImageClassification(_config())
    elif setting.problem == "minilm-cb":
        labels = len(setting.loaded.settings["classes"])
        model = AutoModelForSequenceClassification.from_pretrained(setting.model, num_labels=labels)
    else:
        model = BertForSequenceClassification(tiny_bert(len(setting.loaded.settings["classes"])))
    model.load_state_dict(setting.loaded.start(setting.algorithm.seed), strict=False)
    return model.to(setting.device).eval()


@lru_cache(maxsize=1)
def _selected(setting: Setting) -> Mask:
    return Mask.load(setting.mask) if setting.mask else setting.algorithm.select(setting.loaded)


def tiny_bert(labels: int = 2) -> BertConfig:
    """Two layers of width 128 (Turc et al. 2019), with MiniLM's vocabulary."""
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    return BertConfig(vocab_size=30522, num_labels=labels, **size)


def write_tiny_bert(folder: Path, tokenizer: str) -> str:
    """The model with random weights of seed 0, as a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        BertForSequenceClassification(tiny_bert()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)


def pass_for_each(problem: Problem, parameters: Parameters, mask: Mask) -> Tensor:
    """The Jacobians (n, C, k) of all examples: a backward pass through the whole network for each example and logit."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
    rows = []
    for i in range(problem.n):
        for f in problem.logits(leaves, problem.train.take(slice(i, i + 1)).inputs)[0]:
            slopes = torch.autograd.grad(f, list(leaves.values()), retain_graph=True, materialize_grads=True)
            rows.append(mask.gather(dict(zip(leaves, slopes, strict=True))))
    return torch.stack(rows).view(problem.n, -1, mask.count)


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    """How long it took, the device's queue emptied, and what it gave."""
    began = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def peak_memory(device: str) -> float:
    """GiB: of a GPU's allocations, or resident in this process alone (``ru_maxrss`` would begin with its parent's)."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def engine(setting: Setting, left_out: list[int]) -> list[float]:
    replicas = engine_replicas(setting, left_out)
    return replicas.own_losses(torch.tensor(left_out)).tolist()


def engine_replicas(setting: Setting, left_out: list[int]) -> Replicas:
    weights = torch.ones(len(left_out), setting.loaded.n)
    weights[torch.arange(len(left_out)), torch.tensor(left_out)] = 0
    return train(setting.loaded, setting.algorithm, weights, masks=[setting.selected])


def _optimizer(model: nn.Module, gates: dict[str, Tensor], setting: Setting) -> tuple[torch.optim.AdamW, Any]:
    """Over the masked tensors, which alone are trained."""
    for name, p in model.named_parameters():
        p.requires_grad_(name in gates)
    algorithm = setting.algorithm
    rates = [algorithm.learning_rate_at(step) for step in range(algorithm.max_steps + 1)]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[step])


def _trained(model: nn.Module, gates: dict[str, Tensor], setting: Setting, i: int) -> nn.Module:
    """One model without example i, as one would write it: dense gradients times the mask, AdamW over the masked tensors."""
    problem, algorithm = setting.loaded, setting.algorithm
    optimizer, schedule = _optimizer(model, gates, setting)
    torch.set_float32_matmul_precision("high" if setting.precision == "tf32" else "highest")
    for index in algorithm.batches(problem.train):
        batch = problem.train.take(index[index != i])
        optimizer.zero_grad()
        with torch.autocast(torch.device(setting.device).type, torch.bfloat16, enabled=setting.precision == "bfloat16"):
            logits = model(**batch.inputs).logits
        cross_entropy(logits.float(), batch.labels).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                p.grad *= gates[name]
        optimizer.step()
        schedule.step()
    return model


def _loss(model: nn.Module, setting: Setting, i: int) -> float:
    one = setting.loaded.train.take(torch.tensor([i]))
    with torch.no_grad():
        return cross_entropy(model(**one.inputs).logits, one.labels).item()


def plain_loop(setting: Setting, left_out: list[int]) -> list[float]:
    original, gates = setting.plain_model(), setting.gates()
    return [_loss(_trained(copy.deepcopy(original), gates, setting, i), setting, i) for i in left_out]


def dattri(setting: Setting, left_out: list[int]) -> list[float]:
    """``dattri.model_util.retrain.retrain_loo`` around the plain loop; it saves each model to disk, as it does."""
    from dattri.model_util.retrain import retrain_loo

    original, gates = setting.plain_model(), setting.gates()
    losses = []

    def retrain(loader: DataLoader[Any], seed: int | None = None) -> nn.Module:
        [i] = set(range(setting.loaded.n)) - set(loader.dataset.indices)  # type: ignore[attr-defined]
        model = _trained(copy.deepcopy(original), gates, setting, i)
        losses.append(_loss(model, setting, i))
        return model

    folder = tempfile.mkdtemp()
    try:
        everything: DataLoader[Any] = DataLoader(TensorDataset(torch.arange(setting.loaded.n)))
        retrain_loo(retrain, everything, folder, indices=left_out)
    finally:
        shutil.rmtree(folder)
    return losses


class _Batches(Trainer):  # type: ignore[misc]
    """A trainer that takes the given batches."""

    batches: list[list[int]]

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)


def trainer(setting: Setting, left_out: list[int]) -> list[float]:
    """Transformers' ``Trainer``, one after the other; gradients are masked by hooks."""
    original, gates, problem, algorithm = copy.deepcopy(setting.plain_model()), setting.gates(), setting.loaded, setting.algorithm
    for module in original.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # Trainer sets the training mode
    quiet: dict[str, Any] = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    losses = []

    def collate(rows: list[tuple[Tensor]]) -> dict[str, Tensor]:
        batch = problem.train.take(torch.tensor([int(row[0]) for row in rows]))
        return {**batch.inputs, "labels": batch.labels}

    for i in left_out:
        model = copy.deepcopy(original)
        optimizer, schedule = _optimizer(model, gates, setting)
        for name, p in model.named_parameters():
            if name in gates:
                p.register_hook(lambda gradient, gate=gates[name]: gradient * gate)
        with tempfile.TemporaryDirectory() as folder:
            quiet |= {"bf16": setting.precision == "bfloat16", "tf32": setting.precision == "tf32" or None}
            quiet |= {"max_steps": setting.steps, "max_grad_norm": 0.0, "use_cpu": setting.device == "cpu"}
            how = TrainingArguments(folder, dataloader_pin_memory=False, **quiet)
            loop = _Batches(
                model,
                how,
                train_dataset=TensorDataset(torch.arange(problem.n)),
                data_collator=collate,
                optimizers=(optimizer, schedule),
            )
            loop.batches = [index[index != i].tolist() for index in algorithm.batches(problem.train)]
            loop.train()
        losses.append(_loss(model.eval(), setting, i))
    return losses


PROGRAMS: dict[str, Callable[[Setting, list[int]], list[float]]] = {
    "engine": engine,
    "plain_loop": plain_loop,
    "dattri": dattri,
    "trainer": trainer,
}
