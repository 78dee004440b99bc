"""Bundles: what is written is read back, and whatever is not as it was built is refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_engine import END_ID, VISUAL_TOKENS, made_up_bundle, made_up_manifest, stamp
from toprl_export.bundle import (
    AgentEntry,
    EngineEntry,
    FileEntry,
    Manifest,
    ModelEntry,
    ValidationStamp,
    file_entries,
    load_bundle,
    stamp_validation,
    write_manifest,
)
from toprl_export.errors import UserError
from toprl_export.manifest import check_relative, read_manifest
from toprl_export.models.shape import DecoderShape
from toprl_export.pruning.plan import make_plan

FAILED = ValidationStamp("mini-exist", "d" * 64, "failed", 500, ("retention (lower end) at 8 kept >= 0.9",))
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
plain_paths = st.lists(st.from_regex(r"[a-z0-9_-]{1,8}", fullmatch=True), min_size=1, max_size=3).map("/".join)
sizes = st.integers(1, 10**12)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | names,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    layers, visual = draw(st.integers(4, 40)), draw(st.integers(64, 3000))
    budgets = draw(st.lists(st.integers(visual // 2, visual), min_size=1, max_size=3, unique=True))
    tasks = draw(st.lists(plain_paths, max_size=3, unique=True))
    return Manifest(
        toprl_export=draw(names),
        model=ModelEntry(
            id=draw(names),
            revision=draw(st.none() | names),
            fingerprint=draw(names),
            family=draw(names),
            frontend={"visual_tokens": visual, "image_height": draw(sizes), "image_width": draw(sizes)},
            max_length=draw(sizes),
            end_tokens=tuple(draw(st.lists(st.integers(0, 10**6), max_size=3))),
            shape=DecoderShape(layers, *(draw(sizes) for _ in range(6))),
        ),
        agents=tuple(AgentEntry(task, draw(names), draw(names), index) for index, task in enumerate(tasks)),
        baseline=None if tasks else draw(names),
        plan=make_plan(visual, layers, (0, layers // 2), "actor", budgets),
        engine=EngineEntry(
            draw(names),
            draw(names),
            23,
            draw(st.dictionaries(names, names, max_size=3)),
            draw(st.dictionaries(names, json_values, max_size=2)),
        ),
        files=tuple(
            FileEntry(path, draw(names), draw(sizes), draw(names))
            for path in draw(st.lists(plain_paths, max_size=4, unique=True))
        ),
        build_command=draw(st.text(st.characters(codec="utf-8"))),
        input_digest=draw(names),
        validations=draw(st.sampled_from([(), (FAILED,)])),
    )


@given(manifests())
def test_manifest_round_trip(manifest: Manifest):
    with TemporaryDirectory() as directory:
        write_manifest(Path(directory), manifest)
        assert read_manifest(Path(directory, "manifest.json")) == manifest


def test_manifest_states_how_budgets_and_agents_relate():
    written = made_up_manifest().to_json()
    assert (written["format"], written["version"], written["baseline"]) == ("toprl-export/bundle", 7, None)
    assert written["plan"]["visual_tokens"] == written["model"]["frontend"]["visual_tokens"] == VISUAL_TOKENS
    assert [schedule["budget_kept"] for schedule in written["plan"]["schedules"]] == [4, 8]
    assert all(len(schedule["keep_counts"]) == 2 for schedule in written["plan"]["schedules"])
    assert [(agent["task"], agent["index"]) for agent in written["agents"]] == [("mini-exist", 0), ("mini-count", 1)]


def test_a_bundle_loads_and_finds_its_files(tmp_path: Path):
    made_up_bundle(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.path("prefill") == tmp_path / "bundle" / "prefill.onnx"
    assert (bundle.agent().index, bundle.agent("mini-count").index) == (0, 1)
    assert bundle.manifest.model.end_tokens == (END_ID,)
    with pytest.raises(UserError, match="lists 0 files of the role 'plugin'"):
        bundle.path("plugin")


def test_keep_counts_of_budgets(tmp_path: Path):
    bundle = made_up_bundle(tmp_path / "bundle")
    plan = bundle.manifest.plan
    assert bundle.keep_counts(4) == plan.schedule(4).keep_counts
    assert bundle.keep_counts() == bundle.keep_counts(8) == plan.schedule(8).keep_counts
    assert bundle.keep_counts(VISUAL_TOKENS) == (VISUAL_TOKENS, VISUAL_TOKENS)
    for unknown in (0, 5, VISUAL_TOKENS + 1, -4):
        with pytest.raises(UserError, match="known: 8, 4, and 16 for no pruning"):
            bundle.keep_counts(unknown)


def test_the_default_budget_prunes_even_if_the_bundle_also_has_n(tmp_path: Path):
    bundle = made_up_bundle(tmp_path / "bundle")
    both = replace(bundle.manifest, plan=make_plan(VISUAL_TOKENS, 4, (0, 2), "actor", (VISUAL_TOKENS, 8)))
    only = replace(bundle.manifest, plan=make_plan(VISUAL_TOKENS, 4, (0, 2), "actor", (VISUAL_TOKENS,)))
    assert replace(bundle, manifest=both).keep_counts() == both.plan.schedule(8).keep_counts
    assert replace(bundle, manifest=only).keep_counts() == (VISUAL_TOKENS, VISUAL_TOKENS)


def test_unknown_task_lists_the_known(tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown task in .* 'mini-exits'; did you mean 'mini-exist'"):
        made_up_bundle(tmp_path / "bundle").agent("mini-exits")


def test_a_baseline_serves_every_task(tmp_path: Path):
    bundle = made_up_bundle(tmp_path / "bundle", "fastv-p")
    assert load_bundle(tmp_path / "bundle").manifest.baseline == "fastv-p"
    assert bundle.manifest.tasks == ()
    assert (bundle.task(), bundle.task("mini-read"), bundle.agent_index("mini-read")) == ("mini-exist", "mini-read", 0)
    with pytest.raises(UserError, match="holds no agent, because it was built from the baseline fastv-p"):
        bundle.agent("mini-exist")


def test_agents_serve_their_own_tasks(tmp_path: Path):
    bundle = made_up_bundle(tmp_path / "bundle")
    assert (bundle.task(), bundle.task("mini-count")) == ("mini-exist", "mini-count")
    assert (bundle.agent_index(), bundle.agent_index("mini-count")) == (0, 1)
    for ask in (bundle.task, bundle.agent_index):
        with pytest.raises(UserError, match="known: mini-exist, mini-count"):
            ask("mini-read")


def refused(directory: Path, expected: str, names: str | None = None) -> None:
    with pytest.raises(UserError) as caught:
        load_bundle(directory)
    message = str(caught.value)
    assert expected in message and "\n" not in message
    assert (names or str(directory)) in message


@pytest.mark.parametrize(
    "name", ["vision.onnx", "weights.bin", "processor/tokenizer.json", "agents/mini-exist/agent.json"]
)
def test_a_changed_byte_anywhere(tmp_path: Path, name: str):
    made_up_bundle(tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(tmp_path / "bundle", "was changed (its SHA-256 is not", str(path))
    path.write_bytes(content + b"x")
    refused(tmp_path / "bundle", "it was changed; restore it or build the bundle again", str(path))


def test_without_verification_size_and_place_are_still_checked(tmp_path: Path):
    made_up_bundle(tmp_path / "bundle")
    weights = tmp_path / "bundle" / "weights.bin"
    weights.write_bytes(bytes(len(weights.read_bytes())))
    load_bundle(tmp_path / "bundle", verify=False)
    weights.unlink()
    with pytest.raises(UserError, match=r"weights\.bin is listed in the manifest but missing"):
        load_bundle(tmp_path / "bundle", verify=False)


def test_missing_files_and_directories(tmp_path: Path):
    made_up_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "decode.onnx").unlink()
    refused(tmp_path / "bundle", "listed in the manifest but missing: restore it", "decode.onnx")
    (tmp_path / "bundle" / "decode.onnx").mkdir()
    refused(tmp_path / "bundle", "is not a regular file", "decode.onnx")
    (tmp_path / "bundle" / "manifest.json").unlink()
    refused(tmp_path / "bundle", "holds no manifest.json")
    refused(tmp_path / "gone", "is not a directory; expected a bundle")


def rewrite(directory: Path, **changes: Any) -> None:
    """Forge a manifest: change fields and make its own digest fit again."""
    path = directory / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    del content["content_sha256"]
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    content["content_sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps(content))


def test_forging_with_a_fitting_digest_works_at_all(tmp_path: Path):
    made_up_bundle(tmp_path / "bundle")
    rewrite(tmp_path / "bundle", build_command="other")
    assert load_bundle(tmp_path / "bundle").manifest.build_command == "other"


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "agents/../../secret",
        "/etc/passwd",
        "C:/secret",
        "..\\secret",
        "a//b",
        "./a",
        "a/.",
        "",
        ".",
        "..",
        "a/",
        "x\0y",
    ],
)
def test_paths_that_leave_the_bundle(tmp_path: Path, path: str):
    made_up_bundle(tmp_path / "bundle")
    (tmp_path / "secret").write_text("s")
    entry = {"path": path, "sha256": hashlib.sha256(b"s").hexdigest(), "size": 1, "role": "vision"}
    rewrite(tmp_path / "bundle", files=[entry])
    refused(tmp_path / "bundle", "leaves the bundle: do not use this bundle", repr(path))


@pytest.mark.parametrize("task", ["..", "../../secret", "/etc", "..\\secret", "", "."])
def test_tasks_whose_agent_would_leave_the_bundle(tmp_path: Path, task: str):
    made_up_bundle(tmp_path / "bundle")
    rewrite(tmp_path / "bundle", agents=[{"task": task, "fingerprint": "a", "method": "toprl", "index": 0}])
    refused(tmp_path / "bundle", "leaves the bundle: do not use this bundle", repr(f"agents/{task}"))


def test_an_agents_files_must_be_listed(tmp_path: Path):
    bundle = made_up_bundle(tmp_path / "bundle")
    directory = bundle.dir / "agents" / "mini-exist"
    (directory / "actor.safetensors").write_bytes(b"smuggled")
    with pytest.raises(UserError, match=r"does not list agents/mini-exist/actor\.safetensors"):
        bundle.agent_dir("mini-exist")
    added = file_entries(bundle.dir, [("agent", "agents/mini-exist/actor.safetensors")])
    whole = replace(bundle, manifest=replace(bundle.manifest, files=bundle.manifest.files + added))
    assert whole.agent_dir("mini-exist") == directory


@given(plain_paths)
def test_plain_paths_are_fine(path: str):
    check_relative(path)


def test_files_may_be_links_to_blobs_as_in_a_hub_cache(tmp_path: Path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    made_up_bundle(snapshot)
    blobs.mkdir()
    for index, file in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        blob = blobs / str(index)
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, file.parent))
    load_bundle(snapshot)
    load_bundle(snapshot, verify=False)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["weights.bin", "agents/mini-exist/agent.json"])
def test_a_link_to_another_file_is_refused(tmp_path: Path, name: str, verify: bool):
    made_up_bundle(tmp_path / "bundle")
    file = tmp_path / "bundle" / name
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    (tmp_path / "outside").write_bytes(content)
    file.unlink()
    file.symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="is a link that leaves the bundle, to another file than the manifest lists"):
        load_bundle(tmp_path / "bundle", verify=verify)


@pytest.mark.parametrize("name", ["manifest.json", "weights.bin", "processor/tokenizer.json"])
def test_pipes_devices_and_link_loops_are_refused_at_once(tmp_path: Path, name: str):
    made_up_bundle(tmp_path / "bundle")
    file = tmp_path / "bundle" / name
    file.unlink()
    os.mkfifo(file)
    refused(tmp_path / "bundle", "is not a regular file", str(file))
    file.unlink()
    file.symlink_to("/dev/zero")
    refused(tmp_path / "bundle", "is not a regular file", str(file))
    file.unlink()
    file.symlink_to(file.name)
    refused(tmp_path / "bundle", "manifest", str(file))


def test_a_bundle_moved_aside_by_a_killed_build_is_found(tmp_path: Path):
    made_up_bundle(tmp_path / "bundle")
    (tmp_path / "bundle").rename(tmp_path / ".bundle.previous")
    load_bundle(tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["bundle"]


def test_links_that_stay_are_fine(tmp_path: Path):
    made_up_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "weights.bin").rename(tmp_path / "bundle" / "data")
    (tmp_path / "bundle" / "weights.bin").symlink_to("data")
    (tmp_path / "link").symlink_to("bundle")
    load_bundle(tmp_path / "link")


def test_manifests_of_another_version_format_or_content(tmp_path: Path):
    directory = tmp_path / "bundle"
    made_up_bundle(directory)
    original = (directory / "manifest.json").read_text()
    for version in (5, 8):
        rewrite(directory, version=version)
        refused(directory, f"has version {version} of toprl-export/bundle, but this release reads version 7")
    rewrite(directory, version=2, format="toprl-export/agent")
    refused(directory, "has format 'toprl-export/agent', expected 'toprl-export/bundle'")
    (directory / "manifest.json").write_text(original.replace('"fp32"', '"fp16"'))
    refused(directory, "was changed after it was written: restore it or build the bundle again")
    (directory / "manifest.json").write_text(original[:-20])
    refused(directory, "is not valid JSON")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"agents": []}, "0 agents and the baseline None are listed, expected agents or a baseline"),
        ({"baseline": "fastv"}, "2 agents and the baseline 'fastv' are listed, expected agents or a baseline"),
        ({"baseline": 3}, "baseline is 3, expected a text"),
        ({"agents": "many"}, "agents is 'many', expected a list"),
        ({"model": None}, "model is None, expected an object"),
        ({"files": [{"path": 3}]}, "files[0].path is 3, expected a text"),
        ({"build_command": 1}, "build_command is 1, expected a text"),
        (
            {"validations": [{"task": "t", "report_sha256": "x", "verdict": "maybe", "questions": 1, "limits": []}]},
            "verdict is 'maybe', expected 'passed'",
        ),
    ],
)
def test_manifests_with_wrong_fields(tmp_path: Path, changes: dict[str, Any], expected: str):
    made_up_bundle(tmp_path / "bundle")
    rewrite(tmp_path / "bundle", **changes)
    with pytest.raises(UserError) as caught:
        load_bundle(tmp_path / "bundle")
    assert expected in str(caught.value)


def test_what_is_listed_twice_or_does_not_belong_together():
    manifest = made_up_manifest()
    file = FileEntry("a", "0" * 64, 1, "vision")
    with pytest.raises(UserError, match="file 'a' is listed twice"):
        replace(manifest, files=(file, file))
    with pytest.raises(UserError, match="task 'mini-exist' is listed twice"):
        replace(manifest, agents=(manifest.agents[0], replace(manifest.agents[0], index=1)))
    with pytest.raises(UserError, match="numbered 0, 1"):
        replace(manifest, agents=manifest.agents[1:])
    with pytest.raises(UserError, match="the plan is for 16 visual tokens and 4 layers, the model has 17 and 4"):
        replace(manifest, model=replace(manifest.model, frontend=manifest.model.frontend | {"visual_tokens": 17}))


def test_files_that_are_not_listed_are_left_alone(tmp_path: Path):
    made_up_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    load_bundle(tmp_path / "bundle")


def test_stamping_a_validation(tmp_path: Path):
    bundle = made_up_bundle(tmp_path / "bundle")
    assert bundle.manifest.validations == ()
    stamp(bundle.dir, "mini-exist", "e" * 64, "passed")
    stamped = load_bundle(bundle.dir).manifest
    assert stamped.validations == (stamped.validations[0],)
    assert (stamped.validations[0].questions, stamped.validations[0].verdict) == (500, "passed")
    assert replace(stamped, validations=()) == bundle.manifest
    with pytest.raises(UserError, match="verdict 'fine' is unknown"):
        stamp(bundle.dir, "mini-exist", "e" * 64, "fine")
    outcome = stamped.validations[0]
    write_manifest(bundle.dir, replace(stamped, build_command="another build"))
    with pytest.raises(UserError, match="was replaced while it was validated, so it is not marked passed"):
        stamp_validation(bundle.dir, stamped.built_sha256, outcome)
    (bundle.dir / "weights.bin").write_bytes(b"other")
    with pytest.raises(UserError, match=r"weights\.bin has 5 bytes"):
        stamp_validation(bundle.dir, stamped.built_sha256, outcome)


def test_each_task_keeps_its_own_stamp(tmp_path: Path):
    bundle = made_up_bundle(tmp_path / "bundle")
    for task, digest, verdict in (
        ("mini-exist", "a", "failed"),
        ("mini-count", "b", "passed"),
        ("mini-exist", "c", "passed"),
    ):
        stamp(bundle.dir, task, digest * 64, verdict)
    manifest = load_bundle(bundle.dir).manifest
    assert {(stamp.task, stamp.report_sha256[0], stamp.verdict) for stamp in manifest.validations} == {
        ("mini-exist", "c", "passed"),
        ("mini-count", "b", "passed"),
    }
    with pytest.raises(UserError, match="validation of 'mini-count' is listed twice"):
        replace(manifest, validations=manifest.validations[:1] * 2)
