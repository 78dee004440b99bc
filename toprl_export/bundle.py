"""A bundle on disk: a directory of graphs, configuration, processor and agents, and the manifest with their digests."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from toprl_export.errors import UserError
from toprl_export.files import is_directory, sha256_of, write_json_atomic
from toprl_export.manifest import (
    AgentEntry,
    EngineEntry,
    FileEntry,
    Manifest,
    ModelEntry,
    ValidationStamp,
    read_manifest,
)
from toprl_export.models.registry import FRONTENDS
from toprl_export.places import restore_moved_aside, taken
from toprl_export.pruning.plan import SHARE_UNITS, budget_count
from toprl_export.registry import unknown_name
from toprl_export.runtime.frontend import FixedFrontend, Frontend
from toprl_export.runtime.processor import read_processor

__all__ = [
    "MANIFEST_NAME",
    "AgentEntry",
    "Bundle",
    "EngineEntry",
    "FileEntry",
    "Manifest",
    "ModelEntry",
    "ValidationStamp",
    "file_entries",
    "load_bundle",
    "stamp_validation",
    "write_manifest",
]

MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.json"
"""The reference model's own configuration, as Hugging Face writes it."""
PROCESSOR_DIR = "processor"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read."""

    dir: Path
    manifest: Manifest

    def path(self, role: str) -> Path:
        """The one file of a role ("vision", "prefill", "decode", "weights").

        Raises:
            UserError: the manifest lists none or several.
        """
        found = [file.path for file in self.manifest.files if file.role == role]
        if len(found) != 1:
            raise UserError(f"{self.dir} lists {len(found)} files of the role {role!r}, expected one: build it again")
        return self.dir / found[0]

    def frontend(self) -> Frontend:
        """What turns pictures and questions into the engine's inputs.

        Raises:
            UserError: the processor's files cannot be read, or others than the listed ones stand beside them.
        """
        listed = {file.path for file in self.manifest.files if file.role == "processor"}
        place = self.dir / PROCESSOR_DIR
        found = {f"{PROCESSOR_DIR}/{path.name}" for path in place.iterdir()} if place.is_dir() else set()
        if not listed or listed != found:
            name = next(iter(sorted(listed ^ found)), PROCESSOR_DIR)
            raise UserError(f"{self.dir / name} is not what {MANIFEST_NAME} lists of the processor: build it again")
        model = self.manifest.model
        kind = FRONTENDS.get(model.family)
        processor = read_processor(str(place), name=str(self.dir), kind=_processor_kind(place))
        try:
            frontend = kind(processor, **model.frontend)
        except TypeError as error:
            raise UserError(f"{self.dir} has other frontend settings than its family ({error}): build again") from error
        frontend.check(str(self.dir))
        return frontend

    def fixed_frontend(self) -> FixedFrontend:
        """`frontend`, of a model whose pictures all have n visual tokens.

        Raises:
            UserError: they differ in it; see also `frontend`.
        """
        _ = self.manifest.model.visual_tokens  # refuses the others
        frontend = self.frontend()
        assert isinstance(frontend, FixedFrontend)
        return frontend

    def task(self, task: str | None = None) -> str:
        """The task given, else the first agent's, else (with a baseline) the first registered one.

        Raises:
            UserError: the bundle has agents, but none for that task (the message lists those it has).
        """
        if self.manifest.baseline is None:
            return self.agent(task).task
        from toprl_export.tasks.registry import TASKS

        return TASKS.names()[0] if task is None else task

    def agent_index(self, task: str | None = None) -> int:
        """Which agent of the prefill graph scores for a task; 0 with a baseline, which has none.

        Raises:
            UserError: see :meth:`task`.
        """
        return self.agent(task).index if self.manifest.baseline is None else 0

    def agent(self, task: str | None = None) -> AgentEntry:
        """The agent of a task; without one, the first.

        Raises:
            UserError: no agent in the bundle is for that task (the message lists those that are).
        """
        if self.manifest.baseline is not None:
            raise UserError(
                f"{self.dir} holds no agent, because it was built from the baseline {self.manifest.baseline}: "
                "give a bundle that was built from agents"
            )
        if task is None:
            return self.manifest.agents[0]
        for entry in self.manifest.agents:
            if entry.task == task:
                return entry
        raise unknown_name(f"task in {self.dir}", task, self.manifest.tasks)

    def agent_dir(self, task: str) -> Path:
        """Where the bundle keeps a task's agent, to rebuild the PyTorch reference from.

        Raises:
            UserError: no agent in the bundle is for that task, or the manifest does not list its files.
        """
        from toprl_export.agent import ACTOR_FILE, AGENT_FILE

        place = f"agents/{self.agent(task).task}"
        listed = {file.path for file in self.manifest.files}
        for path in (f"{place}/{AGENT_FILE}", f"{place}/{ACTOR_FILE}"):
            if path not in listed:
                raise UserError(f"{self.dir} does not list {path} in its {MANIFEST_NAME}: build it again")
        return self.dir / place

    def keep_counts(self, budget_kept: float | None = None) -> tuple[int, ...]:
        """Tokens kept at every stage of a budget: the largest budget below n by default; n itself prunes nothing.

        Where pictures differ in n, budgets are shares (0.33, and 1.0 for no pruning) and so are the counts, in
        `SHARE_UNITS`; `PruningPlan.row_counts` makes counts of them.

        Raises:
            UserError: the bundle has no such budget (the message lists those it has).
        """
        plan, known = self.manifest.plan, self.manifest.budgets_kept
        if plan.shares and budget_kept is not None:
            budget_kept = SHARE_UNITS if budget_kept == 1.0 else budget_count(budget_kept, None)
        if budget_kept is None:
            budget_kept = next((budget for budget in known if budget < plan.visual_tokens), plan.visual_tokens)
        if budget_kept == plan.visual_tokens:
            return (plan.visual_tokens,) * len(plan.stages)
        if budget_kept not in known:
            listed = ", ".join(map(plan.shown, known))
            raise UserError(
                f"{self.dir} has no budget of {plan.shown(int(budget_kept))} kept tokens; "
                f"known: {listed}, and {plan.shown(plan.visual_tokens)} for no pruning"
            )
        return plan.schedule(int(budget_kept)).keep_counts


def _processor_kind(place: Path) -> str | None:
    """The class of a saved processor, as its own file names it."""
    try:
        found = json.loads((place / "processor_config.json").read_bytes()).get("processor_class")
    except (OSError, ValueError, AttributeError):
        return None  # which its own reader tells
    return found if isinstance(found, str) else None


def file_entries(directory: Path, files: Iterable[tuple[str, str]]) -> tuple[FileEntry, ...]:
    """Entries for ``(role, path relative to directory)``, in the order of their paths."""
    return tuple(
        FileEntry(path, sha256_of(directory / path), (directory / path).stat().st_size, role)
        for role, path in sorted(files, key=lambda item: item[1])
    )


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into ``directory``.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    write_json_atomic(directory / MANIFEST_NAME, manifest.to_json())


def load_bundle(directory: Path, verify: bool = True) -> Bundle:
    """Read a bundle's manifest and check that its files are those it was built with.

    Files that the manifest does not list are never opened. A listed file may be a link, as a hub's cache has them; one
    that leaves the bundle is always verified, for only its digest says that it leads to the bundle's own file.

    Args:
        directory: the bundle.
        verify: compare every file's SHA-256; without it only presence, size and files outside are checked.

    Raises:
        UserError: the directory is no bundle; its manifest is of an unknown version, was changed or lists a path
            that leaves the bundle; or a listed file is missing, no regular file, or was changed.
    """
    restore_moved_aside(directory)
    if not is_directory(directory):
        raise UserError(f"{directory} is not a directory; expected a bundle: give what `toprl-export build` wrote")
    manifest_path = directory / MANIFEST_NAME
    if not os.path.lexists(manifest_path):
        raise UserError(f"{directory} holds no {MANIFEST_NAME}; expected a bundle that `toprl-export build` wrote")
    manifest = read_manifest(manifest_path)
    for file in manifest.files:
        _check_file(directory, file, verify)
    return Bundle(directory, manifest)


def stamp_validation(directory: Path, built_sha256: str, stamp: ValidationStamp) -> Bundle:
    """Record the outcome of a task's validation in the bundle's manifest, in place of its earlier one.

    Args:
        directory: the bundle.
        built_sha256: `Manifest.built_sha256` of the bundle that was measured.
        stamp: the outcome.

    Raises:
        UserError: the bundle does not verify or is another than was measured, or the manifest cannot be written.
    """
    with taken(directory):  # two stamps at once would lose one
        bundle = load_bundle(directory)
        if bundle.manifest.built_sha256 != built_sha256:
            raise UserError(
                f"{directory} was replaced while it was validated, so it is not marked {stamp.verdict}: validate it "
                "again"
            )
        others = tuple(one for one in bundle.manifest.validations if one.task != stamp.task)
        manifest = replace(bundle.manifest, validations=(*others, stamp))
        write_manifest(directory, manifest)
    return Bundle(directory, manifest)


def _check_file(directory: Path, file: FileEntry, verify: bool) -> None:
    path = directory / file.path
    try:
        found = os.stat(path)
        outside = not path.resolve().is_relative_to(directory.resolve())
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        raise UserError(
            f"{path} is listed in the manifest but missing: restore it or build the bundle again"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is not a regular file: restore it or build the bundle again")
    if found.st_size != file.size:
        raise UserError(
            f"{path} has {found.st_size} bytes, expected {file.size}: it was changed; restore it or build the bundle "
            "again"
        )
    if (verify or outside) and sha256_of(path) != file.sha256:
        if outside:
            raise UserError(
                f"{path} is a link that leaves the bundle, to another file than the manifest lists (its SHA-256 is not "
                f"{file.sha256[:12]}…): put the file itself there"
            )
        raise UserError(
            f"{path} was changed (its SHA-256 is not {file.sha256[:12]}…): restore it or build the bundle again"
        )
