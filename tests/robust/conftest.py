import pytest

from robust.helpers import pack_small


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return pack_small(tmp_path_factory.mktemp("network"))
