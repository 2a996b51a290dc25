from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, ShiraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ViTForImageClassification

from stability import Mask, Problem, SparseDelta, StabilityError, UsageError
from stability.problems.digits import _config, _model
from stability.shira import export_shira, import_shira

# Of peft's own: it reads an attribute that transformers renamed, and makes sparse tensors without saying whether to check.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]
QUERY, UP, DOWN = "vit.layers.0.attention.q_proj.weight", "vit.layers.1.mlp.fc1.weight", "vit.layers.2.mlp.fc2.weight"
KEY = f"base_model.model.{QUERY.removesuffix('.weight')}"


def masked(problem: Problem, counts: dict[str, int]) -> Mask:
    """So many coordinates of each tensor, at random."""
    draw = torch.Generator().manual_seed(1)
    shapes = {name: tuple(tensor.shape) for name, tensor in problem.pretrained.items()}
    orders = {name: torch.randperm(problem.pretrained[name].numel(), generator=draw) for name in counts}
    return Mask(shapes, {name: orders[name][:count].sort().values for name, count in counts.items()})


def moved(problem: Problem, counts: dict[str, int]) -> SparseDelta:
    """New values that have nothing to do with the old ones, which rounds the most, and a random head."""
    draw = torch.Generator().manual_seed(2)
    mask = masked(problem, counts)
    tuned = mask.place(problem.pretrained, 0.3 * torch.randn(mask.count, generator=draw))
    head = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in problem.head(0).items()}
    return SparseDelta.between(problem.pretrained, tuned | head, mask)


def model(problem: Problem) -> Any:
    """The pretrained transformer as peft takes it, with a head that is nobody's."""
    result = ViTForImageClassification(_config()).eval()
    result.load_state_dict(problem.start(seed=5))
    return result


def logits(model: Any, problem: Problem) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**problem.test.inputs).logits
    return result


def assert_same(one: Tensor, other: Tensor) -> None:
    assert float((one - other).abs().max()) < 1e-5 * max(1.0, float(other.abs().max()))


def trained_by_peft(adapted: Any, problem: Problem) -> Any:
    """After one large step on all that peft trains."""
    loss = cross_entropy(adapted(**problem.train.inputs).logits, problem.train.labels)
    loss.backward()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter -= parameter.grad
    return adapted


