"""The stub of the C++ extension names what is there, no less and no more."""

import ast
from importlib.resources import files

import pytest

native = pytest.importorskip("physiofast._native", reason="the extension is not built")
TREE = ast.parse((files("physiofast") / "_native.pyi").read_text())
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}


def named(body):
    """Functions and classes of a body, but those with underscores."""
    found = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return {name for name in found if not name.startswith("_")}


def public(names):
    return {name for name in names if not name.startswith("_")}


def test_every_name_of_the_module():
    assert named(TREE.body) == public(dir(native))


@pytest.mark.parametrize("name", CLASSES)
def test_every_method_of_a_class(name):
    assert named(CLASSES[name].body) == public(vars(getattr(native, name)))
