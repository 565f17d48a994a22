"""The house rules of the design, read from the source: who may import whom, and what every module owes its reader."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "ldm").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))

LEAVES = {"config", "checkpoint", "unpickle", "diffusers_format", "cli", "runs"}
# ring -> the other rings it may import from; every ring may import from itself
ALLOWED = {
    "diffusion": set(),
    "leaf": set(),
    "modules": {"diffusion", "leaf"},
    "data": {"diffusion", "modules", "leaf", "spriteworld"},
    "spriteworld": {"diffusion", "modules", "leaf", "data"},
    "models": {"diffusion", "modules", "leaf"},
    "inference": {"diffusion", "modules", "models", "data", "spriteworld", "leaf"},
    "evaluation": {"diffusion", "modules", "models", "data", "spriteworld", "inference", "leaf"},
    "training": {"diffusion", "modules", "models", "data", "spriteworld", "inference", "evaluation", "leaf"},
}
LIGHTNING_IN = {"models/latent_diffusion.py", "models/autoencoder.py", "models/vq.py", "data/datamodule.py"}
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}
OPTIONAL = {"taming", "gradio", "peft", "bitsandbytes", "wandb"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def ring(parts: tuple[str, ...]) -> str:
    """The ring of a module below ldm, by its path or dotted name without ``ldm``."""
    return "leaf" if parts[0] in LEAVES else parts[0]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    """The dotted names that one statement imports (names taken from a package count as possible modules)."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    called = isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
    if called and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
        return [str(node.args[0].value)]
    return []


def all_imports(path: Path) -> list[str]:
    return [name for node in ast.walk(tree(path)) for name in imported(node)]


def eager_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: not the insides of functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from eager_nodes(child)


def roots(names: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downward(path):
    own = ring(path.relative_to(ROOT / "ldm").with_suffix("").parts)
    if own == "__init__":
        return
    assert own in ALLOWED, f"{name_of(path)} stands in no ring that the design knows"
    for name in all_imports(path):
        parts = name.split(".")
        if parts[0] in ("scripts", "tests"):
            pytest.fail(f"{name_of(path)} imports {name}")
        if parts[0] == "ldm":
            assert len(parts) > 1, "import from a module of ldm, not ldm itself"
            other = ring(tuple(parts[1:]))
            assert other == own or other in ALLOWED[own], f"{name_of(path)} ({own}) imports {name} ({other})"


def test_the_rings_have_no_circle():
    """The table above is itself downward (data and spriteworld are one ring)."""
    order = ["leaf", "diffusion", "modules", "data", "models", "inference", "evaluation", "training"]
    place = {ring_name: i for i, ring_name in enumerate(order)} | {"spriteworld": order.index("data")}
    for own, others in ALLOWED.items():
        for other in others:
            assert place[other] < place[own] or {own, other} == {"data", "spriteworld"}


@pytest.mark.parametrize("path", sorted((ROOT / "ldm/diffusion").glob("*.py")), ids=name_of)
def test_diffusion_is_plain_maths(path):
    """Tensors only: no modules, no config, no file, no Lightning."""
    names = all_imports(path)
    assert roots(names) <= {"__future__", "torch", "ldm", "math", "collections", "dataclasses", "itertools", "typing"}
    assert all(name.startswith("ldm.diffusion") for name in names if name.startswith("ldm"))
    assert not [name for name in names if name == "torch.nn" or name.startswith("torch.nn.modules")]
    source = path.read_text()
    assert "nn.Module" not in source
    called = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
    assert not called & {"open", "torch.save", "torch.load"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_lightning_only_where_it_is_named(path):
    inside = path.relative_to(ROOT / "ldm").as_posix()
    if inside not in LIGHTNING_IN and not inside.startswith("training/"):
        assert not roots(all_imports(path)) & LIGHTNING


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name_of)
def test_optional_packages_are_imported_where_they_are_used(path):
    eager = [name for node in eager_nodes(tree(path)) for name in imported(node)]
    assert not roots(eager) & OPTIONAL
    assert "torchvision" not in roots(all_imports(path))


def test_taming_stays_behind_the_one_first_stage_that_needs_it():
    users = {name_of(path) for path in MODULES if "taming" in roots(all_imports(path))}
    assert users <= {"ldm/models/vq.py"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_log_and_do_not_print(path):
    """Below scripts/ nothing prints; ldm/cli.py, which is every command's last word, may, to stderr."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            to = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("file")
            assert name_of(path) == "ldm/cli.py", f"line {node.lineno}"
            assert to == "sys.stderr", f"line {node.lineno}"


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_are_short_and_guarded(path):
    """One verb each: a parser, one call, an exit code."""
    source = path.read_text()
    assert len(source.splitlines()) <= 80
    assert ast.get_docstring(tree(path))
    assert 'if __name__ == "__main__":' in source


def public(node: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public(child)


def _is_another_half(node: ast.AST) -> bool:
    """A property's setter, or one of a function's typing overloads."""
    names = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]
    return any(name.endswith((".setter", ".deleter", "overload")) for name in names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_is_public_is_documented(path):
    module = tree(path)
    bare = [
        f"{n.name} (line {n.lineno})" for n in public(module) if not ast.get_docstring(n) and not _is_another_half(n)
    ]
    assert not bare, f"without a docstring: {', '.join(bare)}"
    if path.name != "__init__.py":
        assert ast.get_docstring(module), "the module itself says what it is"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_say_what_a_module_is_for(path):
    parts = {part.rstrip("s") for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not parts & {"util", "utilitie", "common", "helper", "misc"}
    assert not path.stem.endswith(("_v2", "_new", "_old"))


def test_no_module_is_left_without_a_ring():
    """A folder beside the known ones would escape every rule above."""
    known = set(ALLOWED) - {"leaf"}
    folders = {p.name for p in (ROOT / "ldm").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= known
    assert {p.stem for p in (ROOT / "ldm").glob("*.py")} <= LEAVES | {"__init__"}
