"""Running an exported denoiser in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.export.manifest import Manifest, plan_of
from hicache_compile.export.sizes import size_of
from hicache_compile.policy.json_codec import as_policy

Array = np.ndarray[Any, np.dtype[Any]]
Plan = dict[str, list[Any]]


class OnnxDenoiser:
    """An ONNX file of ``export_onnx``, with the state and the step counter it needs.

    ::

        denoiser = OnnxDenoiser("flux.onnx")
        with denoiser.trajectory(num_steps=50):
            for t in timesteps:
                (sample,) = denoiser(hidden_states=x, timestep=t, ...)

    Args:
        path: the file.
        policy: another policy than the one it was exported with; its ring is no larger.
        session_options, providers: as in ``onnxruntime.InferenceSession``; by default the CPU.

    Raises:
        HiCacheError: the file was not written by ``export_onnx``, or ``policy`` needs more anchors than it has.
    """

    def __init__(
        self,
        path: str | Path,
        policy: Any = None,
        session_options: Any = None,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> None:
        import onnxruntime

        if not Path(path).is_file():
            raise HiCacheError(f"OnnxDenoiser.path = {str(path)!r}: must be a file of export_onnx")
        self.session = onnxruntime.InferenceSession(str(path), session_options, providers=list(providers))
        described = self.session.get_modelmeta().custom_metadata_map.get("hicache_compile.manifest")
        if described is None:
            raise HiCacheError(f"OnnxDenoiser.path = {str(path)!r}: must be a file of export_onnx, it has no manifest")
        self.manifest = Manifest.from_json(described)
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._policy = as_policy(self.manifest.policy if policy is None else policy)
        if self._policy.depth > self.manifest.depth:
            raise HiCacheError(
                f"OnnxDenoiser.policy needs {self._policy.depth} anchors: must be at most "
                f"{self.manifest.depth}, what the rings of the file hold"
            )
        self._plan: Plan | None = None
        self._context = "default"
        self._states: dict[str, tuple[int, list[Any]]] = {}  # step, rings

    @contextmanager
    def trajectory(self, num_steps: int) -> Iterator[None]:
        """One sampling run. A single step runs in full without one.

        Raises:
            HiCacheError: ``num_steps`` is not positive or not what the policy is made for, or a run is open.
        """
        whole_number("trajectory", "num_steps", num_steps, 1)
        if self._plan is not None:
            raise HiCacheError(f"trajectory({num_steps}): a trajectory is open already")
        self._policy.decisions(num_steps)
        self._plan = plan_of(self._policy, num_steps, self.manifest.depth)
        self._states = {}
        try:
            yield
        finally:
            self._plan, self._states = None, {}

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """Calls inside belong to the guidance branch ``name``."""
        outer, self._context = self._context, name
        try:
            yield
        finally:
            self._context = outer

    def __call__(self, **arguments: Array) -> tuple[Array, ...]:
        """One step: the denoiser's tensor arguments by name, its outputs in order.

        Raises:
            HiCacheError: an argument is missing, unknown, or of another shape or dtype; or the run is over. Nothing is
                changed then.
        """
        known = self._check(arguments)
        step, rings = self._states.get(self._context, (0, None))
        plan = self._plan or plan_of(self._policy, 1, self.manifest.depth)
        if step >= len(plan["computing"]):
            raise HiCacheError(f"step {step} of context {self._context!r}: the trajectory has {step} steps")
        rings = rings or self._zeros(known)
        row = np.asarray(plan["weights"][step], dtype=self.manifest.weights_dtype)
        outputs = self.step(arguments, plan["computing"][step], plan["position"][step], row, rings)
        count = len(self.manifest.outputs)
        if self._plan is not None:
            self._states[self._context] = (step + 1, outputs[count:])
        return tuple(value.numpy() for value in outputs[:count])

    def step(
        self, arguments: Mapping[str, Array], computing: bool, position: int, weights: Array, rings: list[Any]
    ) -> list[Any]:
        """One step with state of the caller's: OrtValues in, the outputs and the next rings as OrtValues out.

        Raises:
            HiCacheError: ``rings`` are not those of the manifest.
        """
        if len(rings) != len(self.manifest.state):
            raise HiCacheError(f"state has {len(rings)} rings: must be {len(self.manifest.state)}")
        known = self._check(arguments)
        for port, ring in zip(self.manifest.state, rings, strict=True):
            port.refuse("state", tuple(ring.shape()), _element(ring), known)
        feed = {name: self._value(np.ascontiguousarray(value)) for name, value in arguments.items()}
        feed["computing"] = self._value(np.asarray(computing))
        feed["position"] = self._value(np.asarray([position], dtype=np.int64))
        feed["weights"] = self._value(weights)
        feed |= dict(zip((port.name for port in self.manifest.state), rings, strict=True))
        read = {entry.name for entry in self.session.get_inputs()}
        wanted = [*self.manifest.outputs, *self.manifest.next_state]
        return list(self.session.run_with_ort_values(wanted, {k: v for k, v in feed.items() if k in read}))

    def _check(self, arguments: Mapping[str, Array]) -> dict[str, int]:
        """Refuse what does not fit; returns the sizes that vary."""
        ports = {port.name: port for port in self.manifest.arguments}
        missing, unknown = sorted(ports.keys() - arguments.keys()), sorted(arguments.keys() - ports.keys())
        if missing or unknown:
            raise HiCacheError(
                f"arguments: {', '.join(missing) or 'none'} missing, {', '.join(unknown) or 'none'} unknown; must be "
                f"{', '.join(ports)}"
            )
        known: dict[str, int] = {}
        for name, port in ports.items():
            port.refuse("argument", tuple(np.shape(arguments[name])), str(np.asarray(arguments[name]).dtype), known)
        return known

    def _zeros(self, known: Mapping[str, int]) -> list[Any]:
        shapes = [[size_of(size, known) for size in port.shape] for port in self.manifest.state]
        return [
            self._value(np.zeros(shape, dtype=port.dtype))
            for shape, port in zip(shapes, self.manifest.state, strict=True)
        ]


def _element(value: Any) -> str:
    return {"float": "float32", "double": "float64"}.get(kind := value.data_type()[7:-1], kind)
