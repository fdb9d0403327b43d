"""The program behind `server.llama_cpp`: llama.cpp's server, until a signal."""

import json
import os
import signal
import sys
from pathlib import Path


def main(values: dict[str, str | int], key: str) -> None:
    """Write the address into the file `ready` once it answers."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(values["file"])
    params.model_alias = [str(values["name"])] if values["name"] else []
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [key]
    params.n_parallel = int(values["parallel"])
    params.n_ctx = int(values["context"]) * params.n_parallel
    params.cpuparams.n_threads = len(os.sched_getaffinity(0))
    params.offline, params.ui, params.warmup = True, False, False
    server = xllamacpp.Server(params)
    ready = Path(str(values["ready"]))
    part = ready.with_suffix(".part")
    part.write_text(json.dumps({"url": f"{server.listening_address}/v1"}))
    part.replace(ready)
    while True:
        signal.pause()


if __name__ == "__main__":
    from tasks.llm.server import environment

    main(json.loads(sys.argv[1]), environment(os.environ))
