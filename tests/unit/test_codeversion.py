"""The code hash: what changes it, what does not, and that the rules name every module that makes their numbers."""

import os
import re
import shutil

import pytest

from conftest import ROOT
from cryon2n import cli, codeversion

SOURCE = '''"""Module."""
import math  # a comment

X = "# no comment"


def f(x):
    """Say what."""
    # Why.
    return x + 1


class C:
    """A class."""

    def g(self):
        """Only this."""
'''


def version(tmp_path, text, name="m.py"):
    (tmp_path / name).write_text(text)
    return codeversion.code_version(name, package=tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Module."""', '"""Another\n\nlong\ntext."""'), ("  # a comment", ""), ("    # Why.\n", ""),
        ('"""Say what."""', '"""Say more."""'), ("\n\nclass", "\n\n\n\n\nclass"), ('    """A class."""\n\n', ""),
        ("x + 1\n", "x + 1   # now said\n"),
    ],
)  # fmt: skip
def test_words_for_readers_do_not_change_it(tmp_path, old, new):
    assert old in SOURCE
    assert version(tmp_path, SOURCE) == version(tmp_path, SOURCE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [("x + 1", "x + 2"), ("import math", "import cmath"), ("# no comment", "# no comments"), ("def f", "def h")],
)
def test_code_changes_it(tmp_path, old, new):
    assert version(tmp_path, SOURCE) != version(tmp_path, SOURCE.replace(old, new))


def test_indentation_is_code(tmp_path):
    one = "for i in x:\n    f(i)\n    g(i)\n"
    assert version(tmp_path, one) != version(tmp_path, one.replace("    g", "g"))


def test_it_depends_on_neither_place_nor_time_nor_order(tmp_path):
    (tmp_path / "one").mkdir()
    for name in ("a.py", "b.py"):
        (tmp_path / "one" / name).write_text(SOURCE + f"Y = '{name}'\n")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    os.utime(tmp_path / "two" / "a.py", (1, 1))
    first = codeversion.code_version("a.py", "b.py", package=tmp_path / "one")
    assert first == codeversion.code_version("b.py", "a.py", package=tmp_path / "two")
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert first != codeversion.code_version("a.py", package=tmp_path / "one")


def test_what_is_left_of_every_module_is_still_its_code():
    for path in codeversion.PACKAGE.glob("*.py"):
        text = codeversion.essential(path.read_text())
        assert '"""' not in text.split("\n")[0] and not re.search(r"^\s*#", text, re.M), path
        names = re.findall(r"^(?:def|class) \w+", path.read_text(), re.M)
        assert re.findall(r"^(?:def|class) \w+", text, re.M) == names


def test_imports_are_followed(tmp_path):
    (tmp_path / "a.py").write_text("from cryon2n import b\nfrom cryon2n.errors import E\nimport numpy\n")
    (tmp_path / "b.py").write_text("def f():\n    from cryon2n import a, c as see\n")
    (tmp_path / "c.py").write_text("from cryon2n import __version__\n")
    (tmp_path / "errors.py").write_text("")
    assert codeversion.imported_modules("a", tmp_path) == {"b", "c", "errors"}


# ---------------------------------------------------------------------------- the rules


def rules():
    """Every rule that calls ``cryon2n``: (name, command, modules of its code version or None)."""
    found = []
    for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        pieces = re.split(r"^\s*(?:rule|checkpoint) (\w+):", path.read_text(), flags=re.M)
        for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
            command = re.search(r"cryon2n ([a-z][a-z-]*)", body)
            version = re.search(r"code=code_version\(([^)]*)\)", body)
            modules = version and {m.removesuffix(".py") for m in re.findall(r'"([^"]+)"', version[1])}
            if command:
                found.append((name, command[1], modules))
    return found


def test_the_rules_are_found():
    names = {name for name, _, _ in rules()}
    assert {"split_halves", "write_shards", "train_unet", "denoise_micrograph", "summarise"} <= names


@pytest.mark.parametrize(("name", "command", "modules"), rules(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_rule_names_every_module_that_makes_its_numbers(name, command, modules):
    assert command == name.replace("_", "-") or command in cli.STAGES
    module = cli.STAGES[command][0]
    if modules is None:  # an edit of the downloader must not fetch everything again
        assert command == "fetch-movie"
        return
    missing = {module} | codeversion.imported_modules(module)
    missing -= codeversion.NUMBERLESS | modules
    assert not missing, f"{name}: add {', '.join(sorted(missing))} to its code_version"
    assert all((codeversion.PACKAGE / f"{m}.py").exists() for m in modules)


def test_reading_pixels_is_part_of_every_rule_that_reads_them():
    """What turns bytes into numbers must not hide in a module that no rule names."""
    for module in codeversion.NUMBERLESS - {"__init__"}:
        source = (codeversion.PACKAGE / f"{module}.py").read_text()
        assert not re.search(r"\b(numpy|mrcfile|scipy|torch)\b *(as|$|import)", source, re.M), module


def test_the_conda_file_holds_the_pins_and_everything_that_is_needed():
    import tomllib

    import yaml

    pins = set((ROOT / "envs/constraints.txt").read_text().lower().split())
    conda = yaml.safe_load((ROOT / "envs/cryon2n.yaml").read_text())["dependencies"][-1]["pip"]
    assert set(conda) <= pins
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {name.lower() for name in needed} == {pin.split("==")[0] for pin in conda}
