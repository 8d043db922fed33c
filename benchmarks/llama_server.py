"""llama.cpp's server from the wheel xllamacpp, which needs no compiler.

    pip install xllamacpp==2026.10.11549
    python benchmarks/llama_server.py EXPORT.gguf 8080

The same as `llama-server -m EXPORT.gguf --port 8080 --jinja --skip-chat-parsing --ctx-size 4096
--parallel 1 --threads 1`.
"""

import sys
import threading

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames, params.port = ["127.0.0.1"], int(sys.argv[2])
params.use_jinja = params.force_pure_content_parser = True
params.n_ctx, params.n_parallel = 4096, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
