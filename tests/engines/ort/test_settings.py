"""Options of the providers that build engines: every dynamic size has a range, and engines lie beside the bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest

from tests.support.onnx_bundle import grouped_bundle, staged_bundle
from toprl_engines.ort.providers import cache_dir, provider_settings
from toprl_export.bundle import Bundle
from toprl_export.errors import UserError

GRAPHS = ("vision", "prefill", "decode", "prefill_unpruned")


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """A bundle whose cache may be written; its files are those of the shared one."""
    source = staged_bundle().bundle
    (tmp_path / "bundle").mkdir()
    for file in source.dir.iterdir():
        (tmp_path / "bundle" / file.name).symlink_to(file)
    return Bundle(tmp_path / "bundle", source.manifest)


def ranges(settings: dict[str, str], prefix: str) -> dict[str, dict[str, list[int]]]:
    """From the options' text: min, opt and max numbers by input."""
    parsed: dict[str, dict[str, list[int]]] = {}
    for kind in ("min", "opt", "max"):
        for part in settings[f"{prefix}_profile_{kind}_shapes"].split(","):
            name, _, sizes = part.partition(":")
            parsed.setdefault(name, {})[kind] = [int(size) for size in sizes.split("x")]
    return parsed


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_for_cpu_and_cuda_nothing_follows_from_the_bundle(bundle, provider):
    assert provider_settings(bundle, provider, "prefill") == {}
    assert not cache_dir(bundle).exists()


@pytest.mark.parametrize(("provider", "prefix"), [("tensorrt", "trt"), ("tensorrt-rtx", "nv")])
@pytest.mark.parametrize("role", GRAPHS)
def test_every_dynamic_input_has_a_range(bundle, provider, prefix, role):
    found = ranges(provider_settings(bundle, provider, role), prefix)
    graph = onnx.load(str(bundle.path(role)), load_external_data=False).graph
    dynamic = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in graph.input
        if any(size.dim_param for size in value.type.tensor_type.shape.dim)
    }
    counts = {"keep_counts"} if role == "prefill" else set()
    assert set(found) == set(dynamic) | counts
    for name, sizes in dynamic.items():
        least, usual, most = (found[name][kind] for kind in ("min", "opt", "max"))
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        fixed = [(size, one) for size, one in zip(sizes, most, strict=True) if size]
        assert all(size == one for size, one in fixed)
    if counts:
        assert found["keep_counts"]["max"] == [25, 25, 25]


def test_decode_covers_all_that_a_prefill_of_any_budget_leaves(bundle):
    found = ranges(provider_settings(bundle, "tensorrt", "decode"), "trt")
    smallest = staged_bundle().bundle.keep_counts(6)
    for layer, kept in enumerate(smallest):
        assert found[f"key_{layer}"]["min"][2] <= kept + 1 and found[f"value_{layer}"]["max"][2] >= 25 + 128
        assert found[f"mask_{layer}"]["max"][1] == found[f"key_{layer}"]["max"][2] + 1


def test_fixed_counts_are_no_input():
    settings = provider_settings(grouped_bundle().bundle, "tensorrt", "prefill")
    assert "keep_counts" not in settings["trt_profile_max_shapes"]


def test_engines_of_each_graph_build_and_release_lie_apart_beside_the_bundle(bundle):
    place = Path(provider_settings(bundle, "tensorrt", "decode")["trt_engine_cache_path"])
    assert place.is_dir() and place.is_relative_to(bundle.dir.with_name("bundle-cache"))
    assert onnxruntime.__version__ in str(place)
    rebuilt = Bundle(bundle.dir, replace(bundle.manifest, input_digest="f" * 64))
    places = {
        provider_settings(*of)["trt_engine_cache_path"]
        for of in ((bundle, "tensorrt", "decode"), (bundle, "tensorrt", "prefill"), (rebuilt, "tensorrt", "decode"))
    }
    assert len(places) == 3


@pytest.mark.parametrize(
    ("precision", "enabled"), [("fp32", None), ("fp16", "trt_fp16_enable"), ("bf16", "trt_bf16_enable")]
)
def test_tensorrt_computes_in_the_precision_of_the_bundle(bundle, precision, enabled):
    engine = replace(bundle.manifest.engine, precision=precision)
    typed = Bundle(bundle.dir, replace(bundle.manifest, engine=engine))
    settings = provider_settings(typed, "tensorrt", "prefill")
    switched = [name for name in settings if name in ("trt_fp16_enable", "trt_bf16_enable")]
    assert switched == ([enabled] if enabled else [])


def test_a_place_that_cannot_be_written_is_one_line(bundle):
    cache_dir(bundle).write_text("in the way")
    with pytest.raises(UserError, match=r"bundle-cache.* cannot be made .*: make the directory of the bundle writable"):
        provider_settings(bundle, "tensorrt", "decode")
