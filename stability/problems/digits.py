"""The problem that comes with its data and weights: a small vision transformer that knows the digits 0 to 4 learns 5 to 9.

The data are the 8 × 8 handwritten digits of scikit-learn (UCI, 1797 images). The model is ``ViTForImageClassification`` of
transformers with patches of 4 × 4 and three layers of width 32, pretrained on the digits 0 to 4 by :func:`pretrain`;
``make weights`` writes the file that is shipped. Nothing is downloaded.
"""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from stability.checks import check_whole
from stability.masks import Parameters, fingerprint
from stability.problems.drawing import DrawingFrom
from stability.problems.metrics import accuracy, cross_entropies
from stability.problems.problem import Examples, ModuleLogits, Problem, TrainingDefaults, generator

# transformers and scikit-learn take seconds to import, so each function below imports what it needs: other problems never do.
if TYPE_CHECKING:
    from transformers import ViTConfig, ViTForImageClassification

__all__ = ["WEIGHTS", "load_digits", "pretrain", "write_weights"]

WEIGHTS = Path(__file__).with_name("digits_vit.safetensors")
"""The file of pretrained weights that is shipped."""
CLASSES = 5
TRAINING = TrainingDefaults(steps=150, batch_size=20, learning_rate=3e-3)
_LOADING = threading.Lock()
_HELD_OUT = 5  # pretraining holds out every fifth image of its digits


def load_digits(n: int = 100, seed: int = 0) -> Problem:
    """Fine-tune the shipped transformer on n images of the digits 5 to 9. All other images of these digits are the test set.

    The loss ℓ is the cross-entropy in nats, and the metric is accuracy. The new head is a linear layer 32 → 5 with weights
    from N(0, 0.02²) and biases 0.

    Args:
        n: size of S, drawn at random without replacement.
        seed: draws S.

    Raises:
        UsageError: n is below 2, or so large that no image is left to test on, or the seed is no whole number of at least 0.

    Example:
        >>> problem = load_digits(n=20)
        >>> problem.n, problem.m, sum(t.numel() for t in problem.head(0).values())
        (20, 26432, 165)
    """
    with _LOADING:  # transformers imports its models lazily, and not two at a time
        examples, pretrained, model = _images(5), _shipped(), _model()
    check_whole(2, len(examples) - 1, f"digits has {len(examples)} images of 5 to 9 for S and the test set", n=n)
    check_whole(0, seed=seed)
    order = torch.randperm(len(examples), generator=generator(seed, "sample"))
    return Problem(
        name="digits",
        settings={"n": n, "seed": seed, "weights": _content()[:16]},
        pretrained=pretrained,
        new_head=_new_head,
        logits=ModuleLogits(model, batched=True),
        loss=cross_entropies,
        train=examples.take(order[:n]),
        test=examples.take(order[n:]),
        metric=accuracy,
        metric_name="accuracy",
        classes=tuple(str(digit) for digit in range(5, 10)),
        training=TRAINING,
        shown=examples.inputs["pixel_values"][order[:n], 0],
    )


def pretrain(seed: int = 0, steps: int = 600) -> tuple[dict[str, Tensor], float]:
    """Train the transformer on four fifths of the digits 0 to 4.

    It uses AdamW with a learning rate that falls linearly from 3e-3 to 0, weight decay 0.01 and batches of 64.

    Args:
        seed: draws the initial parameters and the batches.
        steps: number of optimizer steps.

    Returns:
        The parameters without the old head, by name, and the accuracy on the last fifth.

    Raises:
        UsageError: seed or steps is out of range.

    Example:
        >>> parameters, accuracy = pretrain(steps=1)
        >>> sum(tensor.numel() for tensor in parameters.values())
        26432
    """
    from transformers import ViTForImageClassification

    check_whole(0, seed=seed)
    check_whole(1, steps=steps)
    examples = _images(0)
    held_out = torch.arange(len(examples)) % _HELD_OUT == 0
    train, test = examples.take(~held_out), examples.take(held_out)
    draw = generator(seed, "pretraining")
    with DrawingFrom(torch.Generator().manual_seed(seed)):
        model = ViTForImageClassification(_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        batch = train.take(torch.randint(len(train), (64,), generator=draw))
        optimizer.zero_grad()
        cross_entropy(model(**batch.inputs).logits, batch.labels).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        reached = accuracy(model.eval()(**test.inputs).logits, test.labels)
    return {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("classifier.")}, reached


def write_weights(file: Path = WEIGHTS) -> None:
    """Pretrain, write the parameters as safetensors and print what was reached; the accuracy is in the file's metadata too.

    Args:
        file: where to write; by default the file that is shipped.

    Example:
        >>> write_weights()  # doctest: +SKIP
    """
    parameters, accuracy = pretrain()
    save_file(parameters, file, {"kind": "pretrained", "digits": "0-4", "held_out_accuracy": repr(accuracy)})
    count = sum(tensor.numel() for tensor in parameters.values())
    print(f"{file}: {count} parameters, accuracy {accuracy:.4f} on held-out digits 0 to 4")


def _config() -> ViTConfig:
    from transformers import ViTConfig

    return ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=CLASSES,
        initializer_range=0.2,  # about 1/√width: the default 0.02 suits width 768 and trains to a needlessly sharp minimum here
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",  # scaled_dot_product_attention falls back to a slower path under vmap
    )


@cache
def _images(first: int) -> Examples:
    """The images of the five digits from ``first`` on: pixels in [0, 1], (N, 1, 8, 8)."""
    from sklearn import datasets

    data = datasets.load_digits()
    images = torch.tensor(data.images / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target, dtype=torch.int64) - first
    mine = (labels >= 0) & (labels < CLASSES)
    return Examples({"pixel_values": images[mine]}, labels[mine])


@cache
def _model() -> ViTForImageClassification:
    """The structure only: its weights are never read."""
    from transformers import ViTForImageClassification

    with torch.device("meta"):
        return ViTForImageClassification(_config()).eval()


@cache
def _shipped() -> Parameters:
    with safe_open(WEIGHTS, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


@cache
def _content() -> str:
    """SHA-256 of θ⁰ and of all images of 5 to 9 with their labels. The model has no buffers."""
    examples = _images(5)
    return fingerprint({**_shipped(), **examples.inputs, "labels": examples.labels})


def _new_head(draw: torch.Generator) -> Parameters:
    width = _config().hidden_size
    return {
        "classifier.weight": 0.02 * torch.randn(CLASSES, width, generator=draw),
        "classifier.bias": torch.zeros(CLASSES),
    }
