"""A content hash of the modules that make a rule's numbers, for the rule's ``params``.

Snakemake does not see a change in an imported package.  Every rule therefore carries
``code=code_version("unet.py", …)``: the hash changes when the code changes, not when a file is
touched, moved or checked out again, and not when only comments, docstrings or blank lines change.
"""

import ast
import hashlib
import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parent

# Modules that carry no numbers: every stage imports them, and editing one must not cost hours of GPU.
NUMBERLESS = {
    *("__init__", "cli", "codeversion", "errors", "excluded", "files", "gpus", "log"),
    *("memory", "metering", "methods", "settings"),
}


def code_version(*modules: str, package: Path = PACKAGE) -> str:
    """Return 12 hex digits that stand for the code of `modules` (file names in the package)."""
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(f"{name}\n{essential(package.joinpath(name).read_text())}\n".encode())
    return digest.hexdigest()[:12]


def essential(source: str) -> str:
    """Strip comments, docstrings, trailing blanks and empty lines from Python source.

    Positions rather than `ast.dump`, whose text differs between Python versions.
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            for row in range(first.lineno - 1, first.end_lineno or first.lineno):
                lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def imported_modules(module: str, package: Path = PACKAGE) -> set[str]:
    """Return the names of all package modules that `module` imports, directly or not (without itself)."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        for node in ast.walk(ast.parse(package.joinpath(f"{name}.py").read_text())):
            found: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module == "cryon2n":
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cryon2n."):
                found = [(node.module or "").split(".")[1]]
            for other in found:
                if other not in seen and package.joinpath(f"{other}.py").exists():
                    seen.add(other)
                    todo.append(other)
    return seen - {module}
