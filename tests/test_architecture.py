"""The house rules of the design, read from the source: who may import whom, and what every module owes its reader."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "ldm").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))

# The house from the ground up: a module may import from its own room and from those before it, never from those after.
ROOMS = (
    ("errors",),
    ("project",),
    ("files",),
    ("typed",),
    ("config",),
    ("cli",),
    ("__main__",),
    ("diffusion",),
    ("cpu.attention",),  # plain functions of tensors, which modules.attention takes on a CPU
    ("modules",),
    ("cpu",),
    ("checkpoint",),
    ("data",),
    ("models",),
    ("inference",),
    ("dataset_generation",),
    ("training", "evaluation", "benchmarks"),  # neighbours: none imports another
    ("spriteworld",),  # the sealed wing: it may import everything, nothing imports it
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
LIGHTNING_IN = {"models/latent_diffusion.py", "models/autoencoder.py", "models/vq.py", "data/datamodule.py"}
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}
OPTIONAL = {"taming", "gradio", "peft", "bitsandbytes", "wandb", "matplotlib", "shtab", "diffusers"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(name: str) -> str:
    """The room of a dotted module name below ldm; "" for ldm itself."""
    inside = name.removeprefix("ldm").removeprefix(".")
    return next((r for r in FLOOR if "." in r and (inside + ".").startswith(r + ".")), inside.partition(".")[0])


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


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_of(path): path for path in MODULES}


def modules_imported(path: Path) -> set[str]:
    """The modules of ldm that a file imports anywhere: at its top, inside functions, or for type checkers only."""
    found = set()
    for name in all_imports(path):
        while name and name not in NAMES:
            name = name.rpartition(".")[0]
        if name and name != "ldm":
            found.add(name)
    return found - {module_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downward(path):
    own = room(module_of(path))
    if own == "":
        return
    assert own in FLOOR, f"{name_of(path)} stands in no room that the design knows"
    for name in modules_imported(path):
        other = room(name)
        below = other == own or FLOOR[other] < FLOOR[own]
        assert below, f"{name_of(path)} ({own}) imports {name} ({other}), which does not stand below it"
    assert not [name for name in all_imports(path) if name.split(".")[0] in ("scripts", "tests")]


@pytest.mark.parametrize("path", [p for p in MODULES if room(module_of(p)) != "spriteworld"], ids=name_of)
def test_nothing_imports_the_sealed_wing(path):
    assert not [name for name in all_imports(path) if name.startswith("ldm.spriteworld")]


def test_there_is_no_import_circle():
    """Neither at import, nor lazily, nor for type checkers."""
    graph = {module_of(path): modules_imported(path) for path in MODULES}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join([*way[way.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_command_lines_stay_in_scripts(path):
    """Below scripts/ functions take values or a request; only ldm/cli.py knows argparse."""
    if name_of(path) not in ("ldm/cli.py", "ldm/__main__.py"):
        assert "argparse" not in roots(all_imports(path))
        assert "Namespace" not in {n.id for n in ast.walk(tree(path)) if isinstance(n, ast.Name)}


JOBS = {
    "edit": "ldm.inference.edit_job",
    "generate_dataset": "ldm.dataset_generation.generate",
    "train": "ldm.training.run",
    "txt2img": "ldm.inference.text_job",
    "evaluate": "ldm.evaluation.evaluate",
}


@pytest.mark.parametrize("verb", JOBS)
def test_nobody_who_works_on_photos_loads_the_sprite_world(verb):
    """Asked of a running process: the job's module, and every class that its full-size configs name."""
    configs = sorted((ROOT / "configs" / "stable-diffusion").glob("*.yaml"))
    code = (
        "import sys, importlib\n"
        "from ldm.config import get_class, load_config\n"
        "from omegaconf import OmegaConf\n"
        f"importlib.import_module({JOBS[verb]!r})\n"
        "def visit(node):\n"
        "    if isinstance(node, dict):\n"
        "        if isinstance(node.get('target'), str): get_class(node['target'])\n"
        "        for value in node.values(): visit(value)\n"
        "    elif isinstance(node, list):\n"
        "        for value in node: visit(value)\n"
        f"for path in {[str(path) for path in configs]}:\n"
        "    visit(OmegaConf.to_container(load_config(path), resolve=False))\n"
        "print([name for name in sys.modules if name.startswith('ldm.spriteworld')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "ldm/diffusion").glob("*.py")), ids=name_of)
def test_diffusion_is_plain_maths(path):
    """Tensors only: no modules, no config, no file, no Lightning."""
    names = all_imports(path)
    assert roots(names) <= {"__future__", "torch", "ldm", "math", "collections", "dataclasses", "itertools", "typing"}
    assert all(name.startswith(("ldm.diffusion", "ldm.errors")) for name in names if name.startswith("ldm"))
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
def test_scripts_are_guarded(path):
    """One verb each: a parser, one call, an exit code."""
    assert ast.get_docstring(tree(path))
    assert 'if __name__ == "__main__":' in path.read_text()
    assert "sys.path" not in path.read_text(), "the package is installed"


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
