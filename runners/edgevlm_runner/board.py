"""Power, temperature, clocks and throttling of the board while evidence is gathered.

Read from whatever the machine offers: `tegrastats` or the kernel's INA3221 monitors on a Jetson, NVML where
`pynvml` is installed, thermal zones on any Linux. Nothing is required and nothing is judged: a machine that
tells nothing is reported as such, and throttling is flagged, because it makes a latency that the next run
will not repeat.

Not run on a Jetson: the lines of tegrastats in the tests were published by users of JetPack 4 to 7.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

INTERVAL_S = 0.5
WHOLE_BOARD = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that feed all others: Xavier NX, Orin Nano and NX; Nano; Thor."""
INSIDE_OTHERS = ("NC", "VDDQ_VDD2_1V8AO")
"""Not connected; and on AGX Orin a part of VIN_SYS_5V0."""
PLAUSIBLE_C = (-40.0, 150.0)
"""Sensors that are switched off tell −256 °C."""

_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?![\dkM])")
_TEMPERATURE = re.compile(r"\b([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C\b")
_RAM = re.compile(r"\bRAM (\d+)/\d+MB")
_GPU = re.compile(r"\bGR3D_FREQ (?:\d+%)?@\[?(\d+)")
_NVML_REASONS = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "hot (software)", 0x40: "hot (hardware)"}
"""Bits of NVML's clocks-throttle reasons that slow the chip down although it has work."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """One moment. None is what the source does not tell."""

    power_w: Optional[float] = None
    temperature_c: Optional[float] = None
    """Of the hottest sensor."""
    gpu_clock_mhz: Optional[float] = None
    memory_bytes: Optional[int] = None
    """In use by everybody on the board, or on the graphics card."""
    throttled_by: Tuple[str, ...] = ()


class Watch:
    """Context manager that samples in a thread until it is left; `summary` says what was seen.

    system: root of /sys, another one in tests.
    """

    def __init__(self, system: Path = Path("/sys"), interval_s: float = INTERVAL_S) -> None:
        self._system, self._interval_s = system, interval_s
        self._readings: List[Reading] = []
        self._reasons: Dict[str, None] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="board", daemon=True)
        self._tegrastats: Optional[subprocess.Popen[str]] = None
        self._nvml: Any = None
        self.source = ""

    def __enter__(self) -> Watch:
        self._counters = throttle_counters(self._system)
        tegrastats = shutil.which("tegrastats")
        if tegrastats:
            command = [tegrastats, "--interval", str(int(1e3 * self._interval_s))]
            self._tegrastats = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True
            )
            self.source = "tegrastats"
        else:
            self._nvml = _open_nvml()
            self.source = "nvml" if self._nvml else ("ina3221" if rails(self._system) else "thermal zones")
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        if self._tegrastats is not None:
            self._tegrastats.terminate()
        self._thread.join(timeout=10)
        if self._tegrastats is not None:
            self._tegrastats.wait()
            assert self._tegrastats.stdout is not None
            self._tegrastats.stdout.close()
        for name, count in throttle_counters(self._system).items():
            more = count - self._counters.get(name, count)
            if more > 0:
                self._reasons[f"{name} (+{more})"] = None

    def summary(self) -> Dict[str, Any]:
        """`board` of evidence.json. `throttled` is None where the machine has no sign of it."""
        readings = list(self._readings)
        power = [one.power_w for one in readings if one.power_w is not None]
        heat = [one.temperature_c for one in readings if one.temperature_c is not None]
        clocks = [one.gpu_clock_mhz for one in readings if one.gpu_clock_mhz is not None]
        memory = [one.memory_bytes for one in readings if one.memory_bytes is not None]
        reasons = sorted({*self._reasons, *(reason for one in readings for reason in one.throttled_by)})
        tells = bool(self._nvml or self._counters or alerts(self._system) is not None)
        known = bool(power or heat or clocks or memory)
        return {
            "source": self.source if known else "none: no tegrastats, INA3221, NVML or thermal zone",
            "samples": len(readings),
            "power_w_mean": round(sum(power) / len(power), 3) if power else None,
            "power_w_max": round(max(power), 3) if power else None,
            "temperature_c_max": max(heat, default=None),
            "gpu_clock_mhz_min": min(clocks, default=None),
            "gpu_clock_mhz_max": max(clocks, default=None),
            "memory_used_bytes_max": max(memory, default=None),
            "throttled": bool(reasons) if tells or reasons else None,
            "throttled_by": reasons,
        }

    def _sample(self) -> None:
        for reading in self._seen():
            self._readings.append(
                dataclasses.replace(reading, throttled_by=reading.throttled_by + (alerts(self._system) or ()))
            )

    def _seen(self) -> Iterator[Reading]:
        if self._tegrastats is not None and self._tegrastats.stdout is not None:
            for line in self._tegrastats.stdout:
                yield parse_tegrastats(line)
            return
        while True:
            yield _read_nvml(self._nvml) if self._nvml else read_sysfs(self._system)
            if self._stop.wait(self._interval_s):
                return


def parse_tegrastats(line: str) -> Reading:
    """One line of `tegrastats`, JetPack 4 to 7. Powers are in milliwatts with and without the unit."""
    temperatures = {name: float(value) for name, value in _TEMPERATURE.findall(line)}
    ram, gpu = _RAM.search(line), _GPU.search(line)
    return Reading(
        power_w=_whole({name: int(value) / 1e3 for name, value in _RAIL.findall(line)}),
        temperature_c=_hottest(temperatures),
        gpu_clock_mhz=float(gpu.group(1)) if gpu else None,
        memory_bytes=int(ram.group(1)) << 20 if ram else None,
    )


def read_sysfs(system: Path) -> Reading:
    """The same from the kernel, without tegrastats: a container rarely has it."""
    zones = {}
    for number, zone in enumerate(sorted((system / "class/thermal").glob("thermal_zone*"))):
        value = _number(zone / "temp")
        if value is not None:
            zones[_text(zone / "type") or str(number)] = value / 1e3
    return Reading(power_w=_whole(rails(system)), temperature_c=_hottest(zones))


def rails(system: Path) -> Dict[str, float]:
    """Watts by rail from the INA3221 monitors: millivolts × milliamperes."""
    found = {}
    for monitor in sorted((system / "class/hwmon").glob("hwmon*")):
        if _text(monitor / "name") != "ina3221":
            continue
        for label in sorted(monitor.glob("in*_label")):
            number = label.name[2:-6]
            volts, amperes = _number(monitor / f"in{number}_input"), _number(monitor / f"curr{number}_input")
            if volts is not None and amperes is not None:  # "sum of shunt voltages" has no current
                found[_text(label)] = volts * amperes / 1e6
    return found


def alerts(system: Path) -> Optional[Tuple[str, ...]]:
    """Throttle alerts that a Jetson's thermal framework raises right now; None where it has none at all.

    Their names end in "-alert", such as gpu-throttle-alert. Other cooling devices (a fan, cpufreq) are at
    work without anything being wrong.
    """
    known = [
        (name, _number(device / "cur_state"))
        for device in sorted((system / "class/thermal").glob("cooling_device*"))
        for name in [_text(device / "type")]
        if name.endswith("-alert")
    ]
    return tuple(name for name, state in known if state) if known else None


def throttle_counters(system: Path) -> Dict[str, int]:
    """Events counted since boot: over-current and under-voltage on a Jetson, heat on an x86 processor."""
    found = {}
    for monitor in (system / "class/hwmon").glob("hwmon*"):
        if _text(monitor / "name") == "soctherm_oc":
            found.update({f"over-current {path.name[:3]}": path for path in monitor.glob("oc*_event_cnt")})
    for path in (system / "devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/package_throttle_count"):
        found[f"heat of {path.parts[-3]}"] = path
    numbers = {name: _number(path) for name, path in found.items()}
    return {name: int(count) for name, count in numbers.items() if count is not None}


def _whole(watts: Mapping[str, float]) -> Optional[float]:
    """Of all the board: the rail that feeds the others where there is one, else their sum."""
    for name in WHOLE_BOARD:
        if name in watts:
            return watts[name]
    parts = [one for name, one in watts.items() if name not in INSIDE_OTHERS]
    return sum(parts) if parts else None


def _hottest(temperatures: Mapping[str, float]) -> Optional[float]:
    """Without the power chip of older boards, whose sensor always tells 50 or 100 °C."""
    low, high = PLAUSIBLE_C
    return max(
        (one for name, one in temperatures.items() if not name.startswith("PMIC") and low < one < high),
        default=None,
    )


def _open_nvml() -> Any:
    """(pynvml, handle of the first card), or None."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # not installed, no library, no card: each its own class
        return None


def _read_nvml(nvml: Any) -> Reading:
    pynvml, card = nvml

    def asked(question: Any, *more: Any) -> Any:
        try:
            return question(card, *more)
        except pynvml.NVMLError:  # some cards do not tell everything
            return None

    milliwatts = asked(pynvml.nvmlDeviceGetPowerUsage)
    celsius = asked(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU)
    megahertz = asked(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM)
    memory = asked(pynvml.nvmlDeviceGetMemoryInfo)
    bits = asked(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
    return Reading(
        power_w=None if milliwatts is None else milliwatts / 1e3,
        temperature_c=None if celsius is None else float(celsius),
        gpu_clock_mhz=None if megahertz is None else float(megahertz),
        memory_bytes=None if memory is None else int(memory.used),
        throttled_by=tuple(reason for bit, reason in _NVML_REASONS.items() if bits & bit),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _number(path: Path) -> Optional[float]:
    try:
        return float(_text(path))
    except ValueError:
        return None
