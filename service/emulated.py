"""What a tier that plays another device costs, from the profile's name; the profiles are loaded only if one is named."""

from __future__ import annotations

import importlib

from tierstore.ringbuf.errors import ConfigError

Cost = tuple[int, int, int, int]
MEDIA = {"pmem_profile": ("memory", "pmem"), "disk_profile": ("disk",)}


def emulated(name: str, key: str) -> tuple[Cost, str]:
    """Added ps per byte read and written, ns per read and write; and what output must say. key: the setting's name.

    Raises: ConfigError for an unknown profile, one with impossible numbers, or one of another medium.
    """
    if name == "none":
        return (0, 0, 0, 0), ""
    profiles = importlib.import_module("tierstore.emulation.profiles")
    profile = profiles.load(name, key)
    label = str(profiles.label(profile))
    if not profile.adds_cost:
        return (0, 0, 0, 0), label
    if profile.medium not in MEDIA[key]:
        fitting = [known for known in profiles.names() if profiles.load(known).medium in MEDIA[key]]
        raise ConfigError(key, name, f"a profile of {' or '.join(MEDIA[key])}: {', '.join(fitting)}")
    read, write = (round(1e12 / rate) for rate in (profile.read_bytes_per_s, profile.write_bytes_per_s))
    return (read, write, round(profile.added_read_latency_ns), round(profile.write_latency_ns)), label
