"""Real pipelines of diffusers with small random components: text encoders, trained tokenizers, VAEs, denoisers."""

from tests.pipelines.cases import CASES, PipelineCase, by_name

__all__ = ["CASES", "PipelineCase", "by_name"]