@pytest.fixture
def folder(digits: Problem, tmp_path: Path) -> Path:
    """An exported adapter to damage."""
    export_shira(moved(digits, {QUERY: 64}), digits.pretrained, _model(), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("counts", [{QUERY: 1}, {QUERY: 64}, {QUERY: 10, UP: 200, DOWN: 96}, {QUERY: 65, DOWN: 1}])
def test_peft_gives_the_logits_of_an_exported_delta(counts: dict[str, int], digits: Problem, tmp_path: Path) -> None:
    delta = moved(digits, counts)
    expected = digits.logits(delta.apply(digits.pretrained), digits.test.inputs)
    export_shira(delta, digits.pretrained, _model(), tmp_path)
    loaded = PeftModel.from_pretrained(model(digits), tmp_path)
    assert_same(logits(loaded, digits), expected)
    assert_same(logits(loaded.merge_and_unload(), digits), expected)
    assert float((logits(model(digits), digits) - expected).abs().max()) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_exported_delta_comes_back(dtype: torch.dtype, digits: Problem, tmp_path: Path) -> None:
    """The mask and the head exactly, though matrices were filled up; the values up to two roundings, or exactly."""
    delta = moved(digits, {QUERY: 700, UP: 200, DOWN: 96})
    base, tuned = ({n: t.to(dtype) for n, t in of.items()} for of in (digits.pretrained, delta.apply(digits.pretrained)))
    delta = SparseDelta.between(base, tuned, delta.mask)
    export_shira(delta, base, _model(), tmp_path)
    again = import_shira(tmp_path, base)
    assert again.mask.equals(delta.mask)
    assert again.base == delta.base
    assert again.head.keys() == delta.head.keys()
    assert all(torch.equal(again.head[name], tensor) for name, tensor in delta.head.items())
    assert again.values.dtype == dtype
    old, new, found = (values.double() for values in (delta.mask.gather(base), delta.values, again.values))
    rounding = torch.finfo(dtype).eps / 2 * ((new - old).abs() + new.abs())
    assert bool(((found - new).abs() <= rounding * (1 + 1e-6)).all())
    near = (new / old >= 0.5) & (new / old <= 2)
    assert 100 < int(near.sum()) < 500
    assert torch.equal(found[near], new[near])


def test_coordinates_that_did_not_move_stay_masked(digits: Problem, tmp_path: Path) -> None:
    mask = masked(digits, {QUERY: 10, UP: 96})
    export_shira(SparseDelta.between(digits.pretrained, digits.start(0), mask), digits.pretrained, _model(), tmp_path)
    assert import_shira(tmp_path, digits.pretrained).mask.equals(mask)


@pytest.mark.parametrize("head_is_new", [True, False])
def test_an_adapter_of_peft_itself_is_read(head_is_new: bool, digits: Problem, tmp_path: Path) -> None:
    """With its own random mask; the head is masked in full where θ⁰ has it."""
    config = ShiraConfig(r=2, target_modules=["q_proj", "fc1"], modules_to_save=["classifier"], random_seed=3)
    adapted = trained_by_peft(get_peft_model(model(digits), config), digits)
    adapted.save_pretrained(tmp_path)
    base = {n: t.detach() for n, t in model(digits).named_parameters() if not (head_is_new and n in digits.head(0))}
    delta = import_shira(tmp_path, base)
    assert delta.mask.count == 3 * 2 * (32 + 32 + 32 + 64) + (0 if head_is_new else 165)
    assert set(delta.head) == (set(digits.head(0)) if head_is_new else set())
    assert_same(digits.logits(delta.apply(base), digits.test.inputs), logits(adapted, digits))
    delta.save(tmp_path / "delta")
    assert SparseDelta.load(tmp_path / "delta").mask.equals(delta.mask)


def test_peft_goes_on_training_an_exported_mask(digits: Problem, tmp_path: Path) -> None:
    """What it trained comes back; where the counts are r (in + out) that is the mask, and nothing else."""
    mask = masked(digits, {QUERY: 128, DOWN: 192})
    export_shira(SparseDelta.between(digits.pretrained, digits.start(0), mask), digits.pretrained, _model(), tmp_path / "start")
    adapted = trained_by_peft(PeftModel.from_pretrained(model(digits), tmp_path / "start", is_trainable=True), digits)
    adapted.save_pretrained(tmp_path / "end")
    delta = import_shira(tmp_path / "end", digits.pretrained)
    assert delta.mask.equals(mask)
    assert int((delta.difference(digits.pretrained) != 0).sum()) > 300
    assert_same(digits.logits(delta.apply(digits.pretrained), digits.test.inputs), logits(adapted, digits))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            {QUERY: 5, "vit.layernorm.weight": 3, "vit.embeddings.patch_embeddings.projection.weight": 4},
            r"7 of the k = 12 masked coordinates are in vit\.embeddings\S+weight, vit\.layernorm\.weight:.*SparseDelta\.save",
        ),
        ({QUERY: 1, UP: 97 * 16}, rf"r = 17, for the 1552 masked ones of '{UP}', makes 1088 of the 1024 in '{QUERY}'"),
    ],
)
def test_what_shira_cannot_hold_is_refused(counts: dict[str, int], message: str, digits: Problem, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        export_shira(moved(digits, counts), digits.pretrained, _model(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_embeddings_are_refused_though_they_are_matrices(tmp_path: Path) -> None:
    module = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "linear": nn.Linear(4, 4)})
    base = dict(module.named_parameters())
    mask = Mask({name: tuple(tensor.shape) for name, tensor in base.items()}, {"embedding.weight": torch.arange(3)})
    with pytest.raises(UsageError, match=r"3 of the k = 3 masked coordinates are in embedding\.weight"):
        export_shira(SparseDelta.between(base, base, mask), base, module, tmp_path)


@pytest.mark.parametrize("head", [["classifier.weight"], ["classifier.weight", "classifier.bias", "scale"]])
def test_a_head_that_is_no_whole_module_is_refused(head: list[str], digits: Problem, tmp_path: Path) -> None:
    delta = moved(digits, {QUERY: 64})
    delta = SparseDelta(delta.mask, delta.values, delta.base, {name: torch.zeros(5, 32) for name in head})
    with pytest.raises(UsageError, match=r"peft saves whole modules, and (classifier\.bias|scale)"):
        export_shira(delta, digits.pretrained, _model(), tmp_path)


def test_export_refuses_another_base_model_and_a_place_that_is_no_folder(digits: Problem, tmp_path: Path) -> None:
    delta = moved(digits, {QUERY: 64})
    with pytest.raises(StabilityError, match="belongs to the pretrained parameters"):
        export_shira(delta, {**digits.pretrained, QUERY: torch.zeros(32, 32)}, _model(), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StabilityError, match=r"cannot write .*file.*check that it is a folder"):
        export_shira(delta, digits.pretrained, _model(), tmp_path / "file")


def test_without_peft_export_says_how_to_install_it_and_import_works(
    folder: Path, digits: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    delta = import_shira(folder, digits.pretrained)
    with pytest.raises(UsageError, match=r"pip install 'peft-stability\[peft\]'"):
        export_shira(delta, digits.pretrained, _model(), tmp_path)


def test_a_folder_that_is_missing_damaged_or_of_another_method_is_refused(folder: Path, digits: Problem, tmp_path: Path) -> None:
    with pytest.raises(StabilityError, match=r"cannot read .*nowhere: .*missing or damaged, give a folder that"):
        import_shira(tmp_path / "nowhere", digits.pretrained)
    get_peft_model(model(digits), LoraConfig(target_modules=["q_proj"])).save_pretrained(str(tmp_path / "lora"))
    with pytest.raises(StabilityError, match=r"holds no SHiRA adapter, but peft_type 'LORA' of 0 matrices: give one"):
        import_shira(tmp_path / "lora", digits.pretrained)
    for name, content in (("adapter_config.json", "{}"), ("adapter_config.json", "{broken"), ("adapter_model.safetensors", "x")):
        kept = (folder / name).read_bytes()
        (folder / name).write_text(content)
        with pytest.raises(StabilityError, match="missing or damaged"):
            import_shira(folder, digits.pretrained)
        (folder / name).write_bytes(kept)


def test_an_exported_delta_knows_its_base_model(folder: Path, digits: Problem) -> None:
    with pytest.raises(StabilityError, match=r"belongs to the pretrained parameters .*…, not .*…: give the pretrained parameters"):
        import_shira(folder, {**digits.pretrained, QUERY: torch.zeros(32, 32)})


def change(tensors: dict[str, Tensor], name: str, to: Callable[[Tensor], Tensor]) -> None:
    tensors[name] = to(tensors[name]).contiguous()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: change(t, f"{KEY}.shira_indices", lambda i: i + 40), r"indices from \[40, 40\] to \[\d+, 71\] in .*\(32, 32\)"),
        (lambda t: change(t, f"{KEY}.shira_indices", lambda i: i - 1), r"indices from \[-1, -1\] to"),
        (lambda t: change(t, f"{KEY}.shira_indices", torch.zeros_like), r"63 of 64 indices are repeated"),
        (lambda t: change(t, f"{KEY}.shira_weight", lambda w: w[1:]), r"63 differences at indices of shape \(2, 64\)"),
        (lambda t: t.pop(f"{KEY}.shira_weight"), r"0 differences at indices of shape \(2, 64\)"),
        (lambda t: t.update({"base_model.model.new.shira_indices": torch.zeros(2, 1)}), r"changes 'new\.weight', which .* lack"),
        (lambda t: t.update({f"{KEY}.bias": torch.zeros(3)}), r"shape \(3,\) where θ⁰ has \(32,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    damage: Callable[[dict[str, Tensor]], Any], message: str, folder: Path, digits: Problem
) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(StabilityError, match=message):
        import_shira(folder, digits.pretrained)


def test_only_the_named_modules_become_adapters(folder: Path, digits: Problem) -> None:
    """The configuration names them in full: a module whose name only ends alike is left alone."""
    pattern = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert re.fullmatch(pattern, QUERY.removesuffix(".weight"))
    assert not re.fullmatch(pattern, f"other.{QUERY.removesuffix('.weight')}")
