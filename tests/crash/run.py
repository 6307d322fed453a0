"""`python -m tests.crash.run`: all of it, from one seed; exit code 1 if anything was lost, passed, or left a traceback.

--kills N       processes ended by a signal          --flips N       bits turned around, all kinds of files
--malformed N   documents that must be refused       --obstacles N   full disks, read-only folders, mad clocks
--pools N       signals to commands with two workers --seed N       everything random follows from it
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> int:
    """Carry it out; 0 if nothing was violated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    amounts = {"kills": 500, "pools": 8, "flips": 2000, "malformed": 1000, "obstacles": 60, "seed": 0}
    for name, number in amounts.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    wanted = parser.parse_args()
    os.environ.update(ENVIRONMENT, CUDA_VISIBLE_DEVICES="")  # before anything that reads it is imported
    from tests.crash.world import import_everything, make_world

    import_everything()
    from tests.crash.flips import flip
    from tests.crash.kills import kill
    from tests.crash.malformed import malform
    from tests.crash.obstacles import meet
    from tests.crash.pools import kill_pools

    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="crash-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        root.chmod(0o755)
        world = make_world(root)
        say(f"seed {wanted.seed}; " + ", ".join(f"{one.name} {one.seconds:.1f} s" for one in world.commands))
        parts = ("kills", "pools", "flips", "malformed", "obstacles")
        drawn = {part: random.Random(f"{part} {wanted.seed}") for part in parts}
        pools = kill_pools(world, wanted.pools, drawn["pools"], say)
        say(f"pools: ended by a signal: {pools.kills}; {pools.late} were done before theirs; {pools.trials} folders")
        killed = kill(world, wanted.kills, drawn["kills"], say)
        say(f"ended by a signal: {killed.kills}; {killed.late} were done before theirs; {killed.trials} folders")
        met = meet(world, wanted.obstacles, drawn["obstacles"], say)
        say(f"obstacles: {met.counts}")
        # From here on this process works itself, and forks no more.
        flipped = flip(world, wanted.flips, drawn["flips"], say)
        say(f"flipped by kind: {flipped.counts}; seen by verify alone: {flipped.unread}")
        refused = malform(world, wanted.malformed, drawn["malformed"], say)
        say(f"malformed by kind: {refused.counts}; {refused.harmless} more changed nothing that is read")
    violations = pools.violations + killed.violations + met.violations + flipped.violations + refused.violations
    print(
        f"kills {killed.num_kills + pools.num_kills}, violations {len(violations)}, flipped {flipped.num_flipped}, "
        f"caught {flipped.num_caught}, malformed {refused.num_malformed}, refused {refused.num_refused}",
        flush=True,
    )
    return 1 if violations or flipped.num_caught < flipped.num_flipped else 0


if __name__ == "__main__":
    sys.exit(main())
