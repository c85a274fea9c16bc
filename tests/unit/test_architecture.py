"""The import direction of DESIGN: inward, and nothing online imports the offline packages."""

import grimp
import pytest

# Who may import whom inside `serving`; every package may import contracts and itself.
ALLOWED: dict[str, set[str]] = {
    "contracts": set(),
    "host": set(),
    "reporting": set(),
    "settings_linter": set(),
    "tasks": set(),
    "artifacts": {"tasks", "host"},
    "local": {"tasks", "artifacts", "host"},
    "embedding": {"host"},
    "context": {"embedding", "reporting"},
    "routing": {"tasks", "embedding"},
    "evidence": {"tasks", "embedding", "host", "artifacts", "ledger", "reporting"},
    "frontier": set(),
    "ledger": {"reporting"},
    "cache": {"evidence", "ledger"},
    "tiers": {"evidence", "ledger"},
    "pipeline": {"tasks", "routing", "evidence", "context", "cache", "tiers"},
    "savings": {
        "embedding",
        "context",
        "frontier",
        "ledger",
        "cache",
        "pipeline",
        "reporting",
    },
    "batch": {"tasks", "frontier", "ledger", "evidence", "cache", "pipeline"},
    "gateway": {"tasks", "local", "artifacts", "pipeline", "evidence", "cache", "tiers"},
    "app": {
        "tasks",
        "artifacts",
        "local",
        "embedding",
        "routing",
        "frontier",
        "ledger",
        "evidence",
        "context",
        "cache",
        "pipeline",
        "batch",
        "gateway",
        "tiers",
    },
    "lifecycle": set(),
    "preparation": {"settings_linter", "tasks", "artifacts"},
    "cluster": {"preparation", "app", "artifacts"},
    "kubernetes": {"host", "tasks", "artifacts", "local", "lifecycle", "ledger"},
    "commands": {
        "host",
        "kubernetes",
        "preparation",
        "settings_linter",
        "tasks",
        "artifacts",
        "local",
        "embedding",
        "routing",
        "frontier",
        "ledger",
        "evidence",
        "cache",
        "batch",
        "context",
        "pipeline",
        "app",
        "lifecycle",
        "savings",
        "tiers",
    },
    "cli": set(),
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("serving")


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_part_of_serving_is_covered(graph: grimp.ImportGraph) -> None:
    parts = {_part(module) for module in graph.modules} - {""}
    assert parts == set(ALLOWED)


def test_imports_point_inward(graph: grimp.ImportGraph) -> None:
    wrong = [
        f"{module} imports {imported}"
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if _part(imported) not in ALLOWED.get(_part(module), set()) | {_part(module), "contracts"}
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["serving", "quantize", "evals", "benchmarks"])
def test_no_module_imports_itself_through_others(package: str) -> None:
    """Imports for type checkers count, too."""
    graph = grimp.build_graph(package)
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    assert sorted(left) == []


def test_serving_does_not_import_the_offline_packages() -> None:
    graph = grimp.build_graph("serving", include_external_packages=True)
    assert not graph.modules & {"quantize", "evals", "benchmarks"}


@pytest.mark.parametrize("package", ["quantize", "evals"])
def test_the_offline_packages_import_only_the_inner_parts_of_serving(package: str) -> None:
    graph = grimp.build_graph("quantize", "evals", "serving")
    allowed = {"contracts", "tasks", "local", "artifacts", "host", "reporting", "settings_linter"}
    # A gate compares the user's own inputs with a suite by their vectors.
    allowed |= {"embedding"} if package == "evals" else set()
    other = {"quantize": "evals", "evals": "quantize"}[package]
    wrong = [
        f"{module} imports {imported}"
        for module in graph.modules
        if module.startswith(package)
        for imported in graph.find_modules_directly_imported_by(module)
        if imported.startswith(other)
    ]
    wrong += [
        f"{module} imports {imported}"
        for module in graph.modules
        if module.startswith(package)
        for imported in graph.find_modules_directly_imported_by(module)
        if imported.startswith("serving") and _part(imported) not in allowed
    ]
    assert wrong == []


def test_only_the_worker_imports_the_quantization_libraries() -> None:
    graph = grimp.build_graph("quantize", include_external_packages=True)
    libraries = {"llmcompressor", "compressed_tensors", "gptqmodel", "bitsandbytes", "loguru"}
    wrong = [
        module
        for module in graph.modules
        if not module.startswith("quantize.worker")
        and graph.find_modules_directly_imported_by(module) & libraries
    ]
    assert "llmcompressor" in graph.modules
    assert sorted(set(wrong) - libraries) == []


def test_tasks_are_pure(graph: grimp.ImportGraph) -> None:
    full = grimp.build_graph("serving", include_external_packages=True)
    for module in full.modules:
        if module.startswith(("serving.tasks", "serving.contracts")):
            imported = full.find_modules_directly_imported_by(module)
            assert not imported & {"ray", "vllm", "torch", "fastapi", "httpx"}, module
