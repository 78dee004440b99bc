"""`manifest.json`: what a bundle was made from, what is in it and how it is asked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from toprl_export.errors import UserError
from toprl_export.fields import Fields
from toprl_export.files import read_json_versioned
from toprl_export.models.shape import DecoderShape
from toprl_export.pruning.plan import PruningPlan
from toprl_export.runtime.preprocess import ImageProcessor
from toprl_export.runtime.prompt import PromptFormat
from toprl_export.tensorrt_options import ATTENTIONS

MANIFEST_FORMAT = "toprl-export/bundle"
MANIFEST_VERSION = 3
VERDICTS = ("passed", "failed")


@dataclass(frozen=True)
class ModelEntry:
    """The reference model: it is not in the bundle, so its weights' fingerprint says which one it was.

    ``max_length`` is the most positions a sequence may have, generated tokens included; ``end_tokens`` are the ids
    that end an answer.
    """

    id: str
    revision: str | None
    fingerprint: str
    visual_tokens: int
    max_length: int
    end_tokens: tuple[int, ...]
    shape: DecoderShape


@dataclass(frozen=True)
class AgentEntry:
    """One task's agent; ``index`` picks it in the prefill graph."""

    task: str
    fingerprint: str
    method: str
    index: int

    def __post_init__(self) -> None:
        check_relative(f"agents/{self.task}")  # its directory


@dataclass(frozen=True)
class GpuEntry:
    """A GPU: its name, its compute capability ("8.9") and the version of its driver."""

    name: str
    sm: str
    driver: str


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What plans depend on that were compiled for certain GPUs; all defaults for an engine without plans.

    Attributes:
        binding: the Python package that compiled them, "tensorrt" or "tensorrt_rtx".
        binding_version: its version.
        gpu: where they were compiled; None where that took no GPU.
        target_sms: compute capabilities that they were compiled for; empty for what the binding does by itself: those
            of ``gpu``, or all that TensorRT for RTX calls portable.
        attention: "plugin" where attention layers call `toprl::FlashAttention`, "native" where they are TensorRT's own.
        version_compatible: later versions of the binding can load them too.
        hardware_compatible: other GPUs from Ampere on can run them too.
        weight_stripped: they lack their weights, which are filled in from the bundle's graphs when they are loaded.
    """

    binding: str | None = None
    binding_version: str | None = None
    gpu: GpuEntry | None = None
    target_sms: tuple[str, ...] = ()
    attention: str | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    weight_stripped: bool = False

    def __post_init__(self) -> None:
        if self.attention not in (None, *ATTENTIONS):
            raise UserError(f"attention {self.attention!r} is unknown, expected {' or '.join(ATTENTIONS)}")


@dataclass(frozen=True)
class EngineEntry(Compiled):
    """What the graphs were built by and for; ``toolchain`` maps distributions to versions.

    ``details`` is a JSON object that only the engine can read.
    """

    name: str
    precision: str
    opset: int
    toolchain: dict[str, str]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """One file: its path below the bundle (with ``/``), SHA-256 in hexadecimal, bytes, and what it is for."""

    path: str
    sha256: str
    size: int
    role: str

    def __post_init__(self) -> None:
        check_relative(self.path)


@dataclass(frozen=True)
class ValidationStamp:
    """The outcome of a task's last validation and the digest of its report."""

    task: str
    report_sha256: str
    verdict: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise UserError(f"validation verdict {self.verdict!r} is unknown, expected {' or '.join(VERDICTS)}")


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle says about itself.

    Every agent serves every budget of ``plan``: agents share its stages, and a budget's keep counts are inputs of the
    one prefill graph. Where a baseline prunes instead, it serves every task.

    Attributes:
        agents: one per task, in the order of their index; none with a baseline.
        baseline: name of the untrained method that prunes; None with agents.
        input_digest: digest of all that the build depended on; equal digests make a rebuild needless.
    """

    toprl_export: str
    model: ModelEntry
    agents: tuple[AgentEntry, ...]
    baseline: str | None
    plan: PruningPlan
    engine: EngineEntry
    files: tuple[FileEntry, ...]
    image_processor: ImageProcessor
    prompt: PromptFormat
    build_command: str
    input_digest: str
    validations: tuple[ValidationStamp, ...] = ()

    def __post_init__(self) -> None:
        if (self.plan.visual_tokens, self.plan.decoder_layers) != (self.model.visual_tokens, self.model.shape.layers):
            raise UserError(
                f"manifest: the plan is for {self.plan.visual_tokens} visual tokens and {self.plan.decoder_layers} "
                f"layers, the model has {self.model.visual_tokens} and {self.model.shape.layers}: build again"
            )
        if [agent.index for agent in self.agents] != list(range(len(self.agents))):
            raise UserError("manifest: agents must be numbered 0, 1, …: build again")
        if bool(self.agents) == (self.baseline is not None):
            raise UserError(
                f"manifest: {len(self.agents)} agents and the baseline {self.baseline!r} are listed, expected "
                "agents or a baseline: build again"
            )
        for what, names in (
            ("task", [agent.task for agent in self.agents]),
            ("file", [file.path for file in self.files]),
            ("validation of", [stamp.task for stamp in self.validations]),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise UserError(f"manifest: {what} {twice[0]!r} is listed twice: build again")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have an agent, in the order of their index; none with a baseline, which serves every task."""
        return tuple(agent.task for agent in self.agents)

    @property
    def budgets_kept(self) -> tuple[int, ...]:
        """The budgets, largest first."""
        return tuple(sorted((schedule.budget_kept for schedule in self.plan.schedules), reverse=True))

    def to_json(self) -> dict[str, Any]:
        """The content of ``manifest.json``, with a digest over itself."""
        content: dict[str, Any] = {"format": MANIFEST_FORMAT, "version": MANIFEST_VERSION, **asdict(self)}
        for name in ("plan", "image_processor", "prompt"):
            content[name] = getattr(self, name).to_json()
        return {**content, "content_sha256": _content_digest(content)}

    @classmethod
    def from_json(cls, source: Path, payload: dict[str, Any]) -> Manifest:
        """The inverse of :meth:`to_json`; ``source`` names the file in messages.

        Raises:
            UserError: a field is missing or wrong, or the content does not match its digest.
        """
        content = {name: value for name, value in payload.items() if name != "content_sha256"}
        if payload.get("content_sha256") != _content_digest(content):
            raise UserError(f"{source} was changed after it was written: restore it or build the bundle again")
        top = Fields(source, payload)
        return cls(
            toprl_export=top.text("toprl_export"),
            model=_model(top.nested("model")),
            agents=tuple(
                AgentEntry(a.text("task"), a.text("fingerprint"), a.text("method"), a.whole("index"))
                for a in top.nested_list("agents")
            ),
            baseline=top.text_or_none("baseline"),
            plan=PruningPlan.from_json(top.nested("plan").payload),
            engine=_engine(top.nested("engine")),
            files=tuple(
                FileEntry(f.text("path"), f.text("sha256"), f.whole("size"), f.text("role"))
                for f in top.nested_list("files")
            ),
            image_processor=ImageProcessor.from_json(top.nested("image_processor")),
            prompt=PromptFormat.from_json(top.nested("prompt")),
            build_command=top.text("build_command"),
            input_digest=top.text("input_digest"),
            validations=tuple(
                ValidationStamp(stamp.text("task"), stamp.text("report_sha256"), stamp.text("verdict"))
                for stamp in top.nested_list("validations")
            ),
        )


