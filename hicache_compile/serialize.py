"""Conversion of policies to and from plain JSON: the public names of ``hicache_compile.policy.json_codec``."""

from hicache_compile.policy.json_codec import as_policy, from_dict, from_json, to_dict, to_json

__all__ = ["as_policy", "from_dict", "from_json", "to_dict", "to_json"]
