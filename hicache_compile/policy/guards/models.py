"""TeaCache's fits, by model: polynomial, signal, forced steps. From TeaCache, ComfyUI-TeaCache, LightX2V, vllm-omni and
mlx-teacache (facts, not code). A fit ties to the model, the signal, the resolution class and the step schedule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TeaCacheModel:
    """One fit. ``coefficients``: highest power first; ``warmup``, ``cooldown``: steps its authors force.

    ``threshold``: of about half of the time, by the authors' tables; .2, the default of vllm-omni, where there is none.
    """

    coefficients: tuple[float, ...]
    signal: str = "modulated"
    warmup: int = 1
    cooldown: int = 1
    threshold: float = 0.2


def _time(*coefficients: float, threshold: float = 0.2) -> TeaCacheModel:
    return TeaCacheModel(coefficients, "time", threshold=threshold)


def _ret(*coefficients: float, threshold: float) -> TeaCacheModel:
    """Wan with ret steps: the projected embedding, five forced steps and no forced end."""
    return TeaCacheModel(coefficients, "modulation", 5, 0, threshold)


def _fit(*coefficients: float, threshold: float = 0.2) -> TeaCacheModel:
    return TeaCacheModel(coefficients, threshold=threshold)


_FLUX = _fit(498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861, threshold=0.4)
_COGVIDEOX_5B = _time(-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339, threshold=0.3)
_LUMINA = _fit(393.76566581, -603.50993606, 209.10239044, -23.00726601, 0.86377344, threshold=0.4)

UNPUBLISHED = _fit(1.0, 0.0)  # of a model without a fit: changes count as they are

TEACACHE_MODELS: dict[str, TeaCacheModel] = {
    "flux": _FLUX,
    "tangoflux": _FLUX,
    "flux-kontext": _fit(-1046.55119, 312.563399, -16.9500694, 0.410995971, 0.0374537863, threshold=0.22),
    "hunyuan-video": _fit(733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896, threshold=0.15),
    "hunyuan-video-1.5-i2v-480p": _fit(8085.28429, -2446.07178, 249.489589, -9.10697865, 0.120261379),
    "hunyuan-video-1.5-i2v-720p": _fit(3843.00014, -1392.47433, 169.167679, -7.07679232, 0.102419011),
    "hunyuan-video-1.5-t2v-480p": _fit(-29719.0924, 22283.4983, -4374.1836, 339.340251, -10.1365855, 0.129101768),
    "hunyuan-video-1.5-t2v-720p": _fit(-30890.7507, 16778.6188, -3191.78643, 260.740519, -8.19205881, 0.107913775),
    "wan2.1-t2v-1.3b": _time(2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774, threshold=0.08),
    "wan2.1-t2v-14b": _time(-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
    "wan2.1-i2v-480p": _time(-302.33167, 223.948934, -52.546397, 5.8734844, -0.201973289, threshold=0.26),
    "wan2.1-i2v-720p": _time(-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683, threshold=0.3),
    "wan2.1-t2v-1.3b-ret": _ret(-52186.2437, 9230.41404, -528.275948, 13.6987616, -0.0499875664, threshold=0.1),
    "wan2.1-t2v-14b-ret": _ret(-303318.725, 49053.7029, -2655.30556, 58.7365115, -0.315583525, threshold=0.2),
    "wan2.1-i2v-480p-ret": _ret(257151.496, -35422.9917, 1402.86849, -13.5890334, 0.132517977, threshold=0.3),
    "wan2.1-i2v-720p-ret": _ret(8107.0546, 2133.93892, -372.934672, 16.6203073, -0.0417769401, threshold=0.3),
    "wan2.2-ti2v-5b": _time(157472.669, -115702.395, 31076.1669, -3831.16651, 221.608777, -4.81179567),
    "mochi": _fit(-3512.41319, 811.675948, -60.9400215, 2.42429681, 0.00305291719, threshold=0.09),
    "ltx-video": _fit(21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326, threshold=0.05),
    "cogvideox-2b": _time(-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434, threshold=0.3),
    "cogvideox-5b": _COGVIDEOX_5B,
    "cogvideox-5b-i2v": _COGVIDEOX_5B,
    "consisid": _COGVIDEOX_5B,
    "cogvideox1.5-5b": _time(250.210439, -165.061612, 35.7804877, -0.781551492, 0.0358559703),
    "cogvideox1.5-5b-i2v": _time(122.842302, -104.088754, 26.2981677, -0.306009921, 0.037121322),
    "cosmos": TeaCacheModel((271.156237, -91.9775607, 2.2443725, 2.08355751, 0.14177633), warmup=2, threshold=0.4),
    "lumina-next": _LUMINA,
    "lumina2": _LUMINA,
    "lumina2-v2": _fit(
        225.7042019806413, -608.8453716535591, 304.1869942338369, 124.21267720116742, -1.4089066892956552
    ),
    "lumina2-comfyui": _fit(-874.643948, 466.059906, -75.1559762, 5.32836175, -0.0327258296, threshold=0.38),
    "hidream-full": TeaCacheModel((-31360.5009, -712.425503, 49.1363285, 8.2651549, 0.108053901), "time", 5, 0, 0.35),
    "hidream-dev": TeaCacheModel((1.39997273, -4.30130469, 5.01534416, -2.20504164, 0.93942874), "time", 3, 0, 1.0),
    "hidream-fast": TeaCacheModel((2.26509623, -6.88864563, 7.61123826, -3.10849353, 0.99927602), "time", 2, 0, 1.5),
    "latte": _fit(-2464.34137, 308.044764, 80.7447667, -4.11385132, 0.111001402),
    "open-sora": _fit(217.546007, -118.329252, 26.8662585, -0.0459364272, 0.048442624, threshold=0.1),
    "open-sora-plan": _fit(205943.668, -14875.9286, 306.085986, 1.3141808, 0.00239658469),
    "qwen-image": _fit(45.1442944188745, -52.91131412057809, 17.078368811436963, 0.10393043235768819, 0.0),
    "qwen-image-vllm": _fit(-450.0, 280.0, -45.0, 3.2, -0.02),
    "z-image": TeaCacheModel(
        (-898.9907628349583, 367.7086118008557, -45.41511572598643, 3.95114319842774, 0.0), "residual", threshold=0.12
    ),
}
