"""No module imports itself through others, in any of the packages that are shipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import grimp

PACKAGES = ("toprl_export", "toprl_trainers", "toprl_engines", "toprl_flash_attention")


def circle(imports: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle, each importing the next one; none where there is no circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def imports() -> Iterator[tuple[str, set[str]]]:
    """Every module and what it imports.

    Imports inside functions count, for they too fail or hide a knot; so do those under ``TYPE_CHECKING``, as in the
    contract on layers: a type that two modules need of each other belongs into a third one.
    """
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    for module in graph.modules:
        yield module, graph.find_modules_directly_imported_by(module)


def test_no_module_imports_itself_through_others():
    found = dict(imports())
    assert {module.partition(".")[0] for module in found} == set(PACKAGES) and len(found) > 100
    assert circle(found) == []


def test_a_circle_is_found():
    chain = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert circle(chain) == []
    assert sorted(set(circle(chain | {"c": {"a"}}))) == ["a", "b", "c"]
