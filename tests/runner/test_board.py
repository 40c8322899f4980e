"""Readings of a board: published lines of tegrastats, a made-up /sys, stand-ins for tegrastats and NVML."""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path

import pytest
from edgevlm_runner import board
from edgevlm_runner.board import Reading, Watch, parse_tegrastats

NANO = (
    "RAM 1655/3956MB (lfb 311x4MB) SWAP 0/1978MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [12%@102,10%@102,11%@102,12%@102] EMC_FREQ 3%@1600 GR3D_FREQ 0%@76 APE 25 PLL@36.5C CPU@39C "
    "iwlwifi@44C PMIC@50C GPU@37C AO@47.5C thermal@38C POM_5V_IN 2132/2132 "
    "POM_5V_GPU 78/78 POM_5V_CPU 275/275"
)
XAVIER_NX = (
    "RAM 4412/7772MB (lfb 237x4MB) SWAP 139/3886MB (cached 2MB) CPU [9%@1190,6%@1190,6%@1190,5%@1190] "
    "EMC_FREQ 10%@1600 GR3D_FREQ 62%@306 APE 150 MTS fg 0% bg 0% AO@41.5C GPU@43C PMIC@100C AUX@41.5C "
    "CPU@43.5C thermal@42.55C VDD_IN 4067/4067 VDD_CPU_GPU_CV 738/738 VDD_SOC 1353/1353"
)
AGX_XAVIER = (
    "RAM 721/31927MB (lfb 7291x4MB) SWAP 0/15963MB (cached 0MB) CPU [2%@1190,0%@1190,off,off] "
    "EMC_FREQ 0%@665 GR3D_FREQ 0%@318 APE 150 "
    "MTS fg 0% bg 0% AO@37.5C GPU@37.5C Tdiode@40C PMIC@100C AUX@36C CPU@37.5C "
    "thermal@36.9C Tboard@37C GPU 0/0 CPU 311/311 SOC 932/932 CV 0/0 VDDRQ 621/621 SYS5V 1482/1482"
)
ORIN_NANO = (
    "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) SWAP 1518/16384MB (cached 174MB) "
    "CPU [1%@1420,2%@1420,0%@1420,2%@1420,2%@729,1%@729] GR3D_FREQ 0% cpu@50.031C soc2@49.031C soc0@50C "
    "gpu@49.031C tj@50.25C soc1@50.25C VDD_IN 4824mW/4824mW VDD_CPU_GPU_CV 518mW/518mW VDD_SOC 1475mW/1475mW"
)
AGX_ORIN_7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 12%@[1300,1300] NVENC0 off VIC off OFA off NVDLA0 off PVA0_FREQ off APE 174 "
    "cpu@52.968C/52.968C soc2@48.406C/48.406C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW "
    "VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
THOR = "RAM 4722/7844MB (lfb 1x512kB) EMC_FREQ 2%@1866 GR3D_FREQ @[1000,1000,1000] APE 150 cv0@-256C"


@pytest.mark.parametrize(
    ("line", "watts", "celsius", "megahertz", "megabytes"),
    [
        (NANO, 2.132, 47.5, 76, 1655),
        (XAVIER_NX, 4.067, 43.5, 306, 4412),
        (AGX_XAVIER, 3.346, 40, 318, 721),
        (ORIN_NANO, 4.824, 50.25, None, 3452),
        (AGX_ORIN_7, 13.907, 52.968, 1300, 20642),
        (THOR, None, None, 1000, 4722),
        ("", None, None, None, None),
    ],
)
def test_lines_of_tegrastats(
    line: str, watts: float | None, celsius: float | None, megahertz: float | None, megabytes: int | None
) -> None:
    found = parse_tegrastats(line)
    assert found.power_w == (None if watts is None else pytest.approx(watts))
    assert found.temperature_c == celsius
    assert found.gpu_clock_mhz == megahertz
    assert found.memory_bytes == (None if megabytes is None else megabytes << 20)


