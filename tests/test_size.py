"""The house rules that can be counted. Each test names every place that breaks its rule."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import calibrant

ROOT = Path(calibrant.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "core", "manager", "misc", "base", "engine"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(of: ast.AST) -> list[Function]:
    return [node for node in ast.walk(of) if isinstance(node, Function)]


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


def test_names_say_what_a_thing_is():
    assert [name(path) for path in FILES if FORBIDDEN & set(path.relative_to(ROOT).with_suffix("").parts)] == []
    classes = [(name(path), node.name) for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    assert [named for named in classes if re.search(r"(Util|Helper|Common|Manager|Mixin)s?$", named[1])] == []


def test_a_class_has_a_name_of_its_own():
    where: defaultdict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(name(path))
    assert {shared: places for shared, places in where.items() if len(places) > 1} == {}


def test_nothing_is_left_unfinished():
    assert [name(path) for path in FILES if re.search(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError", path.read_text())] == []


def test_exceptions_are_named_and_attributes_are_known():
    wrong: list[str] = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                # The engine's boundary records whatever failed there; nothing else may catch what it doesn't understand.
                if caught in {"everything", "BaseException", "Exception"} and not path.is_relative_to(ROOT / "study"):
                    wrong.append(f"{name(path)}:{node.lineno} catches {caught}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"hasattr", "eval", "exec"}:
                wrong.append(f"{name(path)}:{node.lineno} calls {node.func.id}")
    assert not wrong


def test_package_roots_hold_no_logic():
    # The roots of data and models are import lists; their few functions are the packages' own verbs and counted like any module's.
    roots = [path for path in FILES if path.name == "__init__.py" and path.parent not in {ROOT / "data", ROOT / "models"}]
    branches = (ast.For, ast.While, ast.Try, ast.With)
    assert [name(path) for path in roots if any(isinstance(node, branches) for node in ast.walk(tree(path)))] == []


def test_commands_only_parse_call_and_print():
    commands = [
        f for path in (ROOT / "cli").glob("*.py") for f in functions(tree(path)) if any("command" in ast.unparse(d) for d in f.decorator_list)
    ]
    assert {f.name for f in commands} >= {"prune", "evaluate", "inspect", "study", "report"}
    assert [f.name for f in commands if nesting(f) > 2] == [], "a command decides too much"


def test_no_test_counts_seconds():
    """How long something takes depends on the machine and on what else it does; `tests/effort.py` compares it with other work."""
    tests = Path(__file__).parent
    counting = {
        str(path.relative_to(tests))
        for path in tests.rglob("*.py")
        if re.search(r"\btime\.(time|monotonic|\w+_counter|process_time)\(", path.read_text())
    }
    ends_what_hangs = {"study/test_workers.py"}
    assert counting - ends_what_hangs == {"effort.py", "attack/running.py"}


def test_classes_are_abstract_or_final():
    """Nothing of ours that can be made is also a parent: vary by wrapping."""
    classes: dict[str, ast.ClassDef] = {}
    parents: set[str] = set()
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                classes[node.name] = node
                parents |= {ast.unparse(base).partition("[")[0] for base in node.bases}
    for parent in parents & classes.keys():
        node = classes[parent]
        bases = {ast.unparse(base).partition("[")[0] for base in node.bases}
        abstract = bases & {"ABC", "Protocol"} or any("abstractmethod" in ast.unparse(d) for f in functions(node) for d in f.decorator_list)
        # Exceptions are a tree by nature, and Spec is what a dataclass is given to become its own configuration.
        assert abstract or parent == "Spec" or parent.endswith("Error"), f"{parent} is subclassed but not abstract"
