import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BEFORE = "import sys, pipeline.models.published as ours; assert 'torchvision' not in sys.modules; "
USES = {
    "a name of the package": "from segment_anything import SamPredictor, sam_model_registry",
    "a submodule": "import segment_anything.predictor; assert segment_anything.SamPredictor",
    "an attribute": "import segment_anything as sa; sa.sam_model_registry['vit_b']; sa.modeling.Sam; sa.utils.amg",
    "all of it": "from segment_anything import *; SamAutomaticMaskGenerator",
    "the same classes": "from segment_anything.modeling import PromptEncoder as P; assert P is ours.PromptEncoder",
    "no such name": """
try:
    from segment_anything import nothing
except ImportError as error:
    assert 'nothing' in str(error)
else:
    raise AssertionError('imported')
""",
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_whole_package_is_there_for_whoever_asks(use):
    code = BEFORE + ("exec(" + repr(use) + ")")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_package_that_was_imported_before_is_left_alone():
    code = "import segment_anything as sa, sys; import pipeline.models; assert sys.modules['segment_anything'] is sa"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
