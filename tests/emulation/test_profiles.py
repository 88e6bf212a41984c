"""Profiles: ours are complete, yours are checked, and what cannot be is refused with its name, value and limits."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tierstore.emulation import listing
from tierstore.emulation.cost import Access, CostModel
from tierstore.emulation.figures import ERROR_MAX
from tierstore.emulation.profiles import DRAM_READ_LATENCY_NS, LIMITS, NOT_MODELLED, label, load, names
from tierstore.ringbuf.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "emulation/profile_data"
DOCUMENT = (ROOT / "docs/EMULATION.md").read_text(encoding="utf-8")
ASKED = (
    "none dram optane100-1 optane100-6 optane200 cxl-asic cxl-fpga cxl-x16 numa-remote eadr nvme sata-ssd hdd".split()
)

# A whole profile of a user's, as text that the tests below spoil in one place.
MINE = """
title = "a test device"
origin = "a test"
medium = "pmem"
durable = "flush"
media_grain_bytes = { value = 256, error = 1.0, basis = "measured", source = "test" }
read_latency_sequential_ns = { value = 150, error = 1.0, basis = "measured", source = "test" }
read_latency_random_ns = { value = 300, error = 1.0, basis = "measured", source = "test" }
write_ack_latency_ns = { value = 90, error = 1.0, basis = "measured", source = "test" }
flush_latency_ns = { value = 60, error = 1.0, basis = "measured", source = "test" }
outstanding_per_thread = { value = 10, error = 2.0, basis = "assumed", source = "test" }

[[read]]
threads = [1, 8]
gib_s = [4.0, 20.0]
error = 1.1
basis = "measured"
source = "test"

[[write]]
grain_bytes = 256
threads = [1, 4]
gib_s = [2.0, 8.0]
error = 1.1
basis = "measured"
source = "test"

