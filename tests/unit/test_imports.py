# SPDX-License-Identifier: Apache-2.0
"""The layers of packetwatch/: an import points to a lower layer, and only the loader imports bcc."""

from __future__ import annotations

import ast
import graphlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "packetwatch"

#: A row is a layer, lowest first. A module that is not named here fails the test.
LAYERS = (
    # pure
    {"__init__", "event", "address", "rules", "detection", "kinds", "settings", "config", "metricnames"}
    | {"budget", "marks", "summary", "operations", "manual", "servers", "history", "decoys", "recorded", "sieve"},
    # edges: mechanism without policy
    {"libbpf", "ring", "notify", "netlink", "clock", "memory", "sessions", "privileges", "program", "configfiles"}
    | {"heap", "client", "capture", "serverfiles", "sinks", "sinks.records", "sinks.scrapes"},
    # parts, in three floors
    {"kernel", "interfaces", "lookup", "state", "store", "peer", "sinks.fold", "sinks.jsonlines", "sinks.text"}
    | {"sinks.writer"},
    {"lists", "pending", "handover", "show", "control", "replayed", "thresholds", "sinks.ledger", "sinks.journal"},
    {"attachments", "handshakes", "sinks.log", "sinks.metrics", "overview"},
    # wholes
    {"loader", "drain"},
    {"reports", "replay"},
    {"resident"},
    {"changes", "why"},
    {"answers"},
    {"daemon"},
    # the door
    {"guard"},
    {"cli"},
    {"__main__"},
)
MODULES = set().union(*LAYERS)
#: Imports inside one layer that are meant, besides those inside the pure one.
SIDEWAYS: set[tuple[str, str]] = set()
#: What the pure layer may not touch: the clock, the network, the machine; but inet_pton is pure.
IMPURE = {"ctypes", "os", "select", "selectors", "signal", "socket", "subprocess", "threading", "time"}
PURE_ENOUGH = {("address", "socket")}


def module_name(path):
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name[: -len(".__init__")] if name.endswith(".__init__") else name


def layer(name):
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise AssertionError(f"packetwatch/{name.replace('.', '/')}.py is in no layer: add it to LAYERS")


def imported(source, name="x", is_package=False):
    """The modules a source imports, as (own module of packetwatch or None, top-level name)."""
    package = ["packetwatch", *name.split(".")][: None if is_package else -1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            top, *rest = target.split(".")
            yield (own_module(rest) if top == "packetwatch" else None), top


def own_module(parts):
    """The longest head of parts that is a known module; `packetwatch.__version__` is __init__."""
    heads = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((head for head in heads if head in MODULES), "__init__")


def faults(name, source, is_package=False):
    for own, top in imported(source, name, is_package):
        if top == "bcc" and name != "loader":
            yield f"{name} imports bcc, which only the loader may"
        if layer(name) == 0 and top in IMPURE and (name, top) not in PURE_ENOUGH:
            yield f"{name} is pure and imports {top}"
        if own in (None, "__init__", name) or (name, own) in SIDEWAYS or layer(own) == layer(name) == 0:
            continue
        if layer(own) >= layer(name):
            yield f"{name} (layer {layer(name)}) imports {own} (layer {layer(own)})"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_imports_point_down(path):
    assert list(faults(module_name(path), path.read_text(), path.name == "__init__.py")) == []


def test_no_circle():
    graph = {
        module_name(path): {own for own, _ in imported(path.read_text(), module_name(path)) if own}
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert "event" in graphlib.TopologicalSorter(graph).static_order()  # raises CycleError


@pytest.mark.parametrize(
    "name, source",
    [
        ("ring", "from . import daemon"),
        ("ring", "import packetwatch.kernel"),
        ("sinks.log", "from ..daemon import Daemon"),
        ("sinks.log", "from . import metrics"),
        ("kernel", "def f():\n    from packetwatch import interfaces"),
        ("kernel", "from bcc import BPF"),
        ("event", "import time"),
        ("detection", "from time import monotonic"),
    ],
)
def test_an_upward_arrow_is_found(name, source):
    assert len(list(faults(name, source))) == 1


def test_what_points_down_is_fine():
    source = "from __future__ import annotations\nimport time\nfrom . import event\nfrom packetwatch import __version__"
    assert list(faults("ring", source)) == []
