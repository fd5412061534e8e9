"""Taking a guarded denoiser elsewhere: ONNX, ``torch.export``, AOTInductor.

What leaves is one graph with both branches in it, and a manifest that says how to drive it.
"""

from hicache_compile.export.files import export_aoti, export_onnx, export_program
from hicache_compile.export.runner import OnnxDenoiser

__all__ = ["OnnxDenoiser", "export_aoti", "export_onnx", "export_program"]
