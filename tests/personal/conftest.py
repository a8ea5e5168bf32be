"""The clients' data that tests of methods with personal prompts have in common."""

from __future__ import annotations

import pytest

from fedmoe.config import FeatureConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.models.clip import FrozenCLIP
from personal.helpers import CONFIG


@pytest.fixture(scope="session")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)
