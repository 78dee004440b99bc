"""Serving a bundle from Python: ``load(directory).generate(image, prompt)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, cast, overload

import numpy as np

from toprl_export.bundle import Bundle, load_bundle
from toprl_export.engine import SessionOptions, get_engine
from toprl_export.errors import UserError
from toprl_export.fields import check_types
from toprl_export.pruning.plan import SHARE_UNITS
from toprl_export.runtime.answer_length import DEFAULT_NEW_TOKENS, prompt_room
from toprl_export.runtime.generation import Generation, GenerationRequest, GenerationStream
from toprl_export.runtime.layout import Pictures, TokenBatch
from toprl_export.runtime.pictures import ImageInput
from toprl_export.runtime.session import EngineSession


class LoadedBundle:
    """A verified bundle with its engine in memory; a context manager that closes it.

    Several threads may ask a bundle of the engine ``onnx`` at the same time: each gets the answer it would get alone,
    as a request's state is its own. The engine ``trt`` answers one request at a time, for its buffers on the device are
    shared. No thread may be asking while the bundle is closed.

    Attributes:
        bundle: directory and manifest.
        frontend: what turns pictures and questions into the engine's inputs.
    """

    def __init__(self, bundle: Bundle, session: EngineSession) -> None:
        self.bundle = bundle
        self.frontend = bundle.frontend()
        self._session: EngineSession | None = session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def session(self) -> EngineSession:
        """The engine.

        Raises:
            UserError: the bundle was closed.
        """
        if self._session is None:
            raise UserError(f"the bundle {self.bundle.dir} was closed: load it again to use it")
        return self._session

    def close(self) -> None:
        """Release the engine's memory; what is used afterwards must be loaded again. A second call does nothing."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have an agent, the first being the default; none where a baseline prunes, which serves all."""
        return self.bundle.manifest.tasks

    @property
    def budgets(self) -> tuple[int | float, ...]:
        """Budgets (average visual tokens kept), largest first; n itself is always allowed and prunes nothing.

        Where pictures differ in their number of visual tokens, shares of it, such as 0.33.
        """
        manifest = self.bundle.manifest
        return tuple(one / SHARE_UNITS if manifest.plan.shares else one for one in manifest.budgets_kept)

    @overload
    def generate(
        self,
        images: ImageInput | Sequence[ImageInput],
        prompts: str | Sequence[str],
        task: str | None = None,
        budget_kept: float | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        stream: Literal[False] = False,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        images: ImageInput | Sequence[ImageInput],
        prompts: str | Sequence[str],
        task: str | None = None,
        budget_kept: float | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        *,
        stream: Literal[True],
    ) -> GenerationStream: ...

    def generate(
        self,
        images: ImageInput | Sequence[ImageInput],
        prompts: str | Sequence[str],
        task: str | None = None,
        budget_kept: float | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        stream: bool = False,
    ) -> Generation | GenerationStream:
        """Answer questions about images.

        >>> image = np.zeros((192, 192, 3), dtype=np.uint8)  # or a path, or a Pillow image
        >>> with load(directory) as bundle:
        ...     result = bundle.generate(image, ["what colour is the 7?", "how many stars are there?"])
        >>> len(result.answers), result.timings.total_ms > 0
        (2, True)

        Args:
            images: one or several: paths, Pillow images or ``uint8 [h, w, 3]``. One image takes all prompts.
            prompts: one question or one per image.
            task: whose agent prunes; the bundle's first by default. A baseline prunes alike for every task.
            budget_kept: one of ``budgets``, or n (of shares: 1.0) for no pruning; by default the largest that prunes.
            max_new_tokens: the longest answer.
            stream: return pieces of text as they are made.

        Raises:
            UserError: an input is no image, a prompt is empty or too long, images and prompts do not pair, task
                or budget is unknown, or the bundle was closed.
        """
        request = self.request(images, prompts, task, budget_kept, max_new_tokens)
        growing = GenerationStream(self.session, self.frontend.tokenizer, request)
        return growing if stream else growing.result

    def request(
        self,
        images: ImageInput | Sequence[ImageInput],
        prompts: str | Sequence[str],
        task: str | None = None,
        budget_kept: float | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
    ) -> GenerationRequest:
        """What :meth:`generate` would run, prepared and checked; the same arguments and errors."""
        # Of a model whose pictures differ in n a budget is a share, of others a number of tokens.
        budget = (float if self.bundle.manifest.plan.shares else int) | None
        types = {"task": str | None, "budget_kept": budget, "max_new_tokens": int}
        check_types("a bundle's request", types, locals())
        pictures = self.pictures(images)
        tokens = self.tokens(prompts, max_new_tokens, pictures)
        plan, counts = self.bundle.manifest.plan, self.bundle.keep_counts(budget_kept)
        each = plan.row_counts(counts, tokens.visual_counts.tolist()) if plan.shares else None
        return GenerationRequest(
            pictures=pictures.arrays,
            tokens=tokens,
            keep_counts=counts if each is None else np.array(each, np.int64),
            agent_index=self.bundle.agent_index(task),
            max_new_tokens=max_new_tokens,
            end_tokens=self.bundle.manifest.model.end_tokens,
        )

    def pictures(self, images: ImageInput | Sequence[ImageInput]) -> Pictures:
        """Images as the engine takes them.

        Raises:
            UserError: there is none or one is no image.
        """
        # A path is a sequence too, of letters, and arrays and bytes are sequences of numbers.
        listed = images if isinstance(images, list | tuple) else [cast("ImageInput", images)]
        return self.frontend.pictures(listed)

    def tokens(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        pictures: Pictures | None = None,
    ) -> TokenBatch:
        """Questions as the engine takes them; ``pictures`` are those of `pictures`, needed where they differ in n.

        Raises:
            UserError: there is none, or one is empty or leaves no room for the answer.
        """
        model = self.bundle.manifest.model
        shown = (model.visual_tokens,) if pictures is None else tuple(len(each.rows) for each in pictures.each)
        room = prompt_room(model.max_length, max(shown, default=0), max_new_tokens)
        check_types("a bundle's request", {"prompts": str | Sequence[str]}, locals())
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        return self.frontend.tokens(listed, room, pictures)


def load(
    directory: Path | str,
    threads: int | None = None,
    provider: str | None = None,
    unpruned: bool = False,
    verify: bool = True,
    engine_options: Mapping[str, str] | None = None,
) -> LoadedBundle:
    """Verify a bundle and load its engine.

    >>> with load(directory) as bundle:  # made by: toprl-export build --budget-kept 8,4 --output-dir DIRECTORY
    ...     bundle.tasks, bundle.budgets
    (('mini-exist', 'mini-count'), (8, 4))

    Args:
        directory: what ``toprl-export build`` wrote.
        threads: CPU threads, or None for the engine's choice.
        provider: the engine's name for where to run, or None for its choice.
        unpruned: load the engine's unpruned form, for comparison.
        verify: compare every file's digest first.
        engine_options: what only one engine can be told, names and values, as ``--engine-option`` takes them.

    Raises:
        UserError: the bundle is damaged or cannot run here, or its engine has no such option.
    """
    types = {"directory": Path | str, "threads": int | None, "provider": str | None, "unpruned": bool, "verify": bool}
    check_types("load", types | {"engine_options": Mapping[str, str] | None}, locals())
    bundle = load_bundle(Path(directory), verify)
    engine = get_engine(bundle.manifest.engine.name)
    options = SessionOptions(threads, provider, unpruned, engine_options or {})
    return LoadedBundle(bundle, engine.open(bundle, options))
