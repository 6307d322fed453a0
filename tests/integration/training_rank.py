"""One process of a distributed run for the tests: a JSON object of dotted options on the command line, nothing printed.

``--stop-after N`` sends this process SIGTERM behind step N; it then ends with 130, as the command line does.
"""

import json
import signal
import sys
import warnings

warnings.simplefilter("error")

import torch  # noqa: E402

from sra_train.config import load_config  # noqa: E402
from sra_train.run import run  # noqa: E402
from tests.training_runs import Interrupting  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    stop_after = int(sys.argv[2]) if len(sys.argv) > 2 else -1
    try:
        run(load_config(overrides=json.loads(sys.argv[1])), Interrupting(stop_after, signal.SIGTERM))
    except KeyboardInterrupt:
        code = 130
    else:
        code = 0
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(code)
