"""Running an exported denoiser in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hicache_compile.errors import HiCacheError, plain, whole_number
from hicache_compile.export.manifest import Manifest
from hicache_compile.export.plan import Branches, Plan, check_fits, constants_of, control_name, dense, plan_of
from hicache_compile.export.sizes import size_of
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.policy.files import file_path
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.deciders.device_rows import RowSpec

Array = np.ndarray[Any, np.dtype[Any]]

TOKENWISE = control_name(str(Choice.FORECAST.with_tokens()))


class OnnxDenoiser:
    """An ONNX file of ``export_onnx``, with the state and the step counter it needs. ``decisions``: those of the newest
    trajectory, one letter a step, by context.

    ::

        denoiser = OnnxDenoiser("flux.onnx")
        with denoiser.trajectory(num_steps=50):
            for t in timesteps:
                (sample,) = denoiser(hidden_states=x, timestep=t, ...)

    Args:
        path: the file.
        policy: another policy than the one it was exported with, of the same graph: its scope, its kinds and what its
            guards measure are the same, and it reads no more anchors.
        session_options, providers: as in ``onnxruntime.InferenceSession``; by default the CPU.

    Raises:
        HiCacheError: the file was not written by ``export_onnx`` or is damaged, ONNX Runtime has no operator for what
            it computes (``bfloat16`` on a CPU), or ``policy`` needs another graph or more anchors than it has.
    """

    def __init__(
        self,
        path: str | Path,
        policy: Any = None,
        session_options: Any = None,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> None:
        import onnxruntime

        path = file_path("OnnxDenoiser.path", path)
        if not os.path.isfile(path):
            raise HiCacheError(f"OnnxDenoiser.path = {str(path)!r}: must be a file of export_onnx")
        try:
            self.session = onnxruntime.InferenceSession(str(path), session_options, providers=list(providers))
        except Exception as error:  # its errors have no class of their own in common
            reason = str(error).partition("\n")[0][:200]
            raise HiCacheError(
                f"OnnxDenoiser.path = {str(path)!r}: must be a file that ONNX Runtime can run with {list(providers)}; "
                f"{reason}"
            ) from error
        described = self.session.get_modelmeta().custom_metadata_map.get("hicache_compile.manifest")
        if described is None:
            raise HiCacheError(f"OnnxDenoiser.path = {str(path)!r}: must be a file of export_onnx, it has no manifest")
        self.manifest = Manifest.from_json(described)
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        if policy is None and not self.manifest.policy:
            raise HiCacheError(
                "OnnxDenoiser.policy = None: must be the policy of the export, which has parts of your own"
            )
        self._policy = as_policy(self.manifest.policy if policy is None else policy)
        check_fits(self._policy, as_policy(self.manifest.policy) if self.manifest.policy else self._policy)
        self._num_steps: int | None = None  # of the open trajectory
        self._plans: dict[str, Plan] = {}  # by context
        self._constants: dict[str, Any] = {}
        self._context = "default"
        self._states: dict[str, tuple[int, list[Any]]] = {}  # step, state
        self.decisions: dict[str, str] = {}

    @contextmanager
    def trajectory(self, num_steps: int) -> Iterator[None]:
        """One sampling run. A single step runs in full without one.

        Raises:
            HiCacheError: ``num_steps`` is not positive or not what the policy is made for, or a run is open.
        """
        num_steps = plain(num_steps)
        whole_number("trajectory", "num_steps", num_steps, 1)
        if self._num_steps is not None:
            raise HiCacheError(f"trajectory({num_steps}): a trajectory is open already")
        self._policy.decisions(num_steps)
        self._num_steps, self._plans, self._states, self.decisions = num_steps, {}, {}, {}
        try:
            yield
        finally:
            self._num_steps, self._states = None, {}

    def _begin(self, num_steps: int) -> Plan:
        """The plan of a run of ``num_steps`` in this context."""
        manifest, policy = self.manifest, self._policy.for_branch(self._context)
        own = len(manifest.group_of)
        spec = RowSpec(manifest.depth, manifest.groups, manifest.group_of, manifest.per_slot, own, parts=manifest.parts)
        sparsity = None if manifest.sparsity is None else Chipmunk.from_dict(manifest.sparsity)
        names = [port.name for port in manifest.controls]
        branches = Branches(manifest.groups, sparsity is not None, [name for name in names if name == TOKENWISE])
        plan = plan_of(policy, num_steps, spec, branches, sparsity, names)
        constants = constants_of(policy, num_steps, manifest.depth)
        dtypes = {port.name: port.dtype for port in manifest.controls}
        self._constants = {name: self._value(dense(value, dtypes[name])) for name, value in constants.items()}
        return plan

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """Calls inside belong to the guidance branch ``name``."""
        outer, self._context = self._context, name
        try:
            yield
        finally:
            self._context = outer

    def __call__(self, **arguments: Array) -> tuple[Array, ...]:
        """One step: the denoiser's tensor arguments by name, arrays or tensors of torch, and its outputs in order.
        Those that no step reads may be left out.

        Raises:
            HiCacheError: an argument is missing, unknown, or of another shape or dtype; or the run is over. Nothing is
                changed then.
        """
        arguments = {name: _as_array(value) for name, value in arguments.items()}
        known = self._check(arguments)
        step, state = self._states.get(self._context, (0, None))
        is_open = self._num_steps is not None
        if self._context not in self._plans or not is_open:
            self._plans[self._context] = self._begin(self._num_steps or 1)
        plan = self._plans[self._context]
        steps = len(next(iter(plan.values())))
        if step >= steps:
            raise HiCacheError(f"step {step} of context {self._context!r}: the trajectory has {step} steps")
        outputs = self.step(
            arguments, {name: values[step] for name, values in plan.items()}, state or self._first(known)
        )
        count = len(self.manifest.outputs)
        if is_open:
            self._states[self._context] = (step + 1, outputs[count:])
            letter = self._letter(plan, step, outputs[count:])
            self.decisions[self._context] = self.decisions.get(self._context, "") + letter
        return tuple(value.numpy() for value in outputs[:count])

    def step(self, arguments: Mapping[str, Array], controls: Mapping[str, Any], state: list[Any]) -> list[Any]:
        """One step with state of the caller's.

        Args:
            arguments: of the denoiser, by name.
            controls: by name, those of the plan.
            state: OrtValues in the order of the manifest.

        Returns:
            The outputs and the next state, OrtValues.

        Raises:
            HiCacheError: ``state`` is not that of the manifest.
        """
        if len(state) != len(self.manifest.state):
            raise HiCacheError(f"state has {len(state)} tensors: must be {len(self.manifest.state)}")
        known = self._check(arguments)
        for port, kept in zip(self.manifest.state, state, strict=True):
            port.refuse("state", tuple(kept.shape()), _element(kept), known)
        feed = {name: self._value(np.asarray(value, order="C")) for name, value in arguments.items()} | self._constants
        for port in self.manifest.controls:
            if port.name in controls:
                shape = [size for size in port.shape if isinstance(size, int)]
                feed[port.name] = self._value(np.asarray(controls[port.name], dtype=port.dtype).reshape(shape))
        feed |= dict(zip((port.name for port in self.manifest.state), state, strict=True))
        read = {entry.name for entry in self.session.get_inputs()}
        wanted = [*self.manifest.outputs, *self.manifest.next_state]
        return list(self.session.run_with_ort_values(wanted, {k: v for k, v in feed.items() if k in read}))

    def _letter(self, plan: Plan, step: int, state: list[Any]) -> str:
        """The decision of a step, as reports show it."""
        names = [port.name for port in self.manifest.state]
        if "run" in names:
            code = int(state[names.index("run")].numpy()[3])  # see operators.guard_state
            return "F" if not code else "." if code == 1 else "s"
        taken = [name for name in plan if name.startswith("computing") and plan[name][step]]
        if TOKENWISE in taken:
            return "t"
        if len(self.manifest.groups) > 1:
            return "F" if len(taken) == len(self.manifest.groups) else "p" if taken else "."
        return "." if not taken else "S" if any(name.endswith(("sparse", "kept")) for name in taken) else "F"

    def _check(self, arguments: Mapping[str, Array]) -> dict[str, int]:
        """Refuse what does not fit; returns the sizes that vary."""
        ports = {port.name: port for port in self.manifest.arguments}
        missing = sorted(ports.keys() - arguments.keys())
        unknown = sorted(arguments.keys() - ports.keys() - {*self.manifest.unread})
        if missing or unknown:
            raise HiCacheError(
                f"arguments: {', '.join(missing) or 'none'} missing, {', '.join(unknown) or 'none'} unknown; must be "
                f"{', '.join(ports)}"
            )
        known: dict[str, int] = {}
        for name, port in ports.items():
            value = np.asarray(arguments[name])
            port.refuse("argument", value.shape, str(value.dtype), known)
        return known

    def _first(self, known: Mapping[str, int]) -> list[Any]:
        """The state at the start of a run."""
        found = []
        for port in self.manifest.state:
            made = np.zeros([size_of(size, known) for size in port.shape], dtype=port.dtype)
            if port.name in self.manifest.first:
                made[:] = self.manifest.first[port.name]
            found.append(self._value(made))
        return found


def _as_array(value: Any) -> Any:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _element(value: Any) -> str:
    return {"float": "float32", "double": "float64"}.get(kind := value.data_type()[7:-1], kind)