[[write]]
grain_bytes = 1024
threads = [1, 4]
gib_s = [3.0, 9.0]
error = 1.1
basis = "measured"
source = "test"
"""


def mine(folder: Path, text: str = MINE, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def spoil(folder: Path, old: str, new: str, text: str = MINE) -> ConfigError:
    """The error of a profile with one thing replaced."""
    assert old in text
    with pytest.raises(ConfigError) as caught:
        load(mine(folder, text.replace(old, new, 1)))
    assert "mine" in caught.value.key and caught.value.allowed
    return caught.value


# --- ours -------------------------------------------------------------------------------------------------------------


def test_all_that_were_asked_for_are_there() -> None:
    assert list(names()) == ASKED
    assert sorted(path.stem for path in DATA.glob("*.toml")) == sorted(ASKED)


@pytest.mark.parametrize("name", ASKED)
def test_every_number_has_a_source_and_an_error_bar(name: str) -> None:
    profile = load(name)
    values = profile.trusted()
    assert bool(values) == profile.adds_cost == (name != "none")
    for value in values:
        assert value.source and 1.0 <= value.error <= ERROR_MAX
        if value.basis == "assumed":
            assert value.error >= 1.3, f"{value}: nobody measured it, so say that it may be wrong"


@pytest.mark.parametrize("name", ASKED)
def test_rates_and_latencies_for_those_who_slow_things_down(name: str) -> None:
    profile = load(name)
    if name == "none":
        assert profile.read_latency_ns == profile.write_latency_ns == profile.added_read_latency_ns == 0
        assert profile.read_bytes_per_s == profile.write_bytes_per_s == math.inf
        return
    assert profile.read_latency_ns > 0 and profile.write_latency_ns > 0
    assert profile.added_read_latency_ns == profile.read_latency_ns - DRAM_READ_LATENCY_NS
    assert 0 < profile.write_bytes_per_s <= profile.read_bytes_per_s < math.inf


def test_the_latency_that_is_paid_already_is_that_of_dram() -> None:
    assert load("dram").read_latency_ns == DRAM_READ_LATENCY_NS
    assert load("optane100-6").added_read_latency_ns == 305 - 101


def test_eadr_is_optane_that_flushes_nothing() -> None:
    eadr, optane = load("eadr"), load("optane200")
    assert eadr.read == optane.read and eadr.durable == "visible" and optane.durable == "flush"
    assert (eadr.flush_latency_ns.value, optane.flush_latency_ns.value) == (0, 62)


@pytest.mark.parametrize("name", ASKED)
def test_label(name: str) -> None:
    text = label(load(name))
    assert "\n" not in text and f"profile {name}" in text and "emulated" in text
    assert all(missing in text for missing in NOT_MODELLED)
    assert ("assumed: 10 of 10" in text) == (name in ("nvme", "hdd"))
    assert ("no cost is added" in text) == (name == "none")


def test_the_wheel_has_the_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["tierstore.emulation"]
    packed = {path for pattern in patterns for path in (ROOT / "emulation").glob(pattern)}
    assert packed >= set(DATA.iterdir())


# --- yours ------------------------------------------------------------------------------------------------------------


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    profile = load(mine(tmp_path))
    assert profile.name == "mine" and profile.title == "a test device"
    assert profile.read_bytes_per_s == 20 * (1 << 30)
    model = CostModel(profile)
    assert model.gib_s(Access("ntstore", 1 << 20, 256, 4)) == 8
    assert model.gib_s(Access("ntstore", 1 << 20, 512, 4)) == pytest.approx((8 * 9) ** 0.5)
    assert model.gib_s(Access("store", 1 << 20, 1024, 4)) == 9  # nothing said of plain stores: as the others
    assert model.time_ns(Access("read", 64, 64, pattern="random")) == 300
    assert label(profile).startswith("emulated device, profile mine (a test device); assumed: 1 of 9 figures;")


def test_like_one_of_ours(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    profile, base = load(mine(tmp_path, example, "optane100-6x128.toml")), load("optane100-6")
    assert profile.read_latency_ns == base.read_latency_ns and profile.read != base.read
    assert profile.write_bytes_per_s == 11.6 * (1 << 30)
    assert CostModel(profile).gib_s(Access("ntstore", 1 << 20, 1024, 32)) == 6.6


def test_listing_has_ours_and_the_chosen_one(tmp_path: Path) -> None:
    assert [entry["name"] for entry in listing.listing()] == ASKED
    assert [entry["name"] for entry in listing.listing("eadr")] == ASKED
    assert [entry["name"] for entry in listing.listing(mine(tmp_path))] == [*ASKED, "mine"]
    entry = listing.describe(load("optane100-1"))
    assert entry["figures"]["read_latency_random_ns"] == {
        "value": 305,
        "error": 1.4,
        "basis": "quoted",
        "source": load("optane100-1").read_latency_random_ns.source,
    }
    assert entry["error_max"] == 2.7 and entry["basis"] == {"measured": 6, "quoted": 7, "derived": 3, "assumed": 0}
    json.dumps(listing.listing(), allow_nan=False)


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_unknown_names_get_what_is_near_and_what_is_known() -> None:
    with pytest.raises(ConfigError) as caught:
        load("optane100")
    error = caught.value
    assert (error.key, error.value) == ("pmem_profile", "optane100")
    assert "did you mean 'optane100-" in error.allowed and all(name in error.allowed for name in ASKED)
    with pytest.raises(ConfigError) as caught:
        load("quartz", key="TIERSTORE_PMEM_PROFILE")
    assert caught.value.key == "TIERSTORE_PMEM_PROFILE" and "did you mean" not in caught.value.allowed


LATENCY_300 = "{ value = 300, error = 1.0"


@pytest.mark.parametrize(
    ("old", "new", "key", "value", "allowed"),
    [
        (LATENCY_300, "{ value = -300, error = 1.0", "read_latency_random_ns.value", -300, "from 10 to 1000000000 ns"),
        (LATENCY_300, "{ value = 0, error = 1.0", "read_latency_random_ns.value", 0, "from 10 to"),
        (LATENCY_300, "{ value = 2e9, error = 1.0", "read_latency_random_ns.value", 2e9, "to 1000000000 ns"),
        (LATENCY_300, "{ value = inf, error = 1.0", "read_latency_random_ns.value", math.inf, "a number from 10"),
        (LATENCY_300, "{ value = true, error = 1.0", "read_latency_random_ns.value", True, "a number"),
        (LATENCY_300, "{ value = '300', error = 1.0", "read_latency_random_ns.value", "300", "a number"),
        (LATENCY_300, "{ value = 100, error = 1.0", "read_latency_random_ns", 100, "read_latency_sequential_ns = 150"),
        (LATENCY_300, "{ value = 300, error = 0.5", "read_latency_random_ns.error", 0.5, "from 1 to 10"),
        (LATENCY_300, "{ value = 300, error = 11", "read_latency_random_ns.error", 11, "half to double"),
        (LATENCY_300, "{ valu = 300, error = 1.0", "read_latency_random_ns.valu", 300, "did you mean 'value'"),
        ("{ value = 60, error", "{ value = 0, error", "flush_latency_ns", 0, "durable = visible"),
        ("{ value = 90, error", "{ value = 0, error", "write_ack_latency_ns.value", 0, "from 10"),
        ("{ value = 256, error", "{ value = 32, error", "media_grain_bytes.value", 32, "from 64 to 65536"),
        ('source = "test" }', 'source = " " }', "media_grain_bytes.source", " ", "where the number is from"),
        ('basis = "measured"', 'basis = "guessed"', "media_grain_bytes.basis", "guessed", "assumed"),
        ('durable = "flush"', 'durable = "visible"', "flush_latency_ns", 60, "0, as durable = visible"),
        ('durable = "flush"', 'durable = "yes"', "durable", "yes", "never, flush, visible, sync"),
        ('medium = "pmem"', 'medium = "tape"', "medium", "tape", "memory, pmem, disk"),
        ('medium = "pmem"', 'medium = "none"', "medium", "none", "it has figures"),
        ('title = "a test device"', 'title = ""', "title", "", "a few words"),
        ("gib_s = [4.0, 20.0]", "gib_s = [4.0, 0]", "read[0].gib_s", 0, "from 0.0009765625 to 1024 GiB/s"),
        ("gib_s = [4.0, 20.0]", "gib_s = [-4.0, 20.0]", "read[0].gib_s", -4, "GiB/s"),
        ("gib_s = [4.0, 20.0]", "gib_s = [4.0, 2000]", "read[0].gib_s", 2000, "to 1024 GiB/s"),
        ("gib_s = [4.0, 20.0]", "gib_s = [nan, 20.0]", "read[0].gib_s", None, "GiB/s"),
        ("gib_s = [4.0, 20.0]", "gib_s = [4.0]", "read[0].gib_s", [4.0], "a list of 2 numbers"),
        ("gib_s = [3.0, 9.0]", "gib_s = [3.0, 31.0]", "write", 31, "1.5 times the best read rate of 20 GiB/s"),
        ("threads = [1, 8]", "threads = [8, 1]", "read[0].threads", [8, 1], "larger than the one before"),
        ("threads = [1, 8]", "threads = [0, 8]", "read[0].threads", 0, "from 1 to 1024"),
        ("threads = [1, 8]", "threads = [1.5, 8]", "read[0].threads", [1.5, 8], "whole numbers"),
        ("threads = [1, 8]", "threads = []", "read[0].threads", [], "1 to 32"),
        ("grain_bytes = 256", "grain_bytes = 32", "write[0].grain_bytes", 32, "from 64 to 1048576"),
        ("grain_bytes = 256", "grain_bytes = 1024", "write.grain_bytes", [1024, 1024], "one table for each grain"),
        ("grain_bytes = 256\n", "", "write[0].grain_bytes", None, "it must be given"),
        ("[[read]]", "[[reed]]", "reed", None, "did you mean 'read'"),
        ("[[read]]", "[[store]]", "read", None, "it must be given"),
        ("[[read]]", "[read]", "read", None, "1 to 32 tables [[read]]"),
        ("outstanding_per_thread", "outstanding_max", "outstanding_per_thread", None, "it must be given"),
        ("write_ack_latency_ns", "write_ack_ns", "write_ack_ns", None, "did you mean 'write_ack_latency_ns'"),
        (
            "outstanding_per_thread = { value = 10",
            "remote_read_factor = { value = 0.5",
            "remote_read_factor",
            0.5,
            "1 to",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, old: str, new: str, key: str, value: Any, allowed: str) -> None:
    error = spoil(tmp_path, old, new)
    assert key in error.key and allowed in error.allowed
    assert value is None or error.value == value
    assert str(error.value) in str(error) or repr(error.value) in str(error)


def test_random_faster_than_in_order_is_refused(tmp_path: Path) -> None:
    table = (
        'random_read = { grain_bytes = [64], gib_s = [21], error = 1, basis = "measured", source = "t" }\n\n[[read]]'
    )
    error = spoil(tmp_path, "[[read]]", table)
    assert error.key.endswith("random_read.gib_s") and error.value == 21 and "20 GiB/s" in error.allowed


def test_half_a_rule_for_mixed_traffic_is_refused(tmp_path: Path) -> None:
    half = 'mixed_write_share_max = { value = 0.5, error = 1.0, basis = "measured", source = "t" }\n\n[[read]]'
    assert "both or neither" in spoil(tmp_path, "[[read]]", half).allowed


@pytest.mark.parametrize("key", LIMITS)
def test_limits_are_refused_beyond_and_taken_at(tmp_path: Path, key: str) -> None:
    low, high, _ = LIMITS[key]
    for value in (low - 1, high * 2, math.nan):
        with pytest.raises(ConfigError) as caught:
            load(mine(tmp_path, _like(key, value)))
        assert key in caught.value.key and str(int(high)) in caught.value.allowed
    # Half of the range at least is accepted where no other figure forbids it.
    if key not in ("read_latency_sequential_ns", "mixed_write_share_max", "mixed_read_exponent"):
        assert getattr(load(mine(tmp_path, _like(key, high))), key).value == high


def _like(key: str, value: float) -> str:
    figure = f'{key} = {{ value = {value}, error = 1.0, basis = "measured", source = "test" }}'
    return f'like = "dram"\ntitle = "t"\norigin = "t"\n{figure}\n'


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    for path, why in (
        (str(tmp_path / "absent.toml"), "readable file (No such file"),
        (mine(tmp_path, "title = ", "broken.toml"), "a TOML file"),
        (mine(tmp_path, MINE, "eadr.toml"), "other than our profiles' names"),
        (mine(tmp_path, MINE, "a b.toml"), "a file name of letters"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(path, key="--pmem-profile")
        assert (caught.value.key, caught.value.value) == ("--pmem-profile", path) and why in caught.value.allowed
    (tmp_path / "bytes.toml").write_bytes(b"title = '\xff'")
    with pytest.raises(ConfigError, match="a TOML file"):
        load(str(tmp_path / "bytes.toml"))
    with pytest.raises(ConfigError, match="like = 'optane' cannot be used: one of none, dram"):
        load(mine(tmp_path, 'like = "optane"\ntitle = "t"\norigin = "t"'))
    with pytest.raises(ConfigError, match="title = None"):
        load(mine(tmp_path, 'like = "dram"'))


# --- the command ------------------------------------------------------------------------------------------------------


def doctor(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tierstore.service.cli", "doctor", "--profiles", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_doctor_lists_profiles(tmp_path: Path) -> None:
    entries = json.loads(doctor("--json").stdout)
    assert [entry["name"] for entry in entries] == ASKED
    assert all(entry["label"] == label(load(entry["name"])) for entry in entries)
    text = doctor("--pmem-profile", mine(tmp_path)).stdout
    assert all(name in text for name in (*ASKED, "mine", "FAST'20", *NOT_MODELLED[:3]))
    assert "169 / 305 ns" in text and "4.3 / 42.4" in text
    refused = doctor("--pmem-profile", "optan200")
    assert refused.returncode == 1 and "did you mean 'optane200'" in refused.stderr
    assert "Traceback" not in refused.stderr
