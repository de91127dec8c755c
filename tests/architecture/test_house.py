"""The house rules, as tests: floors, file headers, a README that tells the truth, a wheel that holds everything."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "medmvl").rglob("*.py"))


def test_floors_hold() -> None:
    """import-linter's contracts in pyproject.toml: a room imports from lower floors only."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    if path.name == "__init__.py" and not text.strip():
        return
    doc = ast.get_docstring(ast.parse(text))
    assert doc, f"{path} has no opening sentence"
    assert path.stem not in {"utils", "common", "helpers", "misc"}


def test_no_remote_code_no_pickle() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert not re.search(r"trust_remote_code\s*=\s*True|pickle\.load|allow_pickle\s*=\s*True", text), path
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, f"{path}: {call}"


def test_readme_is_short_and_its_commands_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 200
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), f"README names `make {target}`"
    from medmvl.cli.main import VERBS

    for verb in re.findall(r"^(?:\$ )?medmvl (\w+)", readme, flags=re.M):
        assert verb in VERBS, f"README names `medmvl {verb}`"
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", readme):
        assert (ROOT / link).exists(), f"README links to {link}"


def test_ci_runs_exactly_the_readme_test_command() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1] == "make test"
    assert "make test" in (ROOT / "README.md").read_text()


def test_wheel_lists_all_recipes_and_templates(tmp_path: Path) -> None:
    """A built wheel, unpacked where nothing of this checkout is visible, still lists every recipe and template."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", str(ROOT)]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    code = (
        "import sys, pathlib; sys.path = [p for p in sys.path if 'src' not in pathlib.Path(p).parts]; "
        f"sys.path.insert(0, {str(site)!r}); import medmvl; "
        f"assert medmvl.__file__.startswith({str(site)!r}), medmvl.__file__; "
        "from medmvl.cli.main import main; sys.argv = ['medmvl', 'list']; main()"
    )
    env = {**os.environ, "PYTHONPATH": "", "COLUMNS": "200"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [p.stem for p in (ROOT / "src/medmvl/recipes").glob("[!_]*.yaml")]
    names += [p.stem for p in (ROOT / "src/medmvl/processing/templates").glob("*.jinja")]
    names += [p.stem for p in (ROOT / "src/medmvl/eval/suites").glob("*.yaml")]
    names += [p.name for p in (ROOT / "src/medmvl/eval/tasks").iterdir() if p.is_dir()]
    missing = [name for name in names if name not in done.stdout]
    assert names and not missing, f"not listed from the wheel: {missing}\n{done.stdout}"
