from pathlib import Path

import pytest

from segmoe.events import ExpertKey
from segmoe.manifest import Segment
from tests import tiny
from tests.segmoe.large import write
from tests.segmoe.test_expect import COUNT


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers x 8 experts, top-3, fp32, hub layout in 5 shards; nobody writes here."""
    return tiny.save(tiny.build("Qwen3Moe"), tmp_path_factory.mktemp("qwen3"), shards=5)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[ExpertKey, Segment]:
    """12 experts of 1 MiB in one file; nobody writes here."""
    return write(tmp_path_factory.mktemp("large") / "all", COUNT)
