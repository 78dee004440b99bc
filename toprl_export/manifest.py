"""``manifest.json``: what a bundle was built from, what is in it and how it is run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, get_args

from toprl_export.errors import UserError
from toprl_export.fields import fields_to_json, read_fields, read_header
from toprl_export.models.shape import DecoderShape
from toprl_export.pruning.plan import SHARE_UNITS, PruningPlan

Verdict: TypeAlias = Literal["passed", "failed"]
_DIGEST = "content_sha256"
_REMEDY = "build the bundle again"


@dataclass(frozen=True)
class ModelEntry:
    """The reference model: it is not in the bundle, so its weights' fingerprint says which one it was.

    ``family`` and ``frontend`` (its settings) say how pictures and prompts are laid out; ``max_length`` is the maximum
    sequence length, generated tokens included; ``end_tokens`` are the ids that end an answer.
    """

    id: str
    revision: str | None
    fingerprint: str
    family: str
    frontend: dict[str, int | None]
    max_length: int
    end_tokens: tuple[int, ...]
    shape: DecoderShape

    @property
    def visual_tokens(self) -> int:
        """n.

        Raises:
            UserError: it differs from picture to picture.
        """
        return self._fixed("visual_tokens")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pixels that the vision graph takes.

        Raises:
            UserError: they differ from picture to picture.
        """
        return self._fixed("image_height"), self._fixed("image_width")

    @property
    def varies(self) -> bool:
        """Whether pictures differ in their number of visual tokens."""
        return "visual_tokens" not in self.frontend

    def _fixed(self, name: str) -> int:
        found = self.frontend.get(name)
        if found is None:
            raise UserError(
                f"the bundle's model is of the family {self.family}, whose pictures differ in their number of visual "
                "tokens: this release can run it (toprl-export run), but not validate or draw it"
            )
        return found


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
class EngineEntry:
    """What the graphs were built by and for.

    Attributes:
        name: the engine's.
        precision: of the weights.
        opset: of the ONNX graphs.
        toolchain: distributions and their versions.
        details: what only the engine writes and reads, a JSON object.
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
    """The outcome of a task's last validation.

    Attributes:
        task: what was asked.
        report_sha256: digest of ``report.json``.
        verdict: "passed" or "failed".
        questions: how many held-out questions were answered.
        limits: the gates in words, such as "retention at 64 kept >= 0.9".
    """

    task: str
    report_sha256: str
    verdict: Verdict
    questions: int
    limits: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise UserError(
                f"validation verdict {self.verdict!r} is unknown, expected {' or '.join(get_args(Verdict))}"
            )


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

    format: Literal["toprl-export/bundle"] = field(default="toprl-export/bundle", kw_only=True)
    version: Literal[7] = field(default=7, kw_only=True)
    toprl_export: str
    model: ModelEntry
    agents: tuple[AgentEntry, ...]
    baseline: str | None
    plan: PruningPlan
    engine: EngineEntry
    files: tuple[FileEntry, ...]
    build_command: str
    input_digest: str
    validations: tuple[ValidationStamp, ...] = ()

    def __post_init__(self) -> None:
        n = SHARE_UNITS if self.model.varies else self.model.visual_tokens
        if self.plan.shares != self.model.varies or (self.plan.visual_tokens, self.plan.decoder_layers) != (
            n,
            self.model.shape.layers,
        ):
            raise UserError(
                f"manifest: the plan is for {self.plan.visual_tokens} visual tokens and {self.plan.decoder_layers} "
                f"layers, the model has {n} and {self.model.shape.layers}: build again"
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

    @property
    def built_sha256(self) -> str:
        """Digest of the manifest as it was built, whatever has been validated since: it names what is in the bundle."""
        return _content_digest(fields_to_json(replace(self, validations=())))

    def to_json(self) -> dict[str, Any]:
        """The content of ``manifest.json``, with a digest over itself."""
        content = fields_to_json(self)
        return content | {_DIGEST: _content_digest(content)}


def read_manifest(path: Path) -> Manifest:
    """Read a ``manifest.json``.

    Raises:
        UserError: it is missing, of another format or version, changed, or names a path that leaves the bundle.
    """
    content = read_header(Manifest, path)
    if content.pop(_DIGEST, None) != _content_digest(content):
        raise UserError(f"{path} was changed after it was written: restore it or build the bundle again")
    return read_fields(Manifest, content, path, _REMEDY)


def check_relative(path: str) -> None:
    """Refuse a path that is not a plain one below the bundle, on any system.

    Raises:
        UserError: it is absolute, climbs with ``..``, has a drive or backslash, or is not in its shortest form.
    """
    parts = PurePosixPath(path).parts
    plain = bool(parts) and "/".join(parts) == path and not any(sign in path for sign in "\\:\0")
    if not plain or ".." in parts or path.startswith("/"):
        raise UserError(f"the manifest lists {path!r}, which leaves the bundle: do not use this bundle, build it again")


def _content_digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