def read_manifest(path: Path) -> Manifest:
    """Read a ``manifest.json``.

    Raises:
        UserError: it is missing, of another format or version, changed, or names a path that leaves the bundle.
    """
    return Manifest.from_json(path, read_json_versioned(path, MANIFEST_FORMAT, MANIFEST_VERSION))


def check_relative(path: str) -> None:
    """Refuse a path that is not a plain one below the bundle, on any system.

    Raises:
        UserError: it is absolute, climbs with ``..``, has a drive or backslash, or is not in its shortest form.
    """
    parts = PurePosixPath(path).parts
    plain = bool(parts) and "/".join(parts) == path and not any(sign in path for sign in "\\:\0")
    if not plain or ".." in parts or path.startswith("/"):
        raise UserError(f"the manifest lists {path!r}, which leaves the bundle: do not use this bundle, build it again")


def _model(entry: Fields) -> ModelEntry:
    shape = entry.nested("shape")
    return ModelEntry(
        id=entry.text("id"),
        revision=entry.text_or_none("revision"),
        fingerprint=entry.text("fingerprint"),
        visual_tokens=entry.whole("visual_tokens"),
        max_length=entry.whole("max_length"),
        end_tokens=entry.wholes("end_tokens"),
        shape=DecoderShape(**{field.name: shape.whole(field.name) for field in fields(DecoderShape)}),
    )


def _engine(entry: Fields) -> EngineEntry:
    gpu = None if entry.raw("gpu") is None else entry.nested("gpu")
    return EngineEntry(
        entry.text("name"),
        entry.text("precision"),
        entry.whole("opset"),
        entry.texts("toolchain"),
        entry.nested("details").payload,
        binding=entry.text_or_none("binding"),
        binding_version=entry.text_or_none("binding_version"),
        gpu=None if gpu is None else GpuEntry(gpu.text("name"), gpu.text("sm"), gpu.text("driver")),
        target_sms=entry.text_list("target_sms"),
        attention=entry.text_or_none("attention"),
        version_compatible=entry.flag("version_compatible"),
        hardware_compatible=entry.flag("hardware_compatible"),
        weight_stripped=entry.flag("weight_stripped"),
    )


def _content_digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
