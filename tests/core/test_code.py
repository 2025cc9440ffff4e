"""On a small package of its own, in a process of its own: what is found must be what is in the files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import code
from pipeline.models.students import STUDENTS, TEACHERS, module_of

ROOT = Path(__file__).parents[2]
FILES = {
    "__init__.py": "",
    "verb/__init__.py": "from pipeline.verb.config import A\nfrom pipeline.tools import sharp\nimport numpy\n",
    "verb/config.py": "from pipeline.core.config import Config\nA = 1\n",
    "verb/page.html": "",
    "tools/__init__.py": "from pipeline.tools.blunt import hammer\n",
    "tools/blunt.py": "hammer = 1\n",
    "tools/sharp.py": "def cut():\n    from . import knife\n    import pipeline.late as late\n",
    "tools/knife.py": "from ..early import x\n",
    "late.py": "from pipeline.tools import hammer\n",
    "early.py": "x = 1\n",
    "unused.py": "import pipeline.early\n",
    "core/__init__.py": "",
    "core/config.py": "import pipeline.unused\n",
}


@pytest.fixture
def package(tmp_path):
    """The folder of a package, and what an expression with ``code`` comes to there."""
    folder = tmp_path / "pipeline"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in ("artifact.py", "code.py", "errors.py", "scratch.py"):
        shutil.copy(ROOT / "pipeline/core" / name, folder / "core" / name)
    shutil.copytree(ROOT / "pipeline/core/untrusted", folder / "core/untrusted")

    def ask(expression):
        program = f"import json\nfrom pipeline.core import code\nprint(json.dumps({expression}))"
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return folder, ask


def test_a_closure_has_what_is_imported_anywhere_and_an_init_only_where_a_name_is_taken_from_it(package):
    _, ask = package
    sharp = {"early", "late", "tools/__init__", "tools/blunt", "tools/knife", "tools/sharp"}
    assert ask("sorted(code.closure('pipeline.tools.sharp'))") == [f"pipeline/{name}.py" for name in sorted(sharp)]
    assert ask("sorted(code.closure('pipeline.tools.knife'))") == ["pipeline/early.py", "pipeline/tools/knife.py"]
    assert "pipeline/verb/config.py" in ask("sorted(code.closure('pipeline.verb'))")


def test_the_frame_and_what_the_frame_imports_do_not_count(package):
    _, ask = package
    found = ask("sorted(code.closure('pipeline.verb'))")
    assert not {"pipeline/core/config.py", "pipeline/unused.py", "pipeline/__init__.py"} & set(found)


def test_a_digest_changes_with_the_closure_and_with_nothing_else(package):
    folder, ask = package
    first = ask("code.digest('pipeline.verb')")
    (folder / "unused.py").write_text("y = 2\n")
    (folder / "tools" / "empty.py").write_text("")
    (folder / "core/config.py").write_text("Config = 2\n")
    assert ask("code.digest('pipeline.verb')") == first
    late = ask("code.digest('pipeline.verb', without=frozenset(['pipeline/early.py']))")
    (folder / "early.py").write_text("x = 2\n")
    assert ask("code.digest('pipeline.verb')") != first
    assert ask("code.digest('pipeline.verb', without=frozenset(['pipeline/early.py']))") == late


def test_a_folder_stands_for_its_files_where_all_of_them_count(package):
    _, ask = package
    assert ask("code.fold(code.closure('pipeline.verb'))") == [
        "pipeline/early.py",
        "pipeline/late.py",
        "pipeline/tools",
        "pipeline/verb/__init__.py",
        "pipeline/verb/config.py",
    ]
    assert "pipeline/verb" in ask("code.fold(code.closure('pipeline.verb') | {'pipeline/verb/page.html'})")


@pytest.mark.parametrize("name", [*STUDENTS, *TEACHERS])
def test_a_model_hangs_on_no_model_of_another_family(name):
    modules = {module_of(other) for other in [*STUDENTS, *TEACHERS]} - {module_of(name)}
    others = {f"{module.replace('.', '/')}.py" for module in modules}
    assert f"{module_of(name).replace('.', '/')}.py" in code.closure(module_of(name))
    for stage in ("distill", "align", "export", "quantize", "build_engine", "evaluate"):
        assert not others & code.closure(f"pipeline.{stage}", module_of(name))
