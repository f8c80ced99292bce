"""The house rules that can be counted."""

import ast
import re
from pathlib import Path

import pytest

import calibrant

ROOT = Path(calibrant.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LEAVES = {ROOT / "methods", ROOT / "targets", ROOT / "allocations", ROOT / "select", ROOT / "data/sources", ROOT / "data/formats"}
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "core", "manager", "misc", "base", "engine"}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring: saying what a function does is no reason to split it."""
    first = node.body[0]
    spoken = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if spoken else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


@each_file
def test_modules_are_short(path: Path):
    leaf = path.parent in LEAVES and not path.name.startswith("_")  # what begins with an underscore is shared by the leaves
    limit = 150 if leaf else 400
    assert len(path.read_text().splitlines()) <= limit


def nesting(node: ast.AST, depth: int = 0) -> int:
    """How many `if`, `for`, `while`, `with`, `try` and `match` stand inside one another; an `elif` is no deeper than its `if`."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        elif_ = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deeper = isinstance(child, ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match) and not elif_
        deepest = max(deepest, nesting(child, depth + deeper))
    return deepest


@each_file
def test_functions_can_be_read(path: Path):
    """A long function that is flat reads well; a deep one doesn't. Four levels are the most that one loop needs."""
    for function in functions(ast.parse(path.read_text())):
        assert nesting(function) <= 4, f"{function.name} is {nesting(function)} levels deep"
        assert lines_of(function) <= 80, f"{function.name} has {lines_of(function)} lines"


@each_file
def test_names_say_what_a_thing_is(path: Path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    assert not FORBIDDEN & set(parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            assert not re.search(r"(Util|Helper|Common|Manager|Mixin)s?$", node.name), node.name


@each_file
def test_nothing_is_left_unfinished(path: Path):
    assert not re.search(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError", path.read_text())


@each_file
def test_exceptions_are_named_and_attributes_are_known(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            # The engine's boundary records whatever failed there; nothing else may catch what it doesn't understand.
            assert caught not in {"everything", "BaseException", "Exception"} or path.is_relative_to(ROOT / "study"), (
                f"line {node.lineno} catches {caught}"
            )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"hasattr", "eval", "exec"}, f"line {node.lineno} calls {node.func.id}"


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_package_roots_hold_no_logic(path: Path):
    if path.parent in {ROOT / "data", ROOT / "models"}:
        return  # import lists; their few functions are the packages' own verbs and counted like any module's
    branches = (ast.For, ast.While, ast.Try, ast.With)
    assert not [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, branches)]


def test_commands_only_parse_call_and_print():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "cli").glob("*.py")]
    commands = [f for tree in trees for f in functions(tree) if any("command" in ast.unparse(d) for d in f.decorator_list)]
    assert {f.name for f in commands} >= {"prune", "evaluate", "inspect", "study", "report"}
    for function in commands:
        assert nesting(function) <= 2, f"{function.name} decides too much"


def test_classes_are_abstract_or_final():
    """Nothing of ours that can be made is also a parent: vary by wrapping."""
    classes: dict[str, ast.ClassDef] = {}
    parents: set[str] = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                classes[node.name] = node
                parents |= {ast.unparse(base).partition("[")[0] for base in node.bases}
    for name in parents & classes.keys():
        node = classes[name]
        bases = {ast.unparse(base).partition("[")[0] for base in node.bases}
        abstract = bases & {"ABC", "Protocol"} or any("abstractmethod" in ast.unparse(d) for f in functions(node) for d in f.decorator_list)
        # Exceptions are a tree by nature, and Spec is what a dataclass is given to become its own configuration.
        assert abstract or name == "Spec" or name.endswith("Error"), f"{name} is subclassed but not abstract"
