"""The pruner of a process, loaded when the first context is to be pruned."""

import hashlib
import threading

from serving.context.pruning import RULES_VERSION, Pruner
from serving.context.ranking import Ranker, load_models
from serving.contracts.context_settings import ContextSettings
from serving.embedding.token_vectors import TokenVectors


class LazyPruner:
    """Loads the model now and the vectors at the first use, which takes about 1 s and 12 MB.

    Raises InvalidSettings for a model that cannot be used.
    """

    def __init__(self, settings: ContextSettings) -> None:
        self._settings = settings
        self._model = load_models(settings.model).of("tokens")
        self._pruner: Pruner | None = None
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        """Return the digest of all that decides what is removed, and of which contexts."""
        settings = self._settings
        contexts = f"{sorted(settings.tools)} {settings.min_tokens} {settings.max_tokens}"
        content = f"{RULES_VERSION} {contexts} {self._model.model_dump_json()}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def get(self) -> Pruner:
        """Return the pruner. Blocking at the first use. Threads may share it."""
        with self._lock:
            if self._pruner is None:
                self._pruner = Pruner(Ranker(TokenVectors()), self._model)
            return self._pruner
