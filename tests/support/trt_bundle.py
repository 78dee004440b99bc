"""Bundles that say they hold TensorRT engines: the ONNX engine's own, with `fake_tensorrt`'s plans in front of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.fake_device import FakeDevice
from tests.support.fake_tensorrt import VERSION, fake_binding, write_plan
from tests.support.onnx_bundle import OnnxBundle
from toprl_engines.trt.compiled import Compiled
from toprl_engines.trt.run.session import TensorRTSession
from toprl_export.bundle import Bundle, file_entries, write_manifest
from toprl_export.engine import SessionOptions

GRAPHS = ("vision", "prefill", "prefill_unpruned", "decode")


@dataclass(frozen=True)
class PlanLimits:
    """What the fake engines are built for."""

    batch: int = 3
    text: int = 40
    new_tokens: int = 300
    cache_dtype: str = "float32"
    other_dtype: str = "float32"
    capturable: bool = True
    binding: str = "tensorrt"


def plans_of(built: OnnxBundle, directory: Path, limits: PlanLimits | None = None) -> Bundle:
    """A bundle in ``directory`` with plans that compute by the graphs of ``built``."""
    limits = limits or PlanLimits()
    source, manifest = built.bundle, built.bundle.manifest
    shutil.copytree(source.dir, directory)
    for role in GRAPHS:
        ranges, values = _ranges(built, role, limits)
        types = {"cache_dtype": limits.cache_dtype, "other_dtype": limits.other_dtype}
        path = directory / f"{role}.plan"
        write_plan(path, directory / f"{role}.onnx", ranges, values, capturable=limits.capturable, **types)
    kept = [(file.role, file.path) for file in manifest.files if file.role not in GRAPHS]
    files = file_entries(directory, [*kept, *((role, f"{role}.plan") for role in GRAPHS)])
    compiled = Compiled(binding=limits.binding, binding_version=VERSION, target_sms=("8.9",), attention="native")
    engine = replace(manifest.engine, name="trt", details=compiled.to_details())
    changed = replace(manifest, files=files, engine=engine)
    write_manifest(directory, changed)
    return Bundle(directory, changed)


def open_plans(bundle: Bundle, device: FakeDevice, unpruned: bool = False) -> TensorRTSession:
    """The session over the fake device."""
    binding = fake_binding(device, Compiled.from_details(bundle.manifest.engine.details).binding)
    return TensorRTSession(bundle, SessionOptions(unpruned=unpruned), binding=binding, device=device)


def _ranges(
    built: OnnxBundle, role: str, limits: PlanLimits
) -> tuple[dict[str, tuple[list[int], list[int]]], dict[str, tuple[list[int], list[int]]]]:
    """Smallest and largest sizes of dynamic inputs, and the same of the values of inputs on the host."""
    manifest = built.bundle.manifest
    shape, n, plan = manifest.model.shape, manifest.model.visual_tokens, manifest.plan
    height, width = manifest.model.image_size

    def rows(*rest: int) -> tuple[list[int], list[int]]:
        return [1, *rest], [limits.batch, *rest]

    if role == "vision":
        return {"pixel_values": rows(3, height, width)}, {}
    if role == "decode":
        longest = n + limits.text + limits.new_tokens
        caches = ([1, shape.kv_heads, 1, shape.head_dim], [limits.batch, shape.kv_heads, longest, shape.head_dim])
        masks = {f"mask_{group}": ([1, 2], [limits.batch, longest + 1]) for group in range(len(plan.groups))}
        names = [f"{kind}_{layer}" for kind in ("key", "value") for layer in range(shape.layers)]
        return {name: caches for name in names} | masks | {"token": rows(1), "position": rows(1)}, {}
    sequence = ([1, n + 1], [limits.batch, n + limits.text])
    ranges = {name: sequence for name in ("input_ids", "attention_mask", "position_ids")}
    ranges |= {"text_index": ([1, 1], [limits.batch, limits.text]), "visual_index": rows(n), "saliency": rows(n)}
    ranges |= {"visual": rows(n, shape.hidden)}
    stages = len(plan.stages)
    return ranges, {"keep_counts": ([2] * stages, [n] * stages)}
