"""What the library takes from Inductor's internals, which take a second to import: only where Inductor compiles."""

from hicache_compile.internals.feature import Feature

with Feature("Inductor", "use backend='aot_eager'") as INDUCTOR:
    from torch._inductor.compile_fx import compile_fx

with Feature("the layout of streams", "forecasts may copy their anchors once more") as LAYOUT:
    from torch._inductor.inductor_prims import force_stride_order

with Feature("dumps of Inductor's code", "a dump has no code that Inductor generated") as CODE:
    from torch._inductor.graph import GraphLowering

    GraphLowering.save_output_code  # noqa: B018  # looked up

with Feature("AOTInductor packages", "export with export_program or export_onnx") as PACKAGES:
    from torch._inductor import aoti_compile_and_package
