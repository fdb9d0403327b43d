"""An unchanged night on all families with the services warm: what it costs, and that it trains nothing.

The list is that of configs/nightly.yaml on the real sets, with small nets and few epochs: an unchanged night
does not depend on them, and does on the number of steps and on the size of the data. CPU-seconds are those
of the command with all its processes, and apart those of the services meanwhile.
"""

import os
import time

import psutil

from bench._house import House, house
from bench._rows import OUT, bar, machine, write

WALL_S = 30.0
CPU_S = 25.0
NIGHTS = 3
NIGHT = """
flow: nightly
experiments:
  - etl.yaml
  - {config: cifar10.yaml, cnn: {epochs: 1, channels: 8}}
  - {config: fashion.yaml, cnn: {epochs: 1, channels: 8}}
  - {config: bccd.yaml, name: cells, scenes: {size: 96}, yolo: {epochs: 1}}
  - {config: facebook.yaml, name: pages, gnn: {epochs: 3}}
  - {config: cora.yaml, name: papers, gnn: {epochs: 3}}
  - {config: graph.yaml, name: planes, gnn: {epochs: 3}}
  - {config: agent.yaml, name: cartpole, agent: {total_steps: 4096, eval_every: 2048}}
"""


def main() -> int:
    with house() as home:
        (home.root / "configs" / "unchanged.yaml").write_text(NIGHT)
        first = night(home)
        nights = [night(home) for _ in range(NIGHTS)]
    write(
        OUT / "night_unchanged.json",
        {"machine": machine(), "load": os.getloadavg()[0], "first": first, "nights": nights},
    )
    worst = {
        name: max(one[name] for one in nights) for name in ("wall_s", "cpu_s", "services_cpu_s", "trained")
    }
    named = min(one["named"] for one in nights)
    print(
        f"{machine()}\n| {NIGHTS} unchanged nights of {first['steps']} steps, the worst | measured | bar | |"
    )
    print("| --- | --- | --- | --- |")
    met = [
        bar(
            "steps that ran in the first night",
            first["trained"],
            first["steps"],
            first["trained"] == first["steps"],
        ),
        bar("steps that ran", worst["trained"], 0, worst["trained"] == 0),
        bar("steps that name the run they come from", named, first["steps"], named == first["steps"]),
        bar("wall seconds", f"{worst['wall_s']:.1f}", f"<= {WALL_S:.0f}", worst["wall_s"] <= WALL_S),
        bar(
            "CPU-seconds of the command", f"{worst['cpu_s']:.1f}", f"<= {CPU_S:.0f}", worst["cpu_s"] <= CPU_S
        ),
    ]
    print(
        f"the first night took {first['wall_s']:.0f} s; "
        f"in an unchanged one the services took {worst['services_cpu_s']:.1f} CPU-s"
    )
    return 0 if all(met) else 1


def night(home: House) -> dict[str, float]:
    services = _services(home)
    began = time.monotonic()
    text, code, cpu = home.run("run", "unchanged")
    wall = time.monotonic() - began
    if code:
        raise SystemExit(text)
    rows = home.rows()
    return {
        "steps": len(rows),
        "trained": sum(row["state"] == "done" for row in rows),
        "named": sum(row["text"].startswith("since ") and "(run " in row["text"] for row in rows),
        "wall_s": wall,
        "cpu_s": cpu,
        "services_cpu_s": _services(home) - services,
    }


def _services(home: House) -> float:
    """CPU-seconds of the checkout's processes so far."""
    total = 0.0
    for process in psutil.process_iter():
        try:
            if process.environ().get("OVERNIGHT_ROOT") == str(home.root):
                used = process.cpu_times()
                total += used.user + used.system
        except psutil.Error:
            continue
    return total
