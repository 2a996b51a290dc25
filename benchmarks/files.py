"""Bytes an entry of what fine-tuning changed, from files really written: this toolkit's, peft's, and dense tensors.

    python -m benchmarks.files [--threads 2] [--quick] [--json]

θ⁰ is random, in the shape of MiniLM (a BERT of 6 layers of width 384); a share p of the entries of its encoder's linear
weights changes, at random places. peft's own masks have as many entries as its rules allow: SHiRA r (in + out) of every matrix,
with the r nearest to p; Supertuning ⌊p · in · out⌋, the largest. An exported delta has the random places, and pays for what
fills its matrices up. The limit is the entropy of a set of k of m places, log₂ C(m, k) bits, and the values. In the same run
the exact files are read again and must give the same model, bit for bit. Without --quick (two layers) it writes
benchmarks/results/files.json.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from stability import Mask, SparseDelta, machine
from stability.masks import fingerprint
from stability.shira import export_shira, import_shira

SPARSITIES = (0.005, 0.05)
ADAPTER = "adapter_model.safetensors"


def model(layers: int) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=layers, hidden_size=384, num_attention_heads=12, intermediate_size=1536, vocab_size=30522)
    return BertModel(config).eval()


def linear(module: nn.Module) -> list[str]:
    """The encoder's linear layers."""
    return [name for name, part in module.named_modules() if name.startswith("encoder.") and isinstance(part, nn.Linear)]


def random_delta(base: dict[str, Tensor], matrices: list[str], p: float) -> SparseDelta:
    """New values at ⌊pm⌋ places drawn from all matrices together."""
    draw = torch.Generator().manual_seed(1)
    of_matrices = {name: tuple(base[name].shape) for name in matrices}
    m = sum(map(math.prod, of_matrices.values()))
    places = torch.randperm(m, generator=draw)[: int(p * m)].sort().values
    mask = Mask({name: tuple(t.shape) for name, t in base.items()}, Mask.at(of_matrices, places).indices)
    return SparseDelta.between(base, mask.place(base, torch.randn(mask.count, generator=draw)), mask)


def written(delta: SparseDelta, base: dict[str, Tensor], file: Path) -> int:
    """Size of the exact file, after reading it again."""
    delta.save(file)
    assert fingerprint(SparseDelta.load(file).apply(base)) == fingerprint(delta.apply(base)), "not the same bits"
    return file.stat().st_size


def by_peft(layers: int, config: peft.PeftConfig, folder: Path) -> tuple[int, int]:
    """The number of entries that peft trains, and the size of the file that it writes for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft against transformers; the file is what is measured
        adapted = peft.get_peft_model(model(layers), config)
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        for parameter in trained:
            nn.init.normal_(parameter)
        adapted.save_pretrained(str(folder))
    return sum(parameter.numel() for parameter in trained), (folder / ADAPTER).stat().st_size


def sizes(layers: int, p: float, folder: Path) -> dict[str, tuple[int, int]]:
    """Entries and bytes of each layout."""
    module = model(layers)
    names = linear(module)
    everything = {name: tensor.detach() for name, tensor in module.named_parameters()}
    base = {f"{name}.weight": everything[f"{name}.weight"] for name in names}
    delta = random_delta(base, list(base), p)
    k, m = delta.mask.count, delta.mask.total
    found = {"SparseDelta, exact": (k, written(delta, base, folder / "exact"))}
    delta.save(folder / "rounded", dtype=torch.bfloat16)
    found["SparseDelta, bfloat16"] = (k, (folder / "rounded").stat().st_size)
    whole = random_delta(everything, list(base), p)
    found["SparseDelta, exact, θ⁰ the whole model"] = (k, written(whole, everything, folder / "whole"))

    targets = "|".join(map(re.escape, names))
    r = max(1, round(p * m / sum(sum(tensor.shape) for tensor in base.values())))
    found[f"peft SHiRA, r = {r}"] = by_peft(layers, peft.ShiraConfig(r=r, target_modules=targets, random_seed=1), folder / "shira")
    same = import_shira(folder / "shira", base)
    found["SparseDelta, exact, of the same entries"] = (same.mask.count, written(same, base, folder / "same"))
    export_shira(delta, base, module, folder / "exported")
    found["SHiRA, exported"] = (k, (folder / "exported" / ADAPTER).stat().st_size)
    found["peft Supertuning, flat indices"] = by_peft(
        layers, peft.SupertuningConfig(sparsity=1 - p, target_modules=targets), folder / "supertuning"
    )
    save_file(delta.apply(base), folder / "dense")
    found["dense tensors"] = (k, (folder / "dense").stat().st_size)
    entropy = (math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1)) / math.log(2) / 8
    for values, width in (("float32", 4), ("bfloat16", 2)):
        found[f"limit, {values} values"] = (k, math.ceil(entropy) + width * k)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two layers; what is recorded is left as it is")
    parser.add_argument("--json", action="store_true", help="print the result as JSON only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    layers = 2 if options.quick else 6
    module = model(layers)
    rows: dict[str, dict[str, Any]] = {}
    for p in SPARSITIES:
        with tempfile.TemporaryDirectory() as folder:
            found = sizes(layers, p, Path(folder))
        rows[f"p = {p}"] = {layout: {"entries": k, "bytes": n, "bytes an entry": n / k} for layout, (k, n) in found.items()}
    result = {
        "model": f"BERT, {layers} layers of width 384, {sum(t.numel() for t in module.parameters())} parameters",
        "matrices": len(linear(module)),
        "m": sum(module.get_submodule(name).weight.numel() for name in linear(module)),
        **rows,
        "machine": {**machine.report(), "peft": peft.__version__, "threads": options.threads},
    }
    path = Path(__file__).parent / "results" / "files.json"
    if not options.quick:
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
        return
    for density, layouts in rows.items():
        print(density)
        for layout, row in layouts.items():
            print(f"{layout:>42}  {row['bytes an entry']:8.2f} bytes an entry  ({row['entries']} entries, {row['bytes']} bytes)")
    if not options.quick:
        print(f"written to {path}")


if __name__ == "__main__":
    main()
