"""A process that draws faces for `pose.data.synthetic`: chunks in, a line of JSON out for each."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the parent ends this one
    from pose.data.synthetic import write_chunk

    task = json.loads(sys.argv[1])
    for split, start, stop in task["chunks"]:
        try:
            lines = write_chunk(Path(task["root"]), task["seed"], split, start, stop, task["size"], task["photo"])
        except OSError as error:
            print(json.dumps({"error": [error.errno, error.strerror, error.filename]}), flush=True)
            return 1
        print(json.dumps({"split": split, "start": start, "lines": lines}), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the parent is gone, and with it everybody who wants the faces
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
