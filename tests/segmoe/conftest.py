from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers x 8 experts, top-3, fp32, hub layout in 5 shards; nobody writes here."""
    return tiny.save(tiny.build("Qwen3Moe"), tmp_path_factory.mktemp("qwen3"), shards=5)
