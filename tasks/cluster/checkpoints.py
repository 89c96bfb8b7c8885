"""Copies of checkpoints below a cluster's root: whole or not at all, their digests compared."""

from pathlib import Path

from sdcore.errors import ModelError
from sdcore.models import sealed, weight_files
from sdcore.store.parts import Folder
from tasks.run.checkpoints import damage
from tasks.run.condition_run import StoredPolicy
from tasks.run.progress import note


def push(workspace: Path, policy: StoredPolicy, root: Folder) -> None:
    """Copy a policy's checkpoint below the root, unless it is there or the workspace has none."""
    place, folder = _place(root, policy), workspace / policy.checkpoint
    if place.has(sealed.CHECKSUMS) or damage(workspace, policy, resumable=False):
        return
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: name == sealed.CHECKSUMS):  # it stands for whole
        target = place / name
        target.parent.make()
        place.files.put_file(str(folder / name), target.path)


def pull(workspace: Path, policy: StoredPolicy, root: Folder, *, resumable: bool) -> None:
    """Copy a policy's checkpoint into a workspace that lacks it, if it is whole below the root.

    With `resumable` it lacks it also where it has the weights alone.
    """
    place = _place(root, policy)
    if not place.has(sealed.CHECKSUMS) or not damage(workspace, policy, resumable=resumable):
        return
    try:
        with sealed.replacing(workspace / policy.checkpoint) as fresh:
            for path in place.files.find(place.path):
                target = fresh / path[len(place.path) + 1 :]
                target.parent.mkdir(parents=True, exist_ok=True)
                place.files.get_file(path, str(target))
            weight_files.require(fresh, policy.sha256)
            (fresh / sealed.CHECKSUMS).unlink()  # `replacing` writes it
    except ModelError as error:
        note(f"a copied checkpoint is damaged, and removed ({error.what}): {place.path}")
        place.remove()


def prune(workspace: Path, policy: StoredPolicy, root: Folder) -> None:
    """Remove the copies of checkpoints of a policy's run that the workspace no longer has."""
    own = policy.checkpoint.parent
    place = root / own.as_posix()
    for name in place.names():
        if not (workspace / own / name.rpartition("-")[0]).exists():
            (place / name).remove()


def _place(root: Folder, policy: StoredPolicy) -> Folder:
    return root / f"{policy.checkpoint.as_posix()}-{policy.sha256[:16]}"
