"""What an engine is: it builds a bundle's graphs, and opens a bundle for the runtime. Rooms implement this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from toprl_export.cores import check_parallel
from toprl_export.errors import UserError
from toprl_export.registry import Registry

if TYPE_CHECKING:
    from toprl_export.agent import Agent
    from toprl_export.bundle import Bundle
    from toprl_export.models.adapter import LVLMAdapter
    from toprl_export.pruning.plan import PruningPlan
    from toprl_export.pruning.scorer import Scorer
    from toprl_export.runtime.session import EngineSession

PRECISIONS = ("fp32", "fp16", "bf16")
GRAPHS = ("vision", "prefill", "decode", "prefill_unpruned")
"""Roles of the graphs that an engine builds; the last is there to be compared with."""


class EngineOptions(Protocol):
    """What only one engine can be told about a build. Frozen and hashable; the core looks no further into it."""

    @property
    def given_flags(self) -> tuple[str, ...]:
        """The command line's flags for what differs from the defaults, for messages."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What the engine's files depend on, as a JSON object; equal identities make a rebuild needless.

        Raises:
            UserError: a file that belongs to it cannot be read.
        """
        ...


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        adapter: the reference model.
        agents: of one shape; their order is the agent index of the graph. None with a baseline.
        plan: stages shared by all agents, and one schedule per budget.
        precision: one of ``PRECISIONS``.
        static_k: bake the plan's one budget into the graph.
        baseline: name of the untrained method that prunes; None with agents.
        options: the engine's own, as `ConfigurableEngine.resolve` returned them; None for an engine without any.
        earlier: a bundle that the result will take the place of, from which an engine may reuse its own caches.

    Raises:
        UserError: there are agents and a baseline, or neither; the agents' plan names another scorer; or ``static_k``
            meets several budgets.
    """

    adapter: LVLMAdapter
    agents: tuple[Agent, ...]
    plan: PruningPlan
    precision: str
    static_k: bool = False
    baseline: str | None = None
    options: EngineOptions | None = None
    earlier: Path | None = None

    def __post_init__(self) -> None:
        if bool(self.agents) == (self.baseline is not None):
            raise UserError("a bundle is built from agents or from one baseline: give one of the two")
        others = sorted({stage.scorer for stage in self.plan.stages} - {"actor"})
        if self.agents and others:
            raise UserError(f"the agents' plan scores by {others[0]!r}, expected 'actor': build that as a baseline")
        if self.static_k and len(self.plan.schedules) != 1:
            budgets = ", ".join(map(str, sorted(schedule.budget_kept for schedule in self.plan.schedules)))
            raise UserError(f"--static-k bakes in one budget, not several ({budgets}): choose one or leave it out")

    @property
    def scorer(self) -> Scorer:
        """What scores at every stage: the agents' actors stacked, or the baseline's scorer."""
        if self.baseline is not None:
            from toprl_export.pruning.scorer import make_scorer

            return make_scorer(self.baseline)
        from toprl_export.pruning.actor import StackedActors

        return StackedActors([agent.actor for agent in self.agents])


@dataclass(frozen=True)
class BuildResult:
    """What was built.

    Attributes:
        files: role and path, relative to the directory, of every file the engine wrote.
        toolchain: versions of the distributions that shape the result, by the names and versions that
            ``importlib.metadata`` knows: when one changes, a rebuild is no longer up to date.
        opset: of the ONNX graphs.
        details: the engine's part of the manifest, a JSON object that only the engine reads.
    """

    files: tuple[tuple[str, str], ...]
    toolchain: dict[str, str]
    opset: int
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionOptions:
    """How to open a bundle.

    Attributes:
        threads: CPU threads, or None for the engine's choice.
        provider: the engine's name for where to run, or None for its choice.
        unpruned: open the bundle's engine for unpruned measurements.
        engine_options: what only one engine can be told, names and values; the core looks no further into them.
    """

    threads: int | None = None
    provider: str | None = None
    unpruned: bool = False
    engine_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse more threads than the machine takes."""
        check_parallel("threads", self.threads)

    def check_engine_options(self, engine: str, known: Mapping[str, Sequence[str]]) -> None:
        """For engines: refuse options and values that they do not know.

        Args:
            engine: its name, for messages.
            known: the values of every option that it has.

        Raises:
            UserError: names the option, and what is known.
        """
        for name, value in self.engine_options.items():
            if name not in known:
                have = f"it has {', '.join(known)}" if known else "it has none"
                raise UserError(
                    f"the engine {engine!r} has no option {name!r} for running a bundle, {have}: leave it out"
                )
            if value not in known[name]:
                raise UserError(
                    f"the option {name!r} of the engine {engine!r} is {value!r}, expected {' or '.join(known[name])}"
                )


class Engine(Protocol):
    """One way to execute a model."""

    name: str

    def check(self) -> None:
        """Check that this engine can work here.

        Raises:
            UserError: it cannot (MissingExtraError where an extra would mend it).
        """
        ...

    def check_request(self, request: BuildRequest) -> None:
        """Check that this engine can build ``request``; nothing is written.

        Raises:
            UserError: the request asks for what this engine cannot do.
        """
        ...

    def build(self, request: BuildRequest, directory: Path) -> BuildResult:
        """Write the engine's files into ``directory``, which exists.

        Raises:
            UserError: the request asks for what this engine cannot do.
        """
        ...

    def open(self, bundle: Bundle, options: SessionOptions) -> EngineSession:
        """Load a verified bundle.

        Raises:
            UserError: the bundle cannot run here (no such provider, another GPU …).
        """
        ...

    def graph_flops(
        self, bundle: Bundle, batch: int, prompt_length: int, keep_counts: tuple[int, ...] | None
    ) -> int | None:
        """Floating-point operations of one prefill, counted in the graph that was built.

        Args:
            bundle: a verified bundle.
            batch: prompts at once.
            prompt_length: tokens of each, the visual ones included.
            keep_counts: tokens kept at every stage; None counts the graph of unpruned measurements.

        Returns:
            a product and its sum count as two; None where the engine cannot count.
        """
        ...


@runtime_checkable
class ConfigurableEngine(Engine, Protocol):
    """An engine with options of its own; others refuse them."""

    def resolve(self, options: EngineOptions | None) -> EngineOptions | None:
        """``options``, or the defaults, with every choice made that was left to the engine.

        Raises:
            UserError: they are another engine's options, or what was chosen is not there.
        """
        ...

    def preview(self, request: BuildRequest) -> dict[str, Any]:
        """What :meth:`build` would do, as a JSON object of texts, numbers, lists and objects; nothing is written."""
        ...


ENGINES: Registry[type[Engine]] = Registry("engine", group="toprl_export.engines")
"""Every installed engine's class; each is made without arguments."""


def get_engine(name: str) -> Engine:
    """The engine called ``name``, checked to work here.

    Raises:
        UserError: the name is unknown (the message lists the known ones) or the engine cannot work here.
    """
    engine = ENGINES.get(name)()
    engine.check()
    return engine
