"""One process of a job that trains the stand-in family: `tiny_job.py RUN HANG_AFTER_S JOIN_WITHIN_S PAUSE_S`.

At the step that EDITJAX_TEST_POISON names the batches hold NaN; EDITJAX_TEST_UNREADABLE is where the second
process cannot read its batch; in the save of step 12 the disk of process EDITJAX_TEST_FULL fills up, and
process EDITJAX_TEST_DIES is killed. EDITJAX_TEST_MESH is the axis over which the two devices lie.
"""

import os
import resource
import signal
import sys
from functools import partial
from pathlib import Path

import editjax.lock
from editjax.cli import ended
from editjax.cli.train import in_job


def train() -> int:
    import jax
    from jax.experimental.multihost_utils import process_allgather
    from orbax.checkpoint import v1 as ocp
    from tiny_family import FAMILY, TinyBatches, TinyData, digest, tiny_config, validate

    from editjax import mesh
    from editjax.errors import DataError
    from editjax.train import train

    class Batches(TinyBatches):
        def __next__(self):
            if jax.process_index() == 1 and self.position == int(
                os.environ.get("EDITJAX_TEST_UNREADABLE", -1)
            ):
                raise DataError("shards/0: damaged")
            return super().__next__()

    def save(path: Path, *parts: object, **options: object) -> object:
        if path.name.endswith("-12"):
            if os.environ.get("EDITJAX_TEST_FULL") == str(jax.process_index()):
                resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
            if os.environ.get("EDITJAX_TEST_DIES") == str(jax.process_index()):
                os.kill(os.getpid(), signal.SIGKILL)
        return whole_save(path, *parts, **options)

    whole_save, ocp.save_checkpointables = ocp.save_checkpointables, save
    first = int(os.environ.get("EDITJAX_TEST_POISON", -1))
    data = TinyData(poison_from=first, poison_until=first + 1 if first >= 0 else -1)
    mesh.SMALLEST_SPLIT = 1
    settings = mesh.MeshSettings(**{os.environ.get("EDITJAX_TEST_MESH", "data"): 2})
    config = tiny_config(steps=24, data=data, checkpoint_every=3, validate_every=7, mesh=settings)
    share = mesh.share_of_examples(mesh.make_mesh(settings))
    batches = Batches(data, pause_s=float(sys.argv[4]), share=share)
    state = train(config, batches, sys.argv[1], validate=validate, family=FAMILY)
    print(digest(jax.tree.map(partial(process_allgather, tiled=True), state)), flush=True)
    return 0


if __name__ == "__main__":
    editjax.lock.BEAT_S = 0.2
    hang_after_s, join_within_s = map(float, sys.argv[2:4])
    run_dir, limits = Path(sys.argv[1]), {"hang_after_s": hang_after_s, "join_within_s": join_within_s}
    sys.exit(ended(lambda: in_job([sys.executable, *sys.argv], run_dir, train, **limits)))
