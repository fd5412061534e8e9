"""The HTTP service: pictures made by a Batcher, behind the API of OpenAI's clients."""

from hicache_compile.serving.http.app import create_app
from hicache_compile.serving.http.service import Abilities, Service
from hicache_compile.serving.http.settings import Limits, Settings

__all__ = ["Abilities", "Limits", "Service", "Settings", "create_app"]