def put(root: Path, files: dict[str, object]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """What an AGX Orin has below /sys, as far as it is read."""
    root = tmp_path / "sys"
    put(
        root,
        {
            "class/hwmon/hwmon0/name": "pwmfan",
            "class/hwmon/hwmon1/name": "ina3221",
            "class/hwmon/hwmon1/in1_label": "VDD_GPU_SOC",
            "class/hwmon/hwmon1/in1_input": 20000,
            "class/hwmon/hwmon1/curr1_input": 250,
            "class/hwmon/hwmon1/in2_label": "VDDQ_VDD2_1V8AO",
            "class/hwmon/hwmon1/in2_input": 5000,
            "class/hwmon/hwmon1/curr2_input": 100,
            "class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
            "class/hwmon/hwmon1/in7_input": 12,
            "class/hwmon/hwmon3/name": "soctherm_oc",
            "class/hwmon/hwmon3/oc1_event_cnt": 0,
            "class/hwmon/hwmon3/oc3_event_cnt": 7,
            "class/thermal/thermal_zone0/type": "cpu-thermal",
            "class/thermal/thermal_zone0/temp": 51687,
            "class/thermal/thermal_zone2/type": "cv0-thermal",
            "class/thermal/thermal_zone2/temp": -256000,
            "class/thermal/thermal_zone3/type": "PMIC-Die",
            "class/thermal/thermal_zone3/temp": 100000,
            "class/thermal/cooling_device0/type": "pwm-fan",
            "class/thermal/cooling_device0/cur_state": 3,
            "class/thermal/cooling_device1/type": "gpu-throttle-alert",
            "class/thermal/cooling_device1/cur_state": 0,
        },
    )
    (root / "class/thermal/thermal_zone4").mkdir()  # one that cannot be read
    return root


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tegrastats on the path, no NVML."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "pynvml", None)


def seen(watch: Watch, count: int) -> None:
    """Wait for that many samples."""
    for _ in range(500):
        if len(watch._readings) >= count:
            return
        time.sleep(0.01)
    pytest.fail("no samples")


def test_the_kernels_monitors(bare: None, system: Path) -> None:
    assert board.read_sysfs(system) == Reading(power_w=5.0, temperature_c=51.687)
    with Watch(system, 0.01) as watch:
        seen(watch, 3)
    summary = watch.summary()
    assert summary["source"] == "ina3221" and summary["samples"] >= 3
    assert summary["power_w_mean"] == summary["power_w_max"] == 5.0
    assert summary["temperature_c_max"] == 51.687
    assert summary["throttled"] is False and summary["throttled_by"] == []


def test_throttling_is_flagged_with_its_reason(bare: None, system: Path) -> None:
    with Watch(system, 0.01) as watch:
        seen(watch, 2)
        put(system, {"class/hwmon/hwmon3/oc3_event_cnt": 9, "class/thermal/cooling_device1/cur_state": 1})
        seen(watch, len(watch._readings) + 2)
        put(
            system, {"class/thermal/cooling_device1/cur_state": 0}
        )  # cool again: it was throttled all the same
    assert watch.summary()["throttled"] is True
    assert watch.summary()["throttled_by"] == ["gpu-throttle-alert", "over-current oc3 (+2)"]


def test_heat_of_an_x86_processor_is_counted(bare: None, tmp_path: Path) -> None:
    name = "devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    put(tmp_path, {name: 4})
    with Watch(tmp_path, 0.01) as watch:
        put(tmp_path, {name: 5})
    assert watch.summary()["throttled_by"] == ["heat of cpu0 (+1)"]


def test_a_machine_that_tells_nothing(bare: None, tmp_path: Path) -> None:
    with Watch(tmp_path, 0.01) as watch:
        seen(watch, 1)
    summary = watch.summary()
    assert summary["source"].startswith("none: ")
    assert summary["power_w_mean"] is None and summary["throttled"] is None and summary["throttled_by"] == []


def test_tegrastats_runs_along_and_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, asked = tmp_path / "tegrastats", tmp_path / "asked"
    tool.write_text(
        f"#!/bin/sh\necho $$ $* > {asked}\n"
        f"while true; do echo '{XAVIER_NX}'; echo '{NANO}'; sleep 0.01; done\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with Watch(tmp_path, 0.25) as watch:
        seen(watch, 4)
    summary = watch.summary()
    assert summary["source"] == "tegrastats" and summary["power_w_max"] == 4.067
    assert 2.132 < summary["power_w_mean"] < 4.067 and summary["gpu_clock_mhz_min"] == 76
    process, *arguments = asked.read_text().split()
    assert arguments == ["--interval", "250"]
    assert not Path("/proc", process).exists()


def test_nvml_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    class NVMLError(Exception):
        pass

    def not_supported(card: object) -> int:
        raise NVMLError

    fake = types.ModuleType("pynvml")
    fake.__dict__.update(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: "card",
        nvmlDeviceGetPowerUsage=not_supported,
        nvmlDeviceGetTemperature=lambda card, sensor: 61,
        nvmlDeviceGetClockInfo=lambda card, clock: 1410,
        nvmlDeviceGetMemoryInfo=lambda card: types.SimpleNamespace(used=5 << 30),
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda card: 0x1 | 0x40,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    with Watch(tmp_path, 0.01) as watch:
        seen(watch, 1)
    summary = watch.summary()
    assert summary["source"] == "nvml" and summary["power_w_mean"] is None
    assert summary["temperature_c_max"] == 61.0 and summary["memory_used_bytes_max"] == 5 << 30
    assert summary["throttled_by"] == ["hot (hardware)"]
