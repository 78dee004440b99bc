"""Peak memory: a fresh process loads one contender, answers one request and says how much it took at most.

The process is ``python -m toprl_export.validate.memory``; it imports torch only when it measures the reference.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from toprl_export.bundle import Bundle, load_bundle
from toprl_export.engine import SessionOptions, get_engine
from toprl_export.runtime.session import EngineSession
from toprl_export.validate.answers import Contender
from toprl_export.validate.latency import Workload, time_request

CONTENDERS = ("reference", "engine_unpruned", "engine")


def peak_memory(bundle_dir: Path, contender: str, keep_counts: Sequence[int], prompt: str, threads: int) -> int:
    """Peak resident bytes of a process that answers ``prompt`` about an empty image on the CPU.

    Raises:
        RuntimeError: the process failed; its error output is in the message.
    """
    arguments = [str(bundle_dir), contender, ",".join(map(str, keep_counts)), prompt, str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "toprl_export.validate.memory", "--", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {contender} failed: {done.stderr.strip()}")
    return int(done.stdout.split()[-1])


def resident_peak() -> int:
    """The highest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its maximum survives exec, so a child would report its parent's peak.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, where there is no /proc


def main() -> None:
    """Answer one request and print the peak."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("keep_counts", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("prompt")
    parser.add_argument("threads", type=int)
    args = parser.parse_args()
    bundle = load_bundle(args.bundle, verify=False)
    session = _open(bundle, args.contender, args.threads)
    time_request(Contender(session, args.keep_counts, agent_index=0), _workload(bundle, args.prompt))
    print(resident_peak())


def _open(bundle: Bundle, contender: str, threads: int) -> EngineSession:
    manifest = bundle.manifest
    if contender != "reference":
        options = SessionOptions(threads, "cpu", unpruned=contender == "engine_unpruned")
        return get_engine(manifest.engine.name).open(bundle, options)
    import torch

    from toprl_export.models.load import load_model
    from toprl_export.validate.stock import StockSession

    torch.set_num_threads(threads)
    return StockSession(load_model(manifest.model.id, revision=manifest.model.revision))


def _workload(bundle: Bundle, prompt: str) -> Workload:
    from tokenizers import Tokenizer

    manifest = bundle.manifest
    tokenizer = Tokenizer.from_file(str(bundle.path("tokenizer")))
    tokens = manifest.prompt.tokenize(tokenizer, [prompt], manifest.model.visual_tokens)
    height, width = manifest.image_processor.output_size
    return Workload(np.zeros((1, 3, height, width), np.float32), tokens)


if __name__ == "__main__":
    main()
