"""The whole of validate, on a tiny model with an engine in PyTorch: right ones pass, wrong ones exit 1, mistakes 2."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from tests.support import torch_engine
from tests.support.tiny_bundle import TASK, picture, tiny_bundle
from tests.support.tiny_llava import QUESTIONS, tiny_adapter
from toprl_export.api import load
from toprl_export.bundle import load_bundle, write_manifest
from toprl_export.cli.main import main
from toprl_export.errors import UserError
from toprl_export.models.reference import ReferenceRunner
from toprl_export.pruning.flops import decoder_flops
from toprl_export.validation import bench, costs, runner
from toprl_export.validation.bench import ValidationOptions
from toprl_export.validation.examples import PICTURES
from toprl_export.validation.gates import GateLimits
from toprl_export.validation.report import read_report, write_report
from toprl_export.validation.runner import validate
from toprl_export.validation.stock import StockSession

QUICK = ["--limit", "4", "--warmup", "0", "--iterations", "2", "--threads", "1"]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measured in fewer rounds."""
    monkeypatch.setattr(runner, "THROUGHPUT_ROUNDS", 1)
    monkeypatch.setattr(costs, "GENERATED_TOKENS", 3)
    return tiny_bundle(tmp_path, monkeypatch)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine exists in this process only, so a fresh one could not open it."""
    monkeypatch.setattr(runner, "peak_memory", lambda directory, kind, counts, *_: 1000 + len(counts) + len(kind))


@pytest.fixture
def break_engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[torch_engine.Fault], None]:
    return lambda fault: monkeypatch.setattr(torch_engine.TorchEngine, "fault", fault)


def report_of(bundle: Path):
    return json.loads((bundle.with_name(f"{TASK}-report") / "report.json").read_text())


FEW_QUESTIONS = ("--min-questions", "1", "--min-retention", "0.4")
"""All four right shows with 95% confidence that half are, and no more."""


@pytest.mark.usefixtures("no_memory")
def test_a_right_engine_passes(bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["validate", str(bundle), *QUICK, *FEW_QUESTIONS]) == 0
    payload = report_of(bundle)
    assert payload["verdict"] == "passed"
    assert payload["seed"] == 0
    assert [budget["budget_kept"] for budget in payload["budgets"]] == [12, 6]
    for budget in payload["budgets"]:
        assert budget["accuracy"]["reference"]["value"] == 1.0
        assert budget["accuracy"]["engine"] == budget["accuracy"]["pruned_reference"]
        assert budget["retention"] == budget["accuracy"]["engine"]["value"] == 1.0
        assert budget["parity"]["greedy_agreement"] == 1.0
        assert budget["parity"]["kept_overlap_per_stage"] == [1.0, 1.0]
        assert budget["parity"]["logit_error_free"] < 1e-4
        assert [point["batch"] for point in budget["throughput"]] == [1, 2, 4]
        times = budget["latency_ms"]
        ratio = times["reference"]["prefill"] / times["engine"]["prefill"]
        assert budget["speedup"]["prefill_vs_reference"] == pytest.approx(ratio)
        flops = budget["flops"]
        assert flops["graph_unpruned"] > flops["graph"]
        share = budget["speedup"]["prefill_vs_engine_unpruned"] / (flops["graph_unpruned"] / flops["graph"])
        assert budget["speedup"]["realised_share"] == pytest.approx(share)
    printed = capsys.readouterr().out
    assert "12/25" in printed and "6/25" in printed
    assert str(bundle.with_name(f"{TASK}-report") / "report.html") in printed


RETENTIONS = {("retention (lower end)", 12), ("retention (lower end)", 6)}


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("fault", "failed"),
    [
        ("selection", {("kept overlap", 12), ("kept overlap", 6), *RETENTIONS}),
        (
            "logits",
            {
                ("logit error (forced selection)", 12),
                ("logit error (forced selection)", 6),
                ("logit error, unpruned against stock model", None),
            },
        ),
        ("decode", {("equal tokens, unpruned against stock model", None), *RETENTIONS}),
    ],
)
def test_a_wrong_engine_fails(bundle: Path, break_engine, fault: torch_engine.Fault, failed: set):
    break_engine(fault)
    assert main(["validate", str(bundle), *QUICK, *FEW_QUESTIONS]) == 1
    payload = report_of(bundle)
    assert payload["verdict"] == "failed"
    if fault == "decode":
        assert all(budget["parity"]["greedy_agreement"] < 1 for budget in payload["budgets"])
    assert {(gate["name"], gate["budget_kept"]) for gate in payload["gates"] if not gate["passed"]} == failed
    junit = ElementTree.parse(bundle.with_name(f"{TASK}-report") / "junit.xml").getroot()
    assert junit.attrib["failures"] == str(len(failed))
    assert "failed" in (bundle.with_name(f"{TASK}-report") / "report.html").read_text()


@pytest.fixture
def baseline_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.setattr(runner, "THROUGHPUT_ROUNDS", 1)
    monkeypatch.setattr(costs, "GENERATED_TOKENS", 3)
    return lambda name: tiny_bundle(tmp_path, monkeypatch, name)


QUICK_OPTIONS = ValidationOptions(limit=2, warmup=0, iterations=1, threads=1)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("name", ["fastv-p", "visionzip"])
def test_a_baselines_bundle_is_held_against_its_scorer_in_pytorch(baseline_bundle, break_engine, name: str):
    bundle = baseline_bundle(name)
    report = validate(bundle, options=QUICK_OPTIONS)
    assert (report.task, report.subject.method, report.subject.agent_fingerprint) == (TASK, name, None)
    plan, shape = load_bundle(bundle).manifest.plan, tiny_adapter().shape
    for budget in report.budgets:
        assert min(budget.parity.kept_overlap_per_stage) == 1.0
        assert budget.parity.logit_error_forced < 1e-4 and budget.parity.greedy_agreement == 1.0
        assert budget.accuracy.engine == budget.accuracy.pruned_reference
        tokens = plan.tokens_per_layer(plan.schedule(budget.budget_kept))
        assert budget.flops.formula == decoder_flops(tokens, shape.hidden, shape.intermediate)
    assert read_report(bundle.with_name(f"{TASK}-report") / "report.json") == report
    page = (bundle.with_name(f"{TASK}-report") / "report.html").read_text()
    assert f"{name} baseline" in page and "none, a baseline" in page
    assert [stamp.task for stamp in load_bundle(bundle).manifest.validations] == [TASK]
    break_engine("selection")
    wrong = validate(bundle, TASK, options=QUICK_OPTIONS)
    assert all(max(budget.parity.kept_overlap_per_stage) < 0.95 for budget in wrong.budgets)


def _images(pictures: dict[str, np.ndarray]) -> int:
    return len(pictures["pixel_values"])


def counting(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, count: Callable[..., object]) -> list:
    """Every call of a method from now on, as ``count`` sees its arguments."""
    calls, original = [], getattr(owner, method)

    def counted(self, *arguments):
        calls.append(count(*arguments))
        return original(self, *arguments)

    monkeypatch.setattr(owner, method, counted)
    return calls


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(("name", "looks"), [("fastv-p", 0), ("visionzip", 4)])
def test_images_are_encoded_once_and_the_unpruned_graph_counted_once(
    baseline_bundle, monkeypatch: pytest.MonkeyPatch, name: str, looks: int
):
    """Whatever the number of budgets, and for answers and parity together; once more beside the stock model."""
    bundle = baseline_bundle(name)
    engine = counting(monkeypatch, torch_engine.TorchSession, "encode", _images)
    stock = counting(monkeypatch, StockSession, "encode", _images)
    reference = counting(monkeypatch, ReferenceRunner, "encode_image", len)
    saliency = counting(monkeypatch, ReferenceRunner, "saliency", len)
    flops = counting(monkeypatch, torch_engine.TorchEngine, "graph_flops", lambda *arguments: arguments[-1])
    monkeypatch.setattr(runner, "_time", lambda opened, options: untimed(opened))
    report = validate(bundle, options=replace(QUICK_OPTIONS, limit=4))
    assert len(report.budgets) == 2
    assert (sum(engine), sum(stock), sum(reference), sum(saliency)) == (
        4 + 4 + PICTURES,
        4,
        0,
        looks,
    )  # pictures ask again
    assert flops.count(None) == 1 and len(flops) == 3


def untimed(opened: bench.Bench) -> tuple[dict, dict]:
    timings = costs.RoundTimings(np.ones((1, 4)))
    names = opened.timed_sessions()
    return dict.fromkeys(names, timings), dict.fromkeys(names, ())


@pytest.mark.usefixtures("no_memory")
def test_a_question_without_room_for_its_answer_is_refused_as_run_refuses_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    manifest = load_bundle(bundle).manifest
    tokens = tiny_adapter().frontend.tokens([QUESTIONS[0]]).input_ids.shape[1]
    for length, message in (
        (tokens + 15, "shorten it or ask for fewer new tokens"),
        (40, "leave no room for a prompt"),
    ):
        model = replace(manifest.model, max_length=length)
        write_manifest(bundle, replace(manifest, model=model))
        assert main(["validate", str(bundle), *QUICK]) == 2
        told = capsys.readouterr().err
        with pytest.raises(UserError) as refused:
            load(bundle).generate(picture(0), QUESTIONS[0])
        assert message in told and str(refused.value) in told


@pytest.mark.usefixtures("no_memory")
def test_the_bundle_is_stamped_and_revalidated(bundle: Path, break_engine):
    report = validate(bundle, options=ValidationOptions(limit=2, warmup=0, iterations=1, threads=1))
    path = bundle.with_name(f"{TASK}-report") / "report.json"
    assert read_report(path) == report
    (first,) = load_bundle(bundle).manifest.validations
    assert (first.task, first.verdict) == (TASK, report.verdict)
    break_engine("logits")
    again = validate(bundle, options=ValidationOptions(limit=2, warmup=0, iterations=1, threads=1))
    (second,) = load_bundle(bundle).manifest.validations
    assert second.verdict == "failed"
    assert second.report_sha256 != first.report_sha256
    assert again.subject == report.subject  # the stamp is no part of what was measured


@pytest.fixture
def tf32_in_convolutions() -> Iterator[None]:
    """As PyTorch has it by itself."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, True
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("no_memory", "tf32_in_convolutions")
def test_while_it_measures_pytorch_computes_fp32_in_fp32(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    measure, seen = runner._measure, []

    def measured(*arguments):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return measure(*arguments)

    monkeypatch.setattr(runner, "_measure", measured)
    validate(bundle, options=QUICK_OPTIONS)
    assert seen == [(False, False)] and torch.backends.cudnn.allow_tf32


def test_the_memory_of_processes_that_use_a_gpu_is_not_measured():
    """Each would load everything a second time beside what is on the GPU."""
    assert runner._memory(SimpleNamespace(), ValidationOptions(device="cuda")) == {}


def test_too_little_device_memory_is_one_line(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13 GiB\nmore")

    monkeypatch.setattr(bench, "load_model", fails)
    assert main(["validate", str(bundle), *QUICK]) == 2
    printed = capsys.readouterr().err
    assert "out of GPU memory" in printed and len(printed.splitlines()) == 1


@pytest.mark.usefixtures("no_memory")
def test_json_output_is_the_report(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["validate", str(bundle), *QUICK, "--json", "--report-dir", str(tmp_path / "r")])
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "r" / "report.json").read_text())


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "mini-exit"], "unknown task"),
        (["--min-retention", "7=0.9"], "names budget 7"),
        (["--min-retention", "high"], "--min-retention: 'high' is not a limit"),
        (["--min-speedup", "decode:2"], "unknown speedup 'decode'"),
        (["--max-logit-error", "0"], "'0' is not a limit"),
        (["--iterations", "0"], "too small"),
        (["--warmup", "-1"], "--warmup"),
    ],
)
def test_mistakes_are_one_line(bundle: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["validate", str(bundle), *QUICK, *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not bundle.with_name(f"{TASK}-report").exists()


def test_a_report_directory_that_holds_something_else_is_left_alone(bundle: Path, tmp_path: Path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    assert main(["validate", str(bundle), *QUICK, "--report-dir", str(tmp_path / "taken")]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "files",
    [
        {"report.json": '{"format": "toprl-export/report", "version": 1}', "thesis.txt": "mine"},
        {"report.json": '{"format": "of another program", "version": 1}'},
        {"report.json": "mine"},
    ],
)
def test_a_foreign_report_is_left_alone(bundle: Path, tmp_path: Path, files: dict[str, str], capsys):
    (tmp_path / "taken").mkdir()
    for name, text in files.items():
        (tmp_path / "taken" / name).write_text(text)
    assert main(["validate", str(bundle), *QUICK, "--report-dir", str(tmp_path / "taken")]) == 2
    printed = capsys.readouterr().err
    assert "so it is left alone" in printed and len(printed.splitlines()) == 1
    assert {path.name: path.read_text() for path in (tmp_path / "taken").iterdir()} == files


def test_another_model_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    other = tiny_adapter(seed=9)
    monkeypatch.setattr(bench, "load_model", lambda *_, **__: other)
    assert main(["validate", str(bundle), *QUICK]) == 2
    assert "other weights" in capsys.readouterr().err


@pytest.mark.usefixtures("no_memory")
def test_an_interrupted_validation_leaves_the_earlier_report(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    main(["validate", str(bundle), *QUICK])
    before = report_of(bundle)

    def interrupt(session: object, request: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch_engine.TorchSession, "prefill", interrupt)
    assert main(["validate", str(bundle), *QUICK]) == 130
    assert report_of(bundle) == before
    assert sorted(path.name for path in bundle.parent.iterdir()) == [TASK, f"{TASK}-report"]


@pytest.mark.usefixtures("no_memory")
def test_a_bundle_that_is_replaced_meanwhile_is_not_stamped(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    assembled = runner.assemble

    def replace_it(*arguments, **settings):
        manifest = load_bundle(bundle).manifest
        write_manifest(bundle, replace(manifest, build_command="another build"))
        return assembled(*arguments, **settings)

    monkeypatch.setattr(runner, "assemble", replace_it)
    with pytest.raises(UserError, match="was replaced while it was validated"):
        validate(bundle, options=QUICK_OPTIONS)
    assert load_bundle(bundle).manifest.validations == ()


@pytest.mark.usefixtures("no_memory")
def test_against_an_earlier_report(bundle: Path, break_engine, capsys: pytest.CaptureFixture[str]):
    limits, options = GateLimits(min_questions=1), replace(QUICK_OPTIONS, limit=12)
    first = validate(bundle, options=options, limits=limits)
    earlier = bundle.with_name("earlier.json")
    write_report(earlier, first)
    same = validate(bundle, options=options, limits=limits, against=earlier)
    compared = [gate for gate in same.gates if "earlier report" in gate.name]
    assert {gate.budget_kept for gate in compared} == {None, 12, 6}
    assert all(gate.passed for gate in compared if "speedup" not in gate.name)  # times of a test prove nothing
    assert "the same questions" in same.notes[0]
    break_engine("decode")
    worse = validate(bundle, options=options, limits=limits, against=earlier)
    page = bundle.with_name(f"{TASK}-report").joinpath("report.html").read_text()
    assert page.count('src="data:image/png;base64,') == PICTURES
    (wrong, *_) = worse.budgets[-1].wrong_answers
    assert wrong.engine != wrong.expected
    assert wrong.question in page
    assert {gate.budget_kept for gate in worse.failed_gates if gate.name.startswith("accuracy against")} == {12, 6}


@pytest.mark.usefixtures("no_memory")
def test_an_earlier_report_of_something_else_is_refused_before_measuring(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    earlier = bundle.with_name("earlier.json")
    first = validate(bundle, options=QUICK_OPTIONS)
    write_report(earlier, replace(first, task="another-task"))
    monkeypatch.setattr(runner, "_measure", lambda *_: pytest.fail("it measured"))
    with pytest.raises(UserError, match="the earlier report is of another-task"):
        validate(bundle, options=QUICK_OPTIONS, against=earlier)
