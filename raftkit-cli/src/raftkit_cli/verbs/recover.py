"""``raftkit recover``: a cluster whose majority is lost for good begins again from one survivor."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.failures import CliError
from raftkit_cli.offline import Parts, check_free, log_id_fields, parts_of, run, settings_of
from raftkit_cli.options import Invocation, Verb, pass_invocation
from raftkit_cli.verbs.storage import back_up_parts

if TYPE_CHECKING:
    from raftkit_core.offline.recover import Candidate, RecoveryPlan


@click.command(cls=Verb, name="recover")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.option("--storage", metavar="URL", help="Where the logs live. [default: sqlite:raft.db, in each folder]")
@click.option("--cluster", metavar="NAME", help="Name of the cluster. [default: default]")
@click.option("--state-machine", metavar="NAME", help="What the log drives. [default: kv]")
@click.option(
    "--backup",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the survivor's backup is written first. [default: beside its folder]",
)
@pass_invocation
def recover(
    invocation: Invocation,
    sources: tuple[str, ...],
    storage: str | None,
    cluster: str | None,
    state_machine: str | None,
    backup: Path | None,
) -> None:
    """Begin again from one survivor of a lost quorum.

    When a majority of voters is lost for good, the store with the newest log becomes a new cluster of one. Without
    --yes it only says what it would do. SOURCE is ID=FOLDER, a FOLDER named like its node, or a raftkit.toml; name
    every store that is left, none of them running. What only lost nodes had is gone. The cluster gets a new id, so
    that its old nodes are refused; the others named here are retired. Start the survivor, then let the other nodes
    join with empty folders: raftkit member rejoin ID.

    \b
    raftkit recover n1=raftkit-data/n1
    raftkit recover n1=raftkit-data/n1 n2=raftkit-data/n2 --yes
    """
    flags = {"storage": storage, "cluster": cluster, "state_machine": state_machine}
    stores = {}
    for source in sources:
        parts = _parts(invocation, source, flags)
        if parts.context.node_id in stores:
            raise CliError("USAGE", f"{parts.context.node_id} is named twice", hint="raftkit recover --help")
        stores[parts.context.node_id] = parts
    candidates, plan = run(_plan(stores))
    survivor = stores[plan.survivor]
    folder = survivor.context.data_dir
    assert folder is not None, "made by parts_of"
    file = backup or folder.with_name(f"{folder.name}-before-{plan.new_cluster_id[:8]}.raftkit-backup")
    check_free(file)
    is_begun = any(each.node_id == plan.survivor and each.retired for each in candidates)
    data = _fields(candidates, plan, None if is_begun else file)
    _tell(invocation, candidates, plan)
    if not invocation.yes:
        invocation.out.result("recover", data, lambda: invocation.out.line("nothing was changed; repeat it with --yes"))
        return
    if is_begun:
        invocation.out.note("going on with a recovery that broke off; the backup was written when it began")
    else:
        run(back_up_parts(invocation, survivor, file))
        invocation.out.note(f"{plan.survivor} as it was: {file}")
    # Handles that were closed are not opened again: fresh ones for every pass.
    fresh = {_id: _parts(invocation, source, flags) for _id, source in zip(stores, sources, strict=True)}
    run(_apply(fresh, plan))
    data["applied"] = True

    def human() -> None:
        invocation.out.line(f"{plan.survivor} is cluster {plan.new_cluster_id} now, alone")
        invocation.out.note(
            f"start {plan.survivor} as before; then start the others with empty folders and let each join:"
            " raftkit member rejoin ID --url URL"
        )

    invocation.out.result("recover", data, human)


def _parts(invocation: Invocation, source: str, flags: dict[str, Any]) -> Parts:
    """The adapters of one SOURCE."""
    node_id, separator, folder = source.partition("=")
    path = Path(folder if separator else source)
    if path.suffix == ".toml" and not separator:
        asked = Invocation()
        asked.config_path, asked.plugins = path, invocation.plugins
        return parts_of(settings_of(asked, {"node_id": None, "data_dir": None, **flags}))
    if not path.is_dir():
        raise CliError("STORAGE", f"there is no folder {path}", hint="name the folder of each node: ID=FOLDER")
    node = node_id if separator else path.resolve().name
    return parts_of(settings_of(invocation, {"node_id": node, "data_dir": path, **flags}))


async def _plan(stores: dict[str, Parts]) -> tuple[list[Candidate], RecoveryPlan]:
    from raftkit_core.offline.machine import standing_of
    from raftkit_core.offline.recover import look, plan_recovery
    from raftkit_core.offline.store import open_store

    candidates = []
    for parts in stores.values():
        async with open_store(parts.log, parts.snapshots, parts.context) as store:
            candidates.append(await look(store, await standing_of(store, parts.machine, parts.context)))
    return candidates, plan_recovery(candidates, random_hex=secrets.token_hex(16))


async def _apply(stores: dict[str, Parts], plan: RecoveryPlan) -> None:
    from raftkit_core.offline.recover import apply_recovery, retire_for
    from raftkit_core.offline.store import open_store

    for node_id, parts in stores.items():
        if node_id != plan.survivor:
            async with open_store(parts.log, parts.snapshots, parts.context) as store:
                await retire_for(store, plan)
    parts = stores[plan.survivor]
    async with open_store(parts.log, parts.snapshots, parts.context) as store:
        await apply_recovery(store, plan)


def _fields(candidates: list[Candidate], plan: RecoveryPlan, file: Path | None) -> dict[str, Any]:
    return {
        "applied": False,
        "survivor": plan.survivor,
        "stores": [
            {
                "node": each.node_id,
                "location": each.location,
                "store_id": each.store_id,
                "cluster_id": each.cluster_id,
                "last": log_id_fields(each.last_log_id),
                "committed": log_id_fields(each.committed),
                "retired": each.retired or None,
            }
            for each in candidates
        ],
        "old_cluster_id": plan.old_cluster_id,
        "new_cluster_id": plan.new_cluster_id,
        "voters_after": [plan.survivor],
        "entries_kept_uncommitted": plan.kept_uncommitted,
        "voters_not_looked_at": list(plan.missing_voters),
        "had_quorum": plan.had_quorum,
        "backup": None if file is None else str(file),
    }


def _tell(invocation: Invocation, candidates: list[Candidate], plan: RecoveryPlan) -> None:
    """What the stores say, and what is lost, on stderr: before anything is done."""
    out = invocation.out
    for each in candidates:
        mark = "newest log" if each.node_id == plan.survivor else "older or equal"
        ends = f"ends at {each.last_log_id}, committed {each.committed}"
        out.note(f"{each.node_id}: {ends}: {'retired' if each.retired else mark}")
    if plan.had_quorum:
        out.warn(
            "these stores are a majority of the voters: nothing acknowledged is lost if they just start again;"
            " recover only if they cannot"
        )
    elif plan.missing_voters:
        lost = ", ".join(plan.missing_voters)
        out.warn(
            f"{lost}: not looked at with the store the cluster knows; writes that were acknowledged by a majority"
            f" without {plan.survivor} are lost"
        )
        out.warn(
            f"{lost}: must never start again with what they had; as a majority of the old cluster they would serve it"
        )
    if plan.kept_uncommitted:
        out.note(
            f"{plan.kept_uncommitted} entries of {plan.survivor} were not known to be committed: they are kept, and"
            " count as written"
        )
